"""What must hold of a `ShardState` after every message. Assertions only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqtrain.exchange.state import ShardState


def check(state: ShardState) -> None:
    """Asserts that nothing that may move was left, and that no bound was broken."""
    assert state.version >= 0
    for worker, member in state.members.items():
        assert 0 <= worker < state.policy.num_workers
        assert all(v <= state.version for v in member.reading)
        assert member.present or not member.reading
    for worker, push in state.pending.items():
        assert worker == push.worker
        assert state.members[worker].present
        assert push.seq <= state.members[worker].seq
        assert push.base_version <= state.version
    assert not any(state.members[worker].present for worker in state.gone)
    assert all(state.members[worker].present for worker in state.waiting)
    assert not any(state.may_serve(pull) for pull in state.waiting.values()), 'a pull was forgotten'
    if state.policy.sync:
        assert all(push.base_version == state.version for push in state.pending.values())
        assert len(state.pending) < state.round_size() or not state.pending
    elif not state.policy.waits:
        assert not state.pending
    if state.policy.max_staleness is not None and not state.policy.sync:
        assert state.max_applied_staleness <= state.policy.max_staleness
    state.tickets.check(state.version)
