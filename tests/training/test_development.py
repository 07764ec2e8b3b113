"""Looks at a development set: when training is over, and what it goes back to."""

import dataclasses
import json
import threading

import jax
import numpy as np
import pytest

from seqtrain import report
from seqtrain.decoding import Hypothesis
from seqtrain.training import assembly, development, experiment, monitor, recognizer, replay
from seqtrain.training.checkpoint import Checkpoints, Position
from seqtrain.training.development import Development
from seqtrain.training.leasing import LeaseDesk
from seqtrain.training.monitor import Monitor
from seqtrain.training.workdir import WorkdirError


class Told:
    """A recogniser that gets a number of words of the transcript wrong."""

    def __init__(self, words, wrong):
        self.words, self.wrong = words, iter(wrong)

    def __call__(self, params, features):
        wrong = next(self.wrong)
        words = ('other',) * wrong + ('word',) * (self.words - wrong)
        return {'u': Hypothesis(words, 0.0, True, np.zeros(1, np.int32))}


def position(updates):
    shard = {'arrays': {'values': np.float32([updates])}, 'meta': {'version': updates}}
    return Position(2, 1, updates, [shard], {}, np.zeros(1, np.int32), np.zeros(1, np.float32))


def looked(folder, wrong, patience=0, updates=0, start=0):
    """A run's looks, one after every ten updates, with so many words wrong."""
    folder.mkdir(exist_ok=True)
    references = {'u': ' '.join(['word'] * 9)}
    looks = Development(Told(9, wrong), None, references, folder, patience, 10, updates)
    for number in range(1, len(wrong) + 1):
        looks.look(position(start + 10 * number), None)
    return looks


def test_the_first_look_with_the_fewest_errors_is_the_best(tmp_path):
    looks = looked(tmp_path, [5, 3, 4, 3])
    assert looks.best.updates == looks.kept().updates == 20
    assert looks.best.wer == 3 / 9
    assert looks.kept().shards[0]['arrays']['values'] == [20]
    looks.close()


@pytest.mark.parametrize(
    ('wrong', 'over'),
    [([5], False), ([5, 6], False), ([5, 6, 5], True), ([5, 6, 4], False), ([5, 6, 4, 4, 4], True)],
)
def test_training_is_over_after_so_many_looks_that_were_no_better(wrong, over, tmp_path):
    looks = looked(tmp_path, wrong, patience=2)
    assert looks.over is over
    looks.close()


def test_without_patience_it_is_never_over(tmp_path):
    looks = looked(tmp_path, [1, 2, 3, 4, 5])
    assert not looks.over
    looks.close()


def test_where_a_run_broke_off_patience_is_not_used_up(tmp_path):
    looked(tmp_path, [3, 4], patience=2).close()
    for updates in (21, 22, 23):  # three times Ctrl-C, soon after it went on
        looks = looked(tmp_path, [4], patience=2, updates=updates, start=updates - 10)
        assert not looks.over
        looks.close()
    looks = looked(tmp_path, [4], patience=2, updates=30, start=20)
    assert [look.updates for look in looks.looks] == [10, 20, 21, 22, 23, 30]
    assert looks.over
    looks.close()


def test_a_resumed_run_knows_its_looks(tmp_path):
    looked(tmp_path, [5, 3, 4]).close()
    again = looked(tmp_path, [4], patience=2, updates=35, start=30)
    assert [look.errors for look in again.looks] == [5, 3, 4, 4]
    assert again.over
    assert again.kept().updates == 20
    again.close()


def test_looks_of_a_future_that_did_not_happen_are_forgotten(tmp_path):
    looked(tmp_path, [5, 4, 6]).close()
    again = looked(tmp_path, [], updates=25)
    assert [look.errors for look in again.looks] == [5, 4]
    again.close()
    lost = looked(tmp_path, [6, 7], updates=15)  # what was best then is not there any more
    assert [look.errors for look in lost.looks] == [6, 7]
    assert lost.kept().updates == 10
    lost.close()


def watch(monkeypatch, wrong):
    """Looks see these numbers of errors instead of decoding."""
    told = iter(wrong)

    def decoded(self, made, params):
        known = self.looks and self.looks[-1].updates == made.updates
        if not known:
            self._recognizer = Told(9, [next(told)])
            self._references = {'u': ' '.join(['word'] * 9)}
        real(self, made, params)

    real = Development.look
    monkeypatch.setattr(Development, 'look', decoded)


