"""A tiny experiment that every test of training shares: a few spoken digit strings."""

import pytest

from seqtrain.training import config as config_lib
from seqtrain.training import experiment, monitor


def tiny_config(cache_dir, **changes):
    """Seconds long: 24 utterances, 16 hidden units, 14 updates. Dots in names are section dots."""
    config = config_lib.default()
    config.name = 'tiny'
    config.data.corpus = 'synth_digits/small'
    config.data.cache_dir = str(cache_dir)
    config.data.batch_size = 6
    config.data.num_buckets = 1
    config.model.num_hidden = 16
    config.exchange.num_replicas = 2
    config.bootstrap.rounds = 2
    config.bootstrap.updates = 4
    config.sequence.updates = 6
    config.checkpoint.every_updates = 4
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return config


class PowerCut(BaseException):
    """No failure of a replica's own: it ends the run."""


@pytest.fixture(scope='session')
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='session')
def make_config(cache_dir):
    return lambda **changes: tiny_config(cache_dir, **changes)


@pytest.fixture
def run_until_power_cut(monkeypatch):
    """Runs an experiment and fails in a replica after so many updates."""

    def run(config, workdir, updates):
        real, seen = monitor.Monitor.add, []

        def add(self, update):
            real(self, update)
            seen.append(update)
            if len(seen) == updates:
                raise PowerCut

        with monkeypatch.context() as patched:
            patched.setattr(monitor.Monitor, 'add', add)
            with pytest.raises(PowerCut):
                experiment.run(config, workdir, quiet=True)

    return run


@pytest.fixture
def arguments(make_config, tmp_path):
    """Flags that make configs/demo.py the tiny experiment."""
    config = make_config()
    changed = {
        'data.corpus': config.data.corpus,
        'data.cache_dir': config.data.cache_dir,
        'data.batch_size': 6,
        'data.num_buckets': 1,
        'data.speeds': '(1.0,)',
        'model.num_hidden': 16,
        'exchange.num_replicas': 2,
        'bootstrap.rounds': 2,
        'bootstrap.updates': 4,
        'sequence.updates': 6,
        'checkpoint.every_updates': 4,
    }
    flags = [f'--config.{name}={value}' for name, value in changed.items()]
    return ['--config=configs/demo.py', f'--workdir={tmp_path / "run"}', '--quiet', *flags]


@pytest.fixture
def kaldi_copy():
    """Writes utterances as a Kaldi data directory, some with another transcript."""

    def write(utterances, folder, texts=()):
        folder.mkdir()
        lists = {'wav.scp': [], 'text': [], 'utt2spk': []}
        for utterance in utterances:
            audio = folder / f'{utterance.id}.flac'
            audio.write_bytes(utterance.audio)
            lists['wav.scp'].append(f'{utterance.id} {audio}')
            lists['text'].append(f'{utterance.id} {dict(texts).get(utterance.id, utterance.text)}')
            lists['utt2spk'].append(f'{utterance.id} {utterance.speaker}')
        for name, lines in lists.items():
            (folder / name).write_text('\n'.join(sorted(lines)) + '\n')
        return folder

    return write
