"""Parameters to shards and back: one flat f32 vector, cut into nearly equal contiguous ranges.

Cutting the concatenation rather than assigning whole leaves balances the shards to one element
and splits large leaves without a special case. The wire format is always f32; a leaf of another
float type is cast on the way out and back. What float64 says beyond f32 is lost; an update that f32
cannot hold becomes infinite, which the shards refuse.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from seqtrain.exchange.memory import aligned_empty


class PartitionError(ValueError):
    """A tree that cannot be cut, or that is not the tree the partition was made for."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Where one leaf lies: its path, shape, dtype and range in the flat vector."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Partition:
    """How a parameter tree is cut.

    Attributes:
      leaves: one entry per leaf, in tree order.
      bounds: S+1 cut points in the flat vector; shard s holds [bounds[s], bounds[s+1]).
    """

    treedef: Any
    leaves: tuple[Leaf, ...]
    bounds: tuple[int, ...]

    @classmethod
    def make(cls, tree: Any, num_shards: int) -> Partition:
        """Cuts `tree` (float leaves) into `num_shards` ranges whose sizes differ by at most one.

        Raises:
          PartitionError: a leaf is no array, not floating point or beyond f32, there is none, or
            there are more shards than elements.
        """
        paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
        leaves, start = [], 0
        for path, value in paths:
            name = jax.tree_util.keystr(path)
            if not hasattr(value, 'dtype'):
                raise PartitionError(
                    f'Leaf {name} is of type {type(value).__name__}; make it an array, such as '
                    'np.float32(…).'
                )
            dtype = np.dtype(value.dtype)
            if not jax.numpy.issubdtype(dtype, jax.numpy.floating):
                raise PartitionError(
                    f'Leaf {name} has dtype {dtype}; the exchange carries floating point '
                    'parameters only. Keep counters and random keys out of the tree.'
                )
            if dtype.itemsize > 4 and hasattr(value, '__array__') and not _fits(value):
                raise PartitionError(
                    f'Leaf {name} of dtype {dtype} holds what is not finite in float32, which is '
                    'what the exchange carries; scale it.'
                )
            stop = start + math.prod(value.shape)
            leaves.append(Leaf(name, tuple(value.shape), dtype, start, stop))
            start = stop
        if start == 0:
            raise PartitionError('Cannot cut a tree without parameters; give it some.')
        if not 1 <= num_shards <= start:
            raise PartitionError(
                f'Cannot cut {start} parameters into {num_shards} shards; '
                f'choose between 1 and {start}.'
            )
        bounds = tuple(start * s // num_shards for s in range(num_shards + 1))
        return cls(treedef, tuple(leaves), bounds)

    @property
    def num_shards(self) -> int:
        return len(self.bounds) - 1

    @property
    def size(self) -> int:
        """Parameters in all."""
        return self.bounds[-1]

    def shard_size(self, shard: int) -> int:
        return self.bounds[shard + 1] - self.bounds[shard]

    def split(self, tree: Any) -> list[np.ndarray]:
        """The tree as S owned vectors f32[n_s]; waits for device values, copies once.

        Raises:
          PartitionError: other structure or shapes than the partition was made for.
        """
        values, treedef = jax.tree.flatten(tree)
        if treedef != self.treedef:
            raise PartitionError(
                f'The update has structure {treedef}, the parameters have {self.treedef}.'
            )
        shards = [aligned_empty(self.shard_size(s)) for s in range(self.num_shards)]
        for leaf, value in zip(self.leaves, values, strict=True):
            if tuple(np.shape(value)) != leaf.shape:
                raise PartitionError(
                    f'Leaf {leaf.path} has shape {np.shape(value)}, expected {leaf.shape}.'
                )
            flat = np.asarray(value).reshape(-1)
            for shard, lo, hi in self._cover(leaf):
                base = self.bounds[shard]
                with np.errstate(over='ignore'):
                    shards[shard][lo - base : hi - base] = flat[lo - leaf.start : hi - leaf.start]
        return shards

    def join(self, shards: Sequence[np.ndarray]) -> Any:
        """The tree from S vectors, as arrays that share no memory with `shards`."""
        flat = np.empty(self.size, np.float32)
        for s, values in enumerate(shards):
            flat[self.bounds[s] : self.bounds[s + 1]] = values
        leaves = [
            flat[leaf.start : leaf.stop].reshape(leaf.shape).astype(leaf.dtype, copy=False)
            for leaf in self.leaves
        ]
        return jax.tree.unflatten(self.treedef, leaves)

    def segments(self, shard: int) -> np.ndarray:
        """i32[n_s]: the index of the leaf that each element of a shard belongs to."""
        ids = np.empty(self.shard_size(shard), np.int32)
        base = self.bounds[shard]
        for i, leaf in enumerate(self.leaves):
            for s, lo, hi in self._cover(leaf):
                if s == shard:
                    ids[lo - base : hi - base] = i
        return ids

    def _cover(self, leaf: Leaf):
        """The (shard, lo, hi) ranges, in flat coordinates, that a leaf spans."""
        shard = bisect.bisect_right(self.bounds, leaf.start) - 1
        lo = leaf.start
        while lo < leaf.stop:
            hi = min(leaf.stop, self.bounds[shard + 1])
            yield shard, lo, hi
            lo, shard = hi, shard + 1


def _fits(value: Any) -> bool:
    """Whether an array is finite in f32."""
    with np.errstate(over='ignore'):
        return bool(np.isfinite(np.asarray(value).astype(np.float32)).all())
