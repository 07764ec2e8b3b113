"""Context-dependent pdfs in training and decoding graphs, against the rule written out."""

import itertools
import math

import numpy as np
import pytest
from path_enumeration import enumerate_paths

from seqtrain.decoding import Decoder
from seqtrain.graphs import (
    Lexicon,
    NGramLm,
    PhoneLm,
    Topology,
    decoding_graph,
    denominator,
    expand,
    numerator,
    training_phones,
)
from seqtrain.graphs.alignment import segments, uniform_alignment
from seqtrain.graphs.tied import TiedTopology, relabel, tie_by_counts

PHONES = 3


def random_tying(kind, rights, seed=0, variants=3):
    """Every context-independent pdf refined into `variants`, drawn per context."""
    base = Topology.make(kind, PHONES)
    own = np.stack([base.forward, base.loop], axis=2)
    shape = (*own.shape, PHONES + 1, rights)
    draw = np.random.default_rng(seed).integers(variants, size=(PHONES, *shape[3:]))
    groups = np.broadcast_to(draw[:, None, None], shape)
    numbered = np.unique(own[..., None, None] * variants + groups, return_inverse=True)[1]
    return TiedTopology.from_table(base, numbered.reshape(shape))


TYINGS = [(kind, rights) for kind in ('chain', 'hmm1', 'hmm3') for rights in (1, PHONES + 1)]


@pytest.fixture(scope='module')
def lexicon():
    return Lexicon.from_dict({'x': ['a', 'a b'], 'y': 'b', 'hom': 'b', 'z': 'b a'})


def expected_paths(phones, topology, num_frames):
    """Paths of one phone sequence, from its segmentations."""
    around = [-1, *phones, -1]
    states = []
    for left, phone, right in zip(around, phones, around[2:], strict=False):
        states += zip(*topology.pdfs(left, phone, right), strict=True)
    for cuts in itertools.combinations(range(1, num_frames), len(states) - 1):
        bounds = (0, *cuts, num_frames)
        pdfs = []
        for (forward, loop), start, end in zip(states, bounds, bounds[1:], strict=False):
            pdfs += [forward, *[loop] * (end - start - 1)]
        yield tuple(pdfs)


