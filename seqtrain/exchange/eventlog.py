"""The event log on disk: one JSON line per event, in the order in which things happened.

A line is written at once and is never changed; a line torn by a crash is dropped when the log is
read. The first line is a header of the caller's own (seed, partition, rule, configuration).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from seqtrain.exchange.messages import Event, Reason

logger = logging.getLogger(__name__)


class EventLogError(ValueError):
    """A damaged line in a log (the message names file and line), or logs that do not fit."""


FIELDS = tuple(field.name for field in dataclasses.fields(Event))


class EventLog:
    """Appends events to a file; give its `append` to a server as `on_event`.

    Args:
      path: the file; an existing one is continued.
      header: JSON-able, written as the first line of a new file.
    """

    def __init__(self, path: str | os.PathLike, header: dict[str, Any] | None = None):
        self._lock = threading.Lock()
        if os.path.exists(path):
            _drop_torn_line(path)
        new = not os.path.exists(path) or os.path.getsize(path) == 0
        self._file = open(path, 'a', encoding='utf-8')  # noqa: SIM115 - closed by close()
        if new:
            self._file.write(json.dumps({'header': header or {}}) + '\n')
            self._file.flush()

    def append(self, event: Event) -> None:
        """Writes one event; the operating system has it when this returns."""
        line = json.dumps([getattr(event, name) for name in FIELDS])
        with self._lock:
            self._file.write(line + '\n')
            self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


def read(path: str | os.PathLike) -> tuple[dict[str, Any], list[Event]]:
    """The header and the events of a log.

    Raises:
      EventLogError: a line in the middle is damaged; the message says which.
    """
    with open(path, 'rb') as file:
        lines = file.read().split(b'\n')[:-1]  # what has no newline is torn
    header, events = {}, []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line.decode('utf-8'))
            if isinstance(record, dict):
                header = record['header']
                continue
            fields = dict(zip(FIELDS, record, strict=False))  # later fields have defaults
            lists = {name: tuple(fields[name]) for name in ('bases', 'generations')}
            events.append(Event(**{**fields, **lists}))
        except (ValueError, KeyError, TypeError) as error:
            raise EventLogError(f'{path}, line {number} is damaged: {error!r}.') from error
    return header, events


def _drop_torn_line(path: str | os.PathLike) -> None:
    with open(path, 'rb+') as file:
        content = file.read()
        file.truncate(content.rfind(b'\n') + 1)


def drop_last_line(path: str | os.PathLike) -> None:
    """Takes back the newest event, where what it tells of did not last."""
    with open(path, 'rb+') as file:
        content = file.read()
        file.truncate(content[:-1].rfind(b'\n') + 1)


def newest_generations(events: Iterable[Event]) -> dict[int, int]:
    """By shard the highest generation so far: a restart after them needs one of its own."""
    result: dict[int, int] = {}
    for event in events:
        result[event.shard] = max(event.generation, result.get(event.shard, 0))
    return result


def standing(events: Iterable[Event]) -> list[Event]:
    """Those that led to the parameters: without what a restart or a return took back.

    The events of a shard are in the order in which they happened. One that is 'restored' names its
    version; versions of that shard beyond it were lost, and with them what was refused there.
    """
    kept: list[Event] = []
    for event in events:
        if event.kind == 'restored':
            kept = [e for e in kept if e.shard != event.shard or e.version <= event.version]
        kept.append(event)
    return kept


def causal(events: Sequence[Event]) -> list[Event]:
    """The same events in a causal order, whatever the order of different shards was."""
    logs: list[list[Event]] = [[] for _ in range(1 + max((e.shard for e in events), default=0))]
    for event in events:
        logs[event.shard].append(event)
    return merge(logs)


def merge(logs: Sequence[Sequence[Event]], complete: bool = True) -> list[Event]:
    """One causal order of the logs of S shards (index = shard number) that ran apart.

    An event may come once every version that its push was based on has been made by the others,
    and, pushes to restarted shards being lost, once no other log still has an earlier push of the
    same life of its replica from the same generations.

    Args:
      logs: see above.
      complete: False where the logs were read one after another while the run went on; what is
        based on events that are not there is left out then, and counted in the log.

    Raises:
      EventLogError: the logs contradict each other (one of them is incomplete).
    """
    merged: list[Event] = []
    at = [0] * len(logs)
    made = [{0: 0} for _ in logs]  # per shard: generation -> highest version so far
    left = collections.Counter(_update(e) for log in logs for e in log if e.kind == 'applied')
    queues = [_queues(log) for log in logs]
    waives = 0  # how many of the rules are waived because nothing moves with them
    while any(i < len(log) for i, log in zip(at, logs, strict=True)):
        moved = False
        for shard, log in enumerate(logs):
            others = queues[:shard] + queues[shard + 1 :]
            while at[shard] < len(log) and _may_come(log[at[shard]], made, others, waives):
                event = log[at[shard]]
                merged.append(event)
                left[_update(event)] -= event.kind == 'applied'
                if event.kind == 'restored' or not left[_update(event)]:
                    made[shard][event.generation] = event.version  # a round is made by its last
                if _in_turn(event):
                    queues[shard][_sender(event)].pop()
                at[shard] += 1
                moved, waives = True, 0
        if not moved and waives == 2:
            if not complete:
                left_out = sum(len(log) - i for i, log in zip(at, logs, strict=True))
                logger.info('%d events are left out: the logs end before what they need.', left_out)
                break
            raise EventLogError(
                f'The logs of the shards do not fit together after {at} events; one is incomplete.'
            )
        waives = 0 if moved else waives + 1
    return merged


def _update(event: Event) -> tuple[int, int, int]:
    return event.shard, event.generation, event.version


def is_push(event: Event) -> bool:
    """Whether a push came, and was applied or refused."""
    return event.kind in ('applied', 'rejected') and event.seq >= 0


def _in_turn(event: Event) -> bool:
    """Whether it is a push's first arrival; copies of it may come at any time."""
    return is_push(event) and event.note != Reason.DUPLICATE.value


def _sender(event: Event) -> tuple:
    return event.worker, event.life, event.generations


def _queues(log: Sequence[Event]) -> dict[tuple, list[int]]:
    """By sender the numbers of its pushes, the next one last."""
    queues: dict[tuple, list[int]] = collections.defaultdict(list)
    for event in reversed(log):
        if _in_turn(event):
            queues[_sender(event)].append(event.seq)
    return queues


def _may_come(
    event: Event,
    made: Sequence[dict[int, int]],
    others: Sequence[dict[tuple, list[int]]],
    waives: int,
) -> bool:
    if waives < 2 and _in_turn(event):
        queues = [queue[_sender(event)] for queue in others]
        if any(queue and queue[-1] < event.seq for queue in queues):
            return False
    if waives and event.kind == 'rejected':
        return True  # it was never applied; what it claimed to be based on need not exist
    bases = zip(event.bases, event.generations, made, strict=False)
    return all(base <= versions.get(generation, -1) for base, generation, versions in bases)
