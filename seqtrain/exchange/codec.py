"""Smaller pushes: bfloat16 or int8 on the wire, with the rounding error kept for the next push.

Error feedback (Seide et al. 2014, "1-bit SGD", Interspeech): what rounding took from this push is
added to the next one, so that no part of the gradients that are applied is lost, only late. A push
that is refused takes with it what those before it had left, and leaves its own rounding error to
the next one. The feedback is the replica's own state; a shard decodes what arrives and sees f32. It
begins anew where the replica joins a shard: nobody knows which of its pushes a shard that restarts
has seen.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

BLOCK = 1024
"""Elements that share one int8 scale."""


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """An update on the wire.

    Attributes:
      data: bfloat16[n] or int8[n].
      scale: f32[⌈n/BLOCK⌉] for int8: x = data · scale of its block; empty for bfloat16.
    """

    data: np.ndarray
    scale: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scale.nbytes


def encode(values: np.ndarray, kind: str) -> Encoded:
    """f32[n] as bfloat16 (round to nearest even) or int8 (a scale per block, nearest).

    NaN and infinity stay visible to the receiver: bfloat16 carries them, int8 in its scale.
    """
    if kind == 'bfloat16':
        return Encoded(values.astype(ml_dtypes.bfloat16), np.zeros(0, np.float32))
    if kind != 'int8':
        raise ValueError(f"codec is {kind!r}; choose 'float32', 'bfloat16' or 'int8'.")
    blocks = np.pad(values, (0, -len(values) % BLOCK)).reshape(-1, BLOCK)
    scale = (np.abs(blocks).max(axis=1) / 127).astype(np.float32)
    usable = np.where((scale > 0) & np.isfinite(scale), scale, 1)
    data = np.rint(np.nan_to_num(blocks / usable[:, None])).clip(-127, 127).astype(np.int8)
    return Encoded(data.reshape(-1)[: len(values)], scale)


def decode(update: np.ndarray | Encoded) -> np.ndarray:
    """The f32[n] that an update stands for; a plain array passes as it is.

    Raises:
      ValueError: the parts do not fit each other.
    """
    if not isinstance(update, Encoded):
        return update
    if update.data.dtype == ml_dtypes.bfloat16 and update.data.ndim == 1:
        return update.data.astype(np.float32)
    blocks = -(-len(update.data) // BLOCK) if update.data.ndim == 1 else -1
    if update.data.dtype != np.int8 or update.scale.shape != (blocks,):
        raise ValueError(
            f'data {update.data.dtype}{list(update.data.shape)} with scale '
            f'{list(update.scale.shape)} is no encoding of this exchange.'
        )
    scale = np.repeat(update.scale.astype(np.float32), BLOCK)[: len(update.data)]
    with np.errstate(over='ignore', invalid='ignore'):  # who takes it looks whether it is finite
        return update.data * scale


class Compressor:
    """Encodes one replica's pushes and keeps what rounding took.

    Args:
      kind: 'float32' (nothing is done), 'bfloat16' or 'int8'.
      error_feedback: add the last push's rounding error to the next one.
    """

    def __init__(self, kind: str = 'float32', error_feedback: bool = True):
        if kind not in ('float32', 'bfloat16', 'int8'):
            raise ValueError(f"codec is {kind!r}; choose 'float32', 'bfloat16' or 'int8'.")
        self.kind, self._feedback = kind, error_feedback
        self._errors: dict[int, np.ndarray] = {}

    def __call__(self, shard: int, update: np.ndarray) -> np.ndarray | Encoded:
        """The update of one shard as it goes on the wire."""
        if self.kind == 'float32':
            return update
        if shard in self._errors:
            update = update + self._errors[shard]
        encoded = encode(update, self.kind)
        if self._feedback and np.isfinite(update).all():
            sent = decode(encoded)  # rounding up may have made the largest of numbers infinite
            self._errors[shard] = np.where(np.isfinite(sent), update - sent, 0)
        return encoded

    def forget(self, shard: int) -> None:
        """Begins anew for one shard."""
        self._errors.pop(shard, None)
