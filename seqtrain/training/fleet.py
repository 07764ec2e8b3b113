"""The replicas of a run: one thread each, watched over; who fails is replaced, the rest go on.

    thread of replica n      desk ─► leases ─► replica ─► what became of them ─► monitor
    main thread              starts the threads, saves checkpoints, takes note of who failed:
                             its leases go back to the desk, the server forgets it, and it is
                             started again or, after too many times, left out

A replica that finds nothing to do ends; if leases come back later, because another one failed, it
is started once more. Errors that no other replica can be spared (the server is gone, the data are
unusable, Ctrl-C) end the run.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from seqtrain.data.leases import Lease
from seqtrain.exchange import ExchangeError
from seqtrain.training import errors
from seqtrain.training.leasing import Grant, LeaseDesk
from seqtrain.training.monitor import Failure, Monitor, Update

logger = logging.getLogger(__name__)


class ReplicaLike(Protocol):
    """A replica in this process (`replica.Replica`) or in another one."""

    @property
    def next_seq(self) -> int:
        """The number of the first push."""

    @property
    def wanted(self) -> int:
        """How many leases the next push is to be made from."""

    @property
    def horizon(self) -> int:
        """How many pushes beyond the next one it wants to know the leases of."""

    def train(
        self, leases: Sequence[Lease], position: int, following: Sequence[Lease] = ()
    ) -> list[Update]:
        """Computes and pushes one update; what became of earlier ones."""

    def finish(self) -> list[Update]:
        """Waits for all that is under way; what became of it."""


Connect = Callable[[int, int], AbstractContextManager[ReplicaLike]]
"""(number, life) -> a replica; when the context ends with an error, it leaves as a crash would."""


class Fleet:
    """Which replicas there are, how often each was started and may still be started again.

    Args:
      num_replicas: N.
      max_restarts: of each replica in the whole run, after failures.
      first_life: of every replica; higher than any before in the same folder.
    """

    def __init__(self, num_replicas: int, max_restarts: int, first_life: int = 0):
        self.alive = set(range(num_replicas))
        self.first_error: BaseException | None = None
        self._restarts = [max_restarts] * num_replicas
        self._lives = [first_life] * num_replicas

    def begin_life(self, number: int) -> int:
        """The number of the life that begins; no life of a replica has two beginnings."""
        life, self._lives[number] = self._lives[number], self._lives[number] + 1
        return life

    def life(self, number: int) -> int:
        """The life that a replica is in."""
        return self._lives[number] - 1

    def lose(self, number: int, error: BaseException) -> bool:
        """Takes note of a failure; whether the replica may be started again."""
        self.first_error = self.first_error or error
        if self._restarts[number] > 0:
            self._restarts[number] -= 1
            return True
        self.alive.discard(number)
        return False


def run_stage(
    server: Any,
    fleet: Fleet,
    connect: Connect,
    stage: str,
    desk: LeaseDesk,
    monitor: Monitor,
    *,
    every_updates: int,
    checkpoint: Callable[[], bool],
) -> None:
    """Trains one stage; returns when its budget is spent, or `checkpoint` says that it is over.

    Args:
      server: the parameters.
      fleet: who is there.
      connect: makes a replica.
      stage: its name, for the log.
      desk: hands out leases.
      monitor: takes what is to be logged.
      every_updates: the distance of checkpoints.
      checkpoint: saves one, and whether the stage is over; called here, in the main thread, while
        replicas go on.

    Raises:
      the first error of a replica: when none is left, when more of them in a row failed than there
        are without anything being completed, or when it is not the replica's own. The others are
        stopped and waited for.
      KeyboardInterrupt: after Ctrl-C, when the replicas have finished their batches.
    """
    run = _StageRun(server, fleet, connect, stage, desk, monitor)
    due = every_updates
    at_work = {number for number in fleet.alive if desk.has_work(number)}
    server.expect(sorted(at_work))
    for number in sorted(fleet.alive - at_work):
        server.expire(number)  # rounds would wait for it
    with _noting_ctrl_c(monitor.wake) as pressed:
        try:
            while not pressed and run.go_on():
                monitor.wait_for(lambda: bool(pressed) or run.has_news() or desk.completed >= due)
                if desk.completed >= due:
                    if checkpoint():
                        desk.stop()
                    due = desk.completed + every_updates
        finally:
            run.stop()
    if run.error is not None:
        raise run.error
    if pressed:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _noting_ctrl_c(wake: Callable[[], None]) -> Iterator[list[int]]:
    """Ctrl-C fills a list and wakes the main thread; pressed again it acts as it did before.

    As an exception it would cut off a checkpoint, or be lost in a library that runs loops of its
    own in the main thread. Where it is ignored, and in other threads, it is left alone.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def note(number: int, frame: Any) -> None:
        del frame
        signal.signal(number, before)
        pressed.append(number)
        wake()

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class _StageRun:
    """The threads of one stage; all methods but `_body` are the main thread's."""

    def __init__(
        self,
        server: Any,
        fleet: Fleet,
        connect: Connect,
        stage: str,
        desk: LeaseDesk,
        monitor: Monitor,
    ):
        self.error: BaseException | None = None
        self._server, self._fleet, self._connect = server, fleet, connect
        self._stage, self._desk, self._monitor = stage, desk, monitor
        self._threads: dict[int, threading.Thread] = {}
        self._ended: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
        self._failures = self._completed = 0  # failures since something was last completed

    def has_news(self) -> bool:
        """Whether a replica has ended."""
        return not self._ended.empty()

    def go_on(self) -> bool:
        """Takes note of who ended and starts who has work; whether anybody is at work."""
        while self.has_news():
            self._note(*self._ended.get())
        if self.error is None:
            for number in sorted(self._fleet.alive - self._threads.keys()):
                if self._desk.has_work(number):
                    self._start(number)
        return bool(self._threads)

    def stop(self) -> None:
        """Lets the replicas finish what they hold, and waits for them."""
        self._desk.stop()
        for thread in self._threads.values():
            thread.join()
        while self.has_news():
            number, error = self._ended.get()
            if error is not None:
                logger.warning('Replica %d failed at the end: %s', number, errors.line(error))

    def _start(self, number: int) -> None:
        life = self._fleet.begin_life(number)
        thread = threading.Thread(target=self._body, args=(number, life), name=f'replica-{number}')
        self._threads[number] = thread
        thread.start()

    def _body(self, number: int, life: int) -> None:
        error: BaseException | None = None
        try:
            with self._connect(number, life) as replica:
                self._drive(replica, number, life)
        except BaseException as caught:
            error = caught
            with contextlib.suppress(ExchangeError):  # the server may be what is gone
                self._server.expire(number)  # nobody waits for it any more
        finally:
            self._ended.put((number, error))
            self._monitor.wake()

    def _drive(self, replica: ReplicaLike, number: int, life: int) -> None:
        """A replica's thread: from lease to lease until the desk has no more."""
        seq = replica.next_seq
        waiting: collections.deque[Grant] = collections.deque()
        while True:
            while len(waiting) <= replica.horizon:
                if (grant := self._desk.take(number, replica.wanted)) is None:
                    break
                waiting.append(grant)
            if not waiting:
                break
            now = waiting.popleft()
            self._monitor.pushing(self._stage, number, life, seq, now)
            seq += 1
            following = [later.leases[0] for later in waiting]
            self._take(replica.train(now.leases, now.position, following))
        self._take(replica.finish())

    def _take(self, updates: Sequence[Update]) -> None:
        for update in updates:
            with self._monitor.together():
                self._desk.complete(update.lease)
                self._monitor.add(update)

    def _note(self, number: int, error: BaseException | None) -> None:
        """Takes note of a replica that ended."""
        self._threads.pop(number).join()
        if error is None or self.error is not None:
            return
        if not errors.of_replica(error):
            self._give_up(error)
            return
        completed = self._desk.completed
        self._failures = self._failures + 1 if completed == self._completed else 1
        self._completed = completed
        replicas = len(self._fleet.alive)
        again = self._fleet.lose(number, error)
        self._desk.release(number, [number] if again else sorted(self._fleet.alive))
        self._report(number, error, 'is started again' if again else 'is left out')
        if self._failures > replicas or not self._fleet.alive:
            self._give_up(self._fleet.first_error)

    def _report(self, number: int, error: BaseException, action: str) -> None:
        done = len(self._monitor.updates)
        failure = Failure(
            self._stage, number, self._fleet.life(number), done, errors.line(error), action
        )
        self._monitor.failed(failure)
        logger.warning('%s', failure, exc_info=error)

    def _give_up(self, error: BaseException | None) -> None:
        self.error = error
        self._desk.stop()
