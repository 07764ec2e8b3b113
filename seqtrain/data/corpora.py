"""`load`: a corpus by its name, or any Kaldi data directory by its path.

Named corpora are TFDS builders (see `builders`), prepared once as array_record and read through
Grain; TensorFlow is never imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence

import absl.logging

from seqtrain.data import kaldi
from seqtrain.data.utterance import DataError, Skipped, Utterance

logger = logging.getLogger(__name__)

NAMES = ('yesno', 'fsdd', 'synth_digits')


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The utterances of one split.

    Attributes:
      name: as it was asked for.
      utterances: the records, in a fixed order.
      lexicon: word to pronunciations (phones split by spaces); {} where the corpus has none.
      skipped: records that the corpus' own lists show to be unusable; broken audio is found
        later, by `features.compute`.
    """

    name: str
    utterances: Sequence[Utterance]
    lexicon: Mapping[str, Sequence[str]]
    skipped: tuple[Skipped, ...] = ()


def load(
    name: str | os.PathLike,
    split: str,
    *,
    source: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Corpus:
    """Loads `yesno`, `fsdd`, `synth_digits[/small|/demo|/large]`, or a Kaldi data directory.

    Args:
      name: a corpus name, or the path of a Kaldi data directory (`./yesno`, if it is called so).
      split: 'train' or 'test'; not used for a directory, which is one split.
      source: a local archive or folder of a named corpus; None: downloaded with a checksum.
        `synth_digits` needs none.
      cache_dir: where prepared corpora and downloads are kept; None: $SEQTRAIN_CACHE, else
        ~/.cache/seqtrain.

    Raises:
      DataError: an unknown name or split, or data that is not there; says what to put where.
    """
    base_name, _, variant = str(name).partition('/')
    if base_name in NAMES:
        return _load_named(base_name, variant, split, source, _cache_dir(cache_dir))
    if not pathlib.Path(name).is_dir():
        raise DataError(
            f'There is no corpus {str(name)!r}: give one of {", ".join(NAMES)} or the path of a '
            'Kaldi data directory.'
        )
    records = list(kaldi.read_dir(name))
    return Corpus(
        str(name),
        tuple(r for r in records if not r.problem),
        {},
        tuple(Skipped(r.id, r.problem) for r in records if r.problem),
    )


def _load_named(name, variant, split, source, cache_dir: pathlib.Path) -> Corpus:
    # Imported here: a run on a Kaldi directory needs neither TFDS nor Grain.
    import grain

    from seqtrain.data.builders import base

    builder = _prepare(name, variant, source, cache_dir)
    if split not in builder.info.splits:
        known = ', '.join(builder.info.splits)
        raise DataError(f'Corpus {name} has no split {split!r}; it has {known}.')
    records = grain.MapDataset.source(builder.as_data_source(split=split))
    return Corpus(name, records.map(base.from_example), builder.LEXICON)


def _prepare(name: str, variant: str, source, cache_dir: pathlib.Path):
    """The builder with its data on disk."""
    from seqtrain.data.builders import archives, base, fsdd, synth_digits, yesno

    cls: type[base.SpeechBuilder] = {
        'yesno': yesno.Yesno,
        'fsdd': fsdd.Fsdd,
        'synth_digits': synth_digits.SynthDigits,
    }[name]
    known = [config.name for config in cls.BUILDER_CONFIGS]
    if variant and variant not in known:
        choices = ', '.join(f'{name}/{one}' for one in known) or name
        raise DataError(f'There is no corpus {name}/{variant}: use {choices}.')
    folder = cache_dir / 'corpora'
    origin = None
    if cls.URL:
        origin = archives.obtain(name, source, cls.URL, cls.SHA256, cache_dir)
        # Another source is another corpus, even under the same name.
        folder = folder / archives.fingerprint(origin)
    with _quiet_tfds():
        builder = cls(data_dir=str(folder), config=variant or None, file_format='array_record')
        builder.source = origin
        if not builder.is_prepared():
            logger.info('Preparing the corpus %s in %s.', name, folder)
            builder.download_and_prepare()
    return builder


@contextlib.contextmanager
def _quiet_tfds():
    """Keeps TFDS from printing, and from warning that the data it is about to make is not there."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)


def _cache_dir(cache_dir: str | os.PathLike | None) -> pathlib.Path:
    default = os.environ.get('SEQTRAIN_CACHE', '~/.cache/seqtrain')
    return pathlib.Path(cache_dir or default).expanduser()
