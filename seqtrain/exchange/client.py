"""`Client`: what a replica holds of the exchange. One background thread, one bounded queue.

    with server.connect(worker=0) as client:
        for batch in batches:
            params, versions = client.latest()
            client.push(gradient(params, batch), versions, frames=batch.frames)

`push` hands the update over and returns: waiting for the device, copying to the host, sending and
pulling happen in the thread, while the device works on. Only three things make the caller wait: a
full queue (back-pressure), the very first parameters, and a mode that forbids going on with old
ones (sync, or bounded staleness by waiting).

Ownership: an update's JAX arrays must not be donated to a later computation (they are read in the
thread); NumPy leaves are copied at `push`. Pulled trees belong to the caller.

Thread contract: one replica thread calls a client. An error in the background thread is raised at
that replica's next call, and by `close`.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from seqtrain.exchange.messages import (
    Ack,
    Join,
    Leave,
    Message,
    Params,
    Pull,
    Push,
    Reason,
    Reject,
    Reply,
)
from seqtrain.exchange.partition import Partition

logger = logging.getLogger(__name__)


class ExchangeError(RuntimeError):
    """The exchange cannot go on; the message says why and what to do."""


class Versions(NamedTuple):
    """Where pulled parameters come from: one version and one generation per shard."""

    numbers: tuple[int, ...]
    generations: tuple[int, ...]


class Pulled(NamedTuple):
    """Parameters and their versions."""

    params: Any
    versions: Versions


class Channel(Protocol):
    """A replica's line to all shards, as a transport provides it."""

    def send(self, shard: int, message: Message) -> None:
        """Sends one message; raises `ExchangeError` when the server is gone for good."""

    def receive(self, timeout_s: float | None) -> tuple[int, Reply] | None:
        """The next (shard, reply), or None after a timeout or a `wake`."""

    def wake(self) -> None:
        """Makes a `receive` in another thread return None soon."""

    def close(self) -> None:
        """Frees the line; idempotent."""


@dataclasses.dataclass(frozen=True)
class Stats:
    """Counters of one client, in pushes, pulls, bytes and seconds since it was made."""

    pushes: int = 0
    applied: int = 0
    rejected: int = 0
    pulls: int = 0
    retries: int = 0
    rejoins: int = 0
    bytes_pushed: int = 0
    bytes_pulled: int = 0
    staleness_sum: int = 0
    acks: int = 0
    blocked_s: float = 0.0
    exchange_s: float = 0.0

    @property
    def mean_staleness(self) -> float:
        """Mean server age s1 over shards and applied pushes."""
        return self.staleness_sum / self.acks if self.acks else 0.0


@dataclasses.dataclass(eq=False)
class _Work:
    """One item of the queue: a push, or a plain pull where update is None."""

    number: int
    seq: int = -1
    update: Any = None
    versions: Versions | None = None
    frames: float = 1.0
    s2: int = 0


