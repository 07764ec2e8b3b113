"""Paths that single precision would lose, on every backend present, against closed forms."""

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from backends import BACKENDS

from seqtrain import ops
from seqtrain.fsa import Fsa


def swap(gap: float) -> tuple[Fsa, np.ndarray]:
    """Path A leads by `gap` in every frame of the first half, path B in the second."""
    fsa = Fsa([0, 1], [0, 1], [0, 1], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    half = np.array([[0.0, -gap]] * 4)
    return fsa, np.concatenate([half, half[:, ::-1]]).astype(np.float32)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('gap', [1.0, 30.0, 75.0, 90.0, 500.3])
def test_a_path_that_underflows_on_its_way_is_not_lost(backend, gap):
    # After four frames path B is e^{-4 gap} below A, beyond single precision; both end equal.
    fsa, scores = swap(gap)
    for graph in (ops.pack(fsa), ops.pack_batch([fsa])):
        log_z, gamma = ops.occupancies(
            jnp.asarray(scores[None]), jnp.array([8]), graph, backend=backend
        )
        np.testing.assert_allclose(log_z, [np.log(2) - 4 * gap], rtol=1e-5)
        np.testing.assert_allclose(gamma[0], np.full((8, 2), 0.5), atol=1e-5)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize(('step', 'frames'), [(2.0, 60), (10.0, 12), (60.0, 8)])
def test_a_path_that_both_directions_lose_is_not_lost(backend, shared, step, frames):
    fsa = Fsa([0, 1], [0, 1], [0, 1], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    path = np.repeat([-step, step, -step], [frames, 2 * frames, frames])
    scores = np.zeros((2, len(path), 2), np.float32)
    scores[:, :, 0] = path
    scores[1, frames + 1, 0] += 20.0
    scores = jnp.asarray(scores)
    graph = ops.pack(fsa) if shared else ops.pack_batch([fsa, fsa])
    lengths = jnp.array([len(path)] * 2)
    log_z, gamma = ops.occupancies(scores, lengths, graph, backend=backend)
    share = np.exp([0.0, 20.0] - np.logaddexp(0.0, [0.0, 20.0]))
    np.testing.assert_allclose(log_z, np.logaddexp(0.0, [0.0, 20.0]), rtol=1e-5)
    np.testing.assert_allclose(gamma[:, :, 0] - share[:, None], 0.0, atol=1e-5)
    first = jnp.broadcast_to(jnp.array([1.0, 0.0]), scores.shape)
    value, _ = ops.expected_accuracy(scores, lengths, graph, first, backend=backend)
    np.testing.assert_allclose(value, len(path) * share, rtol=1e-5)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(('step', 'frames'), [(5.0, 20), (10.0, 80), (200.0, 4)])
def test_a_lattice_path_that_both_directions_lose_is_not_lost(backend, step, frames):
    path = np.repeat([-step, step, -step], [frames, 2 * frames, frames]).astype(np.float32)
    ends = 1 + np.arange(2 * len(path))  # two chains from one start
    starts = np.r_[0, 0, ends[:-2]]
    nowhere = np.full(len(ends) + 1, -np.inf)
    initial, final = np.r_[0.0, nowhere[1:]], np.r_[nowhere[:-2], 0.0, 0.0]
    fsa = Fsa(starts, ends, np.tile([0, 1], len(path)), np.zeros(len(ends)), initial, final)
    scores = jnp.zeros((1, len(path), 2)).at[0, :, 0].set(path)
    graph, lengths = ops.pack_batch([fsa]), jnp.array([len(path)])
    log_z, gamma = ops.occupancies(scores, lengths, graph, backend=backend)
    np.testing.assert_allclose(log_z, np.log(2), rtol=1e-5)
    np.testing.assert_allclose(gamma, 0.5, atol=1e-5)


@pytest.mark.parametrize('backend', BACKENDS)
def test_paths_of_small_mass_are_not_lost(backend):
    """Three words of twelve states side by side: what is lost of one shows in the occupancies."""
    rng = np.random.default_rng(4)
    words, states, frames, pdfs, batch = 3, 12, 200, 40, 16
    here = np.arange(words * states)
    last = here % states == states - 1
    starts, finals = here % states == 0, last
    src, dst = np.r_[here, here[~last]], np.r_[here, here[~last] + 1]
    pdf = rng.integers(pdfs, size=len(here))[dst]
    fsa = Fsa(
        src, dst, pdf, np.zeros(len(src)), *(np.where(x, 0.0, -np.inf) for x in (starts, finals))
    )
    scores = 1.5 * np.repeat(rng.normal(size=(batch, frames // 10, pdfs)), 10, 1)
    scores, lengths = scores.astype(np.float32), np.full(batch, frames, np.int32)
    log_z, gamma = ops.occupancies(
        jnp.asarray(scores), lengths, ops.pack_batch([fsa] * batch), backend=backend
    )
    oracles.check(log_z, np.asarray(gamma), scores, lengths, [fsa] * batch)


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_score_that_underflows_is_not_lost(backend):
    # Paths 0 and 1 have one frame each that single precision cannot hold beside the other; path 2
    # lives on in both directions, so that their totals agree without the other two.
    scores = np.array([[-88, 0, -43], [0, -88, 0], [0, 0, -43]], np.float32)
    states, none = np.arange(3), np.zeros(3)
    fsa = Fsa(states, states, states, none, none, none)
    batch = jnp.asarray(np.stack([scores] * 5))
    for graph in (ops.pack(fsa), ops.pack_batch([fsa] * 5)):
        log_z, gamma = ops.occupancies(batch, jnp.full(5, 3), graph, backend=backend)
        oracles.check(log_z, np.asarray(gamma), np.asarray(batch), [3] * 5, [fsa] * 5)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('weight', [-95.0, -300.0, 95.0])
def test_extreme_arc_weights_are_not_lost(backend, weight):
    # Two parallel arcs; the scores make up for the weight, so both count equally.
    fsa = Fsa([0, 0], [0, 0], [0, 1], [weight, 0.0], [0.0], [0.0])
    scores = np.array([[[0.0, weight]] * 3], np.float32)
    log_z, gamma = ops.occupancies(
        jnp.asarray(scores), jnp.array([3]), ops.pack(fsa), backend=backend
    )
    np.testing.assert_allclose(log_z, [3 * (weight + np.log(2))], rtol=1e-5)
    np.testing.assert_allclose(gamma[0], np.full((3, 2), 0.5), atol=1e-5)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('end', ['initial', 'final'])
@pytest.mark.parametrize('weight', [-49.0, -55.0, -60.0, -70.0, -79.0, -86.0])
def test_extreme_ends_are_not_lost(backend, end, weight):
    # −86: one weight is beyond single precision, the other just within; no total shows it.
    # −55 to −79: both are within, but no power of two lifts them to where a pass begins.
    ends = {'initial': np.zeros(2), 'final': np.zeros(2), end: np.array([weight - 4, weight])}
    fsa = Fsa([0, 1], [0, 1], [0, 1], np.zeros(2), **ends)
    scores = np.zeros((5, 3, 2), np.float32)
    for graph in (ops.pack(fsa), ops.pack_batch([fsa] * 5)):
        log_z, gamma = ops.occupancies(jnp.asarray(scores), jnp.full(5, 3), graph, backend=backend)
        oracles.check(log_z, np.asarray(gamma), scores, [3] * 5, [fsa] * 5)
