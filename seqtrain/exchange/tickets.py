"""`Tickets`: how a shard keeps a staleness bound τ without refusing anybody.

Every served pull issues a ticket for one push, with the deadline version + τ: the push must be
applied while the shard's version is at most that. A set of tickets is feasible when, sorted by
deadline, the i-th (from 0) has a deadline of at least version + i, for then applying them in that
order keeps every bound. Two gates keep the set feasible for ever:

    a pull is served    only if a new ticket leaves the set feasible: at most τ others are out
    a push is applied   only if the others' tickets are feasible one version later

The push with the earliest deadline may always be applied, so nobody waits for a circle. A ticket
whose holder went away is dropped with it; a push that is refused has spent its ticket. A push
without a ticket (the replica used its pull twice) is applied when it happens to fit, and refused
when it has become too old.

Not here: clocks in the sense of stale synchronous parallel (Ho et al. 2013), which bound how far
replicas run ahead of each other in steps; the bound here is on s1 itself.
"""

from __future__ import annotations

from seqtrain.exchange.messages import Push


class Tickets:
    """The tickets of one shard.

    Args:
      bound: τ; None means unbounded, and every gate is open.
    """

    def __init__(self, bound: int | None):
        self.bound = bound
        self._out: list[tuple[int, int]] = []  # (version served, worker)

    def may_issue(self, version: int) -> bool:
        """Whether one more ticket at this version leaves the set feasible."""
        if self.bound is None:
            return True
        return self._feasible(self._out + [(version, -1)], version)

    def issue(self, worker: int, version: int) -> None:
        if self.bound is not None:
            self._out.append((version, worker))

    def may_apply(self, push: Push, version: int) -> bool:
        """Whether the tickets that remain after this push are feasible one version later."""
        if self.bound is None:
            return True
        return self._feasible(self._without(push), version + 1)

    def use(self, push: Push) -> None:
        """Spends the push's ticket and those that the same replica had let grow older."""
        if self.bound is not None:
            self._out = self._without(push)

    def drop(self, worker: int) -> None:
        self._out = [ticket for ticket in self._out if ticket[1] != worker]

    def check(self, version: int) -> None:
        assert self.bound is None or self._feasible(self._out, version), self._out

    def _without(self, push: Push) -> list[tuple[int, int]]:
        return [(v, w) for v, w in self._out if w != push.worker or v > push.base_version]

    def _feasible(self, tickets: list[tuple[int, int]], version: int) -> bool:
        assert self.bound is not None
        deadlines = sorted(v + self.bound for v, _ in tickets)
        return all(deadline >= version + i for i, deadline in enumerate(deadlines))
