"""Recorded threaded runs, replayed: through a log file, with rules changed, codecs, restarts."""

import json
import threading

import numpy as np
import optax
import pytest

from seqtrain import exchange
from seqtrain.exchange import Event, EventLog, Policy, eventlog, replay, rules
from seqtrain.exchange.transport import local

START = {
    'a': np.linspace(-1, 1, 7).astype(np.float32),
    'b': np.ones((3, 2), np.float32),
}


def test_what_a_restart_took_back_did_not_lead_anywhere():
    def events(kind, versions, shard=0):
        return [Event(kind, shard, version=version) for version in versions]

    first, other = events('applied', [1, 2, 3, 4]), events('applied', [1, 2, 3], shard=1)
    refused = events('rejected', [2, 4])
    back, again = events('restored', [2]), events('applied', [3])
    lost, last = events('applied', [4, 5]), events('applied', [4])
    back_again = events('restored', [3])
    log = [*first, *other, *refused, *back, *again, *lost, *back_again, *last]
    kept = [*first[:2], *other, refused[0], *back, *again, *back_again, *last]
    assert eventlog.standing(log) == kept
    assert eventlog.standing([]) == []


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
    heard = []
    with (
        EventLog(tmp_path / 'events.jsonl', {'seed': 3}) as log,
        exchange.LocalServer(
            START, 2, rule, policy, on_event=lambda event: (heard.append(event), log.append(event))
        ) as server,
    ):
        record(server, 3, 15)
        header, events = eventlog.read(tmp_path / 'events.jsonl')
        assert header == {'seed': 3}
        assert events == heard
        assert server._events == []  # who listens keeps them
        with pytest.raises(exchange.ExchangeError, match='went to on_event'):
            server.events()
        assert_same(server, replay(events, START, 2, rule, gradient))


@pytest.mark.parametrize(
    'first', [rules.adam(0.05), rules.polyak_average(rules.adam(0.05), 12)], ids=['last', 'mean']
)
def test_rule_changes_codecs_and_new_clients_replay(first, tmp_path):
    second = rules.downpour_adagrad(0.1)
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


def pushed(server, seqs, **options):
    """One replica that pushes what `gradient` says, each from what it pulled after the last one."""
    with server.connect(0, overlap=False, **options) as client:
        for seq in seqs:
            params, versions = client.latest()
            client.push(gradient(Event('applied', 0, 0, seq), params), versions)
            client.flush()


def test_a_run_that_went_back_to_an_earlier_future_replays():
    rule = rules.sgd(0.1, 0.9)
    with exchange.LocalServer(START, 1, rule) as server:
        pushed(server, [0])
        first = server.snapshot()
        pushed(server, [1, 2])
        third = server.snapshot()
        server.restore(first)
        pushed(server, [11, 12, 13])  # another version 3 on the way
        server.restore(third)
        pushed(server, [21])
        taken = [event.seq for event in server.events() if event.kind == 'applied']
        assert taken == [0, 1, 2, 1, 2, 3, 3]
        named = iter([0, 1, 2, 11, 12, 13, 21])

        def again(event, params):
            return gradient(Event('applied', 0, 0, next(named)), params)

        assert_same(server, replay(server.events(), START, 1, rule, again))


@pytest.mark.parametrize('keep_state', [False, True])
def test_a_run_that_went_back_behind_a_change_of_its_rule_replays(keep_state):
    first, second = optax.sgd(0.1, momentum=0.9), optax.sgd(0.05, momentum=0.9)
    with exchange.LocalServer(START, 1, first) as server:
        pushed(server, [0, 1])
        before = server.snapshot()
        for _ in range(2):
            server.set_rule(second, keep_state=keep_state)
        after = server.snapshot()
        server.restore(after)
        pushed(server, [2])
        server.restore(before)
        pushed(server, [3])
        restored = [event for event in server.events() if event.kind == 'restored']
        assert [(event.source, event.source_rules) for event in restored] == [(0, 2), (0, 0)]
        named = iter([0, 1, 2, 3])

        def again(event, params):
            return gradient(Event('applied', 0, 0, next(named)), params)

        rules_after = [(second, keep_state)] * 2
        stores = replay(server.events(), START, 1, first, again, later_rules=rules_after)
        assert_same(server, stores)


@pytest.mark.parametrize('fewer', [1, 2])
def test_a_log_from_before_snapshots_were_named_replays(fewer, tmp_path):
    rule = rules.sgd(0.1, 0.9)
    path = tmp_path / 'events.jsonl'
    with (
        EventLog(path) as log,
        exchange.LocalServer(START, 2, rule, on_event=log.append) as server,
    ):
        record(server, 1, 3)
        saved = server.snapshot()
        record(server, 1, 2, first_seq=3)
        server.restore(saved)
        record(server, 1, 2, first_seq=3)
        lines = path.read_text().splitlines()
        shorter = [json.dumps(json.loads(line)[:-fewer]) for line in lines[1:]]
        path.write_text('\n'.join([lines[0], *shorter]) + '\n')
        events = eventlog.read(path)[1]
        assert {event.source_rules for event in events} == {-1}
        assert fewer == 1 or {event.source for event in events} == {-1}
        assert_same(server, replay(events, START, 2, rule, gradient))


