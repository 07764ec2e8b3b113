"""Threaded runs with faults, planned and others; and what a message may not contain."""

import dataclasses
import random
import threading
import typing

import numpy as np
import pytest

from seqtrain import exchange
from seqtrain.exchange import FaultPlan, InjectedFault, Policy, messages, rules
from seqtrain.exchange.codec import Encoded

START = {'w': np.zeros(6, np.float32)}
ONES = {'w': np.ones(6, np.float32)}


def run(server, num_workers, steps, plan, **options):
    """Replicas that push ones `steps` times each and are started again after they die."""
    deaths, errors = [], []

    def replica(worker):
        done = 0
        while done < steps:
            try:
                with server.connect(worker, faults=plan, **options) as client:
                    while done < steps:
                        client.push(ONES, client.latest().versions)
                        client.flush()
                        done += 1
            except InjectedFault as fault:
                deaths.append(str(fault))
            except Exception as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=replica, args=(n,)) for n in range(num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
    return deaths


@pytest.mark.parametrize('max_staleness', [None, 2])
def test_a_replica_dies_at_a_step_and_its_successor_goes_on(max_staleness):
    policy = Policy(num_workers=3, max_staleness=max_staleness)
    plan = FaultPlan().fail_at(1, 4).fail_at(2, 0)
    with exchange.LocalServer(START, 2, rules.sgd(1.0), policy, lease_s=0.3) as server:
        deaths = run(server, 3, 10, plan)
        server.check()
        assert len(deaths) == 2
        assert 'Replica 1 dies before push 4' in ' '.join(deaths)
        assert server.params().versions.numbers == (30, 30)
        np.testing.assert_array_equal(server.params().params['w'], -30)


def test_lost_doubled_and_reordered_messages_apply_nothing_twice():
    plan = FaultPlan(seed=1, lose=0.1, double=0.1, hold=0.1)
    with exchange.LocalServer(START, 2, rules.sgd(1.0), Policy(num_workers=3)) as server:
        run(server, 3, 20, plan, retry_s=0.02)
        server.check()
        applied = [(e.shard, e.worker, e.seq) for e in server.events() if e.kind == 'applied']
        assert len(set(applied)) == len(applied)
        # A push that was held back until after its own retry is refused; nothing is applied twice.
        assert server.params().versions.numbers == (60, 60)
    assert min(plan.counts['lost'], plan.counts['doubled'], plan.counts['held']) > 0


def test_an_answer_that_comes_twice_is_not_taken_for_the_next_one():
    plan = FaultPlan(double=1.0)
    with exchange.LocalServer(START, 2, rules.sgd(1.0), Policy(mode='sync')) as server:
        with server.connect(0, faults=plan) as client:
            seen = []
            for _ in range(4):
                seen.append(client.latest().versions.numbers)
                client.push(ONES, client.latest().versions)
            client.flush()
            assert client.rejections == []
        assert seen == [(n, n) for n in range(4)]
        assert server.params().versions.numbers == (4, 4)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize(
    ('policy', 'versions'),
    [({'mode': 'sync'}, 20), ({'max_staleness': 0}, 60), ({'max_staleness': 1}, 60)],
    ids=str,
)
def test_who_waits_for_others_on_a_bad_network_comes_to_the_end(policy, versions, seed):
    plan = FaultPlan(seed, lose=0.05, double=0.1, hold=0.05)
    with exchange.LocalServer(START, 2, rules.sgd(1.0), Policy(num_workers=3, **policy)) as server:
        run(server, 3, 20, plan, retry_s=0.02)
        server.check()
        assert server.params().versions.numbers == (versions, versions)
    assert min(plan.counts['lost'], plan.counts['doubled'], plan.counts['held']) > 0


def test_a_shard_killed_between_checkpoints_loses_only_what_came_after(caplog):
    with (
        exchange.LocalServer(START, 2, rules.sgd(1.0)) as server,
        server.connect(0) as client,
    ):

        def push(n):
            for _ in range(n):
                client.push(ONES, client.pull().versions)
                client.flush()

        push(5)
        saved = server.snapshot()
        push(3)
        server.restore_shard(1, saved[1])
        assert server.params().versions.numbers == (8, 5)
        push(4)
        # The pull before the first push already finds the restarted shard and joins it again.
        assert server.params().versions.numbers == (12, 9)
        assert server.params().versions.generations == (0, 1)


def test_a_slow_shard_slows_nobody_down_for_good():
    """Pushes to a shard that is held up wait in the bounded queue; they all arrive in the end."""
    with (
        exchange.LocalServer(START, 2, rules.sgd(1.0)) as server,
        server.connect(0, queue_size=2) as client,
    ):
        versions = client.latest().versions
        with server.hold(1):
            client.push(ONES, versions)
            client.push(ONES, versions)
            with pytest.raises(exchange.ExchangeError, match='queue'):
                client.push(ONES, versions, timeout_s=0.05)  # back-pressure
        client.flush()
        assert server.params().versions.numbers == (2, 2)


@pytest.mark.parametrize('mode', ['async', 'sync'])
def test_a_replica_that_pauses_for_longer_than_its_lease_comes_back(mode, caplog):
    clock = [0.0]
    policy = Policy(mode=mode, num_workers=2)
    with exchange.LocalServer(
        START, 2, rules.sgd(1.0), policy, lease_s=10.0, clock=lambda: clock[0]
    ) as server:
        with server.connect(0) as paused, server.connect(1) as busy:
            before = paused.latest()
            busy.latest()
            clock[0] = 9.0
            busy.push(ONES, busy.latest().versions)  # a round of two: sync waits with it
            if mode == 'async':
                busy.flush()
            clock[0] = 18.0
            server.heard(1)
            server.expire_silent()  # what those who wait do
            busy.flush()
            assert [e.worker for e in server.events() if e.kind == 'left'] == [0, 0]
            assert server.params().versions.numbers == (1, 1)
            paused.push(ONES, before.versions)
            paused.flush()
            assert 'lost its lease' in caplog.text
            assert server.params().versions.numbers == (1, 1)
            for client in (paused, busy):
                client.push(ONES, client.pull().versions)
            for client in (paused, busy):
                client.flush()
            assert server.params().versions.numbers == ((3, 3) if mode == 'async' else (2, 2))
        server.check()


@pytest.mark.parametrize('what', ['the event log', 'the rule'])
@pytest.mark.parametrize('mode', ['async', 'sync'])
def test_a_shard_that_fails_ends_the_wait_of_all(mode, what):
    def on_event(event):
        if what == 'the event log' and event.kind == 'applied' and event.version == 2:
            raise OSError(28, 'No space left on device')

    def broken(*args, **options):
        raise OSError(28, 'No space left on device')

    server = exchange.LocalServer(
        START, 1, rules.sgd(1.0), Policy(mode=mode, num_workers=2), on_event=on_event
    )
    if what == 'the rule':
        server._shards[0].store._step = broken
    errors = []

    def replica(worker):
        try:
            with server.connect(worker) as client:
                for _ in range(50):
                    client.push(ONES, client.latest().versions)
                    client.flush()
        except exchange.ExchangeError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=replica, args=(n,), daemon=True) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    ended = not any(thread.is_alive() for thread in threads)
    server.close()
    assert ended
    assert len(errors) == 2
    assert all('No space left' in error for error in errors)
    with pytest.raises(exchange.ExchangeError, match='shard 0 failed'):
        server.snapshot()


