"""Where a replica's batches get their lattices, and by which parameters those are made.

    scores of batch n+1 ─► device: step n                       ─► device: step n+1
              └──────────► host: lattices of batch n+1 ──────────────┘   s2 = the lattices' age

The scores are computed before the step is given to the device, so that the host searches while the
device works. They are of the features as they are, without augmentation and dropout: a lattice says
what the network would have recognised. s2 is the number of versions by which the server advanced
between the parameters that made the lattices and those that back-propagate through them.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from seqtrain import losses
from seqtrain.data.leases import Lease
from seqtrain.exchange import Pulled, Versions
from seqtrain.training import lattice
from seqtrain.training.batching import Batcher, HostBatch
from seqtrain.training.lattice import LatticeConfig, LatticeMaker, Made
from seqtrain.training.lattice_outer import FrameBatch, FrameBatcher, Outer

Compile = Callable[[tuple, Callable[[], Any]], bool]
"""`CompileGate.compile`."""


class Entry(NamedTuple):
    """An utterance's lattices and the parameters they were made by."""

    made: Made
    versions: Versions
    outer: Outer | None = None


class LatticeStore:
    """Lattices by utterance, for as long as they serve. Several threads may share one.

    A restart begins with an empty store: lattices are made anew from the checkpoint's parameters.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[int, tuple[int, Entry]] = {}

    def get(self, index: int, period: int) -> Entry | None:
        """What was made of an utterance in this period, or None."""
        with self._lock:
            found = self._entries.get(index)
        return found[1] if found is not None and found[0] >= period else None

    def put(self, index: int, period: int, entry: Entry) -> None:
        with self._lock:
            self._entries[index] = (period, entry)


@dataclasses.dataclass(frozen=True, eq=False)
class OuterWork:
    """What the mode 'outer' needs beside lattices.

    Attributes:
      compute: `lattice_outer.make_outer` of the network and the criterion.
      batcher: makes batches without augmentation.
      frames: cuts minibatches.
      room: frames of the largest batch.
    """

    compute: Callable[..., Any]
    batcher: Batcher
    frames: FrameBatcher
    room: int


@dataclasses.dataclass(frozen=True, eq=False)
class LatticeWork:
    """What the replicas of a stage share to make lattices.

    Attributes:
      config: see there.
      maker: makes and packs.
      forward: `steps.make_forward` of the network.
      outer: of the mode 'outer'.
      store: of the modes that keep lattices.
    """

    config: LatticeConfig
    maker: LatticeMaker
    forward: Callable[..., Any]
    outer: OuterWork | None = None
    store: LatticeStore = dataclasses.field(default_factory=LatticeStore)

    @property
    def horizon(self) -> int:
        """How many leases a source wants to know beyond the one that it is asked for."""
        if self.config.mode == 'outer':
            return self.config.batches_per_block - 1 + self.config.ahead
        return self.config.ahead

    def source(self, device: jax.Device, compile: Compile) -> LatticeSource:
        """A replica's source."""
        kind = LatticeSource if self.outer is None else BlockSource
        return kind(self, device, compile)

    def period(self, lease: Lease) -> int:
        """Lattices of one period serve each other's epochs."""
        return lease.epoch // self.config.epochs_per_lattice


@dataclasses.dataclass(frozen=True, eq=False)
class _Prepared:
    """A batch's lattices on a device.

    Attributes:
      entries: by row; None for padding rows.
      graphs: numerators and denominators; of the mode 'outer' nothing.
      metrics: see `lattice.summary`.
    """

    entries: list[Entry | None]
    graphs: tuple[Any, Any]
    metrics: dict[str, float]


