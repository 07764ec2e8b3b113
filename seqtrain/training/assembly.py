"""The parts of an experiment, made from its config: corpora, network, criteria.

With `serving` the only module that turns config sections into the layers' own dataclasses.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
from flax import nnx

from seqtrain import models, ops
from seqtrain.data import augment, corpora, kaldi
from seqtrain.data.features import FeatureConfig
from seqtrain.data.utterance import DataError, Utterance
from seqtrain.graphs import Lexicon, Topology, arpa
from seqtrain.graphs.ngram import UNK
from seqtrain.training import devices, lattice_outer, lattice_stage, prepare, steps
from seqtrain.training.batching import Batcher
from seqtrain.training.config import ConfigError, pick, section

_DATA = '../shared/data'


def load_split(data: ml_collections.ConfigDict, split: str) -> list[Utterance]:
    """The records of `train`, `dev` or `test`.

    Raises:
      DataError: the corpus or the folder is not there; the message says what to do.
    """
    name = getattr(data, split)
    if data.corpus == 'kaldi':
        records = list(kaldi.read_dir(located(name), allow_pipes=data.allow_pipes))
    else:
        records = list(_corpus(data, name).utterances)
    limit = getattr(data, f'max_{split}')
    return records[:limit] if limit else records


def located(path: str) -> str:
    """A path of the config; `$SEQTRAIN_DATA` in it is ../shared/data where it is not set."""
    return path.replace('$SEQTRAIN_DATA', os.environ.get('SEQTRAIN_DATA') or _DATA)


def load_lexicon(data: ml_collections.ConfigDict) -> Lexicon:
    """The lexicon that the config names, or the corpus's own."""
    if data.lexicon:
        return Lexicon.read(located(data.lexicon), silence=data.silence)
    if data.corpus == 'kaldi':
        raise DataError(
            'A Kaldi directory has no lexicon of its own: give --config.data.lexicon=FILE, with '
            'lines of a word and its phones.'
        )
    return Lexicon.from_dict(_corpus(data, data.train).lexicon)


def _corpus(data: ml_collections.ConfigDict, split: str) -> corpora.Corpus:
    return corpora.load(
        data.corpus, split, source=data.source or None, cache_dir=devices.cache_root(data.cache_dir)
    )


def feature_config(config: ml_collections.ConfigDict) -> FeatureConfig:
    return section(FeatureConfig, config.features)


def graph_config(config: ml_collections.ConfigDict) -> prepare.GraphConfig:
    names = ('topology', 'loop_probability', 'optional_silence', 'phone_lm_order')
    return prepare.GraphConfig(**pick(config.graph, *names), seed=config.seed)


def training_data(
    config: ml_collections.ConfigDict, topology: Topology | None = None
) -> prepare.TrainingData:
    """Features and graphs of the training set; `topology` has tied states, None monophones."""
    data = config.data
    return prepare.training_data(
        load_split(data, 'train'),
        load_lexicon(data),
        feature_config(config),
        graph_config(config),
        subsampling=config.model.subsampling,
        num_buckets=data.num_buckets,
        batch_size=data.batch_size,
        copies=copies(data),
        cache_dir=str(devices.cache_root(data.cache_dir) / 'features'),
        topology=topology,
    )


def copies(data: ml_collections.ConfigDict) -> list[tuple[float, float]]:
    """(speed, vtln) of the copies of the training set.

    Raises:
      ValueError: there are none, or factors that are none.
    """
    for name in ('speeds', 'vtln'):
        factors = data[name]
        if not factors or not all(isinstance(f, (int, float)) and f > 0 for f in factors):
            raise ValueError(
                f'config.data.{name} is {factors!r}: give one positive number or more, such as '
                '(1.0,), which leaves the recordings as they are.'
            )
    return list(itertools.product(data.speeds, data.vtln))


def check_silence(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError where silence is searched for that no transcript may have."""
    graph = config.graph
    searched = [
        name
        for name, probability in {
            'graph': graph.silence_probability,
            'lattice': config.lattice.silence_probability,
        }.items()
        if probability > 0
    ]
    if not graph.optional_silence and searched:
        raise ValueError(
            'config.graph.optional_silence=False trains no silence, but '
            f'config.{searched[0]}.silence_probability searches for it; set that to 0, too.'
        )


def check_language_models(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for an ARPA file that cannot be used, before any training."""
    for name, file in arpa_files(config).items():
        try:
            model = arpa.read(file)
        except FileNotFoundError as error:
            raise ValueError(f'config.{name}.word_lm: {error}') from None
        phones = name == 'lattice' and config.lattice.unit == 'phone'
        lexicon = load_lexicon(config.data)
        units = lexicon.of_phones().words if phones else lexicon.words
        if not (set(model.words) & set(units)) - {UNK}:
            raise ValueError(
                f'config.{name}.word_lm: {file} has no {"phone" if phones else "word"} of the '
                f'lexicon ({" ".join(units[:3])} ...): take a model of these, spelt as there.'
            )


def arpa_files(config: ml_collections.ConfigDict) -> dict[str, str]:
    """The language models that are given, by the section that names them."""
    return {name: config[name].word_lm for name in ('graph', 'lattice') if config[name].word_lm}


def masks(config: ml_collections.ConfigDict) -> augment.SpecAugmentConfig | None:
    """What is done to the features of a batch, if anything is."""
    settings = section(augment.SpecAugmentConfig, config.spec_augment)
    return settings if config.data.spec_augment else None


def batcher(config: ml_collections.ConfigDict, data: prepare.TrainingData) -> Batcher:
    return Batcher(data, config.seed, masks(config))


def network(
    config: ml_collections.ConfigDict, num_inputs: int, num_outputs: int
) -> tuple[steps.Network, Any]:
    """The model and its initial parameters."""
    model = config.model
    size = {'num_inputs': num_inputs, 'num_outputs': num_outputs}
    shared = pick(model, 'num_hidden', 'subsampling', 'dropout')
    rngs = nnx.Rngs(config.seed)
    if model.kind == 'tdnn':
        offsets = tuple(tuple(o) for o in model.offsets)
        made: Any = models.Tdnn(models.TdnnConfig(**size, **shared, offsets=offsets), rngs=rngs)
    elif model.kind == 'dnn':
        context = pick(model, 'num_layers', 'left', 'right')
        made = models.Dnn(models.DnnConfig(**size, **shared, **context), rngs=rngs)
    else:
        raise ConfigError(f'config.model.kind is {model.kind!r}; choose tdnn or dnn.')
    return steps.Network.make(made)


def step(
    config: ml_collections.ConfigDict, net: steps.Network, kind: str, topology: Topology
) -> Callable[..., Any]:
    """The compiled step of a kind of stage; its further arguments are `step_args`."""
    if kind == 'ce':
        return steps.make_step(net, steps.cross_entropy, config.exchange.clip_norm)
    settings = lattice_stage.sequence_config(config, topology)
    if lattice_stage.on_lattices(config) and config.lattice.mode == 'outer':
        return lattice_outer.make_frame_step(net, settings, config.exchange.clip_norm)
    return steps.make_step(
        net,
        lambda log_prior, graph: steps.sequence(log_prior, graph, settings),
        config.exchange.clip_norm,
    )


def step_args(kind: str, log_prior: np.ndarray, denominator: ops.Graph | None) -> tuple[Any, ...]:
    """Arguments of the step after the batch; without a shared denominator it is on lattices."""
    return (log_prior,) if kind == 'ce' else (log_prior, denominator)
