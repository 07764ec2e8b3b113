"""One shard, its messages and its replies, for tests that go message by message."""

import numpy as np

from seqtrain.exchange import Policy, Push, ShardState, Store, rules


def make(n=2, **policy):
    """A shard of n zeros, with plain SGD at learning rate 1."""
    return ShardState(Store(np.zeros(n), rules.sgd(1.0)), Policy(**policy))


def push(worker, seq, base, value=1.0, n=2, **more):
    return Push(worker, seq, base, np.full(n, value, np.float32), **more)


def kinds(replies):
    return [(type(reply), reply.worker) for reply in replies]
