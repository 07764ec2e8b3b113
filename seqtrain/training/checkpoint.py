"""Checkpoints of a run by Orbax: shards, alignments, priors, and where the stages stand.

A checkpoint is written to a temporary folder and renamed, so a killed run leaves whole ones only.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import orbax.checkpoint as ocp


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message says which one and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Position:
    """Everything a run needs to go on.

    Attributes:
      stage: index of the stage.
      completed: updates of that stage that are done.
      updates: updates of the whole run that are done.
      shards: the server's snapshot. Replicas go on while it is taken: it may have pushes whose
        updates are not counted yet, up to one of each replica, two with overlap; a run that goes on
        from here makes as many updates more.
      leases: the lease book's state.
      labels: i32[sum of output lengths], the alignments end to end: the newest ones, or the run's
        first where the replicas are processes and make the others.
      log_prior: f32[P].
      data: `TrainingData.checksum`; 0 where it is not known.
    """

    stage: int
    completed: int
    updates: int
    shards: list[dict[str, Any]]
    leases: dict[str, Any]
    labels: np.ndarray
    log_prior: np.ndarray
    data: int = 0

    @property
    def trained(self) -> int:
        """Index of the stage that was trained last: at the start of one it is the one before."""
        return self.stage - (self.completed == 0)


class Checkpoints:
    """Saves and restores a `Position`; keeps the last few."""

    def __init__(self, folder: pathlib.Path, keep: int = 2):
        self._folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, position: Position) -> None:
        """Writes one; returns when it is safe."""
        step = self._step(position)
        if step in self._manager.all_steps():
            return
        arrays = {
            'shards': {str(s): shard['arrays'] for s, shard in enumerate(position.shards)},
            'labels': position.labels,
            'log_prior': position.log_prior,
        }
        meta = {
            'stage': position.stage,
            'completed': position.completed,
            'updates': position.updates,
            'shards': [shard['meta'] for shard in position.shards],
            'leases': position.leases,
            'data': position.data,
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta)
            ),
        )
        self._manager.wait_until_finished()

    def latest(self) -> Position | None:
        """The newest one, or None when there is none.

        Raises:
          CheckpointError: it is damaged.
        """
        step = self._manager.latest_step()
        return None if step is None else self._read(step)

    def newest(self, count: int) -> list[Position]:
        """Up to so many, the newest first, of the stage that was trained last.

        Raises:
          CheckpointError: one of them is damaged.
        """
        found: list[Position] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            if len(found) == count:
                break
            position = self._read(step)
            if found and position.trained != found[0].trained:
                break
            if not found or position.updates != found[-1].updates:
                found.append(position)
        return found

    def _read(self, step: int) -> Position:
        try:
            read = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.PyTreeRestore(), meta=ocp.args.JsonRestore()
                ),
            )
            arrays, meta = read.arrays, read.meta
            shards = [
                {'arrays': _shard(arrays['shards'][str(s)]), 'meta': one}
                for s, one in enumerate(meta['shards'])
            ]
            return Position(
                meta['stage'],
                meta['completed'],
                meta['updates'],
                shards,
                meta['leases'],
                np.asarray(arrays['labels'], np.int32),
                np.asarray(arrays['log_prior'], np.float32),
                meta.get('data', 0),
            )
        except Exception as error:  # whatever Orbax and tensorstore raise for damaged files
            raise CheckpointError(
                f'Checkpoint {self._folder / str(step)} cannot be read '
                f'({type(error).__name__}: {str(error).splitlines()[0][:200]}). Delete that '
                f'folder to go on from the one before, or start anew in another workdir.'
            ) from error

    def close(self) -> None:
        self._manager.close()

    @staticmethod
    def _step(position: Position) -> int:
        """Growing over the run: the end of a stage and the start of the next differ."""
        return 2 * position.updates + (position.completed == 0)


def _shard(arrays: dict[str, Any]) -> dict[str, Any]:
    """Orbax leaves out empty containers: a rule without state has none."""
    return {'values': arrays['values'], 'opt_state': arrays.get('opt_state') or []}
