"""`TiedTopology`: phones whose pdfs depend on their neighbours, with contexts that share pdfs.

What a decision tree (`seqtrain.graphs.tree`) or biphone counts decided, as one table. It stands
wherever a `Topology` does: numerators, denominators and decoding graphs take it as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from seqtrain.graphs.alignment import segments
from seqtrain.graphs.topology import NONE, Topology, check_phones


@dataclasses.dataclass(frozen=True, eq=False)
class TiedTopology(Topology):
    """A topology with a pdf per phone, state, place in the state, left and right neighbour.

    Attributes:
      table: i32[P, K, 2, P+1, R], pdf by phone, state, forward (0) or loop (1), left neighbour + 1
        and right neighbour + 1 (index 0 stands for NONE); R is 1 where the right does not matter.
      base_pdf: i32[num_pdfs], the context-independent pdf that each pdf refines: to start a
        network's output layer from a smaller one's.
    """

    table: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    base_pdf: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))

    @classmethod
    def from_table(cls, base: Topology, table: np.ndarray) -> TiedTopology:
        """Ties a context-independent topology by a table of pdfs (see `table`).

        Raises:
          ValueError: CTC, whose blanks hide the neighbours; a table of the wrong shape; pdfs that
            are not 0, 1, 2, ... or are shared by two context-independent pdfs.
        """
        if base.blank is not None:
            raise ValueError('The CTC topology has no context: blanks stand between the phones.')
        phones, states = base.num_phones, base.num_states
        table = np.asarray(table, np.int32)
        if table.shape[:4] != (phones, states, 2, phones + 1) or table.shape[4] not in (
            1,
            phones + 1,
        ):
            raise ValueError(f'A table of shape {table.shape} for {phones} phones.')
        own = np.stack([base.forward, base.loop], axis=2)  # [P, K, 2]
        pairs = np.unique(
            np.stack([table, np.broadcast_to(own[..., None, None], table.shape)]).reshape(2, -1),
            axis=1,
        )
        if not np.array_equal(pairs[0], np.arange(pairs.shape[1])):
            raise ValueError('Pdfs must be numbered 0, 1, 2, ... and refine one pdf each.')
        fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(Topology)}
        return cls(**fields, table=table, base_pdf=pairs[1].astype(np.int32))

    @property
    def num_pdfs(self) -> int:
        return len(self.base_pdf)

    @property
    def right_context(self) -> bool:
        return self.table.shape[-1] > 1

    def pdfs(
        self, left: int, phone: int, right: int = NONE
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._pdfs[left + 1, phone, right + 1 if self.right_context else 0]

    def slots(self) -> dict[int, tuple[int, int, bool]]:
        of_base = super().slots()
        return {pdf: of_base[base] for pdf, base in enumerate(self.base_pdf.tolist())}

    def content(self) -> tuple[Any, ...]:
        return (*super().content()[:6], self.table.shape, self.table.tobytes())

    def write(self, path: str | os.PathLike) -> None:
        """Writes the tying (numpy's `.npz`); the base topology is told to `read` again."""
        with open(path, 'wb') as file:  # numpy adds an ending to a name without one
            np.savez_compressed(file, table=self.table, kind=np.array(self.kind))

    @classmethod
    def read(cls, path: str | os.PathLike, base: Topology) -> TiedTopology:
        """Reads what `write` wrote.

        Raises:
          ValueError: names a file that is damaged, or was made with other phones or another kind of
            topology.
        """
        with open(path, 'rb') as opened:
            try:
                with np.load(opened) as file:
                    table, kind = file['table'], str(file.get('kind', base.kind))
            except Exception as error:  # zip, zlib and numpy raise a dozen kinds
                raise ValueError(
                    f'{path}: no tying, or a damaged one ({type(error).__name__}); make it again.'
                ) from None
        if kind != base.kind:
            raise ValueError(f'{path}: made for {kind}; give that topology, not {base.kind}.')
        try:
            return cls.from_table(base, table)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None

    @functools.cached_property
    def _pdfs(self) -> dict[tuple[int, int, int], tuple[tuple[int, ...], tuple[int, ...]]]:
        result = {}
        for phone, of_phone in enumerate(self.table):
            for left in range(self.table.shape[3]):
                for right in range(self.table.shape[4]):
                    forward, loop = of_phone[:, :, left, right].T.tolist()
                    result[left, phone, right] = (tuple(forward), tuple(loop))
        return result


def relabel(pdfs: Sequence[int] | np.ndarray, source: Topology, target: Topology) -> np.ndarray:
    """Rewrites an alignment from one topology's pdfs to another's of the same kind.

    Raises:
      ValueError: the topologies are of different kinds.
    """
    if (source.kind, source.num_phones) != (target.kind, target.num_phones):
        raise ValueError(
            f'Cannot relabel from {source.kind} with {source.num_phones} phones to {target.kind} '
            f'with {target.num_phones}.'
        )
    slots = source.slots()
    result = np.array(pdfs, np.int32)
    parts = segments(pdfs, source)
    context = [NONE, *(part.phone for part in parts), NONE]
    for part, left, right in zip(parts, context, context[2:], strict=False):
        chosen = target.pdfs(left, part.phone, right)
        for frame in range(part.start, part.start + part.frames):
            _, state, forward = slots[int(result[frame])]
            result[frame] = chosen[0 if forward else 1][state]
    return result


def tie_by_counts(
    sequences: Iterable[Sequence[int]], base: Topology, *, min_count: int = 20
) -> TiedTopology:
    """Left biphones with their own pdfs where the training set has enough of them.

    A biphone seen fewer than `min_count` times shares its phone's context-independent pdfs. The
    silence phone (0) stays context-independent.

    Args:
      sequences: phone ids per utterance, silences included.
      base: the context-independent topology.
      min_count: occurrences of a biphone.

    Raises:
      ValueError: a phone id that the topology does not have; names the sequence, counted from 0.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for number, phones in enumerate(sequences):
        check_phones(phones, base.num_phones, f'Sequence {number}')
        if len(phones):  # an utterance without an alignment has none
            counts.update(zip([NONE, *phones[:-1]], phones, strict=True))
    own = np.stack([base.forward, base.loop], axis=2)
    shape = (*own.shape, base.num_phones + 1, 1)
    groups = np.zeros(shape, np.int64)  # 0: the phone's own; else one more per biphone
    for (left, phone), count in sorted(counts.items()):
        if count >= min_count and phone != 0:
            groups[phone, :, :, left + 1] = left + 2
    keys = own[..., None, None] * np.int64(base.num_phones + 2) + groups
    numbered = np.unique(keys, return_inverse=True)[1].reshape(shape)
    return TiedTopology.from_table(base, numbered)
