"""Words to acceptors: lexicon, HMM topology, n-gram models, numerator, denominator."""

from seqtrain.graphs import arpa
from seqtrain.graphs.acceptors import NoPathError, denominator, numerator
from seqtrain.graphs.lexicon import Lexicon, LexiconError, OovError, training_phones, transcript
from seqtrain.graphs.ngram import NGramLm
from seqtrain.graphs.phone_lm import PhoneLm
from seqtrain.graphs.topology import Topology, expand

__all__ = [
    'Lexicon',
    'LexiconError',
    'NGramLm',
    'NoPathError',
    'OovError',
    'PhoneLm',
    'Topology',
    'arpa',
    'denominator',
    'expand',
    'numerator',
    'training_phones',
    'transcript',
]
