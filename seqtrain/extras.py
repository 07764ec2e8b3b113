"""Packages that only some of seqtrain needs, loaded where they are used."""

import importlib
from typing import Any

_EXTRAS = {
    'jiwer': 'kaldi',
    'kaldi_decoder': 'kaldi',
    'kaldi_native_fbank': 'kaldi',
    'kaldi_native_io': 'kaldi',
    'kaldifst': 'kaldi',
    'matplotlib': 'report',
    'tensorboardX': 'report',
}
"""Modules and the extras of setup.py that bring them."""


class MissingPackageError(ImportError):
    """A package is not installed; the message says how to install it."""


def load(module: str) -> Any:
    """Imports a module of an extra.

    Raises:
      MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f'{error.name} is not installed. In a checkout of seqtrain: pip install '
            f"'.[{_EXTRAS[module]}]'; training needs '.[kaldi,report]'."
        ) from None
