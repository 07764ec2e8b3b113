"""Training criteria: pure functions of logits. Sequence criteria are to be maximised and return
an `Outcome`; frame criteria and penalties are to be minimised and return f32[B]."""

from seqtrain.losses.attach import attach
from seqtrain.losses.frame import cross_entropy, f_smoothing, out_of_range, output_l2
from seqtrain.losses.mmi import ctc, ctc_crf, lf_mmi
from seqtrain.losses.risk import bayes_risk, frame_accuracy, mpe, smbr
from seqtrain.losses.validity import Outcome, Reason

__all__ = [
    'Outcome',
    'Reason',
    'attach',
    'bayes_risk',
    'cross_entropy',
    'ctc',
    'ctc_crf',
    'f_smoothing',
    'frame_accuracy',
    'lf_mmi',
    'mpe',
    'out_of_range',
    'output_l2',
    'smbr',
]
