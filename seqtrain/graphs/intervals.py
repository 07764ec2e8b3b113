"""Alignments in seconds: phones, states and words of an alignment, agreement of two.

An interval is a label with its start and end. Frames become seconds here and nowhere else; files
are in `seqtrain.graphs.alignment_files`.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from seqtrain.graphs.alignment import Segment
from seqtrain.graphs.lexicon import Lexicon, split_words
from seqtrain.graphs.topology import Topology


@dataclasses.dataclass(frozen=True)
class Interval:
    """A label (phone, word, state) from `start_s` to `end_s`, in seconds."""

    label: str
    start_s: float
    end_s: float


@dataclasses.dataclass(frozen=True)
class FrameTimes:
    """Where output frames lie in time.

    Input frame t stands for the time from t to t+1 shifts: its window is centred in it, or, with
    `snip_edges`, begins with it, as in Kaldi. Output frame u looks at input frame k·u for
    subsampling k, and the frames between two output frames belong to the nearer one: u stands for
    the k shifts around the centre of input frame k·u. The first and the last output frame reach to
    the ends of the utterance. So with k = 3 and 10 ms frames the boundary before output frame u is
    at 30·u − 10 ms, not at 30·u.

    Attributes:
      num_frames: input frames.
      shift_s: seconds per input frame.
      subsampling: k, input frames per output frame.
    """

    num_frames: int
    shift_s: float = 0.01
    subsampling: int = 1

    def boundary_s(self, frame: int) -> float:
        """The time at which output frame `frame` begins; at the number of frames, the end."""
        if frame <= 0:
            return 0.0
        end = self.num_frames * self.shift_s
        if frame * self.subsampling >= self.num_frames:
            return round(end, 6)
        between = self.subsampling * frame - (self.subsampling - 1) / 2
        return round(between * self.shift_s, 6)

    @property
    def end_s(self) -> float:
        """The end of the utterance."""
        return self.boundary_s(self.num_frames)

    def interval(self, label: str, first: int, end: int) -> Interval:
        """A label on the output frames first, ..., end − 1."""
        return Interval(label, self.boundary_s(first), self.boundary_s(end))


def phone_intervals(
    parts: Sequence[Segment], phones: Sequence[str], times: FrameTimes
) -> list[Interval]:
    """Phones of an alignment in seconds."""
    return [
        times.interval(phones[part.phone], part.start, part.start + part.frames) for part in parts
    ]


def state_intervals(
    parts: Sequence[Segment],
    pdfs: Sequence[int] | np.ndarray,
    topology: Topology,
    phones: Sequence[str],
    times: FrameTimes,
) -> list[Interval]:
    """HMM states of an alignment in seconds, named PHONE_STATE with states from 0.

    Args:
      parts: phones of the alignment, from `segments`.
      pdfs: the alignment.
      topology: the HMMs.
      phones: names by phone id.
      times: of the frames.
    """
    slots = topology.slots()
    result = []
    for part in parts:
        states = [slots[int(pdf)][1] for pdf in pdfs[part.start : part.start + part.frames]]
        starts = [k for k, state in enumerate(states) if k == 0 or state != states[k - 1]]
        for start, end in zip(starts, [*starts[1:], len(states)], strict=True):
            name = f'{phones[part.phone]}_{states[start]}'
            result.append(times.interval(name, part.start + start, part.start + end))
    return result


@dataclasses.dataclass(frozen=True)
class WordSpan:
    """A word of an alignment: its phones are the segments first, ..., end − 1."""

    word: str
    first: int
    end: int


def spell(
    parts: Sequence[Segment], words: str | Sequence[str], lexicon: Lexicon
) -> tuple[list[Segment], list[WordSpan]]:
    """Finds the words in the phones of an alignment; their pronunciations follow from the phones.

    The 'hmm1' topology cannot tell two equal phones in a row apart, for instance where a word ends
    and the next begins with one phone: where the words cannot be spelt with a segment for every
    phone, equal phones in a row may share one, which is then cut into equal parts.

    Args:
      parts: phones of the alignment, from `segments`.
      words: the transcript.
      lexicon: pronunciations; silence (phone 0) may stand between words.

    Returns:
      The segments, one per spoken phone and silence, and the words.

    Raises:
      OovError: words without pronunciation.
      ValueError: the phones do not spell the words.
    """
    words = split_words(words)
    lexicon.check(words)
    spoken = _spell(parts, words, lexicon, shared=False)
    if spoken is None:
        spoken = _spell(parts, words, lexicon, shared=True)
    if spoken is None:
        raise ValueError(f'The phones of the alignment do not spell {" ".join(words)!r}.')
    uses = collections.Counter(itertools.chain.from_iterable(spoken))
    cut: list[Segment] = []
    places = []  # where the pieces of each segment stand, from the next that is not taken
    for k, part in enumerate(parts):
        count = max(1, uses[k])
        places.append(itertools.count(len(cut)))
        bounds = [part.start + n * part.frames // count for n in range(count + 1)]
        cut += [Segment(part.phone, a, b - a) for a, b in itertools.pairwise(bounds)]
    spans = []
    for word, phones in zip(words, spoken, strict=True):
        own = [next(places[k]) for k in phones]
        spans.append(WordSpan(word, own[0], own[-1] + 1))
    return cut, spans


_Place = tuple[int, int]
"""The next segment, and how many phones have the one before it."""


def _spell(
    parts: Sequence[Segment], words: Sequence[str], lexicon: Lexicon, *, shared: bool
) -> list[list[int]] | None:
    """The segments of each word's phones, or None. Depth first, no place is looked at twice.

    With `shared`, a phone may have the segment of an equal phone just before it, as long as there
    is a frame for each.
    """
    taken: list[list[int]] = []
    seen = set()
    ways = [_ways(parts, (0, 0), words[0], lexicon, shared)]
    while ways:
        way = next(ways[-1], None)
        if way is None:
            ways.pop()
            del taken[-1:]
            continue
        own, place = way
        if len(taken) + 1 == len(words):
            if not any(part.phone for part in parts[place[0] :]):
                return [*taken, own]
        elif (len(taken), place) not in seen:
            seen.add((len(taken), place))
            taken.append(own)
            ways.append(_ways(parts, place, words[len(taken)], lexicon, shared))
    return None


def _ways(
    parts: Sequence[Segment], place: _Place, word: str, lexicon: Lexicon, shared: bool
) -> Iterator[tuple[list[int], _Place]]:
    """The segments that a word's phones may have, after silences or none, and the place then."""
    spoken = place[0]
    while spoken < len(parts) and parts[spoken].phone == 0:
        spoken += 1
    begins = [place, *((start, 0) for start in range(place[0] + 1, spoken + 1))]
    for variant in lexicon.variants(word):
        for begin in begins:
            if way := _match(parts, begin, variant, shared):
                yield way


