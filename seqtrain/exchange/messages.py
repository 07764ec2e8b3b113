"""What replicas and shards say to each other: frozen dataclasses, arrays and numbers only.

Nothing here can hold audio, features or a transcript: an update is a flat vector of one shard's
parameters, everything else is a number. No message carries code or a pickled object.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

from seqtrain.exchange.codec import Encoded


class Reason(enum.Enum):
    """Why a message was refused. The values are stable: logs and transports carry them."""

    NOT_JOINED = 'not joined'
    UNKNOWN_WORKER = 'unknown worker'
    GENERATION = 'other generation'
    DUPLICATE = 'duplicate'
    FUTURE = 'future version'
    STALE = 'too stale'
    LATE = 'late for the round'
    SHAPE = 'wrong shape'
    DTYPE = 'wrong dtype'
    NON_FINITE = 'not finite'
    FRAMES = 'bad frame count'
    STEP_TIME = 'bad step time'
    CLOSED = 'closed'
    REPLACED = 'replaced'


@dataclasses.dataclass(frozen=True)
class Join:
    """A replica announces itself; answered by `Params`.

    Attributes:
      worker: replica number.
      fresh: False where the same replica joins again because the shard had forgotten it.
      life: how often the replica has been started: what an earlier life sends is refused.
      number: of the question, see `Pull`; a fresh one begins to count.
      keep: how many of the versions that it read last it may push from, where a rule needs their
        values; see `versions_under_way`.
      back: only takes back a push that may wait there, because another shard has forgotten the
        replica; what it has read stays known.
    """

    worker: int
    fresh: bool = True
    life: int = 0
    number: int = -1
    keep: int = 8
    back: bool = False

    @property
    def note(self) -> str:
        """For the event log, see `Event.note`."""
        return 'fresh' if self.fresh else 'back' if self.back else 'again'


def versions_under_way(queue_size: int) -> int:
    """`Join.keep` of a replica with so many pushes under way, each followed by a pull."""
    return queue_size + 6  # some to spare, for pulls and answers that come twice


@dataclasses.dataclass(frozen=True)
class Pull:
    """A replica asks for the values; answered by `Params`, at once or when it may go on.

    Attributes:
      worker: replica number.
      min_version: the oldest version that is wanted.
      life: see `Join`.
      number: of the replica's question, counted over its joins and pulls; a copy of one that was
        answered gets the values again, but no turn of its own. −1: it is sent only once.
    """

    worker: int
    min_version: int = 0
    life: int = 0
    number: int = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Push:
    """One replica's update for one shard.

    Attributes:
      worker: replica number.
      seq: strictly increasing per replica; a shard applies each at most once.
      base_version: version of this shard's values that the update was computed from.
      update: f32[n], the flat gradient, pseudo-gradient or values, whichever the rule wants;
        or the same encoded (see `codec`).
      frames: frames behind the update (any positive weight for other kinds of data).
      s2: age of the outer derivatives, in versions; logged only.
      generation: the shard's generation that `base_version` belongs to.
      bases: the versions of all shards that the update was computed from; for the log.
      generations: their generations; for the log.
      steps: local steps behind the update; for the log.
      step_s: seconds per local step, 0 where not measured; see `Params.speed`.
      life: which life of the replica made it, see `Join`.
    """

    worker: int
    seq: int
    base_version: int
    update: np.ndarray | Encoded
    frames: float = 1.0
    s2: int = 0
    generation: int = 0
    bases: tuple[int, ...] = ()
    generations: tuple[int, ...] = ()
    steps: int = 1
    step_s: float = 0.0
    life: int = 0


@dataclasses.dataclass(frozen=True)
class Leave:
    """A replica goes, or its lease ran out; what it had pending is dropped. No answer.

    `life` −1 means whichever life it is in.
    """

    worker: int
    life: int = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Params:
    """The shard's values (read-only; f32[n]) at a version of a generation.

    Attributes:
      worker: whom this is for.
      version: number of updates applied.
      values: f32[n].
      generation: how often the shard has restarted.
      last_seq: the last push the shard took from this replica: a restarted replica counts on.
      speed: this replica's speed in steps per second over the fastest one's; 1 where unknown.
      life: which life of the replica had asked.
      number: which of its questions this answers.
    """

    worker: int
    version: int
    values: np.ndarray
    generation: int = 0
    last_seq: int = -1
    speed: float = 1.0
    life: int = 0
    number: int = -1


@dataclasses.dataclass(frozen=True)
class Ack:
    """A push was applied; `version` is the version it made, `staleness` its server age s1."""

    worker: int
    seq: int
    version: int
    staleness: int
    life: int = 0


@dataclasses.dataclass(frozen=True)
class Reject:
    """A message was refused and the shard is as it was; `text` says what to do.

    `seq` is −1 where the refused message was not a push, `number` where it was one.
    """

    worker: int
    reason: Reason
    text: str
    seq: int = -1
    life: int = 0
    number: int = -1


Message = Join | Pull | Push | Leave
Reply = Params | Ack | Reject


def refused(message: Message, reason: Reason, text: str) -> Reject:
    """The refusal of a message."""
    worker, life, seq, number = address(message)
    return Reject(worker, reason, text, seq, life, number)


def address(letter: Message | Reply) -> tuple[int, int, int, int]:
    """(worker, life, seq, number): the same for a message and its answer; −1 what it has not."""
    return letter.worker, letter.life, getattr(letter, 'seq', -1), getattr(letter, 'number', -1)


def answers(message: Message, reply: Reply) -> bool:
    """Whether a reply belongs to a message; those to an earlier life, push or question do not."""
    return address(message) == address(reply)


@dataclasses.dataclass(frozen=True)
class Event:
    """One line of the event log.

    Attributes:
      kind: 'applied', 'rejected', 'joined', 'left', 'rule' (the rule was changed) or 'restored'.
      shard: shard number.
      worker: replica number, −1 where none.
      seq: the push's number, −1 where none.
      base_version: version the update was computed from.
      version: version of the shard after the event.
      s1: server age: versions applied between the pull and the application.
      s2: age of the outer derivatives.
      frames: frames behind the update.
      time_s: the shell's clock when the message was handled (virtual time in the simulator).
      note: the reason of a rejection, the name of a rule, 'fresh' for a new replica that joined,
        'again' for one that the shard had forgotten (empty in older logs), 'back' for one that took
        back what it had pending.
      generation: the shard's generation; counts its restarts.
      bases: versions of all shards that the update was computed from.
      generations: their generations.
      steps: local steps behind the update.
      life: which life of the replica, see `Join`.
      source: 'restored': the generation in which the snapshot was taken; −1 in older logs.
      source_rules: 'restored': how often the rule had been changed in that generation before the
        snapshot was taken; −1 in older logs.
    """

    kind: str
    shard: int
    worker: int = -1
    seq: int = -1
    base_version: int = -1
    version: int = 0
    s1: int = 0
    s2: int = 0
    frames: float = 0.0
    time_s: float = 0.0
    note: str = ''
    generation: int = 0
    bases: tuple[int, ...] = ()
    generations: tuple[int, ...] = ()
    steps: int = 1
    life: int = 0
    source: int = -1
    source_rules: int = -1
