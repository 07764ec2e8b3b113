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

from seqtrain.data.leases import Lease
from seqtrain.exchange import Pulled, Versions
from seqtrain.training import lattice
from seqtrain.training.batching import HostBatch
from seqtrain.training.lattice import LatticeConfig, LatticeMaker, Made

Compile = Callable[[tuple, Callable[[], Any]], bool]
"""`CompileGate.compile`."""


class Entry(NamedTuple):
    """An utterance's lattices and the parameters they were made by."""

    made: Made
    versions: Versions


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
class LatticeWork:
    """What the replicas of a stage share to make lattices.

    Attributes:
      config: see there.
      maker: makes and packs.
      forward: `steps.make_forward` of the network.
      store: of the modes that keep lattices.
    """

    config: LatticeConfig
    maker: LatticeMaker
    forward: Callable[..., Any]
    store: LatticeStore = dataclasses.field(default_factory=LatticeStore)

    @property
    def horizon(self) -> int:
        """How many leases a source wants to know beyond the one that it is asked for."""
        return int(self.config.ahead)

    def source(self, device: jax.Device, compile: Compile) -> LatticeSource:
        """A replica's source."""
        return LatticeSource(self, device, compile)

    def period(self, lease: Lease) -> int:
        """Lattices of one period serve each other's epochs."""
        return lease.epoch // self.config.epochs_per_lattice


@dataclasses.dataclass(frozen=True, eq=False)
class _Prepared:
    """A batch's lattices on a device.

    Attributes:
      entries: by row; None for padding rows.
      graphs: numerators and denominators.
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
        future = self._waiting.get(lease.id) or self._begin(lease, pulled)
        idle_s = 0.0
        if not future.done():
            jax.block_until_ready(busy)
            began = time.perf_counter()
            future.result()
            idle_s = time.perf_counter() - began
        prepared = future.result()
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
        made: list[Made | None] = []
        seconds = 0.0
        if scored is not None:
            logits, lengths = (np.asarray(x) for x in scored)
            made, seconds = work.maker.make(logits, lengths, missing, lease.bucket)
            for row, one in enumerate(made):
                if one is not None:
                    entries[row] = entry = Entry(one, pulled.versions)
                    if work.config.mode != 'decode':
                        work.store.put(int(missing[row]), work.period(lease), entry)
        graphs = work.maker.pack([one.made if one else None for one in entries], lease.bucket)
        all_made = [entry.made for entry in entries if entry is not None]
        audio_s = sum(work.maker.audio_s(int(i)) for i in missing if i >= 0)
        return _Prepared(
            entries,
            jax.device_put(graphs, self._device),
            lattice.summary(all_made, seconds, audio_s),
        )


def age(now: Versions, then: Versions) -> int:
    """Versions by which the server advanced from one pull to another; a restart counts as none."""
    if now.generations != then.generations:
        return 0
    return max([0, *(a - b for a, b in zip(now.numbers, then.numbers, strict=True))])
