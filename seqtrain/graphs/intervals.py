"""Alignments in seconds: words from phones, CTM, Praat TextGrid and Kaldi `ali` files, agreement.

An interval is a label with its start and end. Frames become seconds here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from seqtrain.graphs.alignment import Segment
from seqtrain.graphs.lexicon import Lexicon, split_words


@dataclasses.dataclass(frozen=True)
class Interval:
    """A label (phone, word, state) from `start_s` to `end_s`, in seconds."""

    label: str
    start_s: float
    end_s: float


def phone_intervals(
    parts: Sequence[Segment], phones: Sequence[str], frame_shift_s: float
) -> list[Interval]:
    """Phones of an alignment; `frame_shift_s` is that of the network's output frames."""
    return [
        Interval(
            phones[part.phone],
            round(part.start * frame_shift_s, 6),
            round((part.start + part.frames) * frame_shift_s, 6),
        )
        for part in parts
    ]


def word_intervals(
    parts: Sequence[Segment], words: str | Sequence[str], lexicon: Lexicon, frame_shift_s: float
) -> list[Interval]:
    """Words of an alignment: which pronunciation each one has follows from the phones.

    Args:
      parts: phones of the alignment, from `segments`.
      words: the transcript.
      lexicon: pronunciations; silence (phone 0) may stand between words.
      frame_shift_s: seconds per output frame.

    Raises:
      OovError: words without pronunciation.
      ValueError: the phones do not spell the words. The 'hmm1' topology does that where a word ends
        and the next begins with one phone, which its alignments cannot tell apart.
    """
    words = split_words(words)
    lexicon.check(words)
    phones = [part.phone for part in parts]
    spans = _spell(phones, words, lexicon)
    if spans is None:
        raise ValueError(f'The phones of the alignment do not spell {" ".join(words)!r}.')
    result = []
    for word, (first, end) in zip(words, spans, strict=True):
        last = parts[end - 1]
        start_s = round(parts[first].start * frame_shift_s, 6)
        end_s = round((last.start + last.frames) * frame_shift_s, 6)
        result.append(Interval(word, start_s, end_s))
    return result


def _spell(
    phones: list[int], words: Sequence[str], lexicon: Lexicon
) -> list[tuple[int, int]] | None:
    """Where each word's phones stand, [first, end), or None. Depth first, dead ends remembered."""
    dead: set[tuple[int, int]] = set()

    def place(word: int, position: int) -> list[tuple[int, int]] | None:
        while position < len(phones) and phones[position] == 0:
            position += 1
        if word == len(words):
            return [] if position == len(phones) else None
        if (word, position) in dead:
            return None
        for variant in lexicon.variants(words[word]):
            end = position + len(variant)
            if tuple(phones[position:end]) == variant:
                rest = place(word + 1, end)
                if rest is not None:
                    return [(position, end), *rest]
        dead.add((word, position))
        return None

    return place(0, 0)


def write_ctm(path: str | os.PathLike, utterances: Mapping[str, Iterable[Interval]]) -> None:
    """Writes a CTM file: `utterance channel start duration label`, sorted by utterance and time."""
    lines = [
        f'{utterance} 1 {part.start_s:.3f} {part.end_s - part.start_s:.3f} {part.label}\n'
        for utterance, parts in sorted(utterances.items())
        for part in sorted(parts, key=lambda part: part.start_s)
    ]
    pathlib.Path(path).write_text(''.join(lines), encoding='utf-8')


def read_ctm(path: str | os.PathLike) -> dict[str, list[Interval]]:
    """Reads a CTM file; a malformed line is a ValueError with file and line."""
    result: dict[str, list[Interval]] = {}
    lines = pathlib.Path(path).read_text(encoding='utf-8').splitlines()
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or line.startswith(';;'):
            continue
        try:
            utterance, _, start, duration, label = fields[:5]
            part = Interval(label, float(start), float(start) + float(duration))
        except ValueError:
            raise ValueError(
                f'{path}:{number}: {line!r} is not `utterance channel start duration label`.'
            ) from None
        result.setdefault(utterance, []).append(part)
    return result


