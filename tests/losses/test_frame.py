"""Frame-level criteria and penalties against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqtrain import losses


def test_cross_entropy_of_uniform_outputs_is_log_p_per_labelled_frame():
    logits = jnp.zeros((2, 4, 5))
    labels = jnp.array([[0, 1, -1, 3], [4, 4, 4, 4]])
    value = losses.cross_entropy(logits, labels, jnp.array([4, 2]))
    np.testing.assert_allclose(value, [3 * np.log(5), 2 * np.log(5)], rtol=1e-6)


def test_cross_entropy_gradient_is_softmax_minus_target():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4)), jnp.float32)
    labels, lengths = jnp.array([[1, -1, 2]]), jnp.array([2])
    gradient = jax.grad(lambda x: losses.cross_entropy(x, labels, lengths).sum())(logits)
    want = np.asarray(jax.nn.softmax(logits[0, 0])) - np.eye(4)[1]
    np.testing.assert_allclose(gradient[0, 0], want, atol=1e-6)
    assert not np.any(gradient[0, 1:])


def test_soft_labels_of_one_hot_rows_equal_hard_labels():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4)), jnp.float32)
    logits = logits.at[0, 0, 3].set(-jnp.inf)
    soft = jax.nn.one_hot(jnp.array([[1, 0, 2]]), 4)
    hard = losses.cross_entropy(logits, jnp.array([[1, 0, 2]]), jnp.array([3]))
    np.testing.assert_allclose(losses.cross_entropy(logits, soft, jnp.array([3])), hard, rtol=1e-6)


def test_padding_is_ignored_even_if_it_is_nan():
    logits = jnp.zeros((1, 3, 2)).at[0, 2].set(jnp.nan)
    lengths = jnp.array([2])
    for penalty in (
        lambda x: losses.cross_entropy(x, jnp.zeros((1, 3), jnp.int32), lengths),
        lambda x: losses.output_l2(x, lengths),
        lambda x: losses.out_of_range(x, lengths),
    ):
        value, pull = jax.vjp(penalty, logits)
        assert np.all(np.isfinite(value))
        assert np.all(np.isfinite(pull(value)[0]))


def test_a_label_outside_the_network_is_nan():
    value = losses.cross_entropy(jnp.zeros((2, 1, 2)), jnp.array([[2], [1]]), jnp.array([1, 1]))
    assert np.isnan(value[0])
    assert np.isfinite(value[1])


def test_penalties():
    logits = jnp.array([[[3.0, -4.0], [100.0, 0.0]]])
    np.testing.assert_allclose(losses.output_l2(logits, jnp.array([1])), [12.5])
    np.testing.assert_allclose(losses.out_of_range(logits, jnp.array([2])), [0.5 * 70.0**2])
    np.testing.assert_allclose(
        losses.out_of_range(logits, jnp.array([2]), limit=2.0), [0.5 * (1 + 4 + 98.0**2)]
    )


def test_f_smoothing_interpolates():
    value = losses.f_smoothing(jnp.array([-2.0]), jnp.array([5.0]), 0.1)
    np.testing.assert_allclose(value, [-0.9 * 2 - 0.1 * 5], rtol=1e-6)
    with pytest.raises(ValueError, match='between 0 and 1'):
        losses.f_smoothing(jnp.array([-2.0]), jnp.array([5.0]), 1.5)
