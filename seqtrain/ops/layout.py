"""How the `xla` backend lays a graph and its scores out, so that one program serves a shared graph
and a batch of graphs. No recursions here.

A shared graph keeps states on axis 0 and utterances, the lanes, on axis 1; one arc then moves a
row of utterances. A batch of graphs keeps utterances on axis 0; its arcs are flattened.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from seqtrain.ops.graph import Graph

MAX_RANGE = 80.0
"""Single-precision factors exp(x) with |x| beyond this are not trusted: log domain instead."""

MAX_GAIN = 16.0
"""The same for the log-weight of an arc above 0; see `scaled.FLOOR`."""

MIN_START = -50.0
"""The same for the largest initial log-weight: one power of two must lift it; see `scaled.LIFT`."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Index arrays and reductions for one call. `axis` is the axis of states (and of pdfs)."""

    graph: Graph
    num_utterances: int
    num_pdfs: int

    @property
    def axis(self) -> int:
        return 1 if self.graph.batched else 0

    def total(self, x):
        """Sum over states (or pdfs) -> [B]."""
        return x.sum(self.axis)

    def largest(self, x):
        """Maximum over states (or pdfs) -> [B]."""
        return x.max(self.axis)

    def spread(self, per_utterance):
        """[B] -> broadcastable against arrays over states, pdfs and arcs."""
        return jnp.expand_dims(per_utterance, self.axis)

    def weights(self, x):
        """Per-state or per-arc weights of the graph -> broadcastable against [B]-lane arrays."""
        x = jnp.asarray(x)
        return x if self.graph.batched else x[:, None]

    def frames_first(self, scores):
        """[B, T, P] -> [T, P, B] for a shared graph, [T, B, P] for a batch of graphs."""
        return scores.transpose((1, 0, 2) if self.graph.batched else (1, 2, 0))

    def utterances_first(self, gamma):
        """The inverse of `frames_first`."""
        return gamma.transpose((1, 0, 2) if self.graph.batched else (2, 0, 1))

    def take(self, x, index):
        """x over states, pdfs or groups -> values at every arc (or group)."""
        if self.graph.batched:
            return jnp.take_along_axis(x, index, axis=1, mode='clip')
        return x.at[index].get(mode='clip')

    def add_at(self, values, index, size: int, is_sorted: bool = False):
        """Sums `values` (over arcs or groups) into `size` entries by `index`."""
        return self._segment(jax.ops.segment_sum, values, index, size, is_sorted)

    def max_at(self, values, index, size: int, is_sorted: bool = False):
        """Maximum of `values` by `index`; −inf where an entry gets none."""
        return self._segment(jax.ops.segment_max, values, index, size, is_sorted)

    def _segment(self, reduce, values, index, size, is_sorted):
        if not self.graph.batched:
            return reduce(values, index, size, indices_are_sorted=is_sorted)
        batch = self.num_utterances
        rows = size * jnp.arange(batch, dtype=jnp.int32)[:, None]
        # What names no entry of its own row must not end in another's.
        flat = jnp.where((index >= 0) & (index < size), index + rows, size * batch).reshape(-1)
        out = reduce(values.reshape(-1), flat, size * batch, indices_are_sorted=is_sorted)
        return out.reshape(batch, size)


def used_pdfs(graph: Graph, num_pdfs: int):
    """bool[P] or bool[B, P]: pdfs that stand on an arc of finite weight."""
    used = jnp.isfinite(jnp.asarray(graph.weight))
    if not graph.batched:
        return jnp.zeros(num_pdfs, bool).at[graph.pdf].max(used, mode='drop')
    rows = jnp.arange(graph.pdf.shape[0])[:, None]
    return (
        jnp.zeros((graph.pdf.shape[0], num_pdfs), bool).at[rows, graph.pdf].max(used, mode='drop')
    )


def outside(graph: Graph, num_pdfs: int):
    """bool[] or bool[B]: an arc names a pdf for which the scores have no column."""
    return ((graph.pdf >= num_pdfs) & jnp.isfinite(jnp.asarray(graph.weight))).any(-1)


def wide(graph: Graph):
    """bool[] or bool[B]: a log-weight is too large or too small for single-precision factors."""

    def beyond(x):
        x = jnp.asarray(x)
        return (jnp.isfinite(x) & (jnp.abs(x) > MAX_RANGE)).any(-1)

    gains = (jnp.asarray(graph.weight) > MAX_GAIN).any(-1)
    start = jnp.asarray(graph.initial).max(-1)
    gains |= jnp.isfinite(start) & (start < MIN_START)
    return gains | beyond(graph.weight) | beyond(graph.initial) | beyond(graph.final)
