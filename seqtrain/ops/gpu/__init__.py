"""The `gpu` backend."""

from __future__ import annotations

import jax

from seqtrain.ops.gpu.passes import expectation, forward_backward

__all__ = ['available', 'expectation', 'forward_backward']

_MIN_COMPUTE_CAPABILITY = 8.0


def available() -> bool:
    """Whether JAX has a CUDA GPU that Triton supports (compute capability 8.0, Ampere, or later).

    Older ones run the portable program.
    """
    try:
        devices = jax.local_devices(backend='cuda')
    except RuntimeError:
        return False
    return all(float(d.compute_capability) >= _MIN_COMPUTE_CAPABILITY for d in devices)
