"""Random changes of a padded batch of features: SpecAugment's masks, warps of the bands, shifts.

Perturbation of speed, and of the vocal tract length at fixed factors, is in `features`: it goes
back to the samples. What is here costs little enough to be drawn anew for every batch.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32, Int32


@dataclasses.dataclass(frozen=True)
class SpecAugmentConfig:
    """How much is masked; the defaults suit a few minutes of speech with 40 bands.

    Attributes:
      num_freq_masks: masks over bands, per utterance.
      max_freq_width: each is 0 to this many bands wide.
      num_time_masks: masks over frames, per utterance.
      max_time_width: each is 0 to this many frames wide ...
      max_time_fraction: ... and to this fraction of the utterance, whichever is less.
      max_warp: band k takes the place of band k·a with a drawn from 1 ± max_warp per utterance,
        another speaker's vocal tract; 0: none.
      max_shift: frames are moved by up to so many, and labels are not: with a subsampling of 3 the
        network sees the frames in between, too; 0: none.
    """

    num_freq_masks: int = 2
    max_freq_width: int = 8
    num_time_masks: int = 2
    max_time_width: int = 20
    max_time_fraction: float = 0.1
    max_warp: float = 0.0
    max_shift: int = 0

    def __post_init__(self):
        if not 0.0 <= self.max_warp < 1.0 or self.max_shift < 0:
            raise ValueError(
                f'max_warp={self.max_warp}, max_shift={self.max_shift}; '
                'give 0 <= max_warp < 1 and max_shift >= 0.'
            )


def spec_augment(
    features: Float32[np.ndarray, 'B T F'],
    lengths: Int32[np.ndarray, ' B'],
    rng: np.random.Generator,
    config: SpecAugmentConfig,
) -> Float32[np.ndarray, 'B T F']:
    """Sets random bands and stretches of frames to 0, which is the mean after normalisation.

    Park et al., "SpecAugment", Interspeech 2019, without time warping. Rows of length 0 and
    frames beyond an utterance's length stay as they are.

    Args:
      features: f32[B, T, F]; not changed.
      lengths: i32[B], frames of each utterance.
      rng: the source of all randomness; every row draws the same number of values, so a row's
        masks do not depend on the other rows' lengths.
      config: how much to mask.

    Returns:
      f32[B, T, F], a masked copy.
    """
    batch, num_frames, num_bands = features.shape
    widest = np.minimum(config.max_time_width, (config.max_time_fraction * lengths).astype(int))
    time = _masks(rng, config.num_time_masks, widest, lengths, num_frames)
    full = np.full(batch, num_bands)
    freq = _masks(rng, config.num_freq_masks, np.minimum(config.max_freq_width, full), full)
    valid = np.arange(num_frames) < lengths[:, None]
    masked = valid[:, :, None] & (time[:, :, None] | freq[:, None, :])
    return np.where(masked, np.float32(0), features)


def warp_and_shift(
    features: Float32[np.ndarray, 'B T F'],
    lengths: Int32[np.ndarray, ' B'],
    rng: np.random.Generator,
    config: SpecAugmentConfig,
) -> Float32[np.ndarray, 'B T F']:
    """Warps the bands and moves the frames of every utterance, each by its own random amount.

    Jaitly & Hinton, "Vocal Tract Length Perturbation", ICML workshop 2013, on the mel bands instead
    of the filters: y[t, k] = x[t + s, a·k] by linear interpolation, a in 1 ± max_warp, s in
    ± max_shift; frames and bands beyond the edges repeat the last one inside. The shifts are
    those of Kaldi's egs at a reduced frame rate (Povey et al., Interspeech 2016).

    Args:
      features: f32[B, T, F]; not changed.
      lengths: i32[B], frames of each utterance.
      rng: the source of all randomness; every row draws the same number of values.
      config: the largest warp and shift.

    Returns:
      f32[B, T, F], a changed copy; frames beyond an utterance's length stay as they are.
    """
    batch, num_frames, num_bands = features.shape
    draws = rng.random((batch, 2))
    factors = 1 + config.max_warp * (2 * draws[:, 0] - 1)
    shifts = np.floor(draws[:, 1] * (2 * config.max_shift + 1)).astype(int) - config.max_shift
    at = np.clip(np.arange(num_bands) * factors[:, None], 0, num_bands - 1)
    low = np.minimum(at.astype(int), max(0, num_bands - 2))
    part = (at - low).astype(np.float32)
    time = np.arange(num_frames)
    out = features.copy()
    for row in np.flatnonzero(lengths > 0):
        last = int(lengths[row]) - 1
        moved = features[row, np.clip(time[: last + 1] + shifts[row], 0, last)]
        high = np.minimum(low[row] + 1, num_bands - 1)
        out[row, : last + 1] = moved[:, low[row]] * (1 - part[row]) + moved[:, high] * part[row]
    return out


def _masks(rng, count: int, widest, extents, size: int | None = None) -> np.ndarray:
    """bool[B, size]: the union of `count` intervals inside [0, extents[b]) per row."""
    batch = len(extents)
    size = int(extents[0]) if size is None and batch else size or 0
    draws = rng.random((batch, count, 2))
    width = np.floor(draws[..., 0] * (widest[:, None] + 1)).astype(int)
    start = np.floor(draws[..., 1] * (extents[:, None] - width + 1)).astype(int)
    at = np.arange(size)[None, None, :]
    inside = (at >= start[..., None]) & (at < (start + width)[..., None])
    return inside.any(axis=1)
