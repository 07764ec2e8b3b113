"""Forward-backward and expectation on a GPU: launches the kernels over time, then tidies up.

The same recursions and checks as `scaled.py`. What is trusted there is trusted here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from seqtrain.ops import layout, scaled
from seqtrain.ops.gpu import kernels, rows
from seqtrain.ops.gpu.kernels import Frames, March, Way
from seqtrain.ops.gpu.rows import Tile
from seqtrain.ops.graph import Graph

FRAMES_AT_ONCE = 64
"""Frames whose occupancies are computed by one launch; β is kept for as many frames only."""


class Expectation(NamedTuple):
    """log_z f32[B], value f32[B], gradient f32[B, T, P], trusted bool[B]; see `scaled.Pass`."""

    log_z: jax.Array
    value: jax.Array
    gradient: jax.Array
    trusted: jax.Array


def forward_backward(scores, lengths, graph: Graph, leaky: float, interpret: bool) -> scaled.Pass:
    """The contract of `scaled.forward_backward`, by the kernels.

    Args:
      scores: f32[B, T, P] without NaN and +inf.
      lengths: i32[B], at most T.
      graph: shared or batched.
      leaky: coefficient of the leaky HMM, 0 for none.
      interpret: runs the kernels' programs one after another as XLA operations, on any platform.

    Returns:
      A `scaled.Pass`.
    """
    sums = _both_ways(scores, None, lengths, graph, leaky, interpret)
    return scaled.Pass(sums.log_z, sums.occupancies[:, :, 0], sums.trusted)


def expectation(
    scores, accuracy, lengths, graph: Graph, leaky: float, interpret: bool
) -> Expectation:
    """E[A] and its gradient, as `log_expectation.expectation` has it, in scaled probabilities.

    With J_t(p) the joint moment of frame t (see `kernels.occupy`), which may be off by a constant
    of the frame times γ: ∂E/∂score[t, p] = J_t(p) − γ_t(p) Σ_p J_t(p), γ normalised.

    Args:
      accuracy: f32[B, T, P], finite.
      scores, lengths, graph, leaky, interpret: as in `forward_backward`.

    Returns:
      An `Expectation`.
    """
    sums = _both_ways(scores, accuracy, lengths, graph, leaky, interpret)
    gamma, joint = sums.occupancies[:, :, 0], sums.occupancies[:, :, 1]
    gradient = joint - gamma * joint.sum(-1, keepdims=True)
    return Expectation(sums.log_z, sums.value, gradient, sums.trusted)


class _Sums(NamedTuple):
    """occupancies: f32[B, T, M, P], divided by the sum of γ over p."""

    log_z: jax.Array
    value: jax.Array
    occupancies: jax.Array
    trusted: jax.Array


class _Plan(NamedTuple):
    """Sizes and options of one call, all static."""

    batch: int
    shared: bool
    frames: int
    pdfs: int
    chunk: int
    states: Tile
    occupancies: Tile
    way: Way
    interpret: bool

    @property
    def lanes(self) -> int:
        return rows.padded(self.batch if self.shared else 1, self.states.lanes)

    @property
    def padded_frames(self) -> int:
        return rows.padded(self.frames, self.chunk)


def _plan(scores, graph: Graph, leaky: float, moments: int, interpret: bool) -> _Plan:
    batch, frames, pdfs = scores.shape
    lanes = 1 if graph.batched else batch
    chunks = max(1, math.ceil(frames / FRAMES_AT_ONCE))
    return _Plan(
        batch=batch,
        shared=not graph.batched,
        frames=frames,
        pdfs=pdfs,
        chunk=max(1, math.ceil(frames / chunks)),
        states=rows.tile(graph.num_states, graph.num_arcs, lanes, few_blocks=True),
        occupancies=rows.tile(pdfs, graph.num_arcs, lanes, few_blocks=False),
        way=Way(reverse=False, moments=moments, leaky=leaky),
        interpret=interpret,
    )


def _both_ways(scores, accuracy, lengths, graph: Graph, leaky: float, interpret: bool) -> _Sums:
    plan = _plan(scores, graph, leaky, 1 if accuracy is None else 2, interpret)
    view = layout.Layout(graph, plan.batch, plan.pdfs)
    active = jnp.arange(plan.frames)[:, None] < lengths
    emit, log_emit, in_range = scaled.emissions(scores, active, view)
    gain = None if accuracy is None else _in_lanes(view.frames_first(accuracy), plan)
    initial, final = (_of_states(w, plan) for w in (graph.initial, graph.final))
    frames = Frames(_in_lanes(emit, plan), gain, _per_lane(lengths, plan), initial)
    arcs = rows.arcs_of(graph, plan.pdfs)

    ahead = _forward(arcs, frames, plan)
    end = _end(ahead, frames, final, plan)
    raw, totals_behind = _backward(ahead, arcs, frames, final, plan)

    live = jnp.arange(plan.padded_frames)[:, None, None] < frames.lengths
    totals = (ahead.totals[:-1], plan.way), (totals_behind, plan.way._replace(reverse=True))
    up, down = (jnp.where(live, kernels.scaled_by(x[:, :, 0], way), 0) for x, way in totals)
    power = up.sum(0, dtype=jnp.int32)
    shift = jnp.cumsum(up, 0, jnp.int32) + jnp.cumsum(down[::-1], 0, jnp.int32)[::-1] - power
    total = raw[:, :, 0].sum(2)
    agrees = jnp.abs(total * scaled.power_of_two(shift) / end[:, 0] - 1) <= scaled.tolerance(
        frames.lengths
    )
    sound = (end[:, 0] > 0) & (agrees | ~live).all(0)
    occupancies = raw * _inverse(jnp.where(live, total, 0.0))[:, :, None, None, :]

    log_z = _utterances(scaled.log_of(end[:, 0], power), plan) + log_emit
    value = end[:, -1] * _inverse(end[:, 0]) + _centres(ahead, live, plan)
    sound = _utterances(sound, plan) & in_range & jnp.isfinite(log_z) & ~layout.wide(graph)
    return _Sums(log_z, _utterances(value, plan), _occupancies(occupancies, plan), sound)


def _forward(arcs, frames: Frames, plan: _Plan) -> March:
    """α of all frames, one slot more than frames."""
    into = rows.by(arcs, arcs.dst, frames.initial.shape[1])
    march = _slots(_start(frames.initial, frames, plan.way, plan), plan.padded_frames, at=0)
    return _run(march, 0, into, frames, plan.way, plan)


def _backward(ahead: March, arcs, frames: Frames, final, plan: _Plan):
    """β, a few frames at a time, and what it gives.

    Returns:
      Occupancies f32[T, G, M, P, L] as `kernels.occupy` has them, and the totals f32[T, G, C, L]
      of β at the end of every frame.
    """
    way = plan.way._replace(reverse=True)
    out_of = rows.by(arcs, arcs.src, final.shape[1])
    of_pdfs = rows.by(arcs, arcs.pdf, rows.padded(plan.pdfs, plan.occupancies.rows))

    def chunk(last: March, first):
        behind = _slots(last, plan.chunk, at=-1)
        behind = _run(behind, first, out_of, frames, way, plan)
        occupancies = kernels.occupy(
            first[None], ahead, behind, of_pdfs, frames, plan.way, plan.occupancies, plan.interpret
        )
        return March(*(x[0] for x in behind)), (occupancies, behind.totals[1:])

    last = _start(final, frames, way, plan)
    firsts = jnp.arange(0, plan.padded_frames, plan.chunk, dtype=jnp.int32)
    _, out = lax.scan(chunk, last, firsts, reverse=True)
    return tuple(x.reshape(-1, *x.shape[2:]) for x in out)


def _run(march: March, first, into, frames: Frames, way: Way, plan: _Plan) -> March:
    """All steps of a march whose slot 0 is the beginning of frame `first`."""
    first = jnp.asarray(first, jnp.int32)[None]

    def step(i, march):
        index = jnp.asarray(i, jnp.int32)[None]
        return kernels.step(index, first, march, into, frames, way, plan.states, plan.interpret)

    return lax.fori_loop(0, march.values.shape[0] - 1, step, march)


def _start(first, frames: Frames, way: Way, plan: _Plan) -> March:
    """One slot: the weights f32[G, N] of a path's first or last states, for every utterance."""
    graphs, states = first.shape
    values = jnp.zeros((graphs, way.moments, states, plan.lanes), jnp.float32)
    values = values.at[:, 0].set(first[:, :, None])
    sums = values.sum(2)
    if way.channels > way.moments:
        started = (values * frames.initial[:, None, :, None]).sum(2)
        sums = jnp.concatenate([sums, started], axis=1)
    blocks = kernels.num_blocks(states, plan.states)
    partial = jnp.zeros((*sums.shape[:2], blocks, plan.lanes), jnp.float32)
    return March(values, partial.at[:, :, 0].set(sums), jnp.zeros_like(sums))


