"""Files of alignments: CTM, Praat TextGrid, Kaldi text archives of integer vectors."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from seqtrain.graphs.intervals import Interval
from seqtrain.textfile import read_lines


class CtmError(ValueError):
    """A malformed CTM file; the message names file and line."""


def write_ctm(path: str | os.PathLike, utterances: Mapping[str, Iterable[Interval]]) -> None:
    """Writes a CTM file: `utterance channel start duration label`, sorted by utterance and time."""
    lines = [
        f'{utterance} 1 {part.start_s:.3f} {part.end_s - part.start_s:.3f} {part.label}\n'
        for utterance, parts in sorted(utterances.items())
        for part in sorted(parts, key=lambda part: part.start_s)
    ]
    pathlib.Path(path).write_text(''.join(lines), encoding='utf-8')


def read_ctm(path: str | os.PathLike) -> dict[str, list[Interval]]:
    """Reads a CTM file: intervals by utterance, in the file's order.

    Raises:
      CtmError: a malformed line; names it and the file.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f'{path}: no such CTM file.')
    result: dict[str, list[Interval]] = {}
    for number, line in enumerate(read_lines(path, CtmError), start=1):
        fields = line.split()
        if not fields or line.startswith(';;'):
            continue
        try:
            utterance, _, start, duration, label = fields[:5]
            part = Interval(label, float(start), float(start) + float(duration))
            if not (math.isfinite(part.end_s) and part.end_s >= part.start_s):
                raise ValueError
        except ValueError:
            raise CtmError(
                f'{path}:{number}: {line.strip()!r} is not `utterance channel start duration '
                f'label` with times in seconds.'
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
        f'xmax = {_seconds(duration_s)}',
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
            f'        xmax = {_seconds(duration_s)}',
            f'        intervals: size = {len(filled)}',
        ]
        for index, part in enumerate(filled, start=1):
            lines += [
                f'        intervals [{index}]:',
                f'            xmin = {_seconds(part.start_s)}',
                f'            xmax = {_seconds(part.end_s)}',
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
    """Reads what `write_alignments` wrote: i32[T] by utterance.

    Raises:
      ValueError: names file and line: no vector of integers, an id twice, what is not UTF-8.
    """
    result: dict[str, np.ndarray] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        utterance, *pdfs = line.split()
        if utterance in result:
            raise ValueError(f'{path}:{number}: utterance {utterance!r} is there twice.')
        try:
            result[utterance] = np.array([int(pdf) for pdf in pdfs], np.int32)
        except (ValueError, OverflowError):
            raise ValueError(f'{path}:{number}: not a vector of 32-bit integers.') from None
    return result


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


def _seconds(time_s: float) -> str:
    """To a microsecond, whatever the length of the recording."""
    return f'{time_s:.6f}'.rstrip('0').rstrip('.')


def _quoted(text: str) -> str:
    return text.replace('"', '""')
