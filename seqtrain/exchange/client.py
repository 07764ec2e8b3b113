"""`Client`: what a replica holds of the exchange. One background thread, one bounded queue.

    with server.connect(worker=0) as client:
        for batch in batches:
            params, versions = client.latest()
            client.push(gradient(params, batch), versions, frames=batch.frames)

`push` hands the update over and returns: waiting for the device, copying to the host, sending and
pulling happen in the thread, while the device works on. Only three things make the caller wait: a
full queue (back-pressure), the very first parameters, and a mode that forbids going on with old
ones (sync, bounded staleness by waiting, `overlap=False`).

Ownership: an update's JAX arrays must not be donated to a later computation (they are read in the
thread); NumPy leaves are copied at `push`. Pulled trees share nothing with the server; their NumPy
leaves are read-only, since `latest` hands a tree out again where no newer one has come.

Thread contract: one replica thread calls a client. An error in the background thread is raised at
that replica's next call, and by `close`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from seqtrain.exchange.courier import (
    Channel,
    Courier,
    ExchangeError,
    Facts,
    Pulled,
    Stats,
    Versions,
)
from seqtrain.exchange.faults import FaultPlan, FaultyChannel, InjectedFault
from seqtrain.exchange.messages import Reject, versions_under_way
from seqtrain.exchange.partition import Partition

logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Work:
    """One item of the queue: a push and the pull after it, or the pull alone."""

    number: int
    push: tuple[Any, Versions, int, Facts] | None = None


class Client:
    """A replica's end of the exchange; made by a server's `connect`.

    Args:
      channel: the transport's line to the shards.
      partition: how the parameters are cut.
      worker: this replica's number.
      overlap: `latest` never waits: the device computes while the exchange goes on, and so with
        parameters that miss the replica's own last push and all others' since. False waits for the
        pull that follows the last push: the device rests for one exchange, staleness halves. Worth
        it where an exchange is short beside a step. Sync always waits.
      take_turns: `latest` asks for its turn and waits for it; nothing is pulled in between, so that
        a replica that rests holds nobody up (staleness bounded by waiting).
      queue_size: pushes that may wait before `push` blocks.
      device: where pulled parameters are put; None leaves them as NumPy arrays.
      retry_s: after so long without an answer a message is sent again; None means never.
      codec: 'float32', 'bfloat16' or 'int8': how updates are sent, with error feedback.
      life: how often this replica was started before: what an earlier life sends is refused.
      faults: what shall go wrong, in tests.
    """

    def __init__(
        self,
        channel: Channel,
        partition: Partition,
        worker: int,
        *,
        overlap: bool = True,
        take_turns: bool = False,
        queue_size: int = 2,
        device: jax.Device | None = None,
        retry_s: float | None = None,
        codec: str = 'float32',
        life: int = 0,
        faults: FaultPlan | None = None,
    ):
        if queue_size < 1:
            raise ValueError(f'queue_size is {queue_size}; at least 1.')
        self.worker = worker
        self._faults = faults
        self._channel = channel = FaultyChannel(channel, faults) if faults else channel
        self._overlap, self._take_turns = overlap, take_turns
        self._queue_size = queue_size
        self._cond = threading.Condition()
        self._work: collections.deque[_Work] = collections.deque()
        self._given = self._done = 0  # numbers of the last work given and done
        self._next_seq = -1  # unknown before the shards have answered
        self._newest: Pulled | None = None
        self._unread = False
        self._error: BaseException | None = None
        self._closing = self._killed = False
        self._courier = Courier(
            channel,
            partition,
            worker,
            in_order=take_turns,
            device=device,
            retry_s=retry_s,
            codec=codec,
            life=life,
            keep=versions_under_way(queue_size),
            stop=lambda: self._closing,
            abandon=lambda: self._killed,
        )
        self._thread = threading.Thread(target=self._run, name=f'exchange-{worker}', daemon=True)
        self._thread.start()

    # -- the replica's side -----------------------------------------------------------------

    def push(
        self,
        update: Any,
        versions: Versions,
        frames: float = 1.0,
        s2: int = 0,
        *,
        steps: int = 1,
        step_s: float = 0.0,
        timeout_s: float | None = None,
    ) -> int:
        """Hands an update over and returns its number; waits only while the queue is full.

        Args:
          update: tree like the parameters: gradient, pseudo-gradient or values, as the rule wants.
          versions: what came with the parameters that the update was computed from.
          frames: frames behind the update, its weight.
          s2: age of the outer derivatives in versions, for the log.
          steps: local steps behind the update, for the log.
          step_s: measured seconds per local step; what `local_steps` goes by.
          timeout_s: how long to wait for a place in the queue; None means for ever.

        Raises:
          ExchangeError: the thread failed, the client is closed, or the queue stayed full.
        """
        if self._faults and self._faults.dies(self.worker, self._courier.stats.pushes):
            self.kill()
            raise InjectedFault(f'Replica {self.worker} dies before push {self._next_seq}.')
        facts = Facts(float(frames), int(s2), int(steps), float(step_s))
        update = jax.tree.map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, update)
        with self._cond:
            if not self._wait(self._has_room, timeout_s):
                raise ExchangeError(
                    f'Replica {self.worker}: the queue of {self._queue_size} stayed full for '
                    f'{timeout_s} s; a shard is slow or down.'
                )
            seq, self._next_seq = self._next_seq, self._next_seq + 1
            self._courier.stats.pushes += 1
            self._give((update, versions, seq, facts))
            return seq

    @property
    def next_seq(self) -> int:
        """The number that the next push will have; waits until the shards have answered."""
        with self._cond:
            self._wait(lambda: self._next_seq >= 0)
            return self._next_seq

    def local_steps(self, most: int) -> int:
        """How many local steps to take so that all replicas push equally often (DyLU).

        ⌊v/v_max · H⌋, at least 1 (Liu et al. 2024, arXiv 2401.09135), from the speeds v that the
        replicas report with their pushes; H until they have.
        """
        with self._cond:
            speed = self._newest.versions.speed if self._newest is not None else 1.0
        return max(1, int(speed * most))

    def poll(self) -> Pulled | None:
        """The newest parameters if they have not been handed out yet, else None. Never waits."""
        with self._cond:
            self._raise_if_failed()
            return self._read() if self._unread else None

    def latest(self) -> Pulled:
        """The parameters for the next step; waits as the mode demands, and for the first ones."""
        if self._take_turns:
            return self._pull_now()
        with self._cond:
            self._wait_for_params(0 if self._overlap else self._given)
            return self._read()

    def pull(self, wait: bool = True) -> Pulled | None:
        """Parameters that are newer than everything pushed so far.

        Args:
          wait: False only asks for them; `poll` will have them later.
        """
        if wait:
            return self._pull_now()
        with self._cond:
            self._ask_if_idle()
        return None

    def flush(self) -> None:
        """Waits until every push so far was applied or refused."""
        with self._cond:
            self._wait(lambda: self._done >= self._given)

    def stats(self) -> Stats:
        """Counters so far; raises what the thread raised."""
        with self._cond:
            self._raise_if_failed()
            return dataclasses.replace(self._courier.stats)

    @property
    def rejections(self) -> list[Reject]:
        """The last hundred refusals, oldest first."""
        return list(self._courier.rejections)

    def close(self, timeout_s: float = 60.0) -> None:
        """Sends what is queued, leaves, ends the thread. Raises what the thread raised."""
        self._end(timeout_s)
        with self._cond:
            error, self._error = self._error, None
        if error is not None:
            raise ExchangeError(f'Replica {self.worker}: {error}') from error

    def kill(self, timeout_s: float = 60.0) -> None:
        """Ends the thread as a crash would: nothing more is sent, the server is not told."""
        with self._cond:
            self._killed = True
            self._work.clear()
        self._end(timeout_s)

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

    def _end(self, timeout_s: float) -> None:
        with self._cond:
            self._closing = True
            self._cond.notify_all()
        self._channel.wake()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise ExchangeError(
                f'Replica {self.worker}: the exchange thread did not end within {timeout_s} s; '
                'in sync mode another replica may have died: expire it, or close the server.'
            )

    def _give(self, push: tuple[Any, Versions, int, Facts] | None) -> None:
        self._given += 1
        self._work.append(_Work(self._given, push))
        self._cond.notify_all()

    def _pull_now(self) -> Pulled:
        with self._cond:
            self._ask_if_idle()
            self._wait_for_params(self._given)
            return self._read()

    def _ask_if_idle(self) -> None:
        """Queues a pull, unless one will follow a queued push anyway."""
        self._raise_if_failed()
        if self._take_turns or (self._given == self._done and self._newest is not None):
            self._give(None)

    def _read(self) -> Pulled:
        assert self._newest is not None
        self._unread = False
        return self._newest

    def _wait_for_params(self, number: int) -> None:
        self._wait(lambda: self._newest is not None and self._done >= number)

    def _has_room(self) -> bool:
        return len(self._work) < self._queue_size and self._next_seq >= 0

    def _wait(self, ready: Callable[[], bool], timeout_s: float | None = None) -> bool:
        started = time.perf_counter()
        self._cond.wait_for(lambda: self._failed() or ready(), timeout_s)
        self._courier.stats.blocked_s += time.perf_counter() - started
        self._raise_if_failed()
        return ready()

    def _failed(self) -> bool:
        return self._error is not None or self._closing

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise ExchangeError(f'Replica {self.worker}: {self._error}') from self._error
        if self._closing:
            raise ExchangeError(f'Replica {self.worker}: the client is closed.')

    # -- the background thread --------------------------------------------------------------

    def _run(self) -> None:
        with self._errors_kept():
            joined = self._courier.join()
            if joined is not None:
                with self._cond:
                    pulled, self._next_seq = joined
                    if not self._take_turns:
                        self._newest, self._unread = pulled, True
                    self._cond.notify_all()
                while (work := self._next_work()) is not None:
                    self._do(work)
            if not self._killed:
                self._courier.leave()

    @contextlib.contextmanager
    def _errors_kept(self) -> Iterator[None]:
        """Hands what happens in the thread to the replica; nobody waits for one that failed."""
        try:
            yield
        except BaseException as error:
            with self._cond:
                self._error = None if self._killed else error
            if not self._killed:
                with contextlib.suppress(Exception):  # the first error is the one to see
                    self._courier.leave()
        finally:
            with self._cond:
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
        pulled = self._exchange(work)
        work.push = None  # the device may have its memory back
        with self._cond:
            if self._work:
                self._work.popleft()
            self._done = work.number
            if pulled is not None:
                self._newest, self._unread = pulled, True
            self._courier.stats.exchange_s += time.perf_counter() - started
            self._cond.notify_all()

    def _exchange(self, work: _Work) -> Pulled | None:
        if work.push is None:
            return None if self._closing else self._courier.pull()
        if self._take_turns or self._closing:
            self._courier.push(*work.push)
            return None
        return self._courier.push_and_pull(*work.push)
