"""One replica: its device, its utterances, its steps. It waits for nobody.

    leases ─► batches ─► newest parameters ─► step (device) ─► push ─► ... next leases
                                                 │
                      metrics of round n−1 are read while round n runs

The caller's thread only dispatches: waiting for the device, copying gradients to the host, sending
and pulling happen in the exchange client's thread. Who hands out leases and takes what comes of
them is `stage`'s affair; a replica may be in its process or in another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

from seqtrain.data.leases import Lease
from seqtrain.exchange import Client, ExchangeError, LocalTrainer, Pulled, Versions
from seqtrain.training.batching import Batcher, HostBatch
from seqtrain.training.lattice_source import LatticeWork
from seqtrain.training.monitor import Update


@dataclasses.dataclass(frozen=True)
class LocalTraining:
    """How a replica trains between two pushes, where it pushes more than a gradient.

    Attributes:
      steps: H, batches per push, at most.
      optimizer: the local one, with learning rate 1.
      learning_rate: at the beginning of the stage.
      decay: its factor from one batch of the stage to the next, over all replicas.
      keep_state: the local optimiser's, from one push to the next.
      elastic: α of an elastic replica (see `exchange.LocalTrainer`), or None.
      dylu: fewer steps for slower replicas (see `Client.local_steps`).
    """

    steps: int
    optimizer: optax.GradientTransformation
    learning_rate: float
    decay: float = 1.0
    keep_state: bool = True
    elastic: float | None = None
    dylu: bool = False

    def trainer(self, gradient: Callable[[Any, Any], Any]) -> LocalTrainer:
        return LocalTrainer(
            gradient, self.optimizer, keep_state=self.keep_state, elastic=self.elastic
        )

    def rate(self, position: int) -> float:
        """The learning rate of a push whose first batch is the stage's `position`-th (from 0)."""
        return self.learning_rate * self.decay**position


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """What all replicas of a stage share; nothing in it changes while the stage runs.

    Attributes:
      stage: its name, for the log.
      step: `step(params, batch, *args) -> (gradients, metrics)`, see `steps.make_step`.
      args: further arguments of the step, as host arrays; each replica puts them on its device.
      batcher: makes batches of leases.
      labels: an alignment per utterance, or None.
      local: how to train between pushes; None pushes gradients.
      lattices: how batches get their lattices; None: they need none.
    """

    stage: str
    step: Callable[..., Any]
    args: tuple[Any, ...]
    batcher: Batcher
    labels: Sequence[np.ndarray] | None
    local: LocalTraining | None = None
    lattices: LatticeWork | None = None


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
    """A batch whose metrics have not been read yet."""

    lease: Lease
    indices: np.ndarray
    frames: int
    started_s: float
    dispatched_s: float = 0.0
    metrics: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    host_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)
    seq: int = -1
    versions: Versions | None = None


