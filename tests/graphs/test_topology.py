"""Topologies: which frame sequences a phone sequence allows, and what they weigh."""

import itertools
import math

import numpy as np
import pytest
from path_enumeration import enumerate_paths

from seqtrain.fsa import Fsa, min_frames
from seqtrain.graphs import Topology, expand

HALF = math.log(0.5)


def linear(phones, weight=0.0):
    n = len(phones)
    arcs = [(i, i + 1, p, weight) for i, p in enumerate(phones)]
    initial, final = np.full(n + 1, -np.inf), np.full(n + 1, -np.inf)
    initial[0] = final[-1] = 0.0
    return Fsa.from_arcs(arcs, initial, final)


def segmentations(num_phones, num_frames):
    """All ways to give each phone at least one frame."""
    for cuts in itertools.combinations(range(1, num_frames), num_phones - 1):
        bounds = (0, *cuts, num_frames)
        yield [b - a for a, b in itertools.pairwise(bounds)]


def test_chain_has_forward_then_loops():
    paths = enumerate_paths(expand(linear([1, 0, 1], -2.0), Topology.make('chain', 2)), 5)
    expected = {}
    for durations in segmentations(3, 5):
        pdfs = [(2 * p, *[2 * p + 1] * (d - 1)) for p, d in zip([1, 0, 1], durations, strict=True)]
        expected[tuple(itertools.chain(*pdfs))] = [pytest.approx(-6.0 + 5 * HALF, abs=1e-5)]
    assert paths == expected


def test_one_state_counts_each_segmentation():
    # "0 0" in 4 frames: three segmentations with the same pdfs.
    paths = enumerate_paths(expand(linear([0, 0]), Topology.make('hmm1', 1)), 4)
    assert paths == {(0, 0, 0, 0): [pytest.approx(4 * HALF)] * 3}


def test_three_states_pay_their_transitions():
    fsa = expand(linear([1]), Topology.make('hmm3', 2))
    assert min_frames(fsa) == 3
    paths = enumerate_paths(fsa, 5)
    weight = 2 * math.log(0.75) + 3 * math.log(0.25)
    expected = {
        tuple(np.repeat([3, 4, 5], durations)): [pytest.approx(weight)]
        for durations in segmentations(3, 5)
    }
    assert paths == expected


@pytest.mark.parametrize('phones', [[0], [0, 1], [0, 0], [1, 1, 0]])
def test_ctc_is_the_collapsing_rule(phones):
    paths = enumerate_paths(expand(linear(phones), Topology.make('ctc', 2)), 5)
    expected = set()
    for labels in itertools.product(range(3), repeat=5):
        collapsed = [k for k, _ in itertools.groupby(labels) if k]
        if collapsed == [p + 1 for p in phones]:
            expected.add(labels)
    assert set(paths) == expected
    assert all(weights == [0.0] for weights in paths.values())


def test_ctc_shortest_length_counts_the_blank_between_equal_phones():
    assert min_frames(expand(linear([0, 0, 1]), Topology.make('ctc', 2))) == 4


@pytest.mark.parametrize(
    ('kind', 'num_pdfs', 'phone_of_pdf'),
    [
        ('chain', 4, [0, 0, 1, 1]),
        ('hmm1', 2, [0, 1]),
        ('hmm3', 6, [0, 0, 0, 1, 1, 1]),
        ('ctc', 3, [-1, 0, 1]),
    ],
)
def test_pdfs(kind, num_pdfs, phone_of_pdf):
    topology = Topology.make(kind, 2)
    assert (topology.num_pdfs, topology.num_phones) == (num_pdfs, 2)
    assert topology.phone_of_pdf().tolist() == phone_of_pdf


def test_unknown_topology():
    with pytest.raises(ValueError, match='choose chain, hmm1, hmm3 or ctc'):
        Topology.make('hmm5', 2)


def test_loop_probability():
    topology = Topology.make('hmm3', 2, loop_probability=0.9)
    assert math.exp(topology.loop_logprob) + math.exp(topology.leave_logprob) == pytest.approx(1)
    paths = enumerate_paths(expand(linear([0]), topology), 5)
    weight = 2 * math.log(0.9) + 3 * math.log(0.1)
    assert all(w == [pytest.approx(weight, abs=1e-5)] for w in paths.values())
    for kind, probability in [('hmm1', 1.0), ('hmm1', 0.0), ('ctc', 0.5)]:
        with pytest.raises(ValueError, match='loop_probability'):
            Topology.make(kind, 2, loop_probability=probability)


def test_states_and_phones_of_pdfs():
    assert Topology.make('hmm3', 2).state_of_pdf().tolist() == [0, 1, 2, 3, 4, 5]
    assert Topology.make('chain', 2).state_of_pdf().tolist() == [0, 0, 1, 1]
    assert Topology.make('ctc', 2).state_of_pdf().tolist() == [-1, 0, 1]


@pytest.mark.parametrize('num_phones', [0, -2])
def test_a_topology_has_phones(num_phones):
    with pytest.raises(ValueError, match=f'num_phones={num_phones}'):
        Topology.make('chain', num_phones)
