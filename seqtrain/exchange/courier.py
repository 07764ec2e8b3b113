"""`Courier`: a replica's half of the protocol, without a thread of its own.

It turns trees into messages and answers into trees, joins again after a shard's restart, sends
again what was lost on the way, and counts. `Client` runs one in a background thread.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from seqtrain.exchange.codec import Compressor
from seqtrain.exchange.messages import (
    Ack,
    Join,
    Leave,
    Message,
    Params,
    Pull,
    Push,
    Reason,
    Reject,
    Reply,
    answers,
)
from seqtrain.exchange.partition import Partition

logger = logging.getLogger(__name__)


class ExchangeError(RuntimeError):
    """The exchange cannot go on; the message says why and what to do."""


class Versions(NamedTuple):
    """Where pulled parameters come from: one version and one generation per shard.

    `speed` is this replica's speed over the fastest one's, as the first shard knew it then.
    """

    numbers: tuple[int, ...]
    generations: tuple[int, ...]
    speed: float = 1.0


class Pulled(NamedTuple):
    """Parameters and their versions."""

    params: Any
    versions: Versions


class Facts(NamedTuple):
    """What goes with an update: frames (its weight), age s2, local steps, seconds per step."""

    frames: float = 1.0
    s2: int = 0
    steps: int = 1
    step_s: float = 0.0


class Channel(Protocol):
    """A replica's line to all shards, as a transport provides it."""

    def send(self, shard: int, message: Message) -> None:
        """Sends one message; raises `ExchangeError` when the server is gone for good."""

    def receive(self, timeout_s: float | None) -> tuple[int, Reply] | None:
        """The next (shard, reply), or None after a timeout or a `wake`."""

    def wake(self) -> None:
        """Makes a `receive` in another thread return None soon."""

    def close(self) -> None:
        """Frees the line; idempotent."""


@dataclasses.dataclass
class Stats:
    """Counters of one replica since it connected.

    Attributes:
      pushes: updates handed over (each goes to every shard).
      applied, rejected: answers to them, counted per shard.
      pulls: parameter trees received.
      retries: messages sent again for want of an answer.
      rejoins: times a shard had restarted or had forgotten this replica.
      bytes_pushed, bytes_pulled: payload.
      staleness_sum: server age s1 summed over applied (per shard).
      blocked_s: how long the replica itself had to wait in `push`, `latest` and `pull`.
      exchange_s: how long the background thread was busy or waiting with pushes and pulls.
    """

    pushes: int = 0
    applied: int = 0
    rejected: int = 0
    pulls: int = 0
    retries: int = 0
    rejoins: int = 0
    bytes_pushed: int = 0
    bytes_pulled: int = 0
    staleness_sum: int = 0
    blocked_s: float = 0.0
    exchange_s: float = 0.0

    @property
    def mean_staleness(self) -> float:
        """Mean server age s1 over shards and applied pushes."""
        return self.staleness_sum / self.applied if self.applied else 0.0


Waiting = dict[tuple[int, bool], Message]
"""(shard, whether it is a push) -> question."""
Answers = dict[tuple[int, bool], Reply]
"""(shard, whether the question was a push) -> answer, in the order of their arrival."""


