"""Training criteria: pure functions of logits. Sequence criteria are to be maximised and return
an `Outcome`; frame criteria and penalties are to be minimised and return f32[B]."""

from seqtrain.losses.frame import cross_entropy, out_of_range, output_l2
from seqtrain.losses.mmi import lf_mmi
from seqtrain.losses.validity import Outcome, Reason

__all__ = ['Outcome', 'Reason', 'cross_entropy', 'lf_mmi', 'out_of_range', 'output_l2']
