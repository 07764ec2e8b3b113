"""The contract of the numeric core: sums over all paths of a graph, differentiable in the scores.

Backends are chosen here; what they compute is in `scaled.py`, `log_domain.py`, `cpu/`, `gpu/`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from seqtrain.ops import cpu, dispatch, gpu, layout, log_domain, scaled
from seqtrain.ops.graph import Graph
from seqtrain.types import Lengths, PerUtterance, Scores


def log_partition(
    scores: Scores,
    lengths: Lengths,
    graph: Graph,
    *,
    leaky: float = 0.0,
    backend: str = 'auto',
) -> PerUtterance:
    """log Σ_paths exp(Σ_t scores[b, t, pdf_t] + arc weights + initial + final).

    The gradient with respect to the scores is the occupancy γ[b, t, p] (Rabiner 1989; each row of
    a valid frame sums to 1). Lengths and graph have no gradient. Value and occupancies come from
    one forward-backward pass in scaled probabilities; an utterance for which single precision may
    have lost a path that matters is redone in the log domain.

    Args:
      scores: f32[B, T, P], natural-log scores, unnormalised or not; −inf forbids a pdf.
      lengths: i32[B], valid frames, 0 to T; later frames are never read.
      graph: from `pack` (shared) or `pack_batch` (one per utterance).
      leaky: coefficient of Kaldi's leaky HMM (Povey et al. 2016; chain-denominator.h): before
        every frame and after the last one, α(i) += leaky · initial(i) · Σ_j α(j). 0 is exact.
      backend: 'xla', 'cpu', 'gpu', or 'auto', the quickest that runs where the program does (see
        `dispatch`).

    Returns:
      f32[B] (nats). −inf where no path has that many frames, NaN where a valid frame holds NaN or
      +inf, the length lies outside 0..T, or the graph names a pdf outside P, ±inf where the sum is
      beyond single precision; the gradient of such an utterance is zero, and the rest of the batch
      is untouched. Length 0: the weight of starting and ending at once.

    Raises:
      ValueError: shapes that do not fit, lengths that are no integers, a leaky that is negative,
        not finite or traced, an unknown backend.
    """
    lengths = check(scores, lengths, graph, leaky, backend)
    return _log_partition(scores, lengths, graph, float(leaky), backend)


def occupancies(
    scores: Scores,
    lengths: Lengths,
    graph: Graph,
    *,
    leaky: float = 0.0,
    backend: str = 'auto',
) -> tuple[PerUtterance, Scores]:
    """`log_partition` together with its gradient, from one forward-backward pass.

    γ[b, t, p] = Σ_{paths with pdf p in frame t} exp(score of the path) / Σ_{paths} exp(score of the
    path) (Rabiner 1989, eq. 27).

    Args:
      scores, lengths, graph, leaky, backend: as in `log_partition`.

    Returns:
      log_z f32[B] and gamma f32[B, T, P]: the posterior probability of pdf p in frame t, zero in
      padding and where log_z is not finite. Not differentiable: differentiating raises.

    Raises:
      ValueError: as in `log_partition`.
    """
    lengths = check(scores, lengths, graph, leaky, backend)
    return _occupancies(scores, lengths, graph, float(leaky), backend)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _log_partition(scores, lengths, graph, leaky, backend):
    return _occupancies(scores, lengths, graph, leaky, backend)[0]


def _log_partition_fwd(scores, lengths, graph, leaky, backend):
    return _occupancies(scores, lengths, graph, leaky, backend)


def _log_partition_bwd(leaky, backend, gamma, cotangent):
    # Infeasible utterances have gamma 0; 0 · inf must stay 0.
    safe = jnp.where(jnp.isfinite(cotangent), cotangent, 0.0)
    return gamma * safe[:, None, None], None, None


_log_partition.defvjp(_log_partition_fwd, _log_partition_bwd)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def _occupancies(scores, lengths, graph, leaky, backend):
    return _run(scores, lengths, graph, leaky, backend)


@_occupancies.defjvp
def _occupancies_jvp(lengths, graph, leaky, backend, primals, tangents):
    raise NotImplementedError(
        'Occupancies are not differentiable (nor is log_partition twice). For sMBR-like criteria '
        'use ops.expected_accuracy; otherwise wrap the scores in jax.lax.stop_gradient.'
    )


@partial(jax.jit, static_argnames=('leaky', 'backend'))
def _run(scores, lengths, graph: Graph, leaky: float, backend: str):
    return _kernel(scores, lengths, graph=graph, leaky=leaky, backend=backend)


def _xla(scores, lengths, graph: Graph, leaky: float, on_cpu: bool):
    dense = scaled.is_dense(graph, on_cpu)

    def fast(clean, lengths):
        return scaled.forward_backward(clean, lengths, graph, leaky, dense)

    return settled(fast, log_domain.forward_backward, scores, lengths, graph, leaky)


def _gpu(scores, lengths, graph: Graph, leaky: float, interpret: bool):
    def fast(clean, lengths):
        return gpu.forward_backward(clean, lengths, graph, leaky, interpret)

    return settled(fast, log_domain.forward_backward, scores, lengths, graph, leaky)


_kernel = dispatch.Kernel(
    'seqtrain_forward_backward',
    portable=_xla,
    native=cpu.forward_backward,
    device=_gpu,
    results=lambda scores: (scores[:1], scores),
)


def settled(fast, slow, scores, lengths, graph: Graph, leaky: float):
    """Runs what is fast, redoes what it does not trust, and marks what has no answer.

    Args:
      fast: f(clean scores, lengths) -> log_z f32[B], further results that are 0 where there is
        nothing to say, trusted bool[B]. `lengths` is 0 for utterances that are out.
      slow: f(clean scores, lengths, graph, leaky) -> the results without `trusted`; only runs if
        an utterance needs it, and sees length 0 for the others.
      scores, lengths, graph, leaky: as the caller gave them.

    Returns:
      log_z, with NaN and −inf where they belong, and the further results.
    """
    clean, lengths, broken, hopeless = sift(scores, lengths, graph, leaky)
    *results, trusted = fast(clean, lengths)
    redo = ~trusted & ~broken & ~hopeless

    def again(*kept):
        better = slow(clean, jnp.where(redo, lengths, 0), graph, leaky)
        return tuple(_where(redo, new, old) for new, old in zip(better, kept, strict=True))

    log_z, *rest = jax.lax.cond(redo.any(), again, lambda *kept: kept, *results)
    broken = broken | layout.outside(graph, scores.shape[2])
    log_z = jnp.where(hopeless, -jnp.inf, jnp.where(broken, jnp.nan, log_z))
    return log_z, *(_where(~jnp.isfinite(log_z), 0.0, x) for x in rest)


def _where(choose, x, y):
    """jnp.where by utterance, bool[B], along the first axis."""
    return jnp.where(jnp.expand_dims(choose, tuple(range(1, y.ndim))), x, y)


def sift(scores, lengths, graph: Graph, leaky: float):
    """What the portable recursions may see.

    Returns:
      scores without NaN and +inf; lengths, 0 where the utterance is out; bool[B] broken, a valid
      frame held NaN or +inf; bool[B] hopeless, shorter than the graph's shortest path.
    """
    valid = jnp.arange(scores.shape[1])[None, :] < lengths[:, None]
    clean, broken = cleaned(scores, valid)
    hopeless = (lengths < graph.min_frames) & (leaky == 0)
    return clean, jnp.where(broken | hopeless, 0, lengths), broken, hopeless


def cleaned(scores, valid):
    """Scores without NaN and +inf; and bool[B], whether a valid frame had one."""
    bad = jnp.isnan(scores) | (scores == jnp.inf)
    broken = (bad & valid[:, :, None]).any((1, 2))
    return jnp.where(bad | ~valid[:, :, None] | broken[:, None, None], 0.0, scores), broken


def integers(values, name: str) -> jax.Array:
    """Lengths or labels as i32; ValueError with a sentence if they are no integers."""
    try:
        array = jnp.asarray(values)
    except (TypeError, ValueError):
        raise ValueError(f'{name} must be integers; got {type(values).__name__}.') from None
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f'{name} must be integers; got {array.dtype}.')
    return array.astype(jnp.int32)


def check_array(values, name: str) -> None:
    """ValueError with a sentence where something else than an array is given."""
    if not (hasattr(values, 'ndim') and hasattr(values, 'dtype')):
        raise ValueError(f'{name} must be an array; got {type(values).__name__}.')


def _check_graph(graph: Graph) -> None:
    """ValueError with a sentence unless the arrays are such as `pack` makes: C++ relies on it."""
    arcs, batch = np.shape(graph.src), np.shape(graph.src)[:-1]
    states = (*batch, *np.shape(graph.initial)[-1:])
    integer, real = 'int32', 'float32'
    expected = dict.fromkeys(('src', 'dst', 'pdf'), (integer, arcs))
    expected |= {'weight': (real, arcs), 'initial': (real, states), 'final': (real, states)}
    expected['min_frames'] = integer, batch
    if any(x is not None for x in (graph.group, graph.group_dst, graph.group_pdf)):
        groups = (*batch, *np.shape(graph.group_dst)[-1:])
        expected['group'] = integer, arcs
        expected |= dict.fromkeys(('group_dst', 'group_pdf'), (integer, groups))
    for name, wanted in expected.items():
        array = getattr(graph, name)
        found = str(getattr(array, 'dtype', type(array).__name__)), np.shape(array)
        if found != wanted or len(arcs) not in (1, 2):
            raise ValueError(
                f'graph.{name} must be {wanted[0]} of shape {wanted[1]}; got {found[0]} of shape '
                f'{found[1]}. Take graphs from ops.pack or ops.pack_batch and leave their arrays '
                'as they are.'
            )


def check(scores, lengths, graph: Graph, leaky: float, backend: str) -> jax.Array:
    """The lengths as an array; ValueError with a sentence where arguments do not fit together."""
    if not isinstance(graph, Graph):
        raise ValueError(
            f'A graph comes from ops.pack or ops.pack_batch; got {type(graph).__name__}.'
        )
    _check_graph(graph)
    lengths = integers(lengths, 'lengths')
    check_array(scores, 'scores')
    if scores.ndim != 3 or lengths.shape != scores.shape[:1]:
        raise ValueError(
            f'scores must be [B, T, P] and lengths [B]; got {scores.shape} and {lengths.shape}.'
        )
    if scores.dtype != jnp.float32:
        raise ValueError(f'scores must be float32; got {scores.dtype}. Cast them first.')
    if graph.batched and graph.src.shape[0] != scores.shape[0]:
        raise ValueError(
            f'The batch has {scores.shape[0]} utterances but {graph.src.shape[0]} graphs.'
        )
    if graph.num_pdfs > scores.shape[2]:
        raise ValueError(
            f'The graph uses pdfs up to {graph.num_pdfs - 1}; the scores have only '
            f'{scores.shape[2]} columns. Was it built for another network?'
        )
    if isinstance(leaky, jax.core.Tracer):
        raise ValueError('leaky is part of the program: give a number, not a traced value.')
    try:
        possible = 0 <= leaky <= float(jnp.finfo(jnp.float32).max)
    except TypeError:
        possible = False
    if not possible:
        raise ValueError(f'leaky must be a finite number and at least 0; got {leaky!r}.')
    dispatch.check(backend)
    return lengths
