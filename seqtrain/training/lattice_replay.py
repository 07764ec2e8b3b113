"""Lattices once more, for a replay: made by the parameters that made them in the run.

With `lattice.ahead` those are the ones of the replica's push before, if it had one in this stage
and knew already what would come next (towards the end it may have had nothing, until another one
failed); otherwise those of the push itself: the event log has the lattices' age. Modes that keep
lattices cannot be replayed: which replica made the lattices of an utterance, and when, is not in
the log.
"""

from __future__ import annotations

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
        self._last: dict[int, tuple[Event, Any]] = {}

    def begin(self, event: Event, params: Any) -> Any:
        """Takes note of a push; returns the parameters that made its first batch's lattices."""
        last = self._last.get(event.worker)
        self._last[event.worker] = (event, params)
        if not self._ahead or last is None or last[0].life != event.life:
            return params
        before, made_by = last
        if event.s2 == 0 and age(_versions(event), _versions(before)) > 0:
            return params  # nobody had begun them
        if event.seq != before.seq + 1:
            raise ReplayError(
                f'Replica {event.worker} pushed {before.seq + 1} before {event.seq}, but no shard '
                'logged it: the parameters that made the next lattices are lost, and the run '
                'cannot be replayed.'
            )
        return made_by

    def complete(self, lease: Lease, batch: HostBatch, params: Any) -> HostBatch:
        """The batch with lattices made by `params`."""
        return self._source.complete(lease, batch, Pulled(params, _NO_VERSIONS))


def _versions(event: Event) -> Versions:
    """Of the parameters that a push was computed from."""
    return Versions(event.bases, event.generations)
