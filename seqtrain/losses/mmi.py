"""Maximum mutual information, lattice-free or on lattices."""

from __future__ import annotations

import jax.numpy as jnp

from seqtrain import ops
from seqtrain.losses import validity
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
    backend: str = 'auto',
) -> Outcome:
    """L = log Σ_num e^{κ·score} − c · log Σ_den e^{κ·score}, to be maximised.

    ∂L/∂logits = κ (γ_num − c·γ_den): with c = 1 every row of a valid frame sums to 0, so adding a
    constant to a frame changes nothing and no log-softmax is needed (Povey et al. 2016). Whether
    the denominator is one shared graph (lattice-free) or one lattice per utterance makes no
    difference here.

    Args:
      logits: f32[B, T, P], network outputs before any softmax.
      lengths: i32[B], valid frames.
      numerators: one graph per utterance (`ops.pack_batch`).
      denominator: shared (`ops.pack`) or one per utterance.
      leaky: coefficient of the leaky HMM in the denominator (see `ops.log_partition`).
      acoustic_scale: κ.
      denominator_scale: c.
      backend: see `ops.log_partition`.

    Returns:
      An `Outcome`. value ≤ 0 where the numerator's paths are among the denominator's and c = 1.
      An infeasible utterance has valid=False, a reason, value 0 and gradient 0; the others are
      untouched.

    Raises:
      ValueError: shapes that do not fit together.
    """
    scores = acoustic_scale * logits if acoustic_scale != 1.0 else logits
    num = ops.log_partition(scores, lengths, numerators, backend=backend)
    den = ops.log_partition(scores, lengths, denominator, leaky=leaky, backend=backend)
    # inf − inf must not become a NaN that a mask cannot take out of the gradient.
    ready = jnp.isfinite(num) & jnp.isfinite(den)
    value = jnp.where(ready, num, 0.0) - denominator_scale * jnp.where(ready, den, 0.0)
    return validity.outcome(value, num, den, lengths, (numerators, denominator))
