"""Every operation on every backend, over graphs that hypothesis draws, against listed paths."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from backends import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtrain import ops
from seqtrain.fsa import Fsa

BATCH, FRAMES, STATES, ARCS, PDFS = 4, 4, 5, 12, 3


class Case(NamedTuple):
    """Graphs of utterances, scores and accuracies [B, T, P], lengths [B]."""

    fsas: list[Fsa]
    scores: np.ndarray
    accuracy: np.ndarray
    lengths: np.ndarray

    def packed(self, shared: bool) -> ops.Graph:
        """Always of one size, so that a test compiles once."""
        graphs = ops.pack_batch(self.fsas, num_states=STATES, num_arcs=ARCS)
        return jax.tree.map(lambda x: x[0], graphs) if shared else graphs

    def utterances(self, shared: bool):
        """Graph, scores and accuracies of the valid frames of every utterance."""
        for b, n in enumerate(self.lengths):
            fsa = self.fsas[0 if shared else b]
            yield b, n, fsa, self.scores[b, :n], self.accuracy[b, :n]


@st.composite
def cases(draw) -> Case:
    """The first graph has a cycle, parallel arcs, several initial and final states, a dead end and
    an unreachable state; the others have whatever comes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    fsas = draw(st.lists(oracles.fsas(STATES, ARCS, PDFS), min_size=3, max_size=3))
    scores, accuracy = rng.normal(size=(2, BATCH, FRAMES, PDFS)).astype(np.float32)
    scores *= draw(st.sampled_from([1.0, 30.0]))
    lengths = rng.integers(0, FRAMES + 1, size=BATCH).astype(np.int32)
    return Case([oracles.awkward_fsa(rng), *fsas], scores, accuracy, lengths)


def everywhere(backends):
    """Runs a test of (backend, shared, case) on every backend and both kinds of batches."""

    def decorated(test):
        test = given(cases())(settings(max_examples=20, deadline=None)(test))
        test = pytest.mark.parametrize('shared', [False, True])(test)
        return pytest.mark.parametrize('backend', backends)(test)

    return decorated


@everywhere(BACKENDS)
def test_log_partition_and_occupancies(backend, shared, case):
    graph, scores = case.packed(shared), jnp.asarray(case.scores)
    log_z, gamma = map(np.asarray, ops.occupancies(scores, case.lengths, graph, backend=backend))

    def total(s):
        value = ops.log_partition(s, case.lengths, graph, backend=backend)
        return value.sum(), value

    gradient, value = jax.grad(total, has_aux=True)(scores)
    np.testing.assert_array_equal(value, log_z)
    np.testing.assert_array_equal(gradient, gamma)
    for b, n, fsa, own, _ in case.utterances(shared):
        want_z, want = oracles.enumerate_partition(own, fsa)
        np.testing.assert_allclose(log_z[b], want_z, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gamma[b, :n], want, atol=1e-5)
        assert not np.any(gamma[b, n:])


@everywhere(BACKENDS)
def test_expected_accuracy(backend, shared, case):
    graph = case.packed(shared)

    def total(s):
        value, log_z = ops.expected_accuracy(
            s, case.lengths, graph, jnp.asarray(case.accuracy), backend=backend
        )
        return value.sum(), (value, log_z)

    gradient, (value, log_z) = jax.grad(total, has_aux=True)(jnp.asarray(case.scores))
    for b, n, fsa, own, accuracy in case.utterances(shared):
        want, want_gradient = oracles.enumerate_accuracy(own, fsa, accuracy)
        want_z, _ = oracles.enumerate_partition(own, fsa)
        np.testing.assert_allclose(log_z[b], want_z, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(value[b], want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gradient[b, :n], want_gradient, atol=1e-5)
        assert not np.any(gradient[b, n:])


@everywhere(sorted({'gpu', *ops.backends()}))  # 'gpu' is the portable program: not slow
def test_viterbi(backend, shared, case):
    graph, scores = case.packed(shared), jnp.asarray(case.scores)
    best, labels = ops.viterbi(scores, case.lengths, graph, backend=backend)
    for b, n, fsa, own, _ in case.utterances(shared):
        want, among = oracles.best_path(own, fsa)
        assert np.all(labels[b, n:] == -1)
        np.testing.assert_allclose(best[b], want, rtol=1e-5, atol=1e-5)
        assert labels[b, :n].tolist() in (among or [[-1] * n])
