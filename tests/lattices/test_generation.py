"""Numerator and denominator lattices: what they hold, and what happens to hopeless utterances."""

import re
import tracemalloc
from collections import Counter

import jax
import numpy as np
import pytest

from seqtrain import ops
from seqtrain.graphs import NGramLm, Topology, decoding_graph
from seqtrain.lattices import LatticeError, LatticeGenerator, best_path, prune, union
from seqtrain.lattices.generation import constrain
from seqtrain.lattices.search import SearchGraph, compiled, search


def paths_of(paths, words=None):
    return sorted(p[:2] for p in paths if words is None or p[1] == words)


def test_a_constrained_graph_has_exactly_the_transcripts_paths(
    graph, scores, graph_paths, lattice_paths
):
    matrix = scores(4)
    whole = SearchGraph.of(graph)
    for words in [('x', 'y'), ('hom',), ('y', 'y')]:
        part = constrain(whole, words)
        lattice = search(part, matrix, beam=1e4, lattice_beam=1e4)
        expected = paths_of(graph_paths(graph, matrix), words)
        assert expected
        assert paths_of(lattice_paths(lattice)) == expected


def test_the_reference_is_always_in_the_denominator(graph, scores, lattice_paths, graph_paths):
    generator = LatticeGenerator(graph, beam=1e3, lattice_beam=1.0)
    for seed in range(2):
        matrix = scores(4, seed)
        pair = generator.pair(matrix, 'z x')
        assert pair.ok
        numerator, denominator = pair.numerator, pair.denominator.validate(graph.num_pdfs)
        every = Counter(p[:2] for p in lattice_paths(denominator))
        assert Counter(p[:2] for p in lattice_paths(numerator)) <= every
        assert every <= Counter(p[:2] for p in graph_paths(graph, matrix))
        assert {p[1] for p in lattice_paths(numerator)} == {('z', 'x')}


def test_numerator_is_below_denominator_on_the_device(graph, scores):
    generator = LatticeGenerator(graph, beam=1e3, lattice_beam=4.0)
    matrices = [scores(6, seed) for seed in range(4)]
    pairs = [generator.pair(matrix, 'x y') for matrix in matrices]
    lengths, device = np.full(4, 6, np.int32), jax.devices()[0]
    num, den = (
        ops.log_partition(
            np.stack(matrices),
            lengths,
            ops.pack_batch([getattr(p, side).to_fsa() for p in pairs], device=device),
        )
        for side in ('numerator', 'denominator')
    )
    assert (num <= den + 1e-5).all()
    assert (num > den - 40).all()


def test_acceptors_of_a_fixed_size(graph, scores):
    matrix = scores(8, scale=1.0)
    pair = LatticeGenerator(graph, beam=1e3, lattice_beam=12.0).pair(matrix, 'x y')
    whole = pair.to_fsas(10**6, 10**6)
    assert whole[1].num_arcs == pair.denominator.to_fsa().num_arcs > 200
    small = pair.to_fsas(60, 120)
    assert small[1].num_states <= 60
    assert small[1].num_arcs <= 120
    assert whole.beam == np.inf
    packed = [ops.pack_batch([fsa], 60, 120, device=jax.devices()[0]) for fsa in small[:2]]
    lengths = np.array([8], np.int32)
    num, den = (ops.log_partition(matrix[None], lengths, side) for side in packed)
    assert -50 < num - den <= 1e-5
    with pytest.raises(LatticeError, match='Even the best paths need'):
        pair.to_fsas(5, 5)
    with pytest.raises(LatticeError, match='no lattices: The graph does not have'):
        LatticeGenerator(graph).pair(matrix, 'never').to_fsas(60, 120)


@pytest.mark.parametrize('share', [0.2, 0.5, 0.9])
def test_pruned_acceptors_fill_their_room(graph, scores, share):
    pair = LatticeGenerator(graph, beam=1e3, lattice_beam=12.0).pair(scores(20), 'x y z x')
    whole = pair.to_fsas(10**6, 10**6)
    room = int(share * whole.denominator.num_arcs)
    made = pair.to_fsas(10**6, room, numerator_size=(10**6, 10**6))
    assert 0.55 * room < made.denominator.num_arcs <= room
    pruned = prune(pair.denominator, made.beam)
    paths = union(pruned, prune(pair.numerator, made.beam)).to_fsa()
    assert made.denominator.num_arcs == paths.num_arcs
    assert pruned.num_arcs < pair.denominator.num_arcs


