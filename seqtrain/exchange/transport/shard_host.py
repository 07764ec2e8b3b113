"""`ShardHost`: one shard in a process of its own, as an asyncio actor. Knows nothing of Ray.

It drives a `ShardState`, answers each call when its reply is due, saves checkpoints, expires the
silent, and, when its process is started again, comes back from its checkpoint under a new
generation number, so that nothing computed before the crash is mistaken for something newer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from seqtrain.exchange import eventlog
from seqtrain.exchange.courier import ExchangeError
from seqtrain.exchange.eventlog import EventLog
from seqtrain.exchange.messages import (
    Event,
    Leave,
    Message,
    Params,
    Reason,
    Reply,
    address,
    refused,
)
from seqtrain.exchange.policy import Policy
from seqtrain.exchange.state import ShardState
from seqtrain.exchange.store import Store

logger = logging.getLogger(__name__)

CLOSED = 'The server is closed; close the clients before the server.'


class ShardHost:
    """See the module. All methods run in one event loop; the state machine sees one at a time.

    Args:
      shard: its number.
      values: f32[n], initial values.
      rule: what an update does.
      policy: mode and bounds.
      directory: where checkpoint, generation and event log lie; the host that restarts this shard
        must see it. None: nothing is kept, and a restart begins at `values`.
      checkpoint_every: applied updates between checkpoints.
      lease_s: a replica that is silent for so long is taken to have left; None means never.
      start_s: time zero of the event log, in seconds since the epoch; the server's own.
      later_rule: number of a change of the rule (from 1) -> the rule; for a host that comes back.
      keep_events: whether somebody will ask for `events`; they are kept until they were fetched.
    """

    def __init__(
        self,
        shard: int,
        values: np.ndarray,
        rule: optax.GradientTransformation,
        policy: Policy,
        *,
        directory: str | None = None,
        checkpoint_every: int = 100,
        lease_s: float | None = None,
        start_s: float = 0.0,
        later_rule: Callable[[int], optax.GradientTransformation] | None = None,
        keep_events: bool = True,
    ):
        self._files = _Files(pathlib.Path(directory), shard) if directory else None
        self._every, self._lease_s, self._start_s = checkpoint_every, lease_s, start_s
        self._events: list[Event] = []
        self._keep_events, self._fetched = keep_events, 0  # how many were let go
        self._log = EventLog(self._files.events) if self._files else None
        self._state = ShardState(Store(values, rule), policy, shard=shard, on_event=self._on_event)
        self._waiting: dict[tuple[int, int, int, int], tuple[Message, asyncio.Future]] = {}
        self._heard_s: dict[int, float] = {}
        self._lease_task: asyncio.Task | None = None
        self._rule_number, self._later_rule = 0, later_rule
        self._saved_version, self._closed, self._failure = 0, False, ''
        with contextlib.ExitStack() as failed:
            if self._log is not None:
                failed.callback(self._log.close)
            self._come_back()
            failed.pop_all()

    def _come_back(self) -> None:
        """After a crash: the last checkpoint (or the start) and a generation never used before."""
        if self._files is None:
            return
        if self._files.are_new():
            self._save()  # before the generation: who finds that one must find a checkpoint
            self._files.write_generation(0)
            return
        generation = self._files.next_generation()
        snapshot = self._files.load()
        self._files.drop_lost_change(snapshot['meta'])
        snapshot['meta']['after'] = generation - 1
        if snapshot['meta'].get('start_s') == self._start_s:  # else of an earlier server
            self._rule_number = snapshot['meta']['rule']
        if self._rule_number:
            assert self._later_rule is not None
            self._state.store.set_rule(self._later_rule(self._rule_number))
        self._state.restore(snapshot, self._now())
        self._saved_version = self._state.version
        self._begin_leases()

    def _begin_leases(self) -> None:
        """Who does not join again after a restart must not be waited for."""
        self._heard_s |= dict.fromkeys(self._state.members, time.monotonic())

    # -- for replicas -----------------------------------------------------------------------

    async def call(self, messages: list[Message]) -> list[Reply]:
        """Handles one replica's messages in order; returns their replies when all are due.

        A `Leave` has no reply, nor has a message that was sent again before it was answered: its
        repetition has.
        """
        if self._lease_s is not None and self._lease_task is None:
            self._lease_task = asyncio.get_running_loop().create_task(self._expire_silent())
        answers_due = [self._take(message) for message in messages]
        replies = [await future for future in answers_due if future is not None]
        return [reply for reply in replies if reply is not None]

    def _take(self, message: Message) -> asyncio.Future | None:
        self._heard_s[message.worker] = time.monotonic()
        if isinstance(message, Leave):
            self._heard_s.pop(message.worker, None)
            self._handle(message)
            return None
        future: asyncio.Future = asyncio.get_running_loop().create_future()
        if address(message) in self._waiting:
            _settle(self._waiting.pop(address(message))[1], None)
        self._waiting[address(message)] = (message, future)
        self._handle(message)
        return future

    def _handle(self, message: Message) -> None:
        """The state machine's turn; a checkpoint that is due is written before anybody hears."""
        if self._closed or self._failure:
            self._refuse_all()
            return
        try:
            replies = self._state.handle(message, self._now())
            if self._files and self._state.version - self._saved_version >= self._every:
                self._save()
        except Exception as error:
            self._fail(error)
        else:
            self._deliver(replies)

    def _deliver(self, replies: list[Reply]) -> None:
        """Hands replies to the calls that wait for them; replies nobody waits for are dropped."""
        for reply in replies:
            _, future = self._waiting.pop(address(reply), (None, None))
            if future is not None:
                _settle(future, reply)
            self._heard_s[reply.worker] = time.monotonic()

    def _fail(self, error: Exception) -> None:
        """A message was half handled: nothing that comes after it could be trusted."""
        logger.error('Shard %d failed.', self._state.shard, exc_info=error)
        self._failure = (
            f'Shard {self._state.shard} failed ({error!r}) and takes nothing more: mend the cause '
            'and start the server again.'
        )
        self._refuse_all()

    def _refuse_all(self) -> None:
        text = self._failure or CLOSED
        waiting = [message for message, _ in self._waiting.values()]
        self._deliver([refused(message, Reason.CLOSED, text) for message in waiting])

    async def _expire_silent(self) -> None:
        assert self._lease_s is not None
        while True:
            await asyncio.sleep(self._lease_s / 4)
            for worker, heard_s in list(self._heard_s.items()):
                waits = any(waiting == worker for waiting, *_ in self._waiting)
                if not waits and time.monotonic() - heard_s > self._lease_s:
                    del self._heard_s[worker]
                    self._handle(Leave(worker))

    # -- for the one who runs the server ----------------------------------------------------

    async def ready(self) -> int:
        """The generation; answers as soon as the shard can work."""
        return self._state.generation

    async def read(self) -> Params:
        """The current values and version."""
        state = self._state
        return Params(-1, state.version, state.store.read(), state.generation)

    async def expire(self, worker: int) -> None:
        """Takes a replica to have left."""
        self._handle(Leave(worker))

    async def expect(self, workers: list[int]) -> None:
        """Lets rounds wait for replicas that are about to join, also after a crash."""
        self._state.expect(workers)
        self._save()

    async def set_rule(
        self, rule: optax.GradientTransformation, keep_state: bool, note: str, number: int
    ) -> None:
        """Changes the rule, for good: a crash after it comes back to it.

        Args:
          rule, keep_state, note: see `ShardState.set_rule`.
          number: of the change, from 1; the same one asked for again changes nothing.
        """
        if number == self._rule_number:
            return
        self._state.set_rule(rule, keep_state=keep_state, note=note)
        self._rule_number = number
        await self.snapshot()

    async def snapshot(self) -> dict[str, Any]:
        """The shard's snapshot; also written to the directory."""
        return self._save()

    async def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes back to a snapshot, for good: a crash after it comes back to it too."""
        self._deliver(self._state.restore(snapshot, self._now()))
        if self._files:
            self._files.write_generation(self._state.generation)
        self._begin_leases()
        self._save()

    async def events(self, since: int = 0, process: int = -1) -> tuple[int, list[Event]]:
        """(process id, this process's events that are still kept).

        Args:
          since: the caller has all before this number: they are let go.
          process: whose events it counted; another process's numbers say nothing here.
        """
        if process == os.getpid():
            del self._events[: max(0, since - self._fetched)]
            self._fetched = max(self._fetched, since)
        return os.getpid(), list(self._events)

    async def check(self) -> None:
        """Asserts the invariants."""
        self._state.check()

    async def close(self) -> None:
        """A clean stop: refuses what still waits or comes, keeps all that was acknowledged."""
        if self._closed:
            return
        self._closed = True
        if self._lease_task is not None:
            self._lease_task.cancel()
        self._refuse_all()
        if not self._failure:
            self._save()
        if self._log is not None:
            self._log.close()

    def _save(self) -> dict[str, Any]:
        """The snapshot, also as the checkpoint that a crash comes back to.

        Raises:
          ExchangeError: the shard failed; its state is that of no log.
        """
        if self._failure:
            raise ExchangeError(self._failure)
        snapshot = self._state.snapshot()
        snapshot['meta'] |= {'rule': self._rule_number, 'start_s': self._start_s}
        if self._files:
            self._files.save(snapshot)
            self._saved_version = self._state.version
        return snapshot

    def _now(self) -> float:
        return time.time() - self._start_s

    def _on_event(self, event: Event) -> None:
        if self._keep_events:
            self._events.append(event)
        if self._log is not None:
            self._log.append(event)


def _settle(future: asyncio.Future, reply: Reply | None) -> None:
    if not future.done():  # else its caller is gone
        future.set_result(reply)


class _Files:
    """A shard's files: plain NumPy and JSON, written beside and renamed, never a pickle."""

    def __init__(self, directory: pathlib.Path, shard: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._arrays = directory / f'shard-{shard}.npz'
        self._generation = directory / f'shard-{shard}.generation'
        self.events = directory / f'shard-{shard}.events.jsonl'

    def are_new(self) -> bool:
        """Whether no shard has been started with them."""
        return not self._generation.exists()

    def next_generation(self) -> int:
        """One more each time the shard is started again."""
        generation = int(self._generation.read_text()) + 1
        self.write_generation(generation)
        return generation

    def write_generation(self, generation: int) -> None:
        beside = self._generation.with_suffix('.writing-generation')
        beside.write_text(str(generation))
        os.replace(beside, self._generation)

    def drop_lost_change(self, meta: dict[str, Any]) -> None:
        """Takes a change of the rule out of the log that no checkpoint came after.

        It was the last thing that happened, and whoever asked for it asks again.
        """
        _, events = eventlog.read(self.events)
        changes = sum(e.kind == 'rule' and e.generation == meta['generation'] for e in events)
        if changes > meta.get('rule_changes', changes):  # older ones do not say
            eventlog.drop_last_line(self.events)

    def save(self, snapshot: dict[str, Any]) -> None:
        arrays = snapshot['arrays']
        named: dict[str, Any] = {
            f'opt_state_{i}': _plain(leaf) for i, leaf in enumerate(arrays['opt_state'])
        }
        dtypes = {'dtypes': [leaf.dtype.name for leaf in arrays['opt_state']]}
        meta = np.frombuffer(json.dumps(snapshot['meta'] | dtypes).encode(), np.uint8)
        beside = self._arrays.with_suffix('.writing')
        with open(beside, 'wb') as file:
            np.savez(file, values=arrays['values'], meta=meta, **named)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._arrays)

    def load(self) -> dict[str, Any]:
        with np.load(self._arrays, allow_pickle=False) as saved:
            meta = json.loads(saved['meta'].tobytes())
            names = enumerate(meta.pop('dtypes'))
            leaves = [saved[f'opt_state_{i}'].view(np.dtype(name)) for i, name in names]
            return {'arrays': {'values': saved['values'], 'opt_state': leaves}, 'meta': meta}


def _plain(leaf: np.ndarray) -> np.ndarray:
    """The bits of an array as numbers that the file format knows: it has no bfloat16."""
    return leaf.view(f'u{leaf.itemsize}') if leaf.dtype.kind == 'V' else leaf
