"""Replicas that fail: who takes over, how often they come back, when a run gives up; and replay."""

import contextlib
import itertools
import signal
import threading

import pytest

from seqtrain.data.utterance import DataError
from seqtrain.exchange import eventlog
from seqtrain.training import assembly, checkpoint, experiment, monitor, replay


@pytest.fixture
def fail_at(monkeypatch):
    """Lets steps fail: `fail_at(call)` by their number in the run, `fail_at(replica=n)` always."""
    calls, replicas, counter, lock = set(), set(), itertools.count(), threading.Lock()
    real = assembly.step

    def step(*args, **kwargs):
        compute = real(*args, **kwargs)

        def faulty(params, batch, *rest):
            name = threading.current_thread().name
            with lock:
                call = next(counter)
            if call in calls or name in replicas:
                raise ZeroDivisionError(f'{name}, call {call}')
            return compute(params, batch, *rest)

        return faulty

    monkeypatch.setattr(assembly, 'step', step)

    def plan(call=None, replica=None):
        calls.add(call)
        replicas.add(f'replica-{replica}')

    return plan


def applied(path):
    events = eventlog.read(path / monitor.EVENTS)[1]
    return [event for event in events if event.kind == 'applied' and event.shard == 0]


@pytest.fixture
def tested_on(make_config, kaldi_copy, tmp_path):
    """The tiny experiment's training set as a Kaldi directory, and another folder to test on."""
    lexicon = tmp_path / 'lexicon.txt'
    assembly.load_lexicon(make_config().data).write(lexicon)
    train = kaldi_copy(assembly.load_split(make_config().data, 'train'), tmp_path / 'train')
    return lambda test: make_config(
        data__corpus='kaldi',
        data__train=str(train),
        data__test=str(test),
        data__lexicon=str(lexicon),
    )


def test_a_test_set_without_transcripts_is_found_before_training(
    tested_on, make_config, kaldi_copy, tmp_path
):
    data = kaldi_copy(assembly.load_split(make_config().data, 'test'), tmp_path / 'data')
    (data / 'text').unlink()
    with pytest.raises(DataError, match=f'no utterance of {str(data)!r}.*transcript is empty'):
        experiment.run(tested_on(data), tmp_path / 'run', quiet=True)
    assert not (tmp_path / 'run' / monitor.EVENTS).exists()


def test_a_test_set_of_other_features_is_found_before_training(tested_on, given_features, tmp_path):
    config = tested_on(given_features(tmp_path / 'test', 'one', 13))
    with pytest.raises(DataError, match='given have 13 values per frame, the network takes 40'):
        experiment.run(config, tmp_path / 'run', quiet=True)
    assert not (tmp_path / 'run' / monitor.EVENTS).exists()


@pytest.mark.parametrize('mode', ['async', 'sync'])
def test_training_goes_on_when_a_replica_fails_and_replays(mode, make_config, tmp_path, fail_at):
    fail_at(call=15)
    config = make_config(exchange__mode=mode, exchange__num_shards=2, exchange__rule='sgd')
    before = threading.active_count()
    result = experiment.run(config, tmp_path, quiet=True)
    assert threading.active_count() <= before + 1  # TensorBoard's writer may still be ending
    assert result['updates'] == 14
    assert result['replica_failures'] == 1
    (failure,) = [monitor.Failure(**row) for row in monitor._read(tmp_path / monitor.FAILURES)]
    assert failure.action == 'is started again'
    assert f'ZeroDivisionError: replica-{failure.replica}, call 15' in failure.error
    assert failure.error in (tmp_path / 'report.html').read_text()
    lives = {event.life for event in applied(tmp_path) if event.worker == failure.replica}
    if mode == 'sync':  # each has pushed once in this stage, and has more of its share to do
        assert failure.life in lives
        assert max(lives) > failure.life
    _every_lease_was_completed_once(tmp_path)
    assert replay.run(tmp_path)['identical']


