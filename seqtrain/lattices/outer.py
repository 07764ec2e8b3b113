"""Outer derivatives: ∂L/∂a_t(k) of a criterion on lattices, on the host, to be cached and re-used.

With them frozen, L's gradient is that of Q(θ) = Σ_{t,k} (∂L/∂a_t(k)) · a_t(k; θ): an ordinary
weighted frame update, so frames of many utterances can be shuffled into one minibatch. The price is
their age (s2). Plain NumPy, for the threads that make the lattices while the device works; the
criteria inside a jitted step are those of `seqtrain.losses`, with the same values.

κ is the acoustic scale, γ an occupancy, A the accuracy of a path (formulas: Povey 2005; Vesely et
al. 2013; the curvature is the occupancies' own variance, without terms across frames).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from seqtrain.fsa.fsa import NEG_INF
from seqtrain.lattices.lattice import Lattice, LatticeError
from seqtrain.lattices.operations import check_scales, occupancies, path_sums


@dataclasses.dataclass(frozen=True, eq=False)
class OuterDerivative:
    """A criterion's value and derivative for one utterance, and where they were taken.

    Attributes:
      value: of the criterion; to be maximised.
      derivative: f32[T, P], ∂L/∂a_t(k) with respect to the logits; rows sum to 0.
      logits: f32[T, P], the a_t(k) at which it was taken.
      curvature: f32[T, P], −∂²L/∂a_t(k)² without terms across frames; None where not known.
    """

    value: float
    derivative: np.ndarray
    logits: np.ndarray
    curvature: np.ndarray | None = None

    def corrected(self, logits: np.ndarray) -> np.ndarray:
        """f32[T, P]: the derivative moved to newer logits, to first order.

        g(a) − c ⊙ (a' − a) with the curvature c: one forward pass instead of new lattices.

        Raises:
          ValueError: no curvature (only MMI has it), or logits of another shape.
        """
        if self.curvature is None:
            raise ValueError('No curvature was kept; only MMI derivatives can be corrected.')
        if logits.shape != self.logits.shape:
            raise ValueError(f'Logits of shape {logits.shape}, not {self.logits.shape}.')
        return self.derivative - self.curvature * (logits - self.logits)


def mmi(
    numerator: Lattice,
    denominator: Lattice,
    logits: np.ndarray,
    *,
    priors: np.ndarray | None = None,
    boost: float = 0.0,
    accuracy: np.ndarray | None = None,
    drop_below: float | None = None,
) -> OuterDerivative:
    """(Boosted) MMI: log Σ_num − log Σ_den exp(−b·A), derivative κ(γ_num − γ_den).

    Args:
      numerator, denominator: lattices of the utterance; κ is their `acoustic_scale`.
      logits: f32[T, P], the network's outputs now; the lattices are rescored with them.
      priors: f32[P], log-priors to take off the logits (hybrid models).
      boost: b; needs `accuracy`.
      accuracy: f32[T, P], one row of `losses.frame_accuracy`.
      drop_below: no derivative in frames where numerator and denominator share no more mass than
        this (see `losses.lf_mmi`): what such a frame says is that the lattice is too small or the
        transcript wrong. exp(−lattice beam) is what a search may have left out; None keeps all.

    Raises:
      LatticeError: a lattice that does not fit the logits, or lattices of two acoustic scales.
      ValueError: a boost without accuracies.
    """
    check_scales(numerator, denominator)
    if boost and accuracy is None:
        raise ValueError('A boost needs accuracies; see losses.frame_accuracy.')
    scores = _scores(logits, priors)
    scale = denominator.acoustic_scale
    above = numerator.rescore(scores)
    rivals = scores
    if accuracy is not None:
        rivals = scores - np.float32(boost / scale) * accuracy
    below = denominator.rescore(rivals)
    num, den = (occupancies(lattice, logits.shape[1]) for lattice in (above, below))
    derivative = scale * (num - den)
    curvature = scale**2 * (den * (1 - den) - num * (1 - num))
    if drop_below is not None:
        disjoint = np.minimum(num, den).sum(axis=1) <= drop_below
        derivative[disjoint] = 0.0
        curvature[disjoint] = 0.0
    return OuterDerivative(
        path_sums(above).total - path_sums(below).total,
        derivative.astype(np.float32),
        np.asarray(logits, np.float32),
        curvature.astype(np.float32),
    )


def expected_accuracy(
    denominator: Lattice,
    logits: np.ndarray,
    accuracy: np.ndarray,
    *,
    priors: np.ndarray | None = None,
) -> OuterDerivative:
    """sMBR, or its phone relative: E_den[A], derivative κ·γ_den(t,k)·(E[A | k at t] − E[A]).

    By one expectation pass over the lattice (probability and first moment).

    Args:
      denominator: lattice of the utterance; κ is its `acoustic_scale`.
      logits: f32[T, P], the network's outputs now.
      accuracy: f32[T, P], what pdf k at frame t adds to a path's accuracy, for
        instance from `losses.frame_accuracy`.
      priors: f32[P], log-priors to take off the logits.

    Raises:
      LatticeError: a lattice that does not fit the logits.
    """
    lattice = denominator.rescore(_scores(logits, priors))
    lattice = lattice.select(lattice.weight > NEG_INF)  # every state left has a path
    gain = np.zeros(lattice.num_arcs)
    emitting = lattice.pdf >= 0
    frames = lattice.time[lattice.src[emitting]]
    gain[emitting] = accuracy[frames, lattice.pdf[emitting]]
    sums = path_sums(lattice)
    forward, backward = _moments(lattice, gain, sums)
    expected = float(backward[0])
    through = forward[lattice.src] + gain + backward[lattice.dst]
    mass = sums.posteriors() * (through - expected)
    derivative = np.zeros(logits.shape)
    np.add.at(derivative, (frames, lattice.pdf[emitting]), mass[emitting])
    return OuterDerivative(
        expected,
        (lattice.acoustic_scale * derivative).astype(np.float32),
        np.asarray(logits, np.float32),
    )


def shuffled_frames(
    lengths: Sequence[int], batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Minibatches of frames drawn across utterances without replacement.

    Args:
      lengths: frames of each utterance with cached derivatives.
      batch_size: frames in a minibatch; the last one may be smaller.
      rng: seeds the order.

    Yields:
      Utterance numbers and frame numbers, i64[n] each.
    """
    utterance = np.repeat(np.arange(len(lengths)), lengths)
    frame = np.concatenate([np.arange(n) for n in lengths]) if len(lengths) else utterance
    order = rng.permutation(len(utterance))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield utterance[chosen], frame[chosen]


def _scores(logits: np.ndarray, priors: np.ndarray | None) -> np.ndarray:
    scores = np.asarray(logits, np.float32)
    if not np.isfinite(scores).all():
        raise LatticeError('Non-finite logits; leave the utterance out and count it.')
    return scores if priors is None else scores - np.asarray(priors, np.float32)


def _moments(lattice: Lattice, gain: np.ndarray, sums) -> tuple[np.ndarray, np.ndarray]:
    """Mean accuracy of the paths from the start to each state, and from each state to the end."""
    forward, backward = np.zeros((2, lattice.num_states))
    weight = sums.through - sums.alpha[lattice.src] - sums.beta[lattice.dst]
    # Shares of an arc in its destination's alpha, and in its source's beta.
    into = np.exp(sums.alpha[lattice.src] + weight - sums.alpha[lattice.dst])
    out = np.exp(weight + sums.beta[lattice.dst] - sums.beta[lattice.src])
    layers = lattice.layers
    for arcs in layers:
        src, dst = lattice.src[arcs], lattice.dst[arcs]
        np.add.at(forward, dst, into[arcs] * (forward[src] + gain[arcs]))
    for arcs in reversed(layers):
        src, dst = lattice.src[arcs], lattice.dst[arcs]
        np.add.at(backward, src, out[arcs] * (backward[dst] + gain[arcs]))
    return forward, backward
