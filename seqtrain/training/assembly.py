"""The parts of an experiment, made from its config: corpora, network, server, criteria.

The only module that turns config sections into the layers' own dataclasses.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
import optax
from flax import nnx

from seqtrain import exchange, models, ops
from seqtrain.data import augment, corpora, kaldi
from seqtrain.data.features import FeatureConfig
from seqtrain.data.utterance import DataError, Utterance
from seqtrain.exchange import rules
from seqtrain.graphs import Lexicon, Topology
from seqtrain.training import devices, prepare, steps
from seqtrain.training.batching import Batcher
from seqtrain.training.config import pick, section

RULES: dict[str, Callable[[Any], rules.Rule]] = {
    'adam': rules.adam,
    'dc_asgd': rules.dc_asgd,
    'dc_asgd_adaptive': rules.dc_asgd_adaptive,
    'downpour_adagrad': rules.downpour_adagrad,
    'sgd': rules.sgd,
}


def load_split(data: ml_collections.ConfigDict, split: str) -> list[Utterance]:
    """The records of `train` or `test`.

    Raises:
      DataError: the corpus or the folder is not there; the message says what to do.
    """
    name = getattr(data, split)
    if data.corpus == 'kaldi':
        records = list(kaldi.read_dir(name))
    else:
        records = list(_corpus(data, name).utterances)
    limit = getattr(data, f'max_{split}')
    return records[:limit] if limit else records


def load_lexicon(data: ml_collections.ConfigDict) -> Lexicon:
    """The lexicon that the config names, or the corpus's own."""
    if data.lexicon:
        return Lexicon.read(data.lexicon)
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
        copies=list(itertools.product(data.speeds, data.vtln)),
        cache_dir=str(devices.cache_root(data.cache_dir) / 'features'),
        topology=topology,
    )


def batcher(config: ml_collections.ConfigDict, data: prepare.TrainingData) -> Batcher:
    masks = section(augment.SpecAugmentConfig, config.spec_augment)
    return Batcher(data, config.seed, masks if config.data.spec_augment else None)


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
        raise ValueError(f'config.model.kind is {model.kind!r}; choose tdnn or dnn.')
    return steps.Network.make(made)


def rule(config: ml_collections.ConfigDict, kind: str) -> rules.Rule:
    """The server's rule for stages of this kind, with its learning rate schedule."""
    name = config.exchange.rule
    if name not in RULES:
        raise ValueError(f'config.exchange.rule is {name!r}; choose one of {sorted(RULES)}.')
    if kind == 'ce':
        return _with_weights(config, RULES[name](config.bootstrap.learning_rate))
    per_version = config.exchange.num_replicas if config.exchange.mode == 'sync' else 1
    first, last = config.sequence.learning_rate, config.sequence.final_learning_rate
    versions = max(1, config.sequence.updates // per_version)
    return _with_weights(
        config, RULES[name](optax.exponential_decay(first, versions, last / first))
    )


def _with_weights(config: ml_collections.ConfigDict, chosen: rules.Rule) -> rules.Rule:
    """What is done to a gradient before the rule sees it."""
    before = []
    if config.exchange.scale_by_frames:
        before.append(rules.scale_by_frames())
    if config.exchange.scale_by_staleness:
        before.append(rules.scale_by_staleness())
    return rules.chain(*before, chosen) if before else chosen


def start_transport(config: ml_collections.ConfigDict) -> None:
    """What has to run before JAX does: Ray forks, which a process with JAX's threads must not."""
    if config.exchange.transport == 'ray':
        from seqtrain.exchange.transport import ray as ray_transport

        ray_transport.start(config.exchange.ray_address or None)


def server(
    config: ml_collections.ConfigDict,
    params: Any,
    kind: str,
    on_event: Callable[..., None],
    directory: pathlib.Path,
) -> Any:
    """The parameter server, with the rule of the stage that begins.

    Args:
      config: `exchange` names transport, mode and bounds.
      params: the initial parameters.
      kind: of the stage, for the rule.
      on_event: takes every event of the exchange.
      directory: where shards in processes of their own keep what they need to start again.

    Returns:
      A `LocalServer`, or a `RayServer` with the same methods.
    """
    settings = config.exchange
    policy = exchange.Policy(
        mode=settings.mode,
        num_workers=settings.num_replicas,
        max_staleness=None if settings.max_staleness < 0 else settings.max_staleness,
        on_stale=settings.on_stale,
    )
    first = rule(config, kind)
    if settings.transport == 'local':
        return exchange.LocalServer(params, settings.num_shards, first, policy, on_event=on_event)
    if settings.transport == 'ray':
        from seqtrain.exchange.transport import ray as ray_transport

        directory.mkdir(exist_ok=True)
        return ray_transport.RayServer(
            params,
            settings.num_shards,
            first,
            policy,
            directory=str(directory),
            checkpoint_every=config.checkpoint.every_updates,
            on_event=on_event,
        )
    raise ValueError(f'config.exchange.transport is {settings.transport!r}; choose local or ray.')


def step(
    config: ml_collections.ConfigDict, net: steps.Network, kind: str, topology: Topology
) -> Callable[..., Any]:
    """The compiled step of a kind of stage; its further arguments are `step_args`."""
    if kind == 'ce':
        return steps.make_step(net, steps.cross_entropy, config.exchange.clip_norm)
    settings = steps.SequenceConfig(
        **pick(config.sequence, 'criterion', 'boost', 'leaky', 'ce_weight', 'output_l2'),
        phone_of_pdf=tuple(topology.phone_of_pdf().tolist()),
    )
    return steps.make_step(
        net,
        lambda log_prior, graph: steps.sequence(log_prior, graph, settings),
        config.exchange.clip_norm,
    )


def step_args(kind: str, log_prior: np.ndarray, denominator: ops.Graph) -> tuple[Any, ...]:
    return (log_prior,) if kind == 'ce' else (log_prior, denominator)
