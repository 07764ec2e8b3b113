"""What a run begins with and must find again: another run's network, language models.

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
_LANGUAGE_MODELS = 'language_models.json'


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


def note_language_models(
    config: ml_collections.ConfigDict, folder: pathlib.Path, begins: bool
) -> None:
    """Notes checksums of the ARPA files where a run begins, and checks them where it goes on.

    Raises:
      WorkdirError: one of them is another than when the run began.
    """
    files = assembly.arpa_files(config)
    if not begins:
        _compare(files, folder)
    elif files:
        write_json(folder / _LANGUAGE_MODELS, {name: _checksum(files[name]) for name in files})


def check_denominators(config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
    """For a replay, which does not decode: raises WorkdirError as `note_language_models` does."""
    files = assembly.arpa_files(config)
    _compare({name: files[name] for name in files if name == 'lattice'}, folder)


def _checksum(file: str) -> int:
    return zlib.crc32(pathlib.Path(file).read_bytes())


def _compare(files: dict[str, str], folder: pathlib.Path) -> None:
    noted = folder / _LANGUAGE_MODELS
    then = read_json(noted) if noted.is_file() else {}  # runs of before have none
    for name, file in files.items():
        if name in then and then[name] != _checksum(file):
            raise WorkdirError(
                f'config.{name}.word_lm: {file} is not what it was when the run in {folder} began. '
                'Put that model back, or start anew in another workdir.'
            )
