"""Faults on purpose: a replica that dies at a given step, messages lost, doubled, held back.

A `FaultPlan` is exact and repeatable: it names the replica and the step, or counts messages, or
draws from a seed. Nothing here is imported by a run that has no plan.
"""

from __future__ import annotations

import random
import threading

from seqtrain.exchange.courier import Channel
from seqtrain.exchange.messages import Message, Push, Reply


class InjectedFault(RuntimeError):
    """A replica died because a plan said so."""


class FaultPlan:
    """What shall go wrong. Shared by all replicas of a run.

    Args:
      seed: of the random message faults.
      lose, double, hold: probabilities per message sent that it is lost, sent twice, or held back
        until the next message of the same replica has gone (reordered). Answers are lost with
        probability `lose` too. Clients need `retry_s` to live with losses.
    """

    def __init__(self, seed: int = 0, lose: float = 0.0, double: float = 0.0, hold: float = 0.0):
        self.lose, self.double, self.hold = lose, double, hold
        self.counts = {'lost': 0, 'doubled': 0, 'held': 0, 'killed': 0}
        self._deaths: set[tuple[int, int]] = set()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def fail_at(self, worker: int, step: int) -> FaultPlan:
        """Lets a replica die when it calls `push` for the step-th time (from 0), just before."""
        self._deaths.add((worker, step))
        return self

    def dies(self, worker: int, step: int) -> bool:
        """Whether this replica dies now; each death happens once, the restarted one lives."""
        with self._lock:
            if (worker, step) not in self._deaths:
                return False
            self._deaths.discard((worker, step))
            self.counts['killed'] += 1
            return True

    def draw(self, *, answer: bool = False) -> str:
        """What happens to the next message: 'pass', 'lost', 'doubled' or 'held'."""
        with self._lock:
            x = self._random.random()
            kinds = [('lost', self.lose)]
            if not answer:
                kinds += [('doubled', self.double), ('held', self.hold)]
            for kind, probability in kinds:
                if x < probability:
                    self.counts[kind] += 1
                    return kind
                x -= probability
            return 'pass'


class FaultyChannel:
    """A replica's line on which a plan's message faults happen."""

    def __init__(self, channel: Channel, plan: FaultPlan):
        self._channel, self._plan = channel, plan
        self._held: list[tuple[int, Message]] = []

    def send(self, shard: int, message: Message) -> None:
        fate = self._plan.draw()
        if fate == 'held' and isinstance(message, Push):
            self._held.append((shard, message))
            return
        if fate != 'lost':
            self._channel.send(shard, message)
        if fate == 'doubled':
            self._channel.send(shard, message)
        held, self._held = self._held, []
        for late in held:
            self._channel.send(*late)

    def receive(self, timeout_s: float | None) -> tuple[int, Reply] | None:
        got = self._channel.receive(timeout_s)
        if got is not None and self._plan.draw(answer=True) == 'lost':
            return None
        return got

    def wake(self) -> None:
        self._channel.wake()

    def close(self) -> None:
        self._channel.close()