class Courier:
    """See the module.

    Args:
      channel: the transport's line to the shards.
      partition: how the parameters are cut.
      worker: this replica's number.
      in_order: pull the shards one after the other, so that replicas that may have to wait for
        each other cannot wait in a circle.
      device: where pulled parameters are put; None leaves them as read-only NumPy arrays.
      retry_s: after so long without an answer a message is sent again; None means never.
      codec: 'float32', 'bfloat16' or 'int8': how updates are sent (see `codec`).
      life: how often this replica was started before; an earlier life is refused.
      keep: how many of the versions that it pulled last it may push from.
      stop: asked while waiting: True abandons pulls (pushes are waited for).
      abandon: asked while waiting: True abandons everything.
    """

    def __init__(
        self,
        channel: Channel,
        partition: Partition,
        worker: int,
        *,
        in_order: bool = False,
        device: jax.Device | None = None,
        retry_s: float | None = None,
        codec: str = 'float32',
        life: int = 0,
        keep: int = 8,
        stop: Callable[[], bool] = lambda: False,
        abandon: Callable[[], bool] = lambda: False,
    ):
        self.worker = worker
        self.stats = Stats()
        self.rejections: collections.deque[Reject] = collections.deque(maxlen=100)
        self._channel, self._partition = channel, partition
        self._in_order, self._device, self._retry_s = in_order, device, retry_s
        self._life, self._keep = life, keep
        self._compress = Compressor(codec)
        self._stop, self._abandon = stop, abandon
        self._numbers = itertools.count()

    def join(self) -> tuple[Pulled, int] | None:
        """Joins all shards: the parameters and the first free seq; None when stopped.

        Where replicas wait for each other, joining gives values but no turn: that is for `pull`.
        """
        shards = range(self._partition.num_shards)
        replies = self._ask_params(self._join_message, shards)
        if len(replies) < len(shards):
            return None
        return self._assemble(replies), 1 + max(reply.last_seq for reply in replies.values())

    def push(self, update: Any, versions: Versions, seq: int, facts: Facts) -> None:
        """Sends one update to all shards and waits until each has applied or refused it."""
        self._take_answers(self._ask(self._pushes(update, versions, seq, facts)))

    def pull(self) -> Pulled | None:
        """The parameters of all shards; None when stopped meanwhile."""
        shards = range(self._partition.num_shards)
        replies: dict[int, Params] = {}
        for group in [[s] for s in shards] if self._in_order else [list(shards)]:
            replies |= self._ask_params(self._pull_message, group)
        return self._assemble(replies) if len(replies) == len(shards) else None

    def push_and_pull(
        self, update: Any, versions: Versions, seq: int, facts: Facts
    ) -> Pulled | None:
        """Both on one journey: a shard answers the pull after it has dealt with the push.

        Where it did not, because the push was lost on the way, it is asked for values once more.
        """
        pushes = self._pushes(update, versions, seq, facts)
        shards = range(self._partition.num_shards)
        pulls: list[tuple[int, Message]] = [(s, self._pull_message()) for s in shards]
        answered = self._ask(pushes + pulls)
        self._take_answers(answered)
        replies = _params_after_pushes(answered)
        if len(replies) < len(pulls):  # or a shard had forgotten us, or we are told to stop
            missing = [s for s, _ in pulls if s not in replies]
            replies |= self._ask_params(self._pull_message, missing)
        return self._assemble(replies) if len(replies) == len(pulls) else None

    def _pull_message(self) -> Pull:
        return Pull(self.worker, life=self._life, number=next(self._numbers))

    def _join_message(self, fresh: bool = True, back: bool = False) -> Join:
        return Join(self.worker, fresh, self._life, next(self._numbers), self._keep, back)

    def _pushes(
        self, update: Any, versions: Versions, seq: int, facts: Facts
    ) -> list[tuple[int, Message]]:
        parts = [self._compress(s, part) for s, part in enumerate(self._partition.split(update))]
        self.stats.bytes_pushed += sum(part.nbytes for part in parts)
        return [
            (
                s,
                Push(
                    self.worker,
                    seq,
                    versions.numbers[s],
                    part,
                    facts.frames,
                    facts.s2,
                    versions.generations[s],
                    versions.numbers,
                    versions.generations,
                    facts.steps,
                    facts.step_s,
                    self._life,
                ),
            )
            for s, part in enumerate(parts)
        ]

    def _take_answers(self, answered: Answers) -> None:
        """Counts what became of a push; joins again where a shard had forgotten this replica."""
        lost = []
        for (shard, _), reply in answered.items():
            if isinstance(reply, Ack):
                self.stats.applied += 1
                self.stats.staleness_sum += reply.staleness
            elif isinstance(reply, Reject) and reply.seq >= 0:
                self._note_rejection(reply)
                if _forgotten(reply):
                    lost.append(shard)
        self._join_again(lost)

    def _join_again(self, shards: list[int]) -> None:
        self.stats.rejoins += bool(shards)
        for shard in shards:
            self._compress.forget(shard)
        for reply in self._ask([(s, self._join_message(fresh=False)) for s in shards]).values():
            if isinstance(reply, Reject):
                self._note_rejection(reply)

    def leave(self) -> None:
        """Says good-bye to all shards."""
        for shard in range(self._partition.num_shards):
            self._channel.send(shard, Leave(self.worker, self._life))

    def _assemble(self, replies: dict[int, Params]) -> Pulled:
        shards = [replies[s] for s in range(self._partition.num_shards)]
        tree = self._partition.join([params.values for params in shards])
        if self._device is not None:
            tree = jax.device_put(tree, self._device)
        else:  # `Client.latest` hands it out more than once
            for leaf in jax.tree.leaves(tree):
                leaf.flags.writeable = False
        self.stats.pulls += 1
        self.stats.bytes_pulled += 4 * self._partition.size
        numbers = tuple(params.version for params in shards)
        generations = tuple(params.generation for params in shards)
        return Pulled(tree, Versions(numbers, generations, shards[0].speed))

    def _ask_params(
        self, question: Callable[[], Message], shards: Sequence[int]
    ) -> dict[int, Params]:
        """Asks for values. A shard that does not know this replica (any more) is joined again."""
        replies: dict[int, Params] = {}
        while shards and not self._stop():
            refused = []
            for (shard, _), reply in self._ask([(s, question()) for s in shards]).items():
                if isinstance(reply, Params):
                    replies[shard] = reply
                elif isinstance(reply, Reject):
                    self._note_rejection(reply)
                    refused.append(shard)
            self._join_again(refused)
            shards = refused
        return replies

    def _ask(self, messages: list[tuple[int, Message]]) -> Answers:
        """Sends messages and waits for their answers; when told to stop, for those of pushes.

        A push that one shard has forgotten is taken back where it still waits: in rounds others
        would wait there for a later push of ours, we for one of theirs, and all in a circle.
        """
        waiting = {(s, isinstance(message, Push)): message for s, message in messages}
        answered: Answers = {}
        forgotten = False
        for shard, message in messages:
            self._channel.send(shard, message)
        while waiting and not self._abandon():
            if self._stop() and not any(is_push for _, is_push in waiting):
                break
            got = self._channel.receive(self._retry_s)
            if got is None:
                self._send_again(waiting, forgotten)
                continue
            shard, reply = got
            for key in [(shard, True), (shard, False)]:
                if key in waiting and answers(waiting[key], reply):
                    answered[key] = reply
                    del waiting[key]
                    if key[1] and _forgotten(reply) and not forgotten:
                        forgotten = True
                        self._take_back(waiting)
        return answered

    def _take_back(self, waiting: Waiting) -> None:
        """Joins again where a push waits, which refuses it."""
        for shard in [s for s, is_push in waiting if is_push]:
            self._channel.send(shard, self._join_message(fresh=False, back=True))

    def _send_again(self, waiting: Waiting, forgotten: bool) -> None:
        if self._retry_s is None:
            return  # woken up, nothing is missing
        for (shard, _), message in waiting.items():
            self._channel.send(shard, message)
            self.stats.retries += 1
        if forgotten:
            self._take_back(waiting)

    def _note_rejection(self, reply: Reject) -> None:
        if reply.reason in (Reason.CLOSED, Reason.UNKNOWN_WORKER, Reason.REPLACED):
            raise ExchangeError(reply.text)
        if reply.reason is Reason.DUPLICATE:  # our own retry: one copy of it was taken
            logger.info('Replica %d: %s', self.worker, reply.text)
            return
        logger.warning('Replica %d: %s', self.worker, reply.text)
        self.rejections.append(reply)
        self.stats.rejected += 1


def _forgotten(reply: Reply) -> bool:
    """Whether the shard refuses because it does not know this replica any more."""
    return isinstance(reply, Reject) and reply.reason in (Reason.NOT_JOINED, Reason.GENERATION)


def _params_after_pushes(answered: Answers) -> dict[int, Params]:
    """By shard the values that came after the answer to the push."""
    dealt_with, replies = set(), {}
    for (shard, is_push), reply in answered.items():
        if is_push:
            dealt_with.add(shard)
        elif isinstance(reply, Params) and shard in dealt_with:
            replies[shard] = reply
    return replies
