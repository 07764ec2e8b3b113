"""A replica's half of the protocol against shards in the same thread: lives, lost pushes."""

import collections

import numpy as np
import pytest
from shards import make

from seqtrain import exchange
from seqtrain.exchange import Event, Partition, rules
from seqtrain.exchange.courier import Courier, ExchangeError, Facts

ONES = {'w': np.ones(2, np.float32)}


class Line:
    """A channel to one shard, whose answers are there at once."""

    def __init__(self, state):
        self._state, self._replies = state, collections.deque()
        self.sent = 0

    def send(self, shard, message):
        self.sent += 1
        assert self.sent < 100, 'it goes round in a circle'
        self._replies.extend((shard, reply) for reply in self._state.handle(message))

    def receive(self, timeout_s):
        return self._replies.popleft()


@pytest.mark.parametrize('ask', ['push', 'pull', 'push_and_pull', 'join'])
def test_who_was_replaced_by_a_life_that_is_over_hears_of_it(ask):
    state = make(num_workers=2)
    partition = Partition.make(ONES, 1)
    old, new = (Courier(Line(state), partition, 0, life=life) for life in range(2))
    pulled, seq = old.join()
    new.join()
    new.leave()
    update = (ONES, pulled.versions, seq, Facts()) if 'push' in ask else ()
    with pytest.raises(ExchangeError, match=r'comes from life 0|life 0 is over'):
        getattr(old, ask)(*update)
    assert state.version == 0


def test_a_shard_that_has_forgotten_a_replica_costs_it_no_push_at_another_one():
    """Old values that its pushes are based on stay where nothing was lost."""
    with exchange.LocalServer(ONES, 2, rules.dc_asgd(0.1)) as server, server.connect(0) as client:
        pulled = client.pull()
        server.restore_shard(0, server.snapshot()[0])
        with server.hold(0):  # both are on their way before the first is answered
            client.push(ONES, pulled.versions)
            client.push(ONES, pulled.versions)
        client.flush()
        taken = [event.seq for event in server.events() if taken_by(event, 1)]
    assert taken == [0, 1]


def taken_by(event: Event, shard: int) -> bool:
    return (event.kind, event.shard) == ('applied', shard)
