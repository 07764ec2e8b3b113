"""The expected accuracy of a path, differentiable in the scores: the core of sMBR and MPE."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from seqtrain.ops import cpu, dispatch, forward_backward, gpu, layout, log_expectation
from seqtrain.ops.graph import Graph
from seqtrain.types import Lengths, PerUtterance, Scores


def expected_accuracy(
    scores: Scores,
    lengths: Lengths,
    graph: Graph,
    accuracy: Scores,
    *,
    leaky: float = 0.0,
    backend: str = 'auto',
) -> tuple[PerUtterance, PerUtterance]:
    """E[A] = Σ_π p(π) Σ_t accuracy[b, t, pdf_t(π)], with p(π) ∝ exp(score of the path).

    ∂E[A]/∂scores[b, t, p] = γ[b, t, p] (E[A | p at t] − E[A]), from one pass that carries
    probability and first moment (the semiring of Li & Eisner 2009; Povey 2003, ch. 6), not from
    second derivatives. Rows of the gradient sum to 0.

    Args:
      scores: f32[B, T, P], natural-log scores; −inf forbids a pdf.
      lengths: i32[B], valid frames, 0 to T.
      graph: shared or one per utterance.
      accuracy: f32[B, T, P], finite: what a path earns for pdf p in frame t. No gradient.
      leaky: coefficient of the leaky HMM; see `log_partition`.
      backend: as in `log_partition`.

    Returns:
      value f32[B], E[A] in units of the accuracy; 0 at length 0 and where log_z is ±inf, NaN
      where a valid frame holds NaN or +inf in the scores or anything non-finite in the accuracy,
      and where the length lies outside 0..T; such an utterance's gradient is 0.
      log_z f32[B], as `log_partition` gives it, but without a gradient.

    Raises:
      ValueError: as in `log_partition`, and an accuracy that does not fit.
    """
    lengths = forward_backward.check(scores, lengths, graph, leaky, backend)
    forward_backward.check_array(accuracy, 'accuracy')
    if accuracy.shape != scores.shape or accuracy.dtype != jnp.float32:
        raise ValueError(
            f'accuracy must be float32 of shape {scores.shape}; got {accuracy.dtype} '
            f'{accuracy.shape}.'
        )
    return _expected(scores, lengths, graph, accuracy, float(leaky), backend)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _expected(scores, lengths, graph, accuracy, leaky, backend):
    return _run(scores, lengths, graph, accuracy, leaky, backend)[:2]


def _expected_fwd(scores, lengths, graph, accuracy, leaky, backend):
    value, log_z, gradient = _once(scores, lengths, graph, accuracy, leaky, backend)
    return (value, log_z), gradient


def _expected_bwd(leaky, backend, gradient, cotangents):
    safe = jnp.where(jnp.isfinite(cotangents[0]), cotangents[0], 0.0)
    return gradient * safe[:, None, None], None, None, None


_expected.defvjp(_expected_fwd, _expected_bwd)


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _once(scores, lengths, graph, accuracy, leaky, backend):
    return _run(scores, lengths, graph, accuracy, leaky, backend)


@_once.defjvp
def _once_jvp(leaky, backend, primals, tangents):
    raise NotImplementedError(
        'expected_accuracy can be differentiated once; wrap the scores in '
        'jax.lax.stop_gradient where you do not want its second derivative.'
    )


@partial(jax.jit, static_argnames=('leaky', 'backend'))
def _run(scores, lengths, graph: Graph, accuracy, leaky: float, backend: str):
    valid = (jnp.arange(scores.shape[1])[None, :] < lengths[:, None])[:, :, None]
    broken = (valid & ~jnp.isfinite(accuracy)).any((1, 2))
    accuracy = jnp.where(valid & ~broken[:, None, None], accuracy, 0.0)
    log_z, value, gradient = _kernel(
        scores, accuracy, lengths, graph=graph, leaky=leaky, backend=backend
    )
    broken |= ~jnp.isfinite(value)  # accuracies too large for sums in float32
    value = jnp.where(broken | jnp.isnan(log_z), jnp.nan, value)
    return value, log_z, jnp.where(broken[:, None, None], 0.0, gradient)


def _xla(scores, accuracy, lengths, graph: Graph, leaky: float, on_cpu: bool):
    del on_cpu  # one form for all platforms
    clean, lengths, broken, hopeless = forward_backward.sift(scores, lengths, graph, leaky)
    log_z, value, gradient = log_expectation.expectation(clean, accuracy, lengths, graph, leaky)
    broken = broken | layout.outside(graph, scores.shape[2])
    log_z = jnp.where(hopeless, -jnp.inf, jnp.where(broken, jnp.nan, log_z))
    gone = ~jnp.isfinite(log_z)
    return log_z, jnp.where(gone, 0.0, value), jnp.where(gone[:, None, None], 0.0, gradient)


def _gpu(scores, accuracy, lengths, graph: Graph, leaky: float, interpret: bool):
    def fast(clean, lengths):
        return gpu.expectation(clean, accuracy, lengths, graph, leaky, interpret)

    def slow(clean, lengths, graph, leaky):
        return log_expectation.expectation(clean, accuracy, lengths, graph, leaky)

    return forward_backward.settled(fast, slow, scores, lengths, graph, leaky)


_kernel = dispatch.Kernel(
    'seqtrain_expectation',
    portable=_xla,
    native=cpu.expectation,
    device=_gpu,
    results=lambda scores: (scores[:1], scores[:1], scores),
)
