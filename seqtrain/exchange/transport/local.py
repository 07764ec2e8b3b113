"""The `local` transport: shards and replicas in one process, one lock per shard, no server thread.

A message is handled in the sender's exchange thread, under the shard's lock; the replies go to the
mailboxes of whoever they are for. The rule runs asynchronously on the host's CPU device, so the
lock is held for the dispatch only. A message that a shard fails over ends the server for all.
"""

from __future__ import annotations

import contextlib
import operator
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax

from seqtrain.exchange.client import Client
from seqtrain.exchange.courier import ExchangeError, Pulled, Versions
from seqtrain.exchange.messages import Event, Leave, Message, Reply
from seqtrain.exchange.partition import Partition
from seqtrain.exchange.policy import Policy, check_lease
from seqtrain.exchange.state import ShardState
from seqtrain.exchange.store import RuleLike, Store, shard_rule

_PLAIN = optax.sgd(1.0)


class LocalServer:
    """The parameters, cut into shards, and the replicas' mailboxes.

    Args:
      params: tree of floating point arrays.
      num_shards: how many shards to cut it into.
      rule: what an update does: any Optax transformation (see `rules`), or, for rules that look at
        whole tensors, a function from a shard's `Partition.segments` to one.
      policy: mode, number of replicas, staleness bound.
      device: where the rule runs; None means the first host CPU device.
      lease_s: a replica not heard of for so long is taken to have left; None means never.
      clock: seconds, for the event log and the leases.
      on_event: called with every `Event`, one at a time and in order, under a lock: keep it short.
        Where nobody listens, the server keeps them (see `events`).
    """

    def __init__(
        self,
        params: Any,
        num_shards: int = 1,
        rule: RuleLike = _PLAIN,
        policy: Policy | None = None,
        *,
        device: jax.Device | None = None,
        lease_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_event: Callable[[Event], None] | None = None,
    ):
        check_lease(lease_s)
        self.policy = policy or Policy()
        self.partition = Partition.make(params, num_shards)
        self._clock, self._start = clock, clock()
        self._lease_s = lease_s
        self._events: list[Event] = []
        self._event_lock = threading.Lock()
        self._extra_on_event = on_event
        self._locks = [threading.Lock() for _ in range(num_shards)]
        self._shards = [
            ShardState(
                Store(values, shard_rule(rule, self.partition, s), device),
                self.policy,
                shard=s,
                on_event=self._on_event,
            )
            for s, values in enumerate(self.partition.split(params))
        ]
        self._channels: dict[int, LocalChannel] = {}
        self._channels_lock = threading.Lock()
        self._heard_s: dict[int, float] = {}
        self._heard_lock = threading.Lock()
        self._closed, self._failure = False, ''

    # -- for replicas -----------------------------------------------------------------------

    def connect(self, worker: int, *, overlap: bool = True, **options: Any) -> Client:
        """A client for one replica; a second one for the same number replaces the first for good.

        Args:
          worker: 0 … policy.num_workers − 1.
          overlap: whether `Client.latest` may hand out older parameters rather than wait.
          **options: `queue_size`, `device`, `retry_s`, `codec`, `life`, `faults` of `Client`.
        """
        self._raise_if_over()
        worker = operator.index(worker)
        channel = LocalChannel(self, worker)
        client = Client(
            channel,
            self.partition,
            worker,
            overlap=overlap and not self.policy.sync,
            take_turns=self.policy.waits,
            **options,
        )
        with self._channels_lock:
            before, self._channels[worker] = self._channels.get(worker), channel
        if before is not None:
            before.replaced = True
            before.wake()
        channel.ready.set()
        return client

    def expire(self, worker: int) -> None:
        """Takes a replica to have left: nobody waits for it any more; it may join again."""
        for shard in range(self.partition.num_shards):
            self.deliver(shard, Leave(worker))

    def expect(self, workers: Iterable[int]) -> None:
        """Lets rounds wait for replicas that are about to join: before a stage, or on resuming.

        Who left is not waited for; without this the first of them to come back goes on alone.
        """
        workers = list(workers)
        with _all(self._locks):
            for shard in self._shards:
                shard.expect(workers)

    def deliver(self, shard: int, message: Message, sender: LocalChannel | None = None) -> None:
        """Handles one message and mails the replies. Called in the sender's thread.

        Raises:
          ExchangeError: the server is closed or failed, or the sender was replaced.
        """
        self._raise_if_over()
        now = self._clock() - self._start
        with self._locks[shard]:
            self._raise_if_over()  # it may have failed while this message waited
            if sender is not None and sender.replaced:
                if isinstance(message, Leave):
                    return  # its successor stays
                sender.raise_if_replaced()
            try:
                replies = self._shards[shard].handle(message, now)
            except BaseException as error:
                self._fail(shard, error)
                raise
            for reply in replies:
                self._mail(shard, reply)

    def heard(self, worker: int) -> None:
        """Renews a replica's lease."""
        now = self._clock()
        with self._heard_lock:
            self._heard_s[worker] = now

    def expire_silent(self) -> None:
        """Expires every replica whose lease ran out; called by those who wait."""
        if self._lease_s is None:
            return
        for worker, heard in list(self._heard_s.items()):
            if self._clock() - heard > self._lease_s and self._forget_heard(worker, heard):
                self.expire(worker)

    def _forget_heard(self, worker: int, heard: float) -> bool:
        """Whether nothing more was heard of a replica since; then its lease is over."""
        with self._heard_lock:
            silent = self._heard_s.get(worker) == heard
            if silent:
                del self._heard_s[worker]
            return silent

    @property
    def lease_s(self) -> float | None:
        return self._lease_s

    def _mail(self, shard: int, reply: Reply) -> None:
        channel = self._channels.get(reply.worker)
        if channel is not None:
            channel.inbox.put((shard, reply))

    # -- for the one who runs the server ----------------------------------------------------

    def params(self) -> Pulled:
        """The current parameters and versions, as owned NumPy arrays."""
        with _all(self._locks):
            values = [shard.store.read() for shard in self._shards]
            versions = Versions(
                tuple(shard.version for shard in self._shards),
                tuple(shard.generation for shard in self._shards),
            )
        return Pulled(self.partition.join(values), versions)

    def events(self) -> list[Event]:
        """The event log so far; per shard in the order of application.

        Raises:
          ExchangeError: `on_event` took them.
        """
        if self._extra_on_event is not None:
            raise ExchangeError('the events went to on_event; keep them there.')
        return list(self._events)

    def set_rule(self, rule: RuleLike, *, keep_state: bool = False, note: str = '') -> None:
        """Changes the rule on all shards, between stages (see `ShardState.set_rule`)."""
        with _all(self._locks):
            for s, shard in enumerate(self._shards):
                one = shard_rule(rule, self.partition, s)
                shard.set_rule(one, keep_state=keep_state, note=note)

    def snapshot(self) -> list[dict[str, Any]]:
        """One snapshot per shard, all at one instant: {'arrays': …, 'meta': …}.

        Raises:
          ExchangeError: the server failed; its state is that of no log.
        """
        with _all(self._locks):
            self._raise_if_failed()
            return [shard.snapshot() for shard in self._shards]

    def restore(self, snapshots: list[dict[str, Any]]) -> None:
        """Goes back to snapshots; connected replicas join again by themselves."""
        if len(snapshots) != len(self._shards):
            raise ValueError(
                f'{len(snapshots)} snapshots for {len(self._shards)} shards; '
                'use the number of shards that the checkpoint was written with.'
            )
        for s, snapshot in enumerate(snapshots):
            self.restore_shard(s, snapshot)

    def restore_shard(self, shard: int, snapshot: dict[str, Any]) -> None:
        """Restarts one shard from its checkpoint; the others go on."""
        with self._locks[shard]:
            for reply in self._shards[shard].restore(snapshot, self._clock() - self._start):
                self._mail(shard, reply)
            # Who does not join again must not be waited for.
            for worker in self._shards[shard].members:
                self.heard(worker)

    def hold(self, shard: int) -> contextlib.AbstractContextManager:
        """Holds one shard up for as long as the context lasts (tests: a slow shard)."""
        return self._locks[shard]

    def check(self) -> None:
        """Asserts every shard's invariants."""
        with _all(self._locks):
            for shard in self._shards:
                shard.check()

    def close(self) -> None:
        """Refuses further messages; clients that still wait get an error. Idempotent."""
        self._closed = True
        self._wake_all()

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def _fail(self, shard: int, error: BaseException) -> None:
        """A message was half handled: nothing that comes after it could be trusted."""
        self._failure = (
            f'shard {shard} failed ({error!r}) and takes nothing more: mend the cause and start '
            'the server again.'
        )
        self._wake_all()

    def _wake_all(self) -> None:
        for channel in list(self._channels.values()):
            channel.wake()

    def _raise_if_failed(self) -> None:
        if self._failure:
            raise ExchangeError(self._failure)

    def _raise_if_over(self) -> None:
        self._raise_if_failed()
        if self._closed:
            raise ExchangeError('the server is closed; close the clients before the server.')

    def _on_event(self, event: Event) -> None:
        with self._event_lock:  # one at a time, in order
            if self._extra_on_event is not None:
                self._extra_on_event(event)
            else:
                self._events.append(event)


