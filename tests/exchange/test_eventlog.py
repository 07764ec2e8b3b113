"""Logs of shards that ran apart, in one order; what is in no log for good."""

import asyncio

import numpy as np
import pytest

from seqtrain import exchange
from seqtrain.exchange import Join, Policy, Push, Reason, eventlog, replay, rules
from seqtrain.exchange.eventlog import EventLogError
from seqtrain.exchange.transport import local
from seqtrain.exchange.transport.shard_host import ShardHost

START = {'w': np.linspace(-1, 1, 40).astype(np.float32)}


def gradient(event, params):
    return {'w': params['w'] * np.float32(1 + 0.1 * event.seq)}


@pytest.mark.parametrize('codec', ['float32', 'int8'])
@pytest.mark.parametrize('dies', [0, 1])
def test_pushes_of_a_replica_keep_their_order_where_one_was_lost(dies, codec, monkeypatch):
    send = local.LocalChannel.send

    def dying(self, shard, message):
        if isinstance(message, Push) and (message.seq, shard) == (2, dies):
            server.restore_shard(shard, server.snapshot()[shard])
            text = 'It was under way when the shard died.'
            self.inbox.put((shard, exchange.Reject(0, Reason.NOT_JOINED, text, message.seq)))
        else:
            send(self, shard, message)

    monkeypatch.setattr(local.LocalChannel, 'send', dying)
    rule = rules.sgd(0.1)
    with exchange.LocalServer(START, 2, rule) as server, server.connect(0, codec=codec) as client:
        for seq in range(7):
            if seq != 3:  # push 3 is computed from the pull of push 2, as with overlap
                pulled = client.pull()
            client.push(
                gradient(exchange.Event('applied', 0, 0, seq), pulled.params), pulled.versions
            )
            if seq != 2:
                client.flush()
        client.flush()
        events, final = server.events(), server.params().params
        partition = server.partition
    for log in (events, eventlog.causal(events)):
        asked = []

        def noted(event, params, asked=asked):
            asked.append(event.seq)
            return gradient(event, params)

        stores = replay(log, START, 2, rule, noted, codec=codec)
        assert asked == sorted(asked)
        for store, values in zip(stores, partition.split(final), strict=True):
            np.testing.assert_array_equal(store.values, values)


def test_logs_that_were_read_while_the_run_went_on_are_merged_as_far_as_they_fit():
    with exchange.LocalServer(START, 2, rules.sgd(0.1)) as server, server.connect(0) as client:
        for seq in range(4):
            pulled = client.pull()
            client.push(START, pulled.versions)
            client.flush()
            if seq == 1:
                first = [event for event in server.events() if event.shard == 0]
        second = [event for event in server.events() if event.shard == 1]
    with pytest.raises(EventLogError, match='one is incomplete'):
        eventlog.merge([first, second])
    merged = eventlog.merge([first, second], complete=False)
    assert [e for e in merged if e.shard == 0] == first
    # Its third push is based on what the first shard made of the second one.
    assert [e.seq for e in merged if (e.shard, e.kind) == (1, 'applied')] == [0, 1, 2]


def test_a_change_of_the_rule_that_a_crash_took_back_is_in_no_log(tmp_path, monkeypatch):
    later = {1: rules.adam(0.1)}

    def host():
        return ShardHost(
            0, START['w'], rules.sgd(0.1), Policy(), directory=str(tmp_path), later_rule=later.get
        )

    def push(seq, base, generation):
        lists = {'bases': (base,), 'generations': (generation,)}
        return Push(0, seq, base, START['w'], generation=generation, **lists)

    async def killed_between_the_line_and_the_checkpoint():
        shard = host()
        await shard.call([Join(0)])
        await shard.call([push(0, 0, 0)])
        await shard.snapshot()

        def killed(snapshot):
            raise KeyboardInterrupt

        monkeypatch.setattr(shard._files, 'save', killed)
        try:
            await shard.set_rule(later[1], False, 'mmi', 1)
        except KeyboardInterrupt:
            shard._log.close()

    async def the_driver_insists():
        shard = host()
        await shard.set_rule(later[1], False, 'mmi', 1)
        await shard.call([Join(0)])
        await shard.call([push(1, 1, 1)])
        values = (await shard.read()).values.copy()
        await shard.close()
        return values

    asyncio.run(killed_between_the_line_and_the_checkpoint())
    values = asyncio.run(the_driver_insists())
    _, events = eventlog.read(tmp_path / 'shard-0.events.jsonl')
    assert [event.kind for event in events] == [
        *('joined', 'applied'),
        *('restored', 'rule', 'joined', 'applied'),
    ]
    changes = [(later[1], False)]
    (store,) = replay(
        events, START, 1, rules.sgd(0.1), lambda event, params: START, later_rules=changes
    )
    np.testing.assert_array_equal(store.values, values)
