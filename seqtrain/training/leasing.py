"""Who trains on what: the run's lease book, and a stage's budget handed out to threads."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Collection, Sequence

import ml_collections

from seqtrain.data.leases import Lease, LeaseBook, split_by_speaker
from seqtrain.training.prepare import TrainingData

logger = logging.getLogger(__name__)


def lease_book(config: ml_collections.ConfigDict, data: TrainingData) -> LeaseBook:
    """The book of a run: one pool of utterances, or one per replica by speakers."""
    frames = data.features.num_frames
    return LeaseBook(
        len(data),
        lambda order: data.buckets.plan(order, frames.tolist()),
        config.exchange.num_replicas,
        config.seed,
        speakers=data.features.speakers if by_speaker(config) else None,
        weights=frames,
    )


def parts(config: ml_collections.ConfigDict, data: TrainingData) -> list[Sequence[int]]:
    """The utterances that each replica aligns: its own speakers', or every N-th."""
    num = config.exchange.num_replicas
    if not by_speaker(config):
        return [range(n, len(data), num) for n in range(num)]
    return list(split_by_speaker(data.features.speakers, num, data.features.num_frames))


def by_speaker(config: ml_collections.ConfigDict) -> bool:
    """Whether replicas are disjoint by speaker."""
    split_by = config.data.split_by
    if split_by not in ('utterance', 'speaker'):
        raise ValueError(f'config.data.split_by is {split_by!r}; choose utterance or speaker.')
    return split_by == 'speaker'


@dataclasses.dataclass(frozen=True)
class Grant:
    """Leases for one push; `position`: how many of the stage were handed out before."""

    leases: tuple[Lease, ...]
    position: int


class LeaseDesk:
    """Hands out the leases of one stage; the only thread-safe door to the `LeaseBook`.

    Args:
      book: who gets which utterances.
      replicas: who is there.
      updates: leases of the whole stage.
      equal_shares: every replica gets as many leases as the others, as synchronous rounds need;
        what the stage has beyond whole rounds is left out. A resumed stage may end with a round of
        fewer replicas.
      completed: how many of them were done before (in an earlier part of a resumed run).
    """

    def __init__(
        self,
        book: LeaseBook,
        replicas: Collection[int],
        updates: int,
        equal_shares: bool,
        completed: int = 0,
    ):
        self._book = book
        self._lock = threading.Lock()
        self._left = updates - completed
        self._share: dict[int, int] | None = None
        if equal_shares:
            self._share = _shares(sorted(replicas), updates, completed)
            left_out = self._left - sum(self._share.values())
            if left_out > 0:
                logger.warning(
                    '%d of %d updates are left out: every replica gets as many as the others.',
                    left_out,
                    self._left,
                )
        self._position = completed
        self._held: dict[tuple[int, int, int], Lease] = {}
        self._stopped = False
        self.completed = 0

    def take(self, replica: int, most: int = 1) -> Grant | None:
        """The replica's next leases, or None when the stage's budget is spent or it was stopped."""
        with self._lock:
            count = min(most, self._available(replica))
            if count == 0:
                return None
            leases = tuple(self._book.acquire(replica) for _ in range(count))
            self._held |= {lease.id: lease for lease in leases}
            self._left -= count
            if self._share is not None:
                self._share[replica] -= count
            self._position += count
            return Grant(leases, self._position - count)

    def has_work(self, replica: int) -> bool:
        """Whether `take` would give the replica something."""
        with self._lock:
            return self._available(replica) > 0

    def complete(self, lease_id: tuple[int, int, int]) -> int:
        """Marks a lease done; returns how many of this stage are."""
        with self._lock:
            if self._book.complete(self._held.pop(lease_id)):
                self.completed += 1
            return self.completed

    def release(self, replica: int, heirs: Sequence[int]) -> None:
        """Takes the leases of a replica that died; they and its share go to others.

        Args:
          replica: who died; it may take leases again.
          heirs: who shares what it was to do, where replicas have equal shares.
        """
        with self._lock:
            held = self._book.held_by(replica)
            for lease_id in held:
                del self._held[lease_id]
            self._book.release(replica)
            self._left += len(held)
            self._position -= len(held)
            if self._share is not None and heirs:
                due, self._share[replica] = self._share[replica] + len(held), 0
                for i in range(due):
                    self._share[heirs[i % len(heirs)]] += 1

    def stop(self) -> None:
        """Hands out nothing more; replicas finish what they hold."""
        with self._lock:
            self._stopped = True

    def state(self) -> tuple[int, dict]:
        """(leases completed in this stage, the book's state), both of one instant."""
        with self._lock:
            return self.completed, self._book.state()

    def _available(self, replica: int) -> int:
        if self._stopped:
            return 0
        return self._left if self._share is None else min(self._left, self._share[replica])


def _shares(replicas: Sequence[int], updates: int, completed: int) -> dict[int, int]:
    """How many leases each replica gets in a synchronous stage, or in the rest of one."""
    whole = updates - updates % len(replicas)
    share, more = divmod(max(0, whole - completed), len(replicas))
    return {replica: share + (i < more) for i, replica in enumerate(replicas)}
