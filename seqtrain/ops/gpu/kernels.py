"""The two Pallas kernels: a step of a recursion over time, and the occupancies of a few frames.

Both sum over rows of arcs (`rows.py`); neither uses atomics, so results do not depend on timing.
Constructs are kept to what lowers to Triton in every version: whole arrays in memory, indices that
are never out of bounds (so no masks), powers of two, loops with a counter.

Axes: G graphs (1 if shared), M moments (probability; with the first moment of the accuracy, 2),
N states or pdfs and L utterances per graph, both padded to whole blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from seqtrain.ops.gpu.rows import Rows, Tile, padded, power_of_two_from
from seqtrain.ops.scaled import FLOOR, LIFT, exponent, power_of_two

# Partial sums are read in pieces of this many blocks.
_PIECE = 64


class March(NamedTuple):
    """State vectors of a recursion in consecutive frames, one slot a frame; updated in place.

    values: f32[slots, G, M, N, L], before leak, scaling and centring.
    partial: f32[slots, G, C, blocks, L], their sums over each block of rows. Channels C: the M
      sums over states; then, backwards and leaky, the M sums weighted by `initial`.
    totals: f32[slots, G, C, L], the sums of `partial`, filled in when a slot is first read.
    """

    values: Any
    partial: Any
    totals: Any


class Frames(NamedTuple):
    """What varies with frames and utterances.

    emit: f32[T, G, P, L], scores as probabilities; gain: f32[T, G, P, L], accuracies, or None;
    lengths: i32[G, L]; initial: f32[G, N], probabilities of starting in a state.
    """

    emit: Any
    gain: Any
    lengths: Any
    initial: Any


class Way(NamedTuple):
    """Which recursion (static): forwards or backwards, with how many moments, how leaky."""

    reverse: bool
    moments: int
    leaky: float

    @property
    def channels(self) -> int:
        return self.moments * (2 if self.reverse and self.leaky else 1)


def num_blocks(num_rows: int, tile: Tile) -> int:
    """Entries of the axis of blocks in `March.partial`."""
    blocks = num_rows // tile.rows
    return padded(blocks, _PIECE) if blocks > _PIECE else power_of_two_from(blocks)


def step(
    index, first, march: March, rows: Rows, frames: Frames, way: Way, tile: Tile, interpret: bool
) -> March:
    """One frame of α or β, for all states and utterances, in one launch.

    Forwards, index i reads slot i, writes slot i + 1 and is frame first + i:
    α_{t+1}(d) = Σ_{arcs s→d} α̂_t(s) w e_t(pdf) + `scaled.FLOOR`, where α̂ is α after the leak and
    scaled by a power of two; the first moment likewise, less the mean accuracy so far. Backwards
    there is no floor, and the slots run down. Utterances that have ended (or not begun, backwards)
    keep their values.
    """
    slots, graphs, _, states, lanes = march.values.shape
    grid = (states // tile.rows, lanes // tile.lanes, graphs)

    def kernel(index, first, rows, frames, _values, _partial, _totals, values, partial, totals):
        march = March(values, partial, totals)
        i = index[0]
        read, write = (slots - 1 - i, slots - 2 - i) if way.reverse else (i, i + 1)
        frame = first[0] + (write if way.reverse else read)
        here = _Here(pl.program_id(2), tile)
        sums = _totals_of(march.partial, read, here, way)
        for c, total in enumerate(sums):  # every block of rows writes the same
            march.totals[read, here.graph, c, here.lanes] = total
        entering = _Entering(march.values, read, sums, frames.initial, here, way)

        def terms(at, weight):
            near = rows.arcs.dst if way.reverse else rows.arcs.src
            carried = entering(near[here.graph, at])
            return _through(carried, at, weight, rows, frames, frame, here)

        new = _over_arcs(terms, rows, here, way.moments)
        row = rows.row[here.graph, here.positions]
        active = (frame < frames.lengths[here.graph, here.lanes])[None, :]
        block = pl.program_id(0)
        for m, value in enumerate(new):
            value = value if way.reverse or m else value + np.float32(FLOOR)
            where = (here.graph, m, row[:, None], here.lanes[None, :])
            value = jnp.where(active, value, march.values[(read, *where)])
            march.values[(write, *where)] = value
            march.partial[write, here.graph, m, block, here.lanes] = value.sum(0)
            if way.channels > way.moments:
                started = value * frames.initial[here.graph, row][:, None]
                channel = way.moments + m
                march.partial[write, here.graph, channel, block, here.lanes] = started.sum(0)

    inputs = (index, first, rows, frames, *march)
    leaves = len(jax.tree.leaves(inputs))
    out = pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=tuple(_like(x.shape, x.dtype) for x in march),
        in_specs=jax.tree.map(lambda _: _WHOLE, inputs),
        out_specs=(_WHOLE,) * 3,
        input_output_aliases={leaves - 3 + i: i for i in range(3)},
        compiler_params=_triton(tile, interpret),
        interpret=interpret,
        name='seqtrain_step',
    )(*inputs)
    return March(*out)


def occupy(
    first, ahead: March, behind: March, rows: Rows, frames: Frames, way: Way, tile: Tile,
    interpret: bool,
):  # fmt: skip
    """Σ over the arcs of every pdf of α̂_t w e_t β̂_{t+1}, and its first moment, for a few frames.

    The joint moment of an arc is past + accuracy of the frame + future, all weighted alike.

    Args:
      first: i32[1], the frame of slot 0 of `behind`.
      ahead: α, all frames; behind: β of these frames and the next.
      rows: arcs by pdf.
      way: the forward one; the backward one differs only in its direction.

    Returns:
      f32[frames, G, M, P padded, L], in units of the scaling of its frame.
    """
    slots, graphs, _, _, lanes = behind.values.shape
    count, pdfs = slots - 1, rows.row.shape[1]
    back = way._replace(reverse=True)

    def kernel(first, rows, frames, ahead, behind, out):
        which = pl.program_id(2)
        slot, graph = lax.div(which, np.int32(graphs)), lax.rem(which, np.int32(graphs))
        here = _Here(graph, tile)
        frame = first[0] + slot

        def entering(march, slot, way):
            totals = [march.totals[slot, graph, c, here.lanes] for c in range(way.channels)]
            return _Entering(march.values, slot, totals, frames.initial, here, way)

        past, future = entering(ahead, frame, way), entering(behind, slot + 1, back)

        def terms(at, weight):
            carried = past(rows.arcs.src[graph, at])
            through = _through(carried, at, weight, rows, frames, frame, here)
            after = future(rows.arcs.dst[graph, at])
            if way.moments == 1:
                return [through[0] * after[0]]
            return [through[0] * after[0], through[1] * after[0] + through[0] * after[1]]

        row = rows.row[graph, here.positions]
        for m, value in enumerate(_over_arcs(terms, rows, here, way.moments)):
            out[slot, graph, m, row[:, None], here.lanes[None, :]] = value

    inputs = (first, rows, frames, ahead, behind)
    return pl.pallas_call(
        kernel,
        grid=(pdfs // tile.rows, lanes // tile.lanes, count * graphs),
        out_shape=_like((count, graphs, way.moments, pdfs, lanes), jnp.float32),
        in_specs=jax.tree.map(lambda _: _WHOLE, inputs),
        out_specs=_WHOLE,
        compiler_params=_triton(tile, interpret),
        interpret=interpret,
        name='seqtrain_occupy',
    )(*inputs)


_WHOLE = pl.BlockSpec(memory_space=pl.ANY)
# A `jax.ShapeDtypeStruct` would have to say, inside `jax.shard_map`, over what it varies.
_like = jax.core.ShapedArray


def _triton(tile: Tile, interpret: bool):
    """Says that Triton compiles the kernel; Pallas has other compilers for GPUs."""
    if interpret:
        return None
    from jax.experimental.pallas import triton  # JAX means to drop it one day

    return triton.CompilerParams(num_warps=tile.warps, num_stages=1)


def _count(size: int):
    """0, 1, … size − 1 as i32, also where JAX is told to use 64 bits."""
    return lax.iota(jnp.int32, size)


class _Here:
    """Which graph, positions of rows and lanes this program serves."""

    def __init__(self, graph, tile: Tile):
        self.graph, self.tile = graph, tile
        self.positions = pl.program_id(0) * tile.rows + _count(tile.rows)
        self.lanes = pl.program_id(1) * tile.lanes + _count(tile.lanes)


def _totals_of(partial, slot, here: _Here, way: Way) -> list:
    """The sums over all blocks of rows, f32[lanes] for every channel."""
    blocks = partial.shape[3]
    piece = min(blocks, _PIECE)

    def of(channel):
        def add(k, total):
            block = k * piece + _count(piece)
            where = (slot, here.graph, channel, block[:, None], here.lanes[None, :])
            return total + partial[where].sum(0)

        return lax.fori_loop(
            np.int32(0), np.int32(blocks // piece), add, jnp.zeros(here.tile.lanes, jnp.float32)
        )

    return [of(c) for c in range(way.channels)]


class _Entering:
    """State vectors as they enter a frame: after the leak, scaled, centred."""

    def __init__(self, values, slot, totals, initial, here: _Here, way: Way):
        self._values, self._slot, self._initial = values, slot, initial
        self._here, self._way = here, way
        self._scale = power_of_two(-scaled_by(totals[0], way))
        self._leak = [way.leaky * total for total in totals[way.channels - way.moments :]]
        if way.moments == 2:
            self._centre = totals[1] / jnp.where(totals[0] > 0, totals[0], 1.0)

    def __call__(self, state) -> list:
        """Values at states i32[rows, arcs] -> one f32[rows, arcs, lanes] per moment."""
        values = [self._at(m, state) for m in range(self._way.moments)]
        if self._way.moments == 2:
            values[1] = values[1] - self._centre * values[0]
        return [value * self._scale for value in values]

    def _at(self, moment: int, state):
        here = self._here
        lanes = here.lanes[None, None, :]
        value = self._values[self._slot, here.graph, moment, state[:, :, None], lanes]
        if not self._way.leaky:
            return value
        leak = self._leak[moment]
        if self._way.reverse:
            return value + leak
        return value + leak * self._initial[here.graph, state][:, :, None]


def scaled_by(total, way: Way):
    """k, i32: a state vector of this sum is divided by 2^k."""
    return exponent(total) - (0 if way.reverse else LIFT)


def _through(carried, at, weight, rows: Rows, frames: Frames, frame, here: _Here) -> list:
    """What has entered a frame, through the arcs at positions `at`: times w e, plus accuracy."""
    where = (
        frame,
        here.graph,
        rows.arcs.pdf[here.graph, at][:, :, None],
        here.lanes[None, None, :],
    )
    factor = weight[:, :, None] * frames.emit[where]
    if len(carried) == 1:
        return [carried[0] * factor]
    mass, moment = carried
    return [mass * factor, (moment + frames.gain[where] * mass) * factor]


def _over_arcs(terms: Callable, rows: Rows, here: _Here, count: int) -> tuple:
    """Sums `terms(at, weight)` over the arcs of this program's rows -> count × f32[rows, lanes].

    `at`, i32[rows, arcs], are positions in `rows.arcs`; beyond a row's end the weight is 0.
    """
    tile, graph = here.tile, here.graph
    begin, end = rows.begin[graph, here.positions], rows.end[graph, here.positions]

    def add(k, sums):
        at = begin[:, None] + k * tile.arcs + _count(tile.arcs)[None, :]
        inside = at < end[:, None]
        at = jnp.where(inside, at, 0)
        weight = jnp.where(inside, rows.arcs.weight[graph, at], 0.0)
        more = terms(at, weight)
        return tuple(a + b.sum(1) for a, b in zip(sums, more, strict=True))

    zero = jnp.zeros((tile.rows, tile.lanes), jnp.float32)
    longest = jnp.max(end - begin)
    trips = lax.div(longest + (tile.arcs - 1), np.int32(tile.arcs))
    return lax.fori_loop(np.int32(0), trips, add, (zero,) * count)
