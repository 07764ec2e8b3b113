"""A lattice as an epsilon-free acceptor over pdfs, which is what the devices sum over."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from seqtrain.fsa.fsa import NEG_INF, Fsa

if TYPE_CHECKING:
    from seqtrain.lattices.lattice import Lattice


@dataclasses.dataclass(eq=False)
class _Closure:
    """For every state the states that it reaches by epsilons; those of s: first[s], count[s]."""

    first: np.ndarray
    count: np.ndarray
    end: np.ndarray
    weight: np.ndarray

    def of(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in `states`, repeated, and entries of their closures."""
        counts = self.count[states]
        position = np.repeat(np.arange(len(states)), counts)
        offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return position, self.first[states][position] + offset

    def add(self, state: np.ndarray, end: np.ndarray, weight: np.ndarray) -> None:
        """Appends entries of states that have none yet; equal pairs are summed."""
        order = np.lexsort((end, state))
        state, end, weight = state[order], end[order], weight[order]
        new = np.flatnonzero(np.r_[True, (np.diff(state) != 0) | (np.diff(end) != 0)])
        if not len(state):
            return
        begin = len(self.end)
        self.end = np.r_[self.end, end[new]]
        self.weight = np.r_[self.weight, np.logaddexp.reduceat(weight, new)]
        owner, first, count = np.unique(state[new], return_index=True, return_counts=True)
        self.first[owner], self.count[owner] = begin + first, count


def to_fsa(lattice: Lattice, weight: np.ndarray) -> Fsa | None:
    """The lattice's paths over pdfs, epsilons removed exactly (log semiring); None if none is left.

    An arc leads straight to every state that its destination reaches by epsilons. States keep their
    order, by time. Every state of the lattice must lie on a path (`Lattice.select`).

    Args:
      lattice: a valid lattice.
      weight: f[A], log-weights of its arcs.
    """
    weight = weight.astype(np.float64)
    emitting = lattice.pdf >= 0
    useful = np.isfinite(lattice.final)
    useful[lattice.src[emitting]] = True
    closure = _closure(lattice, weight, useful)
    arcs = np.flatnonzero(emitting)
    position, entry = closure.of(lattice.dst[arcs])
    arcs = arcs[position]
    initial = np.full(lattice.num_states, NEG_INF)
    own = slice(closure.first[0], closure.first[0] + closure.count[0])
    initial[closure.end[own]] = closure.weight[own]
    used = np.isfinite(initial)
    used[closure.end[entry]] = True
    kept = used[lattice.src[arcs]]
    number = np.cumsum(used) - 1
    if not kept.any():
        return None
    return Fsa(
        number[lattice.src[arcs[kept]]],
        number[closure.end[entry[kept]]],
        lattice.pdf[arcs[kept]],
        (weight[arcs] + closure.weight[entry])[kept],
        initial[used],
        lattice.final[used],
    )


def _closure(lattice: Lattice, weight: np.ndarray, useful: np.ndarray) -> _Closure:
    """Epsilon closures, the deepest states first: their closures are done when they are needed."""
    size = lattice.num_states
    result = _Closure(np.zeros(size, int), np.zeros(size, int), np.zeros(0, int), np.zeros(0))
    depth = lattice.depths()
    epsilon = np.flatnonzero(lattice.pdf < 0)
    source_depth = depth[lattice.src[epsilon]]
    for level in range(int(depth.max()), -1, -1):
        own = np.flatnonzero((depth == level) & useful)
        arcs = epsilon[source_depth == level]
        position, entry = result.of(lattice.dst[arcs])
        result.add(
            np.r_[own, lattice.src[arcs[position]]],
            np.r_[own, result.end[entry]],
            np.r_[np.zeros(len(own)), weight[arcs[position]] + result.weight[entry]],
        )
    return result
