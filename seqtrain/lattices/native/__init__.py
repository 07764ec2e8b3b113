"""The search in C++, where a compiler was there at installation; see `search.cc`.

Called through ctypes: Python's lock is free while it works, so that lattices are made while the
replicas' threads go on.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import logging
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from seqtrain.lattices.search import Arcs, SearchGraph

_HERE = pathlib.Path(__file__).parent
_COLUMNS = ('time', 'graph_state', 'final', 'src', 'dst', 'pdf', 'word', 'graph', 'acoustic')
_PER_STATE = 3
_ARC_COLUMNS = ('first', 'src', 'dst', 'pdf', 'word', 'weight')
_FLOATS = ('final', 'graph', 'acoustic')


class _Arcs(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in _ARC_COLUMNS]


class _Graph(ctypes.Structure):
    _fields_ = [
        ('num_states', ctypes.c_int64),
        ('start', ctypes.c_int64),
        ('emitting', _Arcs),
        ('epsilon', _Arcs),
        ('level', ctypes.c_void_p),
        ('final', ctypes.c_void_p),
    ]


class _Options(ctypes.Structure):
    _fields_ = [
        ('scale', ctypes.c_float),
        ('beam', ctypes.c_float),
        ('lattice_beam', ctypes.c_float),
        ('max_active', ctypes.c_int64),
    ]


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library, or None (said once, in the log) where it was not built or does not load."""
    found = [p for s in importlib.machinery.EXTENSION_SUFFIXES for p in _HERE.glob(f'_search*{s}')]
    try:
        if not found:
            raise OSError('not built')
        loaded = ctypes.CDLL(str(found[0]))
        loaded.SeqtrainSearch.restype = ctypes.c_void_p
        loaded.SeqtrainTake.restype = None
    except (OSError, AttributeError) as error:
        logging.getLogger('seqtrain').warning(
            'The C++ lattice search does not load (%s); lattices are made several times slower. '
            'Install a C++ compiler and reinstall seqtrain.',
            error,
        )
        return None
    return loaded


def search(
    graph: SearchGraph,
    scores: np.ndarray,
    *,
    beam: float,
    lattice_beam: float,
    max_active: int,
    acoustic_scale: float,
) -> dict[str, np.ndarray] | None:
    """The lattice's columns, see `Lattice`; None where there is none.

    Raises:
      MemoryError: of the C++ side.
    """
    loaded = load()
    assert loaded is not None
    view = _view(graph)
    options = _Options(acoustic_scale, beam, lattice_beam, max_active)
    scores = np.ascontiguousarray(scores, np.float32)
    sizes = (ctypes.c_int64 * 2)()
    handle = loaded.SeqtrainSearch(
        ctypes.byref(view),
        ctypes.byref(options),
        ctypes.c_void_p(scores.ctypes.data),
        ctypes.c_int64(scores.shape[0]),
        ctypes.c_int64(scores.shape[1]),
        sizes,
    )
    if sizes[0] < 0:
        raise MemoryError('The lattice search ran out of memory; make the beam smaller.')
    if not handle:
        return None
    columns = {
        name: np.empty(
            sizes[0] if position < _PER_STATE else sizes[1],
            np.float32 if name in _FLOATS else np.int32,
        )
        for position, name in enumerate(_COLUMNS)
    }
    loaded.SeqtrainTake(
        ctypes.c_void_p(handle), *(ctypes.c_void_p(c.ctypes.data) for c in columns.values())
    )
    return columns


def _view(graph: SearchGraph) -> _Graph:
    """Pointers into the graph's arrays, which live as long as it does."""

    def arcs(part: Arcs) -> _Arcs:
        return _Arcs(*(_pointer(getattr(part, name)) for name in _ARC_COLUMNS))

    return _Graph(
        graph.num_states,
        graph.start,
        arcs(graph.emitting),
        arcs(graph.epsilon),
        _pointer(graph.level),
        _pointer(graph.final),
    )


def _pointer(array: np.ndarray) -> Any:
    assert array.flags.c_contiguous
    return array.ctypes.data
