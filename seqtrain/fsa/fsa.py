"""`Fsa`: a weighted acceptor over pdfs, held as NumPy arrays on the host.

Epsilon-free by construction: every arc consumes one frame. Weights are natural logs (larger is
better); files hold OpenFst costs (−log). Several initial and final states are allowed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

NEG_INF = float('-inf')


class FsaError(ValueError):
    """A malformed acceptor; the message says which arc or state and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Fsa:
    """A weighted, epsilon-free acceptor; its arrays are read-only (`dataclasses.replace` changes).

    Attributes:
      src: i32[A], source state of each arc.
      dst: i32[A], destination state of each arc.
      pdf: i32[A], pdf index of each arc, counted from 0 (label k in an OpenFst file is pdf k−1).
      weight: f32[A], log-weight of each arc.
      initial: f32[S], initial log-weight of each state; −inf where paths may not start.
      final: f32[S], final log-weight of each state; −inf where paths may not end.

    Raises:
      FsaError: states or pdfs that are no integers of 32 bits.
    """

    src: np.ndarray
    dst: np.ndarray
    pdf: np.ndarray
    weight: np.ndarray
    initial: np.ndarray
    final: np.ndarray

    def __post_init__(self):
        for name, dtype in (
            ('src', np.int32),
            ('dst', np.int32),
            ('pdf', np.int32),
            ('weight', np.float32),
            ('initial', np.float32),
            ('final', np.float32),
        ):
            given = np.asarray(getattr(self, name))
            if dtype == np.int32:
                _check_integers(given, name)
            array = given.astype(dtype, copy=given.flags.writeable).view()
            array.flags.writeable = False  # what is made from it is kept (`ops.pack_batch`)
            object.__setattr__(self, name, array)

    @classmethod
    def from_arcs(
        cls, arcs: Sequence[tuple[int, int, int, float]], initial: np.ndarray, final: np.ndarray
    ) -> Fsa:
        """Builds an acceptor from arcs (src, dst, pdf, log-weight) and weights per state."""
        # float64 holds every state number and label exactly.
        src, dst, pdf, weight = np.array(arcs, np.float64).reshape(-1, 4).T
        return cls(src, dst, pdf, weight, initial, final)

    @property
    def num_states(self) -> int:
        return len(self.initial)

    @property
    def num_arcs(self) -> int:
        return len(self.src)

    @property
    def num_pdfs(self) -> int:
        """One more than the largest pdf index on an arc (0 without arcs)."""
        return int(self.pdf.max()) + 1 if self.num_arcs else 0

    def validate(self) -> Fsa:
        """Checks shapes, ranges and weights; returns self.

        Raises:
          FsaError: names the first arc or state that is wrong.
        """
        if not (len(self.src) == len(self.dst) == len(self.pdf) == len(self.weight)):
            raise FsaError(
                f'src, dst, pdf and weight must have one entry per arc; got lengths '
                f'{len(self.src)}, {len(self.dst)}, {len(self.pdf)}, {len(self.weight)}.'
            )
        if len(self.initial) != len(self.final):
            raise FsaError(
                f'initial and final must have one entry per state; got lengths '
                f'{len(self.initial)} and {len(self.final)}.'
            )
        if self.num_states == 0:
            raise FsaError('The acceptor has no states; it accepts nothing.')
        for name in ('src', 'dst'):
            bad = np.flatnonzero(
                (getattr(self, name) < 0) | (getattr(self, name) >= self.num_states)
            )
            if len(bad):
                raise FsaError(
                    f'Arc {bad[0]}: {name}={getattr(self, name)[bad[0]]} is not a state '
                    f'(there are {self.num_states}).'
                )
        if len(bad := np.flatnonzero(self.pdf < 0)):
            raise FsaError(
                f'Arc {bad[0]}: pdf {self.pdf[bad[0]]} is negative (label 0, epsilon, is not '
                f'allowed: remove epsilons first).'
            )
        for name in ('weight', 'initial', 'final'):
            values = getattr(self, name)
            if len(bad := np.flatnonzero(np.isnan(values) | (values == np.inf))):
                raise FsaError(f'{name}[{bad[0]}] is {values[bad[0]]}; log-weights are < +inf.')
        if not np.isfinite(self.initial).any():
            raise FsaError('No initial state: every initial weight is -inf.')
        if not np.isfinite(self.final).any():
            raise FsaError('No final state: every final weight is -inf.')
        return self

    @classmethod
    def read(cls, path: str | os.PathLike) -> Fsa:
        """Reads OpenFst text (`.txt`) or binary (`.fst`); see `seqtrain.fsa.openfst`."""
        from seqtrain.fsa import openfst

        return openfst.read(path)

    def write(self, path: str | os.PathLike) -> None:
        """Writes OpenFst text (`.txt`) or binary (`.fst`); see `seqtrain.fsa.openfst`."""
        from seqtrain.fsa import openfst

        openfst.write(self, path)


def _check_integers(values: np.ndarray, name: str) -> None:
    """Raises FsaError for what 32 bits do not hold."""
    limits = np.iinfo(np.int32)
    with np.errstate(invalid='ignore'):
        bad = ~((values >= limits.min) & (values <= limits.max) & (values == np.trunc(values)))
    if bad.any():
        arc = np.flatnonzero(bad)[0]
        raise FsaError(f'Arc {arc}: {name} is {values[arc]}; it must be an integer of 32 bits.')
