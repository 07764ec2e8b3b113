"""Sums and maxima over a lattice's paths on the host: posteriors, pruning, best path, union.

For training the same sums run on the devices (`Lattice.to_fsa` and `ops.log_partition`); these are
for making, measuring and reading lattices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from seqtrain.fsa.fsa import NEG_INF
from seqtrain.lattices.lattice import Lattice, LatticeError

Semiring = Callable[..., np.ndarray]
"""`np.logaddexp` (sum over paths) or `np.maximum` (best path): a ufunc with `.at`."""


@dataclasses.dataclass(frozen=True)
class PathSums:
    """Forward and backward sums.

    Attributes:
      alpha: f64[S], over paths from the start to a state.
      beta: f64[S], over paths from a state to the end.
      through: f64[A], over complete paths through an arc.
      total: over all complete paths.
    """

    alpha: np.ndarray
    beta: np.ndarray
    through: np.ndarray
    total: float

    def posteriors(self) -> np.ndarray:
        """f64[A]: share of the arc's paths in all paths (with `np.logaddexp`: probability)."""
        return np.exp(self.through - self.total)


def path_sums(
    lattice: Lattice, plus: Semiring = np.logaddexp, *, lm_scale: float = 1.0
) -> PathSums:
    """Forward-backward over a lattice.

    Args:
      lattice: its weights are lm_scale · graph + acoustic_scale · acoustic.
      plus: `np.logaddexp` to sum over paths, `np.maximum` for the best one.
      lm_scale: factor on the graph weights.
    """
    weight = _scaled(lattice.graph, lm_scale)
    weight += lattice.acoustic_scale * lattice.acoustic.astype(np.float64)
    final = _scaled(lattice.final, lm_scale)
    alpha = np.full(lattice.num_states, NEG_INF)
    alpha[0] = 0.0
    beta = final.copy()
    layers = lattice.layers
    for arcs in layers:
        src, dst = lattice.src[arcs], lattice.dst[arcs]
        plus.at(alpha, dst, alpha[src] + weight[arcs])  # type: ignore[attr-defined]
    for arcs in reversed(layers):
        src, dst = lattice.src[arcs], lattice.dst[arcs]
        plus.at(beta, src, beta[dst] + weight[arcs])  # type: ignore[attr-defined]
    through = alpha[lattice.src] + weight + beta[lattice.dst]
    return PathSums(alpha, beta, through, float(beta[0]))


def _scaled(weights: np.ndarray, factor: float) -> np.ndarray:
    """What is impossible is so with a factor of 0, too."""
    weights = weights.astype(np.float64)
    impossible = np.full(len(weights), NEG_INF)
    return np.multiply(weights, factor, out=impossible, where=weights > NEG_INF)


def prune(lattice: Lattice, beam: float, sums: PathSums | None = None) -> Lattice:
    """Keeps the arcs whose best path is within `beam` (natural log) of the best of all.

    Args:
      lattice: see there.
      beam: from 0 on.
      sums: the lattice's by `np.maximum`, where they are known.
    """
    sums = sums or path_sums(lattice, np.maximum)
    slack = 1e-9 * max(1.0, abs(sums.total))
    return lattice.select(sums.through >= sums.total - beam - slack)


def best_path(lattice: Lattice) -> tuple[tuple[str, ...], np.ndarray, float]:
    """The best path's words, pdfs i32[T] and log-weight."""
    sums = path_sums(lattice, np.maximum)
    arcs = best_arcs(lattice, sums)
    words = tuple(lattice.words[w] for w in lattice.word[arcs].tolist() if w)
    pdfs = lattice.pdf[arcs]
    return words, pdfs[pdfs >= 0], sums.total


def occupancies(lattice: Lattice, num_pdfs: int) -> np.ndarray:
    """f64[T, num_pdfs]: posterior of every pdf in every frame; rows sum to 1."""
    lattice.validate(num_pdfs)
    result = np.zeros((lattice.num_frames, num_pdfs))
    emitting = lattice.pdf >= 0
    frames = lattice.time[lattice.src[emitting]]
    np.add.at(result, (frames, lattice.pdf[emitting]), path_sums(lattice).posteriors()[emitting])
    return result


