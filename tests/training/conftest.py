"""A tiny experiment that every test of training shares: a few spoken digit strings."""

import itertools
import os

import kaldi_native_io
import numpy as np
import pytest
import remote_runs

from seqtrain.exchange.transport import ray as ray_transport
from seqtrain.training import assembly, checkpoint, experiment, hosts, monitor
from seqtrain.training import config as config_lib


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
    """Runs an experiment that fails after so many updates; killed: without a last checkpoint."""

    def run(config, workdir, updates, killed=False):
        real, seen = monitor.Monitor.add, []
        save = checkpoint.Checkpoints.save

        def add(self, update):
            real(self, update)
            seen.append(update)
            if len(seen) == updates:
                raise PowerCut

        def unless_killed(self, position):
            if not killed or len(seen) < updates:
                save(self, position)

        with monkeypatch.context() as patched:
            patched.setattr(monitor.Monitor, 'add', add)
            patched.setattr(checkpoint.Checkpoints, 'save', unless_killed)
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


@pytest.fixture
def given_features():
    """Writes a Kaldi data directory of one utterance with features of so many values per frame."""

    def write(folder, text, dim):
        folder.mkdir()
        with kaldi_native_io.FloatMatrixWriter(
            f'ark,scp:{folder}/feats.ark,{folder}/feats.scp'
        ) as writer:
            writer.write('given', np.ones((90, dim), np.float32))
        (folder / 'text').write_text(f'given {text}\n')
        (folder / 'utt2spk').write_text('given someone\n')
        return folder

    return write


@pytest.fixture(params=['utterance', 'speaker'])
def prepared(request, make_config):
    """A config, its whole training set as the driver has it, network and parameters."""
    config = make_config(data__split_by=request.param, data__spec_augment=True)
    data = assembly.training_data(config)
    network, params = assembly.network(config, data.features.dim, data.topology.num_pdfs)
    return config, data, network, params


@pytest.fixture(scope='module')
def ray_here():
    """One Ray for all; its processes find compiled programs where other tests left theirs."""
    pytest.importorskip('ray')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XLA_FLAGS', ray_transport.xla_flags())  # one device per process
        patch.setenv('JAX_COMPILATION_CACHE_DIR', remote_runs.CACHE)
        ray_transport.start(num_cpus=2)
    yield
    ray_transport.stop()


@pytest.fixture
def send(monkeypatch):
    """`send({n: signal})`: after n updates (of replica `of`), to the second replica's process."""
    made, pids, count = [], {}, itertools.count(1)
    add, init = monitor.Monitor.add, hosts.Hosts.__init__

    def plan(signals, of=None):
        def watched(self, *args):
            init(self, *args)
            made.append(self)

        def sending(self, update):
            add(self, update)
            if of not in (None, update.replica):
                return
            number = next(count)  # replicas call this at the same time
            if number in signals:
                pids.update(pids or made[0].pids())  # a paused process does not say its own
                os.kill(pids[1], signals[number])

        monkeypatch.setattr(hosts.Hosts, '__init__', watched)
        monkeypatch.setattr(monitor.Monitor, 'add', sending)

    return plan
