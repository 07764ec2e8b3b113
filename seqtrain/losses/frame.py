"""Criteria and penalties that look at one frame at a time. All are to be minimised."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seqtrain.losses.validity import check_logits, clean_logits, frame_mask, legal_lengths
from seqtrain.ops.forward_backward import integers
from seqtrain.types import Lengths, PerUtterance, Scores, Valid


def cross_entropy(logits: Scores, labels: jax.Array, lengths: Lengths) -> PerUtterance:
    """−Σ_t log softmax(logits)[t, label_t], or −Σ_t Σ_p target[t, p] log softmax(logits)[t, p].

    With numerator occupancies as soft labels and a second output layer as logits this is chain
    training's `xent_regularize` branch; added to a sequence criterion on the same outputs it is
    F-smoothing (Su et al. 2013).

    Args:
      logits: f32[B, T, P].
      labels: i32[B, T] (hard; −1 leaves a frame out) or f32[B, T, P] (soft; rows of zeros leave
        a frame out; no gradient flows into them).
      lengths: i32[B]; frames at or after it contribute nothing, whatever they hold.

    Returns:
      f32[B], summed over frames (nats); 0 at length 0. A label ≥ P, a soft label that is not
      finite, or a frame with NaN, +inf or nothing but −inf, in valid frames that are not left out,
      or a length outside 0..T, gives NaN for that utterance alone, with gradient 0: mask it by the
      `valid` of a sequence criterion.

    Raises:
      ValueError: labels of another shape, labels [B, T] or lengths that are no integers, logits
        that are not f32[B, T, P].
    """
    check_logits(logits)
    labels = jnp.asarray(labels)
    if labels.shape not in (logits.shape[:2], logits.shape):
        raise ValueError(
            f'labels must be [B, T] or [B, T, P] as the logits {logits.shape}; got {labels.shape}.'
        )
    soft = labels.ndim == 3
    labels = labels if soft else integers(labels, 'labels [B, T]')
    mask = frame_mask(logits, lengths) & ((labels != 0).any(-1) if soft else labels >= 0)
    known = jnp.isfinite(labels).all(-1) if soft else labels < logits.shape[2]
    # A frame with a label that nobody can read is as bad as one without a softmax.
    clean, bad = clean_logits(jnp.where(known[:, :, None], logits, jnp.nan), mask)
    bad |= ~legal_lengths(logits, lengths)
    mask &= ~bad[:, None]
    log_probs = jax.nn.log_softmax(clean, axis=-1)
    if soft:
        targets = jnp.where(mask[:, :, None], labels, 0.0).astype(log_probs.dtype)
        targets = jax.lax.stop_gradient(targets)
        # A target of 0 on an impossible pdf costs nothing: 0 · −inf is 0 here.
        loss = -jnp.where(targets != 0, targets * log_probs, 0.0).sum((1, 2))
    else:
        hard = jnp.where(mask, labels, 0)[:, :, None]
        chosen = jnp.take_along_axis(log_probs, hard, axis=-1)
        loss = -jnp.where(mask, chosen[:, :, 0], 0.0).sum(1)
    return jnp.where(bad, jnp.nan, loss)


def f_smoothing(value: PerUtterance, frame_loss: PerUtterance, weight: float) -> PerUtterance:
    """(1 − w) · value − w · frame_loss, to be maximised: F-smoothing (Su et al. 2013).

    Keeps a sequence criterion from running away from the alignment where lattices are sparse.

    Args:
      value: f32[B], a sequence criterion's value (larger is better).
      frame_loss: f32[B], cross-entropy of the same outputs (smaller is better).
      weight: w, between 0 and 1; usually near 0.1. A traced one is not checked.

    Returns:
      f32[B].

    Raises:
      ValueError: a weight outside 0..1.
    """
    if isinstance(weight, jax.core.Tracer):
        weight = weight.astype(value.dtype)
    elif 0 <= weight <= 1:
        weight = float(weight)
    else:
        raise ValueError(f'The weight of F-smoothing must lie between 0 and 1; got {weight}.')
    return (1 - weight) * value - weight * frame_loss


def output_l2(logits: Scores, lengths: Lengths) -> PerUtterance:
    """½ Σ_t Σ_p logits² over valid frames: l2-regularize of Kaldi's chain-training.h.

    Args:
      logits: f32[B, T, P].
      lengths: i32[B]; frames at or after it contribute nothing, whatever they hold.

    Returns:
      f32[B], to be minimised; 0 at length 0; NaN, with gradient 0, where a valid frame is not
      finite or the length lies outside 0..T.

    Raises:
      ValueError: lengths that are no integers, logits that are not f32[B, T, P].
    """
    kept, bad = _finite(logits, lengths)
    return jnp.where(bad, jnp.nan, 0.5 * jnp.square(kept).sum((1, 2)))


def out_of_range(logits: Scores, lengths: Lengths, limit: float = 30.0) -> PerUtterance:
    """½ Σ_t Σ_p max(|logits| − limit, 0)² over valid frames.

    Kaldi's out-of-range-regularize (chain-training.h): keeps outputs where exp() is harmless.
    Kaldi looks at a random half of the frames and doubles the penalty; this looks at all.

    Args:
      logits: f32[B, T, P].
      lengths: i32[B]; frames at or after it contribute nothing, whatever they hold.
      limit: natural-log units.

    Returns:
      f32[B], to be minimised; 0 at length 0; NaN, with gradient 0, where a valid frame is not
      finite or the length lies outside 0..T.

    Raises:
      ValueError: lengths that are no integers, logits that are not f32[B, T, P].
    """
    kept, bad = _finite(logits, lengths)
    beyond = jnp.maximum(jnp.abs(kept) - jnp.asarray(limit, kept.dtype), 0.0)
    return jnp.where(bad, jnp.nan, 0.5 * jnp.square(beyond).sum((1, 2)))


def _finite(logits: Scores, lengths: Lengths) -> tuple[Scores, Valid]:
    """Logits, 0 in padding and bad utterances; and bool[B], which utterances are bad."""
    check_logits(logits)
    mask = frame_mask(logits, lengths)[:, :, None]
    bad = (mask & ~jnp.isfinite(logits)).any((1, 2)) | ~legal_lengths(logits, lengths)
    return jnp.where(mask & ~bad[:, None, None], logits, 0.0), bad
