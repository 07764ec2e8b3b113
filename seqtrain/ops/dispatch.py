"""Which backend runs: decided when a program is lowered for a platform, not when it is traced.

One JAX primitive per kernel. 'auto' is the C++ core on CPUs where it is built, the Triton kernels
on CUDA GPUs that can run them, and the portable program everywhere else and in exported modules:
those must run where seqtrain is not installed, on GPUs of any age, and JAX promises no
compatibility for Triton calls. SEQTRAIN_BACKEND=xla in the environment makes 'auto' portable
everywhere. The batching rule folds a vmapped axis into the batch.

Devices share a batch by `jax.shard_map`. If the batch is only sharded under `jax.jit`, the C++ core
computes all of it on every device: XLA cannot see that its utterances are independent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from seqtrain.ops import cpu, gpu
from seqtrain.ops.graph import Graph

BACKENDS = ('auto', 'xla', 'cpu', 'gpu')
"""What `backend=` may be; which of them can run here is what `backends` says."""

_SETTING = 'SEQTRAIN_BACKEND'


def backends(interpreted: bool = False) -> tuple[str, ...]:
    """The backends that can run on JAX's default device: 'xla' always; 'cpu' on CPUs where the C++
    core is built; 'gpu' on CUDA GPUs of compute capability 8.0 or more.

    Args:
      interpreted: counts 'gpu' in on CPUs, too, where its kernels run interpreted: right, and far
        too slow for work.

    Returns:
      Names without 'auto', 'xla' first. Where the C++ core is missing, the first call says so.
    """
    on_cpu = jax.default_backend() == 'cpu'
    native = on_cpu and cpu.available()
    kernels = interpreted if on_cpu else gpu.available()
    return ('xla', *(['cpu'] if native else []), *(['gpu'] if kernels else []))


def check(backend: str) -> None:
    """Raises ValueError for an unknown backend, or for 'cpu' where the C++ core is not built."""
    if backend not in BACKENDS:
        raise ValueError(f'backend must be one of {BACKENDS}; got {backend!r}.')
    if backend == 'cpu' and not cpu.available():
        raise ValueError(
            "backend='cpu' needs the C++ core, which is not built here: install a C++ compiler and "
            "reinstall seqtrain, or use backend='auto'."
        )


class Kernel:
    """A function of per-utterance arrays and a graph, as every backend has it.

    Args:
      name: of the JAX primitive.
      portable, native, device: for 'xla', 'cpu' and 'gpu', called as f(*arrays, graph, leaky);
        every array and every result has a leading axis B. The first array is the scores, the
        last the lengths. The first result is NaN where a length lies outside 0..T; a kernel sees
        length 0 there, for which its other results must be blank.
        `portable` is also told on_cpu=True or False, because what is quick there is slow on an
        accelerator; `device` is told interpret=True where there is no GPU.
      results: from the shape of the scores to the shapes of the results.
      dtypes: of the results; float32 where left out.
    """

    def __init__(
        self,
        name: str,
        portable: Callable,
        native: Callable,
        device: Callable,
        results: Callable,
        dtypes: Sequence = (),
    ):
        self._portable, self._native, self._device = portable, native, device
        self._results, self._dtypes = results, dtypes
        self._primitive = Primitive(name)
        self._primitive.multiple_results = True
        self._primitive.def_abstract_eval(self._abstract)
        self._primitive.def_impl(lambda *a, **k: jax.jit(partial(self._primitive.bind, **k))(*a))
        mlir.register_lowering(self._primitive, self._lower)
        batching.primitive_batchers[self._primitive] = self._batch

    def __call__(self, *arrays, graph: Graph, leaky: float, backend: str) -> tuple[jax.Array, ...]:
        *others, lengths = arrays
        leaves, tree = jax.tree.flatten(graph)
        # C++ reads 32 bits, whatever it is given.
        lengths = jnp.asarray(lengths, jnp.int32)
        legal = (lengths >= 0) & (lengths <= others[0].shape[1])
        operands = (*others, jnp.where(legal, lengths, 0), *map(jnp.asarray, leaves))
        value, *rest = self._primitive.bind(*operands, tree=tree, leaky=leaky, backend=backend)
        return jnp.where(legal, value, jnp.nan), *rest

    def _abstract(self, *operands, **_):
        shapes = self._results(operands[0].shape)
        dtypes = self._dtypes or [jnp.float32] * len(shapes)
        blank = [jax.core.ShapedArray(*each) for each in zip(shapes, dtypes, strict=True)]
        return _varying(blank, operands)

    def _lower(self, ctx, *operands, tree, leaky, backend):
        module = ctx.module_context
        exporting = getattr(module.lowering_parameters, 'for_export', False)
        chosen = self._chosen(backend, tuple(module.platforms), exporting)
        if not ctx.avals_in[0].shape[0]:  # no utterances, no kernel
            chosen = partial(self._portable, on_cpu=True)

        def run(*flat):
            arrays, leaves = flat[: len(flat) - tree.num_leaves], flat[-tree.num_leaves :]
            return chosen(*arrays, jax.tree.unflatten(tree, leaves), leaky)

        # Every device computes for itself: what lies inside need not know what varies over them.
        ctx = ctx.replace(avals_in=[jax.core.ShapedArray(x.shape, x.dtype) for x in ctx.avals_in])
        return mlir.lower_fun(run, multiple_results=True)(ctx, *operands)

    def _chosen(self, backend: str, platforms: tuple[str, ...], exporting: bool) -> Callable:
        on_cpu, on_cuda = platforms == ('cpu',), platforms == ('cuda',)
        if (backend == 'cpu' and not on_cpu) or (backend == 'gpu' and not (on_cpu or on_cuda)):
            raise ValueError(f"backend={backend!r} cannot run on {platforms}; use 'auto'.")
        if backend == 'auto' and not exporting and os.environ.get(_SETTING) != 'xla':
            if on_cpu and cpu.available():
                backend = 'cpu'
            elif on_cuda and gpu.available():
                backend = 'gpu'
        if backend == 'cpu':
            return self._native
        if backend == 'gpu':
            return partial(self._device, interpret=on_cpu)
        return partial(self._portable, on_cpu=on_cpu)

    def _batch(self, operands, axes, *, tree, leaky, backend):
        split = len(operands) - tree.num_leaves
        size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
        arrays = [_leading(x, a, size) for x, a in zip(operands[:split], axes[:split], strict=True)]
        graph = jax.tree.unflatten(tree, operands[split:])
        batch = arrays[0].shape[1]
        mapped = any(a is not None for a in axes[split:])
        if mapped or graph.batched:
            graph = _one_each(tree, operands[split:], axes[split:], size, batch)
        fold = [x.reshape(size * batch, *x.shape[2:]) for x in arrays]  # T may be 0: no −1
        out = self(*fold, graph=graph, leaky=leaky, backend=backend)
        return [x.reshape(size, batch, *x.shape[1:]) for x in out], [0] * len(out)


def _varying(results, operands):
    """Results that, inside `jax.shard_map`, vary over the mesh axes over which any operand does.

    Older JAX has another name for this, and needs `check_vma=False`.
    """
    kinds = [getattr(x, 'manual_axis_type', None) for x in operands]
    axes = frozenset().union(*(kind.varying for kind in kinds if kind))
    if not axes:
        return results
    mesh = operands[0].sharding.mesh
    return [
        x.update(
            sharding=NamedSharding(mesh, PartitionSpec(*[None] * x.ndim)),
            manual_axis_type=jax.sharding.ManualAxisType(varying=axes),
        )
        for x in results
    ]


def _leading(x, axis, size: int):
    """Brings the mapped axis to the front, or repeats x along a new one."""
    if axis is None:
        return jnp.broadcast_to(x, (size, *x.shape))
    return jnp.moveaxis(x, axis, 0)


def _one_each(tree, leaves, axes, size: int, batch: int) -> Graph:
    """A graph for each of size · batch utterances; groups are dropped (they are for sharing)."""
    shared = not tree_is_batched(tree, leaves, axes)

    def spread(x, axis):
        x = _leading(x, axis, size)
        if shared:
            x = jnp.broadcast_to(x[:, None], (size, batch, *x.shape[1:]))
        return x.reshape(size * batch, *x.shape[2:])

    graph = jax.tree.unflatten(tree, [spread(x, a) for x, a in zip(leaves, axes, strict=True)])
    return Graph(**{**vars(graph), 'group': None, 'group_dst': None, 'group_pdf': None})


def tree_is_batched(tree, leaves, axes) -> bool:
    """Whether the graph had an axis B before the mapped axis was added."""
    src_rank = len(leaves[0].shape) - (axes[0] is not None)
    return src_rank == 2
