"""`ShardState`, message by message: refusals, rounds, bounds, leases, restarts. No threads."""

import copy
import dataclasses
import re

import jax
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
    Reject,
    ShardState,
    Store,
    rules,
)
from seqtrain.exchange.update import all_finite

BAD = {
    Reason.SHAPE: {'update': np.zeros(3, np.float32)},
    Reason.DTYPE: {'update': np.zeros(2, np.float64)},
    Reason.NON_FINITE: {'update': np.array([1, np.inf], np.float32)},
    Reason.NOT_JOINED: {'worker': 1},
    Reason.FUTURE: {'base_version': 2},
    Reason.DUPLICATE: {'seq': 0},
    Reason.GENERATION: {'generation': 1},
    Reason.FRAMES: {'frames': 0.0},
    Reason.STEP_TIME: {'step_s': float('nan')},
    Reason.REPLACED: {'life': -1},
}


def parts(state):
    """Everything that a shard holds, as far as it can be compared."""
    own = (state.generation, state.members, state.gone, state.pending, state.waiting)
    arrays = (state.store.values, *jax.tree.leaves(state.store.opt_state))
    tickets = state.tickets._out
    return copy.deepcopy((state.version, own, tickets)), [id(array) for array in arrays]


@pytest.mark.parametrize('policy', [{}, {'max_staleness': 1}, {'mode': 'sync', 'quorum': 1}])
@pytest.mark.parametrize('reason', BAD, ids=lambda reason: reason.name)
def test_bad_pushes_are_refused_with_a_sentence_and_change_nothing(reason, policy):
    state = ShardState(Store(np.zeros(2), rules.adam(1.0)), Policy(num_workers=2, **policy))
    state.handle(Join(0))
    state.handle(Pull(0))
    state.handle(push(0, 0, 0))
    before = parts(state)
    bad = dataclasses.replace(push(0, 1, 1), **BAD[reason])
    (reply,) = state.handle(bad)
    assert isinstance(reply, Reject)
    assert reply.reason is reason
    assert reply.seq == bad.seq
    assert re.search(r'[Pp]ush \d+ of replica \d', reply.text)
    assert parts(state) == before
    (ack,) = state.handle(push(0, 1, 1))
    assert isinstance(ack, Ack)


def test_large_finite_updates_are_finite():
    state = make(num_workers=1)
    state.handle(Join(0))
    (reply,) = state.handle(push(0, 0, 0, 3e38))  # its square is not
    assert isinstance(reply, Ack)


@pytest.mark.parametrize('frames', [1e39, 1e-46, 1e-40])
def test_frames_that_single_precision_cannot_count_are_refused(frames):
    rule = rules.chain(rules.scale_by_frames(), rules.sgd(1.0))
    state = ShardState(Store(np.zeros(2), rule), Policy())
    state.handle(Join(0))
    (reply,) = state.handle(push(0, 0, 0, frames=frames))
    assert reply.reason is Reason.FRAMES
    for seq, fits in enumerate((3e38, 1.0, 2e-38)):
        (reply,) = state.handle(push(0, seq, seq, frames=fits))
        assert isinstance(reply, Ack)
        assert np.isfinite(state.store.values).all()


def test_something_that_is_no_message_is_a_type_error():
    with pytest.raises(TypeError, match='no message'):
        make().handle('pull')


@pytest.mark.parametrize(
    'wrong',
    [
        {'mode': 'semi'},
        {'num_workers': 0},
        {'quorum': 2},
        {'max_staleness': -1},
        {'on_stale': 'shrug'},
        {'quorum': 1},
        {'max_staleness': 0, 'mode': 'sync'},
    ],
)
def test_impossible_policies_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Policy(**wrong)


def test_drop_refuses_what_is_too_old():
    state = make(num_workers=2, max_staleness=1, on_stale='drop')
    for worker in range(2):
        state.handle(Join(worker))
    for seq in range(2):
        state.handle(push(0, seq, seq))
    (reply,) = state.handle(push(1, 0, 0))
    assert reply.reason is Reason.STALE
    (reply,) = state.handle(push(1, 1, 1))
    assert isinstance(reply, Ack)
    assert reply.staleness == 1


