"""`ShardState`: one shard of the parameters as a pure state machine.

No thread, no clock, no socket: messages (and the time, for the log) come in, replies go out, and
`handle` is the only thing that changes anything. Shells (`transport/`), the simulator and the
replay all drive this same object.

What a shard holds, and who may change it (messages through `handle`; `set_rule`, `expect` and
`restore` are for the one who runs the server, between messages; nobody else writes to any of it):

    part        what it is                                    changed by
    store       values, the rule's state, version             an applied push; set_rule, restore
    generation  how often the shard has restarted             restore
    changes     how often its rule was changed since then     set_rule, restore
    members     who has joined; last seq, versions read       Join, Leave, Pull, Push; restore
    gone        who left: rounds do not wait for them         Join, Leave; expect, restore
    tickets     who may push from where (see `Tickets`)       Join, Pull, Push, Leave; restore
    pending     pushes that wait for their turn               Join, Push, Leave, settling; restore
    waiting     pulls that wait for their turn                Join, Pull, Leave, settling; restore

    a replica is  that is                                     and becomes
    unknown       the shard never heard of it; rounds wait    present by Join, gone by Leave
    present       its pulls and pushes are taken              gone by Leave, away by restore
    gone          it left, or its lease ran out               present by Join, away by expect
    away          the shard restarted, or it is expected;     present by Join, gone by Leave
                  rounds wait

    message  of a replica that is  is answered by             or refused (`Reason`) because
    Join     anything              Params, at once (1)        it is none of this run, or replaced
    Pull     present               Params, when it may be (2) it has not joined, or is replaced
    Push     present               Ack, when it is applied    see `refusals`
    Leave    not gone              nothing                    (one of an earlier life is ignored)

(1) It also refuses what still waits of this replica.
(2) Questions that may come twice are numbered: a copy of one that was answered is answered again,
at once; it drops nothing and gives no second turn.

After every message the shard settles: it applies the pending pushes that may be applied and then
serves the waiting pulls that may be served, until neither moves. (A Join is answered at once; it
gives values, not a turn.) What "may" means is the mode:

    mode                        a push may be applied              a pull may be served
    async, unbounded            at once                            at once
    async, bounded by `wait`    when nobody else's pending work    when a ticket is free
                                would become older than τ
    async, bounded by `drop`    at once, or refused if older       at once
                                than τ
    sync, quorum Q              when Q pushes of this version      when the replica's own push has
                                are there: their mean, once        been applied or refused

Sync with Q below the number of replicas is sync with backup replicas (Chen et al. 2016, arXiv
1604.00981): who comes late for a round is refused and pulls again.

A refused message leaves values, optimiser state and version untouched, always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import optax

from seqtrain.exchange import invariants, members, refusals
from seqtrain.exchange.members import Member
from seqtrain.exchange.messages import (
    Ack,
    Event,
    Join,
    Leave,
    Message,
    Params,
    Pull,
    Push,
    Reason,
    Reply,
    refused,
)
from seqtrain.exchange.policy import Policy
from seqtrain.exchange.store import Counter, Store
from seqtrain.exchange.tickets import Tickets
from seqtrain.exchange.update import apply_round, decoded


class ShardState:
    """One shard. See the module's table for what changes what.

    Args:
      store: the values and the rule (or a `Counter`, where only time matters).
      policy: mode and bounds.
      shard: number of this shard, for the log.
      on_event: called with every `Event`.
    """

    def __init__(
        self,
        store: Store | Counter,
        policy: Policy | None = None,
        *,
        shard: int = 0,
        on_event: Callable[[Event], None] | None = None,
    ):
        self.store = store
        self.policy = policy or Policy()
        self.shard = shard
        self.generation = self.changes = 0
        self.members: dict[int, Member] = {}
        self.gone: set[int] = set()
        self.pending: dict[int, Push] = {}
        self.waiting: dict[int, Pull] = {}
        self.tickets = Tickets(self.policy.max_staleness if self.policy.waits else None)
        self.max_applied_staleness = 0
        self._on_event = on_event or (lambda event: None)
        self._now = 0.0
        self._replies: list[Reply] = []

    @property
    def version(self) -> int:
        """Number of applied updates."""
        return self.store.version

    # -- messages ---------------------------------------------------------------------------

    def handle(self, message: Message, now: float = 0.0) -> list[Reply]:
        """Takes one message and returns the replies, possibly to other replicas too.

        Args:
          message: any of `Join`, `Pull`, `Push`, `Leave`.
          now: the shell's time in seconds, for the event log only.
        """
        self._now = now
        self._replies = []
        if isinstance(message, Join | Pull):
            self._ask(message)
        elif isinstance(message, Push):
            self._push(message)
        elif isinstance(message, Leave):
            self._leave(message)
        else:
            raise TypeError(f'{type(message).__name__} is no message of the exchange.')
        self._settle()
        return self._replies

    def _ask(self, question: Join | Pull) -> None:
        refusal = refusals.unserved(self, question)
        if refusal is not None:
            self._refuse_other(question, *refusal)
        elif members.was_answered(self.members, question):
            self._serve(question)  # the ticket of its first answer, where it has one, stays
        elif isinstance(question, Join):
            self._join(question)
        else:
            self.waiting[question.worker] = question
            self.tickets.drop(question.worker)  # who pulls again gives back what it did not use

    def _join(self, message: Join) -> None:
        worker = message.worker
        member = self.members.setdefault(worker, Member())
        later = message.life > member.life
        self._turn_away(Reason.REPLACED if later else Reason.NOT_JOINED, worker)
        self._forget(worker, keep_reading=message.back and not later)
        member.present, member.life, member.answered = True, message.life, -1
        member.keep = message.keep
        self.gone.discard(worker)
        self._log('joined', worker, message.note)
        self._serve(message)

    def _push(self, push: Push) -> None:
        waiting = self.pending.get(push.worker)
        if waiting is not None and waiting.seq == push.seq:
            return  # a retry of a push that waits; its Ack will come
        push = decoded(push)
        refusal = refusals.refusal(self, push)
        if refusal is not None:
            self._refuse(push, *refusal)
            return
        self.members[push.worker].seq = push.seq
        self.members[push.worker].step_s = push.step_s
        self.pending[push.worker] = push

    def _leave(self, message: Leave) -> None:
        """Also for who has not joined (yet, or again): rounds wait for it no longer."""
        worker = message.worker
        if worker in self.gone or not 0 <= worker < self.policy.num_workers:
            return
        member = self.members.setdefault(worker, Member(present=False))
        if -1 < message.life < member.life:
            return
        self._turn_away(Reason.NOT_JOINED, worker)
        self._forget(worker)
        member.present = False
        self.gone.add(worker)
        self._log('left', worker)

    def _turn_away(self, reason: Reason, worker: int | None = None) -> None:
        """Answers what still waits, of one replica or of all, so that nobody waits for ever."""
        text = f'was dropped while it waited ({reason.value}); '
        text += 'another life goes on' if reason is Reason.REPLACED else 'join and pull again'
        for push in self.pending.values():
            if worker in (None, push.worker):
                self._refuse(push, reason, text)
        for pull in self.waiting.values():
            if worker in (None, pull.worker):
                self._refuse_other(pull, reason, f'The pull {text}.')

    def _forget(self, worker: int, keep_reading: bool = False) -> None:
        """Drops what a replica had pending; its seq stays, so that nothing applies twice."""
        self.pending.pop(worker, None)
        self.waiting.pop(worker, None)
        if worker in self.members and not keep_reading:
            self.members[worker].reading = []
        self.tickets.drop(worker)
        self._prune()

    # -- refusals ---------------------------------------------------------------------------

    def _refuse(self, push: Push, reason: Reason, why: str) -> None:
        text = f'Push {push.seq} of replica {push.worker} to shard {self.shard} {why}.'
        self._replies.append(refused(push, reason, text))
        self._log_push('rejected', push, self.version - push.base_version, reason.value)
        if reason is not Reason.DUPLICATE:
            self._spend(push)

    def _spend(self, push: Push) -> None:
        """A refused push has had its turn, too: nobody waits for another one from there."""
        member, waiting = self.members.get(push.worker), self.pending.get(push.worker)
        ours = member is not None and member.present and push.life == member.life
        if not ours or push.generation != self.generation:
            return
        if waiting is None or waiting.base_version < push.base_version:  # else it is that one's
            self.tickets.use(push)

    def _refuse_other(self, message: Join | Pull, reason: Reason, text: str) -> None:
        self._replies.append(refused(message, reason, text))
        self._log('rejected', message.worker, note=reason.value)

    # -- settling ---------------------------------------------------------------------------

    def _settle(self) -> None:
        """Applies until nothing can be applied, then serves: serving never frees a push."""
        apply = self._apply_round if self.policy.sync else self._apply_one
        while self.pending and apply():
            pass
        if self.waiting:
            self._serve_waiting()

    def _apply_one(self) -> bool:
        for push in self.pending.values():
            refusal = refusals.untimely(self, push)
            if refusal is None and not self.tickets.may_apply(push, self.version):
                continue
            del self.pending[push.worker]
            if refusal is not None:
                self._refuse(push, *refusal)
            else:
                self._apply([push])
            return True
        return False

    def _apply_round(self) -> bool:
        if len(self.pending) < self.round_size():
            return False
        collected, self.pending = self.pending, {}
        self._apply([collected[worker] for worker in sorted(collected)])
        return True

    def round_size(self) -> int:
        """Pushes that make a round: the quorum, or fewer where replicas have left."""
        quorum = self.policy.quorum or self.policy.num_workers
        return max(1, min(quorum, self.policy.num_workers - len(self.gone)))

    def _serve_waiting(self) -> None:
        for pull in list(self.waiting.values()):
            if not self.tickets.may_issue(self.version):
                return  # the gate is the same for all
            if self.may_serve(pull):
                del self.waiting[pull.worker]
                self.tickets.issue(pull.worker, self.version)
                self._serve(pull)

    def may_serve(self, pull: Pull) -> bool:
        """Whether a waiting pull may be answered now."""
        if pull.min_version > self.version:
            return False
        if self.policy.sync:
            return pull.worker not in self.pending
        return self.tickets.may_issue(self.version)

    def _serve(self, question: Join | Pull) -> None:
        worker = question.worker
        member, reading = self.members[worker], self.members[worker].reading
        member.answered = max(member.answered, question.number)
        if self.version not in reading:
            reading.append(self.version)
            del reading[: -member.keep]
        stamp = (worker, self.version, self.store.read(), self.generation)
        known = (member.seq, members.speed(self.members, worker))
        self._replies.append(Params(*stamp, *known, question.life, question.number))

    def _apply(self, pushes: list[Push]) -> None:
        """One update from one push, or from the frame-weighted mean of a round."""
        apply_round(self.store, pushes)
        for push in pushes:
            age = self.version - 1 - push.base_version
            self.max_applied_staleness = max(self.max_applied_staleness, age)
            self._replies.append(Ack(push.worker, push.seq, self.version, age, push.life))
            self._log_push('applied', push, age)
            self._read_up_to(push)
        self._prune()

    def _read_up_to(self, push: Push) -> None:
        """A replica that pushed from a version will not push from an older one again."""
        member = self.members[push.worker]
        member.reading = [v for v in member.reading if v >= push.base_version]
        self.tickets.use(push)

    def _prune(self) -> None:
        if self.store.keep_base:
            used = {v for member in self.members.values() for v in member.reading}
            self.store.forget_all_but(used | {push.base_version for push in self.pending.values()})

    # -- log --------------------------------------------------------------------------------

    def _log(
        self, kind: str, worker: int = -1, note: str = '', source: tuple[int, int] = (-1, -1)
    ) -> None:
        ids = (kind, self.shard, worker, -1, -1, self.version)
        life = self.members[worker].life if worker in self.members else 0
        facts = (0, 0, 0.0, self._now, note, self.generation)
        self._on_event(Event(*ids, *facts, life=life, source=source[0], source_rules=source[1]))

    def _log_push(self, kind: str, push: Push, age: int, note: str = '') -> None:
        ids = (kind, self.shard, push.worker, push.seq, push.base_version, self.version)
        facts = (age, push.s2, push.frames, self._now, note, push.generation)
        lists = (push.bases, push.generations, push.steps, push.life)
        self._on_event(Event(*ids, *facts, *lists))

    # -- rule, checkpoint, invariants -------------------------------------------------------

    def set_rule(
        self, rule: optax.GradientTransformation, *, keep_state: bool = False, note: str = ''
    ) -> None:
        """Changes the rule, between stages; the optimiser state starts anew unless kept.

        Args:
          rule: the new rule.
          keep_state: keep the optimiser state; its structure must be the new rule's.
          note: goes into the event log.
        """
        self.store.set_rule(rule, keep_state)
        self.changes += 1
        self._log('rule', note=note)

    def expect(self, workers: Iterable[int]) -> None:
        """Lets rounds wait for replicas that had left and are about to join again."""
        self.gone.difference_update(workers)

    def snapshot(self) -> dict[str, Any]:
        """{'arrays': pytree of owned arrays, 'meta': JSON-able}; pending messages are not in it."""
        meta = {
            'version': self.version,
            'generation': self.generation,
            'rule_changes': self.changes,
            'gone': sorted(self.gone),
            'opt_state': self.store.structure,
        } | members.kept(self.members)
        return {'arrays': self.store.snapshot(), 'meta': meta}

    def restore(self, snapshot: dict[str, Any], now: float = 0.0) -> list[Reply]:
        """Goes back to a snapshot and starts a new generation: everyone must join again.

        Args:
          snapshot: as `snapshot` gave it; `meta['after']`, where set, is the last generation that
            anybody has seen since.
          now: the shell's time in seconds, for the event log only.

        Returns:
          Refusals for whoever was waiting.

        Raises:
          ValueError: the snapshot is of another size or of another rule; nothing was changed.
        """
        meta = snapshot['meta']
        self.store.restore(snapshot['arrays'], int(meta['version']), meta.get('opt_state'))
        self._now, self._replies = now, []
        self._turn_away(Reason.GENERATION)
        source = int(meta['generation']), int(meta.get('rule_changes', -1))
        self.generation = max(self.generation, source[0], int(meta.get('after', 0))) + 1
        self.changes = 0
        self.pending, self.waiting = {}, {}
        self.gone = {int(worker) for worker in meta['gone']}
        self.members = members.away(meta)
        self.tickets = Tickets(self.tickets.bound)
        self._log('restored', source=source)
        return self._replies

    def check(self) -> None:
        """Asserts the invariants (see `invariants`); cheap enough after every message in tests."""
        invariants.check(self)
