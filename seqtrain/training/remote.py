"""A replica in a process of its own: it makes its data itself and is told only which to take.

    driver   ── brief: config, models, numbers ──►  process   (once)
             ── leases: utterance numbers ───────►            ── pushes ─► shards
             ◄── metrics of batches, label counts ─           ◄─ pulls ──

No audio, feature, transcript or alignment travels: features come from the process's own copy of
the corpus (and its cache), alignments are made again from the parameters that aligned. In
speaker-disjoint mode a process reads the recordings of its own speakers only; where a replica is
gone for good, whoever gets its leases reads its speakers' too.

This module knows nothing of Ray; `hosts` is the driver's side.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from seqtrain import ops
from seqtrain.data import features as feature_lib
from seqtrain.data.buckets import Buckets
from seqtrain.data.leases import Lease
from seqtrain.data.utterance import DataError
from seqtrain.exchange import Client, Partition
from seqtrain.exchange.memory import keep_freed_memory
from seqtrain.fsa import Fsa
from seqtrain.graphs import PhoneLm, Topology
from seqtrain.training import align, assembly, bootstrap, devices, errors, prepare, serving, steps
from seqtrain.training import config as config_lib
from seqtrain.training.batching import Batcher, HostBatch
from seqtrain.training.monitor import Update
from seqtrain.training.replica import CompileGate, Replica, Work


@dataclasses.dataclass(frozen=True)
class Pool:
    """Utterances that are leased together, as `data.leases` has them.

    Attributes:
      members: their numbers in the whole training set, growing.
      speakers: whose they are; None: everybody's.
      parts: places in `members` that are aligned together, one part per replica.
      checksum: of their ids, so that a process with other data is found out.
    """

    members: tuple[int, ...]
    speakers: tuple[str, ...] | None
    parts: tuple[tuple[int, ...], ...]
    checksum: int


@dataclasses.dataclass(frozen=True, eq=False)
class Brief:
    """What a process must know of the whole training set to hold its part of it.

    Attributes:
      config: the run's, as JSON types.
      pools: see there.
      phone_lm, topology, denominator: the models that all replicas share.
      buckets, graph_sizes: shapes of batches.
      sample_rate: Hz.
      num_inputs: F.
    """

    config: dict[str, Any]
    pools: tuple[Pool, ...]
    phone_lm: PhoneLm
    topology: Topology
    denominator: Fsa
    buckets: Buckets
    graph_sizes: tuple[tuple[int, int], ...]
    sample_rate: int
    num_inputs: int


def checksum(ids: Sequence[str]) -> int:
    return zlib.crc32('\n'.join(ids).encode())


class ReplicaError(RuntimeError):
    """A replica's own failure in another process; the message names it."""


def _told(method: Callable) -> Callable:
    """Errors travel between processes as sentences: not every exception can be pickled."""

    @functools.wraps(method)
    def call(*args: Any) -> Any:
        try:
            return method(*args)
        except Exception as error:
            if errors.of_replica(error):
                raise ReplicaError(errors.line(error)) from None
            raise

    return call


class ReplicaProcess:
    """The process; its methods are called one after the other.

    Args:
      number: the replica's.
      brief: see `Brief`.
      endpoint: of the server; anything with `connect`.
    """

    def __init__(self, number: int, brief: Brief, endpoint: Any):
        self._number, self._brief, self._endpoint = number, brief, endpoint
        self._config = config_lib.from_json(brief.config)
        keep_freed_memory()
        devices.set_up(1, self._config.data.cache_dir)
        self._device = jax.local_devices()[0]
        self._network, params = assembly.network(
            self._config, brief.num_inputs, brief.topology.num_pdfs
        )
        self._flat = Partition.make(params, 1)
        self._align = steps.make_align(self._network)
        self._steps: dict[str, Callable[..., Any]] = {}
        self._held: dict[int, _Held] = {}
        self._aligners: tuple[Any, ...] = ()
        self._gate = CompileGate()
        self._client: Client | None = None
        self._replica: Replica | None = None

    def pid(self) -> int:
        return os.getpid()

    @_told
    def count(self, pool: int, part: int, *aligners: np.ndarray) -> np.ndarray:
        """i64[P]: how often each pdf occurs in a part's alignments by the newest of `aligners`."""
        self._align_by(aligners)
        labels = self._pool(pool).labels
        chosen = (labels[i] for i in self._brief.pools[pool].parts[part])
        return bootstrap.count_labels(chosen, self._brief.topology.num_pdfs)

    @_told
    def open(
        self, stage: str, kind: str, life: int, log_prior: np.ndarray, *aligners: np.ndarray
    ) -> tuple[int, int, float]:
        """Begins a life in a stage.

        Args:
          stage, kind: of the stage.
          life: of the replica.
          log_prior: f32[P].
          *aligners: f32[n] each, the parameters that made the alignments: first, second, ...

        Returns:
          The number of the first push, how many leases it wants, and this process's clock:
          seconds since the epoch at `time.perf_counter() == 0`.
        """
        self._align_by(aligners)
        if kind not in self._steps:
            self._steps[kind] = assembly.step(
                self._config, self._network, kind, self._brief.topology
            )
        denominator = jax.device_get(ops.pack(self._brief.denominator))
        work = Work(
            stage,
            self._steps[kind],
            assembly.step_args(kind, log_prior, denominator),
            _PoolBatcher(self),  # type: ignore[arg-type]
            None,
            serving.local_training(self._config, stage),
        )
        options = serving.client_options(self._config)
        self._client = self._endpoint.connect(
            self._number, device=self._device, life=life, **options
        )
        self._replica = Replica(self._number, life, self._device, self._client, work, self._gate)
        first = self._replica.next_seq
        return first, self._replica.wanted, time.time() - time.perf_counter()

    @_told
    def train(self, leases: Sequence[Lease], position: int) -> tuple[list[Update], int]:
        """`Replica.train`, and how many leases the next push wants."""
        assert self._replica is not None
        return self._replica.train(leases, position), self._replica.wanted

    @_told
    def finish(self) -> list[Update]:
        """`Replica.finish`; leaves the server."""
        assert self._replica is not None
        assert self._client is not None
        updates = self._replica.finish()
        self._client.close()
        self._client = self._replica = None
        return updates

    def batch(self, lease: Lease, device: jax.Device) -> HostBatch:
        """A lease's batch, its utterances by their numbers in the whole training set."""
        held = self._pool(lease.id[0])
        places = tuple(int(i) for i in np.searchsorted(held.members, lease.indices))
        local = Lease(lease.id, lease.bucket, places)
        batch = held.batcher.make(local, device, held.labels)  # type: ignore[arg-type]
        numbers = np.where(batch.indices >= 0, held.members[batch.indices], -1)
        return dataclasses.replace(batch, indices=numbers)

    def _pool(self, number: int) -> _Held:
        """A pool's data, made when they are first needed, with alignments of the newest round."""
        if number not in self._held:
            pool = self._brief.pools[number]
            data = part_of(self._config, self._brief, pool)
            batcher = assembly.batcher(self._config, data)
            labels = Labels(data, self._config.seed, self._align, self._device, pool.parts)
            self._held[number] = _Held(np.array(pool.members), batcher, labels)
        held = self._held[number]
        held.labels.aligners = self._aligners
        return held

    def _align_by(self, aligners: Sequence[np.ndarray]) -> None:
        trees = (self._flat.join([one]) for one in aligners)
        self._aligners = tuple(jax.device_put(tree, self._device) for tree in trees)


