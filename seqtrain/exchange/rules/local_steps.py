"""Rules for updates after H local steps: momentum on the server, averaging, elastic averaging.

Pushed is the pseudo-gradient Δ = w_start − w_local, except where a docstring says otherwise.
ε or η is the outer learning rate.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqtrain.exchange.rules.base import Rule


class DelayedNesterovState(NamedTuple):
    """momentum, total: f32[n]; pushes: i32, pushes since the momentum last moved."""

    momentum: jax.Array
    total: jax.Array
    pushes: jax.Array


def delayed_nesterov(learning_rate: float, period: int, momentum: float = 0.9) -> Rule:
    """Every push w ← w − ε Δ/N; every N-th also m ← βm + mean(Δ), w ← w − εβm.

    Source: Liu et al. 2024, arXiv 2401.09135, algorithm 3. N pushes together move w exactly as one
    Nesterov step on their mean. Pushed: Δ. State: 2n.

    Args:
      learning_rate: ε.
      period: N, usually the number of replicas.
      momentum: β.

    Raises:
      ValueError: a period below 1.
    """
    if period < 1:
        raise ValueError(f'period is {period}; give the number of pushes per step, at least 1.')

    def init(params):
        zeros = jnp.zeros_like(params)
        return DelayedNesterovState(zeros, zeros, jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra):
        del params, extra
        total, pushes = state.total + updates, state.pushes + 1
        due = pushes == period
        moved = momentum * state.momentum + total / period
        new = DelayedNesterovState(
            jnp.where(due, moved, state.momentum),
            jnp.where(due, 0.0, total),
            jnp.where(due, 0, pushes),
        )
        step = updates / period + jnp.where(due, momentum * moved, 0.0)
        return -learning_rate * step, new

    return Rule(init, update)


class MomentumState(NamedTuple):
    """momentum: f32[n]."""

    momentum: jax.Array


def momentum_lookahead(learning_rate: float, momentum: float = 0.9) -> Rule:
    """m ← γm + (1−γ)Δ; w ← w − η(γm + Δ). Pushed: Δ. State: n.

    Source: Ajanthan et al. 2025, "Momentum look-ahead for asynchronous distributed
    low-communication training" (ICLR 2025 workshop MCDC). The replicas thereby start from values
    extrapolated along −m, to where the model will be when they come back.
    """

    def init(params):
        return MomentumState(jnp.zeros_like(params))

    def update(updates, state, params=None, **extra):
        del params, extra
        m = momentum * state.momentum + (1 - momentum) * updates
        return -learning_rate * (momentum * m + updates), MomentumState(m)

    return Rule(init, update)


def align_with_momentum(
    delta: jax.Array,
    momentum: jax.Array,
    blocks: jax.Array,
    num_blocks: int,
    *,
    keep: float,
    shrink: float,
    max_shrink: float,
    turn: float,
    kappa: float,
    eps: float = 1e-12,
) -> jax.Array:
    """Δ corrected block by block against the outer momentum's direction (see `heloco`)."""

    def per_block(x):
        return jax.ops.segment_sum(x, blocks, num_blocks)

    def norm(x):
        return jnp.sqrt(per_block(x * x))

    delta_norm, momentum_norm = norm(delta), norm(momentum)
    u = delta / jnp.maximum(delta_norm, eps)[blocks]
    v = momentum / jnp.maximum(momentum_norm, eps)[blocks]
    cosine = per_block(u * v)
    confidence = delta_norm / (delta_norm + kappa * momentum_norm + eps)
    beta = jnp.minimum(shrink * -cosine * confidence, max_shrink)
    shrunk = delta - (beta * cosine * delta_norm)[blocks] * v
    mix = jnp.minimum(turn * (1 - cosine) * confidence, 1.0)[blocks]
    turned = (1 - mix) * u + mix * v
    turned = turned * (delta_norm / jnp.maximum(norm(turned), eps))[blocks]
    kept = (cosine >= keep) | (momentum_norm == 0)  # no direction yet: nothing to compare with
    return jnp.where(kept[blocks], delta, jnp.where((cosine < 0)[blocks], shrunk, turned))