@pytest.mark.parametrize('twice', ['the join', 'the join of one shard'])
def test_joins_that_come_twice_leave_the_error_feedback_alone(twice, monkeypatch):
    send = local.LocalChannel.send

    def doubling(self, shard, message):
        send(self, shard, message)
        if isinstance(message, exchange.Join) and (shard == 1 or twice == 'the join'):
            send(self, shard, message)

    def crossing(self, shard, message):
        """Every other push reaches shard 1 first, and so is made there in the replay."""
        if isinstance(message, exchange.Push) and shard == 0 and message.seq % 2:
            self.held = message
            return
        doubling(self, shard, message)
        if isinstance(message, exchange.Push) and shard == 1 and message.seq % 2:
            doubling(self, 0, self.held)

    monkeypatch.setattr(local.LocalChannel, 'send', crossing)
    rule = rules.sgd(0.1)
    with exchange.LocalServer(START, 2, rule) as server:
        pushed(server, range(6), codec='int8')
        assert_same(server, replay(server.events(), START, 2, rule, gradient, codec='int8'))


@pytest.mark.parametrize('merged', [False, True])
@pytest.mark.parametrize(('num_shards', 'dies'), [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize('codec', ['bfloat16', 'int8'])
def test_a_push_that_was_lost_with_its_shard_leaves_no_trace(
    codec, num_shards, dies, merged, monkeypatch
):
    send = local.LocalChannel.send

    def dying(self, shard, message):
        if isinstance(message, exchange.Push) and (message.seq, shard) == (2, dies):
            server.restore_shard(shard, server.snapshot()[shard])
            text = 'It was under way when the shard died.'  # as `RayChannel` says it
            reason = exchange.Reason.NOT_JOINED
            self.inbox.put((shard, exchange.Reject(0, reason, text, message.seq)))
        else:
            send(self, shard, message)

    monkeypatch.setattr(local.LocalChannel, 'send', dying)
    rule = rules.sgd(0.1)
    with exchange.LocalServer(START, num_shards, rule) as server:
        pushed(server, range(6), codec=codec)
        events = server.events()
        if merged:
            events = eventlog.causal(events)
        assert server.params().versions.numbers[dies] == 5
        assert_same(server, replay(events, START, num_shards, rule, gradient, codec=codec))


def test_a_resumed_run_replays_from_its_checkpoint():
    rule = rules.adam(0.05)
    with exchange.LocalServer(START, 2, rule, Policy(num_workers=2)) as server:
        record(server, 2, 5)
        saved = server.snapshot()
    with exchange.LocalServer(START, 2, rule, Policy(num_workers=2)) as server:
        server.restore(saved)
        record(server, 2, 5, first_seq=5)
        stores = replay(server.events(), START, 2, rule, gradient, snapshots=saved)
        with pytest.raises(exchange.ReplayError, match='1 snapshots for 2 shards; give one'):
            replay(server.events(), START, 2, rule, gradient, snapshots=saved[:1])
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


@pytest.mark.parametrize('torn', [b'', b'\xff\x00\xfe'])
def test_a_torn_last_line_is_dropped_and_the_log_goes_on(torn, tmp_path):
    path = tmp_path / 'events.jsonl'
    events = [Event('applied', 0, 1, seq, version=seq, bases=(3, 4)) for seq in range(3)]
    with EventLog(path, {'seed': 1}) as log:
        for event in events[:2]:
            log.append(event)
    with open(path, 'ab') as file:
        file.write(b'["applied", 0, 1' + torn)
    assert eventlog.read(path)[1] == events[:2]
    with EventLog(path) as log:
        log.append(events[2])
    assert eventlog.read(path) == ({'seed': 1}, events)


def test_replicas_may_be_numbered_by_numpy(tmp_path):
    with (
        EventLog(tmp_path / 'events.jsonl') as log,
        exchange.LocalServer(START, 1, on_event=log.append) as server,
        server.connect(np.int64(0)) as client,
    ):
        client.push(START, client.latest().versions)
    _, events = eventlog.read(tmp_path / 'events.jsonl')
    assert [event.kind for event in events] == ['joined', 'applied', 'left']


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / 'events.jsonl'
    with EventLog(path) as log:
        log.append(Event('applied', 0))
    path.write_text(path.read_text().replace('["applied"', '["appl'))
    with pytest.raises(eventlog.EventLogError, match='line 2 is damaged'):
        eventlog.read(path)
    for line in (b'["applied", 0]', b'["applied\xff", 0]', b'\x00\x00\x00\x00'):
        path.write_bytes(b'{"header": {}}\n' + line + b'\n')
        with pytest.raises(eventlog.EventLogError, match='line 2 is damaged'):
            eventlog.read(path)


def test_a_torn_header_is_written_again(tmp_path):
    path = tmp_path / 'events.jsonl'
    path.write_text('{"header": {"se')
    event = Event('applied', 0, 1, 0, version=1, bases=(0,))
    with EventLog(path, {'seed': 1}) as log:
        log.append(event)
    assert eventlog.read(path) == ({'seed': 1}, [event])
