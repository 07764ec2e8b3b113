"""Exactness of the operations on acceptors, by enumeration of paths."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from path_enumeration import enumerate_paths, log_sum

from seqtrain.fsa import Fsa, FsaError, connect, intersect, min_frames, minimise

INF = np.inf


@st.composite
def fsas(draw, deterministic=False):
    """Random acceptors of up to five states over three labels."""
    num_states = draw(st.integers(2, 5))
    state, weight = st.integers(0, num_states - 1), st.sampled_from([0.0, -0.5, -1.0])
    arcs = draw(
        st.lists(st.tuples(state, state, st.integers(0, 2), weight), min_size=1, max_size=12)
    )
    if deterministic:
        arcs = list({(arc[0], arc[2]): arc for arc in arcs}.values())
    initial = np.full(num_states, -INF)
    initial[0] = 0.0
    if not deterministic and draw(st.booleans()):
        initial[1] = -0.25
    finals = st.sampled_from([-INF, 0.0, -0.5])
    final = draw(st.lists(finals, min_size=num_states, max_size=num_states))
    return Fsa.from_arcs(arcs, initial, np.array(final))


def assert_same_weights(left, right):
    """Every label sequence of up to four frames has the same total weight in both."""
    for frames in range(5):
        a, b = enumerate_paths(left, frames), enumerate_paths(right, frames)
        assert a.keys() == b.keys()
        for labels, weights in a.items():
            np.testing.assert_allclose(log_sum({0: weights}), log_sum({0: b[labels]}), atol=1e-5)


@hypothesis.given(fsas())
@hypothesis.settings(deadline=None, max_examples=60)
def test_connect_and_minimise_keep_every_weight(fsa):
    try:
        trimmed = connect(fsa)
    except FsaError:
        assert all(not enumerate_paths(fsa, frames) for frames in range(fsa.num_states + 1))
        return
    assert_same_weights(fsa, trimmed)
    minimal = minimise(trimmed)
    assert minimal.num_states <= trimmed.num_states
    assert_same_weights(fsa, minimal)
    assert minimise(minimal).num_states == minimal.num_states


@hypothesis.given(fsas(), fsas(deterministic=True))
@hypothesis.settings(deadline=None, max_examples=60)
def test_intersect_adds_the_weights_of_common_sequences(left, right):
    try:
        both = intersect(left, right)
    except FsaError:
        both = None
    for frames in range(4):
        a, b = enumerate_paths(left, frames), enumerate_paths(right, frames)
        found = enumerate_paths(both, frames) if both else {}
        assert found.keys() == a.keys() & b.keys()
        for labels, weights in found.items():
            np.testing.assert_allclose(weights, [w + b[labels][0] for w in a[labels]], atol=1e-5)


@hypothesis.given(fsas())
@hypothesis.settings(deadline=None, max_examples=60)
def test_min_frames_is_the_first_length_with_a_path(fsa):
    lengths = [frames for frames in range(5) if enumerate_paths(fsa, frames)]
    if lengths:
        assert min_frames(fsa) == lengths[0]
    else:
        with pytest.raises(FsaError, match='No path'):
            min_frames(fsa)


def test_minimise_merges_states_with_one_future():
    # 0 -a-> 1 -c-> 3, 0 -b-> 2 -c-> 3: states 1 and 2 are one.
    arcs = [(0, 1, 0, 0.0), (0, 2, 1, 0.0), (1, 3, 2, -1.0), (2, 3, 2, -1.0)]
    initial, final = np.array([0, -INF, -INF, -INF]), np.array([-INF, -INF, -INF, 0.0])
    assert minimise(Fsa.from_arcs(arcs, initial, final)).num_states == 3
    arcs[3] = (2, 3, 2, np.nextafter(np.float32(-1.0), np.float32(0.0)))
    assert minimise(Fsa.from_arcs(arcs, initial, final)).num_states == 4  # no rounding


def test_intersect_refuses_an_ambiguous_right_side():
    arcs = [(0, 1, 0, 0.0), (0, 1, 0, -1.0)]
    fsa = Fsa.from_arcs(arcs, np.array([0.0, -INF]), np.array([-INF, 0.0]))
    with pytest.raises(FsaError, match='deterministic'):
        intersect(fsa, fsa)
