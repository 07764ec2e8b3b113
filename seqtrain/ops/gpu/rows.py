"""A graph as rows of arcs, the form that the kernels read, and how programs share the rows.

A row is what one sum is for: the arcs into a state, out of a state, or that carry a pdf. Rows are
ordered by falling number of arcs, so that the rows of one program are about equally long and the
longest start first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqtrain.ops.graph import Graph

# Utterances side by side that one program serves: 32 bytes, what a GPU fetches at a time.
_MAX_LANES = 8
_MAX_ARCS = 64
# Elements of a program's tile (rows · arcs · lanes): enough for one warp, at most 16 a thread.
_MIN_TILE, _MAX_TILE = 256, 2048


class Arcs(NamedTuple):
    """Arcs of G graphs, i32/f32[G, A]; weights as probabilities, 0 for padding."""

    src: jax.Array
    dst: jax.Array
    pdf: jax.Array
    weight: jax.Array


class Rows(NamedTuple):
    """Arcs sorted by row. row, begin, end: i32[G, N], the row of every position and its arcs."""

    row: jax.Array
    begin: jax.Array
    end: jax.Array
    arcs: Arcs


class Tile(NamedTuple):
    """What a program works on at a time; powers of two, because Triton wants them."""

    rows: int
    arcs: int
    lanes: int

    @property
    def warps(self) -> int:
        return min(4, max(1, self.rows * self.arcs * self.lanes // 256))


def arcs_of(graph: Graph, num_pdfs: int) -> Arcs:
    """The graph's arcs with a leading axis of graphs, which is 1 for a shared graph."""
    arrays = (graph.src, graph.dst, jnp.minimum(graph.pdf, num_pdfs - 1), jnp.exp(graph.weight))
    return Arcs(*(jnp.atleast_2d(x) for x in arrays))


def by(arcs: Arcs, key, num_rows: int) -> Rows:
    """Sorts arcs into rows; arcs without weight are in none.

    Args:
      arcs: of G graphs.
      key: i32[G, A], the row of every arc, below num_rows.
      num_rows: N, rows without arcs included.

    Returns:
      `Rows` whose `row` is a permutation of 0..N−1.
    """

    def one(arcs, key):
        key = jnp.where(arcs.weight > 0, key, num_rows)
        counts = jnp.zeros(num_rows, jnp.int32).at[key].add(1, mode='drop')
        end = jnp.cumsum(counts, dtype=jnp.int32)
        longest_first = jnp.argsort(-counts, stable=True).astype(jnp.int32)
        order = jnp.argsort(key, stable=True)
        sorted_arcs = jax.tree.map(lambda x: x[order], arcs)
        return Rows(longest_first, (end - counts)[longest_first], end[longest_first], sorted_arcs)

    return jax.vmap(one)(arcs, key)


def tile(num_rows: int, num_arcs: int, lanes: int, few_blocks: bool) -> Tile:
    """Chooses a tile by the size of the graph.

    Args:
      num_rows, num_arcs: of one graph.
      lanes: utterances that share it.
      few_blocks: every program will read a number from every block of rows, so there should be
        about 4 · sqrt(num_rows) blocks at most.
    """
    wide = min(_MAX_LANES, power_of_two_from(lanes))
    least = power_of_two_from(math.sqrt(num_rows) / 4) if few_blocks else 1
    deep = min(_MAX_ARCS, power_of_two_from(num_arcs / num_rows), _MAX_TILE // (least * wide))
    deep = max(1, deep)
    most = power_of_two_from(num_rows)
    return Tile(max(least, min(most, _MIN_TILE // (deep * wide))), deep, wide)


def power_of_two_from(x: float) -> int:
    """The smallest power of two that is at least x, and at least 1."""
    return 1 << max(0, math.ceil(math.log2(max(x, 1))))


def padded(size: int, block: int) -> int:
    """The smallest multiple of block that is at least size."""
    return -(-size // block) * block
