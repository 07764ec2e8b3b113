"""Where a run's training begins: its data, first alignments and first parameters.

Monophones begin with a flat start. Tied states (`config.graph.context`) begin where a monophone run
ended, a run of its own in the folder `mono/` with its own server and checkpoints:

    mono/ flat start ─► CE, realignments ─► alignments ─► tree ─► the same alignments, tied
                                        └─► hidden layers; an output per tied state, a copy of the
                                            monophone's, so that training goes on where it stood

That run's network may see less (`config.bootstrap.mono_offsets`): one that sees far learns where
the flat start put the boundaries, one that sees little finds where they are. Then its alignments
are taken and its weights are not, and a run with monophones may have such a run before it, too.
It may go on with lattice-free MMI (`config.bootstrap.mono_sequence_updates`), which sums over all
alignments of the reference: tied states that begin on its best ones make fewer errors, though its
boundaries are further from where phones begin (RESULTS.md).

With `config.start_from` a run begins where another one ended: several criteria from one network.
Where that one has monophones and this one tied states, it takes the place of the monophone run: a
flat start by lattice-free MMI, for instance.

All of this is a function of the config and of that run's end, so that it can be made again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import shutil
from typing import Any

import jax
import ml_collections
import numpy as np

from seqtrain.exchange import Partition
from seqtrain.graphs import TiedTopology, Topology, relabel
from seqtrain.training import align, assembly, devices, holdings, origin, recognizer, steps, tying
from seqtrain.training import config as config_lib
from seqtrain.training.batching import Batcher
from seqtrain.training.checkpoint import Position
from seqtrain.training.leasing import parts
from seqtrain.training.origin import Source
from seqtrain.training.prepare import TrainingData
from seqtrain.training.stage import ce_rounds, plan
from seqtrain.training.workdir import WorkdirError

logger = logging.getLogger(__name__)

ALIGNERS = 'aligners'
MONO = 'mono'
_TYING = pathlib.Path('model') / 'tying.npz'


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
    if graph.context not in tying.CONTEXTS:
        raise ValueError(
            f'config.graph.context is {graph.context!r}; choose one of {", ".join(tying.CONTEXTS)}.'
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
    """Raises ValueError for layers of no frames and a monophone run that would train nothing."""
    _check_offsets('bootstrap.mono_offsets', config.bootstrap.mono_offsets)
    if config.model.kind == 'tdnn':
        _check_offsets('model.offsets', config.model.offsets or ((),))
    updates = config.bootstrap.mono_sequence_updates
    if updates and not (is_tied(config) or config.bootstrap.mono_offsets):
        raise ValueError(
            f'config.bootstrap.mono_sequence_updates is {updates}, but there is no monophone run '
            'before this one: set it to 0, or config.graph.context to triphone.'
        )
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


def _check_offsets(name: str, layers: Any) -> None:
    """Raises ValueError for layers of a TDNN that splice nothing."""
    for layer in layers:
        frames = layer if isinstance(layer, (tuple, list)) else ()
        if not frames or not all(isinstance(frame, int) for frame in frames):
            raise ValueError(
                f'config.{name} is {layers}: give each layer its frames, as in ((-1,0,1),(-3,0,3)).'
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
    if config.bootstrap.mono_sequence_updates:
        mono.sequence = config_lib.default().sequence  # lattice-free MMI, κ = 1
        mono.sequence.updates = config.bootstrap.mono_sequence_updates
        mono.decode.acoustic_scale, mono.decode.phone_acoustic_scale = 1.0, 0.0
        mono.bootstrap.mono_sequence_updates = 0
    return mono


def begin(config: ml_collections.ConfigDict, folder: pathlib.Path, keep: bool = True) -> Start:
    """The start of a new run.

    Args:
      config: the run's.
      folder: the run's; it holds the finished monophone run if there has to be one, and gets
        `model/tying.npz` with tied states.
      keep: False leaves the folder as it is: a simulation or a replay only looks.
    """
    if config.start_from:
        return _continued(config, folder, keep)
    if needs_monophones(config):
        return _after_monophones(config, folder, keep)
    data = assembly.training_data(config)
    network, params = assembly.network(config, data.features.dim, data.topology.num_pdfs)
    return Start(data, network, params, align.flat_start(data, config.graph.optional_silence))


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


def _after_monophones(config: ml_collections.ConfigDict, folder: pathlib.Path, keep: bool) -> Start:
    mono = monophone_config(config)
    origin.check_phones(mono, folder / MONO)
    ended = _end(mono, mono, folder / MONO)
    target = folder if keep else None
    return _beyond(config, ended, target, widen=not config.bootstrap.mono_offsets)


def _continued(config: ml_collections.ConfigDict, folder: pathlib.Path, keep: bool) -> Start:
    """Network, tying and alignments of the newest checkpoint in `config.start_from`.

    Cross-entropy after a sequence criterion begins with alignments by that network.
    """
    source = pathlib.Path(config.start_from)
    if not (source / 'config.json').is_file():
        raise WorkdirError(f'config.start_from: {source} holds no run.')
    before = config_lib.from_json(json.loads((source / 'config.json').read_text()))
    refines = is_tied(config) and not is_tied(before)
    origin.check_same(config, before, refines)
    origin.check_phones(config, source)
    if refines:
        return _refined(config, before, source, folder if keep else None)
    if is_tied(config) and keep:
        (folder / _TYING).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / _TYING, folder / _TYING)
    begun = resume(config, folder if keep else source)
    params, position = recognizer.trained(before, source, begun.params)
    labels = newest_labels(before, source, position, begun.data, begun.network, params)
    made = _noted(before, source, position, params)
    if ce_rounds(config) and not made.only_ce:
        labels = _realigned(config, begun.data, begun.network, params, labels)
    return dataclasses.replace(begun, params=params, labels=labels, source=made)


def _refined(
    config: ml_collections.ConfigDict,
    before: ml_collections.ConfigDict,
    source: pathlib.Path,
    folder: pathlib.Path | None,
) -> Start:
    """Tied states from the monophones of `config.start_from`, lattice-free MMI's for instance."""
    mono = config.copy_and_resolve_references()
    mono.graph.context = 'mono'
    with mono.unlocked():
        mono.model = before.model
    same = not origin.differing(config, before, 'model')
    if not (same or ce_rounds(config)):
        raise WorkdirError(
            f'config.model is not that of {source}: the tied states would begin with an untrained '
            'network. Set config.bootstrap.rounds and updates to 1 or more, or config.model to '
            'the same.'
        )
    ended = _end(mono, before, source)
    begun = _beyond(config, ended, folder, widen=same)
    made = _noted(before, source, ended.position, ended.params)
    return dataclasses.replace(begun, source=made)


