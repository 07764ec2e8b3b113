"""Maximum mutual information and its relatives: ratios of two sums over paths.

Whether the denominator is one shared graph (lattice-free) or one lattice per utterance makes no
difference to anything here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seqtrain import ops
from seqtrain.losses import validity
from seqtrain.losses.attach import attach
from seqtrain.losses.validity import Outcome
from seqtrain.ops import Graph
from seqtrain.types import Lengths, Scores


def lf_mmi(
    logits: Scores,
    lengths: Lengths,
    numerators: Graph,
    denominator: Graph,
    *,
    leaky: float = 0.0,
    acoustic_scale: float = 1.0,
    denominator_scale: float = 1.0,
    log_priors: jax.Array | None = None,
    boost: float = 0.0,
    accuracy: Scores | None = None,
    drop_below: float | None = None,
    backend: str = 'auto',
) -> Outcome:
    """L = log Σ_num e^{κ·score} − c · log Σ_den e^{κ·score − b·A(path)}, to be maximised.

    ∂L/∂logits = κ (γ_num − c·γ_den): with c = 1 every row of a valid frame sums to 0, so adding a
    constant to a frame changes nothing and no log-softmax is needed (Povey et al. 2016). b > 0 is
    boosted MMI (Povey et al. 2008): competing paths count more the more errors they have.

    Args:
      logits: f32[B, T, P], network outputs before any softmax.
      lengths: i32[B], valid frames.
      numerators: one graph per utterance (`ops.pack_batch`).
      denominator: shared (`ops.pack`) or one per utterance.
      leaky: coefficient of the leaky HMM in the denominator (see `ops.log_partition`).
      acoustic_scale: κ.
      denominator_scale: c; where it is not finite, nothing is valid. κ, b and c may be traced.
      log_priors: f32[P], subtracted from the logits of every frame (natural log).
      boost: b, usually 0.05 to 0.1, without a derivative; needs `accuracy`.
      accuracy: f32[B, T, P], what a path earns per frame (see `losses.frame_accuracy`).
      drop_below: frames where Σ_p min(γ_num, γ_den) ≤ drop_below get no gradient: numerator and
        denominator are disjoint there, so the alignment or the lattice is probably wrong (Veselý
        et al. 2013). Occupancies are right to about 1e-5, so take more than that, such as 1e-4; in
        lattices exp(−lattice beam), what a search may have left out. None keeps all frames.
      backend: see `ops.log_partition`.

    Returns:
      An `Outcome`; value in nats, ≤ 0 where the numerator's paths are among the denominator's,
      c = 1 and b = 0. An infeasible utterance (it alone): valid=False, a reason, value, gradient 0.

    Raises:
      ValueError: shapes that do not fit together, or a boost without accuracies.
    """
    scores = scaled(logits, acoustic_scale, log_priors)
    scale = jnp.asarray(denominator_scale, scores.dtype)
    fixed = jax.lax.stop_gradient(scores)
    num, num_gamma = ops.occupancies(fixed, lengths, numerators, backend=backend)
    against = boosted(fixed, boost, accuracy)
    den, den_gamma = ops.occupancies(against, lengths, denominator, leaky=leaky, backend=backend)
    graphs = (numerators, denominator) if leaky == 0 else (numerators,)
    judged = jnp.where(jnp.isfinite(scale), den, jnp.nan)
    value = _difference(num, den, scale)
    out = validity.outcome(value, num, judged, lengths, graphs, num_gamma)
    keep = out.valid[:, None, None]
    if drop_below is not None:
        keep &= jnp.minimum(num_gamma, den_gamma).sum(-1, keepdims=True) > drop_below
    gradient = jnp.where(keep, num_gamma - scale * den_gamma, 0.0)
    value = attach(scores, out.value, gradient) - _change_by(scale, den, out.valid)
    return out.replace(value=value, denominator=den)


def _change_by(scale: jax.Array, den: jax.Array, valid: jax.Array) -> jax.Array:
    """0, with the derivative by c that `attach` leaves out: log Σ_den."""
    change = scale - jax.lax.stop_gradient(scale)
    return jnp.where(valid, change * jnp.where(valid, den, 0.0), 0.0)


def boosted(scores: Scores, boost: float, accuracy: Scores | None) -> jax.Array:
    """score − b·A, after a look at what was given."""
    if accuracy is not None and jnp.shape(accuracy) != scores.shape:
        raise ValueError(f'accuracy must be {scores.shape}; got {jnp.shape(accuracy)}.')
    if _is(boost, 0):
        return scores
    if accuracy is None:
        raise ValueError('boost > 0 needs accuracy; make it with losses.frame_accuracy.')
    return scores - jnp.asarray(boost * jnp.asarray(accuracy), scores.dtype)


def ctc(logits: Scores, lengths: Lengths, numerators: Graph, *, backend: str = 'auto') -> Outcome:
    """log p(labels | x) of connectionist temporal classification, to be maximised.

    log Σ_{paths of the label sequence} Π_t softmax(logits)[t, path_t] (Graves et al. 2006, eq. 3);
    the numerators must have the CTC topology (blank between and inside labels).

    Args:
      logits: f32[B, T, P], before the softmax.
      lengths: i32[B].
      numerators: one graph per utterance, with log-weights 0.
      backend: see `ops.log_partition`.

    Returns:
      An `Outcome` with denominator 0; value ≤ 0 (nats). A label sequence that does not fit is
      TOO_SHORT, NaN or +inf in a valid frame NON_FINITE; value and gradient are then 0.

    Raises:
      ValueError: shapes that do not fit together.
    """
    scores = log_softmax(logits, lengths)
    num = ops.log_partition(scores, lengths, numerators, backend=backend)
    value = jnp.where(jnp.isfinite(num), num, 0.0)
    return validity.outcome(value, num, jnp.zeros_like(num), lengths, (numerators,))


def ctc_crf(
    logits: Scores,
    lengths: Lengths,
    numerators: Graph,
    denominator: Graph,
    *,
    ctc_weight: float = 0.01,
    backend: str = 'auto',
) -> Outcome:
    """(1 + λ) log Σ_num − log Σ_den on log-softmax scores, to be maximised (Xiang & Ou 2019).

    A conditional random field with the CTC topology; λ keeps the network near CTC.

    Args:
      logits: f32[B, T, P], before the softmax.
      lengths: i32[B].
      numerators: one CTC graph per utterance; weights may carry the label LM.
      denominator: CTC topology composed with the label LM.
      ctc_weight: λ; where it is not finite, nothing is valid.
      backend: see `ops.log_partition`.

    Returns:
      An `Outcome` with value (nats), reasons and gradients as in `lf_mmi`.

    Raises:
      ValueError: shapes that do not fit together.
    """
    scores = log_softmax(logits, lengths)
    num = ops.log_partition(scores, lengths, numerators, backend=backend)
    den = ops.log_partition(scores, lengths, denominator, backend=backend)
    weight = jnp.asarray(1.0 + ctc_weight, num.dtype)
    num = jnp.where(jnp.isfinite(weight), num, jnp.nan)
    value = _difference(_times(weight, num), den, 1.0)
    return validity.outcome(value, num, den, lengths, (numerators, denominator))


def scaled(logits: Scores, acoustic_scale: float, log_priors: jax.Array | None) -> Scores:
    """κ (logits − log priors)."""
    logits = jnp.asarray(logits)
    if log_priors is not None:
        if jnp.shape(log_priors) != logits.shape[2:]:
            raise ValueError(
                f'log_priors must be [P] = {logits.shape[2:]}; got {jnp.shape(log_priors)}.'
            )
        logits = logits - jnp.asarray(log_priors, logits.dtype)[None, None, :]
    if _is(acoustic_scale, 1):
        return logits
    # A NumPy scalar would bring its own precision with it.
    return _times(jnp.asarray(acoustic_scale, logits.dtype), logits)


def _times(scale: jax.Array, values: jax.Array) -> jax.Array:
    """scale · values. What is not finite stays so, and away from the gradient by the scale: 0 · NaN
    (an infeasible utterance, padding, a forbidden pdf) would spoil it for the batch."""
    known = jnp.isfinite(scale)
    finite = jnp.isfinite(values)
    product = jnp.where(known, scale, 0.0) * jnp.where(finite, values, 0.0)
    return jnp.where(known, jnp.where(finite, product, values), jnp.nan)


def _is(scale: float, constant: float) -> bool:
    """Whether a scale is known to be this number; what is traced may be any."""
    return not isinstance(scale, jax.core.Tracer) and bool(scale == constant)


def log_softmax(logits: Scores, lengths: Lengths) -> Scores:
    """log softmax over pdfs; padding is 0, so that what it holds cannot reach a gradient.

    An utterance with NaN, +inf or nothing but −inf in a valid frame comes out as constant NaN,
    without a gradient.
    """
    validity.check_logits(logits)
    mask = validity.frame_mask(logits, lengths)
    clean, bad = validity.clean_logits(logits, mask)
    log_probs = jnp.where(mask[:, :, None], jax.nn.log_softmax(clean, axis=-1), 0.0)
    return jnp.where(bad[:, None, None], jnp.nan, log_probs)


def _difference(num, den, scale):
    # inf − inf must not become a NaN that a mask cannot take out of the gradient.
    ready = jnp.isfinite(num) & jnp.isfinite(den)
    return jnp.where(ready, num, 0.0) - scale * jnp.where(ready, den, 0.0)
