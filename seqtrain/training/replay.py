"""A recorded asynchronous run once more, by one thread, bit for bit.

The event log says in which order pushes were applied and from which versions they were computed;
`pushes.jsonl` says which utterances each of them came from. Everything else (features, graphs,
augmentation, dropout, alignments) is a function of the config.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from seqtrain import exchange, ops
from seqtrain.exchange import Event
from seqtrain.training import align, assembly, bootstrap, devices, monitor, start, steps
from seqtrain.training import config as config_lib
from seqtrain.training.batching import Batcher
from seqtrain.training.checkpoint import Checkpoints
from seqtrain.training.leasing import lease_book, parts
from seqtrain.training.workdir import Workdir, WorkdirError


def run(path: str | pathlib.Path) -> dict[str, Any]:
    """Replays the run in `path` and compares its end with the newest checkpoint.

    Returns:
      JSON types: `identical`, `pushes`, `max_difference`, `shards`; where the states are tied, the
      same of the monophone run under `mono`, and `identical` says it of both.

    Raises:
      WorkdirError: there is no finished run.
      ReplayError: the log is incomplete.
    """
    with Workdir(path, None) as workdir:
        config = config_lib.from_json(workdir.config)
        devices.set_up(config.exchange.num_replicas, config.data.cache_dir)
        checkpoints = Checkpoints(workdir.sub('checkpoints'), config.checkpoint.keep)
        position = checkpoints.latest()
        checkpoints.close()
        if position is None or not (workdir.path / 'result.json').exists():
            raise WorkdirError(f'{workdir.path} holds no finished run: let launch/train.py end.')
        before = run(workdir.path / start.MONO) if start.is_tied(config) else None
        recorded = Recorded(config, workdir.path)
        stores = exchange.replay(
            recorded.events,
            recorded.params,
            config.exchange.num_shards,
            assembly.rule(config, 'ce' if config.bootstrap.rounds else 'sequence'),
            recorded.gradient,
            later_rules=[(assembly.rule(config, 'sequence'), False)] * recorded.rule_changes,
        )
    ends = [np.asarray(store.values) for store in stores]
    saved = [np.asarray(shard['arrays']['values']) for shard in position.shards]
    same = all(np.array_equal(a, b) for a, b in zip(ends, saved, strict=True))
    result = {
        'identical': same and (before is None or before['identical']),
        'max_difference': max(float(np.abs(a - b).max()) for a, b in zip(ends, saved, strict=True)),
        'pushes': recorded.computed,
        'shards': len(stores),
    }
    return result if before is None else {**result, 'mono': before}


class Recorded:
    """A run's log, and the means to make each of its gradients again.

    Attributes:
      events: the exchange's log.
      params: the initial parameters.
      computed: gradients made so far.
    """

    def __init__(self, config: ml_collections.ConfigDict, folder: pathlib.Path):
        self._config = config
        self.events = exchange.eventlog.causal(exchange.eventlog.read(folder / monitor.EVENTS)[1])
        self._pushes = monitor.read_pushes(folder)
        begun = start.begin(config, folder)
        self._data, self._network, self.params = begun.data, begun.network, begun.params
        self._batcher = assembly.batcher(config, self._data)
        self._denominator = jax.device_get(ops.pack(self._data.denominator))
        self._align = steps.make_align(self._network)
        self._steps = {
            kind: assembly.step(config, self._network, kind, self._data.topology)
            for kind in ('ce', 'sequence')
        }
        self._book = lease_book(config, self._data)
        self._stage, self._labels = '', begun.labels
        self._log_prior = self._priors()
        self.computed = 0

    @property
    def rule_changes(self) -> int:
        """How often a shard's rule was changed."""
        return sum(event.kind == 'rule' and event.shard == 0 for event in self.events)

    def gradient(self, event: Event, params: Any) -> Any:
        """The gradient of one push, from the parameters that it was computed from."""
        key = (event.worker, event.generations[0], event.seq)
        if key not in self._pushes:
            raise exchange.ReplayError(
                f'Push {event.seq} of replica {event.worker} is not in {monitor.PUSHES}.'
            )
        stage, lease_id = self._pushes[key]
        if stage != self._stage:
            self._begin(stage, params)
        kind = 'ce' if stage.startswith('ce-') else 'sequence'
        args = assembly.step_args(kind, self._log_prior, self._denominator)
        lease = self._book.lease(lease_id)
        batch = self._batcher.make(lease, jax.devices()[0], self._labels)
        self.computed += 1
        return self._steps[kind](params, batch.device, *args)[0]

    def _begin(self, stage: str, params: Any) -> None:
        """The first push of a stage was computed from the parameters that aligned for it."""
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
        self._stage = stage

    def _priors(self) -> np.ndarray:
        return bootstrap.log_priors(self._labels, self._data.topology.num_pdfs)
