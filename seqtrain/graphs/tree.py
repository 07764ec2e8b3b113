"""Phonetic decision trees: which contexts of a phone's state share a pdf.

Grown from alignments by likelihood gain under diagonal Gaussians (Young, Odell and Woodland 1994);
the questions are phone clusters found in the same data, not written by hand.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from seqtrain.graphs.alignment import segments
from seqtrain.graphs.tied import TiedTopology
from seqtrain.graphs.topology import NONE, Topology

_VARIANCE_FLOOR = 1e-3  # features are normalised to variance about 1

Context = tuple[int, int]
"""(left, right) neighbour."""


@dataclasses.dataclass
class ContextStatistics:
    """Sufficient statistics of features per context-independent pdf and context.

    Attributes:
      topology: the context-independent topology of the alignments.
      sums: by pdf and context the row (frames, Σx [F], Σx² [F]).
    """

    topology: Topology
    sums: dict[int, dict[Context, np.ndarray]] = dataclasses.field(default_factory=dict)

    def add(self, features: np.ndarray, pdfs: Sequence[int] | np.ndarray) -> None:
        """Adds an utterance: f[T, F] features and their alignment i[T] (ends at −1 or at T).

        Raises:
          ValueError: more aligned frames than features.
        """
        features = np.asarray(features, np.float64)
        pdfs = np.asarray(pdfs)
        if (pdfs >= 0).sum() > len(features):
            raise ValueError(f'{(pdfs >= 0).sum()} aligned frames, {len(features)} of features.')
        parts = segments(pdfs, self.topology)
        around = [NONE, *(part.phone for part in parts), NONE]
        for part, left, right in zip(parts, around, around[2:], strict=False):
            frames = slice(part.start, part.start + part.frames)
            rows = np.concatenate(
                [np.ones((part.frames, 1)), features[frames], features[frames] ** 2], axis=1
            )
            for pdf in np.unique(pdfs[frames]).tolist():
                total = rows[pdfs[frames] == pdf].sum(axis=0)
                table = self.sums.setdefault(pdf, {})
                table[left, right] = table.get((left, right), 0.0) + total

    def by_phone(self) -> np.ndarray:
        """f64[P, 1+2F]: statistics of every phone, contexts and states pooled."""
        if not self.sums:
            raise ValueError('No statistics: add aligned utterances first.')
        width = len(next(iter(next(iter(self.sums.values())).values())))
        result = np.zeros((self.topology.num_phones, width))
        phones = self.topology.phone_of_pdf()
        for pdf, table in self.sums.items():
            result[phones[pdf]] += sum(table.values())
        return result


def grow(
    statistics: ContextStatistics,
    *,
    context: str = 'left',
    num_pdfs: int = 500,
    min_frames: float = 100.0,
    min_gain: float = 50.0,
    untied: Iterable[int] = (0,),
) -> TiedTopology:
    """Grows one tree per context-independent pdf, always splitting where most is gained.

    Args:
      statistics: from alignments of the training set.
      context: 'left' for biphones, 'both' for triphones.
      num_pdfs: stop when there are so many (one per tree at least).
      min_frames: of each side of a split.
      min_gain: log-likelihood a split must gain.
      untied: phones that keep their context-independent pdfs: silence.

    Returns:
      The tied topology; a context that was never seen has the pdf its answers lead to.
    """
    if context not in ('left', 'both'):
        raise ValueError(f'context={context!r}; choose left or both.')
    base = statistics.topology
    questions = phone_questions(statistics)
    sides = (0,) if context == 'left' else (0, 1)
    kept = set(untied)
    phones = base.phone_of_pdf()
    leaves: list[_Leaf] = []
    queue: list[tuple[float, int, _Split]] = []
    pushed = itertools.count()  # of equal gains the first comes first

    def consider(leaf: _Leaf) -> None:
        leaves.append(leaf)
        if phones[leaf.pdf] in kept:
            return
        split = _best_split(leaf, questions, sides, min_frames)
        if split is not None and split.gain >= min_gain:
            heapq.heappush(queue, (-split.gain, next(pushed), split))

    for pdf in range(base.num_pdfs):
        table = statistics.sums.get(pdf, {})
        consider(_Leaf(pdf, dict(sorted(table.items())), ()))
    while queue and len(leaves) < num_pdfs:
        split = heapq.heappop(queue)[2]
        leaves.remove(split.leaf)
        for side in split.parts():
            consider(side)
    return _to_topology(base, leaves, context)


def phone_questions(statistics: ContextStatistics) -> list[frozenset[int]]:
    """Sets of phones to ask about: every cluster of a bottom-up clustering of the phones.

    Phones are merged in the order of least loss of likelihood; every set that occurs on the way,
    single phones included, is a question. The utterance's end (NONE) is one, alone and with
    silence.
    """
    rows = statistics.by_phone()
    clusters = [(frozenset([p]), row) for p, row in enumerate(rows) if row[0] > 0]
    found = [members for members, _ in clusters]
    while len(clusters) > 2:
        values = np.stack([row for _, row in clusters])
        single = _log_likelihood(values)
        merged = _log_likelihood(values[:, None] + values[None])
        loss = single[:, None] + single[None] - merged
        np.fill_diagonal(loss, np.inf)
        a, b = sorted(np.unravel_index(np.argmin(loss), loss.shape))
        union = (clusters[a][0] | clusters[b][0], clusters[a][1] + clusters[b][1])
        clusters = [c for i, c in enumerate(clusters) if i not in (a, b)] + [union]
        found.append(union[0])
    ends = [frozenset([NONE]), frozenset([NONE, 0])]
    return list(dict.fromkeys([*found, *ends]))


@dataclasses.dataclass(eq=False)
class _Leaf:
    """A tied pdf: its contexts with their statistics and the answers that lead here."""

    pdf: int
    contexts: dict[Context, np.ndarray]
    path: tuple[tuple[int, frozenset[int], bool], ...]


@dataclasses.dataclass
class _Split:
    """The best question of a leaf: is the neighbour on `side` (0 left, 1 right) in the set?"""

    leaf: _Leaf
    gain: float
    side: int
    question: frozenset[int]

    def parts(self) -> list[_Leaf]:
        return [
            _Leaf(
                self.leaf.pdf,
                {
                    c: row
                    for c, row in self.leaf.contexts.items()
                    if (c[self.side] in self.question) == answer
                },
                (*self.leaf.path, (self.side, self.question, answer)),
            )
            for answer in (True, False)
        ]


def _best_split(
    leaf: _Leaf, questions: Sequence[frozenset[int]], sides: Sequence[int], min_frames: float
) -> _Split | None:
    if len(leaf.contexts) < 2:
        return None
    rows = np.stack(list(leaf.contexts.values()))
    total = rows.sum(axis=0)
    best: _Split | None = None
    for side in sides:
        answers = np.array([[c[side] in q for c in leaf.contexts] for q in questions], float)
        yes = answers @ rows
        no = total - yes
        gains = _log_likelihood(yes) + _log_likelihood(no) - _log_likelihood(total)
        gains[(yes[:, 0] < min_frames) | (no[:, 0] < min_frames)] = -np.inf
        index = int(np.argmax(gains))
        if np.isfinite(gains[index]) and (best is None or gains[index] > best.gain):
            best = _Split(leaf, float(gains[index]), side, questions[index])
    return best


def _log_likelihood(rows: np.ndarray) -> np.ndarray:
    """Log-likelihood of pooled frames under their own diagonal Gaussian; 0 for no frames.

    −N/2 · Σ_f (1 + log 2π + log σ²_f), with σ² floored.
    """
    count = np.maximum(rows[..., :1], 1e-10)
    num_features = (rows.shape[-1] - 1) // 2
    mean = rows[..., 1 : 1 + num_features] / count
    variance = rows[..., 1 + num_features :] / count - mean**2
    log_variance = np.log(np.maximum(variance, _VARIANCE_FLOOR))
    return -0.5 * rows[..., 0] * (1 + np.log(2 * np.pi) + log_variance).sum(axis=-1)


def _to_topology(base: Topology, leaves: list[_Leaf], context: str) -> TiedTopology:
    """Numbers the leaves and fills the table of every context, seen or not."""
    size = base.num_phones + 1
    rights = size if context == 'both' else 1
    maps: dict[int, np.ndarray] = {}
    for number, leaf in enumerate(sorted(leaves, key=lambda leaf: leaf.pdf)):
        inside = np.ones((size, rights), bool)
        for side, question, answer in leaf.path:
            member = np.isin(np.arange(size) - 1, list(question)) == answer
            inside &= member[:, None] if side == 0 else member[None, :]
        maps.setdefault(leaf.pdf, np.zeros((size, rights), np.int32))[inside] = number
    own = np.stack([base.forward, base.loop], axis=2)
    table = np.stack([maps[pdf] for pdf in own.reshape(-1).tolist()])
    return TiedTopology.from_table(base, table.reshape(*own.shape, size, rights))