def test_what_waited_while_a_shard_failed_is_not_handled():
    failures = []

    def clock():
        for error in failures:  # of another replica's message, which has the lock
            server._fail(0, error)
        return 0.0

    server = exchange.LocalServer(START, 1, rules.sgd(1.0), clock=clock)
    server.deliver(0, messages.Join(0))
    failures.append(OSError(28, 'No space left on device'))
    with pytest.raises(exchange.ExchangeError, match='shard 0 failed'):
        server.deliver(0, messages.Push(0, 0, 0, ONES['w']))
    assert server._shards[0].version == 0


@pytest.mark.parametrize('policy', [{'max_staleness': 0}, {'mode': 'sync'}], ids=str)
def test_nobody_waits_for_a_client_whose_thread_failed(policy):
    with exchange.LocalServer(START, 2, rules.sgd(1.0), Policy(num_workers=2, **policy)) as server:
        failing, going_on = server.connect(0), server.connect(1)
        failing.push({'other': 0}, failing.latest().versions)
        with pytest.raises(exchange.ExchangeError, match='structure'):
            failing.flush()
        failing._thread.join(10)
        assert not any(shard.members[0].present for shard in server._shards)
        for _ in range(3):
            going_on.push(ONES, going_on.latest().versions)
        going_on.flush()
        going_on.close()
        assert server.params().versions.numbers == (3, 3)


def test_who_does_not_join_again_after_restore_loses_its_lease():
    clock = [0.0]
    policy = Policy(mode='sync', num_workers=2)
    with exchange.LocalServer(
        START, 1, rules.sgd(1.0), policy, lease_s=10.0, clock=lambda: clock[0]
    ) as server:
        dead, alive = server.connect(0), server.connect(1)
        dead.latest()
        alive.latest()
        saved = server.snapshot()
        dead.kill()
        clock[0] = 11.0
        server.heard(1)
        server.expire_silent()
        assert server._shards[0].gone == {0}
        server.restore(saved)
        clock[0] = 22.0
        server.heard(1)
        server.expire_silent()
        assert server._shards[0].gone == {0}
        alive.close()