def _every_lease_was_completed_once(path):
    rows = monitor.read_updates(path)
    leases = [row.lease for row in rows]
    assert len(set(leases)) == len(leases) == 14
    epochs = {epoch for _, epoch, _ in leases}
    for epoch in sorted(epochs)[:-1]:  # whole epochs: whatever the failed one held was trained on
        assert {number for _, e, number in leases if e == epoch} == set(range(4))


@pytest.mark.parametrize('mode', ['async', 'sync'])
def test_a_replica_that_fails_for_good_is_left_out(mode, make_config, tmp_path, fail_at):
    fail_at(replica=1)
    result = experiment.run(make_config(exchange__mode=mode), tmp_path, quiet=True)
    assert result['updates'] == 14
    assert result['replica_failures'] == 2  # once, and once started again
    assert {row.replica for row in monitor.read_updates(tmp_path)} == {0}


def test_when_no_replica_is_left_the_run_ends_with_the_first_error(make_config, tmp_path, fail_at):
    fail_at(replica=0)
    fail_at(replica=1)
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError) as raised:
        experiment.run(make_config(), tmp_path, quiet=True)
    first, *_ = monitor._read(tmp_path / monitor.FAILURES)  # whichever came first
    assert str(raised.value) in first['error']
    left = {t for t in threading.enumerate() if t not in before}
    left = {t for t in left if t.name != 'QueueFeederThread'}  # tensorboardX's, which stays
    for thread in left:
        thread.join(60)
    assert not [t.name for t in left if t.is_alive()]


def test_failures_in_a_row_end_the_run_however_many_restarts(make_config, tmp_path, fail_at):
    fail_at(replica=0)
    fail_at(replica=1)
    with pytest.raises(ZeroDivisionError):
        experiment.run(make_config(exchange__max_restarts=1000), tmp_path, quiet=True)
    assert len(monitor._read(tmp_path / monitor.FAILURES)) == 3  # one more than there are replicas


def test_what_the_last_one_held_is_done_by_one_that_had_ended(make_config, tmp_path, fail_at):
    """Replica 1 fails with the stage's last lease when replica 0 has found no more to do."""
    config = make_config(exchange__max_restarts=0, bootstrap__rounds=1, bootstrap__updates=2)
    config.sequence.updates = 2
    fail_at(replica=1)
    result = experiment.run(config, tmp_path, quiet=True)
    assert result['updates'] == 4
    assert {row.replica for row in monitor.read_updates(tmp_path)} == {0}


@pytest.mark.slow
def test_a_failure_amid_local_steps_replays(make_config, tmp_path, fail_at):
    """What the local optimiser and the rounding error of a dead life were, nobody takes over."""
    config = make_config(
        exchange__rule='momentum_lookahead',
        exchange__local_steps=2,
        exchange__local_optimizer='adam',
        exchange__codec='int8',
        exchange__mode='sync',
        exchange__num_shards=2,
        bootstrap__rounds=1,
        bootstrap__updates=16,
        sequence__updates=0,
    )
    fail_at(call=11)  # two of them compile
    result = experiment.run(config, tmp_path, quiet=True)
    assert (result['updates'], result['replica_failures']) == (16, 1)
    assert replay.run(tmp_path)['identical']


def test_ctrl_c_in_a_checkpoint_is_not_lost(make_config, tmp_path, monkeypatch):
    real, stopped_at = checkpoint.Checkpoints.save, []
    handler = signal.default_int_handler
    before = signal.signal(signal.SIGINT, handler)  # background jobs ignore it

    def save(self, position):
        real(self, position)
        if not stopped_at:
            stopped_at.append(position.updates)
            with contextlib.suppress(KeyboardInterrupt):  # what a library may do
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint.Checkpoints, 'save', save)
    config = make_config(checkpoint__every_updates=2)
    try:
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, tmp_path, quiet=True)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    done = len(monitor.read_updates(tmp_path))
    assert stopped_at[0] <= done < 14
    assert experiment.run(config, tmp_path, quiet=True)['updates'] == 14
