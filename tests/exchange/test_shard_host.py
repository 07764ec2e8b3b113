"""`ShardHost` without Ray: deferred answers, leases, checkpoints, coming back after a crash."""

import asyncio

import numpy as np
import pytest

from seqtrain.exchange import Ack, Join, Params, Policy, Pull, Push, Reason, Reject, eventlog, rules
from seqtrain.exchange.courier import ExchangeError
from seqtrain.exchange.transport.shard_host import ShardHost


async def call(shard, message):
    """One message, one answer."""
    (reply,) = await shard.call([message])
    return reply


async def both_join(shard):
    for worker in range(2):
        assert isinstance(await call(shard, Join(worker)), Params)


async def dying(shard):
    """What the operating system does to a process that dies: its files are closed, no more."""
    shard._log.close()


def host(directory=None, policy=None, **options):
    rule = rules.sgd(1.0, 0.5)
    policy = policy or Policy(num_workers=2)
    return ShardHost(0, np.zeros(3, np.float32), rule, policy, directory=directory, **options)


def push(worker, seq, base, generation=0):
    return Push(
        worker, seq, base, np.ones(3, np.float32), generation=generation, bases=(base,),
        generations=(generation,),
    )  # fmt: skip


def test_an_answer_comes_when_it_is_due():
    async def run():
        shard = host(policy=Policy(mode='sync', num_workers=2))
        await both_join(shard)
        first = asyncio.ensure_future(call(shard, push(0, 0, 0)))
        pulled = asyncio.ensure_future(call(shard, Pull(0)))
        await asyncio.sleep(0)
        assert not first.done()
        assert isinstance(await call(shard, push(1, 0, 0)), Ack)
        assert isinstance(await first, Ack)
        assert (await pulled).version == 1
        await shard.check()

    asyncio.run(run())


def test_a_crash_loses_at_most_a_checkpoint_interval_and_starts_a_new_generation(tmp_path):
    async def before():
        shard = host(str(tmp_path), checkpoint_every=5)
        assert await shard.ready() == 0
        await call(shard, Join(0))
        for seq in range(8):
            assert isinstance(await call(shard, push(0, seq, seq)), Ack)
        await dying(shard)

    async def after():
        shard = host(str(tmp_path), checkpoint_every=5)  # the process was killed and started again
        assert await shard.ready() == 1
        assert (await shard.read()).version == 5
        refused = await call(shard, push(0, 8, 5))
        assert isinstance(refused, Reject)
        assert refused.reason is Reason.NOT_JOINED
        joined = await call(shard, Join(0))
        assert (joined.version, joined.generation, joined.last_seq) == (5, 1, 4)
        assert (await call(shard, push(0, 8, 5))).reason is Reason.GENERATION
        assert isinstance(await call(shard, push(0, 8, 5, generation=1)), Ack)
        await shard.snapshot()
        await dying(shard)

    asyncio.run(before())
    asyncio.run(after())
    asyncio.run(dying(host(str(tmp_path))))  # a third life
    _, events = eventlog.read(tmp_path / 'shard-0.events.jsonl')
    assert [e.generation for e in events if e.kind == 'restored'] == [1, 2]
    assert sum(e.kind == 'applied' for e in events) == 9


@pytest.mark.parametrize('how', ['a lease that runs out', 'expire', 'a push'])
def test_whatever_made_a_version_counts_towards_the_next_checkpoint(tmp_path, how):
    """Every second version of a round of two is saved, also where a round is made by a leave."""

    async def run():
        policy = Policy(mode='sync', num_workers=2)
        shard = host(str(tmp_path), policy, checkpoint_every=2, lease_s=0.05)
        await both_join(shard)
        await asyncio.gather(call(shard, push(0, 0, 0)), call(shard, push(1, 0, 0)))
        second = asyncio.ensure_future(call(shard, push(0, 1, 1)))
        await asyncio.sleep(0)
        if how == 'a push':
            await call(shard, push(1, 1, 1))
        elif how == 'expire':
            await shard.expire(1)
        assert (await second).version == 2
        await dying(shard)
        again = host(str(tmp_path), policy)
        await dying(again)
        return await again.read()

    assert asyncio.run(run()).version == 2


def test_what_was_acknowledged_survives_a_clean_stop(tmp_path):
    async def run():
        shard = host(str(tmp_path), checkpoint_every=1000)
        await call(shard, Join(0))
        for seq in range(3):
            await call(shard, push(0, seq, seq))
        values = (await shard.read()).values.copy()
        await shard.close()
        late = await call(shard, push(0, 3, 3))
        assert late.reason is Reason.CLOSED
        again = host(str(tmp_path))
        await dying(again)
        return values, await again.read()

    values, back = asyncio.run(run())
    assert back.version == 3
    np.testing.assert_array_equal(back.values, values)


