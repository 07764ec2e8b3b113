"""Lattices: generation from a network's scores, operations, outer derivatives, tools and files."""

from seqtrain.lattices.files import read_archive, write_archive
from seqtrain.lattices.generation import LatticeGenerator, LatticePair
from seqtrain.lattices.lattice import Lattice, LatticeError
from seqtrain.lattices.openfst import read_openfst, write_openfst
from seqtrain.lattices.operations import best_path, occupancies, path_sums, prune, union
from seqtrain.lattices.outer import (
    OuterDerivative,
    expected_accuracy,
    mmi,
    shuffled_frames,
)
from seqtrain.lattices.tools import WordConfidence, confidences, n_best, oracle_errors, rescore_lm

__all__ = [
    'Lattice',
    'LatticeError',
    'LatticeGenerator',
    'LatticePair',
    'OuterDerivative',
    'WordConfidence',
    'best_path',
    'confidences',
    'expected_accuracy',
    'mmi',
    'n_best',
    'occupancies',
    'oracle_errors',
    'path_sums',
    'prune',
    'read_archive',
    'read_openfst',
    'rescore_lm',
    'shuffled_frames',
    'union',
    'write_archive',
    'write_openfst',
]