@pytest.mark.parametrize(('kind', 'rights'), TYINGS)
def test_a_graph_has_the_paths_of_its_phone_sequences(lexicon, kind, rights):
    topology = random_tying(kind, rights)
    sequences = training_phones(['x y', 'z x', 'y', 'x y z'], lexicon, samples=4)
    lm = PhoneLm.estimate(sequences, lexicon.phones, order=2)
    frames = 6 if kind == 'hmm3' else 4
    expected = {}
    for length in range(1, frames // topology.num_states + 1):
        for phones in enumerate_paths(lm.acceptor(), length):
            for pdfs in expected_paths(phones, topology, frames):
                expected[pdfs] = expected.get(pdfs, 0) + 1
    for graph in (expand(lm.acceptor(), topology), denominator(lm, topology)):
        found = {pdfs: len(w) for pdfs, w in enumerate_paths(graph, frames).items()}
        assert found == expected


@pytest.mark.parametrize(('kind', 'rights'), TYINGS)
def test_numerator_paths_stay_denominator_paths(lexicon, kind, rights):
    topology = random_tying(kind, rights, seed=1)
    lm = PhoneLm.backed_off([(1, 2), (0, 2, 1)], lexicon.phones, order=2)
    den = denominator(lm, topology)
    frames = 7 if kind == 'hmm3' else 5
    every = enumerate_paths(den, frames)
    found = enumerate_paths(numerator('x y', lexicon, topology, lm), frames)
    assert len(found) > 3 or kind == 'hmm3'
    for pdfs, weights in found.items():
        rest = list(every[pdfs])
        for weight in weights:
            rest.remove(weight)  # bit-equal, and as many


@pytest.mark.parametrize(('kind', 'rights'), TYINGS)
def test_decoding_finds_the_best_path(lexicon, kind, rights):
    topology = random_tying(kind, rights, seed=2)
    model = NGramLm.estimate([['x', 'y'], ['z', 'x'], ['hom']], 2)
    graph = decoding_graph(lexicon, topology, model, silence_probability=0.0)
    assert graph.num_pdfs == topology.num_pdfs
    frames = 7 if kind == 'hmm3' else 3
    rng = np.random.default_rng(3)
    for _ in range(3):
        scores = rng.normal(scale=3.0, size=(frames, topology.num_pdfs)).astype(np.float32)
        best = -math.inf
        for count in range(4):
            for words in itertools.product(model.words, repeat=count):
                # With a bigram, backing off loses nothing: the score is the path's weight.
                for variants in itertools.product(*map(lexicon.variants, words)):
                    phones = list(itertools.chain(*variants))
                    if not 0 < len(phones) * topology.num_states <= frames:
                        continue
                    loops = frames - len(phones) * topology.num_states
                    weight = loops * topology.loop_logprob
                    weight += len(phones) * topology.num_states * topology.leave_logprob
                    for pdfs in expected_paths(phones, topology, frames):
                        acoustic = scores[np.arange(frames), list(pdfs)].sum()
                        best = max(best, acoustic + weight + model.score(words))
        found = Decoder(graph, beam=100.0).decode(scores)
        assert found.score == pytest.approx(best, abs=1e-3)


def test_relabel_and_segments_agree_with_the_rule():
    topology = random_tying('chain', PHONES + 1, seed=4)
    base = Topology.make('chain', PHONES)
    phones = [0, 1, 1, 2, 0]
    plain = uniform_alignment(phones, base, 14)
    tied = uniform_alignment(phones, topology, 14)
    np.testing.assert_array_equal(relabel([*plain, -1], base, topology), [*tied, -1])
    np.testing.assert_array_equal(topology.base_pdf[tied], plain)
    assert segments(tied, topology) == segments(plain, base)
    np.testing.assert_array_equal(relabel(tied, topology, base), plain)
    with pytest.raises(ValueError, match='Cannot relabel from chain'):
        relabel(plain, base, Topology.make('hmm1', PHONES))


def test_tying_by_counts():
    sequences = [(0, 1, 2)] * 10 + [()] + [(2, 1)] * 3  # one has no alignment
    topology = tie_by_counts(sequences, Topology.make('chain', 3), min_count=5)
    # Own pdfs: a after SIL, b after a; the rest shares.
    assert topology.num_pdfs == 2 * (3 + 2)
    assert topology.pdfs(0, 1) != topology.pdfs(2, 1) == topology.pdfs(-1, 1)
    assert topology.pdfs(1, 2) != topology.pdfs(0, 2)
    assert topology.pdfs(-1, 0) == topology.pdfs(2, 0)
    for bad in (-1, 3):
        with pytest.raises(ValueError, match=f'Sequence 1: phone {bad}'):
            tie_by_counts([(), (0, bad)], Topology.make('chain', 3))


def test_write_and_read(tmp_path):
    topology = random_tying('hmm3', PHONES + 1)
    for name in ('tree.npz', 'tree'):
        topology.write(tmp_path / name)
        again = TiedTopology.read(tmp_path / name, Topology.make('hmm3', PHONES))
        assert again.content() == topology.content()
    assert again.content() != random_tying('hmm3', PHONES + 1, seed=9).content()
    np.savez_compressed(tmp_path / 'kindless.npz', table=topology.table)
    again = TiedTopology.read(tmp_path / 'kindless.npz', Topology.make('hmm3', PHONES))
    assert again.content() == topology.content()


def test_files_of_another_topology_or_damaged_are_named(tmp_path):
    path = tmp_path / 'tying.npz'
    random_tying('chain', PHONES + 1).write(path)
    with pytest.raises(ValueError, match=r'tying\.npz: made for chain; .* not hmm1'):
        TiedTopology.read(path, Topology.make('hmm1', PHONES))
    with pytest.raises(ValueError, match=r'tying\.npz: A table of shape'):
        TiedTopology.read(path, Topology.make('chain', PHONES + 1))
    whole = path.read_bytes()
    for damage in (b'', b'hello', b'PK\x03\x04hello', whole[: len(whole) // 2]):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r'tying\.npz: no tying, or a damaged one'):
            TiedTopology.read(path, Topology.make('chain', PHONES))
    with pytest.raises(FileNotFoundError):
        TiedTopology.read(tmp_path / 'nothing.npz', Topology.make('chain', PHONES))


def test_what_cannot_be_tied():
    base = Topology.make('chain', 3)
    with pytest.raises(ValueError, match='CTC'):
        TiedTopology.from_table(Topology.make('ctc', 3), np.zeros((3, 1, 2, 4, 1)))
    with pytest.raises(ValueError, match='shape'):
        TiedTopology.from_table(base, np.zeros((3, 1, 2, 4, 2)))
    with pytest.raises(ValueError, match='refine one pdf each'):
        TiedTopology.from_table(base, np.zeros((3, 1, 2, 4, 1)))
