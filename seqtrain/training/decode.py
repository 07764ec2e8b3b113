"""Decoding with a finished run: its config, its model files, its newest checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import ml_collections

from seqtrain.data import features as feature_lib
from seqtrain.data import kaldi
from seqtrain.data.utterance import DataError, Utterance
from seqtrain.decoding import Decoder, read_text, write_text
from seqtrain.graphs import DecodingGraph
from seqtrain.training import assembly, devices, evaluate, recognizer, start
from seqtrain.training import config as config_lib
from seqtrain.training.config import ConfigError, pick
from seqtrain.training.workdir import Workdir

logger = logging.getLogger(__name__)


def run(
    path: str | pathlib.Path,
    data: str,
    output: str = '',
    *,
    unit: str = 'word',
    acoustic_scales: Sequence[float] = (),
    word_lm: str = '',
    average: int = 1,
    against: str = '',
    allow_pipes: bool = False,
) -> dict[str, Any]:
    """Decodes a Kaldi data directory; see launch/decode.py.

    Args:
      path: the folder of a run.
      data: a Kaldi data directory; `text` is optional.
      output: file for the hypotheses; '' is decode/<name of the directory>/text in the run (-phone
        after the name for phones).
      unit: 'word' or 'phone'.
      acoustic_scales: decodes at each of them and keeps the hypotheses of the first with the fewest
        errors, as Kaldi's scoring does over language model weights; (): at the config's.
      word_lm: an ARPA file to take instead of the run's language model; its words without
        pronunciation in the run's lexicon are left out.
      average: decodes with the mean of the networks in so many of the newest checkpoints.
      against: hypotheses of another system, as `output` holds them: is the difference chance?
      allow_pipes: runs the shell commands in the directory's wav.scp.

    Returns:
      Counts, seconds, real-time factor, where there are references the error rate and its 95 %
      bootstrap interval; `scales` holds the counts at each scale where several were given;
      `wer_change` and `wer_improves` are those of `scoring.Change` where there is another system.

    Raises:
      ConfigError: a scale that is not positive, several, or another system, without references,
        hypotheses of other utterances, phones of a run that made no graph for them, or a word
        model for phones.
      ArpaError: `word_lm` is malformed; names file and line.
      DataError: no utterance can be decoded.
    """
    with Workdir(path, None) as workdir:
        config = config_lib.from_json(workdir.config)
        devices.set_up(1, config.data.cache_dir)
        folder = workdir.path / 'model'
        files = recognizer.ModelFiles.read(folder)
        records = list(kaldi.read_dir(data, allow_pipes=allow_pipes))
        references = _references(files, folder, kaldi.read_texts(data), unit)
        _check(acoustic_scales, references)
        other = _read_hypotheses(against, references) if against else None
        recognize, params, usual = _recognizer(config, workdir.path, files, unit, word_lm, average)
        features = features_of(config, files, records)
        scales = acoustic_scales or [usual]
        tried = [_at(scale, recognize, params, features, references) for scale in scales]
        best, texts = min(tried, key=lambda one: one[0].get('errors', 0))
        name = pathlib.Path(data).name + ('-phone' if unit == 'phone' else '')
        file = _write(output or workdir.sub('decode') / name / 'text', texts)
    result = {**best, **_account(config, features, best['decoding_s']), 'output': str(file)}
    if other is not None:
        result |= _change(references, texts, other)
    return {**result, 'scales': [row for row, _ in tried]} if len(tried) > 1 else result


def _recognizer(
    config: ml_collections.ConfigDict,
    path: pathlib.Path,
    files: recognizer.ModelFiles,
    unit: str,
    word_lm: str,
    average: int,
) -> tuple[recognizer.Recognizer, Any, float]:
    """The search, the parameters of the network, and the acoustic scale of the config."""
    graph = _graph(config, path, files, unit, word_lm)
    network, params = assembly.network(config, files.num_inputs, files.num_outputs)
    params, position = recognizer.trained(config, path, params, average)
    only_ce = start.only_ce(config, path, position)
    decoder = Decoder(graph, **pick(config.decode, 'beam', 'max_active'))
    usual = recognizer.acoustic_scale(config.decode, unit, only_ce)
    return recognizer.Recognizer(network, decoder), params, usual


def _write(path: str | pathlib.Path, texts: dict[str, str]) -> pathlib.Path:
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, texts)
    return file


def _account(
    config: ml_collections.ConfigDict, features: feature_lib.FeatureSet, decoding_s: float
) -> dict[str, Any]:
    """How many utterances were decoded and how fast."""
    audio_s = (
        float(sum(features.num_frames)) * assembly.feature_config(config).frame_shift_ms / 1000
    )
    return {
        'utterances': len(features),
        'skipped': len(features.skipped),
        'real_time_factor': decoding_s / max(audio_s, 1e-9),
    }


def _graph(
    config: ml_collections.ConfigDict,
    path: pathlib.Path,
    files: recognizer.ModelFiles,
    unit: str,
    word_lm: str,
) -> DecodingGraph:
    """The run's decoding graph, or that of words by another language model than its own."""
    if word_lm and unit != 'word':
        raise ConfigError(f'word_lm={word_lm} is a model of words: decode with unit=word.')
    folder = path / 'model'
    if not word_lm:
        return files.graph(folder, unit)
    lexicon = files.lexicon(folder / 'lexicon.txt')
    return recognizer.word_graph(
        (),
        lexicon,
        start.topology(config, len(lexicon.phones), path),
        0,
        word_lm,
        silence_probability=config.graph.silence_probability,
        cache_dir=devices.cache_root(config.data.cache_dir) / 'graphs',
    )


