"""Stages of a run, and how one is run: N replica threads over one server."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Sequence

import jax
import ml_collections

from seqtrain.exchange import ExchangeError, LocalServer
from seqtrain.training.leasing import LeaseDesk
from seqtrain.training.monitor import Monitor
from seqtrain.training.replica import CompileGate, Work, run_replica


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
        for r in range(config.bootstrap.rounds)
    ]
    last = Stage(config.sequence.criterion, 'sequence', config.sequence.updates, realign=True)
    stages = [*rounds, last] if last.updates else rounds
    if not stages:
        raise ValueError('Nothing to train: bootstrap rounds and config.sequence.updates are 0.')
    return stages


def run_stage(
    server: LocalServer,
    devices: Sequence[jax.Device],
    work: Work,
    desk: LeaseDesk,
    monitor: Monitor,
    gate: CompileGate,
    *,
    every_updates: int,
    checkpoint: Callable[[], None],
    overlap: bool,
) -> None:
    """Trains one stage; returns when its budget is spent.

    Args:
      server: the parameters.
      devices: one per replica.
      work, desk, monitor, gate: see `run_replica`.
      every_updates: the distance of checkpoints.
      checkpoint: saves one; called here, in the main thread, while replicas go on.
      overlap: the next step is computed while the last push and pull are on their way; False
        waits for them first: the device idles meanwhile, updates are half as old.

    Raises:
      whatever a replica raised first; the others are stopped and waited for.
      KeyboardInterrupt: passed on after the replicas have finished their batches.
    """
    errors: list[BaseException] = []
    running = set(range(len(devices)))

    def run(number: int) -> None:
        try:
            device = devices[number]
            with server.connect(number, device=device, queue_size=1, overlap=overlap) as client:
                run_replica(number, device, client, work, desk, monitor, gate)
        except BaseException as error:
            errors.append(error)
            desk.stop()
            with contextlib.suppress(ExchangeError):  # the server may be what is gone
                server.expire(number)  # nobody waits for it any more
        finally:
            running.discard(number)
            monitor.wake()

    threads = [
        threading.Thread(target=run, args=(n,), name=f'replica-{n}') for n in range(len(devices))
    ]
    for thread in threads:
        thread.start()
    try:
        while running:
            due = desk.completed + every_updates
            monitor.wait_for(lambda: not running or desk.completed >= due)
            if running:
                checkpoint()
    finally:
        desk.stop()
        for thread in threads:
            thread.join()
    if errors:
        raise _first(errors)


def _first(errors: Sequence[BaseException]) -> BaseException:
    """The error that began it: one's own rather than the exchange's word that others ended."""
    return next((e for e in errors if not isinstance(e, ExchangeError)), errors[0])