class LatticeSource:
    """One replica's lattices. Its thread calls it; the search runs in a thread of its own.

    Args:
      work: see there.
      device: the replica's.
      compile: lets one replica at a time compile.
    """

    def __init__(self, work: LatticeWork, device: jax.Device, compile: Compile):
        self._work, self._device, self._compile = work, device, compile
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='lattices')
        self._waiting: dict[tuple[int, int, int], Future[_Prepared]] = {}

    def prepare(self, following: Sequence[Lease], pulled: Pulled) -> None:
        """Begins to make the lattices of the leases that will be trained on next."""
        known = {
            lease.id: self._waiting.get(lease.id) or self._begin(lease, pulled)
            for lease in following
        }
        self._waiting = known

    def complete(
        self,
        lease: Lease,
        batch: HostBatch,
        pulled: Pulled,
        following: Sequence[Lease] = (),
        busy: Any = None,
    ) -> HostBatch:
        """The batch with its lattices.

        Args:
          lease: of the batch.
          batch: without lattices.
          pulled: the parameters that will back-propagate; they also make the lattices that nobody
            has begun to make.
          following: the leases after this one.
          busy: arrays of the step before; the device counts as idle only when they are there.
        """
        prepared, idle_s = self._wait(lease, pulled, busy)
        ages = [age(pulled.versions, entry.versions) for entry in prepared.entries if entry]
        reasons = {
            int(index): entry.made.reason
            for index, entry in zip(batch.indices, prepared.entries, strict=True)
            if entry is not None and entry.made.reason
        }
        numerators, denominators = prepared.graphs
        return dataclasses.replace(
            batch,
            device=dataclasses.replace(
                batch.device, numerators=numerators, denominators=denominators
            ),
            shape=(*batch.shape, *numerators.src.shape, *denominators.src.shape),
            s2=round(sum(ages) / max(1, len(ages))),
            metrics={**prepared.metrics, 'lattice_idle_s': idle_s},
            reasons=reasons,
        )

    def _wait(self, lease: Lease, pulled: Pulled, busy: Any) -> tuple[_Prepared, float]:
        """What was prepared for a lease, and for how many seconds the device had nothing to do."""
        future = self._waiting.get(lease.id) or self._begin(lease, pulled)
        idle_s = 0.0
        if not future.done():
            jax.block_until_ready(busy)
            began = time.perf_counter()
            future.result()
            idle_s = time.perf_counter() - began
        return future.result(), idle_s

    def close(self) -> None:
        """Ends the thread; what it has begun is dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, lease: Lease, pulled: Pulled) -> Future[_Prepared]:
        """Gives the network's part to the device and the rest to the thread."""
        work, data = self._work, self._work.maker.data
        batch = data.buckets.batch(lease.bucket, lease.indices, data.features.features)
        entries = self._stored(lease, batch.indices)
        missing = np.array([e is None for e in entries]) & (batch.indices >= 0)
        scored = None
        if missing.any():
            inputs = jax.device_put((batch.features, batch.lengths), self._device)
            key = (work.forward, self._device, batch.features.shape)
            self._compile(key, lambda: work.forward(pulled.params, *inputs))
            scored = work.forward(pulled.params, *inputs)
        return self._pool.submit(
            self._make, lease, np.where(missing, batch.indices, -1), entries, scored, pulled
        )

    def _stored(self, lease: Lease, indices: np.ndarray) -> list[Entry | None]:
        if self._work.config.mode == 'decode':
            return [None] * len(indices)
        period = self._work.period(lease)
        return [self._work.store.get(int(i), period) if i >= 0 else None for i in indices]

    def _make(
        self, lease: Lease, missing: np.ndarray, entries: list[Entry | None], scored, pulled: Pulled
    ) -> _Prepared:
        """The thread's part: search, pack, put on the device."""
        work = self._work
        seconds, audio_s, facts = 0.0, 0.0, {}
        if scored is not None:
            logits, lengths = (np.asarray(x) for x in scored)
            found, seconds, audio_s = work.maker.make(logits, lengths, missing)
            for row, one in enumerate(found):
                if one is not None:
                    entries[row] = Entry(one, pulled.versions)
            facts = self._keep(lease, missing, entries, pulled)
        made = [None if entry is None else entry.made for entry in entries]
        new = [one for index, one in zip(missing, made, strict=True) if index >= 0]
        metrics = lattice.summary(made, new, seconds, audio_s) | facts
        return _Prepared(entries, self._graphs(lease, entries), metrics)

    def _keep(
        self, lease: Lease, missing: np.ndarray, entries: list[Entry | None], pulled: Pulled
    ) -> dict[str, float]:
        """Stores the new entries, for the modes that use them again; returns further metrics."""
        if self._work.config.mode == 'decode':
            return {}
        for index, entry in zip(missing, entries, strict=True):
            if index >= 0 and entry is not None:
                self._work.store.put(int(index), self._work.period(lease), entry)
        return {}

    def _graphs(self, lease: Lease, entries: Sequence[Entry | None]) -> Any:
        graphs = self._work.maker.pack([e.made if e else None for e in entries], lease.bucket)
        return jax.device_put(graphs, self._device)


