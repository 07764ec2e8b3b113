"""Acceptors on the host: the container, its checks, OpenFst I/O, exact operations."""

from seqtrain.fsa.fsa import Fsa, FsaError
from seqtrain.fsa.operations import connect, intersect, min_frames, minimise

__all__ = ['Fsa', 'FsaError', 'connect', 'intersect', 'min_frames', 'minimise']