class Replica:
    """Turns leases into pushes. One thread calls it.

    Args:
      number: the replica's number.
      life: how often it was started before.
      device: where it computes; the client's pulled parameters are there already.
      client: its end of the exchange.
      work: the stage.
      gate: see `CompileGate`.
    """

    def __init__(
        self,
        number: int,
        life: int,
        device: jax.Device,
        client: Client,
        work: Work,
        gate: CompileGate,
    ):
        self.number, self.life = number, life
        self._device, self._client, self._work, self._gate = device, client, work, gate
        self._args = jax.device_put(work.args, device)
        self._now: list[_InFlight] = []
        self._previous: list[_InFlight] = []
        self._finished_s = self._step_s = 0.0
        self._trainer = work.local.trainer(self._gradient) if work.local else None
        self._lattices = work.lattices.source(device, gate.compile) if work.lattices else None

    @property
    def horizon(self) -> int:
        """How many pushes beyond the next one it wants to know the leases of."""
        return self._work.lattices.horizon if self._work.lattices else 0

    @property
    def next_seq(self) -> int:
        """The number of the next push."""
        return self._client.next_seq

    @property
    def wanted(self) -> int:
        """How many leases the next push is to be made from."""
        local = self._work.local
        if local is None:
            return 1
        return self._client.local_steps(local.steps) if local.dylu else local.steps

    def train(
        self, leases: Sequence[Lease], position: int, following: Sequence[Lease] = ()
    ) -> list[Update]:
        """Computes and pushes one update.

        Args:
          leases: one, or one per local step.
          position: how many leases of the stage were handed out before these.
          following: the first lease of each of the next pushes, as far as they are known.

        Returns:
          What became of the batches of the push before.
        """
        plain = self._batch(leases[0])
        pulled = self._client.latest()
        batch = self._completed(plain, pulled, following)
        if self._compile(batch, pulled.params):
            pulled = self._client.pull() or pulled  # the others went on meanwhile
            batch = self._completed(plain, pulled, following)
        if self._lattices is not None:
            self._lattices.prepare(following, pulled)
        if self._trainer is None:
            update = self._gradient(pulled.params, batch)
        else:
            rate = self._work.local.rate(position)  # type: ignore[union-attr]
            rest = self._rest(batch, leases[1:], pulled)
            update = self._trainer.run(pulled.params, rest, rate).update
        frames = float(max(1, sum(one.frames for one in self._now)))
        seq = self._client.push(
            update, pulled.versions, frames, batch.s2, steps=len(leases), step_s=self._step_s
        )
        for one in self._now:
            one.seq, one.versions = seq, pulled.versions
        done, self._previous, self._now = self._previous, self._now, []
        return self._finished(done)

    def finish(self) -> list[Update]:
        """Waits until every push is answered; what became of the last one's batches."""
        done, self._previous = self._previous, []
        updates = self._finished(done)
        self._client.flush()
        return updates

    def close(self) -> None:
        """Ends what it has begun for later leases."""
        if self._lattices is not None:
            self._lattices.close()

    def _batch(self, lease: Lease) -> HostBatch:
        started = time.perf_counter()
        batch = self._work.batcher.make(lease, self._device, self._work.labels)
        self._now.append(_InFlight(lease, batch.indices, batch.frames, started))
        return batch

    def _completed(
        self, batch: HostBatch, pulled: Pulled, following: Sequence[Lease] = ()
    ) -> HostBatch:
        """The batch of the newest lease with its lattices, where it needs any."""
        if self._lattices is None:
            return batch
        current = self._now[-1]
        begun = (*self._previous, *self._now[:-1])  # of the last push, or earlier steps of this one
        busy = begun[-1].metrics if begun else None
        batch = self._lattices.complete(current.lease, batch, pulled, following, busy)
        current.indices, current.frames = batch.indices, batch.frames
        current.host_metrics, current.reasons = batch.metrics, batch.reasons
        return batch

    def _rest(
        self, batch: HostBatch, leases: Sequence[Lease], pulled: Pulled
    ) -> Iterator[tuple[HostBatch, float]]:
        """The batches of the local steps, each made when it is its turn."""
        yield batch, float(batch.frames)
        for lease in leases:
            batch = self._completed(self._batch(lease), pulled)
            self._compile(batch, pulled.params)
            yield batch, float(batch.frames)

    def _compile(self, batch: HostBatch, params: Any) -> bool:
        key = (self._work.step, self._device, batch.shape)
        return self._gate.compile(key, lambda: self._work.step(params, batch.device, *self._args))

    def _gradient(self, params: Any, batch: HostBatch) -> Any:
        current = self._now[-1]
        current.dispatched_s = time.perf_counter()
        gradients, current.metrics = self._work.step(params, batch.device, *self._args)
        return gradients

    def _finished(self, done: Sequence[_InFlight]) -> list[Update]:
        """Waits for the metrics of a push's batches."""
        updates = [self._update(one) for one in done]
        if done:
            begun = max(done[0].dispatched_s, self._finished_s)
            self._finished_s = updates[-1].finished_s
            self._step_s = (self._finished_s - begun) / len(done)
        return updates

    def _update(self, done: _InFlight) -> Update:
        metrics = {name: np.asarray(value) for name, value in done.metrics.items()}
        finished = time.perf_counter()
        valid = metrics.pop('valid', None)
        reason = metrics.pop('reason', None)
        bad = []
        assert done.versions is not None  # it was pushed
        if valid is not None and reason is not None:
            rows = np.flatnonzero(~valid & (done.indices >= 0))
            bad = [(int(done.indices[row]), int(reason[row])) for row in rows]
        return Update(
            stage=self._work.stage,
            replica=self.number,
            life=self.life,
            seq=done.seq,
            lease=done.lease.id,
            generation=done.versions.generations[0],
            versions=done.versions.numbers,
            frames=done.frames,
            metrics={name: float(value) for name, value in metrics.items()} | done.host_metrics,
            invalid=bad,
            reasons=sorted(done.reasons.items()),
            started_s=done.started_s,
            dispatched_s=done.dispatched_s,
            finished_s=finished,
        )


@contextlib.contextmanager
def connected(
    server: Any,
    number: int,
    life: int,
    device: jax.Device,
    work: Work,
    gate: CompileGate,
    options: dict[str, Any],
) -> Iterator[Replica]:
    """A replica in this process; when the body fails it leaves as a crash would.

    Args:
      server: where it connects (anything with `connect`).
      number, life, device, work, gate: see `Replica`.
      options: of its client.
    """
    client = server.connect(number, device=device, life=life, **options)
    with contextlib.ExitStack() as made:
        try:
            replica = Replica(number, life, device, client, work, gate)
            made.callback(replica.close)
            yield replica
        except BaseException:
            with contextlib.suppress(ExchangeError):  # its thread may hang in a failed device
                client.kill()
            raise
    client.close()
