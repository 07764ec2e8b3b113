import collections
import json

import hypothesis
import hypothesis.strategies as st
import pytest

from seqtrain.data.leases import LeaseBook, split_by_speaker
from seqtrain.data.utterance import DataError

SPEAKERS = ['a', 'a', 'b', 'b', 'b', 'c', 'd', 'd', 'e', 'e']


def pairs(order):
    """A plan: two utterances a batch."""
    return [(0, order[i : i + 2]) for i in range(0, len(order), 2)]


def book(num_replicas=2, seed=0, speakers=None, num_items=10):
    return LeaseBook(num_items, pairs, num_replicas, seed, speakers)


def run(leases, order):
    """Acquires and completes at once, in the given order of replicas."""
    taken = [(replica, leases.acquire(replica)) for replica in order]
    for _, lease in taken:
        assert leases.complete(lease)
    return taken


def test_every_utterance_once_per_epoch():
    taken = run(book(), [0, 1, 1, 0, 1] * 3)
    for epoch in range(3):
        used = [i for _, lease in taken if lease.epoch == epoch for i in lease.indices]
        assert sorted(used) == list(range(10))
    orders = [[lease.indices for _, lease in taken if lease.epoch == e] for e in range(3)]
    assert orders[0] != orders[1] != orders[2]


def test_order_depends_on_the_seed_only():
    a = [lease for _, lease in run(book(seed=1), [0] * 12)]
    b = [lease for _, lease in run(book(seed=1), [0, 1] * 6)]
    c = [lease for _, lease in run(book(seed=2), [0] * 12)]
    assert a == b != c


def test_speaker_mode_keeps_speakers_apart():
    leases = book(3, speakers=SPEAKERS)
    seen = collections.defaultdict(set)
    for replica, lease in run(leases, [0, 1, 2] * 20):
        seen[replica] |= {SPEAKERS[i] for i in lease.indices}
    assert set.union(*seen.values()) == set('abcde')
    assert sum(len(s) for s in seen.values()) == 5
    for replica in range(3):
        assert seen[replica] == {SPEAKERS[i] for i in leases.members(replica)}


def test_a_dead_replicas_leases_are_handed_out_first():
    leases = book()
    lost = [leases.acquire(0), leases.acquire(0)]
    kept = leases.acquire(1)
    leases.release(0)
    assert leases.held_by(0) == []
    assert [leases.acquire(1), leases.acquire(1)] == lost
    assert leases.complete(kept)


def test_a_released_lease_cannot_be_completed():
    leases = book()
    lease = leases.acquire(0)
    leases.release(0)
    assert not leases.complete(lease)
    again = leases.acquire(1)
    assert again == lease
    assert leases.complete(again)
    assert not leases.complete(again)


def test_speakers_of_a_dead_replica_move_whole_and_come_back():
    leases = book(3, speakers=SPEAKERS)
    own = [leases.members(r) for r in range(3)]
    lost = leases.acquire(1)
    leases.release(1)
    assert leases.members(1) == []
    assert leases.members(0) == sorted(own[0] + own[1])
    assert leases.members(2) == own[2]
    assert any(lease == lost for _, lease in run(leases, [0] * 6))
    leases.acquire(1)
    assert [leases.members(r) for r in range(3)] == own


def test_the_last_survivor_works_for_all_even_if_all_had_died():
    leases = book(3, speakers=SPEAKERS)
    for replica in range(3):
        leases.release(replica)
    used = {i for _, lease in run(leases, [2] * 12) for i in lease.indices}
    assert used == set(range(10))


@hypothesis.given(
    st.lists(st.tuples(st.sampled_from(['acquire', 'complete', 'release']), st.integers(0, 2))),
    st.booleans(),
    st.integers(0, 3),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_nothing_is_lost_or_done_twice_whatever_happens(events, by_speaker, seed):
    leases = book(3, seed, SPEAKERS if by_speaker else None)
    held = collections.defaultdict(list)
    done = collections.Counter()
    for event, replica in events:
        if event == 'acquire':
            held[replica].append(leases.acquire(replica))
        elif event == 'complete' and held[replica]:
            lease = held[replica].pop(0)
            assert leases.complete(lease)
            done.update((lease.epoch, i) for i in lease.indices)
        elif event == 'release':
            leases.release(replica)
            held[replica].clear()
    for replica in range(3):
        leases.release(replica)
    last = max([epoch for epoch, _ in done], default=0)
    restored = book(3, seed, SPEAKERS if by_speaker else None)
    restored.restore(json.loads(json.dumps(leases.state())))
    for _, lease in run(restored, [0, 1, 2] * 5 * (last + 2)):
        done.update((lease.epoch, i) for i in lease.indices)
    assert all(done[epoch, i] == 1 for epoch in range(last + 1) for i in range(10))
    assert set(done.values()) == {1}


def test_state_continues_where_it_stopped():
    one = book(seed=4)
    run(one, [0] * 7)
    in_flight = one.acquire(0)
    two = book(seed=4)
    two.restore(json.loads(json.dumps(one.state())))
    assert two.acquire(1) == in_flight
    one.complete(in_flight)
    assert [one.acquire(0) for _ in range(9)] == [two.acquire(0) for _ in range(9)]


def test_state_of_other_data_is_refused():
    state = book(num_items=8).state()
    with pytest.raises(DataError, match='use a new workdir'):
        book(num_items=10).restore(state)


def test_split_balances_frames():
    weights = [10, 10, 1, 1, 1, 9, 5, 5, 2, 2]
    parts = split_by_speaker(SPEAKERS, 2, weights)
    totals = [sum(weights[i] for i in part) for part in parts]
    assert sorted(totals) == [23, 23]


def test_bad_arguments_are_errors():
    with pytest.raises(DataError, match='all were skipped'):
        book(num_items=0)
    with pytest.raises(DataError, match='Use fewer replicas'):
        book(6, speakers=SPEAKERS)
    with pytest.raises(DataError, match='Replica 2 is not one of 0 to 1'):
        book().acquire(2)
