"""Token passing with a lattice beam: scores and a search graph in, a `Lattice` out.

Frame-synchronous Viterbi over arrays: forward with the beam, backward with the lattice beam, so
that every kept arc lies on a path within the lattice beam of the best. Lattice states remember the
graph state behind them, which makes unions of lattices exact. kaldi-decoder's lattice decoder is
the reference in tests; it holds Python's lock while it works and forgets graph states.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from seqtrain import extras
from seqtrain.fsa.fsa import NEG_INF
from seqtrain.graphs.hlg import DecodingGraph
from seqtrain.lattices import native
from seqtrain.lattices.lattice import Lattice, LatticeError

_NONE = np.float32(NEG_INF)
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class SearchGraph:
    """A decoding graph as arrays: emitting and epsilon arcs, each sorted by source.

    Attributes:
      emitting, epsilon: the two kinds of arcs.
      level: i32[S], length of the longest epsilon path that ends in a state.
      start: the start state.
      final: f32[S], final log-weights.
      words: word names by label.
      num_pdfs: columns of the matrices to search.
      origin: i32[S], the state of the graph that this one is a constrained part of; else its own.
    """

    emitting: Arcs
    epsilon: Arcs
    level: np.ndarray
    start: int
    final: np.ndarray
    words: tuple[str, ...]
    num_pdfs: int
    origin: np.ndarray

    @classmethod
    def of(cls, graph: DecodingGraph) -> SearchGraph:
        """Takes over a decoding graph.

        Raises:
          LatticeError: the graph has a cycle of epsilons.
        """
        kaldifst = extras.load('kaldifst')

        rows = [
            (state, arc.nextstate, arc.ilabel - 1, arc.olabel, -arc.weight.value)
            for state in range(graph.fst.num_states)
            for arc in kaldifst.ArcIterator(graph.fst, state)
        ]
        final = np.array([-graph.fst.final(s).value for s in range(graph.fst.num_states)])
        return cls.from_arcs(
            np.array(rows, np.float64), final, graph.fst.start, graph.words, graph.num_pdfs
        )

    @classmethod
    def from_arcs(cls, rows, final, start, words, num_pdfs, origin=None) -> SearchGraph:
        """From rows (src, dst, pdf or −1, word, log-weight) f64[A, 5] and final weights."""
        rows = np.unique(rows, axis=0)  # an arc that stands twice is one
        emitting = rows[:, 2] >= 0
        epsilon = Arcs.of(rows[~emitting], len(final))
        return cls(
            emitting=Arcs.of(rows[emitting], len(final)),
            epsilon=epsilon,
            level=_levels(epsilon, len(final)),
            start=start,
            final=np.asarray(final, np.float32),
            words=tuple(words),
            num_pdfs=num_pdfs,
            origin=np.arange(len(final), dtype=np.int32) if origin is None else origin,
        )

    @property
    def num_states(self) -> int:
        return len(self.final)

    @functools.cached_property
    def epsilon_sources(self) -> list[np.ndarray]:
        """States with epsilon arcs, in groups of rising level: no group leads into itself."""
        sources = np.unique(self.epsilon.src)
        level = self.level[sources]
        return [sources[level == depth] for depth in range(int(level.max(initial=-1)) + 1)]

    @functools.cached_property
    def epsilon_rises(self) -> bool:
        """Whether an epsilon arc can make a path better: a back-off weight above 0."""
        return bool((self.epsilon.weight > 0).any())


@dataclasses.dataclass(frozen=True, eq=False)
class Arcs:
    """Arcs sorted by source; those of state s are first[s] .. first[s+1]."""

    first: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    pdf: np.ndarray
    word: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, num_states: int) -> Arcs:
        order = np.argsort(rows[:, 0], kind='stable')
        src, dst, pdf, word = np.ascontiguousarray(rows[order, :4].T, np.int32)
        first = np.searchsorted(src, np.arange(num_states + 1)).astype(np.int64)
        return cls(first, src, dst, pdf, word, rows[order, 4].astype(np.float32))

    def leaving(self, states: np.ndarray) -> np.ndarray:
        """Indices of all arcs that leave the given states."""
        counts = self.first[states + 1] - self.first[states]
        ends = np.cumsum(counts)
        offsets = np.repeat(self.first[states] - (ends - counts), counts)
        return offsets + np.arange(ends[-1] if len(ends) else 0)


@dataclasses.dataclass(frozen=True)
class _Frame:
    """What the forward pass keeps between two frames: epsilon arcs, then arcs into the next.

    Attributes:
      states, alpha: active states and the best log-weight of a path to each.
      epsilon, emitting: arc indices.
    """

    states: np.ndarray
    alpha: np.ndarray
    epsilon: np.ndarray
    emitting: np.ndarray


def search(
    graph: SearchGraph,
    log_likelihoods: np.ndarray,
    *,
    beam: float,
    lattice_beam: float,
    max_active: int = 7000,
    acoustic_scale: float = 1.0,
    backend: str = 'auto',
) -> Lattice | None:
    """One utterance's lattice, or None where no path within the beam ends in a final state.

    Args:
      graph: what to search.
      log_likelihoods: f32[T, P], T > 0, finite or −inf.
      beam: a state worse than the frame's best by more is dropped.
      lattice_beam: an arc is kept if its best path is within this of the best path of all.
      max_active: states that survive a frame at most.
      acoustic_scale: factor on the matrix.
      backend: 'auto' (C++ where it is built), 'native' or 'numpy', the reference.
    """
    scores = np.asarray(log_likelihoods, np.float32)
    if backend == 'native' or (backend == 'auto' and native.load() is not None):
        columns = native.search(
            graph,
            scores,
            beam=beam,
            lattice_beam=lattice_beam,
            max_active=max_active,
            acoustic_scale=acoustic_scale,
        )
        if columns is None:
            return None
        columns['graph_state'] = graph.origin[columns['graph_state']]
        return Lattice(**columns, words=graph.words, acoustic_scale=acoustic_scale)
    # A constant of a frame is in all paths. Left in, it would take the digits of what differs.
    scaled = scores * np.float32(acoustic_scale)
    top = scaled.max(axis=1, keepdims=True, initial=NEG_INF)
    scaled -= np.where(np.isfinite(top), top, np.float32(0))
    frames = _forward(graph, scaled, beam, max_active)
    last = frames[-1]
    best = np.max(last.alpha + graph.final[last.states], initial=NEG_INF)
    if not np.isfinite(best):
        return None
    slack = _ROUNDING * max(1.0, abs(float(best)))  # the best path itself must not be lost
    kept = _backward(graph, scaled, frames, float(best) - lattice_beam - slack)
    return _assemble(graph, scores, kept, acoustic_scale)


def _forward(graph: SearchGraph, scaled, beam: float, max_active: int) -> list[_Frame]:
    alpha = np.full(graph.num_states, _NONE)
    alpha[graph.start] = 0.0
    result = []
    for scores in [*scaled, None]:
        _pass_epsilons(graph, alpha)
        states = _prune(graph, alpha, beam, max_active)
        values = alpha[states]
        alpha[:] = _NONE
        alpha[states] = values
        epsilon = graph.epsilon.leaving(states)
        epsilon = epsilon[alpha[graph.epsilon.dst[epsilon]] > _NONE]
        if scores is None or not len(states):
            result.append(_Frame(states, values, epsilon, np.zeros(0, np.int64)))
            break
        arcs = graph.emitting.leaving(states)
        reached = (
            alpha[graph.emitting.src[arcs]]
            + graph.emitting.weight[arcs]
            + scores[graph.emitting.pdf[arcs]]
        )
        keep = reached > np.max(reached, initial=NEG_INF) - beam
        arcs, reached = arcs[keep], reached[keep]
        result.append(_Frame(states, values, epsilon, arcs))
        alpha[:] = _NONE
        np.maximum.at(alpha, graph.emitting.dst[arcs], reached)
    return result


def _pass_epsilons(graph: SearchGraph, alpha: np.ndarray) -> None:
    """Carries `alpha` along epsilon arcs, in place, the arcs of shallow states first."""
    for states in graph.epsilon_sources:
        arcs = graph.epsilon.leaving(states[alpha[states] > _NONE])
        value = alpha[graph.epsilon.src[arcs]] + graph.epsilon.weight[arcs]
        np.maximum.at(alpha, graph.epsilon.dst[arcs], value)


def _prune(graph: SearchGraph, alpha: np.ndarray, beam: float, max_active: int) -> np.ndarray:
    """States within the beam of the best one, at most `max_active` (and equals of the last).

    Also those through which epsilon arcs lead on the best path to one of them: where back-off
    weights are above 0 they can be worse than what follows.
    """
    states = np.flatnonzero(alpha > _NONE)
    values = alpha[states]
    threshold = np.max(values, initial=NEG_INF) - beam
    if len(values) > max_active:
        threshold = max(threshold, np.partition(values, -max_active)[-max_active])
    kept = alpha >= max(threshold, np.finfo(np.float32).min)
    for sources in reversed(graph.epsilon_sources) if graph.epsilon_rises else ():
        arcs = graph.epsilon.leaving(sources[alpha[sources] > _NONE])
        src, dst = graph.epsilon.src[arcs], graph.epsilon.dst[arcs]
        kept[src[kept[dst] & (alpha[src] + graph.epsilon.weight[arcs] >= alpha[dst])]] = True
    return np.flatnonzero(kept)


def _backward(graph: SearchGraph, scaled, frames: list[_Frame], threshold: float):
    """Arcs within the lattice beam, per frame: (epsilon arcs, emitting arcs)."""
    beta = np.full(graph.num_states, _NONE)
    alpha = np.full(graph.num_states, _NONE)
    last = frames[-1].states
    beta[last] = graph.final[last]
    kept = []
    for time in range(len(frames) - 1, -1, -1):
        frame = frames[time]
        alpha[:] = _NONE
        alpha[frame.states] = frame.alpha
        emitting = frame.emitting
        if time < len(scaled):
            src = graph.emitting.src[emitting]
            onwards = (
                graph.emitting.weight[emitting]
                + scaled[time][graph.emitting.pdf[emitting]]
                + beta[graph.emitting.dst[emitting]]
            )
            emitting = emitting[alpha[src] + onwards >= threshold]
            beta[:] = _NONE
            np.maximum.at(beta, src, onwards)
        epsilon = frame.epsilon
        _back_epsilons(graph, beta, epsilon)
        through = (
            alpha[graph.epsilon.src[epsilon]]
            + graph.epsilon.weight[epsilon]
            + beta[graph.epsilon.dst[epsilon]]
        )
        kept.append((epsilon[through >= threshold], emitting))
    return kept[::-1]


def _back_epsilons(graph: SearchGraph, beta: np.ndarray, arcs: np.ndarray) -> None:
    """Carries `beta` back along epsilon arcs, in place, deepest arcs first."""
    level = graph.level[graph.epsilon.dst[arcs]]
    for depth in range(int(level.max(initial=0)), 0, -1):
        now = arcs[level == depth]
        value = graph.epsilon.weight[now] + beta[graph.epsilon.dst[now]]
        np.maximum.at(beta, graph.epsilon.src[now], value)


def _assemble(graph: SearchGraph, scores, kept, acoustic_scale: float) -> Lattice:
    """Numbers (time, graph state) pairs in topological order and gathers the arcs."""
    size = graph.num_states
    columns: dict[str, list[np.ndarray]] = {
        n: [] for n in ('src', 'dst', 'pdf', 'word', 'graph', 'acoustic')
    }
    for time, (epsilon, emitting) in enumerate(kept):
        for arcs, table, moved in ((epsilon, graph.epsilon, 0), (emitting, graph.emitting, 1)):
            columns['src'].append(_key(graph, table.src[arcs], time))
            columns['dst'].append(_key(graph, table.dst[arcs], time + moved))
            columns['pdf'].append(table.pdf[arcs] if moved else np.full(len(arcs), -1))
            columns['word'].append(table.word[arcs])
            columns['graph'].append(table.weight[arcs])
            taken = scores[time][table.pdf[arcs]] if moved and len(arcs) else np.zeros(len(arcs))
            columns['acoustic'].append(taken)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    keys = np.unique(np.concatenate([joined['src'], joined['dst']]))
    src, dst = np.searchsorted(keys, joined['src']), np.searchsorted(keys, joined['dst'])
    order = np.argsort(src, kind='stable')
    depth = int(graph.level.max(initial=0)) + 1
    states, times = keys % size, keys // (size * depth)
    final = np.where(times == len(scores), graph.final[states], NEG_INF)
    return Lattice(
        time=times,
        src=src[order],
        dst=dst[order],
        pdf=joined['pdf'][order],
        word=joined['word'][order],
        graph=joined['graph'][order],
        acoustic=joined['acoustic'][order],
        final=final,
        words=graph.words,
        acoustic_scale=acoustic_scale,
        graph_state=graph.origin[states],
    ).select(np.ones(len(src), bool))


def _key(graph: SearchGraph, states: np.ndarray, time: int) -> np.ndarray:
    """Numbers that sort states by time, then epsilon level, then graph state."""
    depth = int(graph.level.max(initial=0)) + 1
    return (np.int64(time) * depth + graph.level[states]) * graph.num_states + states


def _levels(epsilon: Arcs, num_states: int) -> np.ndarray:
    level = np.zeros(num_states, np.int32)
    for depth in range(1, num_states + 2):
        before = epsilon.dst[level[epsilon.src] == depth - 1]
        if not len(before):
            return level
        level[before] = np.maximum(level[before], depth)
        if depth > num_states:
            break
    raise LatticeError('The graph has a cycle of epsilon arcs; remove epsilons first.')


@functools.lru_cache(maxsize=8)
def compiled(graph: DecodingGraph) -> SearchGraph:
    """`SearchGraph.of` the graph, made once."""
    return SearchGraph.of(graph)
