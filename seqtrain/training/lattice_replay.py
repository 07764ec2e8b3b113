"""Lattices once more, for a replay: made by the parameters that made them in the run.

With `lattice.ahead` = k those are the ones of the replica's k-th push before, or of its first one
in this stage; or of a later one where it did not know yet what would come next (towards the end it
may have had nothing, until another one failed): the event log has the lattices' age. Modes that
keep lattices cannot be replayed: which replica made the lattices of an utterance, and when, is not
in the log.
"""

from __future__ import annotations

import collections
from typing import Any

import jax

from seqtrain.data.leases import Lease
from seqtrain.exchange import Event, Pulled, ReplayError, Versions
from seqtrain.training.batching import HostBatch
from seqtrain.training.lattice_source import LatticeSource, LatticeWork, age

_NO_VERSIONS = Versions((0,), (0,))


class LatticeReplay:
    """Completes batches with lattices, in the order of each replica's pushes."""

    def __init__(self, work: LatticeWork):
        if work.config.mode != 'decode':
            raise ReplayError(
                f'Runs with config.lattice.mode={work.config.mode} cannot be replayed: lattices '
                'were kept from earlier updates. Only the mode decode can.'
            )
        self._ahead = work.config.ahead
        self._source = LatticeSource(work, jax.devices()[0], lambda key, call: False)
        self._pushes: dict[int, collections.deque[tuple[Event, Any]]] = {}

    def begin(self, event: Event, params: Any) -> Any:
        """Takes note of a push; returns the parameters that made its first batch's lattices."""
        before = self._pushes.setdefault(event.worker, collections.deque(maxlen=self._ahead + 1))
        if before and before[-1][0].life != event.life:
            before.clear()
        before.append((event, params))
        for push, made_by in before:
            if event.seq - push.seq > self._ahead:
                continue  # others between them were not logged
            if age(_versions(event), _versions(push)) == event.s2:
                return made_by
        raise ReplayError(
            f'No logged push of replica {event.worker} pulled the parameters that made the '
            f'lattices of its push {event.seq}, {event.s2} versions older than its own: a push '
            'whose shards were all killed is in no log, and the run cannot be replayed.'
        )

    def complete(self, lease: Lease, batch: HostBatch, params: Any) -> HostBatch:
        """The batch with lattices made by `params`."""
        return self._source.complete(lease, batch, Pulled(params, _NO_VERSIONS))


def _versions(event: Event) -> Versions:
    """Of the parameters that a push was computed from."""
    return Versions(event.bases, event.generations)
