"""The asynchronous exchange: a parameter server for any JAX model with an Optax optimiser.

Replicas train on data that nobody else sees, push updates, and never wait for each other. This
package knows nothing of speech. A whole run, on a toy model:

>>> import threading
>>> import jax, jax.numpy as jnp, numpy as np
>>> from seqtrain import exchange
>>> gradient = jax.jit(jax.grad(lambda w, x, y: jnp.mean((x @ w['kernel'] + w['bias'] - y) ** 2)))
>>> def replica(server, worker):
...     rng = np.random.default_rng(worker)
...     with server.connect(worker) as client:
...         for _ in range(200):
...             x = rng.normal(size=(16, 3)).astype(np.float32)
...             params, versions = client.latest()
...             update = gradient(params, x, x @ np.array([1.0, -2.0, 0.5]) + 3.0)
...             client.push(update, versions, frames=16)
>>> params = {'kernel': np.zeros(3, np.float32), 'bias': np.zeros([], np.float32)}
>>> policy = exchange.Policy(num_workers=2, max_staleness=4)
>>> with exchange.LocalServer(params, 2, exchange.rules.sgd(0.05), policy) as server:
...     threads = [threading.Thread(target=replica, args=(server, n)) for n in range(2)]
...     _ = [thread.start() for thread in threads], [thread.join() for thread in threads]
...     trained, versions = server.params()
>>> versions.numbers, [round(float(w), 2) for w in trained['kernel']]
((400, 400), [1.0, -2.0, 0.5])
"""

from seqtrain.exchange import eventlog, rules
from seqtrain.exchange.client import Client
from seqtrain.exchange.courier import ExchangeError, Pulled, Stats, Versions
from seqtrain.exchange.eventlog import EventLog
from seqtrain.exchange.faults import FaultPlan, InjectedFault
from seqtrain.exchange.local_steps import LocalTrainer, clip, pseudo_gradient
from seqtrain.exchange.messages import (
    Ack,
    Event,
    Join,
    Leave,
    Params,
    Pull,
    Push,
    Reason,
    Reject,
)
from seqtrain.exchange.partition import Partition, PartitionError
from seqtrain.exchange.policy import Policy
from seqtrain.exchange.replay import ReplayError, replay
from seqtrain.exchange.state import ShardState
from seqtrain.exchange.store import Store
from seqtrain.exchange.transport.local import LocalServer

__all__ = [
    'Ack',
    'Client',
    'Event',
    'EventLog',
    'ExchangeError',
    'FaultPlan',
    'InjectedFault',
    'Join',
    'Leave',
    'LocalServer',
    'LocalTrainer',
    'Params',
    'Partition',
    'PartitionError',
    'Policy',
    'Pull',
    'Pulled',
    'Push',
    'Reason',
    'Reject',
    'ReplayError',
    'ShardState',
    'Stats',
    'Store',
    'Versions',
    'clip',
    'eventlog',
    'pseudo_gradient',
    'replay',
    'rules',
]
