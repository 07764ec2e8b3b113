"""Packing acceptors for the devices."""

import numpy as np
import oracles
import pytest

from seqtrain import ops
from seqtrain.fsa import Fsa, FsaError

INF = np.inf


def chain(length: int) -> Fsa:
    """Exactly `length` arcs in a row."""
    states = length + 1
    initial = np.where(np.arange(states) == 0, 0.0, -INF)
    return Fsa(
        np.arange(length),
        np.arange(length) + 1,
        np.zeros(length),
        np.zeros(length),
        initial,
        initial[::-1],
    )


def test_groups_are_the_distinct_pairs_of_destination_and_pdf():
    fsa = Fsa([0, 1, 0, 1], [0, 0, 1, 1], [2, 2, 1, 1], [0, 1, 2, 3], [0, 0], [0, 0])
    graph = ops.pack(fsa)
    np.testing.assert_array_equal(graph.group, [0, 0, 1, 1])
    np.testing.assert_array_equal(graph.group_dst, [0, 1])
    np.testing.assert_array_equal(graph.group_pdf, [2, 1])
    assert graph.num_pdfs == 3


@pytest.mark.parametrize('pack', [ops.pack, lambda fsa: ops.pack_batch([fsa])])
def test_arcs_are_sorted_by_destination_then_pdf(pack):
    graph = pack(oracles.random_fsa(np.random.default_rng(0), 4, 30, 3))
    arcs = list(zip(*(np.ravel(x) for x in (graph.dst, graph.pdf, graph.src)), strict=True))
    assert arcs == sorted(arcs)


def test_padding_arcs_keep_the_order_and_carry_no_weight():
    graph = ops.pack_batch([chain(2), chain(4)], num_states=7, num_arcs=6)
    assert graph.src.shape == (2, 6)
    assert np.all(np.diff(graph.dst, axis=1) >= 0)
    assert np.all(graph.weight[0, 2:] == -INF)
    assert np.all(graph.initial[:, 5:] == -INF)
    assert isinstance(graph.src, np.ndarray)


@pytest.mark.parametrize('length', [0, 1, 5])
def test_min_frames_of_a_chain(length):
    assert ops.min_frames(chain(length)) == length


def test_min_frames_against_enumeration():
    rng = np.random.default_rng(0)
    for _ in range(20):
        fsa = oracles.random_fsa(rng, 6, 7, 2)
        feasible = [n for n in range(7) if oracles.paths(np.zeros((n, 2)), fsa)]
        want = feasible[0] if feasible else ops.NEVER
        assert ops.min_frames(fsa) == want


def test_an_impossible_arc_is_no_path():
    fsa = Fsa([0], [1], [0], [-INF], [0, -INF], [-INF, 0])
    assert ops.min_frames(fsa) == ops.NEVER


def test_bad_input_gets_a_sentence():
    with pytest.raises(FsaError, match='Acceptor 1 has 5 states'):
        ops.pack_batch([chain(2), chain(4)], num_states=4, num_arcs=4)
    with pytest.raises(FsaError, match='at least one acceptor'):
        ops.pack_batch([])
    with pytest.raises(FsaError, match='a sequence of at least one acceptor'):
        ops.pack_batch(chain(2))
    with pytest.raises(FsaError, match=r'one acceptor \(an Fsa\); got list'):
        ops.pack([chain(2)])
    with pytest.raises(FsaError, match='no arcs'):
        ops.pack(chain(0))
    with pytest.raises(FsaError, match='names pdf 3'):
        ops.pack_batch([Fsa([0], [0], [3], [0], [0], [0])], num_pdfs=3)
    with pytest.raises(FsaError, match='Acceptor 0'):
        ops.pack_batch([Fsa([0], [9], [3], [0], [0], [0])])