def check_scales(left: Lattice, right: Lattice) -> None:
    """Raises LatticeError where the weights of two lattices cannot be compared."""
    if left.acoustic_scale != right.acoustic_scale:
        raise LatticeError(
            f'Two lattices with acoustic scales {left.acoustic_scale:g} and '
            f'{right.acoustic_scale:g}: give both the same, to `read_archive` for instance.'
        )


def union(left: Lattice, right: Lattice) -> Lattice:
    """All paths of two lattices of one utterance from one search graph; common arcs stand once.

    States are the same where time and graph state are, so a path of `right` that goes through
    `left`'s states is not counted twice, and paths that cross from one lattice to the other appear.

    Raises:
      LatticeError: the lattices have not the same frames, words and acoustic scale, or do not know
        graph states.
    """
    check_scales(left, right)
    if not (len(left.graph_state) and len(right.graph_state)):
        raise LatticeError('A union needs lattices that know their graph states.')
    if left.num_frames != right.num_frames or left.words != right.words:
        raise LatticeError('A union needs lattices of one utterance from one search graph.')
    size = 1 + int(max(left.graph_state.max(), right.graph_state.max()))
    keys = [part.time.astype(np.int64) * size + part.graph_state for part in (left, right)]
    states, where = np.unique(np.concatenate(keys), return_inverse=True)
    split = left.num_states
    columns = ('pdf', 'word', 'graph', 'acoustic')
    ours, theirs = (
        np.stack(
            [number[part.src], number[part.dst], *(getattr(part, n) for n in columns)], axis=1
        ).astype(np.float64)
        for part, number in ((left, where[:split]), (right, where[split:]))
    )
    rows = np.concatenate([ours, _others(theirs, ours, len(states))])
    final = np.full(len(states), NEG_INF, np.float32)
    for part, number in ((left, where[:split]), (right, where[split:])):
        final[number] = np.maximum(final[number], part.final)
    time = (states // size).astype(np.int32)
    src, dst = rows[:, :2].T.astype(np.int64)
    merged = dataclasses.replace(
        left,
        time=time,
        final=final,
        graph_state=states % size,
        src=src,
        dst=dst,
        **dict(zip(columns, rows[:, 2:].T, strict=True)),
    )
    return topological(merged, start=int(where[0]))


def _others(rows: np.ndarray, known: np.ndarray, num_states: int) -> np.ndarray:
    """Rows (src, dst, ...) that are not among the known ones, which may be many more."""
    ends, known_ends = (part[:, 0] * num_states + part[:, 1] for part in (rows, known))
    near = known[np.isin(known_ends, ends)]
    both, inverse = np.unique(np.concatenate([near, rows]), axis=0, return_inverse=True)
    seen = np.zeros(len(both), bool)
    inverse = inverse.reshape(-1)
    seen[inverse[: len(near)]] = True
    return both[~seen]


def topological(lattice: Lattice, start: int = 0) -> Lattice:
    """Renumbers states by time, then epsilon depth, and sorts arcs; `start` becomes state 0.

    Raises:
      LatticeError: a cycle of epsilon arcs.
    """
    depth = lattice.depths()
    order = np.lexsort((np.arange(lattice.num_states) != start, depth, lattice.time))
    number = np.argsort(order)
    by_src = np.argsort(number[lattice.src], kind='stable')
    columns = ('pdf', 'word', 'graph', 'acoustic')
    known = len(lattice.graph_state) > 0
    return dataclasses.replace(
        lattice,
        time=lattice.time[order],
        final=lattice.final[order],
        graph_state=lattice.graph_state[order] if known else lattice.graph_state,
        src=number[lattice.src][by_src],
        dst=number[lattice.dst][by_src],
        **{name: getattr(lattice, name)[by_src] for name in columns},
    )


def best_arcs(lattice: Lattice, sums: PathSums) -> np.ndarray:
    """Arc indices of a best path; `sums` by `np.maximum`."""
    first = np.searchsorted(lattice.src, np.arange(lattice.num_states + 1))
    path, state = [], 0
    while first[state] < first[state + 1]:
        arcs = np.arange(first[state], first[state + 1])
        arc = int(arcs[np.argmax(sums.through[arcs])])
        if np.isfinite(lattice.final[state]) and (
            sums.alpha[state] + lattice.final[state] >= sums.through[arc]
        ):
            break
        path.append(arc)
        state = int(lattice.dst[arc])
    return np.array(path, np.int64)
