"""`Graph`: an acceptor (or a batch of them) as arrays that every backend reads. No algorithms.

Arcs are sorted by (destination, pdf, source). Where almost every state is entered through one pdf
only (HMM graphs are like that), arcs that share destination and pdf form a *group*: the sum over a
group's arcs is taken before the score enters, so a frame costs one multiply-add per arc.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqtrain.fsa import Fsa, FsaError, minimise, operations

NEVER = np.int32(2**30)
"""`min_frames` of a graph without any path."""

# Groups save a look-up per arc and cost a row each. They pay where they are hardly more than
# states, or where many arcs share them; the same in cpu/plan.cc.
_MAX_GROUPS_PER_STATE = 1.5
_MAX_SHARED_GROUPS_PER_STATE = 2.5
_SHARED = 4

_DATA = ('src', 'dst', 'pdf', 'weight', 'initial', 'final', 'min_frames')
_GROUPS = ('group', 'group_dst', 'group_pdf')


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[*_DATA, *_GROUPS],
    meta_fields=['num_pdfs'],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """An acceptor for the devices; a pytree, so it can be an argument of a jitted function.

    A leading batch axis on every array means one graph per utterance; without it the graph is
    shared by the batch and never copied per utterance. Not differentiable.

    Attributes:
      src, dst, pdf: i32[(B,) A], arcs sorted by (dst, pdf, src). Padding arcs come last.
      weight: f32[(B,) A], log-weights; −inf for padding arcs.
      initial, final: f32[(B,) S], log-weights; −inf where paths may not start or end.
      min_frames: i32[(B)], frames of the shortest path; `NEVER` where there is no path.
      group: i32[A] or None, the group of each arc (ascending).
      group_dst, group_pdf: i32[G] or None, destination and pdf of each group.
      num_pdfs: smallest number of score columns the graph needs; 0 if unknown (then an
        utterance whose graph names a pdf outside its scores gets the value NaN).
    """

    src: Any
    dst: Any
    pdf: Any
    weight: Any
    initial: Any
    final: Any
    min_frames: Any
    group: Any = None
    group_dst: Any = None
    group_pdf: Any = None
    num_pdfs: int = 0

    @property
    def batched(self) -> bool:
        """True for one graph per utterance."""
        return len(self.src.shape) == 2

    @property
    def num_states(self) -> int:
        """S; of a batch, the size that all are padded to."""
        return self.initial.shape[-1]

    @property
    def num_arcs(self) -> int:
        """A; of a batch, the size that all are padded to."""
        return self.src.shape[-1]


def pack(fsa: Fsa) -> Graph:
    """Prepares one graph that the whole batch shares (a denominator).

    States with the same future become one (`fsa.minimise`): Kaldi's denominators lose half of
    their states and arcs, because the entry and the loop state of an HMM have the same arcs out.

    Args:
      fsa: an acceptor; validated here.

    Returns:
      A `Graph` of jax arrays on the default device.

    Raises:
      FsaError: for a malformed acceptor, or one without arcs.
    """
    if not isinstance(fsa, Fsa):
        raise FsaError(f'pack takes one acceptor (an Fsa); got {type(fsa).__name__}.')
    if not fsa.validate().num_arcs:
        raise FsaError('The acceptor has no arcs; a shared graph needs at least one.')
    arrays: dict[str, Any] = dict(_sorted_arrays(minimise(fsa)))
    arrays |= _groups(arrays, len(arrays['initial']))
    return Graph(
        **{name: None if a is None else jnp.asarray(a) for name, a in arrays.items()},
        num_pdfs=fsa.num_pdfs,
    )


def pack_batch(
    fsas: Sequence[Fsa],
    num_states: int | None = None,
    num_arcs: int | None = None,
    *,
    num_pdfs: int = 0,
    device: jax.Device | None = None,
) -> Graph:
    """Prepares one graph per utterance (numerators, lattices), padded to common sizes.

    Fix `num_states` and `num_arcs` over a run: every new pair of sizes is a new compilation.

    Args:
      fsas: B acceptors.
      num_states, num_arcs: sizes to pad to; the largest of the batch by default.
      num_pdfs: the scores' P; when given, a graph that names a larger pdf is refused here.
      device: where to put the arrays; None keeps them as NumPy arrays on the host.

    Returns:
      A `Graph` whose arrays have a leading axis B.

    Raises:
      FsaError: for a malformed acceptor or one that exceeds the given sizes; names its position.
    """
    if isinstance(fsas, Fsa) or not len(fsas):
        raise FsaError('pack_batch takes a sequence of at least one acceptor.')
    num_states = num_states or max(fsa.num_states for fsa in fsas)
    num_arcs = num_arcs or max(1, max(fsa.num_arcs for fsa in fsas))
    for i, fsa in enumerate(fsas):
        _check_fits(i, fsa, num_states, num_arcs, num_pdfs)
    rows = [_sorted_arrays(fsa) for fsa in fsas]
    graph = Graph(**_stacked(rows, num_states, num_arcs), num_pdfs=num_pdfs)
    return graph if device is None else jax.device_put(graph, device)


def min_frames(fsa: Fsa) -> int:
    """Frames of the shortest path from an initial to a final state, over arcs of finite weight.

    Args:
      fsa: a valid acceptor; see `Fsa.validate`.

    Returns:
      A count of frames; 0 where a state starts and ends, `NEVER` where there is no path.
    """
    try:
        return operations.min_frames(fsa)
    except FsaError:
        return int(NEVER)


_SORTED: weakref.WeakKeyDictionary[Fsa, dict[str, np.ndarray]] = weakref.WeakKeyDictionary()
"""An utterance's numerator is packed once per epoch; it is sorted once."""


