"""What every server rule shares: the extra arguments, the jitted step, the plain rules.

A rule is an Optax `GradientTransformationExtraArgs` on one shard's flat vector. Each push calls it
once with these extra arguments, all scalars except the last:

    staleness    i32, server age s1 of the push
    worker       i32, replica number
    frames       f32, frames behind the update
    base_params  f32[n], the values that the replica had pulled; None unless the rule asks for
                 them by raising `BaseParamsNeeded` (the shard then keeps the versions in use)

What is pushed is a gradient, or a pseudo-gradient Δ = w_start − w_local after H local steps: both
point uphill, so that every rule composes with `optax.chain` and the usual signs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Rule = optax.GradientTransformationExtraArgs
Schedule = float | Callable[[Any], Any]


class BaseParamsNeeded(TypeError):
    """Raised by a rule that got no `base_params`; a shard answers by keeping them."""


def need_base_params(rule: str, base_params: Any) -> Any:
    """Returns `base_params`, or raises a sentence that says who supplies them."""
    if base_params is None:
        raise BaseParamsNeeded(
            f'{rule} needs base_params, the values that the replica pulled. A shard supplies '
            'them by itself; when you call the rule yourself, pass base_params=.'
        )
    return base_params


@functools.lru_cache(maxsize=64)
def step(rule: optax.GradientTransformation) -> Callable:
    """The jitted application of one push, shared by all shards and by the replay.

    Returns:
      f(values, state, update, staleness, worker, frames, base_params) -> (values, state).
    """
    rule = optax.with_extra_args_support(rule)

    def apply(values, state, update, staleness, worker, frames, base_params):
        updates, state = rule.update(
            update,
            state,
            values,
            staleness=staleness,
            worker=worker,
            frames=frames,
            base_params=base_params,
        )
        return optax.apply_updates(values, updates), state

    return jax.jit(apply)


@functools.lru_cache(maxsize=256)
def needs_base_params(rule: optax.GradientTransformation, size: int) -> bool:
    """Whether a rule asks for `base_params` (found by tracing it, nothing is computed)."""
    values = jax.ShapeDtypeStruct((size,), jnp.float32)
    integer = jax.ShapeDtypeStruct((), jnp.int32)
    real = jax.ShapeDtypeStruct((), jnp.float32)
    state = jax.eval_shape(rule.init, values)
    try:
        jax.eval_shape(step(rule), values, state, values, integer, integer, real, None)
    except BaseParamsNeeded:
        return True
    return False


def chain(*stages: optax.GradientTransformation) -> Rule:
    """`optax.chain`, as a rule: every stage gets the extra arguments it wants."""
    return optax.with_extra_args_support(optax.chain(*stages))


def sgd(learning_rate: Schedule, momentum: float | None = None) -> Rule:
    """w ← w − η g; with momentum m ← βm + g, w ← w − η m. Pushed: gradient. State: 0 or n.

    Source: Robbins & Monro 1951; Polyak 1964. Momentum on stale gradients is the known failure of
    asynchronous SGD (Liu et al. 2024, arXiv 2401.09135); it is here as the baseline that shows it.
    """
    return optax.with_extra_args_support(optax.sgd(learning_rate, momentum))


def adam(learning_rate: Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    """m ← b1 m + (1−b1) g; v ← b2 v + (1−b2) g²; w ← w − η m̂ / (√v̂ + ε): moments on the server.

    m̂ = m / (1−b1^t) and v̂ = v / (1−b2^t), t the pushes so far. Source: Kingma & Ba 2015, "Adam",
    arXiv 1412.6980, algorithm 1. Pushed: gradient. State: 2n.
    """
    return optax.with_extra_args_support(optax.adam(learning_rate, b1, b2, eps))


def downpour_adagrad(
    learning_rate: Schedule, initial_accumulator: float = 0.0, eps: float = 1e-7
) -> Rule:
    """w_i ← w_i − γ g_i / √(a_0 + Σ g_i² + ε): AdaGrad per shard, on stale gradients as they are.

    Source: Downpour SGD, Dean et al. 2012, "Large scale distributed deep networks", section 4.1.
    Pushed: gradient. State: n. With `initial_accumulator` a_0 = 0, as in the source, the first push
    moves parameters by γ wherever |g_i| is well above √ε (3e-4 by default), and by less below; with
    ε = 0, as there too, wherever g_i is not 0. A positive a_0 softens the start.
    """
    return optax.with_extra_args_support(
        optax.chain(
            optax.scale_by_rss(initial_accumulator, eps),
            optax.scale_by_learning_rate(learning_rate),
        )
    )


class FramesState(NamedTuple):
    """mean: f32, running mean of the frames per push; pushes: i32, pushes seen."""

    mean: jax.Array
    pushes: jax.Array


def scale_by_frames(reference: float | None = None, decay: float = 0.99) -> Rule:
    """g ← g · frames / reference: a mean gradient counts by the frames it is the mean of.

    A replica with short utterances then does not weigh more per frame than the others. Put it
    first in a chain, and push gradients that are means over frames. Source: the mean over frames
    of one large batch, Σ frames·g / Σ frames, taken apart. Pushed: gradient or Δ. State: 0.

    Args:
      reference: frames at which a push has weight 1. None: a bias-corrected running mean over
        the pushes that arrived, this one included, so that the first push has weight 1.
      decay: of the running mean.
    """

    def init(params):
        del params
        return FramesState(jnp.zeros([], jnp.float32), jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, *, frames, **extra):
        del params, extra
        if reference is not None:
            weight = frames / reference
        else:
            mean = decay * state.mean + (1 - decay) * frames
            state = FramesState(mean, state.pushes + 1)
            weight = frames * (1 - decay**state.pushes) / mean
        return jax.tree.map(lambda g: g * weight, updates), state

    return Rule(init, update)
