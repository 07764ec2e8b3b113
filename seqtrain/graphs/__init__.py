"""Words to acceptors: lexicon, HMM topology, n-gram models, numerator, denominator, HLG."""

from seqtrain.graphs import arpa
from seqtrain.graphs.acceptors import NoPathError, denominator, numerator
from seqtrain.graphs.alignment import Segment, segments, uniform_alignment
from seqtrain.graphs.expansion import expand
from seqtrain.graphs.hlg import DecodingGraph, decoding_graph
from seqtrain.graphs.lexicon import Lexicon, LexiconError, OovError, training_phones, transcript
from seqtrain.graphs.ngram import NGramLm
from seqtrain.graphs.phone_lm import PhoneLm
from seqtrain.graphs.tied import TiedTopology, relabel, tie_by_counts
from seqtrain.graphs.topology import Topology

__all__ = [
    'DecodingGraph',
    'Lexicon',
    'LexiconError',
    'NGramLm',
    'NoPathError',
    'OovError',
    'PhoneLm',
    'Segment',
    'TiedTopology',
    'Topology',
    'arpa',
    'decoding_graph',
    'denominator',
    'expand',
    'numerator',
    'relabel',
    'segments',
    'tie_by_counts',
    'training_phones',
    'transcript',
    'uniform_alignment',
]
