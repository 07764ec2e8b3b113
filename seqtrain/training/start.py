"""Where a run's training begins: its data, first alignments and first parameters.

Monophones begin with a flat start. Tied states (`config.graph.context`) begin where a monophone run
ended, a run of its own in the folder `mono/` with its own server and checkpoints:

    mono/ flat start ─► CE, realignments ─► alignments ─► tree ─► the same alignments, tied
                                        └─► hidden layers; an output per tied state, a copy of the
                                            monophone's, so that training goes on where it stood

That run's network may see less (`config.bootstrap.mono_offsets`): one that sees far learns where
the flat start put the boundaries, one that sees little finds where they are. Then its alignments
are taken and its weights are not, and a run with monophones may have such a run before it, too.

With `config.start_from` a run begins where another one ended: several criteria from one network.

All of this is a function of the config and of that run's end, so that it can be made again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import scipy.fft

from seqtrain.exchange import Partition
from seqtrain.graphs import TiedTopology, Topology, relabel, segments, tie_by_counts, tree
from seqtrain.training import align, assembly, devices, holdings, recognizer, steps
from seqtrain.training import config as config_lib
from seqtrain.training.batching import Batcher
from seqtrain.training.checkpoint import Position
from seqtrain.training.leasing import parts
from seqtrain.training.prepare import TrainingData
from seqtrain.training.stage import plan
from seqtrain.training.workdir import WorkdirError, read_json, write_json

logger = logging.getLogger(__name__)

ALIGNERS = 'aligners'
MONO = 'mono'
_CONTEXTS = {'mono': '', 'biphone': 'left', 'triphone': 'both'}
_SOURCE = 'start_from.json'
_TYING = pathlib.Path('model') / 'tying.npz'


@dataclasses.dataclass(frozen=True)
class Source:
    """What the run in `config.start_from` was when another one began with its network.

    Attributes:
      updates: that it had done.
      params: checksum of its network.
      only_ce: whether it had trained by cross-entropy alone.
    """

    updates: int
    params: int
    only_ce: bool

    def write(self, folder: pathlib.Path) -> None:
        """Notes it in the folder of the run that begins."""
        write_json(folder / _SOURCE, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: pathlib.Path) -> Source | None:
        """What was noted; None where nothing was."""
        file = folder / _SOURCE
        return cls(**read_json(file)) if file.is_file() else None


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """What a run begins with.

    Attributes:
      data: the training set, its graphs in the run's topology.
      network, params: the model and its initial parameters.
      labels: i32[U] per utterance, the first alignments; empty where a checkpoint has newer ones.
      source: of the run in `config.start_from`.
    """

    data: TrainingData
    network: steps.Network
    params: Any
    labels: list[np.ndarray]
    source: Source | None = None


def is_tied(config: ml_collections.ConfigDict) -> bool:
    """Whether the run has tied states, and so a monophone run before it.

    Raises:
      ValueError: fields of `config.graph` that contradict each other.
    """
    graph = config.graph
    if graph.context not in _CONTEXTS:
        raise ValueError(
            f'config.graph.context is {graph.context!r}; choose one of {", ".join(_CONTEXTS)}.'
        )
    if graph.context == 'mono':
        return False
    if graph.tying not in ('tree', 'count'):
        raise ValueError(f'config.graph.tying is {graph.tying!r}; choose tree or count.')
    if graph.tying == 'count' and graph.context != 'biphone':
        raise ValueError('config.graph.tying=count knows biphones only; choose tree.')
    if graph.topology == 'ctc':
        raise ValueError('CTC blanks hide the neighbours: choose config.graph.context=mono.')
    return True


def needs_monophones(config: ml_collections.ConfigDict) -> bool:
    """Whether a monophone run in the folder `mono/` has to come first."""
    before = is_tied(config) or len(config.bootstrap.mono_offsets) > 0
    return before and not config.start_from


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for a monophone run that would train nothing."""
    if not needs_monophones(config):
        return
    if config.bootstrap.mono_rounds < 1:
        raise ValueError(
            f'config.bootstrap.mono_rounds is {config.bootstrap.mono_rounds}: tied states and '
            'mono_offsets begin where a monophone run ended, which needs at least 1.'
        )
    if not (config.bootstrap.mono_updates or config.bootstrap.updates):
        raise ValueError(
            'config.bootstrap.mono_updates and updates are 0: tied states and mono_offsets begin '
            'where a monophone run ended, which would train nothing.'
        )


def is_flat(config: ml_collections.ConfigDict) -> bool:
    """Whether a run begins with a flat start, which a replica's process makes for itself."""
    return not (config.start_from or needs_monophones(config))


