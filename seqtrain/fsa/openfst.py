"""OpenFst files for `Fsa`: text by a parser of our own that knows its lines, binary by kaldifst.

In files weights are costs (−log) and label k is pdf k−1; label 0 (epsilon) is an error. States keep
their numbers. Not a general FST reader: input and output labels must agree (an acceptor).
"""

from __future__ import annotations

import math
import os
import pathlib

import numpy as np

from seqtrain import extras
from seqtrain.fsa.fsa import NEG_INF, Fsa, FsaError
from seqtrain.textfile import read_lines

# A state number above this multiple of the file's lines is taken for a damaged file, not for a
# graph: the arrays would be allocated for states that nothing mentions.
_MAX_STATES_PER_LINE = 64


def read(path: str | os.PathLike) -> Fsa:
    """Reads an acceptor: `.txt` as OpenFst text, anything else as OpenFst binary.

    Raises:
      FsaError: the message holds file and line (text) or arc (binary) and what is wrong.
      FileNotFoundError: there is no such file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file.')
    fsa = _read_text(path) if path.suffix == '.txt' else _read_binary(path)
    try:
        return fsa.validate()
    except FsaError as error:
        raise FsaError(f'{path}: {error}') from None


def write(fsa: Fsa, path: str | os.PathLike) -> None:
    """Writes an acceptor: `.txt` as OpenFst text, anything else as OpenFst binary.

    OpenFst has one start state without a weight. Where `fsa` has several initial states, or one
    with a weight, a new start state with copies of their outgoing arcs is added; the weight of
    every label sequence stays the same.

    Raises:
      OSError: the file cannot be written.
    """
    path = pathlib.Path(path)
    fsa, start = with_single_start(fsa.validate())
    if path.suffix == '.txt':
        path.write_text(''.join(_text_lines(fsa, start)), encoding='utf-8')
    else:
        write_fst(to_kaldifst(fsa, start), path)


def with_single_start(fsa: Fsa) -> tuple[Fsa, int]:
    """Returns an equivalent acceptor with one initial state of log-weight 0, and that state."""
    starts = np.flatnonzero(np.isfinite(fsa.initial))
    if len(starts) == 1 and fsa.initial[starts[0]] == 0:
        return fsa, int(starts[0])
    new = fsa.num_states
    arcs = np.flatnonzero(np.isfinite(fsa.initial[fsa.src]))
    empty = np.logaddexp.reduce((fsa.initial + fsa.final)[starts])
    result = Fsa(
        src=np.concatenate([fsa.src, np.full(len(arcs), new)]),
        dst=np.concatenate([fsa.dst, fsa.dst[arcs]]),
        pdf=np.concatenate([fsa.pdf, fsa.pdf[arcs]]),
        weight=np.concatenate([fsa.weight, fsa.weight[arcs] + fsa.initial[fsa.src[arcs]]]),
        initial=np.append(np.full(new, NEG_INF), 0.0),
        final=np.append(fsa.final, empty),
    )
    return result, new


def to_kaldifst(fsa: Fsa, start: int | None = None):
    """The acceptor as a `kaldifst.StdVectorFst`: labels pdf+1, costs −log.

    Args:
      fsa: one initial state of log-weight 0, or `start=None` to have it made so.
      start: the initial state.
    """
    kaldifst = extras.load('kaldifst')

    if start is None:
        fsa, start = with_single_start(fsa)
    result = kaldifst.StdVectorFst()
    for _ in range(fsa.num_states):
        result.add_state()
    result.start = start
    rows = zip(
        fsa.src.tolist(), fsa.dst.tolist(), fsa.pdf.tolist(), fsa.weight.tolist(), strict=True
    )
    for src, dst, pdf, weight in rows:
        result.add_arc(src, kaldifst.StdArc(pdf + 1, pdf + 1, -weight, dst))
    for state in np.flatnonzero(np.isfinite(fsa.final)).tolist():
        result.set_final(state, float(-fsa.final[state]))
    return result


def from_kaldifst(graph) -> Fsa:
    """The `kaldifst.StdVectorFst` as an acceptor (not validated).

    Raises:
      FsaError: an epsilon, an arc whose labels differ, or no start state.
    """
    kaldifst = extras.load('kaldifst')

    if graph.start < 0:
        raise FsaError('The graph has no start state; it accepts nothing.')
    rows = []
    final = np.full(graph.num_states, NEG_INF)
    for state in range(graph.num_states):
        final[state] = 0.0 - graph.final(state).value
        for arc in kaldifst.ArcIterator(graph, state):
            _check_labels(arc.ilabel, arc.olabel, f'State {state}')
            rows.append((state, arc.nextstate, arc.ilabel - 1, 0.0 - arc.weight.value))
    return _assemble(rows, final, graph.start)


def read_fst(path: pathlib.Path):
    """A binary file as it is, a `kaldifst.StdVectorFst`.

    Raises:
      FsaError: damaged, or no vector FST with standard arcs.
      FileNotFoundError: there is no such file.
    """
    kaldifst = extras.load('kaldifst')

    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file.')
    # kaldifst answers a file that is no FST with a log line and None or an abort: look first.
    with path.open('rb') as file:
        magic = file.read(4)
    if magic != b'\xd6\xfd\xb2\x7e':
        raise FsaError(f'{path}: not an OpenFst binary file; give OpenFst text the ending .txt.')
    try:
        graph = kaldifst.StdVectorFst.read(str(path))
    except (RuntimeError, ValueError, MemoryError) as error:  # e.g. a count of arcs that is none
        raise FsaError(f'{path}: damaged ({error}).') from None
    if graph is None:
        raise FsaError(f'{path}: truncated, or not a vector FST with standard arcs.')
    return graph


def write_fst(fst, path: str | os.PathLike) -> None:
    """Writes a `kaldifst.StdVectorFst` as a binary file.

    Raises:
      OSError: no such folder, a full disk, ... (kaldifst itself only says so in its log).
    """
    if not fst.write(str(path)):
        raise OSError(f'{path}: could not be written; is its folder there, is the disk full?')


def _read_binary(path: pathlib.Path) -> Fsa:
    graph = read_fst(path)
    try:
        return from_kaldifst(graph)
    except FsaError as error:
        raise FsaError(f'{path}: {error}') from None


def _read_text(path: pathlib.Path) -> Fsa:
    lines = [line.split() for line in read_lines(path, FsaError)]
    if not any(lines):
        raise FsaError(f'{path}: empty file; it accepts nothing.')
    transducer = _is_transducer(lines, path)
    rows: list[tuple[int, int, int, float]] = []
    finals: dict[int, float] = {}
    start = None
    for number, fields in enumerate(lines, start=1):
        if not fields:
            continue
        where = f'{path}:{number}'
        state = state_number(fields[0], where, len(lines))
        start = state if start is None else start
        if len(fields) <= 2:
            if state in finals:
                raise FsaError(f'{where}: state {state} is made final a second time.')
            finals[state] = _log_weight(fields[1], where) if len(fields) == 2 else 0.0
            continue
        dst = state_number(fields[1], where, len(lines))
        labels, rest = (fields[2:4], fields[4:]) if transducer else (fields[2:3] * 2, fields[3:])
        ilabel, olabel = (_integer(label, where, 'label') for label in labels)
        _check_labels(ilabel, olabel, where)
        rows.append((state, dst, ilabel - 1, _log_weight(rest[0], where) if rest else 0.0))
    num_states = 1 + max([*finals, *(max(row[:2]) for row in rows)])
    final = np.full(num_states, NEG_INF)
    final[list(finals)] = list(finals.values())
    assert start is not None
    return _assemble(rows, final, start)


def _is_transducer(lines: list[list[str]], path: pathlib.Path) -> bool:
    """Tells `src dst in out [cost]` from `src dst label [cost]`; a file has one kind."""
    counts = {len(fields): number for number, fields in enumerate(lines, start=1) if fields}
    if bad := [n for n in counts if n > 5]:
        raise FsaError(f'{path}:{counts[bad[0]]}: {bad[0]} fields; an arc has 3 to 5.')
    if 3 in counts and 5 in counts:
        raise FsaError(
            f'{path}:{counts[3]}: an acceptor arc (3 fields), but line {counts[5]} is a transducer '
            f'arc (5 fields); write all arcs in one form.'
        )
    if 5 in counts:
        return True
    if 3 in counts:
        return False
    # Only four fields everywhere: `src dst in out` has two equal integers in every line.
    return all(fields[2] == fields[3] for fields in lines if len(fields) == 4)


def _assemble(rows: list, final: np.ndarray, start: int) -> Fsa:
    initial = np.full(len(final), NEG_INF)
    initial[start] = 0.0
    return Fsa.from_arcs(rows, initial, final)


def _check_labels(ilabel: int, olabel: int, where: str) -> None:
    if ilabel != olabel:
        raise FsaError(f'{where}: input label {ilabel} and output label {olabel} differ; project.')
    if ilabel <= 0:
        raise FsaError(
            f'{where}: label {ilabel}; labels are pdf+1, and epsilon (0) is not allowed: '
            f'remove epsilons first (fstrmepsilon).'
        )


def _integer(text: str, where: str, what: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise FsaError(f'{where}: {what} {text!r} is not an integer.') from None
    if abs(number) >= 1 << 31:
        raise FsaError(f'{where}: {what} {text} does not fit into 32 bits.')
    return number


def state_number(text: str, where: str, num_lines: int) -> int:
    """A state's number as it stands in a file.

    Args:
      text: the number.
      where: file and line, for the sentence.
      num_lines: of the file.

    Raises:
      FsaError: no number, a negative one, or one that so few lines do not reach.
    """
    state = _integer(text, where, 'state')
    if not 0 <= state < _MAX_STATES_PER_LINE * (num_lines + 1):
        raise FsaError(
            f'{where}: state {state} in a file of {num_lines} lines; number states from 0 upwards.'
        )
    return state


def _log_weight(text: str, where: str) -> float:
    try:
        cost = float(text)
    except ValueError:
        raise FsaError(f'{where}: weight {text!r} is not a number.') from None
    if math.isnan(cost) or cost == NEG_INF:
        raise FsaError(f'{where}: weight {text}; costs (−log) are numbers above −infinity.')
    return 0.0 - cost  # not -cost: that makes -0.0 of 0


def _text_lines(fsa: Fsa, start: int):
    # The first line's source is the start state. `.9g` gives every float32 back exactly.
    order = np.argsort(np.where(fsa.src == start, -1, fsa.src), kind='stable')
    if not np.isin(start, fsa.src):
        yield f'{start} {_cost(fsa.final[start])}\n'
    for arc in order.tolist():
        label = fsa.pdf[arc] + 1
        yield f'{fsa.src[arc]} {fsa.dst[arc]} {label} {label} {_cost(fsa.weight[arc])}\n'
    for state in np.flatnonzero(np.isfinite(fsa.final)).tolist():
        if state != start or np.isin(start, fsa.src):
            yield f'{state} {_cost(fsa.final[state])}\n'


def _cost(log_weight: float) -> str:
    return 'Infinity' if log_weight == NEG_INF else format(0.0 - float(log_weight), '.9g')
