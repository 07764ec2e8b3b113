"""The `xla` backend: forward-backward in scaled probabilities, by gathers and segment sums.

Portable (CPU, GPU, TPU) and exact up to single precision wherever it reports `trusted`; where
not, `log_domain.py` redoes the utterance. Nothing here knows of criteria.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqtrain.ops import layout
from seqtrain.ops.graph import Graph


class Pass(NamedTuple):
    """What a forward-backward gives.

    log_z: f32[B]; gamma: f32[B, T, P], zero in padding; trusted: bool[B], False where single
    precision may have lost paths that matter.
    """

    log_z: jax.Array
    gamma: jax.Array
    trusted: jax.Array


LIFT = 50
FLOOR = 2.0**-100
"""Forward sums are scaled to about 2^LIFT and each raised by FLOOR.

A sum of n terms loses less than n · 2^−126 to underflow, and what enters it of others' losses less
than Σ w · 2^−126; FLOOR is more, up to n + Σ w = 2^26. So the forward total is an upper bound, the
backward total, which only loses, a lower bound: where they agree, nothing that matters was lost in
either direction. Without the floor a path that both directions lose would be missed by neither.
What the floor lets in weighs 2^−150 per state and frame: it is seen where the true paths do worse.
"""


# A dense product costs S · G multiply-adds but runs near peak; a segment sum costs A slow ones.
# Measured on two CPU cores: they break even at S · G = 30 A. Accelerators scatter slowly.
_DENSE_PER_ARC_CPU = 24
_DENSE_MAX_ACCELERATOR = 1 << 24


def is_dense(graph: Graph, on_cpu: bool) -> bool:
    """Whether a shared graph's arcs are better held as a matrix from states to groups."""
    if graph.batched or graph.group is None:
        return False
    size = graph.num_states * graph.group_dst.shape[0]
    return size <= (_DENSE_PER_ARC_CPU * graph.num_arcs if on_cpu else _DENSE_MAX_ACCELERATOR)


def forward_backward(scores, lengths, graph: Graph, leaky: float, dense: bool = False) -> Pass:
    """Sums over all paths, with the occupancies of every pdf in every frame.

    α_{t+1}(d) = Σ_{arcs s→d} α_t(s) w e_t(pdf), scaled in every frame; β likewise;
    γ_t(p) = Σ_{arcs with p} α_t(s) w e_t(p) β_{t+1}(d), normalised in every frame (Rabiner 1989,
    eqs. 19-27 and 91-97, for arcs). An utterance is trusted if Σ α w e β agrees with the total of
    the forward pass in every frame: a path that underflowed shows there, see `FLOOR`.

    Args:
      scores: f32[B, T, P]; NaN and +inf must have been removed; −inf is allowed.
      lengths: i32[B], at most T.
      graph: shared or batched.
      leaky: coefficient of Kaldi's leaky HMM, 0 for none.
      dense: sums over arcs as matrix products (grouped graphs only; see `is_dense`).

    Returns:
      A `Pass`.
    """
    view = layout.Layout(graph, scores.shape[0], scores.shape[2])
    active = jnp.arange(scores.shape[1])[:, None] < lengths[None, :]
    emit, log_emit, in_range = emissions(scores, active, view)
    prob = jnp.exp(view.weights(graph.weight))
    weights = _Weights(
        prob=prob,
        matrix=_matrix(graph, prob) if dense else None,
        initial=_per_state(view, graph.initial),
        final=_per_state(view, graph.final),
        leaky=leaky,
    )
    (alpha, power), history = _forward(view, weights, emit, active)
    end = view.total(alpha * weights.final)
    gamma, ratio = _backward(view, weights, emit, active, history, power, end)
    agrees = ~active | (jnp.abs(ratio - 1) <= tolerance(lengths)[None, :])
    log_z = log_of(end, power) + log_emit
    sound = in_range & (end > 0) & jnp.isfinite(log_z) & agrees.all(0)
    return Pass(log_z, view.utterances_first(gamma), sound & ~layout.wide(graph))


def log_of(total, power):
    """log(total · 2^power), f32, exact near 0 in spite of LIFT; any number for a total of 0."""
    small = jnp.where(total > 0, total, 1.0) * 2.0**-LIFT
    return jnp.log(small) + (power + LIFT) * math.log(2)


def tolerance(lengths):
    """By how much forward and backward totals of a frame may differ (relative): by rounding only.

    Measured: 2e-6 for 150 frames, 1e-5 for 3000, with scores of standard deviation 5.
    """
    return 1e-5 + 1e-8 * lengths


class _Weights(NamedTuple):
    """A graph's weights as probabilities; `matrix` [S, G] where products are dense."""

    prob: jax.Array
    matrix: jax.Array | None
    initial: jax.Array
    final: jax.Array
    leaky: float


def _forward(view: layout.Layout, weights: _Weights, emit, active):
    """α and its exponent after the last frame; what the way back needs of every frame."""
    graph, initial, leaky = view.graph, weights.initial, weights.leaky

    def step(carry, frame):
        alpha, power = carry
        emit_t, active_t = frame
        inner = _inner(view, alpha, weights.prob, weights.matrix)
        new = _leak_forward(view, _into_states(view, inner, emit_t) + FLOOR, initial, leaky)
        new, more = _rescaled(view, new, LIFT)
        after = (
            jnp.where(view.spread(active_t), new, alpha),
            power + jnp.where(active_t, more, 0),
        )
        return after, (inner if graph.group is not None else alpha, power)

    alpha = jnp.broadcast_to(initial, _state_shape(view))
    first = _rescaled(view, _leak_forward(view, alpha, initial, leaky), LIFT)
    return jax.lax.scan(step, first, (emit, active))


