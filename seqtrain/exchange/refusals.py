"""Why a shard cannot take a message. Looks at the shard's state and changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqtrain.exchange.messages import Join, Pull, Push, Reason
from seqtrain.exchange.update import malformed

if TYPE_CHECKING:
    from seqtrain.exchange.state import ShardState


def unserved(state: ShardState, question: Join | Pull) -> tuple[Reason, str] | None:
    """Why a replica that asks for values gets none, and the sentence, or None."""
    worker, life, count = question.worker, question.life, state.policy.num_workers
    member = state.members.get(worker)
    if isinstance(question, Join) and not 0 <= worker < count:
        return Reason.UNKNOWN_WORKER, (
            f'Replica {worker} is none of the {count} of this run; raise num_workers.'
        )
    if member is not None and life < member.life:
        return Reason.REPLACED, (
            f'Replica {worker} was started again (life {member.life}); life {life} is over.'
        )
    if isinstance(question, Pull) and (member is None or not member.present):
        return Reason.NOT_JOINED, (
            f'Replica {worker} has not joined shard {state.shard}; send Join first.'
        )
    return None


def refusal(state: ShardState, push: Push) -> tuple[Reason, str] | None:
    """Why an arriving push cannot be taken and how the sentence goes on, or None."""
    member = state.members.get(push.worker)
    if member is not None and push.life < member.life:
        return Reason.REPLACED, (
            f'comes from life {push.life} of the replica, which is in life {member.life}'
        )
    if member is None or not member.present or push.life > member.life:
        return Reason.NOT_JOINED, 'comes from a replica that has not joined or lost its lease'
    if push.generation != state.generation:
        return Reason.GENERATION, (
            f'belongs to generation {push.generation}, the shard restarted and is in '
            f'generation {state.generation}; join and pull again'
        )
    if push.seq <= member.seq:
        return Reason.DUPLICATE, f'was taken before (the last one was {member.seq})'
    if not 0 <= push.base_version <= state.version:
        return Reason.FUTURE, (
            f'is based on version {push.base_version}, the shard is at {state.version}'
        )
    if push.worker in state.pending:
        return Reason.LATE, 'comes while the one before it still waits; pull first'
    return malformed(push, state.store.shape) or untimely(state, push)


def untimely(state: ShardState, push: Push) -> tuple[Reason, str] | None:
    """The same for what time brings about: a push that waits may become unfit."""
    age, policy = state.version - push.base_version, state.policy
    if policy.sync and age:
        return Reason.LATE, f'comes {age} rounds late; pull and go on from there'
    if policy.max_staleness is not None and age > policy.max_staleness:
        return Reason.STALE, f'is {age} versions old, the bound is {policy.max_staleness}'
    if not state.store.has(push.base_version):
        return Reason.STALE, (
            f'is based on version {push.base_version}, which is no longer kept; '
            'push from one of the last pulls'
        )
    return None