def test_wait_holds_pulls_and_pushes_back_instead_of_refusing():
    state = make(num_workers=3, max_staleness=1)
    for worker in range(3):
        state.handle(Join(worker))
    assert kinds(state.handle(Pull(0))) == [(Params, 0)]
    assert kinds(state.handle(Pull(1))) == [(Params, 1)]
    assert state.handle(Pull(2)) == []  # two tickets are out, that is τ + 1
    assert kinds(state.handle(push(0, 0, 0))) == [(Ack, 0), (Params, 2)]
    # Replica 1 still works on version 0 and the shard is at 1: nobody may move before it has.
    assert state.handle(Pull(0)) == []
    assert state.handle(push(2, 0, 1)) == []
    state.check()
    replies = state.handle(push(1, 0, 0))
    assert kinds(replies) == [(Ack, 1), (Ack, 2), (Params, 0)]
    assert [reply.staleness for reply in replies[:2]] == [1, 1]
    state.check()


def test_wait_holds_a_push_while_an_older_one_is_due():
    state = make(num_workers=3, max_staleness=1)
    for worker in range(3):
        state.handle(Join(worker))
    state.handle(Pull(0))
    state.handle(push(0, 0, 0))  # version 1
    state.handle(Pull(1))
    state.handle(Pull(0))
    state.handle(push(0, 1, 1))  # version 2: replica 1 is due before anyone else
    assert state.version == 2
    state.handle(Pull(0))
    assert state.handle(push(0, 2, 2)) == []
    assert state.version == 2
    replies = state.handle(push(1, 0, 1))
    assert kinds(replies) == [(Ack, 1), (Ack, 0)]
    assert [reply.staleness for reply in replies] == [1, 1]


def test_a_dead_replica_frees_its_ticket():
    state = make(num_workers=2, max_staleness=0)
    for worker in range(2):
        state.handle(Join(worker))
    state.handle(Pull(0))
    assert state.handle(Pull(1)) == []
    assert kinds(state.handle(Leave(0))) == [(Params, 1)]


@pytest.mark.parametrize('bad', [{'value': np.nan}, {'frames': 0.0}], ids=str)
def test_a_refused_push_has_spent_its_ticket(bad):
    state = make(num_workers=2, max_staleness=0)
    for worker in range(2):
        state.handle(Join(worker))
    state.handle(Pull(0))
    assert state.handle(Pull(1)) == []
    assert kinds(state.handle(push(0, 0, 0, **bad))) == [(Reject, 0), (Params, 1)]
    assert kinds(state.handle(push(1, 0, 0))) == [(Ack, 1)]
    state.check()


def test_what_is_none_of_its_business_leaves_a_replicas_ticket_alone():
    state = make(num_workers=3, max_staleness=1)
    for worker in range(3):
        state.handle(Join(worker, life=1))
    state.handle(Pull(0, life=1))
    state.handle(Pull(1, life=1))
    assert state.handle(push(1, 0, 0, life=1)) != []
    state.handle(Pull(1, life=1))
    assert state.handle(push(1, 1, 1, life=1)) == []  # waits for replica 0, whose work is older
    before = list(state.tickets._out)
    wrong = [{'life': 0}, {'generation': 1, 'life': 1}]
    late = [push(1, 2, 1, life=1), *(push(1, 2, 1, **one) for one in wrong)]
    for one in [*late, push(0, 0, 0), push(0, 0, 0, generation=1, life=1)]:
        assert kinds(state.handle(one)) == [(Reject, one.worker)]
        assert state.tickets._out == before
    assert kinds(state.handle(push(0, 0, 0, life=1))) == [(Ack, 0), (Ack, 1)]


def test_a_push_without_a_ticket_is_best_effort():
    state = make(num_workers=1, max_staleness=0)
    state.handle(Join(0))
    state.handle(Pull(0))
    assert kinds(state.handle(push(0, 0, 0))) == [(Ack, 0)]
    (reply,) = state.handle(push(0, 1, 0))
    assert reply.reason is Reason.STALE