@dataclasses.dataclass(frozen=True, eq=False)
class _Held:
    """A pool's data in a process; `members` as in `Pool`."""

    members: np.ndarray
    batcher: Batcher
    labels: Labels


@dataclasses.dataclass(frozen=True)
class _PoolBatcher:
    """A `Batcher` for leases by number."""

    process: ReplicaProcess

    def make(self, lease: Lease, device: jax.Device, labels: None = None) -> HostBatch:
        return self.process.batch(lease, device)


class Labels:
    """Alignments as a function of the parameters that aligned; made when they are asked for.

    Round r is by the r-th of `aligners`; where that finds no path, by the one before; round 0 is
    the flat start. The same groups are aligned together as in `align.realign`, so the results are
    the same bits.

    Args:
      data: a pool's.
      seed: of the batcher.
      align_step: see `steps.make_align`.
      device: where.
      parts: places that are aligned together, see `Pool`.
    """

    def __init__(
        self,
        data: prepare.TrainingData,
        seed: int,
        align_step: Callable[..., Any],
        device: jax.Device,
        parts: Sequence[Sequence[int]],
    ):
        self.aligners: tuple[Any, ...] = ()
        self._batcher, self._align, self._device = Batcher(data, seed), align_step, device
        lengths = data.features.num_frames.tolist()
        groups = [group for part in parts for group in data.buckets.plan(part, lengths)]
        self._group = {index: group for group in groups for index in group[1]}
        self._rounds: list[dict[int, np.ndarray]] = [dict(enumerate(align.flat_start(data)))]

    def __getitem__(self, index: int) -> np.ndarray:
        """i32[U] of the newest round."""
        return self._of(len(self.aligners), index)

    def _of(self, number: int, index: int) -> np.ndarray:
        while len(self._rounds) <= number:
            self._rounds.append({})
        made = self._rounds[number]
        if index not in made:
            bucket, indices = self._group[index]
            found = align.paths(
                self._align,
                self.aligners[number - 1],
                self._batcher,
                self._device,
                bucket,
                indices,
            )
            paths = dict(found)
            made |= {i: paths[i] if i in paths else self._of(number - 1, i) for i in indices}
        return made[index]


def part_of(config: ml_collections.ConfigDict, brief: Brief, pool: Pool) -> prepare.TrainingData:
    """The training data of one pool, from this process's own copy of the corpus.

    Raises:
      DataError: the corpus here is not the driver's.
    """
    utterances = assembly.load_split(config.data, 'train')
    settings = assembly.feature_config(config)
    if pool.speakers is not None:
        utterances = [u for u in utterances if u.speaker in pool.speakers]
        settings = dataclasses.replace(settings, sample_rate=brief.sample_rate)
    lexicon, topology = assembly.load_lexicon(config.data), brief.topology
    features = feature_lib.compute_copies(
        utterances,
        settings,
        list(itertools.product(config.data.speeds, config.data.vtln)),
        str(devices.cache_root(config.data.cache_dir) / 'features'),
    )
    features = prepare.usable(features, lexicon, topology, config.model.subsampling)
    if checksum(features.ids) != pool.checksum or features.dim != brief.num_inputs:
        raise DataError(
            f'This process finds {len(features)} usable training utterances where the driver '
            f'finds {len(pool.members)}, or others: config.data must name the same corpus on '
            'every machine.'
        )
    graph_config = assembly.graph_config(config)
    return prepare.TrainingData(
        features,
        prepare.numerators(features.texts, lexicon, topology, brief.phone_lm, graph_config),
        brief.denominator,
        brief.buckets,
        brief.graph_sizes,
        lexicon,
        topology,
        config.model.subsampling,
    )
