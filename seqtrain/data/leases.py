"""Leases: which replica trains on which utterances, epoch after epoch, whatever fails.

A lease is one batch' worth of utterances, handed to one replica until it reports completion.
Pure and deterministic: no threads, no clock; the caller holds a lock if several threads share a
book. It knows indices, not speech.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from seqtrain.data.utterance import DataError

Groups = list[tuple[int, list[int]]]
Plan = Callable[[list[int]], Groups]


@dataclasses.dataclass(frozen=True)
class Lease:
    """Utterances that one replica trains on.

    Attributes:
      id: (pool, epoch, number), unique in a run.
      bucket: the shape for `Buckets.batch`.
      indices: the utterances.
    """

    id: tuple[int, int, int]
    bucket: int
    indices: tuple[int, ...]

    @property
    def epoch(self) -> int:
        """Passes over the data that were begun before this one."""
        return self.id[1]


class _Pool:
    """Utterances that are shuffled and handed out together, and where each epoch stands."""

    def __init__(self, number: int, members: Sequence[int], plan: Plan, seed: int):
        self.number, self.members = number, sorted(members)
        self._plan, self._seed = plan, seed
        self.epoch = -1
        self.groups: dict[int, Groups] = {}
        self.done: dict[int, set[int]] = {}
        self.pending: list[tuple[int, int]] = []  # (epoch, number), next one last

    def open_epoch(self, epoch: int) -> None:
        """Begins an epoch, with nothing of it done."""
        self.groups[epoch] = self.shuffled(epoch)
        self.done.setdefault(epoch, set())
        self.epoch = max(self.epoch, epoch)
        self._forget_finished()

    def shuffled(self, epoch: int) -> Groups:
        """The groups of an epoch in order: a function of seed, pool and epoch only."""
        rng = np.random.default_rng([self._seed, self.number, epoch])
        order = [self.members[i] for i in rng.permutation(len(self.members))]
        groups = self._plan(order)
        return [groups[i] for i in rng.permutation(len(groups))]

    def refill(self) -> None:
        """Queues all of the open epochs that is not done, in order."""
        todo = [
            (epoch, number)
            for epoch, groups in sorted(self.groups.items())
            for number in range(len(groups))
            if number not in self.done[epoch]
        ]
        self.pending = todo[::-1]

    def finish(self, epoch: int, number: int) -> None:
        self.done[epoch].add(number)
        self._forget_finished()

    def _forget_finished(self) -> None:
        for epoch in [e for e in self.groups if e < self.epoch]:
            if len(self.done[epoch]) == len(self.groups[epoch]):
                del self.done[epoch], self.groups[epoch]


class LeaseBook:
    """Hands out leases so that every utterance is trained on once per epoch.

    Without `speakers` all replicas draw from one pool: in an epoch their utterances are disjoint
    and a fast replica does more of them. With `speakers` each replica has its own pool, which
    holds all utterances of its speakers; pools are balanced by `weights`.

    A replica that is released (because it died) loses its leases: they are handed out again,
    first of all. In speaker mode its pool moves, whole, to the live replica with the fewest
    pools, and goes back when the replica acquires again.

    Args:
      num_items: how many utterances there are.
      plan: groups a shuffled list of utterances into batches, e.g.
        `lambda order: buckets.plan(order, lengths)`.
      num_replicas: N.
      seed: of every shuffle.
      speakers: one per utterance for speaker mode; None for utterance mode.
      weights: what balances the pools in speaker mode, e.g. frames; one each by default.

    Raises:
      DataError: there are no utterances, or fewer speakers than replicas.
    """

    def __init__(
        self,
        num_items: int,
        plan: Plan,
        num_replicas: int,
        seed: int = 0,
        speakers: Sequence[Hashable] | None = None,
        weights: Sequence[float] | np.ndarray | None = None,
    ):
        if num_items == 0:
            raise DataError('There is no utterance to train on: all were skipped.')
        if speakers is None:
            members = [list(range(num_items))]
        else:
            members = split_by_speaker(speakers, num_replicas, weights)
        self._num_replicas = num_replicas
        self._pools = [_Pool(i, part, plan, seed) for i, part in enumerate(members)]
        self._owner = list(range(len(members))) if speakers is not None else None
        self._dead: set[int] = set()
        self._held: dict[tuple[int, int, int], int] = {}

    def members(self, replica: int) -> list[int]:
        """The utterances that this replica may see now."""
        return sorted(i for pool in self._pools_of(replica) for i in pool.members)

    def acquire(self, replica: int) -> Lease:
        """The next lease for a replica; starts a new epoch when the old one is handed out.

        A released replica that acquires is alive again and takes back its own pool.
        """
        self._check_replica(replica)
        if replica in self._dead:
            self._dead.discard(replica)
            self._move_pools()
        pool = min(self._pools_of(replica), key=lambda p: (_position(p), p.number))
        if not pool.pending:
            pool.open_epoch(pool.epoch + 1)
            pool.pending = [(pool.epoch, n) for n in range(len(pool.groups[pool.epoch]))][::-1]
        epoch, number = pool.pending.pop()
        bucket, indices = pool.groups[epoch][number]
        lease = Lease((pool.number, epoch, number), bucket, tuple(indices))
        self._held[lease.id] = replica
        return lease

    def lease(self, lease_id: tuple[int, int, int]) -> Lease:
        """The lease of an id, as it was or will be handed out; changes nothing."""
        pool, epoch, number = lease_id
        bucket, indices = self._pools[pool].shuffled(epoch)[number]
        return Lease(lease_id, bucket, tuple(indices))

    def complete(self, lease: Lease) -> bool:
        """Marks a lease done; False if it was not held (released meanwhile, or done before)."""
        if self._held.pop(lease.id, None) is None:
            return False
        pool, epoch, number = lease.id
        self._pools[pool].finish(epoch, number)
        return True

    def release(self, replica: int) -> None:
        """Takes everything from a replica that died; its leases go to the others."""
        self._check_replica(replica)
        for pool, epoch, number in sorted(k for k, r in self._held.items() if r == replica)[::-1]:
            del self._held[pool, epoch, number]
            self._pools[pool].pending.append((epoch, number))
        self._dead.add(replica)
        self._move_pools()

    def held_by(self, replica: int) -> list[tuple[int, int, int]]:
        """Ids of the leases that the replica holds."""
        return sorted(key for key, owner in self._held.items() if owner == replica)

    @property
    def epoch(self) -> int:
        """The epoch of the pool that is furthest behind; 0 before the first lease."""
        return max(0, min(pool.epoch for pool in self._pools))

    def state(self) -> dict:
        """What a checkpoint needs, as JSON types. Leases in flight count as not done."""
        pools = [{str(e): sorted(done) for e, done in p.done.items()} for p in self._pools]
        return {
            'epochs': [p.epoch for p in self._pools],
            'done': pools,
            'sizes': [len(p.members) for p in self._pools],
        }

    def restore(self, state: dict) -> None:
        """Continues from `state()` of a book made with the same arguments.

        Raises:
          DataError: the state is of a book over other utterances or another split.
        """
        sizes = [len(p.members) for p in self._pools]
        if state.get('sizes') != sizes:
            raise DataError(
                f'The saved lease position is for pools of {state.get("sizes")} utterances, this '
                f'run has {sizes}: the data or the split changed; use a new workdir.'
            )
        self._held.clear()
        for pool, epoch, done in zip(self._pools, state['epochs'], state['done'], strict=True):
            pool.epoch, pool.groups, pool.done = epoch, {}, {}
            for one, numbers in done.items():
                pool.done[int(one)] = set(numbers)
                pool.open_epoch(int(one))
            pool.refill()

    def _pools_of(self, replica: int) -> list[_Pool]:
        if self._owner is None:
            return self._pools
        return [p for p in self._pools if self._owner[p.number] == replica]

    def _move_pools(self) -> None:
        """Gives every live replica its own pool and spreads those of the dead evenly."""
        alive = [r for r in range(self._num_replicas) if r not in self._dead]
        owner = self._owner
        if owner is None or not alive:
            return
        for replica in alive:
            owner[replica] = replica
        for pool in range(len(owner)):
            if owner[pool] in self._dead:
                owner[pool] = min(alive, key=lambda r: (owner.count(r), r))

    def _check_replica(self, replica: int) -> None:
        if not 0 <= replica < self._num_replicas:
            raise DataError(f'Replica {replica} is not one of 0 to {self._num_replicas - 1}.')


def _position(pool: _Pool) -> tuple[int, int]:
    """How far a pool is, so that the one furthest behind goes first."""
    if pool.pending:
        epoch, number = pool.pending[-1]
        return epoch, number
    return pool.epoch + 1, 0


def split_by_speaker(
    speakers: Sequence[Hashable],
    num_replicas: int,
    weights: Sequence[float] | np.ndarray | None = None,
) -> list[list[int]]:
    """Assigns whole speakers to replicas, the heaviest first to the replica with the least.

    Args:
      speakers: one per utterance.
      num_replicas: N.
      weights: one per utterance, e.g. frames; 1 each by default.

    Returns:
      The utterances of each replica.

    Raises:
      DataError: there are fewer speakers than replicas.
    """
    totals: dict[Hashable, float] = {}
    for i, speaker in enumerate(speakers):
        totals[speaker] = totals.get(speaker, 0.0) + (1.0 if weights is None else float(weights[i]))
    if len(totals) < num_replicas:
        raise DataError(
            f'{num_replicas} replicas cannot have disjoint speakers: there are {len(totals)} '
            'speakers. Use fewer replicas or split by utterance.'
        )
    loads = [0.0] * num_replicas
    home: dict[Hashable, int] = {}
    for speaker, total in sorted(totals.items(), key=lambda pair: (-pair[1], str(pair[0]))):
        home[speaker] = loads.index(min(loads))
        loads[home[speaker]] += total
    parts: list[list[int]] = [[] for _ in range(num_replicas)]
    for i, speaker in enumerate(speakers):
        parts[home[speaker]].append(i)
    return parts
