"""Host memory for large vectors: aligned so that XLA need not copy, kept so that it is not zeroed.

A 40 MB array that is freed goes back to the operating system, and its successor costs 10,000 page
faults; at memory speed that is half the price of a push.
"""

from __future__ import annotations

import ctypes

import numpy as np

ALIGNMENT = 64
"""Bytes; XLA takes a NumPy buffer as it is only where it begins at a multiple of this."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def aligned_empty(size: int) -> np.ndarray:
    """f32[size], uninitialised, beginning at a multiple of 64 bytes."""
    raw = np.empty(size + ALIGNMENT // 4, np.float32)
    offset = (-raw.ctypes.data % ALIGNMENT) // 4
    return raw[offset : offset + size]


def keep_freed_memory(limit: int = 1 << 30) -> bool:
    """Tells the C library to keep up to `limit` freed bytes; for programs that train large models.

    Process-wide, so it is for a program's `main`, not for a library to call.

    Returns:
      Whether this C library could be told (glibc can).
    """
    try:
        libc = ctypes.CDLL('libc.so.6')
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, limit) & libc.mallopt(_M_TRIM_THRESHOLD, limit))
    except (OSError, AttributeError):
        return False
