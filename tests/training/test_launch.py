"""The launch scripts as processes: the last line, decoding, kill -9, Ctrl-C, wrong flags."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent

# A process that runs launch/train.py, with a line of Python in place of the outside world.
HARNESS = """
import os, runpy, signal, sys
from seqtrain.training import {module}
real, calls = {target}, []
def patched(*args, **kwargs):
    result = real(*args, **kwargs)
    calls.append(1)
    if len(calls) == {count}:
        os.kill(os.getpid(), signal.{signal})
    return result
{target} = patched
sys.argv = ['launch/train.py', *sys.argv[1:]]
runpy.run_path('launch/train.py', run_name='__main__')
"""


def launch(*command, check=True):
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.jax_cache')}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def test_train_then_decode(arguments, tmp_path, make_config):
    result = json.loads(launch('launch/train.py', *arguments).stdout.splitlines()[-1])
    assert {'wer', 'words', 'errors', 'frames_per_s', 'mean_staleness'} <= set(result)
    data = _kaldi_copy(make_config().data, tmp_path / 'test')
    done = launch('launch/decode.py', f'--workdir={tmp_path / "run"}', f'--data={data}')
    decoded = json.loads(done.stdout.splitlines()[-1])
    assert (decoded['wer'], decoded['words']) == (result['wer'], result['words'])
    hypotheses = pathlib.Path(decoded['output']).read_text()
    assert hypotheses == (tmp_path / 'run' / 'decode' / 'mmi-word' / 'text').read_text()


def _kaldi_copy(config, folder):
    """The test set once more, as a Kaldi data directory."""
    from seqtrain.training import assembly

    folder.mkdir()
    lists = {'wav.scp': [], 'text': [], 'utt2spk': []}
    for utterance in assembly.load_split(config, 'test'):
        audio = folder / f'{utterance.id}.flac'
        audio.write_bytes(utterance.audio)
        lists['wav.scp'].append(f'{utterance.id} {audio}')
        lists['text'].append(f'{utterance.id} {utterance.text}')
        lists['utt2spk'].append(f'{utterance.id} {utterance.speaker}')
    for name, lines in lists.items():
        (folder / name).write_text('\n'.join(sorted(lines)) + '\n')
    return folder


@pytest.mark.parametrize(
    ('module', 'target', 'count', 'sent', 'status'),
    [
        ('checkpoint', 'checkpoint.Checkpoints.save', 2, 'SIGKILL', -signal.SIGKILL),
        ('monitor', 'monitor.Monitor.add', 6, 'SIGINT', 130),
    ],
)
def test_a_run_that_was_stopped_goes_on(arguments, tmp_path, module, target, count, sent, status):
    harness = HARNESS.format(module=module, target=target, count=count, signal=sent)
    stopped = launch('-c', harness, *arguments, check=False)
    assert stopped.returncode == status, stopped.stderr
    assert any((tmp_path / 'run' / 'checkpoints').iterdir())
    if sent == 'SIGINT':
        assert 'goes on from here' in stopped.stderr
        assert 'Traceback' not in stopped.stderr
    done = launch('launch/train.py', *arguments)
    assert 'Continuing from update' in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])['updates'] == 14


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--config=configs/demo.py', '--workdir=x', '--config.sequence.updatez=3'], 'updatez'),
        (['--config=configs/demo.py'], 'workdir'),
        (['--config=configs/kaldi.py', '--workdir=x', '--config.data.train=nowhere'], 'nowhere'),
    ],
)
def test_wrong_flags_say_which(flags, message, tmp_path):
    flags = [flag.replace('=x', f'={tmp_path}') for flag in flags]
    done = launch('launch/train.py', *flags, check=False)
    assert done.returncode != 0
    assert message in done.stderr


def test_decoding_an_empty_folder_says_to_train_first(tmp_path):
    done = launch('launch/decode.py', f'--workdir={tmp_path}', f'--data={tmp_path}', check=False)
    assert done.returncode == 1
    assert 'Train first' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_shards_as_ray_actors(arguments, tmp_path):
    pytest.importorskip('ray')
    done = launch('launch/train.py', *arguments, '--config.exchange.transport=ray')
    result = json.loads(done.stdout.splitlines()[-1])
    assert result['updates'] == 14
    replayed = launch('launch/replay.py', f'--workdir={tmp_path / "run"}')
    assert json.loads(replayed.stdout.splitlines()[-1])['identical']
