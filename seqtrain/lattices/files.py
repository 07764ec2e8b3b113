"""Lattice archives in Kaldi's text form: state-level lattices written, compact ones read as well.

An utterance id on a line, then arcs and final states, then an empty line; costs are −log, acoustic
costs unscaled. `lattice-copy --write-compact=false ark:- ark,t:-` writes arcs as
`src dst in out graph,acoustic`; without the option a compact lattice has `src dst word
graph,acoustic,in_in_in`. Input labels are pdf+1 here; Kaldi's are transition ids and need a map.
OpenFst files are the business of `seqtrain.lattices.openfst`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from seqtrain.fsa import openfst
from seqtrain.fsa.fsa import NEG_INF, FsaError
from seqtrain.lattices.lattice import EPSILON, Lattice, LatticeError
from seqtrain.lattices.operations import topological
from seqtrain.textfile import read_lines


def write_archive(path: str | os.PathLike, lattices: Mapping[str, Lattice]) -> None:
    """Writes lattices by utterance id, sorted by id."""
    with pathlib.Path(path).open('w', encoding='utf-8') as file:
        for utterance, lattice in sorted(lattices.items()):
            file.write(f'{utterance} \n')
            file.writelines(_lines(lattice))
            file.write('\n')


def read_archive(
    path: str | os.PathLike,
    words: Sequence[str],
    *,
    acoustic_scale: float = 1.0,
    pdf_of_label: Sequence[int] | None = None,
    num_pdfs: int | None = None,
) -> dict[str, Lattice]:
    """Reads lattices, state-level or compact, by utterance id.

    Args:
      path: the archive.
      words: the word table; index 0 is epsilon.
      acoustic_scale: for the lattices.
      pdf_of_label: the pdf of every input label (`show-transitions` lists Kaldi's); entry 0 is not
        used. By default a label is a pdf+1. A compact arc's weight goes to its first frame.
      num_pdfs: of the model, where it is known: lattices of another one are refused.

    Raises:
      LatticeError: names file and line of what is malformed, or of the lattice that is not valid.
      FileNotFoundError: there is no such file.
    """
    path = pathlib.Path(path)
    result: dict[str, Lattice] = {}
    block: list[tuple[int, list[str]]] = []
    utterance, start = '', 0
    if b'\0' in path.read_bytes():
        raise LatticeError(
            f'{path}: not text; Kaldi writes binary archives as text to `ark,t:{path}`.'
        )
    lines = read_lines(path, LatticeError)
    for number, line in enumerate([*lines, ''], start=1):
        fields = line.split()
        if fields and not utterance:
            if len(fields) != 1:
                raise LatticeError(f'{path}:{number}: expected an utterance id, found {line!r}.')
            utterance, start = fields[0], number
            if utterance in result:
                raise LatticeError(f'{path}:{number}: utterance {utterance!r} is there twice.')
        elif fields:
            block.append((number, fields))
        elif utterance:
            if not block:
                raise LatticeError(f'{path}:{start}: utterance {utterance!r} has an empty lattice.')
            lattice = _parse(path, block, tuple(words), acoustic_scale, pdf_of_label)
            try:
                result[utterance] = by_time(lattice).validate(num_pdfs)
            except LatticeError as error:
                raise LatticeError(f'{path}:{start}: utterance {utterance!r}: {error}') from None
            utterance, block = '', []
    return result


def _lines(lattice: Lattice):
    rows = zip(
        lattice.src.tolist(),
        lattice.dst.tolist(),
        lattice.pdf.tolist(),
        lattice.word.tolist(),
        lattice.graph.tolist(),
        lattice.acoustic.tolist(),
        strict=True,
    )
    for src, dst, pdf, word, graph, acoustic in rows:
        yield f'{src} {dst} {pdf + 1} {word} {_cost(graph)},{_cost(acoustic)}\n'
    for state in np.flatnonzero(np.isfinite(lattice.final)).tolist():
        yield f'{state} {_cost(lattice.final[state])},0\n'


@dataclasses.dataclass
class _Rows:
    """Arcs (src, dst, in, out, graph, acoustic) and final states of a lattice, as they are read.

    States are numbered as they appear: the first line's is the start, as Kaldi reads it, and 0.

    Attributes:
      where: file and line of the line at hand.
      num_lines: of the lattice.
      form: 'state-level' or 'compact', and the place of the first line that told.
    """

    where: str
    num_lines: int
    arcs: list[tuple[float, ...]] = dataclasses.field(default_factory=list)
    finals: dict[int, float] = dataclasses.field(default_factory=dict)
    numbers: dict[object, int] = dataclasses.field(default_factory=dict)
    form: tuple[str, str] = ('', '')

    def add(self, fields: list[str]) -> None:
        """Takes over one line; ValueError where it is none of the forms."""
        if len(fields) > 5:
            raise ValueError(f'{len(fields)} fields')
        compact_arc = len(fields) == 3 or (len(fields) == 4 and ',' in fields[3])
        place = 1 if len(fields) < 3 else 3 if compact_arc else 4  # of the weight
        graph, acoustic, labels = _weights(fields[place:])
        if place == 4 and labels is not None:
            raise ValueError('input labels in a weight beside an input label')
        if len(fields) == 4 and compact_arc and labels is None:
            raise ValueError(f'no input labels in {fields[3]!r}')
        if len(fields) > 1:
            self._check_form('compact' if compact_arc or labels is not None else 'state-level')
        src = self._state(fields[0])
        if place == 1:
            self._end(src, graph, acoustic, labels or [])
            return
        dst, word = self._state(fields[1]), _label(fields[place - 1])
        if compact_arc:
            self._chain(src, dst, labels or [0], word, graph, acoustic)
        else:
            self.arcs.append((src, dst, _label(fields[2]), word, graph, acoustic))

    def _end(self, state: int, graph: float, acoustic: float, labels: list[int]) -> None:
        if state in self.finals:
            raise ValueError('a state is made final a second time')
        self.finals[state] = graph
        if labels or acoustic:  # an arc keeps the acoustic weight apart, where `rescore` finds it
            end = self._between()
            self._chain(state, end, labels or [0], 0, graph, acoustic)
            self.finals[state], self.finals[end] = NEG_INF, 0.0

    def _chain(self, src, dst, labels: list[int], word: int, graph: float, acoustic: float) -> None:
        """One arc per input label; word and weights stand on the first."""
        states = [src, *(self._between() for _ in labels[1:]), dst]
        for position, label in enumerate(labels):
            first = (word, graph, acoustic) if position == 0 else (0, 0.0, 0.0)
            self.arcs.append((states[position], states[position + 1], label, *first))

    def _check_form(self, form: str) -> None:
        """A truncated line of one form may look like a line of the other."""
        if self.form[0] not in ('', form):
            raise ValueError(f'a {form} line, but {self.form[1]} is {self.form[0]}: damaged?')
        self.form = (form, self.form[1] or self.where)

    def _state(self, text: str) -> int:
        state = openfst.state_number(text, self.where, self.num_lines)
        return self.numbers.setdefault(state, len(self.numbers))

    def _between(self) -> int:
        """A state in the middle of a compact arc, or behind the labels of a final weight."""
        return self.numbers.setdefault(object(), len(self.numbers))


def _parse(
    path: pathlib.Path,
    block: list[tuple[int, list[str]]],
    words: tuple[str, ...],
    acoustic_scale: float,
    pdf_of_label: Sequence[int] | None,
) -> Lattice:
    rows = _Rows('', len(block))
    for number, fields in block:
        rows.where = f'{path}:{number}'
        try:
            rows.add(fields)
        except FsaError as error:
            raise LatticeError(str(error)) from None
        except ValueError as error:
            raise LatticeError(
                f'{rows.where}: {error}; lines are `src dst in out graph,acoustic`, '
                f'`src dst word graph,acoustic,in_in` or `state graph,acoustic` (weights of 0 may '
                f'be left out).'
            ) from None
    final = np.full(len(rows.numbers), NEG_INF)
    final[list(rows.finals)] = list(rows.finals.values())
    where = f'{path}:{block[0][0]}'
    return assemble(where, rows.arcs, final, words, acoustic_scale, pdf_of_label)


def assemble(
    where: str,
    rows: Sequence[tuple[float, ...]],
    final: np.ndarray,
    words: tuple[str, ...],
    acoustic_scale: float = 1.0,
    pdf_of_label: Sequence[int] | None = None,
) -> Lattice:
    """A lattice of the arcs of a file, whose states are in no order but for the start, 0.

    Arcs of infinite cost are left out, and those that no path from the start reaches.

    Args:
      where: for sentences.
      rows: (src, dst, input label, word, graph, acoustic) of every arc.
      final: f[S].
      words, acoustic_scale, pdf_of_label: see `read_archive`.

    Raises:
      LatticeError: no arcs, a label without pdf, or no times that fit all paths.
    """
    arcs = [arc for arc in rows if arc[4] + arc[5] != NEG_INF]
    if not arcs:
        raise LatticeError(f'{where}: a lattice without arcs.')
    src, dst, ilabel, word, graph, acoustic = np.array(arcs, np.float64).T
    src, dst, ilabel = (column.astype(np.int64) for column in (src, dst, ilabel))
    if pdf_of_label is None:
        pdf = ilabel - 1
    elif ilabel.max() >= len(pdf_of_label):
        raise LatticeError(f'{where}: input label {ilabel.max()} has no pdf.')
    else:
        pdf = np.where(ilabel > 0, np.asarray(pdf_of_label)[ilabel], EPSILON)
    time = _times(where, src, dst, ilabel > 0, len(final))
    order = np.argsort(src, kind='stable')
    order = order[time[src[order]] >= 0]
    return Lattice(
        time=np.maximum(time, 0),
        src=src[order],
        dst=dst[order],
        pdf=pdf[order],
        word=word[order],
        graph=graph[order],
        acoustic=acoustic[order],
        final=final,
        words=words,
        acoustic_scale=acoustic_scale,
    )


def _times(where: str, src, dst, emitting, num_states: int) -> np.ndarray:
    """Frames before each state, −1 where none of the paths from state 0 leads."""
    time = np.full(num_states, -1, np.int64)
    time[0] = 0
    for _ in range(num_states + 1):
        known = time[src] >= 0
        value = time[src[known]] + emitting[known]
        before = time.copy()
        time[dst[known]] = value
        if (time[dst[known]] != value).any():
            raise LatticeError(
                f'{where}: paths of different lengths meet, or a cycle: the lattice '
                f'is not frame-synchronous.'
            )
        if (time == before).all():
            return time
    raise LatticeError(f'{where}: the lattice has a cycle.')


def by_time(lattice: Lattice) -> Lattice:
    """Renumbers states by time and epsilon depth; drops what is on no complete path."""
    return topological(lattice).select(np.ones(lattice.num_arcs, bool))


def _weights(fields: list[str]) -> tuple[float, float, list[int] | None]:
    """Graph and acoustic log-weight (0 where left out); input labels, None of a state-level one."""
    if not fields:
        return 0.0, 0.0, None
    graph, *others = fields[0].split(',')
    if len(others) not in (1, 2) or not others[0]:
        raise ValueError(f'{fields[0]!r} is no weight')
    acoustic, *rest = others
    labels = None
    if rest:
        labels = [_label(label) for label in rest[0].split('_')] if rest[0] else []
    return 0.0 - float(graph or 0), 0.0 - float(acoustic), labels


def _label(text: str) -> int:
    label = int(text)
    if not 0 <= label <= np.iinfo(np.int32).max:
        raise ValueError(f'label {label} is out of range')
    return label


def _cost(log_weight: float) -> str:
    return 'Infinity' if log_weight == NEG_INF else format(0.0 - float(log_weight), '.9g')