def _sorted_arrays(fsa: Fsa) -> dict[str, np.ndarray]:
    """The arrays of a valid acceptor in packing order; read-only, kept while the acceptor lives."""
    if fsa not in _SORTED:
        fsa.validate()
        order = np.lexsort((fsa.src, fsa.pdf, fsa.dst))
        _SORTED[fsa] = {
            'src': fsa.src[order],
            'dst': fsa.dst[order],
            'pdf': fsa.pdf[order],
            'weight': fsa.weight[order],
            'initial': fsa.initial,
            'final': fsa.final,
            'min_frames': np.asarray(min_frames(fsa), np.int32),
        }
    return _SORTED[fsa]


def _groups(arrays: dict[str, Any], num_states: int) -> dict[str, Any]:
    dst, pdf = arrays['dst'], arrays['pdf']
    first = np.r_[True, (np.diff(dst) != 0) | (np.diff(pdf) != 0)]
    shared = len(dst) >= _SHARED * first.sum()
    limit = _MAX_SHARED_GROUPS_PER_STATE if shared else _MAX_GROUPS_PER_STATE
    if first.sum() > limit * num_states:
        return dict.fromkeys(_GROUPS)
    return {
        'group': (np.cumsum(first) - 1).astype(np.int32),
        'group_dst': dst[first],
        'group_pdf': pdf[first],
    }


def _stacked(rows: Sequence[dict[str, np.ndarray]], num_states: int, num_arcs: int):
    """Padding arcs run from the last state to itself (dst stays sorted) with weight −inf."""
    fill = {'src': num_states - 1, 'dst': num_states - 1, 'pdf': 0}
    stacked = {'min_frames': np.stack([row['min_frames'] for row in rows])}
    for name in _DATA[:-1]:
        size = num_states if name in ('initial', 'final') else num_arcs
        dtype = rows[0][name].dtype
        stacked[name] = np.full((len(rows), size), fill.get(name, -np.inf), dtype)
        for out, row in zip(stacked[name], rows, strict=True):
            out[: len(row[name])] = row[name]
    return stacked


def _check_fits(i: int, fsa: Fsa, num_states: int, num_arcs: int, num_pdfs: int) -> None:
    try:
        _sorted_arrays(fsa)
    except FsaError as error:
        raise FsaError(f'Acceptor {i} of the batch: {error}') from error
    if fsa.num_states > num_states or fsa.num_arcs > num_arcs:
        raise FsaError(
            f'Acceptor {i} has {fsa.num_states} states and {fsa.num_arcs} arcs; the batch is '
            f'packed for {num_states} and {num_arcs}. Give larger num_states and num_arcs.'
        )
    if num_pdfs and fsa.num_pdfs > num_pdfs:
        raise FsaError(
            f'Acceptor {i} names pdf {fsa.num_pdfs - 1}, but the scores have {num_pdfs} columns.'
        )
