"""Rules for stale gradients (H = 1): scale them, drop them, compensate them, gate them.

The scalings are stages of a chain: put them before the rule that makes the step, as in
`optax.chain(scale_by_staleness(), adam(1e-3))`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from seqtrain.exchange.rules.base import Rule, Schedule, adam, chain, need_base_params


def scale_by_staleness(power: float = 1.0) -> Rule:
    """g ← g / max(1, τ)^power: with SGD after it w ← w − (η/τ) g. Pushed: gradient. State: 0.

    Source: Zhang et al. 2016, "Staleness-aware async-SGD", arXiv 1511.05950, equation 2 (power 1).
    """

    def update(updates, state, params=None, *, staleness, **extra):
        del params, extra
        weight = jnp.maximum(staleness, 1).astype(jnp.float32) ** -power
        return jax.tree.map(lambda g: g * weight, updates), state

    return Rule(lambda params: optax.EmptyState(), update)


def drop_stale(inner: optax.GradientTransformation, max_staleness: int) -> Rule:
    """The inner rule where τ ≤ τ_max; else nothing moves, its state neither.

    The version still counts up, so the age of others' pushes does too. To refuse such a push
    instead, and tell the replica, use `Policy(max_staleness=…, on_stale='drop')`. Source:
    the discard rule of Ringmaster ASGD (arXiv 2501.16168). Pushed: as inner. State: as inner.
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates, state, params=None, *, staleness, **extra):
        fresh = staleness <= max_staleness
        moved, moved_state = inner.update(updates, state, params, staleness=staleness, **extra)
        moved = jax.tree.map(lambda u: jnp.where(fresh, u, jnp.zeros_like(u)), moved)
        kept = jax.tree.map(lambda new, old: jnp.where(fresh, new, old), moved_state, state)
        return moved, kept

    return Rule(inner.init, update)


def compensate_delay(strength: float = 0.04) -> Rule:
    """g ← g + λ g⊙g⊙(w − w_base): a first-order guess of the gradient at w.

    Source: DC-ASGD with constant λ, Zheng et al. 2017, arXiv 1609.08326, equation 10.
    The outer product g gᵀ stands for the Hessian, and only its diagonal is kept. Pushed: gradient.
    State: 0 + base values.
    """

    def update(updates, state, params=None, *, base_params=None, **extra):
        del extra
        base = need_base_params('compensate_delay', base_params)
        return jax.tree.map(
            lambda g, w, b: g + strength * g * g * (w - b), updates, params, base
        ), state

    return Rule(lambda params: optax.EmptyState(), update)


class MeanSquareState(NamedTuple):
    """mean_square: f32[n], running mean of g²."""

    mean_square: jax.Array


def compensate_delay_adaptively(
    strength: float = 2.0, decay: float = 0.95, eps: float = 1e-7
) -> Rule:
    """g ← g + λ_t g⊙g⊙(w − w_base), λ_t = λ_0 / √(MS_t + ε), MS_t ← m MS_{t−1} + (1−m) g².

    Source: DC-ASGD-a, Zheng et al. 2017, arXiv 1609.08326, section 5. Pushed: gradient.
    State: n + base values.
    """

    def init(params):
        return MeanSquareState(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None, *, base_params=None, **extra):
        del extra
        base = need_base_params('compensate_delay_adaptively', base_params)
        mean_square = jax.tree.map(
            lambda ms, g: decay * ms + (1 - decay) * g * g, state.mean_square, updates
        )
        compensated = jax.tree.map(
            lambda g, ms, w, b: g + strength / jnp.sqrt(ms + eps) * g * g * (w - b),
            updates,
            mean_square,
            params,
            base,
        )
        return compensated, MeanSquareState(mean_square)

    return Rule(init, update)


def dc_asgd(learning_rate: Schedule, strength: float = 0.04) -> Rule:
    """w ← w − η [g + λ g⊙g⊙(w − w_base)]: DC-ASGD. Pushed: gradient. State: 0 + base values.

    Source: Zheng et al. 2017, arXiv 1609.08326, equation 10; see `compensate_delay`.
    """
    return chain(compensate_delay(strength), optax.scale_by_learning_rate(learning_rate))


def dc_asgd_adaptive(
    learning_rate: Schedule, strength: float = 2.0, decay: float = 0.95, eps: float = 1e-7
) -> Rule:
    """w ← w − η [g + λ_t g⊙g⊙(w − w_base)]: DC-ASGD-a. Pushed: gradient. State: n + base values.

    Source: Zheng et al. 2017, arXiv 1609.08326, section 5; λ_t as in
    `compensate_delay_adaptively`.
    """
    return chain(
        compensate_delay_adaptively(strength, decay, eps),
        optax.scale_by_learning_rate(learning_rate),
    )


def gate_by_age(alpha: float, cutoff: float) -> Rule:
    """g ← γ(τ) e^{−ατ} g with γ(τ) = ½(1 + cos(π τ / τ_c)) for τ < τ_c, else 0.

    Source: Shah & Sun 2026, "Cosine-gated Adam-decay", arXiv 2605.09126. That the gate is this
    half cosine is our reading of "cosine gate that reaches 0 at a cutoff"; α and the cutoff have no
    default here because theirs could not be read. Pushed: gradient or Δ. State: 0.

    Raises:
      ValueError: an α below 0, or a cutoff at which nothing is left.
    """
    if not (alpha >= 0 and cutoff > 0):
        raise ValueError(f'alpha={alpha}, cutoff={cutoff}: give alpha >= 0 and cutoff > 0.')

    def update(updates, state, params=None, *, staleness, **extra):
        del params, extra
        age = jnp.asarray(staleness, jnp.float32)
        gate = jnp.where(age < cutoff, 0.5 * (1 + jnp.cos(jnp.pi * age / cutoff)), 0.0)
        weight = gate * jnp.exp(-alpha * age)
        return jax.tree.map(lambda g: g * weight, updates), state

    return Rule(lambda params: optax.EmptyState(), update)


def cgad(
    learning_rate: Schedule,
    alpha: float,
    cutoff: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Rule:
    """g ← γ(τ) e^{−ατ} g, then Adam on it; at τ = 0 it is Adam. Pushed: gradient or Δ. State: 2n.

    Source: Shah & Sun 2026, arXiv 2605.09126; γ as in `gate_by_age`.
    """
    return chain(gate_by_age(alpha, cutoff), adam(learning_rate, b1, b2, eps))