def write_textgrid(
    path: str | os.PathLike, tiers: Mapping[str, Sequence[Interval]], duration_s: float
) -> None:
    """Writes a Praat TextGrid (long text form) with one interval tier per entry.

    Args:
      path: the file.
      tiers: intervals by tier name, in order of time; gaps become empty intervals.
      duration_s: of the recording.
    """
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        '',
        'xmin = 0',
        f'xmax = {duration_s:.6g}',
        'tiers? <exists>',
        f'size = {len(tiers)}',
        'item []:',
    ]
    for number, (name, parts) in enumerate(tiers.items(), start=1):
        filled = _without_gaps(parts, duration_s)
        lines += [
            f'    item [{number}]:',
            '        class = "IntervalTier"',
            f'        name = "{_quoted(name)}"',
            '        xmin = 0',
            f'        xmax = {duration_s:.6g}',
            f'        intervals: size = {len(filled)}',
        ]
        for index, part in enumerate(filled, start=1):
            lines += [
                f'        intervals [{index}]:',
                f'            xmin = {part.start_s:.6g}',
                f'            xmax = {part.end_s:.6g}',
                f'            text = "{_quoted(part.label)}"',
            ]
    pathlib.Path(path).write_text('\n'.join(lines) + '\n', encoding='utf-8')


def write_alignments(
    path: str | os.PathLike, alignments: Mapping[str, Sequence[int] | np.ndarray]
) -> None:
    """Writes pdfs per frame as a Kaldi text archive of integer vectors: `utterance 3 3 7 ...`."""
    lines = [
        f'{utterance} {" ".join(str(int(pdf)) for pdf in pdfs)}\n'
        for utterance, pdfs in sorted(alignments.items())
    ]
    pathlib.Path(path).write_text(''.join(lines), encoding='utf-8')


def read_alignments(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads what `write_alignments` wrote: i32[T] by utterance."""
    result = {}
    lines = pathlib.Path(path).read_text(encoding='utf-8').splitlines()
    for number, line in enumerate(lines, start=1):
        utterance, _, pdfs = line.strip().partition(' ')
        if not utterance:
            continue
        try:
            result[utterance] = np.array([int(pdf) for pdf in pdfs.split()], np.int32)
        except ValueError:
            raise ValueError(f'{path}:{number}: not a vector of integers.') from None
    return result


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far boundaries of two alignments lie apart.

    Attributes:
      utterances: compared: both have them, with the same labels.
      skipped: in both, but with different labels.
      differences_s: f64[n], found minus given, of every start and of the last end.
    """

    utterances: int
    skipped: int
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
    """Compares boundaries where both alignments have the same labels, silences left out."""
    silent = set(ignore)
    differences: list[float] = []
    utterances = skipped = 0
    for utterance in sorted(set(found) & set(given)):
        left, right = (
            [part for part in side[utterance] if part.label not in silent]
            for side in (found, given)
        )
        if [part.label for part in left] != [part.label for part in right] or not left:
            skipped += 1
            continue
        utterances += 1
        differences += [a.start_s - b.start_s for a, b in zip(left, right, strict=True)]
        differences.append(left[-1].end_s - right[-1].end_s)
    return Agreement(utterances, skipped, np.array(differences))


def _without_gaps(parts: Sequence[Interval], duration_s: float) -> list[Interval]:
    filled, time = [], 0.0
    for part in parts:
        if part.start_s > time + 1e-6:
            filled.append(Interval('', time, part.start_s))
        filled.append(part)
        time = part.end_s
    if duration_s > time + 1e-6:
        filled.append(Interval('', time, duration_s))
    return filled


def _quoted(text: str) -> str:
    return text.replace('"', '""')
