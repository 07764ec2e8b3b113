"""Who gets how many leases of a stage."""

import pytest

from seqtrain.data.leases import LeaseBook
from seqtrain.training import experiment, replay
from seqtrain.training.leasing import LeaseDesk


def desk(updates, completed, equal_shares=True, replicas=4):
    book = LeaseBook(40, lambda order: [(0, [i]) for i in order], replicas)
    return LeaseDesk(book, set(range(replicas)), updates, equal_shares, completed)


def taken(desk, replicas=4):
    """How many leases each replica gets, when one after the other takes all it can have."""
    counts = [0] * replicas
    for replica in range(replicas):
        while desk.take(replica):
            counts[replica] += 1
    return counts


@pytest.mark.parametrize(
    ('updates', 'completed', 'counts'),
    [
        (16, 0, [4, 4, 4, 4]),
        (18, 0, [4, 4, 4, 4]),
        (16, 4, [3, 3, 3, 3]),
        (16, 5, [3, 3, 3, 2]),  # a checkpoint in the middle of a round
        (18, 5, [3, 3, 3, 2]),  # what a whole stage leaves out, a resumed one does, too
        (16, 10, [2, 2, 1, 1]),
        (18, 16, [0, 0, 0, 0]),
        (17, 17, [0, 0, 0, 0]),
        (16, 14, [1, 1, 0, 0]),
    ],
)
def test_synchronous_replicas_get_as_many_leases_as_the_others(updates, completed, counts):
    assert taken(desk(updates, completed)) == counts


def test_asynchronous_replicas_get_what_is_left():
    assert taken(desk(16, 5, equal_shares=False)) == [11, 0, 0, 0]


def test_a_synchronous_run_that_broke_off_amid_a_round_loses_no_update_and_replays(
    make_config, tmp_path, run_until_power_cut
):
    config = make_config(exchange__mode='sync', exchange__rule='sgd', checkpoint__every_updates=1)
    config.bootstrap.rounds, config.bootstrap.updates, config.sequence.updates = 1, 28, 0
    for updates in (5, 6):
        run_until_power_cut(config, tmp_path, updates=updates)
    result = experiment.run(config, tmp_path, quiet=True)
    assert result['updates'] == 28
    assert replay.run(tmp_path)['identical']
