"""What the acoustic models share: frame splicing and length masks. No parameters here.

Padding rule: a frame at or after an utterance's length is zero at the input of every layer, so
that neither the content nor the amount of padding changes a valid frame's output.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def mask_padding(
    x: Float[Array, 'B T F'],
    lengths: Int[Array, 'B'],
    starts: Int[Array, 'B'] | None = None,
) -> Float[Array, 'B T F']:
    """Sets every frame t >= lengths[b] to zero, whatever it held (NaN included).

    With `starts` also every frame t < starts[b]: windows that reach beyond an utterance's edges.
    """
    frames = jnp.arange(x.shape[1])[None, :, None]
    valid = frames < lengths[:, None, None]
    if starts is not None:
        valid &= frames >= starts[:, None, None]
    return jnp.where(valid, x, 0.0)


def splice(x: Float[Array, 'B T F'], offsets: Sequence[int]) -> Float[Array, 'B T K']:
    """Concatenates the frames t + o for o in offsets; frames outside [0, T) are zero.

    Args:
      x: activations of B utterances of T frames.
      offsets: frame offsets, e.g. (-3, 0, 3).

    Returns:
      f[B, T, len(offsets)·F].
    """
    before, after = max(0, -min(offsets)), max(0, max(offsets))
    num_frames = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (before, after), (0, 0)))
    parts = [padded[:, before + o : before + o + num_frames] for o in offsets]
    return jnp.concatenate(parts, axis=-1)


def subsample(x: Float[Array, 'B T F'], factor: int) -> Float[Array, 'B U F']:
    """Keeps the frames 0, factor, 2·factor, ...; U = ceil(T / factor)."""
    return x[:, ::factor]


def subsampled_lengths(lengths: Int[Array, 'B'], factor: int) -> Int[Array, 'B']:
    """Valid frames left by `subsample`: ceil(length / factor)."""
    return -(-lengths // factor)
