"""Minimum Bayes risk: the expected accuracy of a path against a reference alignment.

sMBR counts frames whose state (pdf) is right, MPE frames or phones whose phone is right; they
differ only in the accuracy they are given. On a shared graph or on lattices.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from seqtrain import ops
from seqtrain.losses import validity
from seqtrain.losses.mmi import boosted, scaled
from seqtrain.losses.validity import Outcome
from seqtrain.ops import Graph
from seqtrain.ops.forward_backward import integers
from seqtrain.types import Labels, Lengths, Scores


def frame_accuracy(
    labels: Labels,
    num_pdfs: int,
    *,
    classes: Sequence[int] | None = None,
    silence: Sequence[int] = (),
    one_silence_class: bool = True,
    max_silence_error: float = 1.0,
    per_segment: bool = False,
) -> Scores:
    """What a path earns for being in pdf p in frame t, given the reference alignment.

    1 where the class of p is the class of the reference, else 0. Silence follows Kaldi
    (lattice-functions.cc): with `one_silence_class` any silence pdf is right wherever the
    reference is silence; without it a silence pdf is never right.

    Args:
      labels: i32[B, T], reference pdfs; −1 or anything else outside 0..P−1 (no reference) earns
        nothing.
      num_pdfs: P.
      classes: the class of every pdf, P integers: pdfs themselves for pdf accuracy (None), HMM
        states for state accuracy, phones for phone accuracy.
      silence: pdfs of silence.
      one_silence_class: see above.
      max_silence_error: what a silence pdf loses at most where the reference is not silent. Kaldi's
        boosted MMI has 0 (LatticeBoost in lattice-functions.cc, nnet3-discriminative-training):
        paths with more silence are not taken for rivals with more errors.
      per_segment: divides by the length of the reference segment (a run of one class), so that
        a wholly correct phone earns 1 instead of its duration: accuracy then counts phones.

    Returns:
      f32[B, T, P].

    Raises:
      ValueError: labels that are no integers [B, T], classes of another length than P, silence pdfs
        outside 0..P−1, a max_silence_error outside 0..1.
    """
    if not 0 <= max_silence_error <= 1:
        raise ValueError(f'max_silence_error must lie between 0 and 1; got {max_silence_error}.')
    labels = integers(labels, 'labels')
    if labels.ndim != 2:
        raise ValueError(f'labels must be [B, T]; got {labels.shape}.')
    is_silence = _silence_mask(silence, num_pdfs)
    kind = np.arange(num_pdfs) if classes is None else np.asarray(classes)
    if kind.shape != (num_pdfs,):
        raise ValueError(f'classes must hold one class for each of {num_pdfs} pdfs.')
    kind = np.unique(kind, return_inverse=True)[1]  # counted from 0: −1 below is no class
    if one_silence_class and is_silence.any():
        kind = np.where(is_silence, kind.max() + 1, kind)
    silent = jnp.asarray(is_silence)
    known = (labels >= 0) & (labels < num_pdfs)
    reference = jnp.where(known, jnp.asarray(kind)[jnp.where(known, labels, 0)], -1)
    right = (reference[:, :, None] == jnp.asarray(kind)[None, None, :]) & known[:, :, None]
    if not one_silence_class:
        right = right & ~silent[None, None, :]
    accuracy = right.astype(jnp.float32)
    speech = known & ~silent[jnp.where(known, labels, 0)]
    accuracy += jnp.where(
        speech[:, :, None] & silent[None, None, :] & ~right, 1 - max_silence_error, 0.0
    )
    return accuracy / _segment_lengths(reference)[:, :, None] if per_segment else accuracy


def _reference(labels: Labels, logits: Scores) -> jax.Array:
    """The labels as i32[B, T], after a look at what was given."""
    validity.check_logits(logits)
    labels = integers(labels, 'labels')
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f'logits must be [B, T, P] and labels [B, T]; got {logits.shape} and {labels.shape}.'
        )
    return labels


def _silence_mask(silence: Sequence[int], num_pdfs: int) -> np.ndarray:
    """bool[P], after a look at what was given."""
    if np.ndim(silence) != 1:
        raise ValueError(f'silence is a sequence of pdfs, such as [0]; got {silence!r}.')
    mask = np.zeros(num_pdfs, bool)
    if len(silence):
        pdfs = np.asarray(silence)
        if not np.issubdtype(pdfs.dtype, np.integer):
            raise ValueError(f'silence holds the numbers of pdfs, not {pdfs.dtype}: {silence!r}.')
        if pdfs.min() < 0 or pdfs.max() >= num_pdfs:
            raise ValueError(f'silence names a pdf outside 0..{num_pdfs - 1}: {tuple(silence)}.')
        mask[pdfs] = True
    return mask


def _segment_lengths(classes):
    """Length in frames of the run of equal classes around every frame -> f32[B, T]."""

    def one(row):
        change = jnp.zeros_like(row).at[1:].set(row[1:] != row[:-1])
        run = jnp.cumsum(change)
        return jax.ops.segment_sum(jnp.ones_like(row), run, row.shape[0])[run]

    return jax.vmap(one)(classes).astype(jnp.float32)


def bayes_risk(
    logits: Scores,
    lengths: Lengths,
    denominator: Graph,
    accuracy: Scores,
    *,
    leaky: float = 0.0,
    acoustic_scale: float = 1.0,
    log_priors: jax.Array | None = None,
    boost: float = 0.0,
    boost_accuracy: Scores | None = None,
    backend: str = 'auto',
) -> Outcome:
    """L = E_den[A], the expected accuracy under the denominator, to be maximised.

    ∂L/∂logits = κ γ_den(t, p) (E[A | p at t] − E[A]) (Gibson & Hain 2006; Kingsbury 2009; Povey
    2003): every row of a valid frame sums to 0. Computed by an expectation pass
    (`ops.expected_accuracy`). b > 0 takes the expectation over p(π) ∝ e^{κ·score(π) − b·A'(π)}, as
    if paths with errors were likelier than they are: modified MPE, with a margin (Heigold et al.
    2008), for networks that seldom err on the utterances they are trained on.

    Args:
      logits: f32[B, T, P], network outputs before any softmax.
      lengths: i32[B].
      denominator: shared or one per utterance.
      accuracy: f32[B, T, P], for instance from `frame_accuracy`.
      leaky, backend: see `ops.log_partition`.
      acoustic_scale: κ.
      log_priors: f32[P], subtracted from the logits (natural log).
      boost: b, without a derivative.
      boost_accuracy: f32[B, T, P], A' of the boost; None is `accuracy`.

    Returns:
      An `Outcome` whose numerator is the denominator's log-partition too (there is one graph, with
      the boost in it).
      Divide value by the frames (or phones) of the reference for a rate. An utterance without a
      path, or with NaN or +inf in valid frames, has valid=False, a reason, value 0 and
      gradient 0; the others are untouched.

    Raises:
      ValueError: shapes that do not fit together.
    """
    scores = scaled(logits, acoustic_scale, log_priors)
    margin = accuracy if boost_accuracy is None else boost_accuracy
    scores = boosted(scores, boost, jax.lax.stop_gradient(margin))
    value, log_z = ops.expected_accuracy(
        scores, lengths, denominator, accuracy, leaky=leaky, backend=backend
    )
    graphs = (denominator,) if leaky == 0 else ()
    log_z = jnp.where(jnp.isnan(value), jnp.nan, log_z)
    return validity.outcome(value, log_z, log_z, lengths, graphs)


def smbr(
    logits: Scores,
    lengths: Lengths,
    labels: Labels,
    denominator: Graph,
    *,
    states: Sequence[int] | None = None,
    silence: Sequence[int] = (),
    one_silence_class: bool = True,
    **options,
) -> Outcome:
    """State-level minimum Bayes risk: the expected number of frames whose state is right.

    E_den[Σ_t 1(state of path_t = state of label_t)] (Gibson & Hain 2006; Kingsbury 2009; silence
    as in Kaldi); derivatives as in `bayes_risk`.

    Args:
      logits, lengths, denominator: as in `bayes_risk`.
      labels: i32[B, T], reference pdfs.
      states: the HMM state of every pdf; None compares pdfs.
      silence, one_silence_class: as in `frame_accuracy`.
      **options: of `bayes_risk`.

    Returns:
      An `Outcome`; value lies between 0 and the number of frames.

    Raises:
      ValueError: as in `frame_accuracy` and `bayes_risk`.
    """
    accuracy = frame_accuracy(
        _reference(labels, logits),
        logits.shape[2],
        classes=states,
        silence=silence,
        one_silence_class=one_silence_class,
    )
    return bayes_risk(logits, lengths, denominator, accuracy, **options)


def mpe(
    logits: Scores,
    lengths: Lengths,
    labels: Labels,
    denominator: Graph,
    phones: Sequence[int],
    *,
    silence: Sequence[int] = (),
    one_silence_class: bool = True,
    per_phone: bool = True,
    **options,
) -> Outcome:
    """Minimum phone error: the expected phone accuracy, measured frame by frame.

    E_den[Σ_t 1(phone of path_t = phone of label_t) / (frames of the reference phone at t)].
    With `per_phone` a reference phone earns the fraction of its frames that carry the right phone
    (so A counts phones); without it A counts frames, Kaldi's `mpfe`. Differs from Povey's (2003)
    raw phone accuracy in that insertions cost only through the frames they take: a graph without
    phone boundaries cannot say more.

    Args:
      logits, lengths, denominator: as in `bayes_risk`.
      labels: i32[B, T], reference pdfs.
      phones: the phone of every pdf, P integers.
      silence, one_silence_class: as in `frame_accuracy`.
      per_phone: see above.
      **options: of `bayes_risk`.

    Returns:
      An `Outcome`; value lies between 0 and the number of phones (or frames).

    Raises:
      ValueError: as in `frame_accuracy` and `bayes_risk`.
    """
    # Padding must not lengthen the last phone.
    labels = _reference(labels, logits)
    labels = jnp.where(validity.frame_mask(logits, lengths), labels, -1)
    accuracy = frame_accuracy(
        labels,
        logits.shape[2],
        classes=phones,
        silence=silence,
        one_silence_class=one_silence_class,
        per_segment=per_phone,
    )
    return bayes_risk(logits, lengths, denominator, accuracy, **options)
