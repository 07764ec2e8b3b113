"""Cached outer derivatives, re-used for several passes, their frames shuffled across utterances.

    lattices ─► ∂L/∂a_t(k) of whole utterances, kept ─► frames of a block, shuffled ─► minibatches
                                                         windows of features ─► the network ─► Q

With the derivatives g frozen, L has the gradient of Q(θ) = Σ_{t,k} g_t(k) · a_t(k; θ), an ordinary
weighted sum over frames, so that a minibatch may hold frames of many utterances as in training by
cross-entropy: the cure for minibatches that are a few whole utterances. The price is the
derivatives' age, s2. Optionally they are moved to the newer outputs a' by their own curvature,
g − c ⊙ (a' − a) with c = κ²[γ_den(1−γ_den) − γ_num(1−γ_num)], without terms across frames and pdfs
(so that the rows no longer sum to 0).

The derivatives are taken without dropout, of the features as they are. The passes over the frames
have dropout, but see no masks, warps and shifts either (`data.spec_augment`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqtrain import exchange, losses
from seqtrain.lattices import shuffled_frames
from seqtrain.training import steps
from seqtrain.training.steps import DeviceBatch, Network, SequenceConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrameBatch:
    """A minibatch of single frames; where `weight` is 0 there is none.

    Attributes:
      windows: f32[n, W, F], features around each frame.
      starts, ends: i32[n], where the utterance begins and ends in the window.
      derivative: f32[n, P], ∂L/∂a.
      logits, curvature: f32[n, P], for the correction, else None.
      labels: i32[n], an alignment; −1: none.
      value: f32[n], the frame's share of the criterion when the derivative was taken.
      weight: f32[n], 1 or 0.
      seed: u32[], of dropout.
    """

    windows: Any
    starts: Any
    ends: Any
    derivative: Any
    logits: Any
    curvature: Any
    labels: Any
    value: Any
    weight: Any
    seed: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Outer:
    """The outer derivatives of one utterance; see `FrameBatch`.

    Attributes:
      value: the criterion.
      derivative: f32[U, P].
      logits, curvature: f32[U, P] or None.
    """

    value: float
    derivative: np.ndarray
    logits: np.ndarray | None = None
    curvature: np.ndarray | None = None


def make_outer(network: Network, config: SequenceConfig, correction: bool):
    """Compiles `outer(params, batch) -> (Outcome, derivative, logits, curvature, occupancies)`.

    The criterion alone, without regularisers, on batches with lattices; derivative f32[B, U, P] is
    that of each utterance's value with respect to its logits. Logits and curvature are None unless
    there is to be a correction. Occupancies: see `steps.occupancies`.
    """

    @jax.jit
    def outer(params, batch: DeviceBatch):
        logits = network(params, batch.features, batch.lengths)
        lengths = network.output_lengths(batch.lengths)

        def total(a):
            out = steps.outcome(a, lengths, batch, batch.denominators, config)
            return out.value.sum(), out

        derivative, out = jax.grad(total, has_aux=True)(logits)
        curvature = None
        if correction:
            curvature = _curvature(out, derivative, config.acoustic_scale)
        kept = jnp.where(out.valid, lengths, 0)
        return (
            out.replace(occupancy=None),
            derivative,
            logits if correction else None,
            curvature,
            steps.occupancies(config.acoustic_scale * logits, kept, batch),
        )

    return outer


def _curvature(out: losses.Outcome, derivative: jax.Array, scale: float) -> jax.Array:
    """κ²[γ_den(1−γ_den) − γ_num(1−γ_num)], 0 where there is no derivative."""
    if out.occupancy is None:
        raise ValueError('Only mmi has numerator occupancies; set config.lattice.correction=False.')
    num = out.occupancy
    den = num - derivative / scale
    kept = (derivative != 0).any(-1, keepdims=True)
    return jnp.where(kept, scale**2 * (den * (1 - den) - num * (1 - num)), 0.0)


def make_frame_step(network: Network, config: SequenceConfig, clip_norm: float):
    """Compiles `step(params, batch: FrameBatch, log_prior, None) -> (gradients, metrics)`.

    Minus Q per frame, with the sequence criterion's regularisers.
    """
    centre = _left(network) // network.subsampling

    def objective(params, batch: FrameBatch, log_prior):
        key = jax.random.key(batch.seed, impl='rbg')
        logits = network(params, batch.windows, batch.ends, key, batch.starts)[:, centre]
        frames = jnp.maximum(batch.weight.sum(), 1)
        outer = batch.derivative
        if batch.curvature is not None:
            moved = jax.lax.stop_gradient(logits) - batch.logits
            outer = outer - batch.curvature * moved
        outer = jax.lax.stop_gradient(outer) * batch.weight[:, None]
        loss = -(outer * logits).sum() / frames
        rows = logits[:, None], batch.weight.astype(jnp.int32)
        if config.output_l2:
            loss += config.output_l2 * losses.output_l2(*rows).sum() / frames
        if config.ce_weight:
            scores = rows[0] + log_prior
            ce = losses.cross_entropy(scores, batch.labels[:, None], rows[1]).sum()
            loss += config.ce_weight * ce / frames
        return loss, jnp.abs(outer.sum(-1)).max() / frames

    @jax.jit
    def step(params, batch: FrameBatch, log_prior, _):
        gradients, row_sum = jax.grad(objective, has_aux=True)(params, batch, log_prior)
        gradients, norm = exchange.clip(gradients, clip_norm or jnp.inf)
        frames = batch.weight.sum()
        value = (batch.value * batch.weight).sum() / jnp.maximum(frames, 1)
        return gradients, {
            'loss': -value,
            'value': value,
            'frames': frames,
            'gradient_norm': norm,
            'row_sum': row_sum,
        }

    return step


def _left(network: Network) -> int:
    """Input frames before a window's own: its context, rounded up to whole output frames."""
    return network.subsampling * -(-network.context[0] // network.subsampling)


@dataclasses.dataclass(frozen=True, eq=False)
class FrameBatcher:
    """Cuts blocks of utterances into minibatches of frames.

    Attributes:
      network: for its context.
      features: f32[T, F] of every utterance.
      labels: an alignment per utterance.
      num_pdfs: P.
      correction: whether derivatives come with logits and curvature.
    """

    network: Network
    features: Sequence[np.ndarray]
    labels: Sequence[np.ndarray]
    num_pdfs: int
    correction: bool = False

    @property
    def width(self) -> int:
        """Input frames of a window."""
        return _left(self.network) + 1 + self.network.context[1]

    def minibatches(
        self, block: Sequence[tuple[int, Outer]], count: int, room: int, rng: np.random.Generator
    ) -> list[tuple[np.ndarray, FrameBatch]]:
        """All frames of a block, each once, in `count` minibatches of like size.

        Args:
          block: utterances (their numbers) and derivatives.
          count: of minibatches; some are empty where there are too few frames.
          room: frames that any of them may come to have; shapes are quarters of it.
          rng: shuffles.

        Returns:
          Each minibatch with the members of the block that its frames come from.
        """
        lengths = [len(outer.derivative) for _, outer in block]
        size = -(-sum(lengths) // count)
        quarter = -(-room // 4)
        padded = quarter * max(1, -(-size // quarter))
        drawn = list(shuffled_frames(lengths, size, rng)) if size else []
        seeds = rng.integers(1 << 32, size=count, dtype=np.uint32)
        empty = np.zeros(0, int)
        drawn += [(empty, empty)] * (count - len(drawn))
        return [
            (members, self._minibatch(block, members, frames, padded, seed))
            for (members, frames), seed in zip(drawn, seeds, strict=True)
        ]

    def _minibatch(self, block, members, frames, size: int, seed: np.uint32) -> FrameBatch:
        """Frames `frames[i]` of `block[members[i]]`, padded to `size`."""
        left, factor = _left(self.network), self.network.subsampling
        dim = self.features[block[0][0] if block else 0].shape[1]
        windows = np.zeros((size, self.width, dim), np.float32)
        starts, ends = np.zeros((2, size), np.int32)
        labels = np.full(size, -1, np.int32)
        value, weight = np.zeros((2, size), np.float32)
        for row, (member, frame) in enumerate(zip(members, frames, strict=True)):
            index, outer = block[member]
            features = self.features[index]
            begin = factor * int(frame) - left
            low, high = max(0, begin), min(len(features), begin + self.width)
            starts[row], ends[row] = max(0, -begin), len(features) - begin
            windows[row, low - begin : high - begin] = features[low:high]
            labels[row] = self.labels[index][frame]
            value[row] = outer.value / len(outer.derivative)
            weight[row] = 1.0

        def rows(name: str) -> np.ndarray:
            taken = np.zeros((size, self.num_pdfs), np.float32)
            for row, (member, frame) in enumerate(zip(members, frames, strict=True)):
                taken[row] = getattr(block[member][1], name)[frame]
            return taken

        return FrameBatch(
            windows,
            starts,
            ends,
            rows('derivative'),
            rows('logits') if self.correction else None,
            rows('curvature') if self.correction else None,
            labels,
            value,
            weight,
            seed,
        )