def heloco(
    learning_rate: float,
    momentum: float,
    blocks: np.ndarray | None = None,
    *,
    keep: float,
    shrink: float,
    max_shrink: float,
    turn: float,
    kappa: float,
) -> Rule:
    """Direction-aware correction of a stale Δ before the Nesterov step. Pushed: Δ. State: n.

    Per tensor block b with u = Δ_b/‖Δ_b‖, v = m_b/‖m_b‖, c = uᵀv and
    conf = ‖Δ_b‖ / (‖Δ_b‖ + κ‖m_b‖):

        c ≥ c_ok       Δ_b as it is
        c < 0          Δ_b − β c ‖Δ_b‖ v,  β = min(k_s (−c) conf, β_max): less against m
        otherwise      ‖Δ_b‖ ũ/‖ũ‖, ũ = (1−λ)u + λv, λ = min(k_d (1−c) conf, 1): turned towards m

    and then m ← μm + (1−μ)G, w ← w − η(G + μm). Source: Al Asif et al. 2026, arXiv 2606.00271. The
    thresholds have no defaults here because theirs could not be read.

    Args:
      learning_rate: η.
      momentum: μ.
      blocks: i32[n], the block of each element (`Partition.segments`); None: all one block. A
        leaf that is cut between two shards counts as two blocks.
      keep: c_ok.
      shrink: k_s.
      max_shrink: β_max.
      turn: k_d.
      kappa: κ.
    """
    num_blocks = 1 if blocks is None else int(np.max(blocks)) + 1

    def init(params):
        return MomentumState(jnp.zeros_like(params))

    def update(updates, state, params=None, **extra):
        del params, extra
        index = jnp.zeros(updates.shape, jnp.int32) if blocks is None else jnp.asarray(blocks)
        aligned = align_with_momentum(
            updates,
            state.momentum,
            index,
            num_blocks,
            keep=keep,
            shrink=shrink,
            max_shrink=max_shrink,
            turn=turn,
            kappa=kappa,
        )
        m = momentum * state.momentum + (1 - momentum) * aligned
        return -learning_rate * (aligned + momentum * m), MomentumState(m)

    return Rule(init, update)


def easgd(alpha: float) -> Rule:
    """w ← w + α(x_i − w): the centre of elastic averaging. Pushed: the replica's values x_i.

    Source: Zhang et al. 2015, arXiv 1412.6651, equation 4. The replica's half of the rule,
    x_i ← x_i − α(x_i − w), is `elastic_pull`. State: 0.

    Unlike in the source the two halves do not see the same pair: a replica moves towards what it
    pulled, and `overlap=False` pulls w after the replica's own push has moved it. x_i − w is
    smaller by 1 − α then, and so is the replica's half; with overlap w is older instead.
    """

    def update(updates, state, params=None, **extra):
        del extra
        return jax.tree.map(lambda x, w: alpha * (x - w), updates, params), state

    return Rule(lambda params: optax.EmptyState(), update)


def elastic_pull(local, centre, alpha: float):
    """x_i ← x_i − α(x_i − w) on trees: what an EASGD replica does with what it pulls.

    Source: Zhang et al. 2015, arXiv 1412.6651, equation 3.
    """
    return jax.tree.map(lambda x, w: x - alpha * (x - w), local, centre)


def averaging(num_replicas: int = 1) -> Rule:
    """w ← w − Δ/N: with sync rounds (N = 1 here, the round is a mean) w becomes mean(w_local).

    Asynchronously with N replicas each push moves w by its share. Source: Kaldi's parameter
    averaging, Povey et al. 2015, arXiv 1410.7455. Pushed: Δ. State: 0.
    """
    return optax.with_extra_args_support(optax.scale(-1.0 / num_replicas))


class BlockMomentumState(NamedTuple):
    """delta: f32[n], the filtered block update Δ of the last round."""

    delta: jax.Array


def block_momentum(momentum: float, learning_rate: float = 1.0, nesterov: bool = True) -> Rule:
    """BMUF: G = mean(w_k) − w_served; Δ ← ηΔ + ζG; w ← w + Δ; served is w, or w + ηΔ (Nesterov).

    Source: Chen & Huo 2016 (ICASSP), "Scalable training of deep learning machines by incremental
    block training with intra-block parallel optimization and blockwise model-update filtering",
    equations 3 to 6. Pushed: Δ_k = w_start − w_local, so that G is minus the mean of a sync round.
    The shard holds what it serves, that is w + ηΔ with Nesterov; the last look-ahead ηΔ remains in
    the values at the end, as in the source. η ≈ 1 − 1/N. State: n.

    Args:
      momentum: η.
      learning_rate: ζ, the block learning rate.
      nesterov: serve w + ηΔ.
    """

    def init(params):
        return BlockMomentumState(jnp.zeros_like(params))

    def update(updates, state, params=None, **extra):
        del params, extra
        delta = momentum * state.delta - learning_rate * updates
        step = delta
        if nesterov:  # from w' + ηΔ' to (w' + Δ) + ηΔ
            step = delta + momentum * (delta - state.delta)
        return step, BlockMomentumState(delta)

    return Rule(init, update)
