"""Error rates on the test set, written beside the hypotheses."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
import zlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from seqtrain.data import features as feature_lib
from seqtrain.data.features import FeatureSet
from seqtrain.data.utterance import DataError, Skipped
from seqtrain.decoding import Change, Decoder, WerResult, read_text, score_wer, write_text
from seqtrain.graphs import Lexicon
from seqtrain.training import assembly, devices, recognizer
from seqtrain.training.config import pick
from seqtrain.training.prepare import TrainingData
from seqtrain.training.workdir import Workdir, read_json, write_json

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Score:
    """One row of the error table; rates are fractions.

    Attributes:
      model: which network, e.g. 'ce'.
      unit: 'word' or 'phone'.
      wer: errors over reference words (or phones); `low` and `high` are its 95 % interval by
        bootstrap over utterances.
      words, errors, insertions, deletions, substitutions: counts.
      not_decoded: test utterances without a complete hypothesis.
      seconds: wall-clock time of network and search.
    """

    model: str
    unit: str
    wer: float
    low: float
    high: float
    words: int
    errors: int
    insertions: int
    deletions: int
    substitutions: int
    not_decoded: int
    seconds: float
    params: int = 0  # checksum of what was decoded with
    test: int = 0  # and of the test set and the decoding graph


class Evaluator:
    """Scores networks on one test set.

    Attributes:
      recognizers: by unit, 'word' first.
      scores: what was scored so far (in earlier parts of a resumed run, too).
      skipped: test utterances that could not be used; their words count as deleted.
    """

    def __init__(
        self,
        features: FeatureSet,
        references: dict[str, dict[str, str]],
        recognizers: dict[str, recognizer.Recognizer],
        workdir: Workdir,
        scales: ml_collections.ConfigDict,
    ):
        self._features, self._references = features, references
        self.recognizers, self._workdir = recognizers, workdir
        self._scales = scales
        self.skipped: tuple[Skipped, ...] = features.skipped
        self._made_for = {unit: self._checksum(unit) for unit in references}
        self.scores = self._earlier()

    @classmethod
    def make(
        cls, config: ml_collections.ConfigDict, data: TrainingData, workdir: Workdir
    ) -> Evaluator:
        """Loads the test set, builds the decoding graphs and writes `workdir/model`.

        Raises:
          DataError: nothing can be tested on, or no phones where they are to be scored.
        """
        features, texts = test_set(config, data, 'test')
        by_unit = references(texts, data.lexicon, config.decode.phone_error_rate)
        if not all(by_unit.values()):
            raise DataError(
                'Phones cannot be scored: every transcript of the test set has a word that the '
                'lexicon has not. Give pronunciations, or set config.decode.phone_error_rate=False.'
            )
        return cls(
            features,
            by_unit,
            _recognizers(config, data, workdir),
            workdir,
            config.decode,
        )

    def score(self, model: str, params: Any) -> None:
        """Decodes the test set with these parameters and adds to `scores`."""
        made_of = recognizer.checksum(params)
        known = {(score.model, score.unit): score.params for score in self.scores}
        for unit, references in self._references.items():
            if known.get((model, unit)) == made_of:
                continue
            self.scores = [s for s in self.scores if (s.model, s.unit) != (model, unit)]
            folder = self._workdir.sub('decode') / f'{model}-{unit}'
            folder.mkdir(exist_ok=True)
            score = dataclasses.replace(
                self._decode(model, unit, params, references),
                params=made_of,
                test=self._made_for[unit],
            )
            write_json(folder / 'score.json', dataclasses.asdict(score))
            self.scores.append(score)
            logger.info('%s %s error rate: %s', model, unit, _line(score))

    def _earlier(self) -> list[Score]:
        """What was scored in earlier parts of the run, but for scores of another test set."""
        scores = []
        for file in sorted(self._workdir.sub('decode').glob('*/score.json')):
            score = Score(**read_json(file))
            if score.test in (0, self._made_for.get(score.unit)):  # 0: of before
                scores.append(score)
            else:
                logger.warning('%s is of another test set or graph: left out.', file)
        return scores

    def _checksum(self, unit: str) -> int:
        """Of the references, the test utterances and the decoding graph."""
        features = self._features
        sizes = dict(zip(features.ids, features.num_frames.tolist(), strict=True))
        said = json.dumps([self._references[unit], sizes], sort_keys=True)
        graph = self._workdir.path / 'model' / f'{unit}.fst'
        return zlib.crc32(graph.read_bytes(), zlib.crc32(said.encode()))

    def change(self, model: str, before: str, unit: str) -> Change | None:
        """A model's error rate against another's on the test set, each at its own acoustic scale.

        By the hypotheses in the run's folder. None where one was not scored, or both are one
        network, which an early stop went back to.
        """
        networks = {score.model: score.params for score in self.scores if score.unit == unit}
        if not {model, before} <= networks.keys() or networks[model] == networks[before]:
            return None
        references = self._references.get(unit)
        files = [
            self._workdir.path / 'decode' / f'{name}-{unit}' / 'text' for name in (model, before)
        ]
        if references is None or not all(file.is_file() for file in files):
            return None
        after, first = (scored(references, read_text(file)) for file in files)
        return after.change(first)

    def _decode(self, model: str, unit: str, params: Any, references: dict[str, str]) -> Score:
        started = time.perf_counter()
        scale = recognizer.acoustic_scale(self._scales, unit, only_ce=model == 'ce')
        hypotheses = self.recognizers[unit](params, self._features, acoustic_scale=scale)
        seconds = time.perf_counter() - started
        texts = {name: hypothesis.text for name, hypothesis in hypotheses.items()}
        write_text(self._workdir.path / 'decode' / f'{model}-{unit}' / 'text', texts)
        result = scored(references, texts)
        low, high = result.interval()
        counts = pick(result, 'words', 'errors', 'insertions', 'deletions', 'substitutions')
        failed = sum(not hypothesis.ok for hypothesis in hypotheses.values())
        return Score(
            model, unit, result.wer, low, high, **counts, not_decoded=failed, seconds=seconds
        )


def test_set(
    config: ml_collections.ConfigDict, data: TrainingData, split: str
) -> tuple[FeatureSet, dict[str, str]]:
    """Features and transcripts (by utterance id) of `test` or `dev`.

    Raises:
      DataError: it is not there, or nothing of it can be used.
    """
    records = assembly.load_split(config.data, split)
    settings = dataclasses.replace(
        assembly.feature_config(config), sample_rate=data.features.sample_rate
    )
    cache = str(devices.cache_root(config.data.cache_dir) / 'features')
    features = feature_lib.compute(records, settings, cache)
    if not features.ids:
        raise DataError(
            f'Nothing can be tested on: no utterance of {getattr(config.data, split)!r} can be '
            f'used. {features.first_skipped}'
        )
    features.check_dim(data.features.dim)
    return features, {r.id: r.text for r in records if r.text.strip()}


def scored(references: Mapping[str, str], texts: Mapping[str, str]) -> WerResult:
    """Hypotheses against the references that there are; others are left out."""
    return score_wer(references, {k: v for k, v in texts.items() if k in references})


def references(texts: dict[str, str], lexicon: Lexicon, phones: bool) -> dict[str, dict[str, str]]:
    """Texts per unit; a transcript with unknown words has no phones and is left out there."""
    by_unit = {'word': texts}
    if phones:
        known = {
            name: text
            for name, text in texts.items()
            if all(word in lexicon.pronunciations for word in text.split())
        }
        by_unit['phone'] = {
            name: ' '.join(lexicon.canonical(text)) if text else '' for name, text in known.items()
        }
    return by_unit


def _recognizers(
    config: ml_collections.ConfigDict, data: TrainingData, workdir: Workdir
) -> dict[str, recognizer.Recognizer]:
    made_of = (data.features.transcripts, data.lexicon, data.topology)
    options = {
        'silence_probability': config.graph.silence_probability,
        'cache_dir': devices.cache_root(config.data.cache_dir) / 'graphs',
    }
    graph = config.graph
    word_lm = (graph.word_lm_order, graph.word_lm, graph.word_lm_smoothing)
    graphs = {'word': recognizer.word_graph(*made_of, *word_lm, **options)}
    if config.decode.phone_error_rate:
        graphs['phone'] = recognizer.phone_graph(*made_of, **options)
    files = recognizer.ModelFiles(
        data.features.dim,
        data.topology.num_pdfs,
        data.features.sample_rate,
        tuple(graphs),
        data.lexicon.phones,
    )
    files.write(workdir.sub('model'), graphs, data.lexicon)
    network, _ = assembly.network(config, files.num_inputs, files.num_outputs)
    search = pick(config.decode, 'beam', 'max_active', 'acoustic_scale')
    return {
        unit: recognizer.Recognizer(network, Decoder(graph, **search))
        for unit, graph in graphs.items()
    }


def _line(score: Score) -> str:
    return (
        f'{100 * score.wer:.2f} % [{score.errors} / {score.words}, {score.insertions} ins, '
        f'{score.deletions} del, {score.substitutions} sub] in {score.seconds:.1f} s'
    )
