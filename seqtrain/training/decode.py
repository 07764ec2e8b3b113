"""Decoding with a finished run: its config, its model files, its newest checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import time
from typing import Any

from seqtrain.data import features as feature_lib
from seqtrain.data import kaldi
from seqtrain.decoding import Decoder, score_wer, write_text
from seqtrain.training import assembly, devices, recognizer, start
from seqtrain.training import config as config_lib
from seqtrain.training.config import pick
from seqtrain.training.workdir import Workdir

logger = logging.getLogger(__name__)


def run(path: str | pathlib.Path, data: str, output: str = '') -> dict[str, Any]:
    """Decodes a Kaldi data directory; see launch/decode.py.

    Args:
      path: the folder of a run.
      data: a Kaldi data directory; `text` is optional.
      output: file for the hypotheses; '' is decode/<name of the directory>/text in the run.

    Returns:
      Counts, seconds, real-time factor, and the error rate where there are references.
    """
    with Workdir(path, None) as workdir:
        config = config_lib.from_json(workdir.config)
        devices.set_up(1, config.data.cache_dir)
        files = recognizer.ModelFiles.read(workdir.path / 'model')
        graph = files.graph(workdir.path / 'model', 'word')
        network, params = assembly.network(config, files.num_inputs, files.num_outputs)
        params, position = recognizer.trained(config, workdir.path, params)
        records = list(kaldi.read_dir(data))
        settings = dataclasses.replace(
            assembly.feature_config(config), sample_rate=files.sample_rate
        )
        features = feature_lib.compute(records, settings, require_text=False)
        for skipped in features.skipped:
            logger.warning('Skipped %s: %s', skipped.id, skipped.reason)
        search = pick(config.decode, 'beam', 'max_active', 'acoustic_scale')
        if start.only_ce(config, workdir.path, position):
            search['acoustic_scale'] = config.decode.ce_acoustic_scale
        recognize = recognizer.Recognizer(network, Decoder(graph, **search))
        started = time.perf_counter()
        hypotheses = recognize(params, features)
        seconds = time.perf_counter() - started
        file = pathlib.Path(output or workdir.sub('decode') / pathlib.Path(data).name / 'text')
        file.parent.mkdir(parents=True, exist_ok=True)
        texts = {name: hypothesis.text for name, hypothesis in hypotheses.items()}
        write_text(file, texts)
    audio_s = float(sum(features.num_frames)) * settings.frame_shift_ms / 1000
    result: dict[str, Any] = {
        'utterances': len(texts),
        'skipped': len(features.skipped),
        'output': str(file),
        'decoding_s': seconds,
        'real_time_factor': seconds / max(audio_s, 1e-9),
    }
    references = {r.id: r.text for r in records if r.text}
    if references:
        score = score_wer(references, {k: v for k, v in texts.items() if k in references})
        counts = pick(score, 'wer', 'words', 'errors', 'insertions', 'deletions', 'substitutions')
        result = {**counts, **result}
    return result
