"""The time-delay network: layers that splice a few frames of the layer below."""

import dataclasses

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from seqtrain.models import layers


@dataclasses.dataclass(frozen=True)
class TdnnConfig:
    """Shape of a TDNN.

    Attributes:
      num_inputs: feature dimensions per frame.
      num_outputs: pdfs.
      num_hidden: units of every hidden layer.
      offsets: for each hidden layer, the frames that it splices, in frames of its own rate.
      subsampling: output frames are every `subsampling`-th input frame (1 or 3).
      subsample_after: number of hidden layers that run at the input rate.
      dropout: probability that a hidden unit is dropped while training.
    """

    num_inputs: int
    num_outputs: int
    num_hidden: int = 128
    offsets: tuple[tuple[int, ...], ...] = ((-2, -1, 0, 1, 2), (-1, 0, 1), (-1, 0, 1), (-3, 0, 3))
    subsampling: int = 3
    subsample_after: int = 1
    dropout: float = 0.0


class Tdnn(nnx.Module):
    """Splice → linear → ReLU → layer norm, residual where the rate does not change.

    Peddinti et al. 2015 (sub-sampled splicing); layer norm stands for batch norm because replicas
    share no batch statistics.
    """

    def __init__(self, config: TdnnConfig, *, rngs: nnx.Rngs):
        """Random parameters of the given shape, drawn from the streams of `rngs`."""
        self.config = config
        self.hidden: nnx.List[nnx.Linear] = nnx.List([])
        self.norms: nnx.List[nnx.LayerNorm] = nnx.List([])
        width = config.num_inputs
        for offsets in config.offsets:
            self.hidden.append(nnx.Linear(width * len(offsets), config.num_hidden, rngs=rngs))
            self.norms.append(nnx.LayerNorm(config.num_hidden, rngs=rngs))
            width = config.num_hidden
        self.dropout = nnx.Dropout(config.dropout)
        self.output = nnx.Linear(width, config.num_outputs, rngs=rngs)

    @property
    def subsampling(self) -> int:
        return self.config.subsampling

    @property
    def context(self) -> tuple[int, int]:
        """Input frames before and after frame s·u that output frame u depends on."""
        config = self.config
        count = len(config.offsets)
        early = config.subsample_after
        rates = [1 if i < early else config.subsampling for i in range(count)]
        spliced = list(zip(config.offsets, rates, strict=True))
        before = sum(rate * max(0, -min(offsets)) for offsets, rate in spliced)
        return before, sum(rate * max(0, *offsets) for offsets, rate in spliced)

    def __call__(
        self,
        features: Float[Array, 'B T F'],
        lengths: Int[Array, 'B'],
        dropout_key: jax.Array | None = None,
        starts: Int[Array, 'B'] | None = None,
    ) -> Float[Array, 'B U P']:
        """Logits at the output rate; U = ceil(T / subsampling).

        Args:
          features: normalised features; the content of padding frames is ignored.
          lengths: valid input frames; with `starts` the frame after the last valid one.
          dropout_key: typed PRNG key while training; None turns dropout off.
          starts: first valid frames, multiples of the subsampling; None for 0.
        """
        config = self.config
        x = layers.mask_padding(features, lengths, starts)
        for i, (offsets, linear, norm) in enumerate(
            zip(config.offsets, self.hidden, self.norms, strict=True)
        ):
            if i == config.subsample_after:
                x = layers.subsample(x, config.subsampling)
                lengths = layers.subsampled_lengths(lengths, config.subsampling)
                starts = None if starts is None else starts // config.subsampling
            y = norm(jax.nn.relu(linear(layers.splice(x, offsets))))
            if dropout_key is not None and config.dropout > 0:
                key = jax.random.fold_in(dropout_key, i)
                y = self.dropout(y, deterministic=False, rngs=key)
            x = layers.mask_padding(y + x if i > 0 else y, lengths, starts)
        if len(config.offsets) <= config.subsample_after:
            x = layers.subsample(x, config.subsampling)
        return self.output(x)
