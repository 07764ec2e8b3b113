"""Updates as they arrive: what makes one unfit, and the mean of a round. Pure functions."""

from __future__ import annotations

import dataclasses

import numpy as np

from seqtrain.exchange.codec import Encoded, decode
from seqtrain.exchange.messages import Push, Reason
from seqtrain.exchange.store import Counter, Store

_F32 = np.finfo(np.float32)
_SMALLEST, _LARGEST = float(_F32.smallest_normal), float(_F32.max)
"""Rules take frames as f32, where less is 0 and more is infinite."""


def decoded(push: Push) -> Push:
    """The push with its update as f32[n]; as it is where that cannot be."""
    if not isinstance(push.update, Encoded):
        return push
    try:
        return dataclasses.replace(push, update=decode(push.update))
    except ValueError:
        return push


def malformed(push: Push, shape: tuple[int, ...]) -> tuple[Reason, str] | None:
    """Why an update cannot be applied to values f32[shape] (how the sentence goes on), or None."""
    update = push.update
    if isinstance(update, Encoded):
        return Reason.DTYPE, 'is encoded in a way that this shard cannot read'
    if not isinstance(update, np.ndarray) or update.dtype != np.float32:
        dtype = getattr(update, 'dtype', type(update).__name__)
        return Reason.DTYPE, f'has dtype {dtype}, expected float32'
    if update.shape != shape:
        return Reason.SHAPE, f'has shape {update.shape}, expected {shape}'
    if not all_finite(update):
        return Reason.NON_FINITE, 'contains NaN or infinity; skip that batch'
    if not _SMALLEST <= push.frames <= _LARGEST:
        return Reason.FRAMES, f'counts {push.frames} frames; give a positive number'
    if not 0 <= push.step_s < float('inf'):
        return Reason.STEP_TIME, f'took {push.step_s} s per step; give 0 where it was not measured'
    return None


def all_finite(array: np.ndarray) -> bool:
    """Whether every element is finite, in one pass: NaN and infinity stay in a sum.

    A sum that is not finite may only have overflowed; then the extremes decide (NaN is its own).
    """
    with np.errstate(over='ignore', invalid='ignore'):
        if np.isfinite(array.sum()):
            return True
    return bool(np.isfinite(array.max()) and np.isfinite(array.min()))


def frame_weighted_mean(pushes: list[Push]) -> np.ndarray:
    """Σ frames·update / Σ frames in the given order; a single update comes back as it is."""
    if len(pushes) == 1:
        return np.asarray(pushes[0].update)
    total = sum(push.frames for push in pushes)
    mean = np.zeros_like(pushes[0].update)
    for push in pushes:
        mean += np.float32(push.frames / total) * np.asarray(push.update)
    return mean


def apply_round(store: Store | Counter, pushes: list[Push]) -> None:
    """One update of a store from one push, or from the frame-weighted mean of a round."""
    frames = sum(push.frames for push in pushes) / len(pushes)
    first = pushes[0]
    store.apply(frame_weighted_mean(pushes), first.base_version, first.worker, frames)
