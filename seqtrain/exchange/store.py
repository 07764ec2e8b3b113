"""`Store`: the numbers of one shard: values, rule, optimiser state, version, values still in use.

It knows nothing of replicas' comings and goings; `ShardState` decides what is applied and when.
`Counter` is a store without numbers, for simulations of time only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import jax
import numpy as np
import optax

from seqtrain.exchange.partition import Partition
from seqtrain.exchange.rules import average
from seqtrain.exchange.rules.base import needs_base_params, step

RuleLike: TypeAlias = (
    optax.GradientTransformation | Callable[[np.ndarray], optax.GradientTransformation]
)
"""A rule, or for rules that look at whole tensors a function from `Partition.segments` to one."""


def shard_rule(rule: RuleLike, partition: Partition, shard: int) -> optax.GradientTransformation:
    """The rule of one shard; a rule that looks at whole tensors is made for its blocks."""
    if isinstance(rule, optax.GradientTransformation):
        return rule
    make: Callable = rule
    return make(partition.segments(shard))


class Store:
    """Values and the rule that changes them.

    Args:
      values: f32[n], initial values (copied).
      rule: what an update does, see `rules`.
      device: where the rule runs; None means the first host CPU device.
    """

    def __init__(
        self,
        values: np.ndarray,
        rule: optax.GradientTransformation,
        device: jax.Device | None = None,
    ):
        self._device = device or jax.local_devices(backend='cpu')[0]
        self.version = 0
        self.values = self._put(np.array(values, np.float32).reshape(-1))
        self.history: dict[int, jax.Array] = {}
        self.rule: optax.GradientTransformation
        self.opt_state: Any = None
        self.keep_base = False
        self._step: Callable
        self.set_rule(rule)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def structure(self) -> str:
        """What the optimiser state is made of, its classes by name."""
        return str(jax.tree.structure(self.opt_state))

    def read(self) -> np.ndarray:
        """The values, read-only; they stay as they are whatever comes later."""
        if self.keep_base:
            self.history[self.version] = self.values
        return np.asarray(self.values)

    def has(self, version: int) -> bool:
        """Whether the rule can be given the values of a version (or does not want them)."""
        return not self.keep_base or version == self.version or version in self.history

    def apply(self, update: np.ndarray, base_version: int, worker: int, frames: float) -> None:
        """One update by the rule; the version counts up by one."""
        base = self.history.get(base_version, self.values) if self.keep_base else None
        self.values, self.opt_state = self._step(
            self.values,
            self.opt_state,
            update,
            np.int32(self.version - base_version),
            np.int32(worker),
            np.float32(frames),
            base,
        )
        self.version += 1

    def forget_all_but(self, versions: Iterable[int]) -> None:
        """Drops old values that no replica can push from any more."""
        if self.history:
            used = set(versions)
            self.history = {v: values for v, values in self.history.items() if v in used}

    def set_rule(self, rule: optax.GradientTransformation, keep_state: bool = False) -> None:
        """Changes the rule; the optimiser state starts anew unless it is kept.

        Where it starts anew, the values become what the last rule leaves: of one with
        `polyak_average` the mean of its last versions.

        Raises:
          ValueError: the state is to be kept but the new rule's has another structure.
        """
        rule = optax.with_extra_args_support(rule)
        values = self.values if keep_state else average.result(self.opt_state, self.values)
        state = self._put(rule.init(values))
        if keep_state:
            if str(jax.tree.structure(state)) != self.structure:
                raise ValueError('The new rule has another state; use keep_state=False.')
            state = self.opt_state
        self.values = values
        self.rule, self.opt_state = rule, state
        self._step = step(rule)
        self.keep_base = needs_base_params(rule, self.values.size)
        if not self.keep_base:
            self.history = {}

    def snapshot(self) -> dict[str, Any]:
        """Owned arrays: values and the leaves of the optimiser state, random keys as numbers."""
        return {
            'values': np.array(self.values),
            'opt_state': [np.array(_numbers(leaf)) for leaf in jax.tree.leaves(self.opt_state)],
        }

    def restore(self, arrays: dict[str, Any], version: int, structure: str | None = None) -> None:
        """Goes back to a snapshot.

        Args:
          arrays: the snapshot.
          version: its version.
          structure: of the store that it was taken from; None where unknown.

        Raises:
          ValueError: the snapshot is of another size or of another rule.
        """
        leaves, treedef = jax.tree.flatten(self.opt_state)
        if np.shape(arrays['values']) != self.shape:
            raise ValueError(
                f'The snapshot holds {np.shape(arrays["values"])} values, this shard has '
                f'{self.shape}: another model or another number of shards.'
            )
        shapes = [np.shape(leaf) for leaf in arrays['opt_state']]
        if shapes != [_numbers(leaf).shape for leaf in leaves] or structure not in (
            None,
            self.structure,
        ):
            raise ValueError('The snapshot holds the optimiser state of another rule.')
        self.values = self._put(np.array(arrays['values'], np.float32))
        state = [_like(leaf, a) for leaf, a in zip(leaves, arrays['opt_state'], strict=True)]
        self.opt_state = self._put(jax.tree.unflatten(treedef, state))
        self.version = version
        self.history = {}

    def _put(self, tree: Any) -> Any:
        return jax.device_put(tree, self._device)


def _numbers(leaf: jax.Array) -> jax.Array:
    """A random key as its numbers, anything else as it is."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _like(leaf: jax.Array, numbers: np.ndarray) -> np.ndarray | jax.Array:
    """The leaf of a state that `_numbers` made these of."""
    owned = np.array(numbers, _numbers(leaf).dtype)
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return owned
    return jax.random.wrap_key_data(jax.device_put(owned), impl=jax.random.key_impl(leaf))


class Counter:
    """A store that only counts versions: what is pushed and pulled has no elements."""

    shape = (0,)
    keep_base = False
    structure = ''

    def __init__(self):
        self.version = 0
        self._empty = np.zeros(0, np.float32)

    def read(self) -> np.ndarray:
        return self._empty

    def has(self, version: int) -> bool:
        return True

    def apply(self, update: np.ndarray, base_version: int, worker: int, frames: float) -> None:
        self.version += 1

    def forget_all_but(self, versions: Iterable[int]) -> None:
        pass

    def set_rule(self, rule: Any, keep_state: bool = False) -> None:
        pass

    def snapshot(self) -> dict[str, Any]:
        return {}

    def restore(self, arrays: dict[str, Any], version: int, structure: str | None = None) -> None:
        self.version = version