def test_sync_collects_in_replica_order_and_serves_only_the_next_version():
    state = make(mode='sync', num_workers=3)
    for worker in range(3):
        state.handle(Join(worker))
    assert state.handle(push(2, 0, 0, 3.0)) == []
    assert state.handle(Pull(2)) == []
    assert kinds(state.handle(Pull(1))) == [(Params, 1)]  # has not pushed: may still read
    assert state.handle(push(0, 0, 0, 6.0)) == []
    replies = state.handle(push(1, 0, 0, 0.0))
    assert kinds(replies) == [(Ack, 0), (Ack, 1), (Ack, 2), (Params, 2)]
    np.testing.assert_allclose(state.store.values, -3.0)


def test_backup_replicas_that_come_late_are_refused():
    state = make(mode='sync', num_workers=3, quorum=2)
    for worker in range(3):
        state.handle(Join(worker))
    state.handle(push(0, 0, 0, 2.0))
    assert state.version == 0
    state.handle(push(2, 0, 0, 4.0))
    assert state.version == 1
    (reply,) = state.handle(push(1, 0, 0, 100.0))
    assert reply.reason is Reason.LATE
    np.testing.assert_allclose(state.store.values, -3.0)
    (reply,) = state.handle(push(0, 1, 1))[:1] or [None]
    assert reply is None  # waits for the quorum
    (reply,) = state.handle(push(0, 2, 1))
    assert reply.reason is Reason.LATE  # one push per round


def test_a_round_goes_on_without_those_who_left():
    state = make(mode='sync', num_workers=3)
    for worker in range(3):
        state.handle(Join(worker))
    state.handle(push(0, 0, 0))
    state.handle(push(1, 0, 0))
    assert kinds(state.handle(Leave(2))) == [(Ack, 0), (Ack, 1)]
    state.handle(Join(2))  # a joiner in mid-run counts again
    state.handle(push(0, 1, 1))
    assert state.handle(push(1, 1, 1)) == []
    assert len(state.handle(push(2, 0, 1))) == 3


def test_a_round_does_not_wait_for_who_never_came_or_did_not_come_back():
    state = make(mode='sync', num_workers=3)
    for worker in (0, 1):
        state.handle(Join(worker))
    state.handle(push(0, 0, 0))
    state.handle(push(1, 0, 0))
    assert kinds(state.handle(Leave(2))) == [(Ack, 0), (Ack, 1)]  # it failed before it joined
    state.restore(state.snapshot())
    state.handle(Join(0))
    assert state.handle(push(0, 1, 1, generation=1)) == []
    assert kinds(state.handle(Leave(1))) == [(Ack, 0)]  # it died while the shard was away
    assert state.handle(Leave(7)) == []
    state.check()
    state.handle(Join(2))
    state.handle(push(0, 2, 2, generation=1))
    assert len(state.handle(push(2, 0, 2, generation=1))) == 2


def test_a_restarted_shard_knows_which_life_a_replica_is_in():
    state = make(num_workers=1)
    state.handle(Join(0, life=2))
    state.restore(state.snapshot())
    (reply,) = state.handle(Join(0, fresh=False, life=1))
    assert reply.reason is Reason.REPLACED
    assert kinds(state.handle(Join(0, fresh=False, life=2))) == [(Params, 0)]


def test_a_paused_replica_learns_that_its_lease_ran_out():
    state = make(mode='sync', num_workers=2)
    state.handle(Join(0))
    state.handle(Join(1))
    state.handle(push(0, 0, 0))
    replies = state.handle(Leave(0))
    assert kinds(replies) == [(Reject, 0)]
    assert replies[0].reason is Reason.NOT_JOINED
    (reply,) = state.handle(Pull(0))
    assert reply.reason is Reason.NOT_JOINED


def test_a_retry_of_a_waiting_push_is_harmless():
    state = make(mode='sync', num_workers=2)
    state.handle(Join(0))
    state.handle(Join(1))
    assert state.handle(push(0, 0, 0)) == []
    assert state.handle(push(0, 0, 0)) == []
    replies = state.handle(push(1, 0, 0))
    assert kinds(replies) == [(Ack, 0), (Ack, 1)]
    (reply,) = state.handle(push(0, 0, 0))
    assert reply.reason is Reason.DUPLICATE
    assert state.version == 1