def test_the_silent_lose_their_lease_and_those_who_wait_do_not():
    async def run():
        shard = host(policy=Policy(mode='sync', num_workers=2), lease_s=0.05)
        await both_join(shard)
        ack = await asyncio.wait_for(call(shard, push(0, 0, 0)), 5)  # until replica 1 is let go
        assert isinstance(ack, Ack)
        assert (await call(shard, Pull(1))).reason is Reason.NOT_JOINED
        await shard.close()

    asyncio.run(run())


def test_who_does_not_come_back_after_a_crash_loses_its_lease_too(tmp_path):
    policy = Policy(mode='sync', num_workers=2)

    async def before():
        shard = host(str(tmp_path), policy)
        await both_join(shard)
        await shard.snapshot()
        await dying(shard)

    async def after():
        shard = host(str(tmp_path), policy, lease_s=0.05)
        await call(shard, Join(0))
        ack = await asyncio.wait_for(call(shard, push(0, 0, 0, generation=1)), 5)
        assert isinstance(ack, Ack)
        await shard.close()

    asyncio.run(before())
    asyncio.run(after())


def test_checkpoints_are_never_pickles(tmp_path):
    async def run():
        shard = host(str(tmp_path))
        await shard.snapshot()
        await dying(shard)

    asyncio.run(run())
    with np.load(tmp_path / 'shard-0.npz', allow_pickle=False) as saved:
        assert {'values', 'meta', 'opt_state_0'} <= set(saved.files)


def test_a_clean_stop_tells_those_who_wait():
    async def run():
        shard = host(policy=Policy(mode='sync', num_workers=2))
        await both_join(shard)
        waiting = asyncio.ensure_future(shard.call([push(0, 0, 0), Pull(0)]))
        await asyncio.sleep(0)
        await shard.close()
        await shard.close()  # again changes nothing
        assert [reply.reason for reply in await waiting] == [Reason.CLOSED] * 2
        assert (await shard.read()).version == 0

    asyncio.run(run())


@pytest.mark.parametrize('lease_s', [None, 10.0])
def test_replies_to_the_dead_are_dropped(lease_s):
    async def run():
        shard = host(policy=Policy(mode='sync', num_workers=2), lease_s=lease_s)
        await both_join(shard)
        waiting = asyncio.ensure_future(call(shard, push(0, 0, 0)))
        await asyncio.sleep(0)
        waiting.cancel()  # its caller is gone
        await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(await call(shard, push(1, 0, 0)), Ack)
        await shard.close()

    asyncio.run(run())


def test_a_restored_snapshot_survives_a_crash_under_yet_another_generation(tmp_path):
    async def run():
        shard = host(str(tmp_path))
        await call(shard, Join(0))
        await call(shard, push(0, 0, 0))
        saved = await shard.snapshot()
        await call(shard, push(0, 1, 1))
        await shard.restore(saved)
        assert await shard.ready() == 1
        await dying(shard)
        again = host(str(tmp_path))
        assert await again.ready() == 2
        assert (await again.read()).version == 1
        await dying(again)

    asyncio.run(run())


def test_messages_of_one_call_are_handled_in_order():
    async def run():
        shard = host(policy=Policy(mode='sync', num_workers=1))
        await call(shard, Join(0))
        ack, params = await shard.call([push(0, 0, 0), Pull(0)])
        assert isinstance(ack, Ack)
        assert params.version == 1

    asyncio.run(run())


def test_a_shard_comes_back_with_the_rule_that_it_had(tmp_path):
    later = {1: rules.sgd(10.0)}

    async def before():
        shard = host(str(tmp_path), later_rule=later.get)
        await call(shard, Join(0))
        await call(shard, push(0, 0, 0))
        for _ in range(2):  # the second is the driver asking again
            await shard.set_rule(later[1], False, 'mmi', 1)
        await dying(shard)
        assert sum(event.kind == 'rule' for event in (await shard.events())[1]) == 1

    async def after():
        shard = host(str(tmp_path), later_rule=later.get)
        assert await shard.ready() == 1
        await call(shard, Join(0))
        await call(shard, push(0, 1, 1, generation=1))
        np.testing.assert_allclose((await shard.read()).values, -11.0)
        await dying(shard)

    async def another_server():
        shard = host(str(tmp_path), start_s=5.0)  # it knows nothing of the other's changes
        await dying(shard)

    for part in (before, after):
        asyncio.run(part())
    with pytest.raises(ValueError, match='optimiser state of another rule'):
        asyncio.run(another_server())


class BrokenLog:
    """An event log that cannot be written when a certain kind of event comes."""

    def __init__(self, kind):
        self._kind = kind

    def append(self, event):
        if event.kind == self._kind:
            raise OSError(28, 'No space left on device')

    def close(self):
        pass


