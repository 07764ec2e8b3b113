"""Forced alignment of a Kaldi data directory with a finished run: who speaks what, and when.

All pronunciations and optional silences of a transcript compete by the network's scores and the
HMMs' transitions alone; no language model has a say.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seqtrain import ops
from seqtrain.data import features as feature_lib
from seqtrain.data import kaldi
from seqtrain.data.buckets import Buckets
from seqtrain.data.features import FeatureConfig, FeatureSet
from seqtrain.data.utterance import DataError, Skipped
from seqtrain.graphs import (
    Lexicon,
    Topology,
    alignment_files,
    intervals,
    numerator,
    segments,
)
from seqtrain.graphs.intervals import FrameTimes, Interval
from seqtrain.training import assembly, devices, prepare, recognizer, start, steps
from seqtrain.training import config as config_lib
from seqtrain.training.workdir import Workdir

logger = logging.getLogger(__name__)

BATCH_SIZE = 16


def run(
    path: str | pathlib.Path,
    data: str,
    out: str,
    *,
    lexicon_file: str = '',
    reference: str = '',
    tolerance_ms: float = 30.0,
    allow_pipes: bool = False,
) -> dict[str, Any]:
    """Aligns a Kaldi data directory; see launch/align.py.

    Args:
      path: the folder of a run.
      data: a Kaldi data directory with `text`.
      out: folder for the alignments; made when missing.
      lexicon_file: pronunciations in the run's phones, of words beside those of the run.
      reference: CTM of phones to compare with; '' compares with nothing.
      tolerance_ms: how far apart boundaries may lie.
      allow_pipes: runs the shell commands in the directory's wav.scp.

    Returns:
      Counts, seconds, and with a reference the agreement (see `intervals.agreement`).

    Raises:
      DataError: no utterance can be aligned, or the features are not the network's.
      LexiconError: a phone that the run does not know; names file and line.
      CtmError: a malformed reference; names file and line. Or one of other utterances or phones.
    """
    given = alignment_files.read_ctm(reference) if reference else None
    settings, num_inputs, aligner = _loaded(path, lexicon_file)
    records = list(kaldi.read_dir(data, allow_pipes=allow_pipes))
    if given is not None:
        _check_reference(reference, given, {r.id for r in records}, aligner.lexicon.phones)
    features = feature_lib.compute(records, settings)
    features.check_dim(num_inputs)
    subsampling = aligner.network.subsampling
    features = prepare.usable(features, aligner.lexicon, aligner.topology, subsampling)
    started = time.perf_counter()
    pdfs, lost = aligner(features)
    seconds = time.perf_counter() - started
    shift_s = settings.frame_shift_ms / 1000
    found, unspelt = aligner.in_seconds(features, pdfs, shift_s)
    pdfs = {name: pdfs[name] for name in found}
    skipped = [*features.skipped, *lost, *unspelt]
    for one in skipped:
        logger.warning('Skipped %s: %s', one.id, one.reason)
    if not found:
        raise DataError(f'{data}: no utterance can be aligned; the log names why, one by one.')
    _write(pathlib.Path(out), found, pdfs, aligner)
    audio_s = shift_s * float(sum(features.num_frames))
    result: dict[str, Any] = {
        'utterances': len(pdfs),
        'skipped': len(skipped),
        'output': out,
        'alignment_s': seconds,
        'real_time_factor': seconds / max(audio_s, 1e-9),
    }
    if given is not None:
        result['agreement'] = _agreement(found, given, aligner.lexicon.silence, tolerance_ms)
    return result


@dataclasses.dataclass(frozen=True)
class Spoken:
    """One utterance's alignment in seconds; `end_s` is the utterance's end, with CTC's blanks."""

    words: list[Interval]
    phones: list[Interval]
    states: list[Interval]
    end_s: float


