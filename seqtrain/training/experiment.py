"""One experiment: prepare, bootstrap by cross-entropy, sequence training, decoding, report.

Order on a restart: config check → newest checkpoint, if any → data and graphs (cached) → the stage
that it stands in, from the update that it stands at → what follows. With tied states a whole
monophone run in the folder `mono/` comes first (see `start`).
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
from contextlib import AbstractContextManager
from typing import Any

import jax
import ml_collections
import numpy as np

from seqtrain import ops
from seqtrain.exchange import eventlog
from seqtrain.training import (
    align,
    assembly,
    bootstrap,
    development,
    devices,
    evaluate,
    lattice_report,
    lattice_stage,
    origin,
    recognizer,
    run_report,
    server_rule,
    serving,
    start,
    steps,
)
from seqtrain.training import config as config_lib
from seqtrain.training.batching import Batcher
from seqtrain.training.checkpoint import Checkpoints, Position
from seqtrain.training.fleet import Connect, Fleet, ReplicaLike, run_stage
from seqtrain.training.lattice_source import LatticeWork
from seqtrain.training.leasing import LeaseDesk, by_speaker, lease_book, parts
from seqtrain.training.monitor import Monitor
from seqtrain.training.replica import CompileGate, Work, connected
from seqtrain.training.stage import Stage, plan
from seqtrain.training.workdir import Workdir, WorkdirError, read_json, write_json

logger = logging.getLogger(__name__)


def run(config: ml_collections.ConfigDict, path: str | pathlib.Path, quiet: bool = False) -> dict:
    """Runs an experiment, or what is left of it, and returns its result as JSON types.

    Args:
      config: see `seqtrain.training.config.default`.
      path: the run's folder.
      quiet: no progress, see `Monitor`.

    Raises:
      ConfigError, WorkdirError, DataError, CheckpointError, LexiconError: with a sentence that says
        what to do.
      KeyboardInterrupt: after a checkpoint was written; the same command goes on from there.
    """
    check(config)
    serving.start_transport(config)
    devices.set_up(devices.count(config.exchange), config.data.cache_dir)
    return _run(config, pathlib.Path(path), quiet)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for fields that contradict each other, before anything is made of them."""
    with config_lib.checking():
        config_lib.check(config)
        start.check(config)
        serving.check(config)
        lattice_stage.check(config)
        development.check(config)
        start.is_tied(config)
        by_speaker(config)
        assembly.feature_config(config)
        assembly.graph_config(config).monophones(1)
        assembly.masks(config)
        assembly.copies(config.data)
        assembly.check_silence(config)
        assembly.check_language_models(config)
        plan(config)


def _run(config: ml_collections.ConfigDict, path: pathlib.Path, quiet: bool) -> dict:
    with Workdir(path, config.to_dict(), config_lib.complete) as workdir:
        before = {}
        if start.needs_monophones(config):
            before = _monophone_run(config, path / start.MONO, quiet)
        experiment = Experiment(config, workdir, quiet)
        try:
            experiment.train()
            result = experiment.result()
        finally:
            experiment.close()
        if before:
            result['mono'] = {name: before[name] for name in ('wer', 'updates', 'training_s')}
        write_json(workdir.path / 'result.json', result)
        return result


def _monophone_run(config: ml_collections.ConfigDict, path: pathlib.Path, quiet: bool) -> dict:
    """The run before one with tied states, or its result where it has ended."""
    if (path / 'result.json').is_file():
        return read_json(path / 'result.json')
    if config.data.dev:
        assembly.load_split(config.data, 'dev')  # that run does not look whether it is there
    return _run(start.monophone_config(config), path, quiet)


