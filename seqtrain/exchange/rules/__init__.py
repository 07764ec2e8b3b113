"""Server rules: what a shard does with a stale update. `base` states the contract.

rule                      pushed     state     for
sgd                       gradient   0 or n    fresh gradients; the baseline
adam                      gradient   2n        the robust default for stale gradients
downpour_adagrad          gradient   n         the classic of asynchronous speech training
dc_asgd, dc_asgd_adaptive gradient   0, n      stale gradients; the shard keeps base values
cgad                      either     2n        large staleness
delayed_nesterov          Δ          2n        H local steps, even speeds (with DyLU)
momentum_lookahead        Δ          n         H local steps
heloco                    Δ          n         H local steps, unlike data and speeds
block_momentum            Δ          n         sync rounds of H local steps
averaging                 Δ          0         sync rounds of H local steps
easgd                     values     0         replicas that explore
scale_by_frames, scale_by_staleness, gate_by_age, compensate_delay(_adaptively), drop_stale
                          stages and wrappers for `optax.chain`
polyak_average            as inside  + n       a wrapper: ends with the mean of the last versions
"""

from seqtrain.exchange.rules.average import polyak_average
from seqtrain.exchange.rules.base import (
    BaseParamsNeeded,
    Rule,
    adam,
    chain,
    downpour_adagrad,
    scale_by_frames,
    sgd,
    step,
)
from seqtrain.exchange.rules.local_steps import (
    averaging,
    block_momentum,
    delayed_nesterov,
    easgd,
    elastic_pull,
    heloco,
    momentum_lookahead,
)
from seqtrain.exchange.rules.stale import (
    cgad,
    compensate_delay,
    compensate_delay_adaptively,
    dc_asgd,
    dc_asgd_adaptive,
    drop_stale,
    gate_by_age,
    scale_by_staleness,
)

__all__ = [
    'BaseParamsNeeded',
    'Rule',
    'adam',
    'averaging',
    'block_momentum',
    'cgad',
    'chain',
    'compensate_delay',
    'compensate_delay_adaptively',
    'dc_asgd',
    'dc_asgd_adaptive',
    'delayed_nesterov',
    'downpour_adagrad',
    'drop_stale',
    'easgd',
    'elastic_pull',
    'gate_by_age',
    'heloco',
    'momentum_lookahead',
    'polyak_average',
    'scale_by_frames',
    'scale_by_staleness',
    'sgd',
    'step',
]
