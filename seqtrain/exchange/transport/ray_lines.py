"""The lines between processes: a replica's to the shards, and the one that fetches the events."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from seqtrain.exchange.courier import ExchangeError
from seqtrain.exchange.messages import Event, Leave, Message, Push, Reason, Reply, refused


def load_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ExchangeError(
            "The ray transport needs Ray. In a checkout of seqtrain: pip install '.[dist]'."
        ) from error
    return ray


PATIENCE_S = 180.0
"""How long a shard may take to come back after a crash, on a busy machine."""

LEAVE_S = 5.0
"""How long a replica that goes waits until the shards know: its process may end right after."""


def gone(shard: str, patience_s: float, error: Exception) -> ExchangeError:
    """What to say when a shard did not come back in time."""
    why = (
        f'does not come back within {patience_s:.0f} s: the machine is too busy to start it again, '
        'or it ends each time (its log is with those of Ray).'
        if patience_s
        else 'is gone; give the server a directory, so that shards can restart.'
    )
    return ExchangeError(f'{shard} {why} Ray says: {str(error)[-400:]}')


class Watcher:
    """Fetches the shards' new events once a second and hands them on, in a thread of its own."""

    def __init__(self, actors: Sequence[Any], on_event: Callable[[Event], None]):
        self._actors, self._on_event = actors, on_event
        self._seen: dict[int, tuple[int, int]] = {}  # shard -> (process id, events seen)
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name='exchange-events', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Fetches what is left; raises what `on_event` raised."""
        self._done.set()
        self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises what `on_event` has raised; from then on no event is handed on."""
        if self._error is not None:
            raise ExchangeError(f'on_event failed: {self._error}') from self._error

    def _run(self) -> None:
        try:
            while not self._done.wait(1.0):
                self._fetch()
            self._fetch()
        except BaseException as error:  # raised by check() and close()
            self._error = error

    def _fetch(self) -> None:
        ray = load_ray()
        for shard, actor in enumerate(self._actors):
            process, seen = self._seen.get(shard, (-1, 0))
            try:
                now, events = ray.get(actor.events.remote(seen, process))
            except ray.exceptions.RayActorError:
                continue  # it is being started again
            if now != process:  # a new process counts from 0
                seen = 0
            for event in events:
                self._on_event(event)
            self._seen[shard] = (now, seen + len(events))


class RayChannel:
    """One replica's line to the shards: a Ray call per shard, answered when its replies are due.

    Messages to one shard that are sent together travel in one call: an asyncio actor may begin
    calls in any order, and a pull must not overtake the push before it.

    Args:
      actors: the shards.
      patience_s: how long a shard may be away (restarting) before the replica gives up; 0: none
        can come back.
    """

    def __init__(self, actors: Sequence[Any], patience_s: float = PATIENCE_S):
        self._actors, self._patience_s = actors, patience_s
        self._outbox: dict[int, list[Message]] = {}
        self._inbox: collections.deque[tuple[int, Reply]] = collections.deque()
        self._calls: dict[Any, tuple[int, list[Message]]] = {}
        self._farewells: list[Any] = []  # calls with a `Leave`
        self._away_since: dict[int, float] = {}
        self._woken = threading.Event()

    def send(self, shard: int, message: Message) -> None:
        self._outbox.setdefault(shard, []).append(message)
        if isinstance(message, Leave):
            self._post()  # nobody will call `receive`

    def _post(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for shard, messages in outbox.items():
            call = self._actors[shard].call.remote(messages)
            if any(isinstance(message, Leave) for message in messages):
                self._farewells.append(call)
            if not all(isinstance(message, Leave) for message in messages):
                self._calls[call] = (shard, messages)

    def receive(self, timeout_s: float | None) -> tuple[int, Reply] | None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._inbox:
            self._post()
            if self._woken.is_set():
                self._woken.clear()
                return None
            if deadline is not None and time.monotonic() > deadline:
                return None
            ray = load_ray()
            done, _ = ray.wait(list(self._calls), num_returns=1, timeout=0.2)
            for call in done:
                self._finish(call)
        return self._inbox.popleft()

    def _finish(self, call: Any) -> None:
        """Takes the replies of a call that is done."""
        ray = load_ray()
        shard, messages = self._calls.pop(call)
        try:
            replies = ray.get(call)
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            self._lost(shard, messages, error)
            return
        self._away_since.pop(shard, None)
        self._inbox.extend((shard, reply) for reply in replies)

    def _lost(self, shard: int, messages: list[Message], error: Exception) -> None:
        """The shard died: a push is given up (it may have been applied), the rest asked again."""
        since = self._away_since.setdefault(shard, time.monotonic())
        if time.monotonic() - since > self._patience_s:
            raise gone(f'Shard {shard}', self._patience_s, error) from error
        for message in messages:
            if isinstance(message, Push):
                text = f'Push {message.seq} to shard {shard} was under way when the shard died.'
                self._inbox.append((shard, refused(message, Reason.NOT_JOINED, text)))
            else:
                self.send(shard, message)
        time.sleep(0.1)

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        """Returns when the shards have heard that the replica left, at the latest after LEAVE_S."""
        self._calls.clear()
        farewells, self._farewells = self._farewells, []
        if farewells:
            load_ray().wait(farewells, num_returns=len(farewells), timeout=LEAVE_S)