def test_the_transcript_is_searched_with_the_graphs_weights(graph, scores, graph_paths):
    matrix = scores(4, seed=2)
    lattice = LatticeGenerator(graph, beam=1e3).reference(matrix, ['hom', 'y'])
    best = next(p for p in graph_paths(graph, matrix) if p[1] == ('hom', 'y'))
    assert best_path(lattice)[2] == pytest.approx(best[2], abs=1e-4)


@pytest.mark.parametrize('seed', range(4))
def test_no_beam_takes_the_best_path_from_the_transcript(graph, scores, graph_paths, seed):
    matrix = scores(5, seed=seed)
    for words in [('x', 'y', 'z'), ('hom', 'y'), ('z', 'x')]:
        lattice = LatticeGenerator(graph, beam=0.01, max_active=1).reference(matrix, words)
        best = next(p for p in graph_paths(graph, matrix) if p[1] == words)
        assert best_path(lattice)[2] == pytest.approx(best[2], abs=1e-4)


@pytest.mark.parametrize(
    ('frames', 'words', 'reason'),
    [
        (5, 'x never', r'does not have the word\(s\) never'),
        (5, '', 'transcript is empty'),
        (2, 'z z z', 'no path of the transcript fits the frames'),
        (0, 'x', 'no path of the transcript fits the frames'),
    ],
)
def test_hopeless_utterances_come_back_with_a_reason(graph, scores, frames, words, reason):
    pair = LatticeGenerator(graph).pair(scores(5)[:frames], words)
    assert not pair.ok
    assert pair.numerator is pair.denominator is None
    assert re.search(reason, pair.reason)


def test_a_beam_without_a_path_is_widened_once(graph, scores, lattice_paths):
    # The best beginnings of these scores end inside of a word.
    matrix, whole = scores(4, seed=1), compiled(graph)
    assert search(whole, matrix, beam=0.9, lattice_beam=5.0) is None
    found = LatticeGenerator(graph, beam=0.9, lattice_beam=5.0).decode(matrix)
    wider = search(whole, matrix, beam=1.8, lattice_beam=5.0)
    assert lattice_paths(found) == lattice_paths(wider)
    pair = LatticeGenerator(graph, beam=0.1, lattice_beam=5.0).pair(matrix, 'x')
    assert pair.reason == 'no path within the beam'


def test_too_few_states_are_widened_to_all(graph, scores, lattice_paths):
    matrix = scores(4, seed=1)
    generator = LatticeGenerator(graph, beam=50.0, lattice_beam=5.0, max_active=1)
    limits = {'beam': 50.0, 'lattice_beam': 5.0}
    assert search(compiled(graph), matrix, max_active=1, **limits) is None
    everything = search(compiled(graph), matrix, **limits)
    assert lattice_paths(generator.decode(matrix)) == lattice_paths(everything)


def test_non_finite_scores(graph, scores):
    matrix = scores(5)
    matrix[1, 1] = np.nan
    generator = LatticeGenerator(graph)
    assert generator.decode(matrix) is None
    assert generator.pair(matrix, 'x').reason == 'non-finite scores'


def test_a_transcript_outside_the_graph(lexicon):
    lm = NGramLm.estimate([['x', 'y']], 2, smoothing='none')
    graph = decoding_graph(lexicon, Topology.make('chain', 3), lm)
    pair = LatticeGenerator(graph).pair(np.zeros((9, 6), np.float32), 'y x')
    assert pair.reason == "The graph does not accept the transcript 'y x'."


def test_bad_settings(graph):
    with pytest.raises(ValueError, match='must be positive'):
        LatticeGenerator(graph, beam=0.0)
    with pytest.raises(LatticeError, match='shape'):
        LatticeGenerator(graph).decode(np.zeros((5, 99)))


def test_a_transcript_takes_no_memory_for_what_it_does_not_reach():
    states = 50_000  # all after the first two are a part of their own
    arcs = [(0, 1, 0, 1, 0.0), (1, 0, 1, 0, 0.0)]
    rows = np.array([*arcs, *((s, s - 1, 0, 0, 0.0) for s in range(3, states))])
    graph = SearchGraph.from_arcs(rows, np.zeros(states), 0, ('<eps>', 'w'), 2)
    tracemalloc.start()
    try:
        found = constrain(graph, ['w'] * 30)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.num_states == 61
    assert peak < 8 * states  # less than a number for every state
