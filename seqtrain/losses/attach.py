"""A value with a known gradient: how a criterion hands its outer derivatives to the network."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seqtrain.types import PerUtterance, Scores


@jax.custom_vjp
def attach(scores: Scores, value: PerUtterance, gradient: Scores) -> PerUtterance:
    """Returns `value`; its derivative with respect to `scores` is `gradient`.

    ∂/∂scores Σ_b c_b attach(...)[b] = c_b · gradient[b]. With `gradient` computed earlier, from
    other parameters, this is the auxiliary function Q(θ; θ') = Σ gradient(θ') · scores(θ).

    Args:
      scores: f32[B, T, P], what is differentiated; only its derivative is used.
      value: f32[B], without a gradient of its own.
      gradient: f32[B, T, P], finite, zero where the utterance is invalid.

    Returns:
      f32[B], `value`. A second derivative raises NotImplementedError.
    """
    return value


def _forward(scores, value, gradient):
    return value, _once(scores, gradient)


def _backward(gradient, cotangent):
    safe = jnp.where(jnp.isfinite(cotangent), cotangent, 0.0)
    return gradient * safe[:, None, None], None, None


attach.defvjp(_forward, _backward)


@jax.custom_jvp
def _once(scores, gradient):
    return gradient


@_once.defjvp
def _once_jvp(primals, tangents):
    raise NotImplementedError(
        'Sequence criteria can be differentiated once. Wrap the logits in jax.lax.stop_gradient '
        'where you do not want a second derivative.'
    )