def test_a_restart_turns_everyone_away_and_applies_nothing_twice():
    state = make(mode='sync', num_workers=2)
    state.handle(Join(0))
    state.handle(Join(1))
    state.handle(push(0, 0, 0))
    state.handle(push(1, 0, 0))
    saved = state.snapshot()
    state.handle(push(0, 1, 1))
    replies = state.restore(saved)
    assert [(reply.worker, reply.reason) for reply in replies] == [(0, Reason.GENERATION)]
    (reply,) = state.handle(push(0, 1, 1))
    assert reply.reason is Reason.NOT_JOINED
    (params,) = state.handle(Join(0))
    assert (params.version, params.generation, params.last_seq) == (1, 1, 0)
    (reply,) = state.handle(push(0, 0, 1, generation=1))
    assert reply.reason is Reason.DUPLICATE
    assert state.handle(push(0, 1, 1, generation=1)) == []  # waits for replica 1: it is not gone
    state.check()


def test_pulled_values_stay_as_they_were():
    state = make(num_workers=1)
    (params,) = state.handle(Join(0))
    state.handle(push(0, 0, 0))
    np.testing.assert_array_equal(params.values, 0)
    with pytest.raises(ValueError, match='read-only'):
        params.values[0] = 1.0


def test_min_version_waits():
    state = make(num_workers=2)
    state.handle(Join(0))
    state.handle(Join(1))
    assert state.handle(Pull(1, min_version=1)) == []
    replies = state.handle(push(0, 0, 0))
    assert kinds(replies) == [(Ack, 0), (Params, 1)]


def test_keep_state_needs_the_same_structure():
    state = make(num_workers=1)
    with pytest.raises(ValueError, match='keep_state=False'):
        state.set_rule(rules.adam(0.1), keep_state=True)
    state.set_rule(rules.sgd(0.5), keep_state=True)
    state.handle(Join(0))
    state.handle(push(0, 0, 0))
    np.testing.assert_allclose(state.store.values, -0.5)


def test_what_an_earlier_life_of_a_replica_sends_is_refused():
    state = make(num_workers=1)
    state.handle(Join(0))
    state.handle(push(0, 0, 0))
    (welcome,) = state.handle(Join(0, life=1))
    assert welcome.last_seq == 0
    late = [push(0, 1, 1), Pull(0), Join(0, fresh=False)]
    assert [state.handle(one)[0].reason for one in late] == [Reason.REPLACED] * 3
    assert state.handle(Leave(0, life=0)) == []
    assert state.members[0].present
    (ack,) = state.handle(push(0, 1, 1, life=1))
    assert isinstance(ack, Ack)
    state.handle(Leave(0))
    assert not state.members[0].present


@pytest.mark.parametrize(
    ('values', 'finite'),
    [
        ([3e38, 3e38, -3e38, -3e38], True),  # the sum overflows on the way
        ([np.inf, -np.inf], False),
        ([np.nan, 1.0], False),
        ([-np.inf, 1.0], False),
        ([], True),
    ],
)
def test_what_is_finite(values, finite):
    assert all_finite(np.array(values, np.float32)) is finite


def test_a_later_life_refuses_what_the_earlier_one_waits_for():
    state = make(mode='sync', num_workers=2)
    for worker in (0, 1):
        state.handle(Join(worker))
    state.handle(push(0, 0, 0))
    state.handle(Pull(0))
    *refusals, welcome = state.handle(Join(0, life=1))
    assert [(reply.seq, reply.life) for reply in refusals] == [(0, 0), (-1, 0)]
    assert {reply.reason for reply in refusals} == {Reason.REPLACED}
    assert isinstance(welcome, Params)
    assert welcome.life == 1
    state.check()
    assert state.handle(push(0, 1, 0, life=1)) == []
    acks = state.handle(push(1, 0, 0))
    assert [(ack.worker, ack.life) for ack in acks] == [(0, 1), (1, 0)]
