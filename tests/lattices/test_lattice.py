"""Lattices as acceptors on the device, their sums, pruning, union and checks."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import oracles
import pytest
from path_enumeration import enumerate_paths, log_sum

from seqtrain import ops
from seqtrain.graphs import Lexicon, PhoneLm, Topology, denominator, training_phones
from seqtrain.lattices import (
    LatticeError,
    LatticeGenerator,
    best_path,
    occupancies,
    path_sums,
    prune,
    union,
)
from seqtrain.lattices.search import SearchGraph, search


@pytest.fixture
def lattice(graph, scores):
    return LatticeGenerator(graph, beam=1e3, lattice_beam=5.0).decode(scores(5))


def by_pdfs(paths):
    total = {}
    for pdfs, _, weight in paths:
        total[pdfs] = np.logaddexp(total.get(pdfs, -np.inf), weight)
    return total


def test_to_fsa_keeps_every_weight(lattice, lattice_paths):
    expected = by_pdfs(lattice_paths(lattice))
    found = enumerate_paths(lattice.to_fsa(acoustic=True), lattice.num_frames)
    assert found.keys() == expected.keys()
    for pdfs, weights in found.items():
        np.testing.assert_allclose(log_sum({0: weights}), expected[pdfs], atol=1e-4)


def test_graph_weights_alone_leave_the_scores_to_the_device(lattice, graph, scores):
    packed = ops.pack_batch([lattice.to_fsa()], device=jax.devices()[0])
    total = ops.log_partition(scores(5)[None], np.array([5], np.int32), packed)
    np.testing.assert_allclose(total[0], path_sums(lattice).total, rtol=1e-5)


def test_an_exhaustive_lattice_is_the_lattice_free_value():
    lexicon = Lexicon.from_dict({'x': ['a', 'a b'], 'y': 'b'})
    lm = PhoneLm.estimate(training_phones(['x y', 'y', 'y x'], lexicon, samples=4), lexicon.phones)
    den = denominator(lm, Topology.make('chain', 3))
    scores = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
    lattice = search(oracles.search_graph(den), scores, beam=1e5, lattice_beam=1e5)
    lengths = np.array([12], np.int32)
    packed = ops.pack_batch([lattice.to_fsa()], device=jax.devices()[0])
    value = ops.log_partition(scores[None], lengths, packed)
    expected = ops.log_partition(scores[None], lengths, ops.pack(den))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_occupancies_by_enumeration(lattice, graph, lattice_paths):
    expected = np.zeros((5, graph.num_pdfs))
    paths = lattice_paths(lattice)
    total = np.logaddexp.reduce([w for _, _, w in paths])
    for pdfs, _, weight in paths:
        expected[np.arange(5), list(pdfs)] += np.exp(weight - total)
    found = occupancies(lattice, graph.num_pdfs)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)


def test_best_path(lattice, lattice_paths):
    pdfs, words, weight = lattice_paths(lattice)[0]
    found = best_path(lattice)
    assert (found[0], tuple(found[1])) == (words, pdfs)
    assert found[2] == pytest.approx(weight, abs=1e-4)


def test_pruning_is_a_narrower_search(graph, scores):
    matrix = scores(6, seed=3)
    wide = search(SearchGraph.of(graph), matrix, beam=1e3, lattice_beam=8.0)
    narrow = search(SearchGraph.of(graph), matrix, beam=1e3, lattice_beam=3.0)
    pruned = prune(wide, 3.0)
    assert wide.num_arcs > pruned.num_arcs
    for name in ('time', 'src', 'dst', 'pdf', 'word', 'graph', 'graph_state'):
        np.testing.assert_array_equal(getattr(pruned, name), getattr(narrow, name))


def test_union_has_the_paths_of_both_once(graph, scores, lattice_paths):
    matrix = scores(4, seed=1)
    generator = LatticeGenerator(graph, beam=1e3, lattice_beam=1e3)
    whole = generator.decode(matrix)
    small = prune(whole, 1.0)
    again = union(whole, small)
    assert [p[:2] for p in lattice_paths(again)] == [p[:2] for p in lattice_paths(whole)]
    reference = generator.reference(matrix, 'x y')
    both = union(small, reference).validate(graph.num_pdfs)
    found = Counter(p[:2] for p in lattice_paths(both))
    assert found <= Counter(p[:2] for p in lattice_paths(whole))  # the graph's own multiplicity
    assert Counter(p[:2] for p in lattice_paths(small)) <= found
    assert Counter(p[:2] for p in lattice_paths(reference)) <= found


def test_rescoring_replaces_the_acoustic_weights(graph, scores, lattice, lattice_paths):
    other = scores(5, seed=9)
    plain = by_pdfs(lattice_paths(lattice.rescore(0 * other)))
    for pdfs, weight in by_pdfs(lattice_paths(lattice.rescore(other))).items():
        acoustic = other[np.arange(5), list(pdfs)].sum()
        assert weight == pytest.approx(plain[pdfs] + acoustic, abs=1e-4)
    with pytest.raises(LatticeError, match='4 frames of scores for a lattice of 5'):
        lattice.rescore(other[:4])
    with pytest.raises(LatticeError, match='another model'):
        lattice.rescore(other[:, :2])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'pdf': lambda a: a + (a >= 0)}, 'beyond the model'),
        ({'word': lambda a: a + 99}, 'not in the table'),
        ({'dst': lambda a: a * 0}, 'does not lead forwards'),
        ({'time': lambda a: a * 2}, 'takes 2 frames'),
        ({'graph': lambda a: a * np.nan}, 'NaN'),
        ({'final': lambda a: a * np.nan}, 'final weight that is NaN'),
        ({'final': lambda a: a - np.inf}, 'No final state'),
        ({'word': lambda a: a[1:]}, 'one entry per arc'),
        ({'acoustic': lambda a: a[1:]}, 'one entry per arc'),
        ({'final': lambda a: a[1:]}, 'one entry per state'),
        ({'graph_state': lambda a: a[1:]}, 'one entry per state'),
        ({'time': lambda a: a + 1}, 'Times must begin at 0'),
        (
            {name: lambda a: np.append(a, a[0]) for name in ('time', 'final', 'graph_state')},
            'Times must begin at 0 and ascend',
        ),
        ({'src': lambda a: a - 1}, 'Arc 0 leaves no state'),
        (
            {name: lambda a: a[::-1] for name in ('src', 'dst', 'pdf', 'word')},
            'Arc 0 comes before an arc of a smaller src; sort',
        ),
        ({'final': lambda a: np.zeros_like(a)}, 'different times'),
    ],
)
def test_validation(lattice, graph, change, message):
    lattice = prune(lattice, 1e3)
    changed = {name: f(getattr(lattice, name)) for name, f in change.items()}
    last = int(lattice.pdf.max()) + 1
    with pytest.raises(LatticeError, match=message):
        dataclasses.replace(lattice, **changed).validate(last)


def test_empty_lattices_are_refused(lattice):
    none = {n: np.zeros(0) for n in ('src', 'dst', 'pdf', 'word', 'graph', 'acoustic')}
    with pytest.raises(LatticeError, match='no arcs'):
        dataclasses.replace(lattice, **none).validate()
    with pytest.raises(LatticeError, match='No path'):
        lattice.select(np.zeros(lattice.num_arcs, bool))
