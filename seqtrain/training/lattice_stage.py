"""A stage of training on lattices, made from the config: the search, the sizes of its batches."""

from __future__ import annotations

import dataclasses
import logging
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from seqtrain.data.utterance import DataError
from seqtrain.graphs import NGramLm, Topology
from seqtrain.training import devices, lattice, lattice_outer, steps
from seqtrain.training.batching import Batcher
from seqtrain.training.config import pick, section
from seqtrain.training.lattice import LatticeConfig, LatticeMaker, Made, Sizes
from seqtrain.training.lattice_outer import FrameBatcher
from seqtrain.training.lattice_source import LatticeWork, OuterWork
from seqtrain.training.prepare import TrainingData

logger = logging.getLogger(__name__)

_GRAPHS = ('lattice_free', 'lattice')
_FIRST_LOOK = 24  # utterances
_RIGHT_TO = 1e-4  # lattice-free occupancies, and a little more


def on_lattices(config: ml_collections.ConfigDict) -> bool:
    """Whether the sequence stage is on lattices; otherwise it is lattice-free.

    Raises:
      ValueError: fields that contradict each other.
    """
    graph = config.sequence.graph
    if graph not in _GRAPHS:
        raise ValueError(f'config.sequence.graph is {graph!r}; choose lattice_free or lattice.')
    if graph == 'lattice' and config.sequence.leaky:
        raise ValueError('config.sequence.leaky is for lattice-free graphs; set it to 0.')
    if graph == 'lattice' and config.sequence.acoustic_scale != 1:
        raise ValueError(
            'config.sequence.acoustic_scale is for lattice-free graphs; lattices have '
            'config.lattice.acoustic_scale.'
        )
    return graph == 'lattice'


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for fields of the sequence stage that contradict each other or the rest."""
    if on_lattices(config):
        lattice_config(config)
    else:
        section(LatticeConfig, config.lattice)  # nobody reads it, but its values must make sense
    _criterion(config)


def lattice_config(config: ml_collections.ConfigDict) -> LatticeConfig:
    """The section `lattice`, checked against the rest."""
    settings = section(LatticeConfig, config.lattice)
    if settings.correction and config.sequence.criterion != 'mmi':
        raise ValueError('config.lattice.correction is known for config.sequence.criterion=mmi.')
    if settings.mode == 'outer' and config.exchange.local_steps > 1:
        raise ValueError('config.lattice.mode=outer needs config.exchange.local_steps=1.')
    elsewhere = config.exchange.ray_replicas and config.data.split_by != 'speaker'
    if settings.mode != 'decode' and elsewhere:
        raise ValueError(
            f'config.lattice.mode={settings.mode} keeps lattices in the process that made them: '
            'with config.exchange.ray_replicas set config.data.split_by=speaker, so that every '
            'utterance stays with its process, or config.lattice.mode=decode.'
        )
    return settings


def make(
    config: ml_collections.ConfigDict,
    data: TrainingData,
    network: steps.Network,
    labels: Sequence[np.ndarray],
    folder: pathlib.Path,
    params: Any,
) -> LatticeWork:
    """What the replicas share to make lattices.

    Args:
      config: the run's.
      data, network: the run's.
      labels: an alignment per utterance.
      folder: of the run; keeps the sizes of batches, so that a restart has the same.
      params: of the network; a first look at lattices says how large batches must be.

    Raises:
      DataError: no utterance of that look has a lattice.
    """
    work = of_size(config, data, network, labels, word_model(config, data), Sizes.read(folder))
    if work.maker.sizes is not None:
        return work
    made, frames = _first_look(work.maker, work.forward, params)
    if all(one.reason for one in made):
        raise DataError(
            f'None of {len(made)} utterances has a lattice; the first: {made[0].reason}. '
            'Nothing can be learned from them: look at config.lattice.word_lm and beam, then go '
            'on from this network with config.start_from in another workdir.'
        )
    sizes = Sizes.fit(made, frames)
    sizes.write(folder)
    logger.info('Lattices: %s', _description(made, sizes, config.lattice.unit))
    return dataclasses.replace(work, maker=dataclasses.replace(work.maker, sizes=sizes))


def of_size(
    config: ml_collections.ConfigDict,
    data: TrainingData,
    network: steps.Network,
    labels: Sequence[np.ndarray],
    word_lm: NGramLm,
    sizes: Sizes | None,
) -> LatticeWork:
    """The same where the word model of the whole training set and the sizes are known.

    Args:
      config, data, network, labels: see `make`.
      word_lm: see `word_model`.
      sizes: of batches; None for a first look.
    """
    settings = lattice_config(config)
    cache = devices.cache_root(config.data.cache_dir) / 'graphs'
    lexicon = data.lexicon if settings.unit == 'word' else data.lexicon.of_phones()
    graph = lattice.denominator_graph(
        lexicon, data.topology, word_lm, cache, silence_probability(config)
    )
    maker = LatticeMaker(settings.generator(graph), data, sizes, settings.threads, settings.unit)
    outer = None
    if settings.mode == 'outer':
        outer = _outer(config, settings, data, network, labels)
    return LatticeWork(settings, maker, steps.make_forward(network), outer)


def silence_probability(config: ml_collections.ConfigDict) -> float:
    """Of a silence between two units of the denominators' graph."""
    own = config.lattice.silence_probability
    return config.graph.silence_probability if own < 0 else own


