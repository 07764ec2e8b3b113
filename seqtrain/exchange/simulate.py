"""The exchange under virtual time: the same `ShardState` and rules, with made-up clocks.

Replicas compute, push and pull for as long as distributions say; messages take their latency and
their bytes; a shard serves one message after the other; replicas and shards die and come back. It
is deterministic by seed, and knows two depths: time only (a `Counter` store), or real gradients of
a `Problem` through a real rule.

A simulated replica behaves as `Client` does: its exchange goes on beside its computing, at most
`queue_size` pushes wait, and in sync mode or under a waiting bound it rests until it may go on.
Not here: lost messages (see `faults`), and the contention of replicas for one machine's cores.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from seqtrain.exchange.messages import (
    Ack,
    Event,
    Join,
    Leave,
    Message,
    Params,
    Pull,
    Push,
    Reject,
    Reply,
)
from seqtrain.exchange.scenario import Dist, Problem, Result, Scenario
from seqtrain.exchange.state import ShardState
from seqtrain.exchange.store import Counter, Store


class _Draws:
    """Numbers of one distribution, drawn in blocks: a call per number is far slower."""

    def __init__(self, dist: Dist, rng: np.random.Generator):
        self._dist, self._rng = dist, rng
        self._block: list[float] = []

    def __call__(self) -> float:
        if not self._block:
            self._block = self._dist.draw(self._rng, 4096).tolist()
        return self._block.pop()


@dataclasses.dataclass
class _Replica:
    """A simulated replica. `life` counts its incarnations: events of an earlier one are void."""

    number: int
    slowness: float
    bandwidth: float
    life: int = 0
    alive: bool = True
    computing: bool = False
    joined: bool = False
    fresh: bool = False
    seq: int = 0
    step: int = 0
    versions: tuple[int, ...] = ()
    values: Any = None
    queue: collections.deque = dataclasses.field(default_factory=collections.deque)
    asked: dict[int, type] = dataclasses.field(default_factory=dict)
    answers: dict[int, Reply] = dataclasses.field(default_factory=dict)
    generations: tuple[int, ...] = ()
    busy_s: float = 0.0


class Simulation:
    """One run of a scenario.

    Args:
      scenario: see `Scenario`.
      rule: what the shards do with an update; needed with a problem.
      problem: what is trained; None simulates time only.
    """

    def __init__(
        self,
        scenario: Scenario,
        rule: optax.GradientTransformation | None = None,
        problem: Problem | None = None,
    ):
        if (rule is None) != (problem is None):
            raise ValueError('Give a rule and a problem, or neither (time only).')
        self._scenario, self._problem = scenario, problem
        rng = np.random.default_rng(scenario.seed)
        self._step_s = _Draws(scenario.step_s, rng)
        self._latency_s = _Draws(scenario.latency_s, rng)
        self._rng = np.random.default_rng((scenario.seed, 1))
        self._events: list[tuple[float, int, Callable, tuple]] = []
        self._count = 0
        self._now = 0.0
        self._rejected = self._deaths = self._shard_deaths = 0
        self._applied: list[tuple[float, int, int]] = []
        self._loss: list[tuple[float, float]] = []
        self._shards = self._make_shards(rule)
        self._free_s = [0.0] * scenario.num_shards
        self._saved = [shard.snapshot() for shard in self._shards]
        self._replicas = self._make_replicas()

    def _make_shards(self, rule: optax.GradientTransformation | None) -> list[ShardState]:
        s, problem = self._scenario, self._problem
        stores: list[Store | Counter] = [Counter() for _ in range(s.num_shards)]
        if problem is not None and rule is not None:
            parts = np.array_split(problem.start(), s.num_shards)
            stores = [Store(part, rule) for part in parts]
        return [
            ShardState(store, s.policy, shard=i, on_event=self._on_event)
            for i, store in enumerate(stores)
        ]

    def _make_replicas(self) -> list[_Replica]:
        s = self._scenario
        factors = s.slowness.draw(np.random.default_rng((s.seed, 2)), s.policy.num_workers)
        for number, factor in s.slow:
            factors[number] *= factor
        lines = s.bandwidth.draw(np.random.default_rng((s.seed, 3)), s.policy.num_workers)
        pairs = zip(factors.tolist(), lines.tolist(), strict=True)
        return [_Replica(n, factor, line) for n, (factor, line) in enumerate(pairs)]

    def run(self) -> Result:
        """Simulates the scenario from its start to its end."""
        s = self._scenario
        for replica in self._replicas:
            self._at(0.0, self._join, replica, replica.life)
            self._plan_death(replica)
        for shard in range(s.num_shards):
            self._plan_shard_death(shard)
        if np.isfinite(s.shard_mtbf_s):
            self._at(s.checkpoint_s, self._checkpoint)
        if self._problem is not None:
            self._at(0.0, self._sample)
        while self._events and self._events[0][0] <= s.duration_s:
            self._now, _, action, args = heapq.heappop(self._events)
            action(*args)
        return self._result()

    def _result(self) -> Result:
        s = self._scenario
        times, workers, ages = zip(*self._applied, strict=True) if self._applied else ((), (), ())
        return Result(
            s,
            np.array(times),
            np.array(workers, np.int32),
            np.array(ages, np.int32),
            self._rejected,
            self._deaths,
            self._shard_deaths,
            np.array([min(r.busy_s / s.duration_s, 1.0) for r in self._replicas]),
            tuple(self._loss),
            self._count,
        )

    def _at(self, time_s: float, action: Callable, *args: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (time_s, self._count, action, args))

    def _on_event(self, event: Event) -> None:
        if event.kind == 'applied' and event.shard == 0:
            self._applied.append((event.time_s, event.worker, event.s1))
        elif event.kind == 'rejected':
            self._rejected += 1

    def _sample(self) -> None:
        assert self._problem is not None
        values = np.concatenate([np.asarray(shard.store.read()) for shard in self._shards])
        self._loss.append((self._now, self._problem.loss(values)))
        self._at(self._now + self._scenario.sample_s, self._sample)

    # -- messages ---------------------------------------------------------------------------

    def _send(self, replica: _Replica, messages: list[Message], payload: bool) -> None:
        """One message to each shard; its answers are collected before the next is sent."""
        s = self._scenario
        part_s = 4 * s.size / s.num_shards / replica.bandwidth if payload else 0.0
        replica.answers = {}
        replica.asked = {shard: type(message) for shard, message in enumerate(messages)}
        for shard, message in enumerate(messages):
            arrival = self._now + self._latency_s() + part_s * (shard + 1)
            self._at(arrival, self._arrive, shard, message, replica.life)

    def _arrive(self, shard: int, message: Message, life: int) -> None:
        """A message waits for the shard, is handled, and its replies travel back."""
        s = self._scenario
        busy_s = s.apply_s if isinstance(message, Push) else s.serve_s
        start = max(self._now, self._free_s[shard])
        self._free_s[shard] = start + busy_s
        if start > self._now:
            self._at(self._free_s[shard], self._handle, shard, message, life)
        else:
            self._now = self._free_s[shard]
            self._handle(shard, message, life)

    def _handle(self, shard: int, message: Message, life: int) -> None:
        if self._replicas[message.worker].life != life and not isinstance(message, Leave):
            return  # its sender died, and the line with it
        self._reply(shard, self._shards[shard].handle(message, self._now))

    def _reply(self, shard: int, replies: list[Reply]) -> None:
        s = self._scenario
        for reply in replies:
            travel_s = self._latency_s()
            if isinstance(reply, Params):
                line = self._replicas[reply.worker].bandwidth
                travel_s += 4 * s.size / s.num_shards / line
            life = self._replicas[reply.worker].life
            self._at(self._now + travel_s, self._receive, shard, reply, life)

    def _receive(self, shard: int, reply: Reply, life: int) -> None:
        replica = self._replicas[reply.worker]
        if replica.life != life or not _expected(replica, shard, reply):
            return
        replica.answers[shard] = reply
        if len(replica.answers) < self._scenario.num_shards:
            return
        answers, replica.answers, replica.asked = replica.answers, {}, {}
        if all(isinstance(answer, Params) for answer in answers.values()):
            self._take_params(replica, [answers[i] for i in sorted(answers)])
        elif any(isinstance(a, Reject) and a.reason.value in _FORGOTTEN for a in answers.values()):
            replica.queue.clear()
            self._join(replica, replica.life)
        else:
            self._pull(replica)

    def _take_params(self, replica: _Replica, params: list[Any]) -> None:
        replica.versions = tuple(p.version for p in params)
        replica.generations = tuple(p.generation for p in params)
        if self._problem is not None:
            replica.values = np.concatenate([p.values for p in params])
        if not replica.joined:
            replica.joined = True
            replica.seq = 1 + max(p.last_seq for p in params)
            if self._scenario.policy.waits:
                self._pull(replica)  # joining gives values, but no turn
                return
        elif replica.queue:
            replica.queue.popleft()
        replica.fresh = True
        self._go_on(replica)

    # -- replicas ---------------------------------------------------------------------------

    def _join(self, replica: _Replica, life: int) -> None:
        if replica.life == life:
            replica.alive, replica.joined, replica.fresh = True, False, False
            shards = range(self._scenario.num_shards)
            self._send(replica, [Join(replica.number) for _ in shards], False)

    def _pull(self, replica: _Replica) -> None:
        shards = range(self._scenario.num_shards)
        self._send(replica, [Pull(replica.number) for _ in shards], False)

    def _go_on(self, replica: _Replica) -> None:
        """Starts what may start: the next push in the queue, the next computation."""
        if replica.queue and not replica.asked:
            self._push(replica, *replica.queue[0])
        policy = self._scenario.policy
        in_step = policy.sync or policy.waits or not self._scenario.overlap
        rests = in_step and (replica.queue or not replica.fresh)
        if replica.joined and not (
            replica.computing or rests or len(replica.queue) >= self._scenario.queue_size
        ):
            self._compute(replica)

    def _compute(self, replica: _Replica) -> None:
        replica.computing, replica.fresh = True, False
        duration = self._step_s() * replica.slowness
        stamp = (replica.versions, replica.generations, replica.values)
        self._at(self._now + duration, self._computed, replica, replica.life, duration, stamp)

    def _computed(self, replica: _Replica, life: int, duration: float, stamp: tuple) -> None:
        if replica.life != life:
            return
        replica.computing = False
        replica.busy_s += duration
        replica.queue.append(stamp)
        self._go_on(replica)

    def _push(self, replica: _Replica, versions: tuple, generations: tuple, values: Any) -> None:
        num_shards = self._scenario.num_shards
        parts: list[np.ndarray] = [_EMPTY] * num_shards
        if self._problem is not None:
            update = self._problem.gradient(values, replica.number, replica.step)
            parts = np.array_split(update, num_shards)
        replica.step += 1
        ids = (replica.number, replica.seq)
        replica.seq += 1
        pushes: list[Message] = [
            Push(*ids, versions[i], parts[i], generation=generations[i]) for i in range(num_shards)
        ]
        self._send(replica, pushes, True)

    # -- failures ---------------------------------------------------------------------------

    def _plan_death(self, replica: _Replica) -> None:
        if np.isfinite(self._scenario.replica_mtbf_s):
            after = self._rng.exponential(self._scenario.replica_mtbf_s)
            self._at(self._now + after, self._die, replica)

    def _die(self, replica: _Replica) -> None:
        s = self._scenario
        self._deaths += 1
        replica.life += 1
        replica.alive = replica.computing = replica.joined = False
        replica.queue.clear()
        replica.asked, replica.answers = {}, {}
        self._at(self._now + s.restart_s, self._join, replica, replica.life)
        if s.lease_s < s.restart_s:
            for shard in range(s.num_shards):
                leave = Leave(replica.number)
                self._at(self._now + s.lease_s, self._arrive, shard, leave, replica.life)
        self._plan_death(replica)

    def _plan_shard_death(self, shard: int) -> None:
        if np.isfinite(self._scenario.shard_mtbf_s):
            after = self._rng.exponential(self._scenario.shard_mtbf_s)
            self._at(self._now + after, self._shard_die, shard)

    def _shard_die(self, shard: int) -> None:
        self._shard_deaths += 1
        self._free_s[shard] = max(self._free_s[shard], self._now) + self._scenario.shard_restart_s
        self._reply(shard, self._shards[shard].restore(self._saved[shard], self._now))
        self._plan_shard_death(shard)

    def _checkpoint(self) -> None:
        self._saved = [shard.snapshot() for shard in self._shards]
        self._at(self._now + self._scenario.checkpoint_s, self._checkpoint)


_EMPTY = np.zeros(0, np.float32)
_FORGOTTEN = ('not joined', 'other generation')


def _expected(replica: _Replica, shard: int, reply: Reply) -> bool:
    """Whether a reply answers what the replica last asked of a shard."""
    asked = replica.asked.get(shard)
    if asked is None or shard in replica.answers:
        return False
    if asked is Push:
        return isinstance(reply, Ack | Reject) and reply.seq == replica.seq - 1
    return isinstance(reply, Params) or (isinstance(reply, Reject) and reply.seq == -1)
