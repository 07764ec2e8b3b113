"""Several shards that restart, replicas that wait for each other: never in a circle."""

import collections
import random
import threading

import numpy as np
import pytest

from seqtrain.exchange import Policy, ShardState, Store, rules
from seqtrain.exchange.courier import Courier, Facts
from seqtrain.exchange.partition import Partition

START = {'w': np.zeros(6, np.float32)}


class Line:
    """A replica's channel; its thread runs only between `go` and the next wait for an answer."""

    def __init__(self):
        self.sent = []
        self.inbox = collections.deque()
        self.over = False
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)

    def send(self, shard, message):
        self.sent.append((shard, message))

    def receive(self, timeout_s):
        while not self.inbox and not self.over:
            self._waits.release()
            self._go.acquire()
        return self.inbox.popleft() if self.inbox else None

    def wake(self):
        pass

    def close(self):
        pass

    def wait(self):
        assert self._waits.acquire(timeout=60)

    def go(self):
        self._go.release()
        self.wait()


class Run:
    """Couriers that push and pull without end, and the shards; every delivery is drawn."""

    def __init__(self, policy, num_shards, seed):
        partition = Partition.make(START, num_shards)
        num_workers = policy.num_workers
        self.policy = policy
        self.random = random.Random(seed)
        self.shards = [
            ShardState(Store(part, rules.sgd(1.0)), policy, shard=s)
            for s, part in enumerate(partition.split(START))
        ]
        self.lines = [Line() for _ in range(num_workers)]
        self.couriers = [
            Courier(
                line,
                partition,
                worker,
                in_order=policy.waits,
                abandon=lambda line=line: line.over,
            )
            for worker, line in enumerate(self.lines)
        ]
        self.threads = [
            threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(num_workers)
        ]
        for thread, line in zip(self.threads, self.lines, strict=True):
            thread.start()
            line.wait()

    def _work(self, worker):
        courier, line = self.couriers[worker], self.lines[worker]
        pulled, seq = courier.join()
        while not line.over:
            if self.policy.waits:
                pulled = courier.pull() or pulled
                courier.push(START, pulled.versions, seq, Facts())
            else:
                pulled = courier.push_and_pull(START, pulled.versions, seq, Facts()) or pulled
            seq += 1
        line._waits.release()

    def answer(self, replies):
        for shard, reply in replies:
            self.lines[reply.worker].inbox.append((shard, reply))
        for line in self.lines:
            if line.inbox:
                line.go()

    def deliver(self):
        """The oldest message of one replica to one shard; False where there is none."""
        under_way = sorted({(n, s) for n, line in enumerate(self.lines) for s, _ in line.sent})
        if not under_way:
            return False
        worker, shard = self.random.choice(under_way)
        line = self.lines[worker]
        index = next(i for i, (s, _) in enumerate(line.sent) if s == shard)
        message = line.sent.pop(index)[1]
        self.answer([(shard, reply) for reply in self.shards[shard].handle(message)])
        return True

    def restart(self, shard):
        state = self.shards[shard]
        self.answer([(shard, reply) for reply in state.restore(state.snapshot())])

    def end(self):
        for line, thread in zip(self.lines, self.threads, strict=True):
            line.over = True
            line.go()
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    ('policy', 'num_shards'),
    [
        (Policy(mode='sync', num_workers=2), 2),
        (Policy(mode='sync', num_workers=3), 2),
        (Policy(mode='sync', num_workers=3), 3),
        (Policy(mode='sync', num_workers=4, quorum=3), 2),
        (Policy(num_workers=3, max_staleness=0), 2),
        (Policy(num_workers=4, max_staleness=2), 3),
    ],
    ids=str,
)
def test_restarts_never_make_replicas_wait_for_each_other(policy, num_shards):
    for seed in range(20):
        run = Run(policy, num_shards, seed)
        for _ in range(100 * policy.num_workers * num_shards):
            assert run.deliver(), f'seed {seed}: ' + str([s.pending for s in run.shards])
            if run.random.random() < 0.02:
                run.restart(run.random.randrange(num_shards))
        assert min(state.version for state in run.shards) > 10
        run.end()
