"""seqtrain: asynchronous, sequence-discriminative training of acoustic models in JAX and Flax."""

import importlib
from typing import Any

__version__ = '0.1.0'

_PARTS = (
    'data',
    'decoding',
    'exchange',
    'fsa',
    'graphs',
    'lattices',
    'losses',
    'models',
    'ops',
    'report',
    'training',
)


def __getattr__(name: str) -> Any:
    """Imports a part of the package when it is first named: `seqtrain.losses.lf_mmi`."""
    if name in _PARTS:
        return importlib.import_module(f'seqtrain.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *_PARTS})
