"""Who trains on what: the run's lease book, and a stage's budget handed out to threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import ml_collections

from seqtrain.data.leases import Lease, LeaseBook, split_by_speaker
from seqtrain.training.prepare import TrainingData


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


class LeaseDesk:
    """Hands out the leases of one stage; the only thread-safe door to the `LeaseBook`.

    Args:
      book: who gets which utterances.
      num_replicas: N.
      updates: leases in all; in a synchronous stage, divided equally.
      equal_shares: every replica gets updates // N leases, as synchronous rounds need.
    """

    def __init__(self, book: LeaseBook, num_replicas: int, updates: int, equal_shares: bool):
        self._book = book
        self._lock = threading.Lock()
        self._left = updates
        self._share = [updates // num_replicas if equal_shares else updates] * num_replicas
        self._stopped = False
        self.completed = 0

    def acquire(self, replica: int) -> Lease | None:
        """The replica's next lease, or None when the stage's budget is spent or it was stopped."""
        with self._lock:
            if self._stopped or self._left == 0 or self._share[replica] == 0:
                return None
            self._left -= 1
            self._share[replica] -= 1
            return self._book.acquire(replica)

    def complete(self, lease: Lease) -> int:
        """Marks a lease done; returns how many of this stage are."""
        with self._lock:
            self._book.complete(lease)
            self.completed += 1
            return self.completed

    def stop(self) -> None:
        """Hands out nothing more; replicas finish what they hold."""
        with self._lock:
            self._stopped = True

    def state(self) -> tuple[int, dict]:
        """(leases completed in this stage, the book's state), both of one instant."""
        with self._lock:
            return self.completed, self._book.state()