@pytest.fixture(autouse=True)
def in_step(monkeypatch):
    """Replicas take leases only while the main thread has nothing to do: no look comes late."""
    condition, has_work = threading.Condition(), [lambda: True]
    wait_for, take, stop = Monitor.wait_for, LeaseDesk.take, LeaseDesk.stop

    def begin(work):
        with condition:
            has_work[0] = work
            condition.notify_all()

    def waiting(self, done):
        begin(done)
        wait_for(self, done)
        begin(lambda: True)

    def taking(self, replica, most=1):
        with condition:
            assert condition.wait_for(lambda: self._stopped or not has_work[0](), timeout=60)
        return take(self, replica, most)

    def stopping(self):
        stop(self)
        with condition:
            condition.notify_all()

    monkeypatch.setattr(Monitor, 'wait_for', waiting)
    monkeypatch.setattr(LeaseDesk, 'take', taking)
    monkeypatch.setattr(LeaseDesk, 'stop', stopping)


def values(folder, config):
    checkpoints = Checkpoints(folder, config.checkpoint.keep)
    found = checkpoints.latest()
    checkpoints.close()
    return found.updates, [shard['arrays']['values'] for shard in found.shards]


@pytest.fixture
def config(make_config):
    return make_config(
        data__dev='test', sequence__updates=36, sequence__patience=1, checkpoint__every_updates=3
    )


@pytest.mark.parametrize('mode', ['async', 'sync'])
def test_a_run_ends_early_with_the_best_parameters(mode, config, tmp_path, monkeypatch):
    config.exchange.mode = mode
    watch(monkeypatch, [5, 3, 4])
    result = experiment.run(config, tmp_path, quiet=True)
    assert result['stopped_early']
    assert result['wer_dev'] == 3 / 9
    assert 8 + 6 <= result['updates'] < 8 + 36  # two rounds of 4 before; the third look ends it
    best, kept = values(tmp_path / 'development' / 'best', config)
    assert best == result['best_update'] < result['updates']
    updates, last = values(tmp_path / 'checkpoints', config)
    assert updates == result['updates']
    np.testing.assert_equal(last, kept)
    assert replay.run(tmp_path)['identical']


def test_a_run_that_gets_no_better_ends_with_what_the_sequence_stage_began_with(
    config, tmp_path, monkeypatch
):
    watch(monkeypatch, [3, 5])
    result = experiment.run(config, tmp_path, quiet=True)
    assert result['stopped_early']
    assert (result['best_update'], result['wer_dev']) == (8, 3 / 9)
    _, last = values(tmp_path / 'checkpoints', config)
    np.testing.assert_equal(last, values(tmp_path / 'development' / 'best', config)[1])
    assert replay.run(tmp_path)['identical']


@pytest.mark.parametrize('on_top', [False, True])
def test_a_run_killed_after_its_first_look_can_still_end_with_what_it_looked_at(
    on_top, config, make_config, tmp_path, monkeypatch, run_until_power_cut
):
    before = 8
    if on_top:  # of another run's network: the sequence stage is the first one
        experiment.run(make_config(sequence__updates=0), tmp_path / 'ce', quiet=True)
        config.start_from, config.bootstrap.rounds, before = str(tmp_path / 'ce'), 0, 0
    watch(monkeypatch, [3, 5])
    run_until_power_cut(config, tmp_path / 'run', updates=before + 1, killed=True)
    result = experiment.run(config, tmp_path / 'run', quiet=True)
    assert (result['best_update'], result['wer_dev']) == (before, 3 / 9)
    assert result['updates'] > before
    assert replay.run(tmp_path / 'run')['identical']


def test_no_checkpoint_is_looked_at_when_training_is_over(config, tmp_path, monkeypatch):
    config.exchange.rule, config.exchange.local_steps = 'averaging', 8  # many more come after
    config.bootstrap.rounds, config.sequence.updates = 1, 200
    watch(monkeypatch, [5, 6, 2, 1])
    result = experiment.run(config, tmp_path, quiet=True)
    assert result['stopped_early']
    assert result['updates'] < 4 + 200
    assert result['wer_dev'] == 5 / 9


def test_a_run_that_trained_to_its_end_did_not_stop_early(config, tmp_path, monkeypatch):
    config.sequence.updates, config.checkpoint.every_updates = 6, 4
    watch(monkeypatch, [4, 3, 4])
    result = experiment.run(config, tmp_path, quiet=True)
    assert result['updates'] == 8 + 6
    assert not result['stopped_early']


