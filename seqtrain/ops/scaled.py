"""The `xla` backend: forward-backward in scaled probabilities, by gathers and segment sums.

Portable (CPU, GPU, TPU) and exact up to single precision wherever it reports `trusted`; where
not, `log_domain.py` redoes the utterance. Nothing here knows of criteria.
"""

from __future__ import annotations

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


# Forward and backward totals of a frame may differ by rounding only (natural log).
TOLERANCE = 2e-4


def forward_backward(scores, lengths, graph: Graph, leaky: float) -> Pass:
    """Sums over all paths, with the occupancies of every pdf in every frame.

    α_{t+1}(d) = Σ_{arcs s→d} α_t(s) w e_t(pdf), scaled to Σ_d α = 1 in every frame; β likewise;
    γ_t(p) = Σ_{arcs with p} α_t(s) w e_t(p) β_{t+1}(d), normalised in every frame (Rabiner 1989,
    eqs. 19-27 and 91-97, for arcs). An utterance is trusted if Σ α w e β agrees with the total of
    the forward pass in every frame: a path that underflowed in one direction shows there.

    Args:
      scores: f32[B, T, P]; NaN and +inf must have been removed; −inf is allowed.
      lengths: i32[B], at most T.
      graph: shared or batched.
      leaky: coefficient of Kaldi's leaky HMM, 0 for none.

    Returns:
      A `Pass`.
    """
    view = layout.Layout(graph, scores.shape[0], scores.shape[2])
    active = jnp.arange(scores.shape[1])[:, None] < lengths
    emit, log_emit, in_range = _emissions(scores, active, view)
    prob = jnp.exp(view.weights(graph.weight))
    initial, final = (_per_state(view, w) for w in (graph.initial, graph.final))
    state = jax.tree.map(lambda x: x, initial)
    alpha = _leak_forward(view, jnp.broadcast_to(state, _state_shape(view)), initial, leaky)

    def forward(carry, frame):
        alpha, log_scale = carry
        emit_t, active_t = frame
        inner = _inner(view, alpha, prob)
        new = _into_states(view, inner, emit_t)
        new = _leak_forward(view, new, initial, leaky)
        new, log_total = _rescaled(view, new)
        keep = view.spread(active_t)
        after = (jnp.where(keep, new, alpha), jnp.where(active_t, log_scale + log_total, log_scale))
        return after, (inner if graph.group is not None else alpha, log_scale)

    alpha, log_scale0 = _rescaled(view, alpha)
    (alpha, log_scale), history = jax.lax.scan(forward, (alpha, log_scale0), (emit, active))
    end = view.total(alpha * final)
    log_alpha = _log(end) + log_scale

    def backward(carry, frame):
        beta, log_scale = carry
        emit_t, active_t, (kept, log_scale_alpha) = frame
        inner = kept if graph.group is not None else _inner(view, kept, prob)
        outer = _from_states(view, beta, emit_t)
        gamma = view.add_at(inner * outer, _pdf(graph), view.num_pdfs)
        total = view.total(gamma)
        gap = jnp.abs(_log(total) + log_scale_alpha + log_scale - log_alpha)
        new = view.add_at(_at_arcs(view, outer) * prob, graph.src, graph.num_states)
        new = _leak_backward(view, new, initial, leaky)
        new, log_total = _rescaled(view, new)
        keep = view.spread(active_t)
        gamma = jnp.where(keep & (view.spread(total) > 0), gamma, 0.0)
        gamma = gamma / view.spread(jnp.where(total > 0, total, 1.0))
        after = (jnp.where(keep, new, beta), jnp.where(active_t, log_scale + log_total, log_scale))
        return after, (gamma, jnp.where(active_t, gap, 0.0))

    beta = jnp.broadcast_to(final, _state_shape(view))
    beta = _leak_backward(view, beta, initial, leaky)
    beta, log_scale_beta = _rescaled(view, beta)
    _, (gamma, gap) = jax.lax.scan(
        backward, (beta, log_scale_beta), (emit, active, history), reverse=True
    )
    trusted = in_range & (end > 0) & jnp.isfinite(log_alpha) & (gap.max(0) <= TOLERANCE)
    return Pass(log_alpha + log_emit, view.utterances_first(gamma), trusted & ~layout.wide(graph))


def _emissions(scores, active, view: layout.Layout):
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


def _inner(view: layout.Layout, alpha, prob):
    """Σ over a group's arcs of α w (per arc where the graph has no groups)."""
    values = view.take(alpha, view.graph.src) * prob
    if view.graph.group is None:
        return values
    return view.add_at(values, view.graph.group, len(view.graph.group_dst), is_sorted=True)


def _into_states(view: layout.Layout, inner, emit):
    graph = view.graph
    dst = graph.dst if graph.group is None else graph.group_dst
    return view.add_at(inner * view.take(emit, _pdf(graph)), dst, graph.num_states, is_sorted=True)


def _from_states(view: layout.Layout, beta, emit):
    """e β at every group (or arc)."""
    graph = view.graph
    dst = graph.dst if graph.group is None else graph.group_dst
    return view.take(beta, dst) * view.take(emit, _pdf(graph))


def _at_arcs(view: layout.Layout, outer):
    return outer if view.graph.group is None else view.take(outer, view.graph.group)


def _leak_forward(view: layout.Layout, alpha, initial, leaky: float):
    return alpha + leaky * initial * view.spread(view.total(alpha)) if leaky else alpha


def _leak_backward(view: layout.Layout, beta, initial, leaky: float):
    return beta + leaky * view.spread(view.total(beta * initial)) if leaky else beta


def _rescaled(view: layout.Layout, x):
    """x / Σx and log Σx; a vanished sum leaves x (all zero) and gives −inf."""
    total = view.total(x)
    return x / view.spread(jnp.where(total > 0, total, 1.0)), _log(total)


def _log(x):
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), -jnp.inf)
