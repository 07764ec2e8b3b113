"""Looks at a development set while the sequence criterion trains: when to stop, what to go back to.

On little data a sequence criterion goes on rising after the error rate has begun to. With
`config.data.dev` the network that the sequence stage begins with is decoded, and every checkpoint
of the stage, all at `config.decode.acoustic_scale`; the stage ends with the parameters that had the
fewest word errors. With `config.sequence.patience` it ends after so many looks in a row that were
no better than the best one; a look between two checkpoints, where a run broke off, does not count.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import shutil
import time
from typing import Any

import ml_collections

from seqtrain.data.features import FeatureSet
from seqtrain.data.utterance import Skipped
from seqtrain.decoding import score_wer
from seqtrain.training.checkpoint import Checkpoints, Position
from seqtrain.training.evaluate import Evaluator, test_set
from seqtrain.training.prepare import TrainingData
from seqtrain.training.recognizer import Recognizer
from seqtrain.training.workdir import Workdir, read_json, write_json

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Look:
    """What one checkpoint did on the development set.

    Attributes:
      updates: of the whole run, when the checkpoint was made.
      errors, words: counts.
      seconds: wall-clock time of network and search.
    """

    updates: int
    errors: int
    words: int
    seconds: float

    @property
    def wer(self) -> float:
        return self.errors / max(1, self.words)


class Development:
    """The looks of one run, and the checkpoint of the best one.

    Args:
      recognizer: of the network that trains.
      features: the development set.
      references: transcripts by utterance id; an utterance without features counts as deleted.
      folder: keeps `looks.json` and the checkpoint.
      patience: looks without a better one after which training is over; 0: never.
      distance: updates between checkpoints; what comes sooner after another does not count.
      updates: of the run so far; later looks are of a future that did not happen and are forgotten.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        features: FeatureSet,
        references: dict[str, str],
        folder: pathlib.Path,
        patience: int,
        distance: int,
        updates: int,
    ):
        self._recognizer, self._features, self._references = recognizer, features, references
        self._file, self._patience, self._distance = folder / 'looks.json', patience, distance
        self._kept = Checkpoints(folder / 'best', keep=1)
        seen = read_json(self._file) if self._file.is_file() else []
        self.looks = [look for look in (Look(**one) for one in seen) if look.updates <= updates]
        kept = self._kept.latest() if self.looks else None
        if kept is None or kept.updates != self.best.updates:
            self._begin_anew(folder / 'best')

    def _begin_anew(self, folder: pathlib.Path) -> None:
        """What is kept belongs to none of the looks; a later checkpoint would bar earlier ones."""
        self.looks = []
        self._kept.close()
        shutil.rmtree(folder)
        self._kept = Checkpoints(folder, keep=1)

    @classmethod
    def make(
        cls,
        config: ml_collections.ConfigDict,
        data: TrainingData,
        evaluator: Evaluator,
        workdir: Workdir,
        updates: int,
    ) -> Development | None:
        """Loads the development set; None where the config names none."""
        if not config.data.dev:
            return None
        features, references = test_set(config, data, 'dev')
        folder = workdir.sub('development')
        patience, distance = config.sequence.patience, config.checkpoint.every_updates
        recognizer = evaluator.recognizers['word']
        return cls(recognizer, features, references, folder, patience, distance, updates)

    @property
    def best(self) -> Look:
        """The first look with the fewest errors; there must have been one."""
        return min(self.looks, key=lambda look: look.errors)

    @property
    def over(self) -> bool:
        """Whether so many looks in a row were no better that training is over."""
        if not (self._patience and self.looks):
            return False
        counted = [self.best.updates]
        for look in self.looks:
            if look.updates >= counted[-1] + self._distance:
                counted.append(look.updates)
        return len(counted) > self._patience

    def look(self, position: Position, params: Any) -> None:
        """Decodes with the parameters of a checkpoint; keeps the checkpoint if it is the best."""
        if self.looks and self.looks[-1].updates == position.updates:
            return
        started = time.perf_counter()
        found = self._recognizer(params, self._features)
        texts = {name: one.text for name, one in found.items() if name in self._references}
        result = score_wer(self._references, texts)
        seconds = time.perf_counter() - started
        look = Look(position.updates, result.errors, result.words, round(seconds, 3))
        logger.info('After %d updates: development WER %.2f %%', look.updates, 100 * look.wer)
        self.looks.append(look)
        if self.best is look:
            self._kept.save(position)
        write_json(self._file, [dataclasses.asdict(one) for one in self.looks])

    def kept(self) -> Position:
        """The checkpoint of the best look."""
        position = self._kept.latest()
        assert position is not None
        assert position.updates == self.best.updates
        return position

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Utterances that could not be used; their words count as deleted."""
        return self._features.skipped

    def summary(self, to_the_end: bool) -> dict[str, Any]:
        """For the last line of JSON; `to_the_end`: no update of the run was left out."""
        if not self.looks:
            return {}
        best = self.best
        return {
            'wer_dev': best.wer,
            'best_update': best.updates,
            'stopped_early': self.over and not to_the_end,
        }

    def close(self) -> None:
        self._kept.close()


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for a patience that cannot be kept, or two ways to end the stage."""
    patience = config.sequence.patience
    if patience < 0:
        raise ValueError(
            f'config.sequence.patience is {patience}: give a number of looks, or 0 to train to '
            'the end.'
        )
    if patience and not config.data.dev:
        raise ValueError(
            'config.sequence.patience looks at a development set: name one in config.data.dev.'
        )
    if config.sequence.average and config.data.dev:
        raise ValueError(
            'With config.data.dev the best checkpoint is kept, with config.sequence.average the '
            'mean of the last versions: set one of them.'
        )
