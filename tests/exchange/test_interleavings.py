"""A thousand random interleavings of replicas, shards and faults, synchronously, with replay.

The machine plays the network: messages lie in a bag and are delivered in any order, lost, doubled;
replicas die, come back and send rubbish; shards restart from checkpoints. After every step all
invariants hold; at the end the log replays to the same bits.
"""

import dataclasses
import itertools
import random

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from seqtrain.exchange import (
    Ack,
    Join,
    Leave,
    Params,
    Partition,
    Policy,
    Pull,
    Push,
    Reject,
    ReplayError,
    ShardState,
    Store,
    replay,
    rules,
)

WORKERS = 3
START = {'w': np.array([1.0, -2.0, 3.0], np.float32)}
PARTITION = Partition.make(START, 2)
POLICIES = [
    Policy(num_workers=WORKERS),
    Policy(num_workers=WORKERS, max_staleness=1, on_stale='drop'),
    Policy(num_workers=WORKERS, max_staleness=0),
    Policy(num_workers=WORKERS, max_staleness=2),
    Policy(mode='sync', num_workers=WORKERS),
    Policy(mode='sync', num_workers=WORKERS, quorum=2),
]
RULES = [rules.sgd(0.1, 0.5), rules.dc_asgd(0.1, 0.5)]
RUBBISH = ['nan', 'shape', 'dtype', 'future', 'frames', 'replayed', 'generation']

workers = st.integers(0, WORKERS - 1)
shards = st.integers(0, 1)


def gradient(event, params):
    """Any deterministic function of the replica, the push and the values will do."""
    return {'w': np.float32(event.worker + 1) * np.sin(params['w'] + np.float32(event.seq))}


@dataclasses.dataclass
class Asker:
    """What `gradient` needs to know of a push; the log's events have the same fields."""

    worker: int
    seq: int


class Interleaving(RuleBasedStateMachine):
    @initialize(policy=st.sampled_from(POLICIES), which=st.sampled_from(RULES))
    def begin(self, policy, which):
        self.rule, self.events, self.bag = which, [], []
        self.shards = [
            ShardState(Store(v, which), policy, shard=s, on_event=self.events.append)
            for s, v in enumerate(PARTITION.split(START))
        ]
        self.checkpoints = [shard.snapshot() for shard in self.shards]
        self.seen = [{} for _ in range(WORKERS)]  # newest Params by shard
        self.seq, self.life = [0] * WORKERS, [0] * WORKERS
        self.numbers = itertools.count()
        self.applied = set()

    # -- replicas ----------------------------------------------------------------------------

    @rule(worker=workers)
    def join(self, worker):
        self.bag += [(s, self.joining(worker)) for s in range(2)]

    def joining(self, worker):
        return Join(worker, life=self.life[worker], number=next(self.numbers))

    def pulling(self, worker):
        return Pull(worker, life=self.life[worker], number=next(self.numbers))

    @rule(worker=workers)
    def pull(self, worker):
        self.bag += [(s, self.pulling(worker)) for s in range(2)]

    @rule(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 20))
    def work(self, seed, length):
        """Well-behaved replicas at work on a bad network; most progress comes from here."""
        rng = random.Random(seed)
        for _ in range(length):
            worker = rng.randrange(WORKERS)
            for s in range(2):
                known = self.shards[s].members.get(worker)
                if known is None or not known.present:
                    self.deliver(s, self.joining(worker))
                self.deliver(s, self.pulling(worker))
            for message in self.pushes(worker):
                fate = rng.choice(['arrives', 'arrives', 'arrives', 'twice', 'late', 'lost'])
                if fate in ('arrives', 'twice'):
                    self.deliver(*message)
                if fate in ('twice', 'late'):
                    self.bag.append(message)
            if self.bag and rng.random() < 0.5:
                self.deliver(*self.bag.pop(rng.randrange(len(self.bag))))

    @rule(worker=workers)
    def push(self, worker):
        self.bag += self.pushes(worker)

    def pushes(self, worker):
        seen = self.seen[worker]
        if len(seen) < 2:
            return []
        params = PARTITION.join([seen[s].values for s in range(2)])
        update = gradient(Asker(worker, self.seq[worker]), params)
        bases = tuple(seen[s].version for s in range(2))
        generations = tuple(seen[s].generation for s in range(2))
        made = [
            (s, Push(worker, self.seq[worker], bases[s], part, 1.0 + worker, 0, generations[s],
                     bases, generations, life=self.life[worker]))
            for s, part in enumerate(PARTITION.split(update))
        ]  # fmt: skip
        self.seq[worker] += 1
        return made

    # -- the network -------------------------------------------------------------------------

    def deliver(self, shard, message):
        state = self.shards[shard]
        before = (state.version, state.store.values, state.store.opt_state)
        replies = state.handle(message)
        if not any(isinstance(reply, Ack) for reply in replies):
            after = (state.version, state.store.values, state.store.opt_state)
            assert all(a is b for a, b in zip(before, after, strict=True)), 'moved without an Ack'
        self.take(shard, replies)

    def take(self, shard, replies):
        for reply in replies:
            if isinstance(reply, Params) and reply.life == self.life[reply.worker]:
                self.seen[reply.worker][shard] = reply
                self.seq[reply.worker] = max(self.seq[reply.worker], reply.last_seq + 1)
            elif isinstance(reply, Ack):
                key = (shard, self.shards[shard].generation, reply.worker, reply.seq)
                assert key not in self.applied, 'applied twice'
                self.applied.add(key)
            elif not isinstance(reply, Params):
                assert isinstance(reply, Reject)
                assert reply.text

    @precondition(lambda self: self.bag)
    @rule(data=st.data())
    def delivery(self, data):
        self.deliver(*self.bag.pop(data.draw(st.integers(0, len(self.bag) - 1))))

    @precondition(lambda self: self.bag)
    @rule()
    def delivery_of_all(self):
        bag, self.bag = self.bag, []
        for shard, message in bag:
            self.deliver(shard, message)

    @precondition(lambda self: self.bag)
    @rule(data=st.data())
    def loss(self, data):
        self.bag.pop(data.draw(st.integers(0, len(self.bag) - 1)))

    @precondition(lambda self: self.bag)
    @rule(data=st.data())
    def doubling(self, data):
        self.bag.append(self.bag[data.draw(st.integers(0, len(self.bag) - 1))])

    # -- faults ------------------------------------------------------------------------------

    @rule(worker=workers)
    def death(self, worker):
        """The replica is gone with all it knew; a new one will join under its number."""
        self.bag = [(s, m) for s, m in self.bag if m.worker != worker]
        self.seen[worker] = {}
        for s in range(2):
            self.deliver(s, Leave(worker))

    @rule(worker=workers)
    def replacement(self, worker):
        """The replica was started again unnoticed; what it had sent is still under way."""
        self.life[worker] += 1
        self.seen[worker] = {}
        for s in range(2):
            self.deliver(s, self.joining(worker))

    @rule(shard=shards)
    def checkpoint(self, shard):
        self.checkpoints[shard] = self.shards[shard].snapshot()

    @rule(shard=shards)
    def restart(self, shard):
        self.take(shard, self.shards[shard].restore(self.checkpoints[shard]))
        self.applied = {key for key in self.applied if key[0] != shard}

    @rule(worker=workers, shard=shards, kind=st.sampled_from(RUBBISH))
    def rubbish(self, worker, shard, kind):
        made = self.pushes(worker)
        if not made:
            return
        push = made[shard][1]
        spoiled = push.update.copy()
        spoiled[0] = np.nan
        changes = {
            'nan': {'update': spoiled},
            'shape': {'update': push.update[:-1]},
            'dtype': {'update': push.update.astype(np.float64)},
            'future': {'base_version': self.shards[shard].version + 1},
            'frames': {'frames': float('nan')},
            'replayed': {'seq': self.last_seq(shard, worker)},
            'generation': {'generation': push.generation + 1},
        }[kind]
        refused = dataclasses.replace(push, **changes)
        version, before = self.shards[shard].version, set(self.applied)
        self.deliver(shard, refused)
        applied = [key[2:] for key in self.applied - before]  # what its turn had held up
        assert (worker, refused.seq) not in applied
        assert not applied or self.shards[shard].policy.waits
        assert self.shards[shard].version == version + len(applied)

    def last_seq(self, shard, worker):
        member = self.shards[shard].members.get(worker)
        return member.seq if member else -1

    @rule(shard=shards)
    def stranger(self, shard):
        (reply,) = self.shards[shard].handle(Join(WORKERS))
        assert isinstance(reply, Reject)

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def invariants_hold(self):
        if hasattr(self, 'shards'):
            for state in self.shards:
                state.check()
                assert len(state.store.history) <= 2 * WORKERS * 9

    def teardown(self):
        if not hasattr(self, 'shards'):
            return
        stores = replay(self.events, START, 2, self.rule, gradient)
        for state, store in zip(self.shards, stores, strict=True):
            assert state.version == store.version
            np.testing.assert_array_equal(state.store.values, store.values)


