"""Recorded threaded runs, replayed: through a log file, with rules changed, codecs, restarts."""

import threading

import numpy as np
import optax
import pytest

from seqtrain import exchange
from seqtrain.exchange import Event, EventLog, Policy, eventlog, replay, rules

START = {
    'a': np.linspace(-1, 1, 7).astype(np.float32),
    'b': np.ones((3, 2), np.float32),
}


def gradient(event, params):
    rng = np.random.default_rng([event.worker, event.seq])
    return {k: np.sin(v * event.steps) + rng.normal(size=v.shape).astype(np.float32)
            for k, v in params.items()}  # fmt: skip


def record(server, num_workers, steps, first_seq=0, **options):
    """Threads that push what `gradient` says; returns when all have closed."""
    errors = []

    def replica(worker):
        try:
            with server.connect(worker, **options) as client:
                for seq in range(first_seq, first_seq + steps):
                    params, versions = client.latest()
                    asker = Event('applied', 0, worker, seq, steps=1 + worker)
                    client.push(
                        gradient(asker, params), versions, frames=2.0 + worker, steps=1 + worker
                    )
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=replica, args=(n,)) for n in range(num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


def assert_same(server, stores):
    shards = server.partition.split(server.params().params)
    for values, store in zip(shards, stores, strict=True):
        np.testing.assert_array_equal(store.values, values)


@pytest.mark.parametrize(
    'policy',
    [
        Policy(num_workers=3),
        Policy(num_workers=3, max_staleness=1),
        Policy(num_workers=3, max_staleness=1, on_stale='drop'),
        Policy(mode='sync', num_workers=3),
        Policy(mode='sync', num_workers=3, quorum=2),
    ],
    ids=str,
)
def test_a_threaded_run_replays_to_the_same_bits(policy, tmp_path):
    rule = optax.chain(rules.scale_by_frames(), rules.dc_asgd_adaptive(0.01))
    with (
        EventLog(tmp_path / 'events.jsonl', {'seed': 3}) as log,
        exchange.LocalServer(START, 2, rule, policy, on_event=log.append) as server,
    ):
        record(server, 3, 15)
        header, events = eventlog.read(tmp_path / 'events.jsonl')
        assert header == {'seed': 3}
        assert events == server.events()
        assert_same(server, replay(events, START, 2, rule, gradient))


def test_rule_changes_codecs_and_new_clients_replay(tmp_path):
    first, second = rules.adam(0.05), rules.downpour_adagrad(0.1)
    with exchange.LocalServer(START, 2, first, Policy(num_workers=2)) as server:
        record(server, 2, 10, codec='int8')
        server.set_rule(second, note='stage 2')
        record(server, 2, 10, first_seq=10, codec='int8')
        stores = replay(
            server.events(), START, 2, first, gradient, later_rules=[(second, False)], codec='int8'
        )
        assert_same(server, stores)
        with pytest.raises(exchange.ReplayError, match='more often'):
            replay(server.events(), START, 2, first, gradient, codec='int8')


def test_a_run_with_a_restarted_shard_replays(caplog):
    rule = rules.sgd(0.1, 0.9)
    with exchange.LocalServer(START, 2, rule, Policy(num_workers=2)) as server:
        record(server, 2, 5)
        saved = server.snapshot()
        record(server, 2, 5, first_seq=5)
        server.restore_shard(1, saved[1])
        record(server, 2, 5, first_seq=10)
        assert server.params().versions.numbers == (30, 20)
        assert_same(server, replay(server.events(), START, 2, rule, gradient))


def test_a_resumed_run_replays_from_its_checkpoint():
    rule = rules.adam(0.05)
    with exchange.LocalServer(START, 2, rule, Policy(num_workers=2)) as server:
        record(server, 2, 5)
        saved = server.snapshot()
    with exchange.LocalServer(START, 2, rule, Policy(num_workers=2)) as server:
        server.restore(saved)
        record(server, 2, 5, first_seq=5)
        stores = replay(server.events(), START, 2, rule, gradient, snapshots=saved)
        assert_same(server, stores)


def test_shards_logs_kept_apart_are_merged_into_a_causal_order():
    rule = rules.sgd(0.1)
    with exchange.LocalServer(START, 2, rule, Policy(num_workers=3)) as server:
        record(server, 3, 10)
        apart = [[e for e in server.events() if e.shard == s] for s in range(2)]
        assert_same(server, replay(eventlog.merge(apart), START, 2, rule, gradient))
        with pytest.raises(ValueError, match='incomplete'):
            eventlog.merge([apart[0], apart[1][: len(apart[1]) // 2]])


@pytest.mark.parametrize('mode', ['async', 'sync'])
def test_the_order_of_different_shards_can_be_rebuilt(mode):
    rule = rules.sgd(0.1)
    policy = Policy(mode=mode, num_workers=3)
    with exchange.LocalServer(START, 2, rule, policy) as server:
        record(server, 3, 10, codec='int8')
        record(server, 3, 5, first_seq=10, codec='int8')
        shuffled = sorted(server.events(), key=lambda event: event.shard)
        events = eventlog.causal(shuffled)
        assert_same(server, replay(events, START, 2, rule, gradient, codec='int8'))


def test_a_log_of_another_run_is_refused():
    rule = rules.sgd(0.1)
    with exchange.LocalServer(START, 2, rule) as server:
        record(server, 1, 3)
        with pytest.raises(exchange.ReplayError, match='not 3'):
            replay(server.events(), START, 3, rule, gradient)


def test_a_torn_last_line_is_dropped_and_the_log_goes_on(tmp_path):
    path = tmp_path / 'events.jsonl'
    events = [Event('applied', 0, 1, seq, version=seq, bases=(3, 4)) for seq in range(3)]
    with EventLog(path, {'seed': 1}) as log:
        for event in events[:2]:
            log.append(event)
    with open(path, 'ab') as file:
        file.write(b'["applied", 0, 1')
    assert eventlog.read(path)[1] == events[:2]
    with EventLog(path) as log:
        log.append(events[2])
    assert eventlog.read(path) == ({'seed': 1}, events)


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / 'events.jsonl'
    with EventLog(path) as log:
        log.append(Event('applied', 0))
    path.write_text(path.read_text().replace('["applied"', '["appl'))
    with pytest.raises(eventlog.EventLogError, match='line 2 is damaged'):
        eventlog.read(path)
    path.write_text('{"header": {}}\n["applied", 0]\n')
    with pytest.raises(eventlog.EventLogError, match='line 2 is damaged'):
        eventlog.read(path)


def test_a_torn_header_is_written_again(tmp_path):
    path = tmp_path / 'events.jsonl'
    path.write_text('{"header": {"se')
    event = Event('applied', 0, 1, 0, version=1, bases=(0,))
    with EventLog(path, {'seed': 1}) as log:
        log.append(event)
    assert eventlog.read(path) == ({'seed': 1}, [event])
