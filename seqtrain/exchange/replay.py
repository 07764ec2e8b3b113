"""Replay: a recorded asynchronous run again, bit for bit, from its event log.

The log says which push was applied to which shard in which order, and from which versions it was
computed. With the same initial values, the same rules and a gradient function that gives the same
update for the same (replica, number, parameters), one thread then walks through the log and ends
with the same values: same machine, same backend. Restarts of shards are part of the log; one that
does not say which of several futures it went back to (an older log) means the newest.

Not here: making the updates. `gradient` is the caller's, and so is whatever state a replica has
of its own; it is called once per push and, per replica, in the order of its pushes.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from seqtrain.exchange.codec import Compressor, decode
from seqtrain.exchange.eventlog import is_push
from seqtrain.exchange.messages import Event, Push
from seqtrain.exchange.partition import Partition
from seqtrain.exchange.store import RuleLike, Store, shard_rule
from seqtrain.exchange.update import apply_round

Gradient = Callable[[Event, Any], Any]
"""(event, parameters at event.bases) -> update tree; event says worker, seq, steps, generation."""


class ReplayError(ValueError):
    """The log cannot be replayed; the message says at which event and why."""


def replay(
    events: Sequence[Event],
    params: Any,
    num_shards: int,
    rule: RuleLike,
    gradient: Gradient,
    *,
    later_rules: Iterable[tuple[RuleLike, bool]] = (),
    codec: str = 'float32',
    snapshots: Sequence[dict[str, Any]] | None = None,
    device: jax.Device | None = None,
) -> list[Store]:
    """Re-executes a run.

    Args:
      events: the log, in a causal order: as a local server recorded it, or through
        `eventlog.causal` where the shards ran in processes of their own.
      params: the initial parameters.
      num_shards: as in the run.
      rule: the first rule.
      gradient: makes the update of each push.
      later_rules: (rule, keep_state) of each later `set_rule`, in order.
      codec: as in the run.
      snapshots: where the run did not begin at `params`: one snapshot per shard.
      device: where the rule runs.

    Returns:
      One store per shard: values, optimiser state and version at the end of the log.

    Raises:
      ReplayError: the log is incomplete, or of another run.
    """
    partition = Partition.make(params, num_shards)
    if snapshots is not None and len(snapshots) != num_shards:
        raise ReplayError(
            f'{len(snapshots)} snapshots for {num_shards} shards; give one for each shard of the '
            'run.'
        )
    stores = [
        Store(values, shard_rule(rule, partition, s), device)
        for s, values in enumerate(partition.split(params))
    ]
    metas = [snapshot['meta'] for snapshot in snapshots or []]
    for store, snapshot, meta in zip(stores, snapshots or [], metas, strict=False):
        store.restore(snapshot['arrays'], int(meta['version']), meta.get('opt_state'))
    eras = [(int(meta['generation']), int(meta.get('rule_changes', 0))) for meta in metas]
    eras = eras or [(0, 0)] * num_shards
    run = _Replay(events, partition, stores, eras, gradient, list(later_rules), codec)
    for event in events:
        run.step(event)
    run.finish()
    return stores


_UNKNOWN = -1


class _Replay:
    """The state of a replay: stores, values that later pushes need, updates not yet used up."""

    def __init__(
        self,
        events: Sequence[Event],
        partition: Partition,
        stores: list[Store],
        eras: list[tuple[int, int]],
        gradient: Gradient,
        later_rules: list[tuple[RuleLike, bool]],
        codec: str,
    ):
        self._partition, self._stores, self._gradient = partition, stores, gradient
        self._rules, self._rule_at = later_rules, [0] * len(stores)
        self._codec, self._compressors = codec, dict[tuple[int, int], Compressor]()
        self._era = eras  # by shard (generation, changes of the rule since it began)
        self._values: dict[tuple, Any] = {}
        self._updates: dict[tuple, list[np.ndarray]] = {}
        self._rounds: dict[tuple, list[Push]] = collections.defaultdict(list)
        self._snapshots: dict[tuple[int, int, int, int], dict[str, Any]] = {}
        self._begins_anew = _first_after_joins(events)
        pushes = [event for event in events if is_push(event)]
        self._round_size = collections.Counter(_round(e) for e in pushes if e.kind == 'applied')
        self._uses = collections.Counter(_job(e) for e in pushes)
        self._last_use = {key: event for event in pushes for key in _bases(event)}
        self._targets = {_source(e) for e in events if e.kind == 'restored'}
        for shard in range(len(stores)):
            self._keep(shard)

    def step(self, event: Event) -> None:
        """One event of the log."""
        if is_push(event):
            update = self._update(event)
            if event.kind == 'applied':
                self._collect(event, update)
            for key in _bases(event):
                if self._last_use[key] is event:
                    self._values.pop(key, None)
        elif event.kind == 'rule':
            self._next_rule(event.shard)
        elif event.kind == 'restored':
            self._restore(event)

    def finish(self) -> None:
        """Raises where the log stops too early."""
        if self._rounds:
            raise ReplayError('The log ends in the middle of a round.')

    def _update(self, event: Event) -> np.ndarray | None:
        """The update of one push for one shard; made when the push first appears.

        None for a push that was refused because its versions never existed.
        """
        job = _job(event)
        if job not in self._updates:
            pulled = self._pulled(event)
            if pulled is None:
                return None
            shards = self._partition.split(self._gradient(event, self._partition.join(pulled)))
            life = (event.worker, event.life)
            compress = self._compressors.setdefault(life, Compressor(self._codec))
            for shard in range(len(shards)):
                if (job, shard) in self._begins_anew:
                    compress.forget(shard)
            self._updates[job] = [decode(compress(s, part)) for s, part in enumerate(shards)]
        update = self._updates[job][event.shard]
        self._uses[job] -= 1
        if not self._uses[job]:
            del self._updates[job]
        return update

    def _pulled(self, event: Event) -> list[np.ndarray] | None:
        who = f'Push {event.seq} of replica {event.worker}'
        if len(event.bases) != len(self._stores):
            raise ReplayError(
                f'{who} came from {len(event.bases)} shards, not {len(self._stores)}: '
                'the log is of another run.'
            )
        missing = [key for key in _bases(event) if key not in self._values]
        if missing and event.kind == 'rejected':
            return None
        if missing:
            raise ReplayError(
                f'{who} is based on {missing} (shard, version, generation), which the log had '
                'not made by then: it is incomplete or out of order.'
            )
        return [np.asarray(self._values[key]) for key in _bases(event)]

    def _collect(self, event: Event, update: np.ndarray | None) -> None:
        assert update is not None
        together = self._rounds[_round(event)]
        together.append(Push(event.worker, event.seq, event.base_version, update, event.frames))
        if len(together) < self._round_size[_round(event)]:
            return
        store = self._stores[event.shard]
        if store.version != event.version - 1:
            raise ReplayError(
                f'Shard {event.shard} is at version {store.version}, the log goes on with '
                f'{event.version}: events are missing.'
            )
        key = (event.shard, event.base_version, event.generation)
        store.history = {event.base_version: self._values[key]}
        apply_round(store, together)
        del self._rounds[_round(event)]
        self._keep(event.shard)

    def _keep(self, shard: int) -> None:
        """Keeps a version's values while pushes to come are based on it, or a restart."""
        store = self._stores[shard]
        generation, changes = self._era[shard]
        key = (shard, store.version, generation)
        if key in self._last_use:
            self._values[key] = store.values
        for era in ((generation, changes), (generation, _UNKNOWN), (_UNKNOWN, _UNKNOWN)):
            target = (shard, store.version, *era)
            if target in self._targets:
                self._snapshots[target] = store.snapshot()

    def _next_rule(self, shard: int) -> None:
        at = self._rule_at[shard]
        if at >= len(self._rules):
            raise ReplayError('The run changed its rule more often than later_rules says.')
        rule, keep_state = self._rules[at]
        self._stores[shard].set_rule(shard_rule(rule, self._partition, shard), keep_state)
        self._rule_at[shard] += 1
        generation, changes = self._era[shard]
        self._era[shard] = (generation, changes + 1)
        self._keep(shard)

    def _restore(self, event: Event) -> None:
        shard, version = event.shard, event.version
        if _source(event) not in self._snapshots:
            raise ReplayError(f'Shard {shard} went back to version {version}, never seen before.')
        self._stores[shard].restore(self._snapshots[_source(event)], version)
        self._era[shard] = (event.generation, 0)
        self._keep(shard)