class BlockSource(LatticeSource):
    """The mode 'outer': minibatches of frames from the outer derivatives of a block of leases.

    A block's frames are cut into as many minibatches as it has leases, so that each lease stands
    for one push.
    """

    def __init__(self, work: LatticeWork, device: jax.Device, compile: Compile):
        super().__init__(work, device, compile)
        self._block: list[Entry] = []
        self._minibatches: dict[tuple[int, int, int], tuple[np.ndarray, FrameBatch]] = {}
        self._facts: dict[str, float] = {}
        self._reasons: dict[int, str] = {}

    def prepare(self, following: Sequence[Lease], pulled: Pulled) -> None:
        """Begins those of the next block, unless they are to be made when it is their turn."""
        later = [lease for lease in following if lease.id not in self._minibatches]
        super().prepare(later if self._work.config.ahead else [], pulled)

    def complete(
        self,
        lease: Lease,
        batch: HostBatch,
        pulled: Pulled,
        following: Sequence[Lease] = (),
        busy: Any = None,
    ) -> HostBatch:
        """The lease's minibatch; with the first lease of a block those of the whole block."""
        if lease.id not in self._minibatches:
            size = self._work.config.batches_per_block
            self._open([lease, *following][:size], pulled, busy)
        members, frames = self._minibatches[lease.id]
        ages = [age(pulled.versions, self._block[m].versions) for m in members]
        first = lease.id == next(iter(self._minibatches))  # tells of the whole block
        return dataclasses.replace(
            batch,
            device=jax.device_put(frames, self._device),
            frames=len(members),
            shape=frames.windows.shape,
            s2=round(sum(ages) / max(1, len(ages))),
            metrics=self._facts if first else {},
            reasons=self._reasons if first else {},
        )

    def _open(self, leases: Sequence[Lease], pulled: Pulled, busy: Any) -> None:
        """Gathers a block's derivatives and cuts them into minibatches."""
        work = self._work
        assert work.outer is not None
        block: list[tuple[int, Outer]] = []
        self._block, self._reasons, found = [], {}, []
        for lease in leases:
            prepared, idle_s = self._wait(lease, pulled, busy)
            found.append({**prepared.metrics, 'lattice_idle_s': idle_s})
            for index, entry in zip(lease.indices, prepared.entries, strict=False):
                assert entry is not None
                if entry.outer is None:
                    self._reasons[index] = entry.made.reason
                    continue
                block.append((index, entry.outer))
                self._block.append(entry)
        rng = np.random.default_rng([work.outer.batcher.seed, *leases[0].id])
        cut = work.outer.frames.minibatches(block, len(leases), work.outer.room, rng)
        self._minibatches = {lease.id: one for lease, one in zip(leases, cut, strict=True)}
        self._facts = lattice.merged(found)

    def _graphs(self, lease: Lease, entries: Sequence[Entry | None]) -> Any:
        return None

    def _keep(
        self, lease: Lease, missing: np.ndarray, entries: list[Entry | None], pulled: Pulled
    ) -> dict[str, float]:
        """Outer derivatives of the new lattices, which are not needed any more."""
        work = self._work
        assert work.outer is not None
        batch = work.outer.batcher.make(lease, self._device, work.outer.frames.labels).device
        numerators, denominators = super()._graphs(
            lease, [e if i >= 0 else None for i, e in zip(missing, entries, strict=True)]
        )
        batch = dataclasses.replace(batch, numerators=numerators, denominators=denominators)
        compute = work.outer.compute
        key = (compute, self._device, batch.features.shape, denominators.src.shape)
        self._compile(key, lambda: compute(pulled.params, batch))
        found = jax.device_get(compute(pulled.params, batch))
        out, derivative, logits, curvature, occupancies = found
        for row, (index, entry) in enumerate(zip(missing, entries, strict=True)):
            if index < 0 or entry is None:
                continue
            size = work.maker.data.output_length(index)
            made = dataclasses.replace(entry.made, numerator=None, denominator=None)
            if not made.reason and not out.valid[row]:
                name = losses.Reason(int(out.reason[row])).name.lower().replace('_', ' ')
                made = dataclasses.replace(made, reason=f'no value: {name}')
            outer = None
            if not made.reason:
                kept = [None if x is None else x[row, :size].copy() for x in (logits, curvature)]
                outer = Outer(float(out.value[row]), derivative[row, :size].copy(), *kept)
            entries[row] = Entry(made, entry.versions, outer)
        super()._keep(lease, missing, entries, pulled)
        return {name: float(x) for name, x in occupancies.items()} if out.valid.any() else {}


def age(now: Versions, then: Versions) -> int:
    """Versions by which the server advanced from one pull to another; a restart counts as none."""
    if now.generations != then.generations:
        return 0
    return max([0, *(a - b for a, b in zip(now.numbers, then.numbers, strict=True))])
