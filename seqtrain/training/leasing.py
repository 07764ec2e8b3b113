"""A stage's budget of updates, handed out as leases to threads."""

from __future__ import annotations

import threading

from seqtrain.data.leases import Lease, LeaseBook


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
