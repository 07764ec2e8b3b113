"""Lattice archives in Kaldi's text form: state-level lattices written, compact ones read as well.

An utterance id on a line, then arcs and final states, then an empty line; costs are −log, acoustic
costs unscaled. `lattice-copy --write-compact=false ark:- ark,t:-` writes arcs as
`src dst in out graph,acoustic`; without the option a compact lattice has `src dst word
graph,acoustic,in_in_in`. Input labels are pdf+1 here; Kaldi's are transition ids and need a map.
OpenFst acceptors of the pdfs are written by `lattice.to_fsa().write(path)`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from seqtrain.fsa.fsa import NEG_INF
from seqtrain.lattices.lattice import EPSILON, Lattice, LatticeError
from seqtrain.lattices.operations import topological


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
) -> dict[str, Lattice]:
    """Reads lattices, state-level or compact, by utterance id.

    Args:
      path: the archive.
      words: the word table; index 0 is epsilon.
      acoustic_scale: for the lattices.
      pdf_of_label: the pdf of every input label (`show-transitions` lists Kaldi's); entry 0 is not
        used. By default a label is a pdf+1. A compact arc's weight goes to its first frame.

    Raises:
      LatticeError: names file and line of what is malformed, or the utterance whose lattice is not
        valid.
    """
    path = pathlib.Path(path)
    result: dict[str, Lattice] = {}
    block: list[tuple[int, list[str]]] = []
    utterance, start = '', 0
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError:
        raise LatticeError(
            f'{path}: not text; Kaldi writes binary archives as text to `ark,t:{path}`.'
        ) from None
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
                result[utterance] = _by_time(lattice).validate()
            except LatticeError as error:
                raise LatticeError(f'{path}: utterance {utterance!r}: {error}') from None
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

    Attributes:
      fresh: first number for states in the middle of compact arcs.
    """

    fresh: int
    scale: float
    arcs: list[tuple[float, ...]] = dataclasses.field(default_factory=list)
    finals: dict[int, float] = dataclasses.field(default_factory=dict)

    def add(self, fields: list[str]) -> None:
        """Takes over one line; ValueError where it is none of the forms."""
        if len(fields) in (1, 2):
            graph, acoustic, labels = _weights(fields[1:])
            end = int(fields[0])
            if labels:  # their acoustic weight stands with them, where `rescore` finds it
                end, self.fresh = self.fresh, self.fresh + 1
                self._chain(int(fields[0]), end, labels, 0, graph, acoustic)
                graph = acoustic = 0.0
            self.finals[end] = graph + self.scale * acoustic
        elif len(fields) == 3 or (len(fields) == 4 and ',' in fields[3]):
            src, dst, word = (int(field) for field in fields[:3])
            graph, acoustic, labels = _weights(fields[3:])
            self._chain(src, dst, labels or [0], word, graph, acoustic)
        elif len(fields) in (4, 5):
            src, dst, ilabel, word = (int(field) for field in fields[:4])
            graph, acoustic, labels = _weights(fields[4:])
            if labels:
                raise ValueError('input labels in a weight beside an input label')
            self.arcs.append((src, dst, ilabel, word, graph, acoustic))
        else:
            raise ValueError(f'{len(fields)} fields')

    def _chain(self, src, dst, labels: list[int], word: int, graph: float, acoustic: float) -> None:
        """One arc per input label; word and weights stand on the first."""
        between = list(range(self.fresh, self.fresh + len(labels) - 1))
        self.fresh += len(between)
        states = [src, *between, dst]
        for position, label in enumerate(labels):
            first = (word, graph, acoustic) if position == 0 else (0, 0.0, 0.0)
            self.arcs.append((states[position], states[position + 1], label, *first))


def _parse(
    path: pathlib.Path,
    block: list[tuple[int, list[str]]],
    words: tuple[str, ...],
    acoustic_scale: float,
    pdf_of_label: Sequence[int] | None,
) -> Lattice:
    numbers = [int(f) for _, fields in block for f in fields[:2] if f.isdigit()]
    rows = _Rows(1 + max(numbers, default=0), acoustic_scale)
    for number, fields in block:
        try:
            rows.add(fields)
        except ValueError as error:
            raise LatticeError(
                f'{path}:{number}: {error}; lines are `src dst in out graph,acoustic`, '
                f'`src dst word graph,acoustic,in_in` or `state graph,acoustic` (weights of 0 may '
                f'be left out).'
            ) from None
    if not rows.arcs:
        raise LatticeError(f'{path}:{block[0][0]}: a lattice without arcs.')
    src, dst, ilabel, word, graph, acoustic = np.array(rows.arcs, np.float64).T
    src, dst, ilabel = (column.astype(np.int64) for column in (src, dst, ilabel))
    if pdf_of_label is None:
        pdf = ilabel - 1
    elif ilabel.max() >= len(pdf_of_label):
        raise LatticeError(f'{path}:{block[0][0]}: input label {ilabel.max()} has no pdf.')
    else:
        pdf = np.where(ilabel > 0, np.asarray(pdf_of_label)[ilabel], EPSILON)
    final = np.full(rows.fresh, NEG_INF)
    final[list(rows.finals)] = list(rows.finals.values())
    order = np.argsort(src, kind='stable')
    return Lattice(
        time=_times(path, block, src, dst, ilabel > 0, rows.fresh),
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


def _times(path, block, src, dst, emitting, num_states: int) -> np.ndarray:
    """Frames before each state, by walking the arcs from state 0 in topological order."""
    time = np.full(num_states, -1, np.int64)
    time[0] = 0
    for _ in range(num_states + 1):
        known = time[src] >= 0
        value = time[src[known]] + emitting[known]
        before = time.copy()
        time[dst[known]] = value
        if (time[dst[known]] != value).any():
            raise LatticeError(
                f'{path}:{block[0][0]}: paths of different lengths meet, or a cycle: the lattice '
                f'is not frame-synchronous.'
            )
        if (time == before).all():
            return np.maximum(time, 0)
    raise LatticeError(f'{path}:{block[0][0]}: the lattice has a cycle.')


def _by_time(lattice: Lattice) -> Lattice:
    """Renumbers states by time and epsilon depth; drops what is on no complete path."""
    return topological(lattice).select(np.ones(lattice.num_arcs, bool))


def _weights(fields: list[str]) -> tuple[float, float, list[int]]:
    """Graph and acoustic log-weight (0 where left out) and input labels of a weight field."""
    if not fields:
        return 0.0, 0.0, []
    graph, acoustic, labels = [*fields[0].split(','), '', ''][:3]
    return (
        0.0 - float(graph or 0),
        0.0 - float(acoustic or 0),
        [int(label) for label in labels.split('_') if label],
    )


def _cost(log_weight: float) -> str:
    return 'Infinity' if log_weight == NEG_INF else format(0.0 - float(log_weight), '.9g')
