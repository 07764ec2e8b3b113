"""Length buckets: utterances of like length padded to few fixed shapes, so nothing recompiles.

Grouping (which utterances share a batch) is `Buckets.plan`; padding is `Buckets.batch`. Who
gets which batch is decided in `leases`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int32

from seqtrain.data.utterance import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """A padded batch.

    Attributes:
      indices: i32[B], which utterance each row holds; −1 for a padding row.
      features: f32[B, T, F], 0 beyond an utterance's length and in padding rows.
      lengths: i32[B], frames; 0 for a padding row.
    """

    indices: Int32[np.ndarray, ' B']
    features: Float32[np.ndarray, 'B T F']
    lengths: Int32[np.ndarray, ' B']


@dataclasses.dataclass(frozen=True)
class Buckets:
    """A few (rows, frames) shapes and the rule that puts an utterance into one of them.

    Attributes:
      shapes: (B, T) of each bucket, by growing T; an utterance goes to the first with T >= its
        length.
    """

    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def fit(
        cls,
        lengths: Sequence[int] | np.ndarray,
        num_buckets: int = 4,
        *,
        batch_size: int | None = None,
        frames_per_batch: int | None = None,
        multiple_of: int = 12,
    ) -> Buckets:
        """Chooses shapes at the quantiles of the given lengths.

        Args:
          lengths: frames of every utterance that will be batched (all sets together).
          num_buckets: at most this many shapes.
          batch_size: rows of every batch; or ...
          frames_per_batch: ... padded frames per batch: long utterances share a batch with fewer.
          multiple_of: T is rounded up to a multiple of this, so that similar corpora share their
            compiled programs (12: divisible by the usual subsampling factors).

        Raises:
          DataError: there are no lengths, not exactly one of the two sizes is given, or a number
            or length is below 1.
        """
        lengths = np.asarray(lengths, int)
        if len(lengths) == 0:
            raise DataError('There is no utterance to make buckets for: all were skipped.')
        if lengths.min() < 1:
            raise DataError(
                f'Utterance {lengths.argmin()} has {lengths.min()} frames: leave out what has none.'
            )
        if (batch_size is None) == (frames_per_batch is None):
            raise DataError('Give either batch_size or frames_per_batch.')
        if min(num_buckets, multiple_of, batch_size or frames_per_batch or 0) < 1:
            raise DataError('num_buckets, multiple_of and the size of a batch must be at least 1.')
        edges = np.quantile(
            lengths, np.arange(1, num_buckets + 1) / num_buckets, method='inverted_cdf'
        )
        sizes = sorted({int(-(-edge // multiple_of) * multiple_of) for edge in edges})
        rows = [batch_size or max(1, (frames_per_batch or 0) // size) for size in sizes]
        return cls(tuple(zip(rows, sizes, strict=True)))

    def of(self, length: int) -> int:
        """The bucket for an utterance of this many frames.

        Raises:
          DataError: it is longer than the longest bucket.
        """
        for bucket, (_, size) in enumerate(self.shapes):
            if length <= size:
                return bucket
        raise DataError(
            f'An utterance of {length} frames does not fit the longest bucket '
            f'({self.shapes[-1][1]} frames): fit the buckets to all sets that use them.'
        )

    def plan(self, order: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Groups utterances into batches.

        The rest that does not fill a batch moves on to the next longer bucket, so at most one
        batch of the whole plan has padding rows.

        Args:
          order: indices of utterances; batches are filled in this order.
          lengths: frames of every utterance, indexed by the entries of `order`.

        Returns:
          (bucket, indices) of every batch, by growing bucket: shuffle before use.
        """
        queues: list[list[int]] = [[] for _ in self.shapes]
        for index in order:
            queues[self.of(int(lengths[index]))].append(int(index))
        groups = []
        rest: list[int] = []
        for bucket, (rows, _) in enumerate(self.shapes):
            queue = rest + queues[bucket]
            full = len(queue) - len(queue) % rows
            groups += [(bucket, queue[i : i + rows]) for i in range(0, full, rows)]
            rest = queue[full:]
        if rest:
            longest = max(int(lengths[i]) for i in rest)
            fits = [size >= longest and rows >= len(rest) for rows, size in self.shapes]
            groups.append((fits.index(True), rest))
        return groups

    def batch(
        self,
        bucket: int,
        indices: Sequence[int],
        features: Sequence[Float32[np.ndarray, 'T F']],
    ) -> Batch:
        """Pads the given utterances to the bucket's shape."""
        rows, size = self.shapes[bucket]
        if len(indices) > rows:
            raise DataError(f'{len(indices)} utterances for a batch of {rows} rows.')
        dim = features[indices[0]].shape[1] if len(indices) else features[0].shape[1]
        padded = np.zeros((rows, size, dim), np.float32)
        lengths = np.zeros(rows, np.int32)
        row_indices = np.full(rows, -1, np.int32)
        for row, index in enumerate(indices):
            one = features[index]
            padded[row, : len(one)] = one
            lengths[row], row_indices[row] = len(one), index
        return Batch(row_indices, padded, lengths)

    def batches(
        self,
        features: Sequence[Float32[np.ndarray, 'T F']],
        order: Sequence[int] | None = None,
        rng: np.random.Generator | None = None,
    ) -> Iterator[Batch]:
        """All utterances once, as for evaluation; with `rng` in random order.

        Args:
          features: f32[T, F] per utterance.
          order: which utterances; all by default.
          rng: shuffles utterances and batches; None keeps the order (by growing length).
        """
        chosen = np.arange(len(features)) if order is None else np.asarray(order, int)
        if rng is not None:
            chosen = rng.permutation(chosen)
        groups = self.plan(chosen.tolist(), [len(x) for x in features])
        if rng is not None:
            groups = [groups[i] for i in rng.permutation(len(groups))]
        for bucket, indices in groups:
            yield self.batch(bucket, indices, features)
