"""A trained network as a recogniser: features to hypotheses.

It stands in `workdir/model/` (decoding graphs, lexicon, shapes, sample rate) beside the
checkpoints, so that decoding needs neither the training data nor its lexicon.
"""

from __future__ import annotations

import dataclasses
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from seqtrain.data.buckets import Buckets
from seqtrain.data.features import FeatureSet
from seqtrain.decoding import Decoder, Hypothesis
from seqtrain.exchange import Partition
from seqtrain.graphs import DecodingGraph, Lexicon, NGramLm, Topology, decoding_graph
from seqtrain.training import steps
from seqtrain.training.checkpoint import Checkpoints, Position
from seqtrain.training.workdir import WorkdirError, read_json, write_json


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """What a recogniser needs beside the config and the parameters.

    Attributes:
      num_inputs, num_outputs: of the network.
      sample_rate: Hz that recordings must have; 0 where features were given.
      units: names of the decoding graphs, 'word' first.
      phones: names by phone id.
    """

    num_inputs: int
    num_outputs: int
    sample_rate: int
    units: tuple[str, ...]
    phones: tuple[str, ...]

    def write(
        self, folder: pathlib.Path, graphs: dict[str, DecodingGraph], lexicon: Lexicon
    ) -> None:
        for unit, graph in graphs.items():
            graph.write(folder / f'{unit}.fst')
        lexicon.write(folder / 'lexicon.txt')
        write_json(folder / 'model.json', dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: pathlib.Path) -> ModelFiles:
        """Reads what `write` wrote; WorkdirError where the run has not come so far yet."""
        file = folder / 'model.json'
        if not file.is_file():
            raise WorkdirError(f'{file} is not there yet: let launch/train.py run.')
        fields = read_json(file)
        lists = {name: tuple(fields[name]) for name in ('units', 'phones')}
        return cls(**{**fields, **lists})

    def graph(self, folder: pathlib.Path, unit: str) -> DecodingGraph:
        try:
            return DecodingGraph.read(folder / f'{unit}.fst')
        except ValueError as error:
            raise WorkdirError(f'{error} launch/train.py does it with the same command.') from None

    def lexicon(self, file: str | pathlib.Path) -> Lexicon:
        """The run's lexicon (`lexicon.txt` in its folder), or another one of its phones."""
        return Lexicon.read(file, phones=self.phones, silence=self.phones[0])


def trained(
    config: ml_collections.ConfigDict, folder: pathlib.Path, params: Any, average: int = 1
) -> tuple[Any, Position]:
    """The parameters of a run's newest checkpoint, and the checkpoint.

    Args:
      config: the run's.
      folder: the run's.
      params: any parameters of its network, for their shapes.
      average: takes the mean of the parameters in so many checkpoints of the last stage.

    Raises:
      WorkdirError: there is no checkpoint yet, or fewer than are to be averaged, or the run ends
        with a mean already, or went back to its best network, which later ones must not join.
    """
    last = config.sequence if config.sequence.updates else config.bootstrap
    if average > 1 and last.average:
        raise WorkdirError(
            f'{folder} ends with the mean of its last versions (config: average={last.average}). '
            'Decode it without.'
        )
    if average > 1 and config.data.dev and config.sequence.updates:
        raise WorkdirError(
            f'{folder} ends with the network that was best on config.data.dev: later checkpoints '
            'are worse, so that there is no average. Decode it without.'
        )
    checkpoints = Checkpoints(folder / 'checkpoints', config.checkpoint.keep)
    try:
        found = checkpoints.newest(average)
    finally:
        checkpoints.close()
    if not found:
        raise WorkdirError(f'{folder} has no checkpoint yet: let launch/train.py run.')
    if len(found) < average:
        raise WorkdirError(
            f'{folder} keeps {len(found)} checkpoints of its last stage, fewer than the {average} '
            'to be averaged: train with a larger --config.checkpoint.keep or a smaller '
            '--config.checkpoint.every_updates.'
        )
    several = [params_of(position, params) for position in found]
    if average == 1:
        return several[0], found[0]
    return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *several), found[0]