@pytest.mark.parametrize(('life', 'reason'), [(0, Reason.NOT_JOINED), (1, Reason.REPLACED)])
@pytest.mark.parametrize('policy', [{'mode': 'sync'}, {'max_staleness': 0}], ids=str)
def test_a_new_client_is_let_in_while_the_dead_ones_calls_still_wait(policy, life, reason):
    async def run():
        shard = host(policy=Policy(num_workers=2, **policy))
        await both_join(shard)
        if 'mode' in policy:
            asked = [push(0, 0, 0), Pull(0, number=1)]
        else:
            await call(shard, Pull(1))  # the only ticket
            asked = [Pull(0, number=1)]
        old = asyncio.ensure_future(shard.call(asked))
        await asyncio.sleep(0)
        assert not old.done()
        joined = await asyncio.wait_for(call(shard, Join(0, life=life, number=0)), 5)
        assert isinstance(joined, Params)
        assert joined.life == life
        replies = await asyncio.wait_for(old, 5)
        assert [(r.reason, r.life) for r in replies] == [(reason, 0)] * len(asked)
        await shard.check()

    asyncio.run(run())


def test_a_shard_that_cannot_write_its_log_tells_everybody_and_takes_nothing_more():
    async def run():
        shard = host(policy=Policy(mode='sync', num_workers=2))
        await both_join(shard)
        first = asyncio.ensure_future(shard.call([push(0, 0, 0), Pull(0)]))
        await asyncio.sleep(0)
        shard._log = BrokenLog('applied')
        second = await shard.call([push(1, 0, 0), Pull(1)])
        late = await shard.call([Join(0, life=1)])
        for reply in [*await asyncio.wait_for(first, 5), *second, *late]:
            assert reply.reason is Reason.CLOSED
            assert 'Shard 0 failed' in reply.text
            assert 'No space left' in reply.text
        with pytest.raises(ExchangeError, match='No space left'):
            await shard.snapshot()
        await shard.close()

    asyncio.run(run())


def test_a_checkpoint_that_cannot_be_written_is_told_to_all_who_wait(tmp_path, monkeypatch):
    async def run():
        policy = Policy(mode='sync', num_workers=2)
        shard = host(str(tmp_path), policy, checkpoint_every=1)
        await both_join(shard)

        def full(snapshot):
            raise OSError(28, 'No space left on device')

        monkeypatch.setattr(shard._files, 'save', full)
        first = asyncio.ensure_future(call(shard, push(0, 0, 0)))
        await asyncio.sleep(0)
        replies = [await call(shard, push(1, 0, 0)), await asyncio.wait_for(first, 5)]
        assert [reply.reason for reply in replies] == [Reason.CLOSED] * 2
        await shard.close()

    asyncio.run(run())


def test_an_error_while_a_lease_runs_out_is_told_to_those_who_wait():
    async def run():
        shard = host(policy=Policy(mode='sync', num_workers=2), lease_s=0.05)
        await both_join(shard)
        shard._log = BrokenLog('left')
        reply = await asyncio.wait_for(call(shard, push(0, 0, 0)), 5)
        assert reply.reason is Reason.CLOSED
        assert 'No space left' in reply.text
        await shard.close()

    asyncio.run(run())


def test_a_message_sent_again_is_answered_once_and_holds_no_lease():
    async def run():
        shard = host(policy=Policy(mode='sync', num_workers=2), lease_s=0.05)
        await both_join(shard)
        first, again = (
            asyncio.ensure_future(shard.call([push(0, 0, 0), Pull(0)])) for _ in range(2)
        )
        await asyncio.sleep(0)
        assert isinstance(await call(shard, push(1, 0, 0)), Ack)
        assert [type(reply) for reply in await asyncio.wait_for(again, 5)] == [Ack, Params]
        assert await asyncio.wait_for(first, 5) == []
        # Replica 0 is silent from here on.
        last = await asyncio.wait_for(call(shard, push(1, 1, 1)), 5)
        assert isinstance(last, Ack)
        await shard.close()

    asyncio.run(run())


def test_who_does_not_join_again_after_restore_loses_its_lease():
    async def run():
        shard = host(policy=Policy(mode='sync', num_workers=2), lease_s=0.05)
        await both_join(shard)
        saved = await shard.snapshot()
        await shard.expire(1)
        shard._heard_s.pop(1)  # as where its lease had run out
        await shard.restore(saved)
        await call(shard, Join(0))
        ack = await asyncio.wait_for(call(shard, push(0, 0, 0, generation=1)), 5)
        assert isinstance(ack, Ack)
        await shard.close()

    asyncio.run(run())


def test_a_shard_killed_before_its_first_checkpoint_starts_again(tmp_path, monkeypatch):
    def killed(self, snapshot):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr('seqtrain.exchange.transport.shard_host._Files.save', killed)
        with pytest.raises(KeyboardInterrupt):
            host(str(tmp_path))
    for generation in range(2):
        shard = host(str(tmp_path))
        assert asyncio.run(shard.ready()) == generation
        asyncio.run(dying(shard))
