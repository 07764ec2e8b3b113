"""What a replica pushes when it trains on its own for a while: H local steps, then Δ = start − end.

Gradients (H = 1) need nothing from here but `clip`. How many steps a replica takes is its own
affair; `Client.local_steps` gives the number that keeps unequal replicas in time (DyLU).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqtrain.exchange.rules import elastic_pull


def clip(update: Any, max_norm: float) -> tuple[Any, jax.Array]:
    """The update scaled down to a global norm of at most `max_norm`, and its norm before that.

    Done in the replica, because a shard sees only its part. Where the norm is not finite (its
    square is not from about 2e19 on) the update becomes NaN: the shards refuse it and say so.
    """
    norm = optax.global_norm(update)
    factor = jnp.where(norm > max_norm, max_norm / norm, 1.0)
    factor = jnp.where(jnp.isfinite(norm), factor, jnp.nan)
    return jax.tree.map(lambda x: (x * factor).astype(x.dtype), update), norm


def pseudo_gradient(start: Any, end: Any) -> Any:
    """Δ = w_start − w_end: points uphill, as a gradient does."""
    return jax.tree.map(lambda a, b: jnp.asarray(a) - b, start, end)


class LocalResult(NamedTuple):
    """update: what to push (Δ, or the values of an elastic replica); steps, frames: in all."""

    update: Any
    steps: int
    frames: float


@functools.lru_cache(maxsize=64)
def local_step(optimizer: optax.GradientTransformation, max_norm: float | None) -> Callable:
    """The jitted f(params, state, gradient, rate) -> (params, state), shared by all replicas."""

    @jax.jit
    def step(params, state, update, rate):
        if max_norm is not None:
            update, _ = clip(update, max_norm)
        updates, state = optimizer.update(update, state, params)
        return optax.apply_updates(params, optax.tree.scale(rate, updates)), state

    return step


class LocalTrainer:
    """Runs local steps with a local Optax optimiser.

    Args:
      gradient: (params, batch) -> gradient tree, a mean over frames.
      optimizer: the local optimiser.
      max_norm: clip each gradient to this global norm; None: not.
      keep_state: keep the local optimiser's state from one round to the next (DiLoCo); False
        starts it anew each time (BMUF).
      elastic: None: every round begins at the pulled parameters and Δ is pushed. A number α: the
        replica keeps parameters of its own, which each round first moves towards the pulled ones
        by α (`rules.elastic_pull`), and pushes their values: elastic averaging (`rules.easgd`).
    """

    def __init__(
        self,
        gradient: Callable[[Any, Any], Any],
        optimizer: optax.GradientTransformation,
        *,
        max_norm: float | None = None,
        keep_state: bool = True,
        elastic: float | None = None,
    ):
        self._gradient, self._optimizer, self._keep = gradient, optimizer, keep_state
        self._elastic = elastic
        self._state: Any = None
        self._own: Any = None
        self._step = local_step(optimizer, max_norm)

    def run(
        self, params: Any, batches: Iterable[tuple[Any, float]], learning_rate: float = 1.0
    ) -> LocalResult:
        """One local step per (batch, frames) from the pulled `params`.

        Args:
          params: what was pulled.
          batches: batches with their frames.
          learning_rate: a factor on the local optimiser's steps.
        """
        local = params
        if self._elastic is not None and self._own is not None:
            local = elastic_pull(self._own, params, self._elastic)
        if self._state is None or not self._keep:
            self._state = self._optimizer.init(params)
        steps, total, rate = 0, 0.0, np.float32(learning_rate)
        for batch, frames in batches:
            update = self._gradient(local, batch)
            local, self._state = self._step(local, self._state, update, rate)
            steps, total = steps + 1, total + frames
        if self._elastic is not None:
            self._own = local
            return LocalResult(local, steps, total)
        return LocalResult(pseudo_gradient(params, local), steps, total)
