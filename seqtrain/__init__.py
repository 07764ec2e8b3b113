"""seqtrain: asynchronous, sequence-discriminative training of acoustic models in JAX and Flax."""

__version__ = '0.1.0'
