"""Replicas as Ray actors, from the driver's side: briefs, realignment, and the line of each one.

A process that dies is an error of its replica (see `fleet`): it is started again, or its leases go
to others. What runs in the processes is in `remote`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np

from seqtrain.data.leases import Lease
from seqtrain.exchange import Partition
from seqtrain.exchange.transport.ray_lines import load_ray
from seqtrain.training import assembly, bootstrap, errors, lattice_stage, prepare
from seqtrain.training.fleet import Fleet
from seqtrain.training.holdings import Brief, Pool, checksum, saved_aligners
from seqtrain.training.lattice import Sizes
from seqtrain.training.leasing import by_speaker, parts
from seqtrain.training.monitor import Failure, Monitor, Update
from seqtrain.training.prepare import TrainingData
from seqtrain.training.remote import ReplicaError, ReplicaProcess
from seqtrain.training.stage import Stage

logger = logging.getLogger(__name__)


def make_brief(config: ml_collections.ConfigDict, data: TrainingData) -> Brief:
    """What the processes are told of the training set; nothing of an utterance is in it."""
    features = data.features
    texts, lexicon = features.transcripts, data.lexicon
    return Brief(
        config.to_dict(),
        tuple(_pools(config, data)),
        prepare.estimate_phone_lm(texts, lexicon, assembly.graph_config(config)),
        data.topology,
        data.denominator,
        data.buckets,
        tuple(data.graph_sizes),
        features.sample_rate,
        features.dim,
        lattice_stage.word_model(config, data) if lattice_stage.on_lattices(config) else None,
    )


def _pools(config: ml_collections.ConfigDict, data: TrainingData) -> list[Pool]:
    ids, speakers = data.features.ids, data.features.speakers
    split = parts(config, data)
    if not by_speaker(config):
        places = tuple(tuple(part) for part in split if len(part))
        return [Pool(tuple(range(len(data))), None, places, checksum(ids))]
    pools = []
    for part in map(sorted, split):
        who = tuple(sorted({speakers[i] for i in part}))
        places = (tuple(range(len(part))),)
        pools.append(Pool(tuple(part), who, places, checksum([ids[i] for i in part])))
    return pools


def first_labels(brief: Brief, labels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Alignments as `Holdings` wants them, of all pools: i32[sum of output lengths] each."""
    return [np.concatenate([labels[i] for i in pool.members]) for pool in brief.pools]


class _Fetched:
    """What the driver has put into Ray's store, by number; it comes when it is asked for."""

    def __init__(self, refs: Sequence[Any]):
        self._refs = refs

    def __getitem__(self, number: int) -> Any:
        return load_ray().get(self._refs[number])


