"""`LatticeGenerator`: numerator and denominator lattices of an utterance, from a network's scores.

The numerator holds the paths of the reference transcript, the denominator everything the decoding
graph prefers; the reference's paths are always added to it, so that numerator <= denominator.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seqtrain.fsa.fsa import Fsa
from seqtrain.graphs.hlg import DecodingGraph
from seqtrain.graphs.lexicon import split_words
from seqtrain.lattices.lattice import Lattice, LatticeError
from seqtrain.lattices.operations import PathSums, path_sums, prune, union
from seqtrain.lattices.search import SearchGraph, compiled, search

_LEAST_BEAM = 1e-3
# A beam is chosen to leave so much of the arcs that have room: their share is not exact.
_FILLED = 0.97


class Acceptors(NamedTuple):
    """Numerator and denominator for the devices, and the beam that they were pruned to, or inf."""

    numerator: Fsa
    denominator: Fsa
    beam: float


@dataclasses.dataclass(frozen=True)
class LatticePair:
    """Lattices of one utterance, or the reason why there are none.

    Attributes:
      numerator: paths of the reference.
      denominator: competing paths; contains the numerator.
      reason: why the utterance must be left out; empty where it need not.
      found: what the search left of the decoding graph, without the paths of the reference.
    """

    numerator: Lattice | None
    denominator: Lattice | None
    reason: str = ''
    found: Lattice | None = None

    @property
    def ok(self) -> bool:
        return not self.reason

    def to_fsas(
        self,
        max_states: int,
        max_arcs: int,
        *,
        numerator_size: tuple[int, int] | None = None,
    ) -> Acceptors:
        """Numerator and denominator as acceptors of at most the given sizes.

        For batches of one shape (`ops.pack_batch(..., num_states=, num_arcs=)`). Where they are
        larger both lattices are pruned with one beam, the widest that the room is likely to allow;
        the numerator stays inside the denominator.

        Args:
          max_states, max_arcs: of both.
          numerator_size: states and arcs of the numerator, where they are others.

        Raises:
          LatticeError: not even the best paths fit, or the pair is not `ok`.
        """
        if self.numerator is None or self.denominator is None:
            raise LatticeError(f'There are no lattices: {self.reason}.')
        wholes = self.numerator, self.denominator
        limits = numerator_size or (max_states, max_arcs), (max_states, max_arcs)
        fsas = self.numerator.to_fsa(), self.denominator.to_fsa()
        sums: list[PathSums] = []
        beam = math.inf
        while min(shares := [_share(*one) for one in zip(fsas, limits, strict=True)]) < 1:
            if beam < _LEAST_BEAM:
                sizes = [(fsa.num_states, fsa.num_arcs) for fsa in fsas]
                raise LatticeError(
                    f'Even the best paths need {sizes} states and arcs in numerator and '
                    f'denominator; allow more than {limits}.'
                )
            sums = sums or [path_sums(lattice, np.maximum) for lattice in wholes]
            beam = min(_narrower(*one, beam) for one in zip(sums, shares, strict=True))
            numerator, denominator = (
                prune(whole, beam, one) for whole, one in zip(wholes, sums, strict=True)
            )
            fsas = numerator.to_fsa(), union(denominator, numerator).to_fsa()
        return Acceptors(*fsas, beam)


def _share(fsa: Fsa, limit: tuple[int, int]) -> float:
    """The share of an acceptor that its room has place for; above 1 if all of it."""
    return min(limit[0] / fsa.num_states, limit[1] / fsa.num_arcs)


def _narrower(sums: PathSums, share: float, beam: float) -> float:
    """The beam that leaves this share of the arcs that the beam before it left."""
    if share >= 1:
        return beam
    behind = np.sort(sums.total - sums.through[np.isfinite(sums.through)])
    left = np.searchsorted(behind, beam, side='right')
    return min(float(behind[int(_FILLED * share * left)]), 0.98 * beam)


@dataclasses.dataclass(frozen=True)
class LatticeGenerator:
    """Makes lattices with one decoding graph (Kaldi: a unigram word LM for denominators).

    Attributes:
      graph: from `decoding_graph`.
      beam: of the decoding search; references are searched whole.
      lattice_beam: paths kept below the best one.
      max_active: states that survive a frame at most.
      acoustic_scale: factor on the scores in the search; kept in the lattices.
    """

    graph: DecodingGraph
    beam: float = 13.0
    lattice_beam: float = 7.0
    max_active: int = 7000
    acoustic_scale: float = 1.0

    def __post_init__(self):
        if min(self.beam, self.lattice_beam, self.acoustic_scale) <= 0 or self.max_active < 1:
            raise ValueError('beam, lattice_beam, acoustic_scale, max_active must be positive.')

    def decode(self, log_likelihoods: np.ndarray) -> Lattice | None:
        """The utterance's lattice; None where twice the beam finds no path, or no finite scores.

        Args:
          log_likelihoods: f32[T, P].
        """
        graph = compiled(self.graph)
        limits = (self.beam, self.max_active), (2 * self.beam, graph.num_states)
        return self._search(graph, log_likelihoods, *limits)

    def reference(self, log_likelihoods: np.ndarray, words: str | Sequence[str]) -> Lattice | None:
        """The lattice of the transcript's paths alone, with the decoding graph's weights.

        Searched without a beam: a language model's weight, paid at each word, makes the paths look
        best that put their words off until the frames no longer suffice for them.

        Returns:
          The lattice; None where no path fits the frames, or no finite scores.

        Raises:
          LatticeError: the graph does not accept the transcript.
        """
        graph = self._constrained(tuple(split_words(words)))
        return self._search(graph, log_likelihoods, (math.inf, graph.num_states))

    def pair(self, log_likelihoods: np.ndarray, words: str | Sequence[str]) -> LatticePair:
        """Numerator and denominator; one utterance's trouble comes back as a reason."""
        try:
            numerator = self.reference(log_likelihoods, words)
        except (LatticeError, ValueError) as error:
            return LatticePair(None, None, str(error))
        if numerator is None:
            sound = _searchable(np.asarray(log_likelihoods))
            why = 'no path of the transcript fits the frames' if sound else 'non-finite scores'
            return LatticePair(None, None, why)
        denominator = self.decode(log_likelihoods)
        if denominator is None:
            return LatticePair(None, None, 'no path within the beam')
        return LatticePair(numerator, union(denominator, numerator), found=denominator)

    def _search(
        self, graph: SearchGraph, log_likelihoods: np.ndarray, *limits: tuple[float, int]
    ) -> Lattice | None:
        """The first lattice that is found with one of the pairs (beam, states that survive)."""
        scores = np.asarray(log_likelihoods, np.float32)
        if scores.ndim != 2 or scores.shape[1] != graph.num_pdfs:
            raise LatticeError(
                f'A matrix of shape {scores.shape} for a graph of {graph.num_pdfs} pdfs.'
            )
        if not len(scores) or not _searchable(scores):
            return None
        for beam, max_active in limits:
            found = search(
                graph,
                scores,
                beam=beam,
                lattice_beam=self.lattice_beam,
                max_active=max_active,
                acoustic_scale=self.acoustic_scale,
            )
            if found is not None:
                return found
        return None

    @functools.cached_property
    def _constrained(self):
        # One transcript is searched again in every epoch; its graph is small.
        return functools.lru_cache(maxsize=4096)(functools.partial(constrain, compiled(self.graph)))


