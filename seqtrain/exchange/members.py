"""What a shard knows of its replicas, one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from seqtrain.exchange.messages import Join, Pull


@dataclasses.dataclass
class Member:
    """A replica: the last seq seen, the versions it may still push from, whether it is here.

    `step_s` is its last reported time per local step, 0 where unknown; `life` is the one that
    joined last; `answered` is the newest of its questions that was answered; `keep` as in `Join`.
    """

    seq: int = -1
    reading: list[int] = dataclasses.field(default_factory=list)
    present: bool = True
    step_s: float = 0.0
    life: int = 0
    answered: int = -1
    keep: int = 8


def speed(members: Mapping[int, Member], worker: int) -> float:
    """A replica's speed over the fastest one's (DyLU; Liu et al. 2024), 1 if unknown."""
    own = members[worker].step_s
    if own <= 0:
        return 1.0
    return min(m.step_s for m in members.values() if m.present and m.step_s > 0) / own


def was_answered(members: Mapping[int, Member], question: Join | Pull) -> bool:
    """Whether this is a copy of a question that was answered; a fresh Join never is."""
    member = members.get(question.worker)
    if member is None or not member.present or getattr(question, 'fresh', False):
        return False
    return question.life == member.life and 0 <= question.number <= member.answered


def kept(members: Mapping[int, Member]) -> dict[str, dict[str, int]]:
    """What of them a checkpoint keeps: so that nothing is applied twice, nobody comes back."""
    return {
        'seqs': {str(worker): member.seq for worker, member in members.items()},
        'lives': {str(worker): member.life for worker, member in members.items()},
    }


def away(meta: Mapping[str, Any]) -> dict[int, Member]:
    """The members of a shard that restarted from such a checkpoint: known, but not here."""
    lives = meta.get('lives', {})
    return {
        int(worker): Member(int(seq), present=False, life=int(lives.get(worker, 0)))
        for worker, seq in meta['seqs'].items()
    }
