"""ARPA files: reading and writing of `NGramLm`. Log10 in the file, natural logs inside."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Iterable, Iterator

from seqtrain.fsa.fsa import NEG_INF
from seqtrain.graphs.ngram import BOS, EOS, NGram, NGramLm
from seqtrain.textfile import read_lines

_LOG10 = math.log(10.0)
_ZERO = -99.0  # ARPA's log10 of nothing


class ArpaError(ValueError):
    """A malformed ARPA file; the message names file and line."""


def read(path: str | os.PathLike) -> NGramLm:
    """Reads a back-off model.

    Raises:
      ArpaError: names file and line: a line that is no n-gram, a count that differs from the
        header's, an n-gram twice, a probability above 1, a context without back-off weight, a
        context that is not listed, no <s> or no </s>, no \\data\\, what is not UTF-8.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such ARPA file.')
    lines = enumerate(read_lines(path, ArpaError), start=1)
    return _Reader(path, ((n, line.strip()) for n, line in lines if line.strip())).read()


def write(model: NGramLm, path: str | os.PathLike) -> None:
    """Writes a model; reading it back gives the same probabilities to nine digits."""
    orders: list[list[NGram]] = [[] for _ in range(model.order)]
    for ngram in sorted({*model.logprobs, *model.backoffs}):
        orders[len(ngram) - 1].append(ngram)
    needed = {ngram[:-1] for ngram in model.logprobs} | set(model.backoffs)
    parts = ['\\data\\\n', *(f'ngram {n}={len(o)}\n' for n, o in enumerate(orders, start=1))]
    for n, order in enumerate(orders, start=1):
        parts.append(f'\n\\{n}-grams:\n')
        for ngram in order:
            # A context that is no n-gram of its own gets what backing off gives it.
            logprob = model.logprobs.get(ngram, model.logprob(ngram[:-1], ngram[-1]))
            fields = [_to_log10(logprob), ' '.join(ngram)]
            if ngram in needed and n < model.order:
                fields.append(_to_log10(model.backoffs.get(ngram, 0.0)))
            parts.append('\t'.join(fields) + '\n')
    parts.append('\n\\end\\\n')
    pathlib.Path(path).write_text(''.join(parts), encoding='utf-8')


class _Reader:
    """One pass over an ARPA file's lines; knows where it is for the error messages."""

    def __init__(self, path: pathlib.Path, lines: Iterable[tuple[int, str]]):
        self.path = path
        self.lines: Iterator[tuple[int, str]] = iter(lines)
        self.logprobs: dict[NGram, float] = {}
        self.backoffs: dict[NGram, float] = {}
        self.found_at: dict[NGram, int] = {}
        self.number = 0

    def read(self) -> NGramLm:
        self.number = next((number for number, line in self.lines if line == '\\data\\'), 0)
        if not self.number:
            raise ArpaError(f'{self.path}: no line \\data\\; it is no ARPA file.')
        counts: dict[int, int] = {}
        while (line := self._next()).startswith('ngram'):
            left, _, right = line.removeprefix('ngram').partition('=')
            counts[self._int(left)] = self._int(right)
        if sorted(counts) != list(range(1, len(counts) + 1)) or not counts:
            raise self._error('the header does not count n-grams of order 1, 2, ... in turn')
        for order, count in sorted(counts.items()):
            if line != f'\\{order}-grams:':
                raise self._error(f'expected \\{order}-grams: but found {line!r}')
            line = self._section(order, count, max(counts))
        if line != '\\end\\':
            raise self._error(f'expected \\end\\ but found {line!r}')
        self._check()
        return NGramLm(
            max(counts), dict(sorted(self.logprobs.items())), dict(sorted(self.backoffs.items()))
        )

    def _section(self, order: int, count: int, longest: int) -> str:
        """Reads the n-grams of one order; returns the line after them."""
        found = 0
        while not (line := self._next()).startswith('\\'):
            fields = line.split()
            if len(fields) not in (order + 1, order + 2) or (
                order == longest and len(fields) != order + 1
            ):
                raise self._error(f'{line!r} is not a {order}-gram with its log-probability')
            ngram = tuple(fields[1 : order + 1])
            if ngram in self.logprobs:
                raise self._error(f'{" ".join(ngram)!r} is there twice')
            self.found_at[ngram] = self.number
            self.logprobs[ngram] = self._log(fields[0])
            if self.logprobs[ngram] > 1e-4:
                raise self._error(f'log-probability {fields[0]} is above 0')
            if len(fields) == order + 2:
                self.backoffs[ngram] = self._log(fields[-1])
            found += 1
        if found != count:
            raise self._error(f'{found} {order}-grams, but the header says {count}')
        return line

    def _check(self) -> None:
        for symbol in (BOS, EOS):
            if (symbol,) not in self.logprobs:
                raise ArpaError(f'{self.path}: no {symbol} among the 1-grams; add it.')
        for ngram, number in self.found_at.items():
            context = ngram[:-1]
            if context and context not in self.logprobs:
                raise ArpaError(
                    f'{self.path}:{number}: the context {" ".join(context)!r} of this n-gram is '
                    f'not listed among the {len(context)}-grams.'
                )
            if context and context not in self.backoffs:
                raise ArpaError(
                    f'{self.path}:{self.found_at[context]}: {" ".join(context)!r} has no back-off '
                    f'weight but is the context of line {number}; write 0 if none is meant.'
                )

    def _next(self) -> str:
        try:
            self.number, line = next(self.lines)
        except StopIteration:
            raise self._error('the file ends before \\end\\') from None
        return line

    def _int(self, text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise self._error(f'{text.strip()!r} is not an integer') from None

    def _log(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise self._error(f'{text!r} is not a number') from None
        if math.isnan(value) or value == math.inf:
            raise self._error(f'{text} is not a log-probability')
        return NEG_INF if value <= _ZERO else value * _LOG10

    def _error(self, message: str) -> ArpaError:
        return ArpaError(f'{self.path}:{self.number}: {message}.')


def _to_log10(value: float) -> str:
    return format(max(value / _LOG10, _ZERO), '.9g')
