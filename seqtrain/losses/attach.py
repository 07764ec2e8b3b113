"""A value with a known gradient: how a criterion hands its outer derivatives to the network."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seqtrain.types import PerUtterance, Scores


def attach(scores: Scores, value: PerUtterance, gradient: Scores) -> PerUtterance:
    """Returns `value`; its derivative with respect to `scores` is `gradient`.

    ∂/∂scores Σ_b c_b attach(...)[b] = c_b · gradient[b] (the chain rule, with outer derivatives
    that are given: US20220108686A1). With `gradient` computed earlier, from other parameters θ',
    it is that of the auxiliary function Q(θ; θ') = Σ gradient(θ') · scores(θ).

    Args:
      scores: f32[B, T, P], what is differentiated; only its derivative is used.
      value: f32[B], without a gradient of its own.
      gradient: f32[B, T, P], finite, zero where the utterance is invalid.

    Returns:
      f32[B], `value`, in its own units. A c_b that is not finite counts as 0. A second derivative
      raises NotImplementedError.

    Raises:
      ValueError: shapes that do not fit together.
    """
    if gradient.shape != scores.shape or value.shape != scores.shape[:1]:
        raise ValueError(
            f'attach takes scores and their gradient [B, T, P] and a value [B]; got '
            f'{scores.shape}, {gradient.shape} and {value.shape}.'
        )
    return _attach(scores, value, gradient)


@jax.custom_vjp
def _attach(scores, value, gradient):
    return value


def _forward(scores, value, gradient):
    return value, _once(scores, gradient)


def _backward(gradient, cotangent):
    safe = jnp.where(jnp.isfinite(cotangent), cotangent, 0.0)
    return gradient * safe[:, None, None], None, None


_attach.defvjp(_forward, _backward)


@jax.custom_jvp
def _once(scores, gradient):
    return gradient


@_once.defjvp
def _once_jvp(primals, tangents):
    raise NotImplementedError(
        'Sequence criteria can be differentiated once. Wrap the logits in jax.lax.stop_gradient '
        'where you do not want a second derivative.'
    )
