"""The mean of the last versions as the result of a rule: Polyak-Ruppert averaging on the shard."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seqtrain.exchange.rules.base import Rule


class AverageState(NamedTuple):
    """State of `polyak_average`.

    Attributes:
      inner: of the rule inside.
      mean: f32[n], of the versions from `begin` on; the newest one before that.
      versions: i32, how many there were.
    """

    inner: Any
    mean: jax.Array
    versions: jax.Array


def polyak_average(inner: optax.GradientTransformation, begin: int) -> Rule:
    """The inner rule; where it ends, w ← (1/K) Σ w_t over the versions t > begin, K of them.

    Until then replicas pull the newest values as ever: what they train is the same. A shard makes
    the mean its values when the rule is changed, unless its state is kept (`Store.set_rule`); it is
    the outermost rule, so that there is no step after it. Source: Polyak & Juditsky 1992,
    "Acceleration of stochastic approximation by averaging"; of the last part of the way only: Jain
    et al. 2018, arXiv 1610.03774; of networks at a learning rate that stays high: Izmailov et al.
    2018, "Averaging weights leads to wider optima", arXiv 1803.05407. Pushed: as inner.
    State: n + as inner.

    Args:
      inner: any rule.
      begin: versions that are left out, counted from where this rule was set.

    Raises:
      ValueError: `begin` is negative.
    """
    if begin < 0:
        raise ValueError(f'begin is {begin}: give a number of versions, 0 for the mean of all.')
    rule = optax.with_extra_args_support(inner)

    def init(params):
        return AverageState(rule.init(params), params, jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra):
        updates, kept = rule.update(updates, state.inner, params, **extra)
        values = optax.apply_updates(params, updates)
        versions = state.versions + 1
        taken = jnp.maximum(versions - begin, 1)
        mean = jax.tree.map(
            lambda m, w: jnp.where(taken == 1, w, m + (w - m) / taken.astype(w.dtype)),
            state.mean,
            values,
        )
        return updates, AverageState(kept, mean, versions)

    return Rule(init, update)


def result(state: Any, values: jax.Array) -> jax.Array:
    """What a rule in this state leaves of the values: their mean where it keeps one."""
    return state.mean if isinstance(state, AverageState) else values
