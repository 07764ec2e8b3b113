"""What a run remembers of its updates: in memory, as JSON lines, in TensorBoard, on the screen.

Replicas call `add` from their threads; the main thread waits on `wait_for`. Four files grow by
lines and are never rewritten: `pushes.jsonl`, which leases each push came from; `updates.jsonl`,
each batch as its replica saw it; `events.jsonl`, what the shards did (see `exchange.eventlog`);
`failures.jsonl`, replicas that failed.
After a crash they may know of more updates than the checkpoint; their numbers are then given once
more, and the later line counts.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib.util
import json
import logging
import pathlib
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TextIO

from rich import console as rich_console
from rich import progress as rich_progress

from seqtrain import extras
from seqtrain.exchange import Event, eventlog
from seqtrain.training.leasing import Grant
from seqtrain.training.workdir import WorkdirError

logger = logging.getLogger(__name__)

UPDATES, EVENTS, PUSHES = 'updates.jsonl', 'events.jsonl', 'pushes.jsonl'
FAILURES = 'failures.jsonl'
_LINES = 20  # of a run's progress, in a log


@dataclasses.dataclass(frozen=True)
class Update:
    """One batch as its replica saw it; a push has one, or one per local step.

    Attributes:
      stage: name of the stage.
      replica, life, seq: who pushed, in which of its lives, and the push's number.
      generation: of the first shard, when the parameters were pulled.
      lease: id of the lease it was computed from.
      versions: versions of the parameters, per shard, that it was computed from.
      frames: output frames of the batch.
      metrics: scalars of the step.
      invalid: (utterance, reason) of utterances that contributed nothing.
      started_s, dispatched_s, finished_s: when the host began the batch, when the step was given
        to the device, when its metrics were there; seconds of training.
      number: counts the run's updates from 1; given by the monitor.
      reasons: (utterance, sentence) of utterances that have no lattice.
    """

    stage: str
    replica: int
    seq: int
    generation: int
    lease: tuple[int, int, int]
    versions: tuple[int, ...]
    frames: int
    metrics: dict[str, float]
    invalid: list[tuple[int, int]]
    started_s: float
    dispatched_s: float
    finished_s: float
    number: int = 0
    life: int = 0
    reasons: list[tuple[int, str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Push:
    """What a push was made from.

    Attributes:
      stage: name of the stage.
      leases: ids, one per local step.
      position: leases of the stage that were handed out before.
    """

    stage: str
    leases: tuple[tuple[int, int, int], ...]
    position: int


@dataclasses.dataclass(frozen=True)
class Failure:
    """A replica that failed: where, in which life, after how many updates, why, what was done."""

    stage: str
    replica: int
    life: int
    updates: int
    error: str
    action: str

    def __str__(self) -> str:
        return (
            f'replica {self.replica} (life {self.life}) failed in {self.stage} after '
            f'{self.updates} updates and {self.action}: {self.error}'
        )


class Monitor:
    """Collects updates; see the module.

    Args:
      folder: the run's folder.
      total: updates of the whole run, for the progress.
      resume_at: updates that the checkpoint counts; what was logged beyond is forgotten.
      quiet: no progress: neither a bar nor, where nothing is a terminal, twenty lines of log.
    """

    def __init__(self, folder: pathlib.Path, total: int, resume_at: int = 0, quiet: bool = False):
        self._condition, self._folder = threading.Condition(), folder
        known = {row.number: row for row in read_updates(folder)}
        lost = [number for number in range(1, resume_at + 1) if number not in known]
        if lost:
            raise WorkdirError(
                f'{folder / UPDATES} has lost update {lost[0]}, which a checkpoint counts: '
                f'delete the newest folders in {folder / "checkpoints"} to go on from before it.'
            )
        self.updates = [known[number] for number in range(1, resume_at + 1)]
        self._file = _append(folder / UPDATES)
        self.first_life = 1 + max((key[1] for key in read_pushes(folder)), default=-1)
        self._pushes = _append(folder / PUSHES)
        self.failures = [Failure(**row) for row in _read(folder / FAILURES)]
        self._failures = _append(folder / FAILURES)
        log = folder / EVENTS
        self.events: list[Event] = eventlog.read(log)[1] if log.exists() else []
        self._log = eventlog.EventLog(log)
        self._ages: collections.deque[int] = collections.deque(maxlen=64)
        self._writer = extras.load('tensorboardX').SummaryWriter(str(folder / 'tensorboard'))
        # A resumed run continues its own clock: the pause between is not part of the time line.
        offset = self.updates[-1].finished_s if self.updates else 0.0
        self.start_s = time.perf_counter() - offset
        self._total = total
        self._bar = _bar(quiet)
        self._task = self._bar.add_task(
            'starting',
            total=total,
            completed=len(self.updates),
            loss='-',
            rate='-',
            staleness='-',
        )
        self._bar.start()
        shown = quiet or self._bar.console.is_terminal or self._bar.console.is_jupyter
        self._line_every = 0 if shown else max(1, total // _LINES)

    def pushing(self, stage: str, replica: int, life: int, seq: int, grant: Grant) -> None:
        """Notes what a push will be made from: a replay needs it whatever happens next."""
        row = [stage, replica, life, seq, [one.id for one in grant.leases], grant.position]
        with self._condition:
            self._pushes.write(json.dumps(row) + '\n')

    def add(self, update: Update) -> None:
        """Takes one update; called in the replicas' threads."""
        with self._condition:
            times = {
                name: round(getattr(update, name) - self.start_s, 6)
                for name in ('started_s', 'dispatched_s', 'finished_s')
            }
            number = len(self.updates) + 1
            update = dataclasses.replace(update, **times, number=number)
            self.updates.append(update)
            self._file.write(json.dumps(dataclasses.asdict(update)) + '\n')
            self._show(update)
            self._condition.notify_all()
            for name, value in update.metrics.items():
                self._scalar(f'{update.stage}/{name}', value, number)

    def together(self) -> AbstractContextManager[Any]:
        """What is done within it no other thread sees in part: a checkpoint counts twice."""
        return self._condition

    def failed(self, failure: Failure) -> None:
        """Takes a replica's failure."""
        with self._condition:
            self.failures.append(failure)
            self._failures.write(json.dumps(dataclasses.asdict(failure)) + '\n')

    def on_event(self, event: Event) -> None:
        """Takes an event of the exchange; called under the lock of a shard."""
        self.events.append(event)
        self._log.append(event)
        if event.kind == 'applied':
            self._ages.append(event.s1)
            self._scalar(f'exchange/s1_shard{event.shard}', event.s1, event.version)
            self._scalar(f'exchange/s2_shard{event.shard}', event.s2, event.version)

    def _scalar(self, name: str, value: float, step: int) -> None:
        """For TensorBoard, whose thread would leave us waiting for ever if it had ended."""
        if not self._writes():
            raise WorkdirError(
                f'{self._folder / "tensorboard"} cannot be written any more (is the disk full?): '
                'make room and give the same command again.'
            )
        self._writer.add_scalar(name, value, step)

    def _writes(self) -> bool:
        return self._writer.file_writer.event_writer._worker.is_alive()

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Waits until `done()` holds; it is looked at after every update and every `wake`."""
        with self._condition:
            self._condition.wait_for(done)

    def wake(self) -> None:
        """Makes `wait_for` look again."""
        with self._condition:
            self._condition.notify_all()

    def close(self) -> None:
        self._bar.stop()
        if self._writes():
            self._writer.close()
        self._log.close()
        self._file.close()
        self._pushes.close()
        self._failures.close()

    def frames_per_s(self, stage: str) -> float:
        """Output frames per second of a stage, over all replicas, compilation left out.

        Looks at the time after the first update of every replica, which holds the compilation. An
        update that began before counts by the share of its time that lies after.

        Returns:
          The rate; 0 where no replica had a second update.
        """
        rows = [u for u in self.updates if u.stage == stage]
        first = {u.replica: u.finished_s for u in reversed(rows)}
        begin, end = (
            max(first.values(), default=0.0),
            max((u.finished_s for u in rows), default=0.0),
        )
        if end <= begin:
            return 0.0
        frames = 0.0
        for u in rows:
            after = u.finished_s - max(u.started_s, begin)
            frames += u.frames * max(0.0, after) / max(1e-6, u.finished_s - u.started_s)
        return frames / (end - begin)

    def _show(self, update: Update) -> None:
        recent = self.updates[-20:]
        elapsed = max(1e-9, recent[-1].finished_s - recent[0].started_s)
        ages = list(self._ages)
        shown: dict[str, Any] = {
            'loss': f'{sum(u.metrics["loss"] for u in recent) / len(recent):.3f}',
            'rate': f'{sum(u.frames for u in recent) / elapsed:,.0f}',
            'staleness': f'{sum(ages) / max(1, len(ages)):.1f}',
        }
        self._bar.update(self._task, advance=1, description=update.stage, **shown)
        if self._line_every and update.number % self._line_every == 0:
            logger.info(
                '%s: update %d of %d, loss %s, %s frames/s, staleness %s.',
                update.stage,
                update.number,
                self._total,
                *shown.values(),
            )


def read_updates(folder: pathlib.Path) -> list[Update]:
    """All updates of a run's `updates.jsonl`."""
    updates = []
    for row in _read(folder / UPDATES):
        row['lease'], row['versions'] = tuple(row['lease']), tuple(row['versions'])
        row['invalid'] = [tuple(pair) for pair in row['invalid']]
        row['reasons'] = [tuple(pair) for pair in row.get('reasons', [])]
        updates.append(Update(**row))
    return updates


