"""Best paths against enumeration."""

import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from seqtrain import ops
from seqtrain.fsa import Fsa


@pytest.mark.parametrize('backend', ops.backends())
@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('seed', range(6))
def test_best_path_matches_enumeration(backend, shared, seed):
    rng = np.random.default_rng(seed)
    fsas = [oracles.random_fsa(rng, 5, 12, 3) for _ in range(4)]
    scores = rng.normal(size=(4, 6, 3)).astype(np.float32) * 3
    lengths = np.array([6, 4, 1, 0], np.int32)
    if shared:
        fsas = [fsas[0]] * 4
    graph = ops.pack(fsas[0]) if shared else ops.pack_batch(fsas, 5, 12)
    best, labels = ops.viterbi(jnp.asarray(scores), lengths, graph, backend=backend)
    for b, fsa in enumerate(fsas):
        n = lengths[b]
        want, among = oracles.best_path(scores[b, :n], fsa)
        assert np.all(labels[b, n:] == -1)
        if among:
            np.testing.assert_allclose(best[b], want, rtol=1e-5, atol=1e-5)
            assert labels[b, :n].tolist() in among
        else:
            assert best[b] == -np.inf
            assert np.all(labels[b] == -1)


@pytest.mark.parametrize('backend', ops.backends())
def test_bad_scores_give_no_alignment_and_leave_the_rest_alone(backend):
    fsa = Fsa([0, 0], [0, 0], [0, 1], [0.0, 0.0], [0.0], [0.0])
    scores = np.zeros((2, 4, 3), np.float32)
    scores[0, 1, 1] = np.nan
    best, labels = ops.viterbi(
        jnp.asarray(scores), np.array([4, 4], np.int32), ops.pack(fsa), backend=backend
    )
    assert np.isnan(best[0])
    assert np.all(labels[0] == -1)
    assert np.all(labels[1] >= 0)


@pytest.mark.parametrize('backend', ops.backends())
def test_of_equal_paths_the_last_arc_and_the_first_state_win(backend):
    # In every frame pdfs 0 and 1 tie; arcs are ordered by (dst, pdf, src).
    zeros = np.zeros(2)
    fsa = Fsa([0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 0, 1], np.zeros(4), zeros, [0.0, -0.0])
    lengths = np.array([3, 2], np.int32)
    _, labels = ops.viterbi(jnp.zeros((2, 3, 2)), lengths, ops.pack(fsa), backend=backend)
    assert labels.tolist() == [[1, 1, 1], [1, 1, -1]]


@pytest.mark.skipif('cpu' not in ops.backends(), reason='the C++ core is not built')
@pytest.mark.parametrize('make', [oracles.random_fsa, oracles.hmm_fsa])
def test_every_number_of_lanes_agrees_with_xla(make):
    fsa = make(np.random.default_rng(3), 30, 150, 7)
    graph = ops.pack(fsa)
    rng = np.random.default_rng(4)
    # Few distinct scores, so that there are ties.
    scores = (
        jnp.asarray(rng.integers(-2, 3, size=(33, 9, 7)), jnp.float32).at[2, 0, 1].set(-jnp.inf)
    )
    lengths = rng.integers(0, 10, size=33).astype(np.int32)
    want, want_labels = ops.viterbi(scores, lengths, graph, backend='xla')
    for batch in (1, 3, 8, 33):
        best, labels = ops.viterbi(scores[:batch], lengths[:batch], graph, backend='cpu')
        np.testing.assert_array_equal(best, want[:batch])
        np.testing.assert_array_equal(labels, want_labels[:batch])


@pytest.mark.parametrize('backend', ops.backends())
def test_a_graph_that_names_a_pdf_without_scores_gives_nan(backend):
    outside = Fsa([0], [0], [5], [0.0], [0.0], [0.0])
    inside = Fsa([0], [0], [1], [0.0], [0.0], [0.0])
    graphs = ops.pack_batch([outside, inside])
    best, labels = ops.viterbi(
        jnp.zeros((2, 3, 2)), np.array([3, 3], np.int32), graphs, backend=backend
    )
    assert np.isnan(best[0])
    assert best[1] == 0
    assert labels.tolist() == [[-1, -1, -1], [1, 1, 1]]


@pytest.mark.parametrize('backend', ops.backends())
def test_an_arc_that_nobody_can_take_may_name_any_pdf(backend):
    barred = Fsa(
        [0, 0, 0], [0, 1, 1], [5_000_000, 0, 1], [-np.inf, 0, 0.5], [0, -np.inf], [-np.inf, 0]
    )
    graph = ops.pack_batch([barred] * 2)
    lengths = np.array([1, 0], np.int32)
    best, labels = ops.viterbi(jnp.zeros((2, 1, 2)), lengths, graph, backend=backend)
    assert best.tolist() == [0.5, -np.inf]
    assert labels.tolist() == [[1], [-1]]


@pytest.mark.parametrize('backend', ops.backends())
@pytest.mark.parametrize('offset', [0.0, -30.0, 1000.0])
@pytest.mark.parametrize('shared', [False, True])
def test_offsets_and_lengths_cost_no_precision(backend, offset, shared):
    """Scores of a network are known up to a constant per frame, which can be anything."""
    rng = np.random.default_rng(1)
    num_states, num_frames = 20, 1500
    states = np.arange(num_states)
    fsa = Fsa(
        np.concatenate([states, states[:-1]]),
        np.concatenate([states, states[1:]]),
        rng.integers(5, size=2 * num_states - 1),
        np.full(2 * num_states - 1, np.log(0.5)),
        np.where(states == 0, 0.0, -np.inf),
        np.where(states == num_states - 1, 0.0, -np.inf),
    )
    scores = rng.normal(0, 0.3, (2, num_frames, 6)).astype(np.float32) + np.float32(offset)
    scores[:, :, 5] = 1e20  # no arc names it
    lengths = np.array([num_frames, num_frames - 7], np.int32)
    graph = ops.pack(fsa) if shared else ops.pack_batch([fsa, fsa])
    best, labels = ops.viterbi(jnp.asarray(scores), lengths, graph, backend=backend)
    for b, n in enumerate(lengths):
        frames = scores[b, :n].astype(np.float64)
        np.testing.assert_allclose(best[b], oracles.best_score(frames, fsa), rtol=1e-6)
        theirs = np.where(np.arange(6) == np.asarray(labels[b, :n])[:, None], frames, -np.inf)
        lost = oracles.best_score(frames, fsa) - oracles.best_score(theirs, fsa)
        assert 0 <= lost < 1e-3 * max(1.0, abs(offset) / 30)
