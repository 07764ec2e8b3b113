"""Log-probabilities as two floats, for the log domain where doubles are not to be had.

A sum of scores near 1,000 is known to 6e-5 in single precision, and its exponential to as much; as
an unevaluated sum high + low it is known to 1e-11. Only sums and differences: no recursions here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Pair(NamedTuple):
    """high + low, where high is the sum rounded to float32. −inf is (−inf, 0)."""

    high: jax.Array
    low: jax.Array

    def map(self, function: Callable[[jax.Array], jax.Array]) -> Pair:
        """Applies what moves numbers and does not change them."""
        return Pair(function(self.high), function(self.low))


def single(x) -> Pair:
    """x as a pair."""
    return Pair(x, jnp.zeros_like(x))


def add(x: Pair, y) -> Pair:
    """x + y for floats y, which may be −inf (TwoSum: Knuth, TAOCP 4.2.2)."""
    total = x.high + y
    part = total - x.high
    lost = (x.high - (total - part)) + (y - part) + x.low
    lost = jnp.where(jnp.isfinite(total), lost, 0.0)
    high = total + lost
    return Pair(high, jnp.where(jnp.isfinite(total), lost - (high - total), 0.0))


def difference(x: Pair, y: Pair):
    """x − y as a float, −inf where x is; meant for what goes into exp. y = −inf counts as 0."""
    there = jnp.isfinite(y.high)
    gap = (x.high - jnp.where(there, y.high, 0.0)) + (x.low - jnp.where(there, y.low, 0.0))
    return jnp.where(x.high == -jnp.inf, -jnp.inf, gap)


def total(x: Pair, y: Pair):
    """x + y as a float."""
    high = add(x, y.high)
    return high.high + (high.low + y.low)


def where(choose, x: Pair, y: Pair) -> Pair:
    """x where `choose`, else y."""
    return Pair(jnp.where(choose, x.high, y.high), jnp.where(choose, x.low, y.low))


def kept(x: Pair) -> Pair:
    """x with fewer digits of `low`, for a history of many: 33 of 48 bits in 6 bytes.

    Integers, because XLA on CPUs keeps what is declared as bfloat16 in single precision.
    """
    return Pair(x.high, jax.lax.bitcast_convert_type(x.low.astype(jnp.bfloat16), jnp.uint16))


def restored(x: Pair) -> Pair:
    """What `kept` kept."""
    low = jax.lax.bitcast_convert_type(x.low, jnp.bfloat16)
    return Pair(x.high, low.astype(x.high.dtype))