def _references(
    files: recognizer.ModelFiles,
    folder: pathlib.Path,
    texts: dict[str, str],
    unit: str,
) -> dict[str, str]:
    """Transcripts by utterance id, in words or phones."""
    if unit not in files.units:
        raise ConfigError(
            f'This run has graphs of {", ".join(files.units)}, none of {unit!r}; train with '
            f'--config.decode.phone_error_rate=True to have one of phones.'
        )
    lexicon = files.lexicon(folder / 'lexicon.txt')
    return evaluate.references(texts, lexicon, phones=unit == 'phone')[unit]


def _check(scales: Sequence[float], references: dict[str, str]) -> None:
    """Raises ConfigError for scales that cannot be tried."""
    if not all(0 < scale < math.inf for scale in scales):
        raise ConfigError(f'Acoustic scales must be positive numbers; got {list(scales)}.')
    if len(scales) > 1 and not references:
        raise ConfigError(
            'The best of several acoustic scales is found by transcripts: give a data directory '
            'with `text`, or one scale.'
        )


def _read_hypotheses(against: str, references: dict[str, str]) -> dict[str, str]:
    """Those of another system. Raises ConfigError where the two cannot be compared."""
    if not any(references.values()):
        raise ConfigError(
            f'against={against} needs transcripts: give a data directory with `text`.'
        )
    try:
        texts = read_text(against)
    except (OSError, ValueError) as error:
        raise ConfigError(f'against={against}: {error}') from error
    if not texts.keys() & references.keys():
        raise ConfigError(f'against={against} holds none of the utterances that are decoded here.')
    return texts


def _change(
    references: dict[str, str], texts: dict[str, str], other: dict[str, str]
) -> dict[str, Any]:
    """Paired bootstrap of the two systems."""
    change = evaluate.scored(references, texts).change(evaluate.scored(references, other))
    return {'wer_change': [change.low, change.high], 'wer_improves': change.improves}


def features_of(
    config: ml_collections.ConfigDict,
    files: recognizer.ModelFiles,
    records: Sequence[Utterance],
) -> feature_lib.FeatureSet:
    """Features as in training; names what it skips."""
    settings = dataclasses.replace(assembly.feature_config(config), sample_rate=files.sample_rate)
    features = feature_lib.compute(records, settings, require_text=False)
    for skipped in features.skipped:
        logger.warning('Skipped %s: %s', skipped.id, skipped.reason)
    if not features.ids:
        raise DataError(f'Nothing can be decoded. {features.first_skipped}')
    features.check_dim(files.num_inputs)
    return features


def _at(
    scale: float,
    recognize: recognizer.Recognizer,
    params: Any,
    features: feature_lib.FeatureSet,
    references: dict[str, str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Counts and hypotheses at one acoustic scale."""
    started = time.perf_counter()
    found = recognize(params, features, acoustic_scale=scale)
    row: dict[str, Any] = {'acoustic_scale': scale, 'decoding_s': time.perf_counter() - started}
    texts = {name: hypothesis.text for name, hypothesis in found.items()}
    if references:
        score = evaluate.scored(references, texts)
        logger.info('Acoustic scale %g: %s', scale, score)
        row |= pick(score, 'words', 'errors', 'insertions', 'deletions', 'substitutions')
        row['wer'] = _in_json(score.wer)
        row['wer_interval'] = [_in_json(end) for end in score.interval()]
    return row, texts


def _in_json(rate: float) -> float | None:
    """Without words a rate may be infinite, which JSON does not know."""
    return rate if math.isfinite(rate) else None
