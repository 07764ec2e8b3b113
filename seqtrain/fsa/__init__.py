"""Acceptors on the host: the container, its checks, OpenFst I/O, packing for devices."""

from seqtrain.fsa.fsa import Fsa, FsaError

__all__ = ['Fsa', 'FsaError']
