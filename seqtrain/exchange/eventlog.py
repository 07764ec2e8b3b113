"""The event log on disk: one JSON line per event, in the order in which things happened.

A line is written at once and is never changed; a line torn by a crash is dropped when the log is
read. The first line is a header of the caller's own (seed, partition, rule, configuration).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from seqtrain.exchange.messages import Event


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


def merge(logs: Sequence[Sequence[Event]]) -> list[Event]:
    """One causal order of the logs of S shards (index = shard number) that ran apart.

    An event may come once every version that its push was based on has been made by the others.

    Raises:
      EventLogError: the logs contradict each other (one of them is incomplete).
    """
    merged: list[Event] = []
    at = [0] * len(logs)
    made = [{0: 0} for _ in logs]  # per shard: generation -> highest version so far
    left = collections.Counter(_update(e) for log in logs for e in log if e.kind == 'applied')
    patient = True
    while any(i < len(log) for i, log in zip(at, logs, strict=True)):
        moved = False
        for shard, log in enumerate(logs):
            while at[shard] < len(log) and _reached(log[at[shard]], made, patient):
                event = log[at[shard]]
                merged.append(event)
                left[_update(event)] -= event.kind == 'applied'
                if event.kind == 'restored' or not left[_update(event)]:
                    made[shard][event.generation] = event.version  # a round is made by its last
                at[shard] += 1
                moved = patient = True
        if not moved and not patient:
            raise EventLogError(
                f'The logs of the shards do not fit together after {at} events; one is incomplete.'
            )
        patient = moved
    return merged


def _update(event: Event) -> tuple[int, int, int]:
    return event.shard, event.generation, event.version


def _reached(event: Event, made: Sequence[dict[int, int]], patient: bool) -> bool:
    if event.kind == 'rejected' and not patient:
        return True  # it was never applied; what it claimed to be based on need not exist
    bases = zip(event.bases, event.generations, made, strict=False)
    return all(base <= versions.get(generation, -1) for base, generation, versions in bases)
