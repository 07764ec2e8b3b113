"""The numeric core: sums and maxima over the paths of a graph. One contract, several backends."""

from seqtrain.ops.dispatch import BACKENDS, backends
from seqtrain.ops.expectation import expected_accuracy
from seqtrain.ops.forward_backward import log_partition, occupancies
from seqtrain.ops.graph import NEVER, Graph, min_frames, pack, pack_batch
from seqtrain.ops.viterbi import viterbi

__all__ = [
    'BACKENDS',
    'NEVER',
    'Graph',
    'backends',
    'expected_accuracy',
    'log_partition',
    'min_frames',
    'occupancies',
    'pack',
    'pack_batch',
    'viterbi',
]
