"""Leases to device batches: the host's part of a step, the same whichever replica does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from seqtrain import ops
from seqtrain.data import augment
from seqtrain.data.leases import Lease
from seqtrain.training.prepare import TrainingData
from seqtrain.training.steps import DeviceBatch


@dataclasses.dataclass(frozen=True, eq=False)
class HostBatch:
    """A lease's batch, placed on a device, and what the host remembers of it.

    Attributes:
      device: the arrays.
      indices: the utterances, by row; −1 for padding rows.
      frames: output frames in all.
      shape: what compiled programs depend on.
      s2: age of the lattices or outer derivatives, in versions.
      metrics: of the host's work, for the log.
      reasons: why utterances without lattices are masked, by number.
    """

    device: DeviceBatch
    indices: np.ndarray
    frames: int
    shape: tuple[int, ...]
    s2: int = 0
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Batcher:
    """Makes batches; pure, so that several threads may share it.

    Attributes:
      data: the training set.
      seed: of augmentation and dropout; with the lease's id it fixes a batch for good.
      augmentation: SpecAugment's settings, or None.
    """

    data: TrainingData
    seed: int
    augmentation: augment.SpecAugmentConfig | None = None

    def make(
        self, lease: Lease, device: jax.Device, labels: Sequence[np.ndarray] | None = None
    ) -> HostBatch:
        """The batch of a lease.

        Args:
          lease: bucket and utterances.
          device: where the arrays go.
          labels: i32[U] per utterance of the corpus, where the criterion needs an alignment.
        """
        data = self.data
        batch = data.buckets.batch(lease.bucket, lease.indices, data.features.features)
        features = batch.features
        if self.augmentation is not None:
            rng = np.random.default_rng([self.seed, *lease.id])
            if self.augmentation.max_warp or self.augmentation.max_shift:
                features = augment.warp_and_shift(features, batch.lengths, rng, self.augmentation)
            features = augment.spec_augment(features, batch.lengths, rng, self.augmentation)
        states, arcs = data.graph_sizes[lease.bucket]
        filler = data.numerators[lease.indices[0]]  # padding rows have length 0: never read
        numerators = ops.pack_batch(
            [data.numerators[i] if i >= 0 else filler for i in batch.indices],
            num_states=states,
            num_arcs=arcs,
            num_pdfs=data.topology.num_pdfs,
        )
        host = DeviceBatch(
            features,
            batch.lengths,
            self._labels(batch, labels),
            numerators,
            np.uint32(hash_id((self.seed, *lease.id))),
        )
        frames = int((-(-batch.lengths // data.subsampling)).sum())
        return HostBatch(
            jax.device_put(host, device), batch.indices, frames, (*features.shape, states, arcs)
        )

    def _labels(self, batch, labels) -> np.ndarray:
        """i32[B, U]; all −1 without an alignment, so that there is one program."""
        rows, size = batch.features.shape[:2]
        out = np.full((rows, -(-size // self.data.subsampling)), -1, np.int32)
        if labels is not None:
            for row, index in enumerate(batch.indices):
                if index >= 0:
                    out[row, : len(labels[index])] = labels[index]
        return out


def hash_id(numbers: tuple[int, ...]) -> int:
    """A 32-bit number for a seed and a lease's id, the same in every run and process."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])
