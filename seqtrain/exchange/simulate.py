"""The exchange under virtual time: the same `ShardState` and rules, with made-up clocks.

Replicas compute, push and pull for as long as distributions say; messages take their latency and
their bytes; a shard serves one message after the other; replicas and shards die and come back. It
is deterministic by seed, and knows two depths: time only (a `Counter` store), or real gradients of
a `Problem` through a real rule.

A simulated replica behaves as `Client` does: its exchange goes on beside its computing, at most
`queue_size` pushes wait, a pull travels with the push before it, and in sync mode or under a
waiting bound (there it pulls the shards one after the other) it rests until it may go on.
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
    Event,
    Join,
    Leave,
    Message,
    Params,
    Pull,
    Push,
    Reason,
    Reject,
    Reply,
    answers,
    versions_under_way,
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
    """A simulated replica. `life` counts its incarnations: events of an earlier one are void.

    `line_free_s`: when all values that are on their way to it will have come in.
    """

    number: int
    slowness: float
    bandwidth: float
    life: int = 0
    computing: bool = False
    joined: bool = False
    fresh: bool = False
    seq: int = 0
    step: int = 0
    versions: tuple[int, ...] = ()
    values: Any = None
    queue: collections.deque = dataclasses.field(default_factory=collections.deque)
    asked: dict[tuple[int, bool], Message] = dataclasses.field(default_factory=dict)
    answers: dict[tuple[int, bool], Reply] = dataclasses.field(default_factory=dict)
    params: dict[int, Params] = dataclasses.field(default_factory=dict)
    generations: tuple[int, ...] = ()
    busy_s: float = 0.0
    line_free_s: float = 0.0


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

    def _send(self, replica: _Replica, calls: dict[int, list[Message]]) -> None:
        """One call to each of these shards; all answers are collected before the next calls."""
        s = self._scenario
        replica.answers = {}
        replica.asked = {
            (shard, isinstance(message, Push)): message
            for shard, messages in calls.items()
            for message in messages
        }
        on_the_line_s = 0.0
        for shard, messages in calls.items():
            if isinstance(messages[0], Push):
                on_the_line_s += 4 * s.size / s.num_shards / replica.bandwidth
            arrival = self._now + self._latency_s() + on_the_line_s
            self._at(arrival, self._arrive, shard, messages, replica.life)

    def _arrive(self, shard: int, messages: list[Message], life: int) -> None:
        """Each message waits for the shard, is handled, and its replies travel back."""
        s = self._scenario
        for message in messages:
            start = max(self._now, self._free_s[shard])
            self._free_s[shard] = start + (s.apply_s if isinstance(message, Push) else s.serve_s)
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
            replica = self._replicas[reply.worker]
            arrival = self._now + self._latency_s()
            if isinstance(reply, Params):  # the shards' values come in one after the other
                arrival = max(arrival, replica.line_free_s)
                arrival += 4 * s.size / s.num_shards / replica.bandwidth
                replica.line_free_s = arrival
            self._at(arrival, self._receive, shard, reply, replica.life)

    def _receive(self, shard: int, reply: Reply, life: int) -> None:
        replica = self._replicas[reply.worker]
        if replica.life != life:
            return
        for key in ((shard, True), (shard, False)):
            if key in replica.asked and answers(replica.asked[key], reply):
                replica.answers[key] = reply
        if len(replica.answers) < len(replica.asked):
            return
        got, replica.answers, replica.asked = replica.answers, {}, {}
        if any(isinstance(a, Reject) and a.reason in _FORGOTTEN for a in got.values()):
            replica.queue.clear()
            self._join(replica, replica.life)
            return
        replica.params |= {key[0]: a for key, a in got.items() if isinstance(a, Params)}
        if len(replica.params) < self._scenario.num_shards:
            self._pull(replica)
        else:
            self._take_params(replica)

    def _take_params(self, replica: _Replica) -> None:
        params, replica.params = [replica.params[i] for i in sorted(replica.params)], {}
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
            replica.joined, replica.fresh = False, False
            replica.params = {}
            shards = range(self._scenario.num_shards)
            join = Join(replica.number, keep=versions_under_way(self._scenario.queue_size))
            self._send(replica, {shard: [join] for shard in shards})

    def _pull(self, replica: _Replica) -> None:
        """Asks for what is missing: in turns where replicas may have to wait for each other."""
        shards = [s for s in range(self._scenario.num_shards) if s not in replica.params]
        asked = shards[:1] if self._scenario.policy.waits else shards
        self._send(replica, {shard: [Pull(replica.number)] for shard in asked})

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
        pull = [] if self._scenario.policy.waits else [Pull(replica.number)]
        self._send(
            replica,
            {
                i: [Push(*ids, versions[i], parts[i], generation=generations[i]), *pull]
                for i in range(num_shards)
            },
        )

    # -- failures ---------------------------------------------------------------------------

    def _plan_death(self, replica: _Replica) -> None:
        if np.isfinite(self._scenario.replica_mtbf_s):
            after = self._rng.exponential(self._scenario.replica_mtbf_s)
            self._at(self._now + after, self._die, replica)

    def _die(self, replica: _Replica) -> None:
        s = self._scenario
        self._deaths += 1
        replica.life += 1
        replica.computing = replica.joined = False
        replica.queue.clear()
        replica.asked, replica.answers, replica.params = {}, {}, {}
        replica.line_free_s = 0.0
        self._at(self._now + s.restart_s, self._return, replica)
        if s.lease_s < s.restart_s:
            for shard in range(s.num_shards):
                leave = [Leave(replica.number)]
                self._at(self._now + s.lease_s, self._arrive, shard, leave, replica.life)

    def _return(self, replica: _Replica) -> None:
        self._join(replica, replica.life)
        self._plan_death(replica)

    def _plan_shard_death(self, shard: int) -> None:
        if np.isfinite(self._scenario.shard_mtbf_s):
            after = self._rng.exponential(self._scenario.shard_mtbf_s)
            self._at(self._now + after, self._shard_die, shard)

    def _shard_die(self, shard: int) -> None:
        self._shard_deaths += 1
        restart_s = self._scenario.shard_restart_s
        self._free_s[shard] = max(self._free_s[shard], self._now) + restart_s
        self._reply(shard, self._shards[shard].restore(self._saved[shard], self._now))
        self._at(self._now + restart_s, self._plan_shard_death, shard)

    def _checkpoint(self) -> None:
        self._saved = [shard.snapshot() for shard in self._shards]
        self._at(self._now + self._scenario.checkpoint_s, self._checkpoint)


_EMPTY = np.zeros(0, np.float32)
_FORGOTTEN = (Reason.NOT_JOINED, Reason.GENERATION)