def _slots(one: March, frames: int, at: int) -> March:
    """Room for a march over that many frames, with one slot filled in."""
    return March(*(jnp.zeros((frames + 1, *x.shape), x.dtype).at[at].set(x) for x in one))


def _end(ahead: March, frames: Frames, final, plan: _Plan):
    """Σ α final and its moment, f32[G, M, L], after the last leak."""
    last = ahead.values[-1]
    if plan.way.leaky:
        leak = plan.way.leaky * last.sum(2, keepdims=True)
        last = last + leak * frames.initial[:, None, :, None]
    return (last * final[:, None, :, None]).sum(2)


def _centres(ahead: March, live, plan: _Plan):
    """The sum of the mean accuracies that the steps have taken out of the moments, f32[G, L]."""
    if plan.way.moments == 1:
        return 0.0
    mass, moment = ahead.totals[:-1, :, 0], ahead.totals[:-1, :, 1]
    return jnp.where(live, moment * _inverse(mass), 0.0).sum(0)


def _inverse(x):
    """1/x, and 0 where x is 0."""
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1.0), 0.0)


def _of_states(log_weight, plan: _Plan):
    """exp of log-weights f32[(B,) S] -> f32[G, N]; 0 in the padding."""
    weight = jnp.atleast_2d(jnp.exp(log_weight))
    return _grown(weight, 1, rows.padded(weight.shape[1], plan.states.rows))


def _per_lane(x, plan: _Plan):
    """[B] -> [G, L]; 0 in the padding."""
    return _grown(x.reshape(1, -1) if plan.shared else x[:, None], 1, plan.lanes)


def _in_lanes(x, plan: _Plan):
    """`Layout.frames_first` arrays -> [T, G, P, L]; 0 in the padding."""
    x = x[:, None] if plan.shared else x[..., None]
    return _grown(_grown(x, 3, plan.lanes), 0, plan.padded_frames)


def _utterances(x, plan: _Plan):
    """[G, L] -> [B]."""
    return x.reshape(-1)[: plan.batch] if plan.shared else x[:, 0]


def _occupancies(x, plan: _Plan):
    """[T, G, M, P, L] -> [B, T, M, P]; without the padding."""
    x = x[: plan.frames, :, :, : plan.pdfs]
    x = x[:, 0, :, :, : plan.batch] if plan.shared else x[..., 0]
    return x.transpose((3, 0, 1, 2) if plan.shared else (1, 0, 2, 3))


def _grown(x, axis: int, size: int):
    """x with zeros after it up to that size along an axis."""
    return jnp.pad(x, [(0, size - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])
