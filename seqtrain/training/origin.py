"""What a run begins with and must find again: another run's network, lexicon, language
models.

Of the run in `config.start_from` some things must be the same, too.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import zlib

import ml_collections

from seqtrain.training import assembly, recognizer
from seqtrain.training.workdir import WorkdirError, read_json, write_json

_SOURCE = 'start_from.json'
_LANGUAGE = 'language.json'


@dataclasses.dataclass(frozen=True)
class Source:
    """What the run in `config.start_from` was when another one began with its network.

    Attributes:
      updates: that it had done.
      params: checksum of its network.
      only_ce: whether it had trained by cross-entropy alone.
    """

    updates: int
    params: int
    only_ce: bool

    def write(self, folder: pathlib.Path) -> None:
        """Notes it in the folder of the run that begins."""
        write_json(folder / _SOURCE, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: pathlib.Path) -> Source | None:
        """What was noted; None where nothing was."""
        file = folder / _SOURCE
        return cls(**read_json(file)) if file.is_file() else None


def check_same(
    config: ml_collections.ConfigDict, before: ml_collections.ConfigDict, refines: bool
) -> None:
    """The network can be taken over only where its inputs, shape and outputs are the same.

    Args:
      config, before: of the run that begins and of the one before.
      refines: tied states begin from monophones: only inputs and output frames must be the same.
    """
    compared = {
        'features': list(config.features),
        'model': ['subsampling'] if refines else list(config.model),
        'graph': ['topology'] if refines else ['topology', 'context'],
    }
    if not refines and config.graph.context != 'mono':
        compared['graph'] += ['tying', 'num_tied', 'min_count']
    for part, names in compared.items():
        for name in differing(config, before, part):
            if name in names:
                raise WorkdirError(
                    f'config.{part}.{name} is {config[part][name]!r}, but {before[part][name]!r} '
                    f'in {config.start_from}: set it to the same, or start from another run.'
                )


def differing(
    config: ml_collections.ConfigDict, before: ml_collections.ConfigDict, part: str
) -> list[str]:
    """Fields of a section that two runs have differently, but for what is of training only."""
    return [
        name
        for name, value in config[part].items()
        if (part, name) != ('model', 'dropout')
        and json.dumps(value) != json.dumps(before[part][name])  # JSON has no tuples
    ]


def check_phones(config: ml_collections.ConfigDict, source: pathlib.Path) -> None:
    """Outputs are states of phones by number: the names and their order must be the same."""
    phones = assembly.load_lexicon(config.data).phones
    before = recognizer.ModelFiles.read(source / 'model').phones
    if phones != before:
        first = next((p for p in (*phones, *before) if (p in phones) != (p in before)), None)
        why = 'in another order' if first is None else f'{first} is in one of them only'
        raise WorkdirError(
            f'config.data.lexicon has other phones than the run in {source} ({why}): take '
            'one with the same phones, or begin another run without it.'
        )


def note_language(config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
    """Notes checksums of lexicon and ARPA files where a run begins."""
    write_json(folder / _LANGUAGE, _language(config))


def check_language(config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
    """For a run that goes on.

    Raises:
      WorkdirError: lexicon or an ARPA file is another than when the run began.
    """
    if (folder / 'model' / 'model.json').is_file():
        check_phones(config, folder)
    _compare(config, _language(config), folder)


def check_denominators(config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
    """For a replay, which does not decode: raises WorkdirError as `check_language` does."""
    now = _language(config)
    now.pop('graph.word_lm', None)
    _compare(config, now, folder)


def _language(config: ml_collections.ConfigDict) -> dict[str, int]:
    """Checksums by the field of the config."""
    lexicon = assembly.load_lexicon(config.data)
    spelt = json.dumps([lexicon.phones, lexicon.pronunciations], sort_keys=True)
    files = {f'{name}.word_lm': file for name, file in assembly.arpa_files(config).items()}
    return {'data.lexicon': zlib.crc32(spelt.encode())} | {
        name: zlib.crc32(pathlib.Path(file).read_bytes()) for name, file in files.items()
    }


def _compare(config: ml_collections.ConfigDict, now: dict[str, int], folder: pathlib.Path) -> None:
    noted = folder / _LANGUAGE
    then = read_json(noted) if noted.is_file() else {}  # runs of before have none
    for name, checksum in now.items():
        if then.get(name, checksum) != checksum:
            section, field = name.split('.')
            file = config[section][field] or "the corpus's lexicon"
            raise WorkdirError(
                f'config.{name}: {file} is not what it was when the run in {folder} began. '
                'Put that back, or start anew in another workdir.'
            )