def _backward(view: layout.Layout, weights: _Weights, emit, active, history, power, end):
    """γ, frames first; and f32[T, B], its total over the forward total."""
    graph, initial, leaky = view.graph, weights.initial, weights.leaky

    def step(carry, frame):
        beta, power_beta = carry
        emit_t, active_t, (kept, power_alpha) = frame
        inner = kept if graph.group is not None else _inner(view, kept, weights.prob, None)
        outer = _from_states(view, beta, emit_t)
        gamma = view.add_at(inner * outer, _pdf(graph), view.num_pdfs)
        total = view.total(gamma)
        ratio = total * power_of_two(power_alpha + power_beta - power) / end
        new = _out_of_states(view, outer, weights.prob, weights.matrix)
        new, more = _rescaled(view, _leak_backward(view, new, initial, leaky))
        keep = view.spread(active_t)
        gamma = jnp.where(keep & (view.spread(total) > 0), gamma, 0.0)
        gamma = gamma / view.spread(jnp.where(total > 0, total, 1.0))
        after = (jnp.where(keep, new, beta), power_beta + jnp.where(active_t, more, 0))
        return after, (gamma, ratio)

    beta = jnp.broadcast_to(weights.final, _state_shape(view))
    last = _rescaled(view, _leak_backward(view, beta, initial, leaky))
    return jax.lax.scan(step, last, (emit, active, history), reverse=True)[1]


def emissions(scores, active, view: layout.Layout):
    """exp(scores − the largest used score of the frame), frames first; the sum of those largest
    scores; and whether every used score is within single precision of the largest."""
    used = layout.used_pdfs(view.graph, view.num_pdfs)
    used = used[:, None, :] if view.graph.batched else used[None, None, :]
    known = jnp.where(used & active.T[:, :, None], scores, -jnp.inf)
    top = known.max(-1)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    gap = known - top[:, :, None]
    in_range = (~jnp.isfinite(gap) | (gap > -layout.MAX_RANGE)).all((1, 2))
    return view.frames_first(jnp.exp(gap)), top.sum(1), in_range


def _state_shape(view: layout.Layout):
    states, batch = view.graph.num_states, view.num_utterances
    return (batch, states) if view.graph.batched else (states, batch)


def _per_state(view: layout.Layout, log_weight):
    return jnp.exp(view.weights(log_weight))


def _pdf(graph: Graph):
    return graph.pdf if graph.group is None else graph.group_pdf


def _matrix(graph: Graph, prob):
    """f32[S, G]: Σ of the weights of the arcs from a state into a group."""
    shape = (graph.num_states, graph.group_dst.shape[0])
    return jnp.zeros(shape, jnp.float32).at[graph.src, graph.group].add(prob[:, 0])


def _product(a, b):
    # Accelerators would round to bfloat16 or TF32 by default.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _inner(view: layout.Layout, alpha, prob, matrix):
    """Σ over a group's arcs of α w (per arc where the graph has no groups)."""
    if matrix is not None:
        return _product(matrix.T, alpha)
    values = view.take(alpha, view.graph.src) * prob
    if view.graph.group is None:
        return values
    return view.add_at(values, view.graph.group, len(view.graph.group_dst), is_sorted=True)


def _out_of_states(view: layout.Layout, outer, prob, matrix):
    """Σ over the arcs out of a state of w e β."""
    if matrix is not None:
        return _product(matrix, outer)
    graph = view.graph
    at_arcs = outer if graph.group is None else view.take(outer, graph.group)
    return view.add_at(at_arcs * prob, graph.src, graph.num_states)


def _into_states(view: layout.Layout, inner, emit):
    graph = view.graph
    dst = graph.dst if graph.group is None else graph.group_dst
    return view.add_at(inner * view.take(emit, _pdf(graph)), dst, graph.num_states, is_sorted=True)


def _from_states(view: layout.Layout, beta, emit):
    """e β at every group (or arc)."""
    graph = view.graph
    dst = graph.dst if graph.group is None else graph.group_dst
    return view.take(beta, dst) * view.take(emit, _pdf(graph))


def _leak_forward(view: layout.Layout, alpha, initial, leaky: float):
    return alpha + leaky * initial * view.spread(view.total(alpha)) if leaky else alpha


def _leak_backward(view: layout.Layout, beta, initial, leaky: float):
    return beta + leaky * view.spread(view.total(beta * initial)) if leaky else beta


def _rescaled(view: layout.Layout, x, lift: int = 0):
    """x · 2^−k with a sum between 2^lift and twice that, and k i32[B]; −lift where the sum is 0.

    Powers of two make the scaling exact; their exponents add up without rounding, so that totals
    of utterances of any length can be compared.
    """
    power = exponent(view.total(x)) - lift
    return x * view.spread(power_of_two(-power)), power


def exponent(x):
    """k with 2^k ≤ x < 2^(k+1), i32; 0 where x is 0, not finite, or too small to be normal."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) >> 23
    return jnp.where((bits > 0) & (bits < 255), bits - 127, 0)


def power_of_two(k):
    """2^k for integers k, held within the range of normal floats."""
    return jax.lax.bitcast_convert_type((jnp.clip(k, -126, 127) + 127) << 23, jnp.float32)
