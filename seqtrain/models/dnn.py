"""The feed-forward network on spliced frames, the kind that the 2014 papers trained."""

import dataclasses

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from seqtrain.models import layers


@dataclasses.dataclass(frozen=True)
class DnnConfig:
    """Shape of a feed-forward network.

    Attributes:
      num_inputs: feature dimensions per frame.
      num_outputs: pdfs.
      num_hidden: units of every hidden layer.
      num_layers: hidden layers.
      left, right: frames spliced before and after the present one.
      subsampling: output frames are every `subsampling`-th input frame (1 or 3).
      dropout: probability that a hidden unit is dropped while training.
    """

    num_inputs: int
    num_outputs: int
    num_hidden: int = 256
    num_layers: int = 3
    left: int = 10
    right: int = 5
    subsampling: int = 1
    dropout: float = 0.0


class Dnn(nnx.Module):
    """Splice once, then `num_layers` of linear → ReLU, then a linear output layer."""

    def __init__(self, config: DnnConfig, *, rngs: nnx.Rngs):
        """Random parameters of the given shape, drawn from the streams of `rngs`."""
        self.config = config
        self.hidden: nnx.List[nnx.Linear] = nnx.List([])
        width = config.num_inputs * (config.left + 1 + config.right)
        he = nnx.initializers.he_normal()
        for _ in range(config.num_layers):
            self.hidden.append(nnx.Linear(width, config.num_hidden, kernel_init=he, rngs=rngs))
            width = config.num_hidden
        self.dropout = nnx.Dropout(config.dropout)
        self.output = nnx.Linear(width, config.num_outputs, rngs=rngs)

    @property
    def subsampling(self) -> int:
        return self.config.subsampling

    @property
    def context(self) -> tuple[int, int]:
        """Input frames before and after frame s·u that output frame u depends on."""
        return self.config.left, self.config.right

    def __call__(
        self,
        features: Float[Array, 'B T F'],
        lengths: Int[Array, 'B'],
        dropout_key: jax.Array | None = None,
        starts: Int[Array, 'B'] | None = None,
    ) -> Float[Array, 'B U P']:
        """Logits at the output rate; arguments as `Tdnn.__call__`."""
        config = self.config
        x = layers.splice(
            layers.mask_padding(features, lengths, starts), range(-config.left, config.right + 1)
        )
        x = layers.subsample(x, config.subsampling)
        for i, linear in enumerate(self.hidden):
            x = jax.nn.relu(linear(x))
            if dropout_key is not None and config.dropout > 0:
                key = jax.random.fold_in(dropout_key, i)
                x = self.dropout(x, deterministic=False, rngs=key)
        return self.output(x)