def read_pushes(folder: pathlib.Path) -> dict[tuple[int, int, int], Push]:
    """What each push was made from, by (replica, life, seq)."""
    return {
        (replica, life, seq): Push(stage, tuple(tuple(one) for one in leases), position)
        for stage, replica, life, seq, leases, position in _read(folder / PUSHES)
    }


def _read(file: pathlib.Path) -> list[Any]:
    rows = []
    for line in file.read_text(encoding='utf-8').splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # torn by a crash
            rows.append(json.loads(line))
    return rows


def _append(file: pathlib.Path) -> TextIO:
    """Opens for appending, after a torn last line on a new one; every line reaches the system."""
    torn = file.exists() and not file.read_bytes().endswith(b'\n') and file.stat().st_size > 0
    opened = file.open('a', encoding='utf-8', buffering=1)
    if torn:
        opened.write('\n')
    return opened


def _bar(quiet: bool) -> rich_progress.Progress:
    # A notebook shows a bar by ipywidgets; without them it gets the last line alone.
    widgets = importlib.util.find_spec('ipywidgets') is not None
    return rich_progress.Progress(
        rich_progress.TextColumn('{task.description:<12}'),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn('loss {task.fields[loss]}'),
        rich_progress.TextColumn('{task.fields[rate]} frames/s'),
        rich_progress.TextColumn('staleness {task.fields[staleness]}'),
        rich_progress.TimeRemainingColumn(),
        console=rich_console.Console(force_jupyter=None if widgets else False),
        disable=quiet,
        transient=False,
    )
