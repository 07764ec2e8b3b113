"""One replica: its device, its utterances, its loop. It waits for nobody.

    lease ─► batch ─► newest parameters ─► step (device) ─► push ─► ... next lease
                                              │
                    metrics of step n−1 are read while step n runs

The thread only dispatches: waiting for the device, copying gradients to the host, sending and
pulling happen in the exchange client's thread.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from seqtrain.data.leases import Lease
from seqtrain.exchange import Client, Versions
from seqtrain.training.batching import Batcher, HostBatch
from seqtrain.training.leasing import LeaseDesk
from seqtrain.training.monitor import Monitor, Update


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """What all replicas of a stage share; nothing in it changes while the stage runs.

    Attributes:
      stage: its name, for the log.
      step: `step(params, batch, *args) -> (gradients, metrics)`, see `steps.make_step`.
      args: further arguments of the step, as host arrays; each replica puts them on its device.
      batcher: makes batches of leases.
      labels: an alignment per utterance, or None.
    """

    stage: str
    step: Callable[..., Any]
    args: tuple[Any, ...]
    batcher: Batcher
    labels: Sequence[np.ndarray] | None


class CompileGate:
    """Lets one replica at a time compile a new shape, so that the others find it in the cache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: set[tuple] = set()

    def compile(self, key: tuple, call: Callable[[], Any]) -> bool:
        """Runs `call()` to its end under the lock, the first time that `key` is seen.

        Returns:
          Whether it ran: the parameters at hand may then be old, because others went on.
        """
        if key in self._seen:
            return False
        with self._lock:
            jax.block_until_ready(call())
            self._seen.add(key)
        return True


@dataclasses.dataclass(eq=False)
class _InFlight:
    """A step whose metrics have not been read yet."""

    lease: Lease
    batch: HostBatch
    seq: int
    versions: Versions
    metrics: dict[str, jax.Array]
    started_s: float
    dispatched_s: float


def run_replica(
    number: int,
    device: jax.Device,
    client: Client,
    work: Work,
    desk: LeaseDesk,
    monitor: Monitor,
    gate: CompileGate,
) -> None:
    """Trains until the desk has no more leases; every push is answered when this returns.

    Args:
      number: the replica's number.
      device: where it computes; the client's pulled parameters are there already.
      client: its end of the exchange.
      work: the stage.
      desk: hands out leases.
      monitor: takes what is to be logged.
      gate: see `CompileGate`.
    """
    args = jax.device_put(work.args, device)
    previous: _InFlight | None = None
    while (lease := desk.acquire(number)) is not None:
        started = time.perf_counter()
        batch = work.batcher.make(lease, device, work.labels)
        pulled = client.latest()
        key = (work.step, number, batch.shape)
        if gate.compile(key, lambda: work.step(pulled.params, batch.device, *args)):
            pulled = client.pull() or pulled  # the others went on meanwhile
        ready = time.perf_counter()
        gradients, metrics = work.step(pulled.params, batch.device, *args)
        seq = client.push(gradients, pulled.versions, frames=float(max(1, batch.frames)))
        monitor.pushed(work.stage, number, pulled.versions, seq, lease)
        current = _InFlight(lease, batch, seq, pulled.versions, metrics, started, ready)
        if previous is not None:
            _report(number, previous, work.stage, desk, monitor)
        previous = current
    if previous is not None:
        _report(number, previous, work.stage, desk, monitor)
    client.flush()


def _report(number: int, done: _InFlight, stage: str, desk: LeaseDesk, monitor: Monitor) -> None:
    """Waits for a step's metrics and hands them to the monitor."""
    metrics = {name: np.asarray(value) for name, value in done.metrics.items()}
    finished = time.perf_counter()
    desk.complete(done.lease)
    valid = metrics.pop('valid', None)
    reason = metrics.pop('reason', None)
    bad = []
    if valid is not None and reason is not None:
        rows = np.flatnonzero(~valid & (done.batch.indices >= 0))
        bad = [(int(done.batch.indices[row]), int(reason[row])) for row in rows]
    monitor.add(
        Update(
            stage=stage,
            replica=number,
            seq=done.seq,
            lease=done.lease.id,
            generation=done.versions.generations[0],
            versions=done.versions.numbers,
            frames=done.batch.frames,
            metrics={name: float(value) for name, value in metrics.items()},
            invalid=bad,
            started_s=done.started_s,
            dispatched_s=done.dispatched_s,
            finished_s=finished,
        )
    )