def _job(event: Event) -> tuple:
    """What identifies one push of one replica across shards."""
    return event.worker, event.life, event.seq, event.bases, event.generations


def _source(event: Event) -> tuple[int, int, int, int]:
    """(shard, version, generation, changes of the rule in it) of what a shard went back to."""
    return event.shard, event.version, event.source, event.source_rules


def _first_after_joins(events: Sequence[Event]) -> set[tuple[tuple, int]]:
    """(push, shard) of what a replica pushed to a shard first after it had joined it.

    There its error feedback for that shard begins. A join that is repeated before any push counts
    once; joins again of older logs, which have no note, left the feedback alone, and so does one
    that took back what was pending.
    """
    joined, seen, first = set(), set(), set()
    for event in events:
        who = (event.shard, event.worker, event.life)
        if event.kind == 'joined' and event.note in ('fresh', 'again'):
            joined.add(who)
        elif is_push(event) and (_job(event), event.shard) not in seen:
            seen.add((_job(event), event.shard))
            if who in joined:
                joined.remove(who)
                first.add((_job(event), event.shard))
    return first


def _round(event: Event) -> tuple:
    """What identifies one update of one shard."""
    return event.shard, event.version, event.generation


def _bases(event: Event) -> list[tuple[int, int, int]]:
    """(shard, version, generation) of everything that a push was computed from."""
    both = zip(event.bases, event.generations, strict=True)
    return [(shard, version, generation) for shard, (version, generation) in enumerate(both)]
