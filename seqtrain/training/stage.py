"""Stages of a run. How one is run is in `fleet`."""

from __future__ import annotations

import dataclasses

import ml_collections


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of training with one criterion.

    Attributes:
      name: for the log, e.g. 'ce-2' or 'mmi'.
      kind: 'ce' or 'sequence'.
      updates: over all replicas.
      realign: whether the network realigns the training set before it starts.
    """

    name: str
    kind: str
    updates: int
    realign: bool


def plan(config: ml_collections.ConfigDict) -> list[Stage]:
    """CE from the first alignments, then after each realignment; the sequence criterion last.

    Without updates for the sequence criterion there is no such stage.
    """
    rounds = [
        Stage(f'ce-{r}', 'ce', config.bootstrap.updates, realign=r > 0)
        for r in range(ce_rounds(config))
    ]
    last = Stage(config.sequence.criterion, 'sequence', config.sequence.updates, realign=True)
    stages = [*rounds, last] if last.updates else rounds
    if not any(stage.updates for stage in stages):
        raise ValueError(
            'Nothing to train: there are no rounds or no updates in config.bootstrap, and '
            'config.sequence.updates is 0.'
        )
    return stages


def ce_rounds(config: ml_collections.ConfigDict) -> int:
    """Rounds of cross-entropy that train: those of `config.bootstrap`, if it has updates."""
    return config.bootstrap.rounds if config.bootstrap.updates else 0
