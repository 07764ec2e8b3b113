"""A long run under a steady rain of faults: the books balance at the end and nothing is left over.

The quick test rains for two seconds, the slow one for ten minutes (SEQTRAIN_SOAK_S changes that).
"""

import os
import random
import threading
import time

import numpy as np
import pytest

from seqtrain import exchange
from seqtrain.exchange import FaultPlan, Policy, replay, rules

START = {'w': np.linspace(-1, 1, 10).astype(np.float32)}
WORKERS = 4
LEASE_S = 0.3


def gradient(event, params):
    return {'w': np.sin(params['w'] + np.float32(event.worker)).astype(np.float32)}


class Replica:
    """A replica that is started again whenever it dies, and pauses when it is told to."""

    def __init__(self, server, worker, plan, pace_s):
        self.server, self.worker, self.plan, self.pace_s = server, worker, plan, pace_s
        self.stop, self.pause = threading.Event(), threading.Event()
        self.resumed = threading.Event()
        self.client, self.acks, self.deaths, self.errors = None, 0, 0, []
        self.thread = threading.Thread(target=self.live, name=f'soak-{worker}')

    def live(self):
        while not self.stop.is_set():
            try:
                with self.server.connect(self.worker, faults=self.plan, retry_s=0.05) as client:
                    self.client = client
                    self.work(client)
            except exchange.ExchangeError as error:
                if 'is closed' not in str(error):  # killed from outside, as planned
                    self.errors.append(error)
                    return
                self.deaths += 1
            finally:
                self.acks += client._courier.stats.applied

    def work(self, client):
        while not self.stop.is_set():
            if self.pause.is_set():
                self.resumed.wait(2 * LEASE_S)
                self.pause.clear()
            params, versions = client.latest()
            event = exchange.Event('', 0, self.worker, 0)
            client.push(gradient(event, params), versions)
            client.flush()
            self.stop.wait(self.pace_s)


def rain(server, replicas, duration_s, interval_s, rng):
    """Inflicts a fault every `interval_s` seconds on average; returns how many of each kind."""
    counts = dict.fromkeys(('kill', 'restart', 'pause', 'slow shard'), 0)
    saved = server.snapshot()
    deadline = time.monotonic() + duration_s
    wait = threading.Event()  # never set: a clock that is not sleep
    while (left := deadline - time.monotonic()) > 0:
        wait.wait(min(left, rng.expovariate(1 / interval_s)))
        kind = rng.choice(list(counts))
        counts[kind] += 1
        replica = rng.choice(replicas)
        shard = rng.randrange(server.partition.num_shards)
        if kind == 'kill' and replica.client is not None:
            replica.client.kill()
        elif kind == 'restart':
            server.restore_shard(shard, saved[shard])
        elif kind == 'pause':
            replica.pause.set()
        elif kind == 'slow shard':
            with server.hold(shard):
                wait.wait(0.05)
        if rng.random() < 0.5:
            saved = server.snapshot()
    return counts


def soak(duration_s, interval_s, policy, pace_s=0.002):
    threads = set(threading.enumerate())
    rule = rules.sgd(1e-3, 0.5)
    plan = FaultPlan(seed=7, lose=0.01, double=0.01, hold=0.01)
    with exchange.LocalServer(START, 2, rule, policy, lease_s=LEASE_S) as server:
        replicas = [Replica(server, n, plan, pace_s) for n in range(WORKERS)]
        for replica in replicas:
            replica.thread.start()
        counts = rain(server, replicas, duration_s, interval_s, random.Random(1))
        for replica in replicas:
            replica.stop.set()
        for replica in replicas:
            replica.thread.join(60)
            assert not replica.thread.is_alive()
            assert replica.errors == []
        server.check()
        balance(server, replicas)
        stores = replay(server.events(), START, 2, rule, gradient)
        shards = server.partition.split(server.params().params)
        for store, values in zip(stores, shards, strict=True):
            np.testing.assert_array_equal(store.values, values)
    left = {t for t in threading.enumerate() if t not in threads}
    assert not left, left
    return counts, sum(event.kind == 'applied' for event in server.events())


def balance(server, replicas):
    """Every version is accounted for; nothing was applied twice; no acknowledgement was a lie."""
    applied = 0
    for shard in range(server.partition.num_shards):
        version, seen = 0, set()
        for event in server.events():
            if event.shard != shard:
                continue
            if event.kind == 'restored':
                assert event.version <= version
                version = event.version
            elif event.kind == 'applied':
                key = (event.worker, event.seq, event.generation)
                assert key not in seen
                seen.add(key)
                version += 1
                applied += 1
                assert event.version == version
        assert server.params().versions.numbers[shard] == version
    acks = sum(replica.acks for replica in replicas)
    assert acks <= applied  # an answer may be lost, or come for one who has died


@pytest.mark.parametrize(
    'policy',
    [Policy(num_workers=WORKERS), Policy(num_workers=WORKERS, max_staleness=4)],
    ids=['async', 'bounded'],
)
def test_two_seconds_of_rain(policy, caplog):
    counts, applied = soak(1.5, 0.05, policy)
    assert applied > 20
    assert sum(counts.values()) >= 10


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_minutes_of_rain(caplog):
    caplog.set_level('ERROR')
    counts, applied = soak(
        float(os.environ.get('SEQTRAIN_SOAK_S', 600)), 5.0, Policy(num_workers=WORKERS), 0.04
    )
    assert applied > 1000
    assert counts['kill'] > 0