class LocalChannel:
    """One replica's mailbox."""

    def __init__(self, server: LocalServer, worker: int):
        self._server, self._worker = server, worker
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.ready = threading.Event()  # whether replies come here
        self.replaced = False  # whether the same replica was connected again

    def send(self, shard: int, message: Message) -> None:
        self.ready.wait()
        self._server.heard(self._worker)
        self._server.deliver(shard, message, self)

    def receive(self, timeout_s: float | None) -> tuple[int, Reply] | None:
        lease_s, left_s = self._server.lease_s, timeout_s
        while True:
            self._server._raise_if_over()
            self.raise_if_replaced()
            self._server.heard(self._worker)  # who waits is alive
            patience = [t for t in (left_s, lease_s and lease_s / 2) if t is not None]
            try:
                return self.inbox.get(timeout=min(patience) if patience else None)
            except queue.Empty:
                self._server.expire_silent()
            if left_s is not None and (left_s := left_s - min(patience)) <= 0:
                return None

    def wake(self) -> None:
        self.inbox.put(None)

    def close(self) -> None:
        with self._server._channels_lock:
            if self._server._channels.get(self._worker) is self:
                del self._server._channels[self._worker]

    def raise_if_replaced(self) -> None:
        if self.replaced:
            raise ExchangeError('it was connected again; this client is over.')


class _all:
    """Holds several locks at once, taken in order."""

    def __init__(self, locks: list[threading.Lock]):
        self._locks = locks

    def __enter__(self) -> None:
        for lock in self._locks:
            lock.acquire()

    def __exit__(self, *exc_info) -> None:
        for lock in reversed(self._locks):
            lock.release()
