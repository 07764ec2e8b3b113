"""SpecAugment: masks over bands and frames of a padded batch of features.

Perturbation of speed and vocal tract length changes the features themselves and is in
`features`.
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
    """

    num_freq_masks: int = 2
    max_freq_width: int = 8
    num_time_masks: int = 2
    max_time_width: int = 20
    max_time_fraction: float = 0.1


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
