"""Expected accuracy and its gradient in the log domain: the `xla` backend of the expectation pass.

Probability and first moment travel together; nothing is differentiated twice.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seqtrain.ops import layout, pairs
from seqtrain.ops.graph import Graph
from seqtrain.ops.log_domain import (
    arcs_out,
    finite,
    leak_backward,
    leak_shares,
    state_shape,
    sum_at,
    sum_states,
)
from seqtrain.ops.pairs import Pair


def expectation(scores, accuracy, lengths, graph: Graph, leaky: float):
    """E[A] and ∂E[A]/∂scores for A(π) = Σ_t accuracy[t, pdf_t].

    Backwards, with the conditional probabilities q(arc) = exp(w + score + β_{t+1}(d) − β_t(s)):
    future_t(s) = Σ_{arcs s→d} q (accuracy − c_t + future_{t+1}(d)), where the constant c_t makes
    the β-weighted mean of future_t zero, so that no large numbers are subtracted later. Forwards,
    flow and past (Σ of flow · accuracy so far) move along q. Then
    ∂E/∂score[t, p] = Σ_{arcs with p} (past q + flow q (accuracy − c_t + future)) − γ_t(p) E.

    Args:
      scores, accuracy: f32[B, T, P] without NaN or infinities (scores may be −inf).
      lengths: i32[B].
      graph: shared or batched.
      leaky: coefficient of the leaky HMM, 0 for none.

    Returns:
      log_z f32[B], value f32[B], gradient f32[B, T, P]; value and gradient are 0 without a path.
    """
    view = layout.Layout(graph, scores.shape[0], scores.shape[2])
    frames = (view.frames_first(scores), view.frames_first(accuracy))
    active = jnp.arange(scores.shape[1])[:, None] < lengths[None, :]
    steps = _Steps(view, leaky)
    carry, history = jax.lax.scan(
        steps.backward, steps.last(scores.dtype), (*frames, active), reverse=True
    )
    post, ahead, log_scale, mean = carry
    first, future = _leak_future(view, post, ahead, steps.initial, leaky)
    start = pairs.add(first, steps.initial)
    log_z = sum_states(view, start)
    flow = jnp.exp(pairs.difference(start, log_z.map(view.spread)))
    value = mean + view.total(flow * future)
    _, gradient = jax.lax.scan(
        steps.forward, (flow, jnp.zeros_like(flow), post), (*frames, active, history)
    )
    feasible = log_z.high > -jnp.inf
    return (
        pairs.total(log_z, log_scale),
        jnp.where(feasible, value, 0.0),
        jnp.where(feasible[:, None, None], view.utterances_first(gradient), 0.0),
    )


class _Steps:
    """The two recursions, one frame at a time, as `jax.lax.scan` wants them."""

    def __init__(self, view: layout.Layout, leaky: float):
        graph = view.graph
        self._view, self._graph, self._leaky = view, graph, leaky
        self._weight, self.initial, self._final = (
            view.weights(w) for w in (graph.weight, graph.initial, graph.final)
        )

    def last(self, dtype):
        """What `backward` starts with: β, expected future accuracy, log-scale and mean so far."""
        final = jnp.broadcast_to(self._final, state_shape(self._view))
        future = jnp.zeros_like(final)
        none = jnp.zeros(self._view.num_utterances, dtype)
        return pairs.single(final), future, pairs.single(none), none

    def backward(self, carry, step):
        view, graph = self._view, self._graph
        next_post, next_ahead, log_scale, mean = carry
        frame, gain, active = step
        target, future = _leak_future(view, next_post, next_ahead, self.initial, self._leaky)
        post = sum_at(view, self._out(frame, target), graph.src)
        top = finite(view.largest(post.high))
        post = pairs.add(post, -view.spread(top))
        arc_gain = view.take(gain, graph.pdf) + view.take(future, graph.dst)
        share = self._share(frame, target, post, top)
        ahead = view.add_at(share * arc_gain, graph.src, graph.num_states)
        here = jnp.exp(pairs.difference(post, sum_states(view, post).map(view.spread)))
        centre = view.total(here * ahead)
        ahead = jnp.where(post.high > -jnp.inf, ahead - view.spread(centre), 0.0)
        keep = view.spread(active)
        after = (
            pairs.where(keep, post, next_post),
            jnp.where(keep, ahead, next_ahead),
            pairs.add(log_scale, jnp.where(active, top, 0.0)),
            mean + jnp.where(active, centre, 0.0),
        )
        # What the leak adds is computed again on the way forward.
        return after, (pairs.kept(next_post), next_ahead, top, centre)

    def forward(self, carry, step):
        view, graph = self._view, self._graph
        flow, past, post = carry
        frame, gain, active, (next_kept, next_ahead, top, centre) = step
        next_post = pairs.restored(next_kept)
        target, future = _leak_future(view, next_post, next_ahead, self.initial, self._leaky)
        flow_post, past_post = _leak_flow(view, flow, past, post, self.initial, self._leaky)
        share = self._share(frame, target, post, top)
        moved = view.take(flow_post, graph.src) * share
        own = view.take(gain, graph.pdf) - view.spread(centre)
        before = view.take(past_post, graph.src) * share + moved * own
        joint = before + moved * view.take(future, graph.dst)
        total = view.total(moved)
        norm = view.spread(jnp.where(total > 0, total, 1.0))
        gamma = view.add_at(moved, graph.pdf, view.num_pdfs) / norm
        joint = view.add_at(joint, graph.pdf, view.num_pdfs) / norm
        gradient = joint - gamma * view.spread(view.total(joint))
        keep = view.spread(active)
        after = (
            jnp.where(keep, self._into_states(moved / norm), flow),
            jnp.where(keep, self._into_states(before / norm), past),
            next_post,
        )
        return after, jnp.where(keep, gradient, 0.0)

    def _out(self, frame, target: Pair) -> Pair:
        return arcs_out(self._view, self._weight, frame, target)

    def _share(self, frame, target, post, top):
        """The share of every arc in the state it leaves."""
        out = pairs.add(self._out(frame, target), -self._view.spread(top))
        return jnp.exp(
            pairs.difference(out, post.map(lambda x: self._view.take(x, self._graph.src)))
        )

    def _into_states(self, values):
        graph = self._graph
        return self._view.add_at(values, graph.dst, graph.num_states, is_sorted=True)


def _leak_future(view: layout.Layout, post: Pair, future, initial, leaky: float):
    """β and expected future accuracy before the leak from those after it."""
    if not leaky:
        return post, future
    stay, _, share = leak_shares(view, post, initial, leaky)
    leaked = view.spread(view.total(share * future))
    return leak_backward(view, post, initial, leaky), stay * future + (1 - stay) * leaked


def _leak_flow(view: layout.Layout, flow, past, post: Pair, initial, leaky: float):
    """Flow and past accuracy after the leak of a frame boundary from those before it."""
    if not leaky:
        return flow, past
    stay, go, share = leak_shares(view, post, initial, leaky)

    def through(x):
        return x * stay + view.spread(view.total(x * go)) * share

    return through(flow), through(past)
