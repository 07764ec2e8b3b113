"""What a shard knows of its replicas: which questions it answered, for whom its rounds wait."""

import asyncio
import dataclasses

import numpy as np
import pytest
from shards import kinds, make, push

from seqtrain.exchange import (
    Ack,
    Join,
    Leave,
    Params,
    Policy,
    Pull,
    Reason,
    rules,
)
from seqtrain.exchange.transport.shard_host import ShardHost


def test_a_question_is_answered_as_often_as_it_comes_and_gives_one_turn():
    state = make(num_workers=2, max_staleness=0)
    for worker in range(2):
        state.handle(Join(worker, number=0))
    (answer,) = state.handle(Pull(0, number=1))
    assert answer.number == 1
    assert state.handle(Pull(1, number=1)) == []  # the only ticket is out
    assert kinds(state.handle(Pull(0, number=1))) == [(Params, 0)]
    assert kinds(state.handle(push(0, 0, 0))) == [(Ack, 0), (Params, 1)]
    (late,) = state.handle(Pull(0, number=1))
    assert (late.number, late.version) == (1, 1)
    assert kinds(state.handle(push(1, 0, 1))) == [(Ack, 1)]  # the late copy holds nobody up
    assert kinds(state.handle(Pull(1, number=2))) == [(Params, 1)]
    state.check()


def test_a_copy_of_a_join_forgets_nothing_and_a_new_client_begins_to_count():
    state = make(mode='sync', num_workers=2)
    for worker in range(2):
        state.handle(Join(worker, number=0))
    state.restore(state.snapshot())
    again = Join(0, fresh=False, number=3)
    for worker in range(2):
        state.handle(dataclasses.replace(again, worker=worker))
    assert state.handle(push(0, 0, 0, generation=1)) == []
    assert kinds(state.handle(again)) == [(Params, 0)]
    assert kinds(state.handle(push(1, 0, 0, generation=1))) == [(Ack, 0), (Ack, 1)]
    state.handle(push(0, 1, 1, generation=1))
    refusal, welcome = state.handle(Join(0, number=0))
    assert (refusal.seq, refusal.reason) == (1, Reason.NOT_JOINED)
    assert welcome.number == 0
    assert kinds(state.handle(Pull(0, number=1))) == [(Params, 0)]
    state.check()


@pytest.mark.parametrize('restarted', [False, True])
def test_rounds_wait_for_whom_they_are_told_to_expect(restarted):
    state = make(mode='sync', num_workers=3)
    for worker in range(3):
        state.handle(Join(worker))
    for worker in range(3):
        state.handle(Leave(worker))
    if restarted:
        state.restore(state.snapshot())
    state.expect([0, 1])
    here = {'generation': state.generation, 'life': 1}
    state.handle(Join(0, life=1))
    assert state.handle(push(0, 0, 0, **here)) == []
    state.handle(Join(1, life=1))
    assert kinds(state.handle(push(1, 0, 0, **here))) == [(Ack, 0), (Ack, 1)]
    state.expect([1])  # who is here already
    state.handle(push(0, 1, 1, **here))
    assert kinds(state.handle(Leave(1))) == [(Ack, 0)]
    state.check()


def test_a_client_that_leaves_before_it_joined_is_not_waited_for():
    state = make(mode='sync', num_workers=2)
    for worker in range(2):
        state.handle(Join(worker))
        state.handle(Leave(worker))
    state.expect([0, 1])
    state.handle(Join(0, life=1))
    assert state.handle(push(0, 0, 0, life=1)) == []
    assert kinds(state.handle(Leave(1, life=1))) == [(Ack, 0)]


def test_a_shard_that_crashes_still_knows_whom_to_expect(tmp_path):
    async def run():
        values, policy = np.zeros(2, np.float32), Policy(mode='sync', num_workers=2)
        first = ShardHost(0, values, rules.sgd(1.0), policy, directory=str(tmp_path))
        await first.expire(1)
        await first.snapshot()
        await first.expect([1])
        second = ShardHost(0, values, rules.sgd(1.0), policy, directory=str(tmp_path))
        assert second._state.gone == set()
        await second.close()
        first._log.close()

    asyncio.run(run())