class Client:
    """A replica's end of the exchange; made by a server's `connect`.

    Args:
      channel: the transport's line to the shards.
      partition: how the parameters are cut.
      worker: this replica's number.
      wait_for_fresh: whether `latest` must wait for the pull that follows the last push.
      queue_size: pushes that may wait before `push` blocks.
      device: where pulled parameters are put; None leaves them as NumPy arrays.
      retry_s: after so long without an answer a message is sent again; None means never.
    """

    def __init__(
        self,
        channel: Channel,
        partition: Partition,
        worker: int,
        *,
        wait_for_fresh: bool = False,
        queue_size: int = 2,
        device: jax.Device | None = None,
        retry_s: float | None = None,
    ):
        if queue_size < 1:
            raise ValueError(f'queue_size is {queue_size}; at least 1.')
        self.worker = worker
        self._channel, self._partition = channel, partition
        self._wait_for_fresh, self._queue_size = wait_for_fresh, queue_size
        self._device, self._retry_s = device, retry_s
        self._cond = threading.Condition()
        self._work: collections.deque[_Work] = collections.deque()
        self._given = self._done = 0  # numbers of the last work given and done
        self._next_seq = -1  # unknown before the shards have answered
        self._newest: Pulled | None = None
        self._unread = False
        self._error: BaseException | None = None
        self._closing = self._stopped = self._killed = False
        self._stats = Stats()
        self.rejections: collections.deque[Reject] = collections.deque(maxlen=100)
        self._thread = threading.Thread(target=self._run, name=f'exchange-{worker}', daemon=True)
        self._thread.start()

    # -- the replica's side -----------------------------------------------------------------

    def push(self, update: Any, versions: Versions, frames: float = 1.0, s2: int = 0) -> int:
        """Hands an update over and returns its number; waits only while the queue is full.

        Args:
          update: tree like the parameters: gradient, pseudo-gradient or values, as the rule wants.
          versions: what came with the parameters that the update was computed from.
          frames: frames behind the update, its weight.
          s2: age of the outer derivatives in versions, for the log.
        """
        update = jax.tree.map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, update)
        with self._cond:
            started = time.perf_counter()
            self._wait(lambda: len(self._work) < self._queue_size and self._next_seq >= 0)
            self._count(pushes=1, blocked_s=time.perf_counter() - started)
            seq, self._next_seq = self._next_seq, self._next_seq + 1
            self._give(_Work(0, seq, update, versions, float(frames), s2))
            return seq

    def poll(self) -> Pulled | None:
        """The newest parameters if they have not been handed out yet, else None. Never waits."""
        with self._cond:
            self._raise_if_failed()
            if not self._unread:
                return None
            self._unread = False
            return self._newest

    def latest(self) -> Pulled:
        """The parameters for the next step; waits as the mode demands, and for the first ones."""
        with self._cond:
            target = self._given if self._wait_for_fresh else 0
            self._wait_for_params(target)
            return self._read()

    def pull(self, wait: bool = True) -> Pulled | None:
        """Parameters that are newer than everything pushed so far.

        Args:
          wait: False only asks for them; `poll` will have them later.
        """
        with self._cond:
            self._raise_if_failed()
            if self._given == self._done and self._newest is not None:
                self._give(_Work(0))
            if not wait:
                return None
            self._wait_for_params(self._given)
            return self._read()

    def flush(self) -> None:
        """Waits until every push so far was applied or refused."""
        with self._cond:
            self._wait(lambda: self._done >= self._given)

    def stats(self) -> Stats:
        """Counters so far; raises what the thread raised."""
        with self._cond:
            self._raise_if_failed()
            return self._stats

    def close(self, timeout_s: float = 60.0) -> None:
        """Sends what is queued, leaves, ends the thread. Raises what the thread raised."""
        with self._cond:
            self._closing = True
            self._cond.notify_all()
        self._channel.wake()
        self._join_thread(timeout_s)
        with self._cond:
            error, self._error = self._error, None
        if error is not None:
            raise ExchangeError(f'Replica {self.worker}: {error}') from error

    def kill(self, timeout_s: float = 60.0) -> None:
        """Ends the thread as a crash would: nothing more is sent, the server is not told."""
        with self._cond:
            self._closing = self._killed = True
            self._work.clear()
            self._cond.notify_all()
        self._channel.wake()
        self._join_thread(timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            self.close()
            return
        try:  # the body's error is the one to see
            self.close()
        except ExchangeError:
            logger.exception('Replica %d: closing failed too.', self.worker)

    def _join_thread(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise ExchangeError(
                f'Replica {self.worker}: the exchange thread did not end within {timeout_s} s; '
                'in sync mode another replica may have died: expire it, or close the server.'
            )

    def _read(self) -> Pulled:
        assert self._newest is not None
        self._unread = False
        return self._newest

    def _give(self, work: _Work) -> None:
        self._given += 1
        work.number = self._given
        self._work.append(work)
        self._cond.notify_all()

    def _wait_for_params(self, number: int) -> None:
        self._wait(lambda: self._newest is not None and self._done >= number)

    def _wait(self, ready) -> None:
        while True:
            self._raise_if_failed()
            if ready():
                return
            self._cond.wait()

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise ExchangeError(f'Replica {self.worker}: {self._error}') from self._error
        if self._closing or self._stopped:
            raise ExchangeError(f'Replica {self.worker}: the client is closed.')

    def _count(self, **more: float) -> None:
        now = {name: getattr(self._stats, name) + value for name, value in more.items()}
        self._stats = dataclasses.replace(self._stats, **now)

    # -- the background thread --------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._join(range(self._partition.num_shards))
            while (work := self._next_work()) is not None:
                self._do(work)
            if not self._killed:
                for shard in range(self._partition.num_shards):
                    self._channel.send(shard, Leave(self.worker))
        except BaseException as error:  # handed to the replica, whatever it is
            with self._cond:
                if not self._killed:
                    self._error = error
        finally:
            with self._cond:
                self._stopped = True
                self._work.clear()
                self._cond.notify_all()
            self._channel.close()

    def _next_work(self) -> _Work | None:
        with self._cond:
            while not self._work and not self._closing:
                self._cond.wait()
            return self._work[0] if self._work else None

    def _do(self, work: _Work) -> None:
        started = time.perf_counter()
        if work.update is not None:
            self._send_push(work)
        work.update = None  # the device may have its memory back
        pulled = None if self._closing else self._pull()
        with self._cond:
            if self._work:
                self._work.popleft()
            self._done = work.number
            if pulled is not None:
                self._newest, self._unread = pulled, True
            self._count(pulls=pulled is not None, exchange_s=time.perf_counter() - started)
            self._cond.notify_all()

    def _send_push(self, work: _Work) -> None:
        assert work.versions is not None
        shards = self._partition.split(work.update)
        pushes: dict[int, Message] = {
            s: Push(
                self.worker,
                work.seq,
                work.versions.numbers[s],
                update,
                work.frames,
                work.s2,
                work.versions.generations[s],
            )
            for s, update in enumerate(shards)
        }
        lost = []
        for shard, reply in self._ask(pushes).items():
            if isinstance(reply, Reject):
                self._note_rejection(reply)
                if reply.reason in (Reason.NOT_JOINED, Reason.GENERATION):
                    lost.append(shard)
            elif isinstance(reply, Ack):
                with self._cond:
                    self._count(applied=1, acks=1, staleness_sum=reply.staleness)
        with self._cond:
            self._count(bytes_pushed=sum(u.nbytes for u in shards))
        if lost:
            self._join(lost)

    def _note_rejection(self, reply: Reject) -> None:
        if reply.reason in (Reason.CLOSED, Reason.UNKNOWN_WORKER):
            raise ExchangeError(reply.text)
        if reply.reason == Reason.DUPLICATE:
            return  # our own retry: the first copy was taken
        logger.warning('Replica %d: %s', self.worker, reply.text)
        with self._cond:
            self.rejections.append(reply)
            self._count(rejected=1)

    def _join(self, shards) -> None:
        """Joins some shards; after a restart of one of them, again."""
        replies = self._ask_params({s: Join(self.worker) for s in shards})
        if self._newest is not None:
            with self._cond:
                self._count(rejoins=1)
            return  # the pull that follows brings the values
        if len(replies) == self._partition.num_shards:
            pulled = self._assemble(replies)
            with self._cond:
                self._next_seq = 1 + max(r.last_seq for r in replies.values())
                self._newest, self._unread = pulled, True
                self._count(pulls=1)
                self._cond.notify_all()

    def _pull(self) -> Pulled | None:
        num_shards = self._partition.num_shards
        replies: dict[int, Params] = {}
        if self._wait_for_fresh:  # one after the other, in order: no circle of waiting replicas
            for shard in range(num_shards):
                replies |= self._ask_params({shard: Pull(self.worker)})
        else:
            replies = self._ask_params({s: Pull(self.worker) for s in range(num_shards)})
        return self._assemble(replies) if len(replies) == num_shards else None

    def _assemble(self, replies: dict[int, Params]) -> Pulled:
        shards = [replies[s] for s in range(self._partition.num_shards)]
        tree = self._partition.join([params.values for params in shards])
        if self._device is not None:
            tree = jax.device_put(tree, self._device)
        with self._cond:
            self._count(bytes_pulled=4 * self._partition.size)
        versions = Versions(
            tuple(params.version for params in shards),
            tuple(params.generation for params in shards),
        )
        return Pulled(tree, versions)

    def _ask_params(self, messages: dict[int, Message]) -> dict[int, Params]:
        replies = self._ask(messages, pull=True)
        return {s: reply for s, reply in replies.items() if isinstance(reply, Params)}

    def _ask(self, messages: dict[int, Message], pull: bool = False) -> dict[int, Reply]:
        """Sends one message per shard and waits for the answers.

        A pull is abandoned when the client closes; a shard that does not know this replica (any
        more) is joined again, and its answer to that counts as the answer to the pull.
        """
        waiting, replies = dict(messages), dict[int, Reply]()
        for shard, message in messages.items():
            self._channel.send(shard, message)
        while waiting and not (self._closing and (pull or self._killed)):
            got = self._channel.receive(self._retry_s)
            if got is None:
                self._retry(waiting)
                continue
            shard, reply = got
            if shard not in waiting or not answers(waiting[shard], reply):
                continue
            if isinstance(reply, Reject) and pull:
                self._note_rejection(reply)
                waiting[shard] = Join(self.worker)
                self._channel.send(shard, waiting[shard])
                continue
            replies[shard] = reply
            del waiting[shard]
        return replies

    def _retry(self, waiting: dict[int, Message]) -> None:
        if self._retry_s is None or (self._closing and self._killed):
            return
        for shard, message in waiting.items():
            self._channel.send(shard, message)
        with self._cond:
            self._count(retries=1)


def answers(message: Message, reply: Reply) -> bool:
    """Whether a reply belongs to a message; late or doubled replies do not."""
    if isinstance(message, Push):
        return isinstance(reply, Ack | Reject) and reply.seq == message.seq
    return isinstance(reply, Params) or (isinstance(reply, Reject) and reply.seq == -1)
