"""The acoustic model as a `Problem` of the simulator: real gradients under virtual time.

Every simulated replica has utterances in an order of its own and draws batch after batch; the
loss is measured on batches that stay the same. All of it is a function of the config.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from seqtrain import ops
from seqtrain.data.leases import Lease, LeaseBook
from seqtrain.exchange import Partition
from seqtrain.training import assembly, bootstrap, devices, lattice_stage, start
from seqtrain.training.batching import Batcher
from seqtrain.training.config import ConfigError

_LARGE = 1 << 20


class AcousticProblem:
    """Network, data and criterion of an experiment; see `exchange.scenario.Problem`.

    Args:
      config: the experiment's; with `config.start_from` it begins with that run's network and
        alignments, else with random parameters and the flat start.
      kind: 'ce' or 'sequence' (which hardly moves from random parameters).
      loss_batches: on how many batches the loss is measured.

    Raises:
      ConfigError: the config asks for lattices, for tied states from scratch, for local steps, a
        codec or updates that weigh by their frames.
    """

    def __init__(self, config: ml_collections.ConfigDict, kind: str = 'ce', loss_batches: int = 4):
        if lattice_stage.on_lattices(config) or start.needs_monophones(config):
            raise ConfigError(
                'The simulator trains on the lattice-free graph, and on tied states only from '
                'a run: set config.sequence.graph=lattice_free, config.graph.context=mono or '
                'config.start_from.'
            )
        exchange = config.exchange
        if exchange.local_steps > 1 or exchange.codec != 'none' or exchange.scale_by_frames:
            raise ConfigError(
                'Simulated replicas push gradients as they are: set config.exchange.local_steps=1, '
                'codec=none and scale_by_frames=False.'
            )
        devices.set_up(1, config.data.cache_dir)
        begun = start.begin(config, pathlib.Path(config.start_from or '.'), keep=False)
        self._data, self._labels = begun.data, begun.labels
        self._flat = Partition.make(begun.params, 1)
        (self._start,) = self._flat.split(begun.params)
        self._batcher, self._plain = assembly.batcher(config, begun.data), Batcher(begun.data, 0)
        self._step = assembly.step(config, begun.network, kind, begun.data.topology)
        whole = config.copy_and_resolve_references()
        whole.model.dropout = 0.0
        sizes = begun.data.features.dim, begun.data.topology.num_pdfs
        undropped, _ = assembly.network(whole, *sizes)
        self._measure = assembly.step(whole, undropped, kind, begun.data.topology)
        prior = bootstrap.log_priors(begun.labels, begun.data.topology.num_pdfs)
        args = assembly.step_args(kind, prior, ops.pack(begun.data.denominator))
        self._device = jax.local_devices()[0]
        self._args = jax.device_put(args, self._device)
        self._seed = config.seed
        self._lengths = begun.data.features.num_frames.tolist()
        self._books: dict[int, LeaseBook] = {}
        self._per_epoch = len(self._plan(list(range(len(begun.data)))))
        measured = self._book(_LARGE)
        leases = [measured.lease((0, 0, n)) for n in range(min(loss_batches, self._per_epoch))]
        self._measured = [self._plain.make(one, self._device, begun.labels) for one in leases]

    def start(self) -> np.ndarray:
        """f32[n], the parameters end to end."""
        return self._start.copy()

    def gradient(self, values: np.ndarray, worker: int, step: int) -> np.ndarray:
        """f32[n], of the replica's step-th batch."""
        epoch, number = divmod(step, self._per_epoch)
        found = self._book(worker).lease((0, epoch, number))
        # The id is what augmentation and dropout are drawn from: replicas must not share one.
        lease = Lease((worker, epoch, number), found.bucket, found.indices)
        batch = self._batcher.make(lease, self._device, self._labels)
        gradients, _ = self._step(self._flat.join([values]), batch.device, *self._args)
        return self._flat.split(gradients)[0]

    def loss(self, values: np.ndarray) -> float:
        """The criterion per frame, on the measured batches, without augmentation and dropout."""
        params: Any = jax.device_put(self._flat.join([values]), self._device)
        total = frames = 0.0
        for batch in self._measured:
            _, metrics = self._measure(params, batch.device, *self._args)
            total += float(metrics['loss']) * batch.frames
            frames += batch.frames
        return total / frames

    def _book(self, worker: int) -> LeaseBook:
        """A replica's order of the utterances."""
        if worker not in self._books:
            seed = int(np.random.SeedSequence([self._seed, worker]).generate_state(1)[0])
            self._books[worker] = LeaseBook(len(self._data), self._plan, 1, seed)
        return self._books[worker]

    def _plan(self, order: list[int]) -> list[tuple[int, list[int]]]:
        return self._data.buckets.plan(order, self._lengths)