def _match(
    parts: Sequence[Segment], place: _Place, variant: Sequence[int], shared: bool
) -> tuple[list[int], _Place] | None:
    """The segments of a pronunciation and the place after it, None where it is another one."""
    own: list[int] = []
    position, uses = place
    for phone in variant:
        before = parts[position - 1] if position else None
        if position < len(parts) and parts[position].phone == phone:
            position, uses = position + 1, 1
        elif shared and before and before.phone == phone and uses < before.frames:
            uses += 1
        else:
            return None
        own.append(position - 1)
    return own, (position, uses)


def word_intervals(
    spans: Sequence[WordSpan], parts: Sequence[Segment], times: FrameTimes
) -> list[Interval]:
    """Words of an alignment in seconds, from what `spell` returned."""
    return [
        times.interval(
            span.word,
            parts[span.first].start,
            parts[span.end - 1].start + parts[span.end - 1].frames,
        )
        for span in spans
    ]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far boundaries of two alignments lie apart.

    Attributes:
      utterances: that both have.
      equal: those of them with the same labels from beginning to end.
      labels: labels of the given alignment, silences left out.
      matched: those of them in stretches where the found labels are the same.
      differences_s: f64[n], found minus given, of every start whose labels before and after agree,
        and of the utterance's end.
    """

    utterances: int
    equal: int
    labels: int
    matched: int
    differences_s: np.ndarray

    def within(self, tolerance_s: float) -> float:
        """Share of the boundaries that are at most this far apart (0 where there are none)."""
        if not len(self.differences_s):
            return 0.0
        return float((np.abs(self.differences_s) <= tolerance_s + 1e-9).mean())


def agreement(
    found: Mapping[str, Sequence[Interval]],
    given: Mapping[str, Sequence[Interval]],
    *,
    ignore: Iterable[str] = ('SIL',),
) -> Agreement:
    """Compares boundaries in the stretches where both alignments have the same labels.

    A boundary is the start of a label after another one, with any silence between them, or the
    utterance's first start or last end. It is compared where the labels on both its sides (the
    utterance's end is one, too) stand next to each other in both alignments.

    Args:
      found, given: intervals in order of time, by utterance.
      ignore: labels that are left out: silences.
    """
    silent = set(ignore)
    differences: list[float] = []
    equal = labels = matched = 0
    shared = sorted(set(found) & set(given))
    for utterance in shared:
        left, right = (
            [part for part in side[utterance] if part.label not in silent]
            for side in (found, given)
        )
        pairs = _same_stretches(left, right)
        labels, matched = labels + len(right), matched + len(pairs)
        equal += len(pairs) == len(left) == len(right)
        ends = {(-1, -1), (len(left), len(right))}
        known = ends | set(pairs)
        for i, j in [*pairs, (len(left), len(right))]:
            if (i - 1, j - 1) not in known or not pairs:
                continue
            if i < len(left):
                differences.append(left[i].start_s - right[j].start_s)
            else:
                differences.append(left[-1].end_s - right[-1].end_s)
    return Agreement(len(shared), equal, labels, matched, np.array(differences))


def _same_stretches(left: Sequence[Interval], right: Sequence[Interval]) -> list[tuple[int, int]]:
    """Pairs (i, j) of equal labels, growing in both, by longest common stretches."""
    names = [[part.label for part in side] for side in (left, right)]
    matcher = difflib.SequenceMatcher(None, names[0], names[1], autojunk=False)
    blocks = matcher.get_matching_blocks()
    return [(block.a + k, block.b + k) for block in blocks for k in range(block.size)]