def params_of(position: Position, params: Any) -> Any:
    """The parameters of a checkpoint; `params` are any of its network, for their shapes."""
    values = [shard['arrays']['values'] for shard in position.shards]
    return Partition.make(params, len(values)).join(values)


def acoustic_scale(decode: ml_collections.ConfigDict, unit: str, only_ce: bool) -> float:
    """That of `config.decode` for words or phones, for a network before a criterion or after it."""
    if unit == 'phone':
        own = (only_ce and decode.ce_phone_acoustic_scale) or decode.phone_acoustic_scale
        if own:
            return own
    return decode.ce_acoustic_scale if only_ce else decode.acoustic_scale


def checksum(params: Any) -> int:
    """Of all values: whether two networks are the same."""
    result = 0
    for leaf in jax.tree.leaves(params):
        result = zlib.crc32(np.asarray(leaf).tobytes(), result)
    return result


def word_graph(
    texts: Sequence[str],
    lexicon: Lexicon,
    topology: Topology,
    order: int,
    arpa_file: str = '',
    smoothing: str = 'witten-bell',
    **options: Any,
) -> DecodingGraph:
    """The decoding graph over words.

    Args:
      texts: training transcripts.
      lexicon, topology: of the training set.
      order: of the word n-gram; 0 makes all words of the lexicon equally likely.
      arpa_file: a language model to take instead; its words without pronunciation are left out.
      smoothing: of the word n-gram, see `NGramLm.estimate`.
      **options: `silence_probability` and `cache_dir` of `graphs.decoding_graph`.
    """
    if arpa_file:
        from seqtrain.graphs import arpa

        return decoding_graph(lexicon, topology, arpa.read(arpa_file), skip_oov=True, **options)
    words = lexicon.words
    if order:
        sentences = [text.split() for text in texts]
        model = NGramLm.estimate(sentences, order, smoothing=smoothing, vocabulary=words)
    else:
        model = NGramLm.estimate([[word] for word in words], 1, vocabulary=words)
    return decoding_graph(lexicon, topology, model, **options)


def phone_graph(
    texts: Sequence[str], lexicon: Lexicon, topology: Topology, **options: Any
) -> DecodingGraph:
    """The decoding graph over phones: a phone bigram of the transcripts' pronunciations."""
    phones = lexicon.of_phones()
    sentences = [lexicon.canonical(text) for text in texts]
    model = NGramLm.estimate(sentences, 2, vocabulary=phones.words)
    return decoding_graph(phones, topology, model, **options)


@dataclasses.dataclass(eq=False)
class Recognizer:
    """Decodes features with a network; compiles once per batch shape.

    Attributes:
      network: the model.
      decoder: beam search over one of the graphs.
      batch_size: utterances per forward pass.
    """

    network: steps.Network
    decoder: Decoder
    batch_size: int = 16

    def __post_init__(self):
        self._forward = steps.make_forward(self.network)

    def __call__(
        self, params: Any, features: FeatureSet, acoustic_scale: float | None = None
    ) -> dict[str, Hypothesis]:
        """Hypotheses by utterance id; the network runs ahead of the search by one batch.

        Args:
          params: of the network.
          features: what to recognise.
          acoustic_scale: another one than the decoder's.
        """
        if not len(features):
            return {}
        decoder = self.decoder
        if acoustic_scale is not None:
            decoder = dataclasses.replace(decoder, acoustic_scale=acoustic_scale)
        buckets = Buckets.fit(features.num_frames, 3, batch_size=self.batch_size)
        hypotheses: dict[str, Hypothesis] = {}
        waiting = None
        for batch in buckets.batches(features.features):
            scored = (batch.indices, *self._forward(params, batch.features, batch.lengths))
            if waiting is not None:
                hypotheses |= _search(decoder, waiting, features.ids)
            waiting = scored
        return hypotheses | _search(decoder, waiting, features.ids)


def _search(decoder: Decoder, scored: Any, ids: Sequence[str]) -> dict[str, Hypothesis]:
    # One thread: kaldi-decoder holds Python's lock while it searches.
    indices, logits, lengths = (np.asarray(x) for x in scored)
    return {
        ids[index]: decoder.decode(logits[row, : lengths[row]])
        for row, index in enumerate(indices)
        if index >= 0
    }
