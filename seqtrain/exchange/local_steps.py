"""What a replica pushes when it trains on its own for a while: H local steps, then Δ = start − end.

Gradients (H = 1) need nothing from here but `clip`. How many steps a replica takes is its own
affair; `Client.local_steps` gives the number that keeps unequal replicas in time (DyLU).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


def clip(update: Any, max_norm: float) -> tuple[Any, jax.Array]:
    """The update scaled down to a global norm of at most `max_norm`, and its norm before that.

    Done in the replica, because a shard sees only its part. A norm that is not finite comes back
    as it is and the update with it: the shards will refuse it and say so.
    """
    norm = optax.global_norm(update)
    factor = jnp.where(norm > max_norm, max_norm / norm, 1.0)
    factor = jnp.where(jnp.isfinite(norm), factor, 1.0)
    return jax.tree.map(lambda x: (x * factor).astype(x.dtype), update), norm


def pseudo_gradient(start: Any, end: Any) -> Any:
    """Δ = w_start − w_end: points uphill, as a gradient does."""
    return jax.tree.map(lambda a, b: jnp.asarray(a) - b, start, end)


class LocalResult(NamedTuple):
    """delta: Δ; steps: how many; frames: in all."""

    delta: Any
    steps: int
    frames: float


class LocalTrainer:
    """Runs local steps with a local Optax optimiser.

    Args:
      gradient: (params, batch) -> gradient tree, a mean over frames.
      optimizer: the local optimiser.
      max_norm: clip each gradient to this global norm; None: not.
      keep_state: keep the local optimiser's state from one round to the next (DiLoCo); False
        starts it anew each time (BMUF).
    """

    def __init__(
        self,
        gradient: Callable[[Any, Any], Any],
        optimizer: optax.GradientTransformation,
        *,
        max_norm: float | None = None,
        keep_state: bool = True,
    ):
        self._gradient, self._optimizer, self._keep = gradient, optimizer, keep_state
        self._state: Any = None

        @jax.jit
        def step(params, state, update):
            if max_norm is not None:
                update, _ = clip(update, max_norm)
            updates, state = optimizer.update(update, state, params)
            return optax.apply_updates(params, updates), state

        self._step = step

    def run(self, params: Any, batches: Iterable[tuple[Any, float]]) -> LocalResult:
        """One local step per (batch, frames); returns the pseudo-gradient of all of them."""
        local = params
        if self._state is None or not self._keep:
            self._state = self._optimizer.init(params)
        steps, total = 0, 0.0
        for batch, frames in batches:
            update = self._gradient(local, batch)
            local, self._state = self._step(local, self._state, update)
            steps, total = steps + 1, total + frames
        return LocalResult(pseudo_gradient(params, local), steps, total)