def test_who_has_just_spoken_keeps_its_lease():
    now, speaks = 0.0, []

    def clock():
        if speaks:
            speaks.pop()()  # in the middle of another replica's look at the leases
        return now

    server = exchange.LocalServer(
        START, 1, rules.sgd(1.0), Policy(num_workers=2), lease_s=10.0, clock=clock
    )
    server.deliver(0, messages.Join(0))
    server.heard(0)
    now = 11.0
    speaks.append(lambda: server.heard(0))
    server.expire_silent()
    assert server._shards[0].members[0].present
    now = 22.0
    server.expire_silent()
    assert not server._shards[0].members[0].present


@pytest.mark.parametrize('lease_s', [0, -1.0, float('nan')])
def test_a_lease_that_nobody_could_keep_is_refused(lease_s):
    with pytest.raises(ValueError, match='lease_s is'):
        exchange.LocalServer(START, 1, lease_s=lease_s)


def test_a_replaced_client_is_over_and_leaves_its_successor_alone():
    policy = Policy(mode='sync', num_workers=2)
    with exchange.LocalServer(START, 1, rules.sgd(1.0), policy) as server:
        resting = server.connect(0)
        resting.latest()
        waiting = server.connect(0)
        waiting.push(ONES, waiting.latest().versions)  # waits for replica 1
        resting.close()
        with server.connect(0) as newest, server.connect(1) as other:
            with pytest.raises(exchange.ExchangeError, match='connected again'):
                waiting.flush()
            with pytest.raises(exchange.ExchangeError, match='connected again'):
                waiting.close()
            for client in (newest, other):
                client.push(ONES, client.latest().versions)
            newest.flush()
            assert newest.rejections == []
        assert server.params().versions.numbers == (1,)


def test_a_joiner_in_mid_run():
    with exchange.LocalServer(START, 2, rules.sgd(1.0), Policy(num_workers=2)) as server:
        with server.connect(0) as first:
            first.push(ONES, first.latest().versions)
            first.flush()
            with server.connect(1) as second:
                pulled = second.latest()
                assert pulled.versions.numbers == (1, 1)
                second.push(ONES, pulled.versions)
        assert server.params().versions.numbers == (2, 2)


def test_a_plan_is_repeatable():
    def draws():
        plan = FaultPlan(seed=5, lose=0.2, double=0.2, hold=0.2)
        return [plan.draw() for _ in range(50)]

    assert draws() == draws()
    assert set(draws()) == {'pass', 'lost', 'doubled', 'held'}


def test_no_field_of_any_message_can_hold_an_utterance():
    """Numbers, an enum, our own sentences to the replica, and one flat vector: nothing else."""
    allowed = {int, float, bool, messages.Reason, tuple[int, ...]}
    vectors = {('Push', 'update'): np.ndarray | Encoded, ('Params', 'values'): np.ndarray}
    texts = {('Reject', 'text')}  # from the server to the replica
    for kind in typing.get_args(messages.Message) + typing.get_args(messages.Reply):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            where = (kind.__name__, field.name)
            if where in vectors:
                assert hints[field.name] == vectors[where]
            elif where in texts:
                assert hints[field.name] is str
            else:
                assert hints[field.name] in allowed, where


def test_every_message_of_a_run_holds_parameters_only(monkeypatch):
    """The bytes of the data never appear in what the server receives."""
    seen = []
    deliver = exchange.LocalServer.deliver

    def spy(self, shard, message, *sender):
        seen.append((shard, message))
        deliver(self, shard, message, *sender)

    monkeypatch.setattr(exchange.LocalServer, 'deliver', spy)
    secret = np.frombuffer(random.Random(0).randbytes(64), np.uint8).astype(np.float32)
    with exchange.LocalServer({'w': np.zeros(4, np.float32)}, 2, rules.sgd(0.1)) as server:  # noqa: SIM117
        with server.connect(0) as client:
            for _ in range(3):
                params, versions = client.latest()
                update = {'w': params['w'] - secret.reshape(4, 16).mean(axis=1)}
                client.push(update, versions, frames=16)
    assert {type(message).__name__ for _, message in seen} == {'Join', 'Pull', 'Push', 'Leave'}
    for shard, message in seen:
        for value in dataclasses.asdict(message).values():
            if isinstance(value, np.ndarray):
                assert value.shape == (server.partition.shard_size(shard),)
                assert secret.tobytes()[:16] not in value.tobytes()
            else:
                assert not isinstance(value, str | bytes)
