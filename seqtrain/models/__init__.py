"""Flax NNX acoustic models: features f32[B, T, F] and lengths to logits f32[B, U, P].

All models share one call, `model(features, lengths, dropout_key=None, starts=None)`, and the fields
`subsampling`, U = ceil(T / subsampling), and `context`, the input frames before and after the first
one of an output that it sees. `starts` i32[B] is where utterances begin in their rows, in frames.
Keep a Module on one thread; share only its state (a pytree).
"""

from seqtrain.models.dnn import Dnn, DnnConfig
from seqtrain.models.layers import subsampled_lengths
from seqtrain.models.tdnn import Tdnn, TdnnConfig

__all__ = ['Dnn', 'DnnConfig', 'Tdnn', 'TdnnConfig', 'subsampled_lengths']
