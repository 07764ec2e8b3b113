"""Forward-backward in the log domain: slow, and never underflows. The `xla` backend's last resort.

Only the backward pass needs logarithms: with β known, every arc out of a state has a conditional
probability, and occupancies flow forward as ordinary probabilities.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from seqtrain.ops import layout
from seqtrain.ops.graph import Graph


def forward_backward(scores, lengths, graph: Graph, leaky: float):
    """The same sums as `scaled.forward_backward`, for any finite scores and weights.

    β_t(s) = log Σ_{arcs s→d} exp(w + score + β_{t+1}(d)), the largest subtracted in every frame;
    then flow_{t+1}(d) = Σ_{arcs s→d} flow_t(s) exp(w + score + β_{t+1}(d) − β_t(s)).

    Args:
      scores: f32[B, T, P] without NaN or +inf.
      lengths: i32[B]; utterances of length 0 cost nothing beyond the loop.
      graph: shared or batched.
      leaky: coefficient of the leaky HMM, 0 for none.

    Returns:
      log_z f32[B] (−inf where there is no path) and gamma f32[B, T, P].
    """
    view = layout.Layout(graph, scores.shape[0], scores.shape[2])
    frames = view.frames_first(scores)
    active = jnp.arange(scores.shape[1])[:, None] < lengths
    weight, initial, final = (view.weights(w) for w in (graph.weight, graph.initial, graph.final))
    shape = state_shape(view)

    def arcs_out(frame, beta):
        return weight + view.take(frame, graph.pdf) + view.take(beta, graph.dst)

    def backward(carry, step):
        post, log_scale = carry
        frame, active_t = step
        target = leak_backward(view, post, initial, leaky)
        new = sum_at(view, arcs_out(frame, target), graph.src)
        top = finite(view.largest(new))
        new = jnp.where(view.spread(active_t), new - view.spread(top), post)
        top = jnp.where(active_t, top, 0.0)
        return (new, log_scale + top), (post, top)

    # One history of states; what the leak adds is computed again on the way forward.
    carry = (jnp.broadcast_to(final, shape), jnp.zeros(scores.shape[0], scores.dtype))
    (post, log_scale), history = jax.lax.scan(backward, carry, (frames, active), reverse=True)
    first = leak_backward(view, post, initial, leaky)
    start = initial + first
    log_z = sum_states(view, start)
    flow = jnp.exp(minus(start, view.spread(finite(log_z))))

    def forward(carry, step):
        flow, post = carry
        frame, active_t, (next_post, top_t) = step
        target = leak_backward(view, next_post, initial, leaky)
        flow_post = _flow_leak(view, flow, post, initial, leaky)
        share = minus(arcs_out(frame, target) - view.spread(top_t), view.take(post, graph.src))
        moved = view.take(flow_post, graph.src) * jnp.exp(share)
        keep = view.spread(active_t)
        moved = jnp.where(keep, moved, 0.0)
        total = view.total(moved)
        moved = moved / view.spread(jnp.where(total > 0, total, 1.0))
        new = view.add_at(moved, graph.dst, graph.num_states, is_sorted=True)
        after = (jnp.where(keep, new, flow), next_post)
        return after, view.add_at(moved, graph.pdf, view.num_pdfs)

    _, gamma = jax.lax.scan(forward, (flow, post), (frames, active, history))
    return log_z + log_scale, view.utterances_first(gamma)


def state_shape(view: layout.Layout):
    """Shape of an array over states and utterances."""
    states, batch = view.graph.num_states, view.num_utterances
    return (batch, states) if view.graph.batched else (states, batch)


def finite(x):
    """x with 0 in place of infinities: what may be subtracted safely."""
    return jnp.where(jnp.isfinite(x), x, 0.0)


def minus(x, y):
    """x − y, −inf wherever x is −inf (so that −inf − −inf is not NaN)."""
    return jnp.where(x == -jnp.inf, -jnp.inf, x - finite(y))


def sum_at(view: layout.Layout, values, index):
    """log Σ exp by index, −inf where nothing arrives."""
    top = finite(view.max_at(values, index, view.graph.num_states))
    shifted = jnp.exp(values - view.take(top, index))
    total = view.add_at(shifted, index, view.graph.num_states)
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1.0)) + top, -jnp.inf)


def sum_states(view: layout.Layout, x):
    """log Σ exp over states -> [B]."""
    top = finite(view.largest(x))
    total = view.total(jnp.exp(x - view.spread(top)))
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1.0)) + top, -jnp.inf)


def leak_backward(view: layout.Layout, post, initial, leaky: float):
    """β before the leak of a frame boundary from β after it."""
    if not leaky:
        return post
    leak = sum_states(view, post + initial) + math.log(leaky)
    return jnp.logaddexp(post, view.spread(leak))


def _flow_leak(view: layout.Layout, flow, post, initial, leaky: float):
    """Occupancies after the leak from occupancies before it."""
    if not leaky:
        return flow
    start = post + initial
    whole = sum_states(view, start)
    leak = view.spread(whole + math.log(leaky))
    pre = jnp.logaddexp(post, leak)
    stay = flow * jnp.exp(minus(post, pre))
    left = view.total(flow * jnp.exp(minus(leak, pre)))
    return stay + view.spread(left) * jnp.exp(minus(start, view.spread(whole)))
