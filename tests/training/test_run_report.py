"""What a run says of itself at its end."""

from seqtrain.exchange import Event
from seqtrain.training import run_report


def test_a_push_that_several_shards_refuse_is_one_and_a_refused_pull_is_none():
    events = [
        *(Event('rejected', shard, worker=0, seq=3) for shard in range(2)),
        Event('rejected', 1, worker=0, seq=3, life=1),  # of another life: another push
        Event('rejected', 0, worker=1, note='not_joined'),
        Event('applied', 0, worker=1, seq=3),
    ]
    assert run_report.rejected_pushes(events) == 2
