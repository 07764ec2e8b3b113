"""Sums and differences of pairs of floats against doubles, compiled as they are used."""

import jax
import jax.numpy as jnp
import numpy as np

from seqtrain.ops import pairs


def as_double(x: pairs.Pair) -> np.ndarray:
    return np.asarray(x.high, np.float64) + np.asarray(x.low, np.float64)


def test_a_sum_of_many_keeps_the_digits_that_one_float_loses():
    values = np.random.default_rng(0).normal(-1000, 300, size=(500, 7)).astype(np.float32)

    @jax.jit
    def total(values):
        start = pairs.single(jnp.zeros(7))
        return jax.lax.scan(lambda x, y: (pairs.add(x, y), None), start, values)[0]

    out = total(values)
    np.testing.assert_allclose(as_double(out), values.astype(np.float64).sum(0), rtol=1e-12)
    kept = pairs.restored(pairs.kept(out))
    np.testing.assert_allclose(as_double(kept), as_double(out), rtol=1e-9)
    other = jax.jit(lambda x: pairs.add(x, jnp.float32(-3.1)))(out)
    np.testing.assert_allclose(
        pairs.difference(other, out), np.full(7, np.float32(-3.1)), rtol=1e-6
    )
    np.testing.assert_allclose(pairs.total(out, pairs.single(-out.high)), out.low, rtol=1e-6)


def test_impossible_stays_impossible_and_is_never_nan():
    x = pairs.single(jnp.array([-jnp.inf, 1.0, -jnp.inf]))
    out = jax.jit(pairs.add)(x, jnp.array([1.0, -jnp.inf, -jnp.inf]))
    np.testing.assert_array_equal(out.high, np.full(3, -np.inf))
    np.testing.assert_array_equal(out.low, np.zeros(3))
    np.testing.assert_array_equal(pairs.difference(out, x), np.full(3, -np.inf))
    np.testing.assert_array_equal(
        pairs.difference(pairs.single(jnp.ones(1)), pairs.single(x.high[:1])), [1]
    )
