"""What the tests of the numeric core run on."""

import jax
import pytest

from seqtrain import ops

BACKENDS = [
    *ops.backends(),
    *(
        pytest.param(backend, marks=pytest.mark.slow)
        for backend in ops.backends(interpreted=True)
        if backend not in ops.backends()
    ),
]
"""Every backend; those that can only be interpreted here are slow."""


TRITON = '__gpu$xla.gpu.triton'
"""The custom call that holds a Triton kernel."""


def on_cuda():
    """A context in which programs for CUDA are lowered for an NVIDIA H100, wherever this runs."""
    gpu = jax.sharding.AbstractDevice('NVIDIA H100 80GB HBM3', 132, 'gpu')
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=gpu)
    return jax.sharding.use_abstract_mesh(mesh)


def lowered_for_cuda(function, *args) -> str:
    """The program that JAX would give to XLA."""
    with on_cuda():
        return jax.jit(function).trace(*args).lower(lowering_platforms=('cuda',)).as_text()
