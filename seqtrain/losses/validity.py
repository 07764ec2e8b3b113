"""Which utterances a criterion can use, and why not. No criteria here."""

from __future__ import annotations

import dataclasses
import enum

import jax
import jax.numpy as jnp

from seqtrain.ops import NEVER, Graph
from seqtrain.ops.forward_backward import check_array, integers
from seqtrain.types import Lengths, PerUtterance, Scores, Valid


class Reason(enum.IntEnum):
    """Why an utterance contributes nothing."""

    OK = 0
    TOO_SHORT = 1
    """Fewer frames than the shortest path of its graph; `short_by` says how many are missing."""
    NO_PATH = 2
    """No path through a graph with that many frames, or all of them have probability 0."""
    NON_FINITE = 3
    """NaN or +inf in a valid frame, a length outside 0..T, or a graph that names a pdf the network
    does not have."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a sequence criterion gives for every utterance; a pytree.

    Attributes:
      value: f32[B], the criterion, to be maximised; 0 where invalid.
      valid: bool[B]; an invalid utterance has value 0 and gradient 0.
      reason: i32[B], a `Reason`.
      short_by: i32[B], missing frames where the reason is TOO_SHORT, else 0.
      numerator: f32[B], log-partition of the numerator as it came (−inf, NaN included).
      denominator: f32[B], log-partition of the denominator as it came.
      occupancy: f32[B, T, P], numerator occupancies where the criterion has them (soft labels
        for a cross-entropy branch), else None; 0 where invalid; no gradient.
    """

    value: PerUtterance
    valid: Valid
    reason: jax.Array
    short_by: jax.Array
    numerator: PerUtterance
    denominator: PerUtterance
    occupancy: Scores | None = None

    def replace(self, **changes) -> Outcome:
        """A copy with other attributes."""
        return dataclasses.replace(self, **changes)


def outcome(
    value: PerUtterance,
    numerator: PerUtterance,
    denominator: PerUtterance,
    lengths: Lengths,
    graphs: tuple[Graph, ...],
    occupancy: Scores | None = None,
) -> Outcome:
    """Judges every utterance by its two log-partitions and the graphs they came from.

    Args:
      value: f32[B], the criterion before masking.
      numerator, denominator: f32[B], log-partitions (the same array twice if there is one).
      lengths: i32[B].
      graphs: all graphs whose shortest path must fit.
      occupancy: f32[B, T, P] or None, before masking.

    Returns:
      An `Outcome`, with value, gradient and occupancy masked.
    """
    lengths = integers(lengths, 'lengths')
    shortest = jnp.zeros_like(lengths)
    for graph in graphs:
        shortest = jnp.maximum(shortest, graph.min_frames)
    short_by = jnp.where(shortest < NEVER, jnp.maximum(shortest - lengths, 0), 0)
    both = numerator + denominator
    reason = jnp.where(jnp.isfinite(both), Reason.OK, Reason.NO_PATH)
    reason = jnp.where(short_by > 0, Reason.TOO_SHORT, reason)
    broken = jnp.isnan(numerator) | jnp.isnan(denominator) | (both == jnp.inf)
    reason = jnp.where(broken, Reason.NON_FINITE, reason).astype(jnp.int32)
    valid = reason == Reason.OK
    if occupancy is not None:
        occupancy = jnp.where(valid[:, None, None], occupancy, 0.0)
    return Outcome(
        value=jnp.where(valid, value, 0.0),
        valid=valid,
        reason=reason,
        short_by=jnp.where(reason == Reason.TOO_SHORT, short_by, 0),
        numerator=numerator,
        denominator=denominator,
        occupancy=occupancy,
    )


def check_logits(logits: Scores) -> None:
    """Raises ValueError unless the logits are f32[B, T, P]: there sums over frames are safe."""
    check_array(logits, 'logits')
    if logits.ndim != 3:
        raise ValueError(f'logits must be [B, T, P]; got {logits.shape}.')
    if logits.dtype != jnp.float32:
        raise ValueError(f'logits must be float32; got {logits.dtype}. Cast them first.')


def clean_logits(logits: Scores, mask: jax.Array) -> tuple[Scores, Valid]:
    """What a softmax over pdfs can take, so that no gradient is NaN.

    Args:
      logits: f32[B, T, P].
      mask: bool[B, T], the frames that count.

    Returns:
      The logits, 0 in frames that do not count and throughout an utterance with a frame that has no
      softmax (NaN, +inf, −inf for every pdf); and bool[B], which utterances those are.
    """
    bad = (mask & ~jnp.isfinite(logits.max(-1))).any(1)
    return jnp.where((mask & ~bad[:, None])[:, :, None], logits, 0.0), bad


def frame_mask(scores: Scores, lengths: Lengths):
    """bool[B, T], True in valid frames.

    Raises:
      ValueError: lengths that are no integers, or not one for each utterance.
    """
    lengths = integers(lengths, 'lengths')
    if lengths.shape != scores.shape[:1]:
        raise ValueError(f'lengths must be {scores.shape[:1]}; got {lengths.shape}.')
    return jnp.arange(scores.shape[1])[None, :] < lengths[:, None]


def legal_lengths(scores: Scores, lengths: Lengths) -> Valid:
    """bool[B], where a length lies within 0..T."""
    lengths = integers(lengths, 'lengths')
    return (lengths >= 0) & (lengths <= scores.shape[1])
