"""From recordings to what the replicas hold: features, transcripts as graphs, batch shapes.

Everything here runs once, on the host, before the first update. Utterances that cannot be used
are left out here, each with a reason. (One that is a frame or two too short for the pronunciations
that the phone model has drawn is masked and named when it is trained on.)
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import zlib
from collections.abc import Sequence

import numpy as np

from seqtrain.data import features as feature_lib
from seqtrain.data.buckets import Buckets
from seqtrain.data.features import FeatureConfig, FeatureSet
from seqtrain.data.utterance import DataError, Skipped, Utterance
from seqtrain.fsa import Fsa, min_frames
from seqtrain.graphs import (
    Lexicon,
    OovError,
    PhoneLm,
    Topology,
    denominator,
    numerator,
    training_phones,
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class GraphConfig:
    """How transcripts become graphs.

    Attributes:
      topology: 'chain', 'ctc', 'hmm1' or 'hmm3'.
      loop_probability: of staying in an HMM state; 0 takes the topology's own.
      optional_silence: silence may stand at word boundaries.
      phone_lm_order: of the denominator's phone n-gram (3 or 4: no smoothing below the trigram).
      seed: of the silences and pronunciations drawn for the phone n-gram's counts.
    """

    topology: str = 'chain'
    loop_probability: float = 0.0
    optional_silence: bool = True
    phone_lm_order: int = 3
    seed: int = 0

    def monophones(self, num_phones: int) -> Topology:
        """The context-independent topology."""
        return Topology.make(
            self.topology, num_phones, loop_probability=self.loop_probability or None
        )


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingData:
    """The training set, ready to be leased.

    Attributes:
      features: usable utterances (`features.skipped` names the others).
      numerators: one pdf graph per utterance, a matched pair with `denominator`.
      denominator: the shared pdf graph.
      buckets: batch shapes in input frames.
      graph_sizes: (states, arcs) to which a bucket's numerators are padded.
      lexicon, topology: what the graphs were made of.
      subsampling: input frames per output frame.
    """

    features: FeatureSet
    numerators: Sequence[Fsa]
    denominator: Fsa
    buckets: Buckets
    graph_sizes: Sequence[tuple[int, int]]
    lexicon: Lexicon
    topology: Topology
    subsampling: int

    def __len__(self) -> int:
        return len(self.features)

    @property
    def output_lengths(self) -> np.ndarray:
        """i32[utterances], frames at the network's output rate."""
        return -(-np.asarray(self.features.num_frames) // self.subsampling)

    def output_length(self, index: int) -> int:
        """The same of one utterance."""
        return -(-len(self.features.features[index]) // self.subsampling)

    @functools.cached_property
    def checksum(self) -> int:
        """Of ids, lengths and transcripts: what alignments belong to."""
        parts = zip(
            self.features.ids, self.features.num_frames.tolist(), self.features.texts, strict=True
        )
        return zlib.crc32('\n'.join(f'{name} {size} {text}' for name, size, text in parts).encode())

    def by_utterance(self, joined: np.ndarray) -> list[np.ndarray]:
        """What has a row per output frame, all utterances end to end, taken apart again."""
        return np.split(joined, np.cumsum(self.output_lengths)[:-1])


def training_data(
    utterances: Sequence[Utterance],
    lexicon: Lexicon,
    feature_config: FeatureConfig,
    graph_config: GraphConfig,
    *,
    subsampling: int,
    num_buckets: int,
    batch_size: int,
    copies: Sequence[tuple[float, float]] = ((1.0, 1.0),),
    cache_dir: str | None = None,
    topology: Topology | None = None,
) -> TrainingData:
    """Computes features and graphs of the training set.

    Args:
      utterances: the records; unusable ones are skipped, counted and named.
      lexicon: pronunciations; its phones define the network's outputs.
      feature_config, graph_config: see there.
      subsampling: of the network.
      num_buckets, batch_size: of the batch shapes.
      copies: (speed, vocal tract warp) of each copy of the training set.
      cache_dir: where features are cached; None for nowhere.
      topology: tied states; None takes the context-independent ones of `graph_config`.

    Raises:
      DataError: nothing usable is left.
    """
    features = feature_lib.compute_copies(utterances, feature_config, copies, cache_dir)
    topology = topology or graph_config.monophones(len(lexicon.phones))
    features = usable(features, lexicon, topology, subsampling)
    phone_lm = estimate_phone_lm(features.transcripts, lexicon, graph_config)
    graphs = numerators(features.texts, lexicon, topology, phone_lm, graph_config)
    for skipped in features.skipped:
        logger.warning('Skipped %s: %s', skipped.id, skipped.reason)
    buckets = Buckets.fit(features.num_frames, num_buckets, batch_size=batch_size)
    return TrainingData(
        features,
        graphs,
        denominator(phone_lm, topology),
        buckets,
        graph_sizes(buckets, features.num_frames, graphs),
        lexicon,
        topology,
        subsampling,
    )


def usable(
    features: FeatureSet, lexicon: Lexicon, topology: Topology, subsampling: int
) -> FeatureSet:
    """Leaves out what has words that the lexicon lacks, or too few frames for its words.

    This comes before the phone model: a transcript that is left out must not be counted in it.

    Raises:
      DataError: nothing is left.
    """
    needed: dict[str, int | OovError] = {}
    keep, skipped = [], []
    for i, text in enumerate(features.texts):
        if text not in needed:
            try:
                needed[text] = min_frames(numerator(text, lexicon, topology))
            except OovError as error:
                needed[text] = error
        problem = _problem(needed[text], int(features.num_frames[i]), subsampling)
        if problem:
            skipped.append(Skipped(features.ids[i], problem))
        else:
            keep.append(i)
    if not keep:
        none = features.select((), skipped)
        raise DataError(f'No usable utterance is left. {none.first_skipped}')
    return features.select(keep, skipped)


def _problem(needed: int | OovError, num_frames: int, subsampling: int) -> str:
    if isinstance(needed, OovError):
        return str(needed)
    output_frames = -(-num_frames // subsampling)
    if output_frames >= needed:
        return ''
    return (
        f'too short by {needed - output_frames} frames: {output_frames} frames after subsampling '
        f'by {subsampling}, and the transcript needs {needed}'
    )


def numerators(
    texts: Sequence[str],
    lexicon: Lexicon,
    topology: Topology,
    phone_lm: PhoneLm,
    config: GraphConfig,
) -> list[Fsa]:
    """One pdf graph per transcript; equal transcripts share one."""
    silence = config.optional_silence
    made = {
        text: numerator(text, lexicon, topology, phone_lm, optional_silence=silence)
        for text in dict.fromkeys(texts)
    }
    return [made[text] for text in texts]


def estimate_phone_lm(texts: Sequence[str], lexicon: Lexicon, config: GraphConfig) -> PhoneLm:
    """The denominator's phone model, from the transcripts alone (no alignment is needed).

    Args:
      texts: one per recording: what is said more often is more likely, and more of its
        pronunciations are drawn.
      lexicon, config: see there.
    """
    phones = training_phones(
        texts,
        lexicon,
        samples=5,
        seed=config.seed,
        silence_probability=0.5 if config.optional_silence else 0.0,
    )
    return PhoneLm.estimate(phones, lexicon.phones, order=config.phone_lm_order)


def graph_sizes(buckets: Buckets, num_frames, graphs: Sequence[Fsa]) -> list[tuple[int, int]]:
    """The largest numerator of each bucket; a longer bucket also takes the rest of shorter ones."""
    sizes = [(1, 1)] * len(buckets.shapes)
    for length, graph in zip(num_frames, graphs, strict=True):
        for bucket in range(buckets.of(int(length)), len(sizes)):
            states, arcs = sizes[bucket]
            sizes[bucket] = max(states, graph.num_states), max(arcs, graph.num_arcs)
    return sizes
