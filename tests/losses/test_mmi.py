"""lf_mmi: value, gradient, validity."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import oracles
import pytest

from seqtrain import losses, ops
from seqtrain.fsa import Fsa
from seqtrain.losses import Reason

INF = np.inf


def chain(pdfs) -> Fsa:
    """A left-to-right chain with self loops; log-weights make it a sub-probability."""
    n = len(pdfs)
    src, dst = [*range(n), *range(1, n + 1)], [*range(1, n + 1), *range(1, n + 1)]
    first = np.where(np.arange(n + 1) == 0, 0.0, -INF)
    return Fsa(src, dst, [*pdfs, *pdfs], np.log(np.full(2 * n, 0.5)), first, first[::-1])


def loop(num_pdfs: int) -> Fsa:
    """Every sequence of pdfs."""
    zeros = np.zeros(num_pdfs)
    return Fsa(zeros, zeros, range(num_pdfs), zeros, [0.0], [0.0])


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    numerators = [chain([0, 1]), chain([2, 1, 0]), chain([1])]
    return numerators, rng.normal(size=(3, 5, 3)).astype(np.float32), np.array([5, 4, 3], np.int32)


@pytest.mark.parametrize('scale', [1.0, 0.3])
def test_value_and_gradient_match_the_oracle(batch, scale):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))

    def total(x):
        out = losses.lf_mmi(x, lengths, num, den, acoustic_scale=scale, denominator_scale=0.9)
        return out.value.sum(), out

    (_, out), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))
    for b, fsa in enumerate(numerators):
        n = lengths[b]
        num_z, num_gamma = oracles.forward_backward(scale * logits[b, :n], fsa)
        den_z, den_gamma = oracles.forward_backward(scale * logits[b, :n], loop(3))
        np.testing.assert_allclose(out.value[b], num_z - 0.9 * den_z, rtol=1e-5, atol=1e-5)
        want = scale * (num_gamma - 0.9 * den_gamma)
        np.testing.assert_allclose(gradient[b, :n], want, atol=1e-5)
        assert not np.any(gradient[b, n:])
    assert np.all(out.valid)


def test_rows_sum_to_zero_and_a_matched_pair_is_not_positive(batch):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))

    def total(x):
        return losses.lf_mmi(x, lengths, num, den).value.sum()

    gradient = jax.grad(total)(jnp.asarray(logits))
    np.testing.assert_allclose(gradient.sum(-1), np.zeros((3, 5)), atol=1e-5)
    assert np.all(losses.lf_mmi(jnp.asarray(logits), lengths, num, den).value <= 0)


def test_infeasible_utterances_have_a_reason_and_no_gradient(batch):
    numerators, logits, lengths = batch
    exact = Fsa([0, 1], [1, 2], [0, 0], [0, 0], [0, -INF, -INF], [-INF, -INF, 0])
    fsas = [numerators[0], chain([0] * 7), exact, numerators[2], numerators[2]]
    num, den = ops.pack_batch(fsas), ops.pack(loop(3))
    logits = np.concatenate([logits, logits[:2]])
    logits[3, 0, 0] = np.nan
    lengths = np.array([5, 4, 3, 3, 3], np.int32)

    def total(x):
        out = losses.lf_mmi(x, lengths, num, den)
        return out.value.sum(), out

    (value, out), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))
    assert out.reason.tolist() == [
        Reason.OK,
        Reason.TOO_SHORT,
        Reason.NO_PATH,
        Reason.NON_FINITE,
        Reason.OK,
    ]
    assert out.short_by.tolist() == [0, 3, 0, 0, 0]
    assert out.valid.tolist() == [True, False, False, False, True]
    assert np.isfinite(value)
    assert not np.any(gradient[1:4])
    assert np.any(gradient[0])
    assert np.any(gradient[4])
    np.testing.assert_array_equal(out.value[1:4], 0)


def test_finite_differences(batch):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))

    def total(x):
        return losses.lf_mmi(x, lengths, num, den, leaky=0.1).value.sum()

    jax.test_util.check_grads(
        total, (jnp.asarray(logits),), order=1, modes=['rev'], eps=1e-2, atol=2e-2, rtol=2e-2
    )