def _searchable(scores: np.ndarray) -> bool:
    """Whether scores are numbers; −inf forbids a pdf."""
    return not (np.isnan(scores).any() or (scores == np.inf).any())


def constrain(graph: SearchGraph, words: Sequence[str]) -> SearchGraph:
    """The part of a search graph that spells the given words; `origin` holds the whole's states.

    Raises:
      LatticeError: words that the graph does not know, or it does not accept the sequence.
    """
    label_of = {word: label for label, word in enumerate(graph.words)}
    if missing := [word for word in words if word not in label_of]:
        raise LatticeError(f'The graph does not have the word(s) {" ".join(sorted(missing))}.')
    labels = np.array([*(label_of[word] for word in words), -1])
    keys, rows = _product(graph, labels)
    ends = (keys // graph.num_states == len(words)) & np.isfinite(
        graph.final[keys % graph.num_states]
    )
    useful = ends.copy()
    src, dst = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64)
    while (new := useful[dst] & ~useful[src]).any():
        useful[src[new]] = True
    if not useful[0]:
        raise LatticeError(f'The graph does not accept the transcript {" ".join(words)!r}.')
    number = np.cumsum(useful) - 1
    rows = rows[useful[src] & useful[dst]]
    rows[:, :2] = number[rows[:, :2].astype(np.int64)]
    states = (keys % graph.num_states)[useful]
    final = np.where(ends[useful], graph.final[states], -np.inf)
    return SearchGraph.from_arcs(
        rows, final, 0, graph.words, graph.num_pdfs, graph.origin[states].astype(np.int32)
    )


def _product(graph: SearchGraph, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States (words so far, graph state) reached from the start, as keys, and arcs between them."""
    size = graph.num_states
    frontier = np.array([graph.start], np.int64)
    seen, keys, rows = {graph.start}, [frontier], []
    while len(frontier):
        position, state = np.divmod(frontier, size)
        reached = []
        for table in (graph.emitting, graph.epsilon):
            counts = table.first[state + 1] - table.first[state]
            arcs = table.leaving(state)
            before = np.repeat(position, counts)
            word = table.word[arcs]
            allowed = (word == 0) | (word == labels[before])
            arcs, before, word = arcs[allowed], before[allowed], word[allowed]
            after = (before + (word > 0)) * size + table.dst[arcs]
            source = before * size + table.src[arcs]
            reached.append(after)
            rows.append((source, after, table.pdf[arcs], word, table.weight[arcs]))
        new = set(np.concatenate(reached).tolist()) - seen
        frontier = np.array(sorted(new), np.int64)
        seen |= new
        keys.append(frontier)
    arcs_found = np.concatenate([np.stack(row, axis=1).astype(np.float64) for row in rows])
    found = np.concatenate(keys)
    order = np.argsort(found)
    arcs_found[:, :2] = order[np.searchsorted(found, arcs_found[:, :2], sorter=order)]
    return found, arcs_found
