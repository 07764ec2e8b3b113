"""What the graph builders need to do with an `Fsa`: trim, minimise, intersect, shortest length.

All results are exact in the log semiring and deterministic (same input, same arrays). Nothing here
pushes or rounds weights, so that a subset of paths keeps bit-identical weights.
"""

from __future__ import annotations

import collections
import functools

import numpy as np
from scipy.sparse import csgraph, csr_matrix

from seqtrain.fsa.fsa import NEG_INF, Fsa, FsaError


def connect(fsa: Fsa) -> Fsa:
    """Drops states and arcs on no path from an initial to a final state; keeps the order.

    Raises:
      FsaError: nothing is left, the acceptor accepts no sequence.
    """
    live = np.isfinite(fsa.weight)
    src, dst = fsa.src[live], fsa.dst[live]
    keep = _reachable(src, dst, np.isfinite(fsa.initial))
    keep &= _reachable(dst, src, np.isfinite(fsa.final))
    if not keep.any():
        raise FsaError('No path leads from an initial to a final state.')
    number = np.cumsum(keep) - 1
    arcs = np.flatnonzero(live & keep[fsa.src] & keep[fsa.dst])
    return Fsa(
        number[fsa.src[arcs]],
        number[fsa.dst[arcs]],
        fsa.pdf[arcs],
        fsa.weight[arcs],
        fsa.initial[keep],
        fsa.final[keep],
    )


def min_frames(fsa: Fsa) -> int:
    """Arcs on the shortest accepted path: the least number of frames an utterance must have.

    Raises:
      FsaError: the acceptor accepts nothing.
    """
    starts = np.flatnonzero(np.isfinite(fsa.initial))
    ends = np.isfinite(fsa.final)
    if ends[starts].any():
        return 0
    live = np.isfinite(fsa.weight)
    links = csr_matrix((np.ones(live.sum()), (fsa.src[live], fsa.dst[live])), (fsa.num_states,) * 2)
    shortest = np.inf
    if len(starts) and ends.any():
        hops = csgraph.dijkstra(links, indices=starts, unweighted=True, min_only=True)
        shortest = hops[ends].min()
    if shortest == np.inf:
        raise FsaError('No path leads from an initial to a final state.')
    return int(shortest)


def minimise(fsa: Fsa) -> Fsa:
    """Merges states with the same future: equal final weights and equal arcs into merged states.

    Partition refinement with bit-equal weights (no pushing, no rounding), so that every path keeps
    its weight exactly. A merged state's initial weight is the log-sum of its members'.
    """
    labels = np.unique(np.stack([fsa.pdf, fsa.weight.view(np.int32)]), axis=1, return_inverse=True)
    arc_label = labels[1].reshape(-1).astype(np.int64)
    order = np.argsort(fsa.src, kind='stable')
    bounds = np.searchsorted(fsa.src[order], np.arange(fsa.num_states + 1))
    block = np.unique(fsa.final, return_inverse=True)[1].reshape(-1)
    while True:
        keys = arc_label * fsa.num_states + block[fsa.dst]
        refined = _refine(block, keys, order, bounds)
        if refined.max() == block.max():
            return _merge(fsa, refined)
        block = refined


def _refine(block, keys, order, bounds) -> np.ndarray:
    """One round: states stay together where block and multiset of arc keys are the same."""
    numbers: dict[tuple[int, bytes], int] = {}
    sorted_keys = keys[order]
    refined = np.empty_like(block)
    for state in range(len(block)):
        arcs = np.sort(sorted_keys[bounds[state] : bounds[state + 1]]).tobytes()
        refined[state] = numbers.setdefault((int(block[state]), arcs), len(numbers))
    return refined


def _merge(fsa: Fsa, block: np.ndarray) -> Fsa:
    num_states = int(block.max()) + 1
    first = np.unique(block, return_index=True)[1]
    arcs = np.flatnonzero(np.isin(fsa.src, first))
    initial = np.full(num_states, NEG_INF, np.float32)
    np.logaddexp.at(initial, block, fsa.initial)
    return Fsa(
        block[fsa.src[arcs]],
        block[fsa.dst[arcs]],
        fsa.pdf[arcs],
        fsa.weight[arcs],
        initial,
        fsa.final[first],
    )


def intersect(left: Fsa, right: Fsa) -> Fsa:
    """Sequences that both accept, with the sum of their log-weights; trimmed.

    Args:
      left: any acceptor.
      right: an acceptor that is deterministic: one initial state, one arc per state and label.

    Raises:
      FsaError: `right` is not deterministic, or no sequence is in both.
    """
    start, table = _transitions(right)
    out = outgoing(left)
    queue = [(int(q), start) for q in np.flatnonzero(np.isfinite(left.initial))]
    number = {pair: index for index, pair in enumerate(queue)}
    rows = []
    for pair in queue:  # grows while it is walked
        for label, weight, dst in out[pair[0]]:
            if (match := table.get((pair[1], label))) is None:
                continue
            after = (dst, match[0])
            if after not in number:
                number[after] = len(queue)
                queue.append(after)
            rows.append((number[pair], number[after], label, weight + match[1]))
    a, b = np.array(queue).T
    initial = np.full(len(queue), NEG_INF)
    count = int(np.isfinite(left.initial).sum())
    initial[:count] = left.initial[a[:count]] + right.initial[start]
    return connect(Fsa.from_arcs(rows, initial, left.final[a] + right.final[b]))


@functools.lru_cache(maxsize=8)  # one phone LM meets every transcript
def _transitions(fsa: Fsa) -> tuple[int, dict[tuple[int, int], tuple[int, float]]]:
    """Start state and (state, label) → (destination, log-weight) of a deterministic acceptor."""
    starts = np.flatnonzero(np.isfinite(fsa.initial))
    columns = (fsa.src.tolist(), fsa.pdf.tolist(), fsa.dst.tolist(), fsa.weight.tolist())
    table = {(src, label): (dst, w) for src, label, dst, w in zip(*columns, strict=True)}
    if len(starts) != 1 or len(table) != fsa.num_arcs:
        raise FsaError('The right acceptor is not deterministic; determinise it first.')
    return int(starts[0]), table


def outgoing(fsa: Fsa) -> dict[int, list[tuple[int, float, int]]]:
    """For every state the list of its arcs as (label, log-weight, destination), in file order."""
    result: dict[int, list[tuple[int, float, int]]] = collections.defaultdict(list)
    rows = zip(
        fsa.src.tolist(), fsa.pdf.tolist(), fsa.weight.tolist(), fsa.dst.tolist(), strict=True
    )
    for src, label, weight, dst in rows:
        result[src].append((label, weight, dst))
    return result


def _reachable(src: np.ndarray, dst: np.ndarray, start: np.ndarray) -> np.ndarray:
    """bool[S]: states reached from `start` along arcs src → dst."""
    out = collections.defaultdict(list)
    for s, d in zip(src.tolist(), dst.tolist(), strict=True):
        out[s].append(d)
    reached = start.copy()
    stack = np.flatnonzero(start).tolist()
    while stack:
        for state in out[stack.pop()]:
            if not reached[state]:
                reached[state] = True
                stack.append(state)
    return reached
