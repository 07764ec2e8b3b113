"""Lattice archives in Kaldi's text form (`lattice-copy --write-compact=false ark:- ark,t:-`).

An utterance id on a line, then arcs `src dst in out graph,acoustic` and final states
`state graph,acoustic`, then an empty line; costs are −log, acoustic costs unscaled. Input labels
are pdf+1 (Kaldi has transition ids there), output labels are word numbers. OpenFst acceptors of the
pdfs are written by `lattice.to_fsa().write(path)`.
"""

from __future__ import annotations

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
    path: str | os.PathLike, words: Sequence[str], *, acoustic_scale: float = 1.0
) -> dict[str, Lattice]:
    """Reads lattices by utterance id.

    Args:
      path: the archive.
      words: the word table; index 0 is epsilon.
      acoustic_scale: for the lattices.

    Raises:
      LatticeError: names file and line of what is malformed, or the utterance whose lattice is not
        valid.
    """
    path = pathlib.Path(path)
    result: dict[str, Lattice] = {}
    block: list[tuple[int, list[str]]] = []
    utterance = ''
    lines = path.read_text(encoding='utf-8').splitlines()
    for number, line in enumerate([*lines, ''], start=1):
        fields = line.split()
        if fields and not utterance:
            if len(fields) != 1:
                raise LatticeError(f'{path}:{number}: expected an utterance id, found {line!r}.')
            utterance = fields[0]
            if utterance in result:
                raise LatticeError(f'{path}:{number}: utterance {utterance!r} is there twice.')
        elif fields:
            block.append((number, fields))
        elif utterance:
            lattice = _parse(path, block, tuple(words), acoustic_scale)
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


def _parse(
    path: pathlib.Path, block: list[tuple[int, list[str]]], words, acoustic_scale: float
) -> Lattice:
    rows: list[tuple[float, ...]] = []
    finals: dict[int, float] = {}
    for number, fields in block:
        try:
            if len(fields) in (1, 2):
                finals[int(fields[0])] = sum(_weights(fields[1:]))
            elif len(fields) in (4, 5):
                labels = [int(field) for field in fields[:4]]
                rows.append((*labels, *_weights(fields[4:])))
            else:
                raise ValueError(f'{len(fields)} fields')
        except ValueError as error:
            raise LatticeError(
                f'{path}:{number}: {error}; lines are `src dst in out graph,acoustic` or '
                f'`state graph,acoustic`.'
            ) from None
    if not rows:
        where = f'{path}:{block[0][0]}' if block else str(path)
        raise LatticeError(f'{where}: a lattice without arcs.')
    src, dst, ilabel, word, graph, acoustic = np.array(rows, np.float64).T
    src, dst = src.astype(np.int64), dst.astype(np.int64)
    num_states = 1 + int(max(src.max(), dst.max(), *finals, 0))
    order = np.argsort(src, kind='stable')
    final = np.full(num_states, NEG_INF)
    final[list(finals)] = list(finals.values())
    return Lattice(
        time=_times(path, block, src, dst, ilabel > 0, num_states),
        src=src[order],
        dst=dst[order],
        pdf=np.where(ilabel > 0, ilabel - 1, EPSILON)[order],
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


def _weights(fields: list[str]) -> tuple[float, float]:
    """(graph, acoustic) log-weights of `graph,acoustic`; both 0 where the field is left out."""
    if not fields:
        return 0.0, 0.0
    graph, _, acoustic = fields[0].partition(',')
    return 0.0 - float(graph or 0), 0.0 - float(acoustic or 0)


def _cost(log_weight: float) -> str:
    return 'Infinity' if log_weight == NEG_INF else format(0.0 - float(log_weight), '.9g')