class Experiment:
    """What a run holds in memory; the main thread's."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: Workdir, quiet: bool = False):
        self.config, self.workdir = config, workdir
        self.stages = plan(config)
        with contextlib.ExitStack() as resources:
            self.checkpoints = Checkpoints(workdir.sub('checkpoints'), config.checkpoint.keep)
            resources.callback(self.checkpoints.close)
            position = self.checkpoints.latest()
            if position is None:
                workdir.forget_attempt()
                begun = start.begin(config, workdir.path)
                origin.note_language(config, workdir.path)
            else:
                origin.check_language(config, workdir.path)
                begun = start.resume(config, workdir.path)
            devices.record_machine(workdir.path)
            self._prepare(begun, position)
            self._open(begun, position, resources, quiet)
            self._resources = resources.pop_all()  # kept open, unless something failed above

    def _prepare(self, begun: start.Start, position: Position | None) -> None:
        """What stays the same from the first to the last stage, and the alignments."""
        config, workdir = self.config, self.workdir
        self.data, self.network = begun.data, begun.network
        # Of replicas that are processes these stay the first ones: see `Position.labels`.
        self.labels = self._labels_of(position) if position else begun.labels
        self.evaluator = evaluate.Evaluator.make(config, self.data, workdir)
        self.batcher = assembly.batcher(config, self.data)
        self.denominator = None
        if not lattice_stage.on_lattices(config):
            self.denominator = jax.device_get(ops.pack(self.data.denominator))
        self.devices = devices.replica_devices(devices.count(config.exchange), trains=True)
        self.book = lease_book(config, self.data)
        self.gate = CompileGate()
        self.log_prior = np.zeros(0, np.float32)
        self._align = steps.make_align(self.network)
        self._steps: dict[str, Any] = {}

    def _open(
        self,
        begun: start.Start,
        position: Position | None,
        resources: contextlib.ExitStack,
        quiet: bool,
    ) -> None:
        """Monitor and server, at the position where the run stands."""
        self._stage = position.stage if position else 0
        self._completed = position.completed if position else 0
        total = sum(stage.updates for stage in self.stages)
        done = position.updates if position else 0
        self.development = None
        if self.stages[-1].kind == 'sequence':
            self.development = development.Development.make(
                self.config, self.data, self.evaluator, self.workdir, done
            )
        if self.development is not None:
            resources.callback(self.development.close)
        self.monitor = Monitor(self.workdir.path, total, resume_at=done, quiet=quiet)
        resources.callback(self.monitor.close)
        exchange = self.config.exchange
        self.fleet = Fleet(exchange.num_replicas, exchange.max_restarts, self.monitor.first_life)
        self._params = begun.params
        if begun.source is not None:
            begun.source.write(self.workdir.path)
        self.server = self._server(begun.params)
        resources.callback(self.server.close)
        self.hosts = serving.hosts(
            self.config,
            self.data,
            begun.params,
            self.server,
            None if start.is_flat(self.config) else self.labels,
            self.workdir.path / start.ALIGNERS,
        )
        if self.hosts is not None:
            resources.callback(self.hosts.close)
        self._restore(position)
        if not quiet:
            logger.info(run_report.beginning(self, begun.params))

    def train(self) -> None:
        """Runs the stages that are left."""
        for index in range(self._stage, len(self.stages)):
            stage = self.stages[index]
            if self._completed == 0:
                self._begin(index, stage)
            self._run(stage)
            self._stage, self._completed = index + 1, 0

    def result(self) -> dict[str, Any]:
        """Scores the trained network, writes the report, returns the last line of JSON."""
        params = self.server.params().params
        self.server.close()  # the last events arrive
        self.evaluator.score(self.final_model, params)
        result = run_report.summary(self)
        run_report.write(self, result, self._pictures(params))
        return result

    @property
    def final_model(self) -> str:
        """What the last stage made, in the table of error rates."""
        return 'ce' if self.stages[-1].kind == 'ce' else self.config.sequence.criterion

    @property
    def first_model(self) -> str:
        """What the sequence stage begins with, in the table of error rates."""
        source = origin.Source.read(self.workdir.path)
        if self.stages[0].kind == 'ce' or source is None or source.only_ce:
            return 'ce'
        return 'start'

    def close(self) -> None:
        """Frees everything; idempotent."""
        self._resources.close()

    # -- stages -----------------------------------------------------------------------------

    def _begin(self, index: int, stage: Stage) -> None:
        """What happens between stages: score the baseline, change the rule, realign."""
        params = self.server.params().params
        if stage.kind == 'sequence':
            self.evaluator.score(self.first_model, params)
        if index and self.stages[index - 1].kind != stage.kind:
            self.server.set_rule(server_rule.make(self.config, stage.kind), note=stage.name)
        if stage.realign and self.hosts is not None:
            self.log_prior = self.hosts.realign(index, stage, params, self.fleet, self.monitor)
        elif stage.realign:
            batcher = Batcher(self.data, self.config.seed)
            mine = parts(self.config, self.data)
            self.labels = align.realign(
                self._align, params, batcher, self.labels, self.devices, mine
            )
            self.log_prior = self._priors()

    def _run(self, stage: Stage) -> None:
        settings = self.config.exchange
        if stage.kind not in self._steps:
            self._steps[stage.kind] = assembly.step(
                self.config, self.network, stage.kind, self.data.topology
            )
        work = Work(
            stage.name,
            self._steps[stage.kind],
            assembly.step_args(stage.kind, self.log_prior, self.denominator),
            self.batcher,
            self.labels,
            serving.local_training(self.config, stage.name),
            self._lattices(stage, self.server.params().params),
        )
        desk = LeaseDesk(
            self.book,
            self.fleet.alive,
            stage.updates,
            equal_shares=settings.mode == 'sync' and not settings.backup_replicas,
            completed=self._completed,
        )
        options = serving.client_options(self.config)

        def connect(number: int, life: int) -> AbstractContextManager[ReplicaLike]:
            if self.hosts is not None:
                sizes = work.lattices.maker.sizes if work.lattices else None
                return self.hosts.connect(number, life, self._stage, stage, self.log_prior, sizes)
            device = self.devices[number]
            return connected(self.server, number, life, device, work, self.gate, options)

        self._drive(stage, desk, connect)

    def _drive(self, stage: Stage, desk: LeaseDesk, connect: Connect) -> None:
        """Trains a stage and saves checkpoints; may end with the best one of them, or a mean."""
        looks = self.development if stage.kind == 'sequence' else None
        mean = self._ends_with_mean(stage)
        done_before = self._completed

        def save() -> Position:
            with self.monitor.together():
                (done, leases), updates = desk.state(), len(self.monitor.updates)
            self._completed = done_before + done
            ended = self._completed >= stage.updates and looks is None and not mean
            return self._save(leases, updates, ended)

        def over() -> bool:
            """Saves a checkpoint; looks at it, too, unless looks have already ended the stage."""
            position = save()
            if looks is not None and not looks.over:
                looks.look(position, recognizer.params_of(position, self._params))
            return looks is not None and looks.over

        try:
            # The first look is at what the stage begins with, or goes on from after a break.
            if looks is None or not over():
                run_stage(
                    self.server,
                    self.fleet,
                    connect,
                    stage.name,
                    desk,
                    self.monitor,
                    every_updates=self.config.checkpoint.every_updates,
                    checkpoint=over,
                )
        finally:
            last = save()
        if looks is not None:
            over()
            self._go_back(looks.kept())
        if mean:
            rule = server_rule.make(self.config, stage.kind)
            self.server.set_rule(rule, note=server_rule.mean_note(stage.kind))
        if looks is not None or mean:
            self._save(last.leases, last.updates, True)

    def _ends_with_mean(self, stage: Stage) -> bool:
        """Whether the network is the mean of the last versions after this stage."""
        later = self.stages[self._stage + 1 :]
        last = all(other.kind != stage.kind for other in later)
        return last and server_rule.averages(self.config, stage.kind)

    def _lattices(self, stage: Stage, params: Any) -> LatticeWork | None:
        """What the replicas need to make lattices, where the stage is on lattices."""
        if stage.kind == 'ce' or not lattice_stage.on_lattices(self.config):
            return None
        folder = self.workdir.path
        return lattice_stage.make(self.config, self.data, self.network, self.labels, folder, params)

    def _pictures(self, params: Any) -> list[tuple[str, str]]:
        """A lattice of the trained network, where it was trained on lattices."""
        work = self._lattices(self.stages[-1], params)
        drawn = lattice_report.picture(work, params) if work is not None else None
        return [drawn] if drawn else []

    def _save(self, leases: dict[str, Any], updates: int, ended: bool) -> Position:
        """A checkpoint in the present stage, or at its end."""
        position = Position(
            self._stage + 1 if ended else self._stage,
            0 if ended else self._completed,
            updates,
            self.server.snapshot(),
            leases,
            np.concatenate(self.labels),
            self.log_prior,
            self.data.checksum,
        )
        self.checkpoints.save(position)
        return position

    # -- state ------------------------------------------------------------------------------

    def _server(self, params: Any) -> Any:
        # At the very start of a stage the rule is still the one of the stage before.
        stage = self.stages[max(0, self._stage - (self._completed == 0))]
        folder = self.workdir.path / 'shards'
        return serving.server(self.config, params, stage.kind, self.monitor.on_event, folder)

    def _restore(self, position: Position | None) -> None:
        if position is None:
            self.log_prior = self._priors()
            return
        self._go_back(position)
        self.book.restore(position.leases)
        self.log_prior = position.log_prior
        logger.info('Continuing from update %d.', position.updates)

    def _go_back(self, position: Position) -> None:
        """Gives the server the parameters of a checkpoint."""
        # What came after the checkpoint is in the log; if the run broke off twice since then, two
        # pasts must not have one name.
        newest = eventlog.newest_generations(self.monitor.events)
        for shard, snapshot in enumerate(position.shards):
            snapshot['meta']['after'] = newest.get(shard, 0)
        self.server.restore(position.shards)

    def _labels_of(self, position: Position) -> list[np.ndarray]:
        """The alignments of a checkpoint, which belong to the utterances that it was made with."""
        if position.data not in (0, self.data.checksum):
            raise WorkdirError(
                f'{self.workdir.path}: the recordings or transcripts are not those that this run '
                'began with. Put them back, or begin another run in another workdir.'
            )
        return self.data.by_utterance(position.labels)

    def _priors(self) -> np.ndarray:
        return bootstrap.log_priors(self.labels, self.data.topology.num_pdfs)
