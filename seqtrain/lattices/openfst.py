"""OpenFst binaries of lattices: transducers from pdf+1 to words, the words as their symbol table.

A standard arc has one weight, so graph and acoustic weights do not stay apart as in Kaldi's
archives (`files`). `lattice.to_fsa().write(path)` writes an acceptor of the pdfs alone.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from seqtrain import extras
from seqtrain.fsa import openfst
from seqtrain.fsa.fsa import NEG_INF, FsaError
from seqtrain.lattices.files import assemble, by_time
from seqtrain.lattices.lattice import Lattice, LatticeError


def write_openfst(path: str | os.PathLike, lattice: Lattice, *, acoustic: bool = True) -> None:
    """Writes a lattice.

    Args:
      path: the file.
      lattice: states keep their numbers; arcs of weight −inf are left out.
      acoustic: put the scaled acoustic weights on the arcs too; else only the graph's, for a
        lattice that will be rescored.

    Raises:
      OSError: the file cannot be written.
    """
    kaldifst = extras.load('kaldifst')

    fst = to_kaldifst(lattice, lattice.pdf + 1, lattice.weight if acoustic else lattice.graph)
    table = kaldifst.SymbolTable('words')
    for label, word in enumerate(lattice.words):
        table.add_symbol(word, label)
    fst.output_symbols = table
    openfst.write_fst(fst, path)


def read_openfst(path: str | os.PathLike, words: Sequence[str] | None = None) -> Lattice:
    """Reads a lattice; all weights come as graph weights, the acoustic ones are 0.

    Args:
      path: an OpenFst binary with standard arcs; input labels are pdf+1, 0 for epsilon.
      words: the word table; None takes the file's own.

    Raises:
      LatticeError: damaged, without words, or no lattice.
      FileNotFoundError: there is no such file.
    """
    kaldifst = extras.load('kaldifst')

    path = pathlib.Path(path)
    try:
        fst = openfst.read_fst(path)
    except FsaError as error:
        raise LatticeError(str(error)) from None
    if words is None:
        table = fst.output_symbols
        if table is None:
            raise LatticeError(f'{path}: no output symbols in the file; give the words.')
        words = [table.find(label) for label in range(table.available_key())]
    number = np.arange(fst.num_states)
    if fst.start >= 0:
        number[[0, fst.start]] = fst.start, 0
    rows = [
        (number[state], number[arc.nextstate], arc.ilabel, arc.olabel, -arc.weight.value, 0.0)
        for state in range(fst.num_states)
        for arc in kaldifst.ArcIterator(fst, state)
    ]
    final = np.array([-fst.final(state).value for state in number], np.float32)
    lattice = assemble(str(path), rows, final, tuple(words))
    try:
        return by_time(lattice).validate()
    except LatticeError as error:
        raise LatticeError(f'{path}: {error}') from None


def to_kaldifst(lattice: Lattice, inputs: np.ndarray, weight: np.ndarray):
    """A `kaldifst.StdVectorFst` with the words as output labels, costs −log.

    Args:
      lattice: arcs of weight −inf are left out.
      inputs: i[A], input labels.
      weight: f[A], log-weights.
    """
    kaldifst = extras.load('kaldifst')

    fst = kaldifst.StdVectorFst()
    for _ in range(lattice.num_states):
        fst.add_state()
    fst.start = 0
    arcs = np.flatnonzero(weight > NEG_INF)
    columns = (inputs, lattice.word, -weight, lattice.dst)
    values = zip(*(column[arcs].tolist() for column in columns), strict=True)
    for src, arc in zip(lattice.src[arcs].tolist(), values, strict=True):
        fst.add_arc(src, kaldifst.StdArc(*arc))
    for state in np.flatnonzero(np.isfinite(lattice.final)).tolist():
        fst.set_final(state, float(-lattice.final[state]))
    return fst