class Hosts:
    """The processes of all replicas.

    Args:
      config: the run's.
      data: the whole training set.
      params: parameters of the network, for their shapes.
      endpoint: of the server.
      labels: i32[U] per utterance, the first alignments; None: processes make a flat start.
      folder: where the parameters that aligned are kept, for a run that is continued.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        data: TrainingData,
        params: Any,
        endpoint: Any,
        labels: Sequence[np.ndarray] | None,
        folder: pathlib.Path,
    ):
        ray = load_ray()
        folder.mkdir(exist_ok=True)
        self._ray, self._folder, self._endpoint = ray, folder, endpoint
        self._num_pdfs = data.topology.num_pdfs
        self._flat = Partition.make(params, 1)
        brief = make_brief(config, data)
        self._tasks = [
            (pool, part) for pool, one in enumerate(brief.pools) for part in range(len(one.parts))
        ]
        self._by_speaker = by_speaker(config)
        self._brief = ray.put(brief)
        self._first = None
        if labels is not None:
            self._first = _Fetched([ray.put(one) for one in first_labels(brief, labels)])
        settings = config.exchange
        tpus = {'TPU': settings.replica_tpus} if settings.replica_tpus else {}
        self._host = ray.remote(ReplicaProcess).options(
            num_cpus=0.1,
            num_gpus=settings.replica_gpus,
            resources=tpus,
            max_restarts=0,
            scheduling_strategy='SPREAD',
        )
        self._actors: dict[int, Any] = {}
        self._aligners = {n: ray.put(flat) for n, flat in saved_aligners(folder).items()}

    def pids(self) -> dict[int, int]:
        """The process ids by replica."""
        return {n: self._ray.get(actor.pid.remote()) for n, actor in self._actors.items()}

    def close(self) -> None:
        """Ends the processes. Idempotent."""
        for number in list(self._actors):
            self._discard(number)

    @contextlib.contextmanager
    def connect(
        self,
        number: int,
        life: int,
        index: int,
        stage: Stage,
        log_prior: np.ndarray,
        sizes: Sizes | None = None,
    ) -> Iterator[RemoteReplica]:
        """A replica in its process; when the body fails the process is ended.

        Args:
          number, life: the replica's.
          index: which stage of the run it is.
          stage: the stage.
          log_prior: f32[P].
          sizes: of batches of lattices, where the stage is on lattices.
        """
        actor = self._actor(number)
        opening = (stage.name, stage.kind, life, log_prior, sizes, *self._until(index))
        try:
            yield RemoteReplica(actor, opening)
        except BaseException:
            self._discard(number)
            raise

    def realign(
        self, index: int, stage: Stage, params: Any, fleet: Fleet, monitor: Monitor
    ) -> np.ndarray:
        """Lets the processes align all utterances by `params`; the log priors, f32[P].

        Every replica aligns its own part; that of a replica that is gone is done by others.
        """
        (flat,) = self._flat.split(params)
        unfinished = self._folder / f'{index}.tmp'
        with open(unfinished, 'wb') as file:
            np.save(file, flat)
        unfinished.replace(self._folder / f'{index}.npy')
        self._aligners[index] = self._ray.put(flat)
        aligners = self._until(index)
        counts = np.zeros(self._num_pdfs, np.int64)
        todo, calls = list(self._tasks), dict[Any, tuple[int, tuple[int, int]]]()
        while todo or calls:
            busy = {number for number, _ in calls.values()}
            for number in sorted(fleet.alive - busy):
                if (task := self._choose(number, todo, fleet)) is not None:
                    todo.remove(task)
                    calls[self._actor(number).count.remote(*task, *aligners)] = (number, task)
            (done,), _ = self._ray.wait(list(calls), num_returns=1)
            number, task = calls.pop(done)
            try:
                counts += _get(done)
            except ReplicaError as error:
                self._discard(number)
                todo.append(task)
                self._lost(number, error, stage, fleet, monitor)
        return bootstrap.log_frequencies(counts)

    def _choose(
        self, number: int, todo: Sequence[tuple[int, int]], fleet: Fleet
    ) -> tuple[int, int] | None:
        """A replica's own part, or one whose replica is gone."""
        place = 0 if self._by_speaker else 1
        own = [task for task in todo if task[place] == number]
        orphans = [task for task in todo if task[place] not in fleet.alive]
        return next(iter(own + orphans), None)

    def _lost(
        self, number: int, error: Exception, stage: Stage, fleet: Fleet, monitor: Monitor
    ) -> None:
        action = 'is started again' if fleet.lose(number, error) else 'is left out'
        done = len(monitor.updates)
        failure = Failure(stage.name, number, fleet.life(number), done, errors.line(error), action)
        monitor.failed(failure)
        logger.warning('%s', failure)
        if not fleet.alive:
            assert fleet.first_error is not None
            raise fleet.first_error

    def _until(self, index: int) -> list[Any]:
        """The aligners of all stages up to one, in order."""
        return [ref for stage, ref in sorted(self._aligners.items()) if stage <= index]

    def _actor(self, number: int) -> Any:
        if number not in self._actors:
            self._actors[number] = self._host.remote(
                number, self._brief, self._endpoint, self._first
            )
        return self._actors[number]

    def _discard(self, number: int) -> None:
        actor = self._actors.pop(number, None)
        if actor is not None:
            with contextlib.suppress(Exception):  # Ray may be gone already
                self._ray.kill(actor)


class RemoteReplica:
    """A replica in another process, for `fleet`: a round is sent while the one before is computed.

    Args:
      actor: the process.
      opening: arguments of `ReplicaProcess.open`.
    """

    def __init__(self, actor: Any, opening: tuple):
        self._actor = actor
        self.next_seq, self.wanted, self.horizon, clock = _get(actor.open.remote(*opening))
        self._shift = clock - (time.time() - time.perf_counter())
        self._calls: collections.deque[Any] = collections.deque()

    def train(
        self, leases: Sequence[Lease], position: int, following: Sequence[Lease] = ()
    ) -> list[Update]:
        """See `Replica.train`; what became of batches comes two rounds later."""
        self._calls.append(self._actor.train.remote(list(leases), position, list(following)))
        return self._taken() if len(self._calls) > 1 else []

    def finish(self) -> list[Update]:
        """See `Replica.finish`."""
        updates = []
        while self._calls:
            updates += self._taken()
        return updates + self._here(_get(self._actor.finish.remote()))

    def _taken(self) -> list[Update]:
        updates, self.wanted = _get(self._calls.popleft())
        return self._here(updates)

    def _here(self, updates: Sequence[Update]) -> list[Update]:
        """The same with times by this process's clock."""
        names = ('started_s', 'dispatched_s', 'finished_s')
        return [
            dataclasses.replace(one, **{name: getattr(one, name) + self._shift for name in names})
            for one in updates
        ]


def _get(call: Any) -> Any:
    """The result of a call; a process that died is a `ReplicaError`."""
    ray = load_ray()
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise ReplicaError(f'its process died: {errors.line(error)}') from None