@pytest.mark.parametrize('where', [(Development, 'look'), (development, 'write_json')])
def test_a_checkpoint_that_was_not_looked_at_before_a_kill_is_looked_at_after_it(
    where, config, tmp_path, monkeypatch
):
    watch(monkeypatch, [5, 3, 3, 4])
    seen, best = [], []
    real, save = getattr(*where), Checkpoints.save

    def killed_in_the_second(*args):
        seen.append(args)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*args)

    def unless_killed(self, position):
        if len(seen) < 2:
            save(self, position)
            best.append(position.updates)

    with monkeypatch.context() as patched:
        patched.setattr(*where, killed_in_the_second)
        patched.setattr(Checkpoints, 'save', unless_killed)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, tmp_path, quiet=True)
    result = experiment.run(config, tmp_path, quiet=True)
    assert result['wer_dev'] == 3 / 9
    assert result['best_update'] == best[-1] > 8
    assert replay.run(tmp_path)['identical']


def test_what_is_decoded_at_the_end_is_the_best(config, tmp_path, monkeypatch):
    config.sequence.patience = 0
    watch(monkeypatch, [5, 3, *[4] * 12])
    seen = []
    real = recognizer.Recognizer.__call__

    def decoding(self, params, features, acoustic_scale=None):
        seen.append(params)
        return real(self, params, features, acoustic_scale)

    monkeypatch.setattr(recognizer.Recognizer, '__call__', decoding)
    result = experiment.run(config, tmp_path, quiet=True)
    assert not result['stopped_early']
    assert result['updates'] == 8 + 36
    _, kept = values(tmp_path / 'development' / 'best', config)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(seen[-1])])
    np.testing.assert_equal(np.sort(flat), np.sort(np.concatenate(kept)))
    # The newest checkpoint is that best one; those before it are of later networks.
    with pytest.raises(WorkdirError, match='ends with the network that was best'):
        recognizer.trained(config, tmp_path, seen[-1], average=2)
    assert recognizer.trained(config, tmp_path, seen[-1])[1].updates == 44


def test_a_run_that_broke_off_goes_on_with_its_looks(
    config, tmp_path, monkeypatch, run_until_power_cut
):
    watch(monkeypatch, [5, 3, 4])
    run_until_power_cut(config, tmp_path, updates=8 + 7)
    rows = json.loads((tmp_path / 'development' / 'looks.json').read_text())
    assert [row['errors'] for row in rows] == [5, 3, 4][: len(rows)]
    result = experiment.run(config, tmp_path, quiet=True)
    assert result['stopped_early']
    assert result['wer_dev'] == 3 / 9
    assert replay.run(tmp_path)['identical']


def test_the_development_set_is_decoded(make_config, tmp_path, monkeypatch):
    config = make_config(data__dev='test')
    records = []
    monkeypatch.setattr(report, 'write', lambda folder, record: records.append(record))
    result = experiment.run(config, tmp_path, quiet=True)
    looks = json.loads((tmp_path / 'development' / 'looks.json').read_text())
    assert [look['words'] for look in looks] == [result['words']] * len(looks)
    assert (
        result['wer_dev']
        == result['wer']
        == min(look['errors'] for look in looks) / (result['words'])
    )
    assert len(monitor.read_updates(tmp_path)) == 14
    curve = [(look['updates'], look['errors'] / look['words']) for look in looks]
    assert records[0].scalars['mmi/development WER'] == curve


def test_development_utterances_that_cannot_be_used_are_named(make_config, tmp_path, monkeypatch):
    config = make_config(data__dev='test', data__max_test=2, bootstrap__rounds=1)
    real = assembly.load_split

    def with_a_short_one(data, split):
        first, *rest = real(data, split)
        if split != 'dev':
            return [first, *rest]
        return [dataclasses.replace(first, id='short', audio=first.audio[:200]), *rest[:2]]

    monkeypatch.setattr(assembly, 'load_split', with_a_short_one)
    result = experiment.run(config, tmp_path, quiet=True)
    assert result['skipped'] == 1
    assert 'short' in (tmp_path / 'report.html').read_text()


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'sequence__patience': 2}, 'config.data.dev'),
        ({'sequence__patience': -1, 'data__dev': 'test'}, 'number of looks'),
    ],
)
def test_a_patience_that_cannot_be_kept_is_refused(changes, sentence, make_config):
    with pytest.raises(ValueError, match=sentence):
        development.check(make_config(**changes))