def word_model(config: ml_collections.ConfigDict, data: TrainingData) -> NGramLm:
    """The denominators' LM of words, or of phones, of the whole training set."""
    settings = config.lattice
    said = data.features.transcripts
    texts = [lattice.spelt(text, data.lexicon, settings.unit) for text in said]
    return lattice.word_model(texts, settings.word_lm_order, settings.word_lm)


def _outer(
    config: ml_collections.ConfigDict,
    settings: LatticeConfig,
    data: TrainingData,
    network: steps.Network,
    labels: Sequence[np.ndarray],
) -> OuterWork:
    criterion = sequence_config(config, data.topology)
    pdfs = data.topology.num_pdfs
    return OuterWork(
        lattice_outer.make_outer(network, criterion, settings.correction),
        Batcher(data, config.seed),
        FrameBatcher(network, data.features.features, labels, pdfs, settings.correction),
        max(rows * -(-frames // data.subsampling) for rows, frames in data.buckets.shapes),
    )


def sequence_config(config: ml_collections.ConfigDict, topology: Topology) -> steps.SequenceConfig:
    """The criterion of the sequence stage."""
    states = topology.state_of_pdf().tolist() if config.sequence.state_accuracy else ()
    return dataclasses.replace(
        _criterion(config),
        phone_of_pdf=tuple(topology.phone_of_pdf().tolist()),
        state_of_pdf=tuple(states),
    )


def _criterion(config: ml_collections.ConfigDict) -> steps.SequenceConfig:
    """What the config alone says of the criterion, without the tables of a topology."""
    names = ('criterion', 'mmi_weight', 'boost', 'risk_boost', 'max_silence_error', 'leaky')
    # Paths that a search left out have less than exp(−lattice beam) of the best one's mass.
    on_lattice = on_lattices(config)
    outside = math.exp(-config.lattice.lattice_beam) if on_lattice else _RIGHT_TO
    return steps.SequenceConfig(
        **pick(config.sequence, *names, 'ce_weight', 'output_l2', 'one_silence_class'),
        acoustic_scale=(config.lattice if on_lattice else config.sequence).acoustic_scale,
        drop_below=outside if config.sequence.drop_frames else None,
    )


def _first_look(maker: LatticeMaker, forward, params: Any) -> tuple[list[Made], list[int]]:
    """Lattices of a few utterances of all lengths, and their output frames."""
    data = maker.data
    by_length = np.argsort(data.features.num_frames, kind='stable')
    chosen = by_length[np.linspace(0, len(data) - 1, min(_FIRST_LOOK, len(data))).astype(int)]
    groups = data.buckets.plan(chosen.tolist(), data.features.num_frames.tolist())
    made, frames = [], []
    for bucket, indices in groups:
        batch = data.buckets.batch(bucket, indices, data.features.features)
        logits, lengths = (
            np.asarray(x)
            for x in jax.block_until_ready(forward(params, batch.features, batch.lengths))
        )
        for row, index in enumerate(indices):
            made.append(maker.utterance(logits[row, : lengths[row]], index, look=True))
            frames.append(int(lengths[row]))
    return made, frames


def _description(made: list[Made], sizes: Sizes, unit: str) -> str:
    good = [one for one in made if not one.reason]
    words = max(1, sum(one.words for one in good))
    errors = sum(one.oracle_errors for one in good)
    depth = sum(one.depth for one in good) / max(1, len(good))
    return (
        f'{len(good)} of {len(made)} utterances of a first look have one; {depth:.0f} arcs per '
        f'frame, oracle {unit} error rate {100 * errors / words:.1f} %; batches have room for '
        f'{sizes.denominator[1]:.0f} arcs per frame.'
    )
