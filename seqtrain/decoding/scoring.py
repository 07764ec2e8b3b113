"""Error rates of hypotheses, by jiwer; Kaldi `text` files."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from seqtrain import extras
from seqtrain.textfile import read_lines


@dataclasses.dataclass(frozen=True)
class WerResult:
    """Errors of a set of utterances against their references.

    Attributes:
      words: reference words.
      errors: insertions + deletions + substitutions.
      insertions: hypothesis words without a reference word.
      deletions: reference words without a hypothesis word.
      substitutions: words taken for others.
      missing: references without a hypothesis; their words count as deleted.
      utterances: (errors, reference words) by utterance id.
    """

    words: int
    errors: int
    insertions: int
    deletions: int
    substitutions: int
    missing: int
    utterances: Mapping[str, tuple[int, int]]

    @property
    def wer(self) -> float:
        """Errors per reference word, a fraction; 0 where there are neither, inf without words."""
        if self.words:
            return self.errors / self.words
        return float('inf') if self.errors else 0.0

    def interval(self, *, level: float = 0.95, resamples: int = 2000, seed: int = 0):
        """Bootstrap interval of the WER over utterances: (low, high), fractions.

        Utterances are drawn with replacement (Bisani and Ney 2004). A draw without reference words
        has the rate that `wer` has then. Without any error all draws are alike: then `high` is what
        n words that are right allow if each is on its own, 1 − ((1 − level)/2)^(1/n).
        """
        if self.words and not self.errors:
            return 0.0, 1 - ((1 - level) / 2) ** (1 / self.words)
        counts = np.array(list(self.utterances.values()), np.float64).reshape(-1, 2)
        errors, words = _draws(counts, resamples, seed).T
        wordless = np.where(errors > 0, np.inf, 0.0)
        rates = np.where(words > 0, errors / np.maximum(words, 1.0), wordless)
        ends = [(1 - level) / 2, (1 + level) / 2]
        if np.isfinite(rates).all():
            low, high = np.quantile(rates, ends)
        else:  # between a number and inf there is nothing to interpolate
            low, high = np.quantile(rates, ends, method='inverted_cdf')
        return float(low), float(high)

    def change(
        self, before: WerResult, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> Change:
        """Against another system on the same utterances: is the difference more than chance?

        Paired bootstrap (Bisani and Ney 2004): both have the same utterances in every draw, so that
        what is hard for both does not blur their difference.

        Raises:
          ValueError: other utterances or references than `before`, or no reference words.
        """
        names = sorted(self.utterances)
        now, then = (
            np.array([one.utterances.get(name, (0, -1)) for name in names], np.float64)
            for one in (self, before)
        )
        if len(before.utterances) != len(names) or (now[:, 1] != then[:, 1]).any():
            raise ValueError('Both must be scored against the same references.')
        if not self.words:
            raise ValueError('Without reference words there are no rates to compare.')
        both = np.stack([now[:, 0] - then[:, 0], now[:, 1]], axis=1)
        fewer, words = _draws(both, resamples, seed).T
        moved = fewer / np.maximum(words, 1.0)
        low, high = np.quantile(moved, [(1 - level) / 2, (1 + level) / 2])
        better = np.mean(moved < 0) + np.mean(moved == 0) / 2
        return Change(self.wer - before.wer, float(low), float(high), float(better))

    def __str__(self) -> str:
        return (
            f'{100 * self.wer:.2f} % [{self.errors} / {self.words}, {self.insertions} ins, '
            f'{self.deletions} del, {self.substitutions} sub]'
        )


def _draws(counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """f64[R, 2] sums of as many rows of f64[U, 2], drawn with replacement, as there are."""
    rng, size = np.random.default_rng(seed), len(counts)
    return np.array([counts[rng.integers(size, size=size)].sum(axis=0) for _ in range(resamples)])


@dataclasses.dataclass(frozen=True)
class Change:
    """What one system's error rate is beyond another's; fractions.

    Attributes:
      wer: the difference, negative where there are fewer errors.
      low, high: its bootstrap interval.
      improves: the share of draws with fewer errors, Bisani and Ney's probability of improvement;
        ties count half.
    """

    wer: float
    low: float
    high: float
    improves: float


def score_wer(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> WerResult:
    """Word error rate; give phone strings to get a phone error rate.

    Args:
      references: text by utterance id; an empty one makes every hypothesis word an insertion.
      hypotheses: text by utterance id; a missing one counts as empty.

    Raises:
      ValueError: no references, or hypotheses of utterances that are not among them.
    """
    jiwer = extras.load('jiwer')

    if not references:
        raise ValueError('No references to score against.')
    if unknown := sorted(set(hypotheses) - set(references)):
        raise ValueError(f'Hypotheses without a reference: {" ".join(unknown[:5])}.')
    insertions = deletions = substitutions = words = 0
    utterances = {}
    for utterance, reference in sorted(references.items()):
        wanted, said = reference.split(), hypotheses.get(utterance, '').split()
        length = len(wanted)
        if length:
            found = jiwer.process_words(' '.join(wanted), ' '.join(said))
            counts = (found.insertions, found.deletions, found.substitutions)
        else:  # jiwer has no rate for an empty reference
            counts = (len(said), 0, 0)
        insertions += counts[0]
        deletions += counts[1]
        substitutions += counts[2]
        words += length
        utterances[utterance] = (sum(counts), length)
    return WerResult(
        words=words,
        errors=insertions + deletions + substitutions,
        insertions=insertions,
        deletions=deletions,
        substitutions=substitutions,
        missing=len(set(references) - set(hypotheses)),
        utterances=utterances,
    )


def write_text(path: str | os.PathLike, texts: Mapping[str, str]) -> None:
    """Writes a Kaldi `text` file: `utterance word word ...`, sorted by utterance."""
    lines = [f'{utterance} {text}'.rstrip() + '\n' for utterance, text in sorted(texts.items())]
    pathlib.Path(path).write_text(''.join(lines), encoding='utf-8')


def read_text(path: str | os.PathLike) -> dict[str, str]:
    """Reads a Kaldi `text` file: words, parted by single spaces, by utterance.

    Raises:
      ValueError: names file and line of an id that is there twice, or of what is not UTF-8.
    """
    result: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        utterance, *words = line.split()
        if utterance in result:
            raise ValueError(f'{path}:{number}: utterance {utterance!r} is there twice.')
        result[utterance] = ' '.join(words)
    return result