def _noted(
    before: ml_collections.ConfigDict, source: pathlib.Path, position: Position, params: Any
) -> Source:
    ce = only_ce(before, source, position)
    if not (source / 'result.json').is_file():
        logger.warning('%s has not ended: it stands at %d updates.', source, position.updates)
    return Source(position.updates, recognizer.checksum(params), ce)


@dataclasses.dataclass(frozen=True, eq=False)
class _End:
    """What a run with monophones came to.

    Attributes:
      data: the training set.
      params, position: of its newest checkpoint.
      labels: alignments by that network.
    """

    data: TrainingData
    params: Any
    position: Position
    labels: list[np.ndarray]


def _end(
    mono: ml_collections.ConfigDict, before: ml_collections.ConfigDict, source: pathlib.Path
) -> _End:
    """Where a run with monophones, in the folder `source`, ended.

    Args:
      mono: of the data and of the network.
      before: the run's own config.
    """
    data = assembly.training_data(mono)
    net, params = assembly.network(mono, data.features.dim, data.topology.num_pdfs)
    params, position = recognizer.trained(before, source, params)
    labels = newest_labels(before, source, position, data, net, params)
    return _End(data, params, position, _realigned(mono, data, net, params, labels))


def _realigned(
    config: ml_collections.ConfigDict,
    data: TrainingData,
    network: steps.Network,
    params: Any,
    labels: list[np.ndarray],
) -> list[np.ndarray]:
    """Alignments by a network; those that were there where no path fits."""
    return align.realign(
        steps.make_align(network),
        params,
        Batcher(data, config.seed),
        labels,
        devices.replica_devices(config.exchange.num_replicas),
        parts(config, data),
    )


def _beyond(
    config: ml_collections.ConfigDict, ended: _End, folder: pathlib.Path | None, widen: bool
) -> Start:
    """The start from a run with monophones: their states tied, where there is to be a context.

    Args:
      config: of the run that begins.
      ended: the run with monophones.
      folder: keeps the tree; None: nobody does.
      widen: begins with its network, else with a fresh one.
    """
    data, labels = ended.data, ended.labels
    base_pdf = np.arange(data.topology.num_pdfs)
    if is_tied(config):
        tied = tying.tie(config.graph, data, labels)
        if folder is not None:
            (folder / _TYING).parent.mkdir(exist_ok=True)
            tied.write(folder / _TYING)
        logger.info('%d tied pdfs for %d monophone ones.', tied.num_pdfs, len(base_pdf))
        labels = [relabel(one, data.topology, tied) for one in labels]
        data, base_pdf = assembly.training_data(config, tied), tied.base_pdf
    net, fresh = assembly.network(config, data.features.dim, len(base_pdf))
    if widen:
        fresh = tying.widen(ended.params, fresh, base_pdf)
    return Start(data, net, fresh, labels)


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
    saved, flat = holdings.saved_aligners(folder / ALIGNERS), Partition.make(params, 1)
    device = jax.local_devices()[0]
    made = holdings.Labels(
        data, labels, config.seed, steps.make_align(network), device, parts(config, data)
    )
    made.aligners = tuple(
        jax.device_put(flat.join([one]), device)
        for stage, one in saved.items()
        if stage <= position.trained
    )
    return [made[index] for index in range(len(data))]
