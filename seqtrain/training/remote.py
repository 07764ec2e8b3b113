"""A replica in a process of its own: it makes its data itself and is told only which to take.

    driver   ── brief: config, models, numbers ──►  process   (once)
             ── leases: utterance numbers ───────►            ── pushes ─► shards
             ◄── metrics of batches, label counts ─           ◄─ pulls ──

No audio, feature, transcript or lattice travels: features come from the process's own copy of the
corpus (and its cache), alignments are made again from the parameters that aligned, lattices by each
replica on its own host, ahead of the device, as replicas that are threads do. Only where a run does
not begin with a flat start (tied states, `bootstrap.mono_offsets`, `start_from`) a process asks the
driver for the first alignments, pdf numbers, of what it holds. In speaker-disjoint mode it reads
the recordings, and asks for alignments, of its own speakers only; where a replica is gone for good,
whoever gets its leases reads its speakers' too.

This module knows nothing of Ray; `hosts` is the driver's side.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seqtrain import ops
from seqtrain.data.leases import Lease
from seqtrain.exchange import Client, Partition
from seqtrain.exchange.memory import keep_freed_memory
from seqtrain.training import (
    assembly,
    bootstrap,
    devices,
    errors,
    lattice_stage,
    serving,
    steps,
)
from seqtrain.training import config as config_lib
from seqtrain.training.holdings import Brief, Holdings
from seqtrain.training.lattice import Sizes
from seqtrain.training.lattice_source import LatticeWork
from seqtrain.training.monitor import Update
from seqtrain.training.replica import CompileGate, Replica, Work

logger = logging.getLogger(__name__)


class Opened(NamedTuple):
    """What a process says when a life begins in it.

    Attributes:
      next_seq, wanted, horizon: see `fleet.ReplicaLike`.
      clock: seconds since the epoch at its `time.perf_counter() == 0`.
    """

    next_seq: int
    wanted: int
    horizon: int
    clock: float


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
                logger.warning('A replica failed:', exc_info=True)  # where, only this process knows
                raise ReplicaError(errors.line(error)) from None
            raise

    return call


class ReplicaProcess:
    """The process; its methods are called one after the other.

    Args:
      number: the replica's.
      brief: see `Brief`.
      endpoint: of the server; anything with `connect`.
      first: first alignments, see `Holdings`.
    """

    def __init__(self, number: int, brief: Brief, endpoint: Any, first: Any = None):
        self._number, self._brief, self._endpoint = number, brief, endpoint
        self._config = config_lib.from_json(brief.config)
        keep_freed_memory()
        devices.set_up(1, self._config.data.cache_dir)
        self._device = jax.local_devices()[0]
        self._network, params = assembly.network(
            self._config, brief.num_inputs, brief.topology.num_pdfs
        )
        self._flat = Partition.make(params, 1)
        self.holdings = Holdings(
            self._config, brief, steps.make_align(self._network), self._device, first
        )
        self._steps: dict[str, Callable[..., Any]] = {}
        self._gate = CompileGate()
        self._client: Client | None = None
        self._replica: Replica | None = None

    def pid(self) -> int:
        return os.getpid()

    @_told
    def count(self, pool: int, part: int, *aligners: np.ndarray) -> np.ndarray:
        """i64[P]: how often each pdf occurs in a part's alignments by the newest of `aligners`."""
        self._align_by(aligners)
        labels = self.holdings.pool(pool).labels
        chosen = (labels[i] for i in self._brief.pools[pool].parts[part])
        return bootstrap.count_labels(chosen, self._brief.topology.num_pdfs)

    @_told
    def open(
        self,
        stage: str,
        kind: str,
        life: int,
        log_prior: np.ndarray,
        sizes: Sizes | None,
        *aligners: np.ndarray,
    ) -> Opened:
        """Begins a life in a stage.

        Args:
          stage, kind: of the stage.
          life: of the replica.
          log_prior: f32[P].
          sizes: of batches of lattices; None: the stage needs none.
          *aligners: f32[n] each, the parameters that made the alignments: first, second, ...
        """
        self._align_by(aligners)
        if kind not in self._steps:
            self._steps[kind] = assembly.step(
                self._config, self._network, kind, self._brief.topology
            )
        denominator, lattices = None, None
        if sizes is not None:
            lattices = self.lattices(sizes)
        else:
            denominator = jax.device_get(ops.pack(self._brief.denominator))
        work = Work(
            stage,
            self._steps[kind],
            assembly.step_args(kind, log_prior, denominator),
            self.holdings.batcher,
            self.holdings.labels,
            serving.local_training(self._config, stage),
            lattices,
        )
        options = serving.client_options(self._config)
        self._client = self._endpoint.connect(
            self._number, device=self._device, life=life, **options
        )
        self._replica = Replica(self._number, life, self._device, self._client, work, self._gate)
        mine = self._replica
        clock = time.time() - time.perf_counter()
        return Opened(mine.next_seq, mine.wanted, mine.horizon, clock)

    @_told
    def train(
        self, leases: Sequence[Lease], position: int, following: Sequence[Lease] = ()
    ) -> tuple[list[Update], int]:
        """`Replica.train`, and how many leases the next push wants."""
        assert self._replica is not None
        return self._replica.train(leases, position, following), self._replica.wanted

    @_told
    def finish(self) -> list[Update]:
        """`Replica.finish`; leaves the server."""
        assert self._replica is not None
        assert self._client is not None
        updates = self._replica.finish()
        self._replica.close()
        self._client.close()
        self._client = self._replica = None
        return updates

    def lattices(self, sizes: Sizes) -> LatticeWork:
        """How this process makes its lattices."""
        assert self._brief.word_lm is not None
        return lattice_stage.of_size(
            self._config,
            self.holdings.batcher.data,
            self._network,
            self.holdings.labels,
            self._brief.word_lm,
            sizes,
        )

    def _align_by(self, aligners: Sequence[np.ndarray]) -> None:
        trees = (self._flat.join([one]) for one in aligners)
        self.holdings.aligners = tuple(jax.device_put(tree, self._device) for tree in trees)