@dataclasses.dataclass(eq=False)
class Aligner:
    """A trained network that aligns transcripts.

    Attributes:
      network, params: the model.
      lexicon, topology: of the model.
      optional_silence: silence may stand between words.
    """

    network: steps.Network
    params: Any
    lexicon: Lexicon
    topology: Topology
    optional_silence: bool = True

    def __post_init__(self):
        self._align = steps.make_align(self.network)

    def __call__(self, features: FeatureSet) -> tuple[dict[str, np.ndarray], list[Skipped]]:
        """Pdfs per output frame by utterance id, and the utterances without a path."""
        graphs = [
            numerator(text, self.lexicon, self.topology, optional_silence=self.optional_silence)
            for text in features.texts
        ]
        buckets = Buckets.fit(features.num_frames, 3, batch_size=BATCH_SIZE)
        sizes = prepare.graph_sizes(buckets, features.num_frames, graphs)
        found: dict[str, np.ndarray] = {}
        skipped = []
        for bucket, indices in buckets.plan(range(len(features)), list(features.num_frames)):
            pdfs = self._batch(buckets, bucket, indices, features, graphs, sizes[bucket])
            for row, index in enumerate(indices):
                path = pdfs[row, : -(-int(features.num_frames[index]) // self.network.subsampling)]
                if (path >= 0).all():
                    found[features.ids[index]] = path
                else:
                    reason = 'no path through the transcript: the scores are not finite'
                    skipped.append(Skipped(features.ids[index], reason))
        return found, skipped

    def _batch(self, buckets, bucket, indices, features, graphs, size) -> np.ndarray:
        batch = buckets.batch(bucket, indices, features.features)
        numerators = ops.pack_batch(
            [graphs[i if i >= 0 else indices[0]] for i in batch.indices],  # padding: never read
            num_states=size[0],
            num_arcs=size[1],
            num_pdfs=self.topology.num_pdfs,
        )
        rows, frames = batch.features.shape[:2]
        labels = np.full((rows, -(-frames // self.network.subsampling)), -1, np.int32)
        device_batch = steps.DeviceBatch(
            batch.features, batch.lengths, labels, numerators, np.uint32(0)
        )
        return np.asarray(self._align(self.params, device_batch)[1])

    def in_seconds(
        self, features: FeatureSet, pdfs: Mapping[str, np.ndarray], shift_s: float
    ) -> tuple[dict[str, Spoken], list[Skipped]]:
        """Words, phones and states, and the utterances whose phones do not spell their words.

        Args:
          features: with the transcripts.
          pdfs: by utterance id; utterances that are not there are passed over.
          shift_s: of the features, in seconds.
        """
        result, skipped = {}, []
        names = self.lexicon.phones
        for name, text, frames in zip(
            features.ids, features.texts, features.num_frames, strict=True
        ):
            if name not in pdfs:
                continue
            times = FrameTimes(int(frames), shift_s, self.network.subsampling)
            try:
                parts, spans = intervals.spell(
                    segments(pdfs[name], self.topology), text, self.lexicon
                )
            except ValueError as error:
                skipped.append(Skipped(name, str(error)))
                continue
            result[name] = Spoken(
                intervals.word_intervals(spans, parts, times),
                intervals.phone_intervals(parts, names, times),
                intervals.state_intervals(parts, pdfs[name], self.topology, names, times),
                times.end_s,
            )
        return result, skipped


def _loaded(path: str | pathlib.Path, lexicon_file: str) -> tuple[FeatureConfig, int, Aligner]:
    """How a run's features are computed, how many per frame, and its network."""
    with Workdir(path, None) as workdir:
        config = config_lib.from_json(workdir.config)
        devices.set_up(1, config.data.cache_dir)
        files = recognizer.ModelFiles.read(workdir.path / 'model')
        lexicon = files.lexicon(workdir.path / 'model' / 'lexicon.txt')
        if lexicon_file:
            lexicon = lexicon.with_words(files.lexicon(lexicon_file).pronunciations)
        topology = start.topology(config, len(lexicon.phones), workdir.path)
        network, params = assembly.network(config, files.num_inputs, files.num_outputs)
        params, _ = recognizer.trained(config, workdir.path, params)
    settings = dataclasses.replace(assembly.feature_config(config), sample_rate=files.sample_rate)
    aligner = Aligner(network, params, lexicon, topology, config.graph.optional_silence)
    return settings, files.num_inputs, aligner


def _check_reference(
    file: str, given: Mapping[str, Sequence[Interval]], ids: set[str], phones: Sequence[str]
) -> None:
    """Raises CtmError for a reference that there is nothing to compare with."""
    labels = {one.label for spoken in given.values() for one in spoken}
    for what, theirs, ours in (('utterance', set(given), ids), ('phone', labels, set(phones))):
        if not theirs & ours:
            examples = (' '.join(sorted(names)[:2]) or 'nothing' for names in (theirs, ours))
            raise alignment_files.CtmError(
                f'{file} has no {what} of these data: {next(examples)} ... there, {next(examples)} '
                '... here. Times are counted from the beginning of each utterance, under its id.'
            )


def _write(
    out: pathlib.Path, found: Mapping[str, Spoken], pdfs: Mapping[str, np.ndarray], made_by: Aligner
) -> None:
    """`ali.ark` (pdfs), `phones.ark` (phones, from 1), three CTMs, a TextGrid per utterance."""
    (out / 'textgrid').mkdir(parents=True, exist_ok=True)
    phone_of_pdf = made_by.topology.phone_of_pdf()
    alignment_files.write_alignments(out / 'ali.ark', pdfs)
    phones = made_by.lexicon.phones
    number = np.where(phone_of_pdf < 0, len(phones), phone_of_pdf) + 1
    alignment_files.write_alignments(
        out / 'phones.ark', {name: number[one] for name, one in pdfs.items()}
    )
    names = ['<eps>', *phones, *(['<blk>'] if (phone_of_pdf < 0).any() else [])]  # CTC's blank
    table = ''.join(f'{phone} {n}\n' for n, phone in enumerate(names))
    (out / 'phones.txt').write_text(table, encoding='utf-8')
    for kind in ('words', 'phones', 'states'):
        rows = {name: getattr(one, kind) for name, one in found.items()}
        alignment_files.write_ctm(out / f'{kind}.ctm', rows)
    for name, one in found.items():
        file = out / 'textgrid' / f'{name.replace("/", "_")}.TextGrid'
        tiers = {'words': one.words, 'phones': one.phones, 'states': one.states}
        alignment_files.write_textgrid(file, tiers, one.end_s)


def _agreement(
    found: Mapping[str, Spoken],
    given: Mapping[str, Sequence[Interval]],
    silence: str,
    tolerance_ms: float,
) -> dict[str, Any]:
    phones = {name: one.phones for name, one in found.items()}
    result = intervals.agreement(phones, given, ignore=(silence,))
    differences_ms = 1000 * (result.differences_s if len(result.differences_s) else np.zeros(1))
    return {
        'utterances': result.utterances,
        'equal_utterances': result.equal,
        'phones': result.labels,
        'matched_phones': result.matched,
        'boundaries': len(result.differences_s),
        'tolerance_ms': tolerance_ms,
        'within': result.within(tolerance_ms / 1000),
        'mean_ms': float(differences_ms.mean()),
        'median_distance_ms': float(np.median(np.abs(differences_ms))),
    }