Interleaving.TestCase.settings = hypothesis.settings(
    max_examples=1000,
    stateful_step_count=9,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
TestInterleaving = Interleaving.TestCase


def run_seeds(policy, seeds, which=RULES[0]):
    """The machine without hypothesis; returns the versions that were reached and checks replay."""
    versions = []
    for seed in seeds:
        machine = Interleaving()
        machine.begin(policy, which)
        machine.work(seed, 40)
        machine.restart(seed % 2)
        machine.work(seed + 1, 40)
        machine.delivery_of_all()
        machine.invariants_hold()
        machine.teardown()
        versions.append(min(state.version for state in machine.shards))
    return versions


@pytest.mark.parametrize('policy', POLICIES, ids=str)
def test_interleavings_get_work_done(policy):
    assert min(run_seeds(policy, range(5), RULES[1])) >= 3


def test_a_push_applied_twice_would_be_seen(monkeypatch):
    """A deliberate break: a shard that forgets sequence numbers must be caught."""
    original = ShardState._apply

    def forgetful(self, pushes):
        original(self, pushes)
        self.members[pushes[0].worker].seq = -1

    monkeypatch.setattr(ShardState, '_apply', forgetful)
    with pytest.raises(AssertionError, match='applied twice'):
        run_seeds(POLICIES[0], range(20))


def test_a_broken_staleness_bound_would_be_seen(monkeypatch):
    monkeypatch.setattr('seqtrain.exchange.tickets.Tickets._feasible', lambda *args: True)
    monkeypatch.setattr('seqtrain.exchange.refusals.untimely', lambda *args: None)
    with pytest.raises(AssertionError):
        run_seeds(POLICIES[2], range(20))


def test_a_lost_event_is_noticed_by_the_replay():
    machine = Interleaving()
    machine.begin(POLICIES[0], RULES[0])
    machine.work(0, 40)
    applied = [i for i, event in enumerate(machine.events) if event.kind == 'applied']
    del machine.events[applied[len(applied) // 2]]
    with pytest.raises(ReplayError, match=r'missing|incomplete'):
        replay(machine.events, START, 2, machine.rule, gradient)