def monophone_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config of the monophone run that comes first."""
    mono = config.copy_and_resolve_references()
    mono.graph.context = 'mono'
    mono.bootstrap.rounds = config.bootstrap.mono_rounds
    mono.bootstrap.updates = config.bootstrap.mono_updates or config.bootstrap.updates
    if config.bootstrap.mono_offsets:
        mono.model.kind, mono.model.offsets = 'tdnn', config.bootstrap.mono_offsets
        mono.bootstrap.mono_offsets = ()
    mono.bootstrap.final_learning_rate = config.bootstrap.learning_rate  # it is not the end
    mono.data.dev, mono.sequence.patience, mono.sequence.updates = '', 0, 0
    return mono


def begin(config: ml_collections.ConfigDict, folder: pathlib.Path) -> Start:
    """The start of a new run.

    Args:
      config: the run's.
      folder: the run's; it holds the finished monophone run if there has to be one, and gets
        `model/tying.npz` with tied states.
    """
    if config.start_from:
        return _continued(config, folder)
    if needs_monophones(config):
        return _after_monophones(config, folder)
    data = assembly.training_data(config)
    network, params = assembly.network(config, data.features.dim, data.topology.num_pdfs)
    return Start(data, network, params, align.flat_start(data))


def resume(config: ml_collections.ConfigDict, folder: pathlib.Path) -> Start:
    """Data and network of a run that has a checkpoint: no alignments, parameters of no meaning."""
    made = topology(config, len(assembly.load_lexicon(config.data).phones), folder)
    data = assembly.training_data(config, made)
    network, params = assembly.network(config, data.features.dim, data.topology.num_pdfs)
    return Start(data, network, params, [])


def topology(config: ml_collections.ConfigDict, num_phones: int, folder: pathlib.Path) -> Topology:
    """The topology of a run that has begun."""
    base = assembly.graph_config(config).monophones(num_phones)
    if not is_tied(config):
        return base
    return TiedTopology.read(folder / _TYING, base)


def _after_monophones(config: ml_collections.ConfigDict, folder: pathlib.Path) -> Start:
    mono = monophone_config(config)
    _check_phones(mono, folder / MONO)
    data = assembly.training_data(mono)
    net, params = assembly.network(mono, data.features.dim, data.topology.num_pdfs)
    params, position = recognizer.trained(mono, folder / MONO, params)
    labels = align.realign(
        steps.make_align(net),
        params,
        Batcher(data, mono.seed),
        newest_labels(mono, folder / MONO, position, data, net, params),
        devices.replica_devices(mono.exchange.num_replicas),
        parts(mono, data),
    )
    base_pdf = np.arange(data.topology.num_pdfs)
    if is_tied(config):
        tied = tie(config.graph, data, labels)
        (folder / 'model').mkdir(exist_ok=True)
        tied.write(folder / _TYING)
        logger.info('%d tied pdfs for %d monophone ones.', tied.num_pdfs, len(base_pdf))
        labels = [relabel(one, data.topology, tied) for one in labels]
        data, base_pdf = assembly.training_data(config, tied), tied.base_pdf
    net, fresh = assembly.network(config, data.features.dim, len(base_pdf))
    if not config.bootstrap.mono_offsets:
        fresh = widen(params, fresh, base_pdf)
    return Start(data, net, fresh, labels)


def _continued(config: ml_collections.ConfigDict, folder: pathlib.Path) -> Start:
    """Network, tying and alignments of the newest checkpoint in `config.start_from`."""
    source = pathlib.Path(config.start_from)
    if not (source / 'config.json').is_file():
        raise WorkdirError(f'config.start_from: {source} holds no run.')
    before = config_lib.from_json(json.loads((source / 'config.json').read_text()))
    _check_same(config, before)
    _check_phones(config, source)
    if is_tied(config) and folder.resolve() != source.resolve():
        (folder / _TYING).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / _TYING, folder / _TYING)
    begun = resume(config, folder)
    params, position = recognizer.trained(before, source, begun.params)
    labels = newest_labels(before, source, position, begun.data, begun.network, params)
    ce = only_ce(before, source, position)
    made = Source(position.updates, recognizer.checksum(params), ce)
    return dataclasses.replace(begun, params=params, labels=labels, source=made)


def only_ce(config: ml_collections.ConfigDict, folder: pathlib.Path, position: Position) -> bool:
    """Whether a run, at a checkpoint, has trained its network by cross-entropy alone."""
    begun = plan(config)[: position.stage + (position.completed > 0)]
    source = Source.read(folder)
    if not begun and source is not None:  # nothing yet: the network is still the other run's
        return source.only_ce
    return all(stage.kind == 'ce' for stage in begun)


def newest_labels(
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    position: Position,
    data: TrainingData,
    network: steps.Network,
    params: Any,
) -> list[np.ndarray]:
    """i32[U] per utterance: the alignments that a run had where it ended.

    The checkpoint has them, unless the run's replicas were processes, which made them for
    themselves: then they are made again by the parameters that aligned there.

    Args:
      config, folder, position: the run's; its newest checkpoint.
      data, network: in that run's topology.
      params: any parameters of the network, for their shapes.

    Raises:
      WorkdirError: they belong to other recordings or transcripts.
    """
    lengths = data.output_lengths.sum()
    if position.data not in (0, data.checksum) or len(position.labels) != lengths:
        raise WorkdirError(
            f'{folder} was trained on other utterances or transcripts, to which its alignments '
            'belong: put them back, or begin another run without it.'
        )
    labels = data.by_utterance(position.labels)
    if not config.exchange.ray_replicas:
        return labels
    last = position.stage - (position.completed == 0)  # the stage that was trained last
    saved, flat = holdings.saved_aligners(folder / ALIGNERS), Partition.make(params, 1)
    device = jax.local_devices()[0]
    made = holdings.Labels(
        data, labels, config.seed, steps.make_align(network), device, parts(config, data)
    )
    made.aligners = tuple(
        jax.device_put(flat.join([one]), device) for stage, one in saved.items() if stage <= last
    )
    return [made[index] for index in range(len(data))]


def _check_same(config: ml_collections.ConfigDict, before: ml_collections.ConfigDict) -> None:
    """The network can be taken over only where its inputs, shape and outputs are the same."""
    for part in ('features', 'model', 'graph'):
        for name, value in config[part].items():
            if part == 'graph' and name not in ('topology', 'context'):
                continue
            if (part, name) == ('model', 'dropout'):  # of training only
                continue
            other = before[part][name]
            if json.dumps(value) != json.dumps(other):  # JSON has no tuples
                raise WorkdirError(
                    f'config.{part}.{name} is {value!r}, but {other!r} in '
                    f'{config.start_from}: set it to the same, or start from another run.'
                )


def _check_phones(config: ml_collections.ConfigDict, source: pathlib.Path) -> None:
    """Outputs are states of phones by number: the names and their order must be the same."""
    phones = assembly.load_lexicon(config.data).phones
    before = recognizer.ModelFiles.read(source / 'model').phones
    if phones != before:
        first = next((p for p in (*phones, *before) if (p in phones) != (p in before)), None)
        why = 'in another order' if first is None else f'{first} is in one of them only'
        raise WorkdirError(
            f'config.data.lexicon has other phones than the run in {source} ({why}): take '
            'one with the same phones, or begin another run without it.'
        )


def tie(
    graph: ml_collections.ConfigDict, data: TrainingData, labels: Sequence[np.ndarray]
) -> TiedTopology:
    """Ties states by what the alignments say; see `config.graph`."""
    base: Topology = data.topology
    if graph.tying == 'count':
        spoken = ([part.phone for part in segments(one, base)] for one in labels)
        return tie_by_counts(spoken, base, min_count=graph.min_count)
    statistics = tree.ContextStatistics(base)
    for features, pdfs in zip(data.features.features, labels, strict=True):
        statistics.add(tree_features(features, data.subsampling), pdfs)
    return tree.grow(
        statistics,
        context=_CONTEXTS[graph.context],
        num_pdfs=graph.num_tied,
        min_frames=graph.min_count,
    )


def tree_features(features: np.ndarray, subsampling: int) -> np.ndarray:
    """f64[U, 26]: 13 cepstra of every output frame and their slope over ±2 input frames.

    The tree's Gaussians are diagonal and log-mel bands are not: the cosine transform makes them
    nearly so.
    """
    cepstra = scipy.fft.dct(np.asarray(features, np.float64), norm='ortho', axis=1)[:, :13]
    frames = np.arange(len(cepstra))
    ahead, behind = (np.clip(frames + step, 0, len(frames) - 1) for step in (2, -2))
    return np.concatenate([cepstra, cepstra[ahead] - cepstra[behind]], axis=1)[::subsampling]


def widen(params: Any, fresh: Any, base_pdf: np.ndarray) -> Any:
    """Parameters of a monophone network for tied states: output k is a copy of `base_pdf[k]`.

    Args:
      params: of the monophone network.
      fresh: of the network to be, for its shapes.
      base_pdf: i32[tied pdfs], the monophone pdf that each one refines.

    Logits are log-likelihoods, so every tied state begins with its monophone's; their priors are
    counted from the tied alignments.
    """
    output = {name: np.asarray(value)[..., base_pdf] for name, value in params['output'].items()}
    for name, value in output.items():
        assert value.shape == fresh['output'][name].shape
    return {**params, 'output': output}
