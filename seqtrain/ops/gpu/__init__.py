"""The `gpu` backend: Pallas kernels that Triton compiles, for NVIDIA GPUs (Ampere and later).

Design. Triton has no barrier across a grid, so a kernel that loops over time could only use one
program per utterance. Here a launch is one frame, for all states and utterances: its programs each
take a block of states (rows of arcs, `rows.py`) and up to 8 utterances, which are next to each
other in memory. A frame thus costs one launch of `kernels.step` and XLA's increment of the loop
counter; state vectors of all frames are one array that is updated in place. Scaling needs the sum
over all states of a frame, which would need another launch: instead every program writes the sum
over its block, and the programs of the next frame add these up and scale what they read. Leak and
centring of moments are put off in the same way.

Occupancies of 64 frames at a time are one launch of `kernels.occupy`, whose rows are the arcs of a
pdf: long rows, but many frames to work on. So β is kept for 64 frames only, and memory is
O(B · T · S) for α (twice that with moments) plus three sorted copies of the arcs, never a copy per
utterance.

A shared graph has utterances as lanes; a batch of graphs has one lane per graph. There are no
atomics: results do not depend on timing. What single precision may have got wrong is found as in
`scaled.py` and redone in the log domain by the portable program.

On a CPU the same kernels run interpreted (`interpret=True`), which is for tests. JAX 0.12 has
declared Pallas on Triton deprecated; without it `available` is False and 'auto' is portable.
"""

from __future__ import annotations

import importlib.util

import jax

from seqtrain.ops.gpu.passes import expectation, forward_backward

__all__ = ['available', 'expectation', 'forward_backward']

_MIN_COMPUTE_CAPABILITY = 8.0


def available() -> bool:
    """Whether JAX has CUDA GPUs, all of them such as Triton supports (compute capability 8.0).

    Older ones run the portable program.
    """
    try:
        devices = jax.local_devices(backend='cuda')
    except RuntimeError:
        return False
    modern = all(float(d.compute_capability) >= _MIN_COMPUTE_CAPABILITY for d in devices)
    return modern and importlib.util.find_spec('jax.experimental.pallas.triton') is not None
