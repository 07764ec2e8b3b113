"""The best path through a graph, and its pdf labels: forced alignment when the graph is a
numerator. Not a decoder (words are in `seqtrain.decoding`).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from seqtrain.ops import cpu, dispatch, forward_backward, layout, pairs
from seqtrain.ops.graph import Graph
from seqtrain.ops.log_domain import finite
from seqtrain.types import Labels, Lengths, PerUtterance, Scores


def viterbi(
    scores: Scores, lengths: Lengths, graph: Graph, *, backend: str = 'auto'
) -> tuple[PerUtterance, Labels]:
    """max over paths of Σ_t scores[b, t, pdf_t] + arc weights + initial + final, and its labels.

    δ_{t+1}(d) = max_{arcs s→d} δ_t(s) + w + score[t, pdf], with a back-pointer per state and
    frame (Rabiner 1989, eqs. 33-35): 4 · B · T · S bytes. What all paths of a frame have in common
    is added up apart, with more digits: offsets and lengths cost no precision. On every backend, of
    paths with equal scores the one with the last arc in the graph's order wins, and of equal last
    states the first. No gradient: the scores are taken as constants.

    Args:
      scores: f32[B, T, P], natural-log scores; −inf forbids a pdf.
      lengths: i32[B], valid frames, 0 to T.
      graph: shared or batched.
      backend: 'auto', 'xla' or 'cpu'; 'gpu' runs the portable program on the GPU.

    Returns:
      score f32[B] (nats; −inf without a path, NaN where a valid frame holds NaN or +inf, the length
      lies outside 0..T, or the graph names a pdf outside P, ±inf where the sum is beyond single
      precision) and pdf i32[B, T] (−1 in padding and where the score is not finite); the rest of
      the batch is untouched. Length 0: the best weight of starting and ending at once.

    Raises:
      ValueError: shapes that do not fit, an unknown backend.
    """
    lengths = forward_backward.check(scores, lengths, graph, 0.0, backend)
    return _run(jax.lax.stop_gradient(scores), lengths, graph, backend)


@partial(jax.jit, static_argnames='backend')
def _run(scores, lengths, graph: Graph, backend: str):
    return _kernel(scores, lengths, graph=graph, leaky=0.0, backend=backend)


def _portable(scores, lengths, graph: Graph):
    active = jnp.arange(scores.shape[1])[None, :] < lengths[:, None]
    scores, broken = forward_backward.cleaned(scores, active)
    broken = broken | layout.outside(graph, scores.shape[2])
    view = layout.Layout(graph, scores.shape[0], scores.shape[2])
    score, last, arcs = _best_arcs(view, view.frames_first(scores), active.T)
    feasible = jnp.isfinite(score) & ~broken
    score = jnp.where(broken, jnp.nan, score)
    return score, _labels(view, last, arcs, active.T & feasible).T


def _best_arcs(view: layout.Layout, frames, active):
    """Best score [B], best last state [B], and the best arc into every state in every frame."""
    graph = view.graph
    weight, initial, final = (view.weights(w) for w in (graph.weight, graph.initial, graph.final))
    states, arcs = graph.num_states, graph.num_arcs
    shape = (view.num_utterances, states) if graph.batched else (states, view.num_utterances)
    number = jnp.arange(arcs, dtype=jnp.int32)
    number = jnp.broadcast_to(
        number if graph.batched else number[:, None],
        (view.num_utterances, arcs) if graph.batched else (arcs, view.num_utterances),
    )

    def step(carry, frame):
        alpha, offset = carry
        frame_t, active_t = frame
        emitted = view.take(frame_t, graph.pdf)
        top = view.largest(jnp.where(weight > -jnp.inf, emitted, -jnp.inf))
        top, lead = (jnp.where(active_t, finite(x), 0.0) for x in (top, view.largest(alpha)))
        emitted = emitted - view.spread(top) - view.spread(lead)
        reach = view.take(alpha, graph.src) + weight + emitted
        new = view.max_at(reach, graph.dst, states, is_sorted=True)
        is_best = (reach == view.take(new, graph.dst)) & (reach > -jnp.inf)
        best = view.max_at(jnp.where(is_best, number, -1), graph.dst, states, is_sorted=True)
        new = jnp.where(view.spread(active_t), new, alpha)
        return (new, pairs.add(pairs.add(offset, top), lead)), best

    start = jnp.broadcast_to(initial, shape), pairs.single(jnp.zeros(view.num_utterances))
    (alpha, offset), best = jax.lax.scan(step, start, (frames, active))
    ends = alpha + final
    score = pairs.add(offset, ends.max(view.axis)).high
    return score, ends.argmax(view.axis).astype(jnp.int32), best


def _labels(view: layout.Layout, last, arcs, active):
    """Follows the best arcs back from the last states -> i32[T, B]."""
    graph = view.graph

    def one(per_graph, arc):
        per_graph = jnp.asarray(per_graph)
        if graph.batched:
            return per_graph[jnp.arange(view.num_utterances), arc]
        return per_graph[arc]

    def step(state, frame):
        arcs_t, active_t = frame
        rows = jnp.arange(view.num_utterances)
        arc = arcs_t[rows, state] if graph.batched else arcs_t[state, rows]
        arc = jnp.maximum(arc, 0)
        pdf = jnp.where(active_t, one(graph.pdf, arc), -1)
        return jnp.where(active_t, one(graph.src, arc), state), pdf

    return jax.lax.scan(step, last, (arcs, active), reverse=True)[1]


_kernel = dispatch.Kernel(
    'seqtrain_viterbi',
    portable=lambda scores, lengths, graph, leaky, on_cpu: _portable(scores, lengths, graph),
    native=lambda scores, lengths, graph, leaky: cpu.viterbi(scores, lengths, graph),
    device=lambda scores, lengths, graph, leaky, interpret: _portable(scores, lengths, graph),
    results=lambda scores: (scores[:1], scores[:2]),
    dtypes=(jnp.float32, jnp.int32),
)
