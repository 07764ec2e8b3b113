"""Who is waited for when a stage begins. Replicas that push to a real server, and no more."""

import contextlib
import threading
import types

import numpy as np
import pytest

from seqtrain import exchange
from seqtrain.data.leases import LeaseBook
from seqtrain.training import fleet, monitor, replica
from seqtrain.training.fleet import Fleet, run_stage
from seqtrain.training.leasing import LeaseDesk

ONES = {'w': np.ones(2, np.float32)}


class Notes:
    """What `run_stage` wants of a monitor."""

    def __init__(self):
        self.updates, self._woken = [], threading.Condition()

    def pushing(self, *what):
        pass

    def together(self):
        return contextlib.nullcontext()

    def add(self, update):
        self.updates.append(update)

    def wake(self):
        with self._woken:
            self._woken.notify_all()

    def wait_for(self, done):
        with self._woken:
            self._woken.wait_for(done)


class Pushing:
    """A replica that pushes ones."""

    wanted, horizon = 1, 0

    def __init__(self, client):
        self._client, self.next_seq = client, client.next_seq

    def train(self, leases, position, following=()):
        self._client.push(ONES, self._client.latest().versions)
        return []

    def finish(self):
        self._client.flush()
        return []


def test_the_first_round_of_every_stage_waits_for_all_replicas(monkeypatch):
    pushed, deliver = threading.Event(), exchange.LocalServer.deliver

    def noting(self, shard, message, *sender):
        deliver(self, shard, message, *sender)
        if isinstance(message, exchange.Push):
            pushed.set()

    @contextlib.contextmanager
    def connect(number, life):
        if number == 1:
            assert pushed.wait(30)  # the other one has pushed before this one joins
        with server.connect(number, life=life) as client:
            yield Pushing(client)

    monkeypatch.setattr(exchange.LocalServer, 'deliver', noting)
    policy = exchange.Policy(mode='sync', num_workers=2)
    fleet = Fleet(2, max_restarts=0)
    with exchange.LocalServer(ONES, 2, exchange.rules.sgd(1.0), policy) as server:
        for stage in range(3):
            if stage == 2:
                server.restore(server.snapshot())
            pushed.clear()
            desk = LeaseDesk(
                LeaseBook(4, lambda order: [(0, [i]) for i in order], 2), {0, 1}, 2, True
            )
            run_stage(server, fleet, connect, f'{stage}', desk, Notes(), every_updates=9,
                      checkpoint=lambda: False)  # fmt: skip
            assert server.params().versions.numbers == (stage + 1, stage + 1)
        server.check()


def test_a_resumed_round_does_not_wait_for_replicas_that_have_nothing_left_to_do():
    @contextlib.contextmanager
    def connect(number, life):
        with server.connect(number, life=life) as client:
            yield Pushing(client)

    policy = exchange.Policy(mode='sync', num_workers=3)
    with exchange.LocalServer(ONES, 2, exchange.rules.sgd(1.0), policy) as server:
        book = LeaseBook(9, lambda order: [(0, [i]) for i in order], 3)
        desk = LeaseDesk(book, {0, 1, 2}, 6, True, completed=4)
        run_stage(server, Fleet(3, max_restarts=0), connect, 'resumed', desk, Notes(),
                  every_updates=9, checkpoint=lambda: False)  # fmt: skip
        assert server.params().versions.numbers == (1, 1)  # one round, of two replicas
        server.check()


def test_an_update_is_counted_by_desk_and_monitor_at_once(tmp_path):
    run = types.SimpleNamespace(_monitor=monitor.Monitor(tmp_path, total=1, quiet=True))
    free = []

    def complete(lease):
        del lease
        other = threading.Thread(
            target=lambda: free.append(run._monitor.together().acquire(blocking=False))
        )
        other.start()
        other.join()

    run._desk = types.SimpleNamespace(complete=complete)
    update = monitor.Update('ce-0', 0, 0, 0, (0, 0, 0), (0,), 1, {'loss': 0.0}, [], 0.0, 0.0, 0.0)
    fleet._StageRun._take(run, [update])
    run._monitor.close()
    assert free == [False]
    assert len(run._monitor.updates) == 1


def test_a_replica_that_cannot_be_made_leaves_no_thread(monkeypatch):
    def fail(*args):
        raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')

    monkeypatch.setattr(replica, 'Replica', fail)
    before = set(threading.enumerate())
    server = exchange.LocalServer(ONES, 1, exchange.rules.sgd(0.1), exchange.Policy(num_workers=1))
    with server:
        failing = replica.connected(server, 0, 0, None, None, None, {})
        with pytest.raises(RuntimeError, match='out of memory'), failing:
            pass
        assert not [t for t in threading.enumerate() if t not in before and t.is_alive()]
