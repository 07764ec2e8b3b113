"""The run's folder: one run at a time, one config for its whole life.

config.json      the resolved config; once there are results, another config is refused
machine.json     threads, jax, ...: what decides about last bits (`training.devices`)
lock             held (flock) by the running process, freed by the kernel at any death
checkpoints/     Orbax steps          model/       decoding graphs, shapes, sample rate
tensorboard/     scalars              decode/      hypotheses as Kaldi `text`, scores
development/     word errors of checkpoints on config.data.dev, and the best of these checkpoints
updates.jsonl, pushes.jsonl, events.jsonl, failures.jsonl   see `training.monitor`
report.html      and figures/         result.json  the last line of JSON
shards/          checkpoints of shards that are Ray actors
start_from.json  which network of config.start_from the run began with
language.json    checksums of the pronunciations and ARPA files that it began with
aligners/        parameters that aligned, where replicas are Ray actors
"""

import fcntl
import json
import logging
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

_LOGS = ('updates.jsonl', 'pushes.jsonl', 'events.jsonl', 'failures.jsonl')
# There before all data were looked at; so is what is in the folder 'model'.
_BEGINNING = {'config.json', 'lock', 'machine.json', 'language.json'}
# Where a run runs, not what it does: a job that is queued again has another address.
_OF_THE_PLACE = {'exchange.ray_address'}


class WorkdirError(RuntimeError):
    """The folder cannot be used for this run; the message says why and what to do."""


class Workdir:
    """Opens, locks and checks a run's folder; a context manager.

    Args:
      path: the folder; made when missing.
      config: the resolved config as plain JSON types, or None to take the folder's own.
      complete: gives the folder's own config the fields that came after it.

    Raises:
      WorkdirError: another process runs there, or the folder belongs to another config.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        config: dict[str, Any] | None,
        complete: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ):
        self.path = pathlib.Path(path)
        self._config, self._complete = config, complete
        self._lock: Any = None

    def __enter__(self) -> 'Workdir':
        if self._config is None and not (self.path / 'config.json').is_file():
            raise WorkdirError(
                f'{self.path} holds no run: there is no config.json. Train first with '
                f'launch/train.py --workdir={self.path}.'
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / 'lock', 'w')  # held until __exit__
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise WorkdirError(
                f'Another run holds {self.path}. Wait for it, stop it, or name another --workdir.'
            ) from None
        try:
            self._check_config()
        except WorkdirError:
            self._lock.close()
            raise
        return self

    def __exit__(self, *exc_info):
        self._lock.close()

    @property
    def config(self) -> dict[str, Any]:
        return read_json(self.path / 'config.json')

    def sub(self, name: str) -> pathlib.Path:
        """A folder of this run, made when missing."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        return folder

    def forget_attempt(self) -> None:
        """Removes what a part of the run left that broke off before its first checkpoint.

        Its logs would count updates that the run never had, its shards come back with its values,
        its machine may have been another.
        """
        begun = [file for file in map(self.path.joinpath, _LOGS) if file.exists()]
        for file in begun:
            file.unlink()
        shutil.rmtree(self.path / 'shards', ignore_errors=True)
        (self.path / 'machine.json').unlink(missing_ok=True)
        if begun:
            logger.info('%s broke off before its first checkpoint: it begins anew.', self.path)

    def _check_config(self) -> None:
        file = self.path / 'config.json'
        if self._config is None:
            return
        wanted = _plain(self._config)
        if not file.exists() or not self._has_results():
            write_json(file, wanted, sort_keys=True)
            return
        differing = set(_differences(_plain(self._complete(self.config)), wanted))
        changed = sorted(differing - _OF_THE_PLACE)
        if changed:
            raise WorkdirError(
                f'{self.path} belongs to a run with another config; it differs in '
                f'{", ".join(changed[:5])}{" and more" if len(changed) > 5 else ""}. '
                f'Name another --workdir, or set these fields back to continue the run.'
            )

    def _has_results(self) -> bool:
        """Whether a run left more than its beginning: one that found no data did not."""
        files = (file for file in self.path.rglob('*') if file.is_file())
        return any(file.name not in _BEGINNING and file.parent.name != 'model' for file in files)


def write_json(file: pathlib.Path, value: Any, **options: Any) -> None:
    """Writes a file of the run whole or not at all."""
    unfinished = file.with_name(f'{file.name}.tmp')
    unfinished.write_text(json.dumps(value, indent=2, **options) + '\n')
    unfinished.replace(file)


def read_json(file: pathlib.Path) -> Any:
    """Reads it again.

    Raises:
      WorkdirError: it is damaged.
    """
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise WorkdirError(
            f'{file} is damaged ({error}). Delete it and run again: what can be is made anew.'
        ) from None


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it, without tuples."""
    return json.loads(json.dumps(config))


def _differences(old: Any, new: Any, prefix: str = '') -> list[str]:
    """Dotted names of the fields in which two nested dicts differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [prefix.rstrip('.')]
    missing = object()
    return [
        name
        for key in old.keys() | new.keys()
        for name in _differences(old.get(key, missing), new.get(key, missing), f'{prefix}{key}.')
    ]
