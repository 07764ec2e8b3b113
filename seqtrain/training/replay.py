"""A recorded asynchronous run once more, by one thread, bit for bit.

The event log says in which order pushes were applied and from which versions they were computed;
`pushes.jsonl` says which utterances each of them came from. A replica that trained on its own
between pushes is a `LocalTrainer` here too, one per life of it. Everything else (features, graphs,
augmentation, dropout, alignments) is a function of the config.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from seqtrain import exchange, ops
from seqtrain.exchange import Event
from seqtrain.exchange.store import RuleLike
from seqtrain.training import (
    align,
    assembly,
    bootstrap,
    devices,
    lattice_stage,
    monitor,
    origin,
    server_rule,
    serving,
    start,
    steps,
)
from seqtrain.training import config as config_lib
from seqtrain.training.batching import Batcher
from seqtrain.training.checkpoint import Checkpoints
from seqtrain.training.lattice_replay import LatticeReplay
from seqtrain.training.leasing import lease_book, parts
from seqtrain.training.replica import LocalTraining
from seqtrain.training.stage import ce_rounds
from seqtrain.training.workdir import Workdir, WorkdirError

logger = logging.getLogger(__name__)


def run(path: str | pathlib.Path) -> dict[str, Any]:
    """Replays the run in `path` and compares its end with the newest checkpoint.

    Returns:
      JSON types: `identical`, `pushes`, `max_difference`, `shards`, and in `machine_changes` what
      is another than in the run and decides about last bits (threads, jax, ...); where the states
      are tied, the same of the monophone run under `mono`, and `identical` says it of both.

    Raises:
      WorkdirError: there is no finished run, or an ARPA file of its lattices is another now.
      ReplayError: the log is incomplete, or the run that this one began with has gone on since.
    """
    with Workdir(path, None) as workdir:
        config = config_lib.from_json(workdir.config)
        devices.set_up(devices.count(config.exchange), config.data.cache_dir)
        origin.check_denominators(config, workdir.path)
        changes = devices.machine_changes(workdir.path)
        for change in changes:
            logger.warning('The run was made with another %s: last bits may differ.', change)
        checkpoints = Checkpoints(workdir.sub('checkpoints'), config.checkpoint.keep)
        position = checkpoints.latest()
        checkpoints.close()
        if position is None or not (workdir.path / 'result.json').exists():
            raise WorkdirError(f'{workdir.path} holds no finished run: let launch/train.py end.')
        before = run(workdir.path / start.MONO) if start.needs_monophones(config) else None
        recorded = Recorded(config, workdir.path)
        stores = exchange.replay(
            recorded.events,
            recorded.params,
            config.exchange.num_shards,
            server_rule.make(config, 'ce' if ce_rounds(config) else 'sequence'),
            recorded.update,
            later_rules=[(rule, False) for rule in recorded.later_rules],
            codec=serving.CODECS[config.exchange.codec],
        )
    ends = [np.asarray(store.values) for store in stores]
    saved = [np.asarray(shard['arrays']['values']) for shard in position.shards]
    same = all(np.array_equal(a, b) for a, b in zip(ends, saved, strict=True))
    result = {
        'identical': same and (before is None or before['identical']),
        'max_difference': max(float(np.abs(a - b).max()) for a, b in zip(ends, saved, strict=True)),
        'pushes': recorded.computed,
        'shards': len(stores),
        'machine_changes': changes,
    }
    return result if before is None else {**result, 'mono': before}


class Recorded:
    """A run's log, and the means to make each of its updates again.

    Attributes:
      events: the exchange's log.
      params: the initial parameters.
      computed: updates made so far.
    """

    def __init__(self, config: ml_collections.ConfigDict, folder: pathlib.Path):
        self._config = config
        self.events = exchange.eventlog.causal(exchange.eventlog.read(folder / monitor.EVENTS)[1])
        self._pushes = monitor.read_pushes(folder)
        begun = start.begin(config, folder, keep=False)
        _check_source(config, begun.source, origin.Source.read(folder))
        self._data, self._network, self.params = begun.data, begun.network, begun.params
        self._batcher = assembly.batcher(config, self._data)
        self._denominator, self._lattices = None, None
        if lattice_stage.on_lattices(config):
            work = lattice_stage.make(
                config, self._data, self._network, begun.labels, folder, self.params
            )
            self._lattices = LatticeReplay(work)
        else:
            self._denominator = jax.device_get(ops.pack(self._data.denominator))
        self._align = steps.make_align(self._network)
        self._steps = {
            kind: assembly.step(config, self._network, kind, self._data.topology)
            for kind in ('ce', 'sequence')
        }
        self._book = lease_book(config, self._data)
        self._stage, self._labels = '', begun.labels
        self._log_prior = self._priors()
        self._aligned: dict[str, tuple[list[np.ndarray], np.ndarray]] = {}  # by stage, in order
        self._trainers: dict[int, tuple[int, int, exchange.LocalTrainer]] = {}
        self.computed = 0

    @property
    def later_rules(self) -> list[RuleLike]:
        """What a shard's rule was changed to, in order."""
        changes = (event for event in self.events if event.kind == 'rule' and event.shard == 0)
        return [server_rule.noted(self._config, event.note) for event in changes]

    def update(self, event: Event, params: Any) -> Any:
        """What was pushed, from the parameters that were pulled for it."""
        key = (event.worker, event.life, event.seq)
        if key not in self._pushes:
            raise exchange.ReplayError(
                f'Push {event.seq} of replica {event.worker} (life {event.life}) is not in '
                f'{monitor.PUSHES}.'
            )
        push = self._pushes[key]
        if push.stage != self._stage:
            self._begin(push.stage, params)
        self.computed += 1
        batches = self._batches(event, push, params)
        local = serving.local_training(self._config, push.stage)
        if local is None:
            return self._gradient(params, next(batches))
        trainer = self._trainer(event, local)
        return trainer.run(params, ((b, 1.0) for b in batches), local.rate(push.position)).update

    def _batches(self, event: Event, push: monitor.Push, params: Any) -> Iterator[Any]:
        """The batches of a push, each made when it is its turn."""
        lattices = None if _kind(push.stage) == 'ce' else self._lattices
        made_by = lattices.begin(event, params) if lattices else params
        for lease_id in push.leases:
            lease = self._book.lease(lease_id)
            batch = self._batcher.make(lease, jax.devices()[0], self._labels)
            if lattices is not None:
                batch, made_by = lattices.complete(lease, batch, made_by), params
            yield batch.device

    def _gradient(self, params: Any, batch: Any) -> Any:
        kind = _kind(self._stage)
        args = assembly.step_args(kind, self._log_prior, self._denominator)
        return self._steps[kind](params, batch, *args)[0]

    def _trainer(self, event: Event, local: LocalTraining) -> exchange.LocalTrainer:
        """The trainer of the replica's life, which must have seen every push before this one."""
        last = self._trainers.get(event.worker)
        trainer = local.trainer(self._gradient)
        if last is not None and last[0] == event.life:
            if event.seq != last[1] + 1:
                raise exchange.ReplayError(
                    f'Replica {event.worker} pushed {last[1] + 1} before {event.seq}, but no shard '
                    'logged it (one was killed with it): what the local optimiser kept of it is '
                    'lost, and the run cannot be replayed.'
                )
            trainer = last[2]
        self._trainers[event.worker] = (event.life, event.seq, trainer)
        return trainer

    def _begin(self, stage: str, params: Any) -> None:
        """Takes the alignments of a stage that begins, or that the run went back to.

        The first push of a stage was computed from the parameters that aligned for it.
        """
        self._stage = stage
        if stage in self._aligned:
            while next(reversed(self._aligned)) != stage:  # later ones will begin anew
                self._aligned.popitem()
            self._labels, self._log_prior = self._aligned[stage]
            return
        if stage != 'ce-0':
            places = devices.replica_devices(self._config.exchange.num_replicas)
            self._labels = align.realign(
                self._align,
                params,
                Batcher(self._data, self._config.seed),
                self._labels,
                places,
                parts(self._config, self._data),
            )
            self._log_prior = self._priors()
        self._aligned[stage] = self._labels, self._log_prior

    def _priors(self) -> np.ndarray:
        return bootstrap.log_priors(self._labels, self._data.topology.num_pdfs)


def _check_source(
    config: ml_collections.ConfigDict, found: origin.Source | None, noted: origin.Source | None
) -> None:
    """The network that a run began with must still be there."""
    if found is not None and noted is not None and found != noted:
        raise exchange.ReplayError(
            f'The run began with the network that {config.start_from} had after {noted.updates} '
            f'updates; that run has trained on since (its newest checkpoint is of '
            f'{found.updates}), so this one cannot be replayed.'
        )


def _kind(stage: str) -> str:
    """The kind of a stage by its name."""
    return 'ce' if stage.startswith('ce-') else 'sequence'
