"""The `cpu` backend: C++ through the XLA FFI, where a compiler was there at installation.

Loads the library, registers its handlers, wraps their calls. The recursions are in `lanes.inc`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.machinery
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from seqtrain.ops.graph import Graph

_HERE = pathlib.Path(__file__).parent
HISTORY_BYTES = 256 << 20
"""What one thread may keep of a forward pass; longer utterances recompute from checkpoints."""

_TARGETS = {
    'seqtrain_partition': 'SeqtrainPartition',
    'seqtrain_expectation': 'SeqtrainExpectation',
    'seqtrain_viterbi': 'SeqtrainViterbi',
    'seqtrain_limit': 'SeqtrainLimit',
}


@functools.cache
def available() -> bool:
    """Whether the library was built and loads. Says once, in the log, if not."""
    found = [p for s in importlib.machinery.EXTENSION_SUFFIXES for p in _HERE.glob(f'_core*{s}')]
    if not found:
        logging.getLogger('seqtrain').warning(
            'The C++ core is not built; running on the xla backend, which is several times slower '
            'on CPUs. Install a C++ compiler (g++ >= 10 or clang) and reinstall seqtrain.'
        )
        return False
    try:
        _register(ctypes.CDLL(str(found[0])))
    except (OSError, AttributeError) as error:
        logging.getLogger('seqtrain').warning(
            'The C++ core does not load (%s); running on the xla backend. Reinstall seqtrain.',
            error,
        )
        return False
    except jax.errors.JaxRuntimeError as error:
        logging.getLogger('seqtrain').warning(
            'The C++ core was built for another jaxlib (%s); running on the xla backend. Reinstall '
            'seqtrain against the jaxlib that is here: pip install --no-build-isolation.',
            error,
        )
        return False
    return True


def instructions() -> str:
    """The instruction set the library chose on this machine: 'avx512', 'avx2' or 'base'."""
    if not available():
        raise RuntimeError('The C++ core is not built; see the log.')
    return _library.SeqtrainKernels().decode()


def choose_instructions(name: str) -> None:
    """Takes the kernels for 'avx512', 'avx2' or 'base' from now on, in all threads. For tests.

    Raises:
      ValueError: this machine lacks the instructions.
    """
    if not available():
        raise RuntimeError('The C++ core is not built; see the log.')
    if not _library.SeqtrainChoose(name.encode()):
        raise ValueError(f'This machine has no kernels {name!r}.')


def redone() -> int:
    """Utterances redone in the log domain since the library was loaded; worth a look if it grows.

    A redo is exact but slow: scores that differ by more than 80 within a frame, or paths that
    change places by more than single precision holds. Infeasible utterances end here, too.
    """
    if not available():
        raise RuntimeError('The C++ core is not built; see the log.')
    return int(_library.SeqtrainRedone())


def layered() -> int:
    """Utterances whose graph was a lattice (see layered.cc) since the library was loaded."""
    if not available():
        raise RuntimeError('The C++ core is not built; see the log.')
    return int(_library.SeqtrainLayered())


def forward_backward(scores, lengths, graph: Graph, leaky: float):
    """log Z f32[B] and occupancies f32[B, T, P]; the contract of `ops.occupancies`."""
    batch = scores.shape[0]
    out = (jax.ShapeDtypeStruct((batch,), jnp.float32), _like(scores))
    call = jax.ffi.ffi_call('seqtrain_partition', out)
    return call(scores, lengths, *_arrays(graph), **_options(leaky))


def expectation(scores, accuracy, lengths, graph: Graph, leaky: float):
    """log Z f32[B], E[A] f32[B], dE[A]/dscores f32[B, T, P]; see `ops.expected_accuracy`."""
    each = jax.ShapeDtypeStruct((scores.shape[0],), jnp.float32)
    call = jax.ffi.ffi_call('seqtrain_expectation', (each, each, _like(scores)))
    return call(scores, accuracy, lengths, *_arrays(graph), **_options(leaky))


def viterbi(scores, lengths, graph: Graph):
    """Best score f32[B] and pdfs i32[B, T]; see `ops.viterbi`."""
    out = (
        jax.ShapeDtypeStruct((scores.shape[0],), jnp.float32),
        jax.ShapeDtypeStruct(scores.shape[:2], jnp.int32),
    )
    call = jax.ffi.ffi_call('seqtrain_viterbi', out)
    return call(scores, lengths, *_arrays(graph), history_bytes=np.int64(HISTORY_BYTES))


def gather_limit(graph: Graph, batch: int, frames: int, num_pdfs: int):
    """Only the gathers, products and sums of a pass over a shared graph: the machine's limit.

    For benchmarks. Returns f32[batch] without meaning; its time is what counts.
    """
    call = jax.ffi.ffi_call('seqtrain_limit', jax.ShapeDtypeStruct((batch,), jnp.float32))
    return call(*_arrays(graph), frames=np.int64(frames), num_pdfs=np.int64(num_pdfs))


def _options(leaky: float):
    return {'leaky': np.float32(leaky), 'history_bytes': np.int64(HISTORY_BYTES)}


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _arrays(graph: Graph):
    return (
        graph.src,
        graph.dst,
        graph.pdf,
        graph.weight,
        graph.initial,
        graph.final,
        graph.min_frames,
    )


_library: ctypes.CDLL


def _register(library: ctypes.CDLL) -> None:
    global _library
    library.SeqtrainRedone.restype = ctypes.c_int64
    library.SeqtrainLayered.restype = ctypes.c_int64
    library.SeqtrainKernels.restype = ctypes.c_char_p
    # Until JAX has its CPU backend it puts registrations off, and with them the check of their
    # version, at which the whole backend would fail. Where JAX_PLATFORMS leaves it out, none comes.
    with contextlib.suppress(RuntimeError):
        jax.local_devices(backend='cpu')
    for target, symbol in _TARGETS.items():
        capsule = jax.ffi.pycapsule(getattr(library, symbol))
        jax.ffi.register_ffi_target(target, capsule, platform='cpu')
    _library = library
