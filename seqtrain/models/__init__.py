"""Flax NNX acoustic models: features f32[B, T, F] and lengths to logits f32[B, U, P].

All models share one call, `model(features, lengths, dropout_key=None)`, and `model.subsampling`;
U = ceil(T / subsampling). Keep a Module on one thread; share only its state (a pytree).
"""

from seqtrain.models.dnn import Dnn, DnnConfig
from seqtrain.models.layers import subsampled_lengths
from seqtrain.models.tdnn import Tdnn, TdnnConfig

__all__ = ['Dnn', 'DnnConfig', 'Tdnn', 'TdnnConfig', 'subsampled_lengths']
