"""Updates as they arrive: what makes one unfit, and the mean of a round. Pure functions."""

from __future__ import annotations

import numpy as np

from seqtrain.exchange.messages import Push, Reason


def malformed(push: Push, shape: tuple[int, ...], who: str) -> tuple[Reason, str] | None:
    """Why an update cannot be applied to values f32[shape], or None.

    Args:
      who: how the sentence names the push.
    """
    update = push.update
    if not isinstance(update, np.ndarray) or update.dtype != np.float32:
        dtype = getattr(update, 'dtype', type(update).__name__)
        return Reason.DTYPE, f'{who} has dtype {dtype}, expected float32.'
    if update.shape != shape:
        return Reason.SHAPE, f'{who} has shape {update.shape}, expected {shape}.'
    if not all_finite(update):
        return Reason.NON_FINITE, f'{who} contains NaN or infinity; skip that batch.'
    if not (np.isfinite(push.frames) and push.frames > 0):
        return Reason.FRAMES, f'{who} counts {push.frames} frames; give a positive number.'
    return None


def all_finite(array: np.ndarray) -> bool:
    """Whether every element is finite; one pass of a dot product in the usual case."""
    flat = array.reshape(-1)
    return bool(np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all())


def frame_weighted_mean(pushes: list[Push]) -> np.ndarray:
    """Σ frames·update / Σ frames in the given order; a single update comes back as it is."""
    if len(pushes) == 1:
        return pushes[0].update
    total = sum(push.frames for push in pushes)
    mean = np.zeros_like(pushes[0].update)
    for push in pushes:
        mean += np.float32(push.frames / total) * push.update
    return mean
