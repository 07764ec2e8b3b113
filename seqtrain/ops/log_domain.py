"""Forward-backward in the log domain: slow, and never underflows. The `xla` backend's last resort.

Only the backward pass needs logarithms: with β known, every arc out of a state has a conditional
probability, and occupancies flow forward as ordinary probabilities. Logarithms are pairs of floats
(`pairs.py`): paths that compete after hundreds of frames may lie thousands below zero.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from seqtrain.ops import layout, pairs
from seqtrain.ops.graph import Graph
from seqtrain.ops.pairs import Pair


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
    active = jnp.arange(scores.shape[1])[:, None] < lengths[None, :]
    weight, initial, final = (view.weights(w) for w in (graph.weight, graph.initial, graph.final))

    def backward(carry, step):
        post, log_scale = carry
        frame, active_t = step
        target = leak_backward(view, post, initial, leaky)
        new = sum_at(view, arcs_out(view, weight, frame, target), graph.src)
        top = jnp.where(active_t, finite(view.largest(new.high)), 0.0)
        new = pairs.where(view.spread(active_t), pairs.add(new, -view.spread(top)), post)
        return (new, pairs.add(log_scale, top)), (pairs.kept(post), top)

    # One history of states; what the leak adds is computed again on the way forward.
    last = pairs.single(jnp.broadcast_to(final, state_shape(view)))
    carry = (last, pairs.single(jnp.zeros(scores.shape[0], scores.dtype)))
    (post, log_scale), history = jax.lax.scan(backward, carry, (frames, active), reverse=True)
    start = pairs.add(leak_backward(view, post, initial, leaky), initial)
    log_z = sum_states(view, start)
    flow = jnp.exp(pairs.difference(start, log_z.map(view.spread)))

    def forward(carry, step):
        flow, post = carry
        frame, active_t, (next_kept, top_t) = step
        next_post = pairs.restored(next_kept)
        target = leak_backward(view, next_post, initial, leaky)
        flow_post = _flow_leak(view, flow, post, initial, leaky)
        out = pairs.add(arcs_out(view, weight, frame, target), -view.spread(top_t))
        share = pairs.difference(out, post.map(lambda x: view.take(x, graph.src)))
        moved = view.take(flow_post, graph.src) * jnp.exp(share)
        keep = view.spread(active_t)
        moved = jnp.where(keep, moved, 0.0)
        total = view.total(moved)
        moved = moved / view.spread(jnp.where(total > 0, total, 1.0))
        new = view.add_at(moved, graph.dst, graph.num_states, is_sorted=True)
        after = (jnp.where(keep, new, flow), next_post)
        return after, view.add_at(moved, graph.pdf, view.num_pdfs)

    _, gamma = jax.lax.scan(forward, (flow, post), (frames, active, history))
    return pairs.total(log_z, log_scale), view.utterances_first(gamma)


def arcs_out(view: layout.Layout, weight, frame, target: Pair) -> Pair:
    """log(w · score · β) of every arc, β of the state it leads to."""
    beta = target.map(lambda x: view.take(x, view.graph.dst))
    return pairs.add(pairs.add(beta, weight), view.take(frame, view.graph.pdf))


def state_shape(view: layout.Layout):
    """Shape of an array over states and utterances."""
    states, batch = view.graph.num_states, view.num_utterances
    return (batch, states) if view.graph.batched else (states, batch)


def finite(x):
    """x with 0 in place of infinities: what may be subtracted safely."""
    return jnp.where(jnp.isfinite(x), x, 0.0)


def sum_at(view: layout.Layout, values: Pair, index) -> Pair:
    """log Σ exp by index, −inf where nothing arrives."""
    top = finite(view.max_at(values.high, index, view.graph.num_states))
    shifted = jnp.exp(pairs.difference(values, pairs.single(view.take(top, index))))
    return _log(view.add_at(shifted, index, view.graph.num_states), top)


def sum_states(view: layout.Layout, x: Pair) -> Pair:
    """log Σ exp over states -> [B]."""
    top = finite(view.largest(x.high))
    shifted = jnp.exp(pairs.difference(x, pairs.single(view.spread(top))))
    return _log(view.total(shifted), top)


def _log(total, top) -> Pair:
    """log total + top, −inf where the total is 0."""
    log = jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1.0)), -jnp.inf)
    return pairs.add(pairs.single(top), log)


def leak_backward(view: layout.Layout, post: Pair, initial, leaky: float) -> Pair:
    """β before the leak of a frame boundary from β after it."""
    if not leaky:
        return post
    start = sum_states(view, pairs.add(post, initial))
    leak = pairs.add(start, math.log(leaky)).map(view.spread)
    top = finite(jnp.maximum(post.high, leak.high))
    total = sum(jnp.exp(pairs.difference(x, pairs.single(top))) for x in (post, leak))
    return _log(total, top)


def _flow_leak(view: layout.Layout, flow, post: Pair, initial, leaky: float):
    """Occupancies after the leak from occupancies before it."""
    if not leaky:
        return flow
    stay, go, share = leak_shares(view, post, initial, leaky)
    return flow * stay + view.spread(view.total(flow * go)) * share


def leak_shares(view: layout.Layout, post: Pair, initial, leaky: float):
    """Of a state's β before the leak: what stays, what goes; and where the latter goes."""
    start = pairs.add(post, initial)
    whole = sum_states(view, start).map(view.spread)
    pre = leak_backward(view, post, initial, leaky)
    stay = jnp.exp(pairs.difference(post, pre))
    go = jnp.exp(pairs.difference(pairs.add(whole, math.log(leaky)), pre))
    return stay, go, jnp.exp(pairs.difference(start, whole))
