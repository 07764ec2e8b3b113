"""What a replica's device computes for one batch: forward, outer derivatives, back-propagation.

    logits a_t(k) ── criterion ──► outer derivatives ∂L/∂a_t(k) ── vjp ──► gradients

The two halves are kept apart, as in the source: the criterion never sees the network, and the
outer derivatives can be looked at (their rows sum to zero) before they are propagated.

The network's outputs are log-likelihoods up to a constant per frame, log p(k|x) − log prior(k):
cross-entropy is taken on softmax(logits + log_prior), so the same outputs serve alignment, MMI
and decoding and nothing has to be converted between stages.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from seqtrain import exchange, losses, models, ops

Params = Any
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Network:
    """A model without its parameters: what all replicas share.

    `context` is the number of input frames before and after its own that an output depends on.
    """

    graphdef: nnx.GraphDef
    subsampling: int
    context: tuple[int, int]

    @classmethod
    def make(cls, model: models.Tdnn | models.Dnn) -> tuple['Network', Params]:
        """Splits a model into the shared part and its parameters (a pytree)."""
        graphdef, params = nnx.split(model)
        return cls(graphdef, model.subsampling, model.context), nnx.to_pure_dict(params)

    def __call__(
        self, params: Params, features, lengths, key=None, starts=None
    ) -> Float[Array, 'B U P']:
        model = nnx.merge(self.graphdef, params)
        return model(features, lengths, key, starts)

    def output_lengths(self, lengths: Int[Array, 'B']) -> Int[Array, 'B']:
        return models.subsampled_lengths(lengths, self.subsampling)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeviceBatch:
    """One batch as the device sees it; padding rows have length 0.

    Attributes:
      features: f32[B, T, F].
      lengths: i32[B], input frames.
      labels: i32[B, U], an alignment; −1: no label.
      numerators: packed numerator graphs.
      seed: u32[], of dropout.
      denominators: packed denominator lattices; None where all share the lattice-free graph.
    """

    features: Any  # NumPy on the host, jax.Array on a device
    lengths: Any
    labels: Any
    numerators: ops.Graph
    seed: Any
    denominators: ops.Graph | None = None


Criterion = Callable[[jax.Array, jax.Array, DeviceBatch], tuple[jax.Array, Metrics]]


def cross_entropy(log_prior: Float[Array, 'P']) -> Criterion:
    """Frame-level cross-entropy per frame against `batch.labels`."""

    def criterion(logits, lengths, batch):
        total = losses.cross_entropy(logits + log_prior, batch.labels, lengths).sum()
        frames = _frames(lengths)
        return total / jnp.maximum(frames, 1), {'frames': frames}

    return criterion


@dataclasses.dataclass(frozen=True)
class SequenceConfig:
    """The criterion of the sequence stage and the weights of its terms.

    Attributes:
      criterion: 'mmi', 'smbr' (frames with the right pdf) or 'mpe' (right phones), on the shared
        denominator or on the batch's lattices.
      phone_of_pdf: the phone of every pdf, phone 0 silence; for boosts and 'mpe'.
      state_of_pdf: the HMM state of every pdf: 'smbr' counts frames in the right state, whether the
        pdf is the one that enters it or loops, and whatever the context; empty: the right pdf.
      mmi_weight: w of 'smbr' and 'mpe' smoothed by MMI, L_sequence = L_risk + w·L_MMI, as HTK can
        smooth MPE towards MMI's estimates (HTK book 3.4, section 8.7, MMIPRIOR); the criterion's
        value is then the sum.
      boost: b of boosted MMI; 0 is plain MMI.
      risk_boost: b of 'smbr' and 'mpe', see `losses.bayes_risk`: of the same accuracy as `boost`.
      max_silence_error: of either, see `losses.frame_accuracy`; 1 boosts silence like any phone.
      leaky: Kaldi's leaky-HMM coefficient; 0 is exact.
      ce_weight: λ of F-smoothing, L = L_sequence + λ·L_CE (Su et al. 2013), per frame.
      output_l2: weight of ½·‖logits‖² per frame.
      acoustic_scale: κ, on the logits.
      one_silence_class: any silence pdf is right where the reference is silent; else never.
      drop_below: see `losses.lf_mmi`; None keeps all frames.
    """

    criterion: str = 'mmi'
    phone_of_pdf: tuple[int, ...] = ()
    state_of_pdf: tuple[int, ...] = ()
    mmi_weight: float = 0.0
    boost: float = 0.0
    risk_boost: float = 0.0
    max_silence_error: float = 0.0
    leaky: float = 0.0
    ce_weight: float = 0.0
    output_l2: float = 0.0
    acoustic_scale: float = 1.0
    one_silence_class: bool = True
    drop_below: float | None = None

    def __post_init__(self):
        if self.criterion not in ('mmi', 'smbr', 'mpe'):
            raise ValueError(f'criterion is {self.criterion!r}; choose mmi, smbr or mpe.')
        for name in ('mmi_weight', 'risk_boost', 'ce_weight', 'output_l2'):
            if not getattr(self, name) >= 0:
                raise ValueError(f'{name} is {getattr(self, name)}; it must not be negative.')
        if not 0 <= self.max_silence_error <= 1:
            raise ValueError(
                f'max_silence_error is {self.max_silence_error}; choose one between 0 and 1.'
            )
        for name in ('mmi_weight', 'risk_boost'):
            if self.criterion == 'mmi' and getattr(self, name):
                raise ValueError(f"{name} belongs to smbr and mpe; the criterion is 'mmi' itself.")
        if self.criterion == 'mmi' or self.mmi_weight:
            return
        for name, value in (('boost', self.boost), ('drop_frames', self.drop_below is not None)):
            if value:
                raise ValueError(
                    f'{name} belongs to mmi; the criterion is {self.criterion!r} and mmi_weight 0.'
                )


def sequence(
    log_prior: Float[Array, 'P'], denominator: ops.Graph | None, config: SequenceConfig
) -> Criterion:
    """Minus the sequence criterion per frame, with its regularisers.

    An utterance that the criterion masks is left out of all terms.

    Args:
      log_prior: for the cross-entropy of F-smoothing.
      denominator: shared by all utterances; None takes the batch's lattices.
      config: see there.
    """

    def criterion(logits, lengths, batch):
        graph = batch.denominators if denominator is None else denominator
        out = outcome(logits, lengths, batch, graph, config)
        kept = jnp.where(out.valid, lengths, 0)
        frames = _frames(kept)
        scale = 1.0 / jnp.maximum(frames, 1)
        value = out.value.sum() * scale
        loss = -value
        if config.output_l2:
            loss += config.output_l2 * losses.output_l2(logits, kept).sum() * scale
        if config.ce_weight:
            ce = losses.cross_entropy(logits + log_prior, batch.labels, kept).sum()
            loss += config.ce_weight * ce * scale
        metrics = {'value': value, 'frames': frames, 'valid': out.valid, 'reason': out.reason}
        if denominator is None:
            metrics |= occupancies(config.acoustic_scale * logits, kept, batch)
        return loss, metrics

    return criterion


def occupancies(scores, lengths, batch) -> Metrics:
    """Occupancies per frame of both lattices of a batch, 1 if it is sound; no gradient.

    `rival_occupancy` is what the denominator has beyond the numerator, Σ_p max(γ_den − γ_num, 0):
    near 0 the lattices have no more to teach (Kaldi's counts per frame are after such a
    cancellation, too).
    """
    scores = jax.lax.stop_gradient(scores)
    num, den = (
        ops.occupancies(scores, lengths, graph)[1]
        for graph in (batch.numerators, batch.denominators)
    )
    frames = jnp.maximum(lengths.sum(), 1)
    return {
        'numerator_occupancy': num.sum() / frames,
        'denominator_occupancy': den.sum() / frames,
        'rival_occupancy': jnp.maximum(den - num, 0).sum() / frames,
    }


def outcome(logits, lengths, batch, denominator, config: SequenceConfig) -> losses.Outcome:
    """What the criterion alone says of every utterance."""
    if config.criterion == 'mmi':
        return _mmi(logits, lengths, batch, denominator, config)
    risk = _risk(logits, lengths, batch, denominator, config)
    if not config.mmi_weight:
        return risk
    mmi = _mmi(logits, lengths, batch, denominator, config)
    valid = risk.valid & mmi.valid
    value = jnp.where(valid, risk.value + config.mmi_weight * mmi.value, 0.0)
    reason = jnp.where(risk.valid, mmi.reason, risk.reason)
    return mmi.replace(value=value, valid=valid, reason=reason, occupancy=None)


def _risk(logits, lengths, batch, denominator, config: SequenceConfig) -> losses.Outcome:
    """Expected accuracy: sMBR or MPE."""
    phones = config.phone_of_pdf
    options = {
        'silence': _silence(phones),
        'one_silence_class': config.one_silence_class,
        'boost': config.risk_boost,
        'boost_accuracy': _right_phones(batch.labels, config) if config.risk_boost else None,
        **_common(config),
    }
    if config.criterion == 'smbr':
        states = config.state_of_pdf or None
        return losses.smbr(logits, lengths, batch.labels, denominator, states=states, **options)
    return losses.mpe(logits, lengths, batch.labels, denominator, phones, **options)


def _mmi(logits, lengths, batch, denominator, config: SequenceConfig) -> losses.Outcome:
    """MMI, boosted or not."""
    return losses.lf_mmi(
        logits,
        lengths,
        batch.numerators,
        denominator,
        boost=config.boost,
        accuracy=_right_phones(batch.labels, config) if config.boost else None,
        drop_below=config.drop_below,
        **_common(config),
    )


def _right_phones(labels: Int[Array, 'B U'], config: SequenceConfig) -> Float[Array, 'B U P']:
    """Frames with the right phone: what a boost takes from a path."""
    phones = config.phone_of_pdf
    return losses.frame_accuracy(
        labels,
        len(phones),
        classes=phones,
        silence=_silence(phones),
        max_silence_error=config.max_silence_error,
    )


def _silence(phones: tuple[int, ...]) -> list[int]:
    """The pdfs of silence, which is phone 0."""
    return [pdf for pdf, phone in enumerate(phones) if phone == 0]


def _common(config: SequenceConfig) -> dict[str, Any]:
    return {'leaky': config.leaky, 'acoustic_scale': config.acoustic_scale}


def make_step(network: Network, make_criterion: Callable[..., Criterion], clip_norm: float):
    """Compiles `step(params, batch, *args) -> (gradients, metrics)`.

    Args:
      network: the model.
      make_criterion: called with `args` inside the compiled step, so that priors and graphs are
        arguments and not constants: changing them compiles nothing anew.
      clip_norm: bound on the gradients' global norm; 0 turns clipping off.

    Returns:
      The jitted step. `metrics` holds the loss per frame, the gradient norm before clipping, the
      largest absolute row sum of the outer derivatives and what the criterion reports.
    """

    @jax.jit
    def step(params, batch: DeviceBatch, *args):
        lengths = network.output_lengths(batch.lengths)
        logits, back_propagate = jax.vjp(
            lambda p: network(
                p, batch.features, batch.lengths, jax.random.key(batch.seed, impl='rbg')
            ),
            params,
        )
        criterion = make_criterion(*args)
        (loss, metrics), outer = jax.value_and_grad(criterion, has_aux=True)(logits, lengths, batch)
        (gradients,) = back_propagate(outer)
        gradients, norm = exchange.clip(gradients, clip_norm or jnp.inf)
        metrics |= {
            'loss': loss,
            'gradient_norm': norm,
            'row_sum': jnp.abs(outer.sum(-1)).max(),
        }
        return gradients, metrics

    return step


def make_forward(network: Network):
    """Compiles `forward(params, features, lengths) -> (logits, output lengths)`."""

    @jax.jit
    def forward(params, features, lengths):
        return network(params, features, lengths), network.output_lengths(lengths)

    return forward


def make_align(network: Network):
    """Compiles `align(params, batch) -> (score f32[B], pdfs i32[B, U])`, Viterbi on numerators."""

    @jax.jit
    def align(params, batch: DeviceBatch):
        logits = network(params, batch.features, batch.lengths)
        return ops.viterbi(logits, network.output_lengths(batch.lengths), batch.numerators)

    return align


def _frames(lengths: jax.Array) -> jax.Array:
    return lengths.sum().astype(jnp.float32)
