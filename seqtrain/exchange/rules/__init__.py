"""Server rules: what a shard does with a stale update. See `base` for the contract."""

from seqtrain.exchange.rules.base import (
    BaseParamsNeeded,
    Rule,
    adam,
    downpour_adagrad,
    scale_by_frames,
    sgd,
    step,
)

__all__ = [
    'BaseParamsNeeded',
    'Rule',
    'adam',
    'downpour_adagrad',
    'scale_by_frames',
    'sgd',
    'step',
]
