"""The launch scripts as processes: the last line, decoding, kill -9, Ctrl-C, wrong flags."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from seqtrain.training import assembly

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
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
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


def test_train_then_decode_align_and_time_lattices(arguments, tmp_path, make_config, kaldi_copy):
    result = json.loads(launch('launch/train.py', *arguments).stdout.splitlines()[-1])
    assert {'wer', 'words', 'errors', 'frames_per_s', 'mean_staleness'} <= set(result)
    utterances = assembly.load_split(make_config().data, 'test')
    data = kaldi_copy(utterances, tmp_path / 'test')
    done = launch('launch/decode.py', f'--workdir={tmp_path / "run"}', f'--data={data}')
    decoded = json.loads(done.stdout.splitlines()[-1])
    for name in ('wer', 'words', 'wer_interval'):
        assert decoded[name] == result[name]
    hypotheses = pathlib.Path(decoded['output']).read_text()
    assert hypotheses == (tmp_path / 'run' / 'decode' / 'mmi-word' / 'text').read_text()
    flags = [f'--workdir={tmp_path / "run"}', f'--data={data}', '--acoustic_scales=0.5,1']
    tried = json.loads(launch('launch/decode.py', *flags).stdout.splitlines()[-1])['scales']
    assert [row['acoustic_scale'] for row in tried] == [0.5, 1.0]
    assert tried[1]['errors'] == result['errors']
    flags = [f'--workdir={tmp_path / "run"}', f'--data={data}', f'--out={tmp_path / "ali"}']
    done = launch('launch/align.py', *flags)
    assert json.loads(done.stdout.splitlines()[-1])['utterances'] == len(utterances)
    assert len(list((tmp_path / 'ali' / 'textgrid').iterdir())) == len(utterances)
    flags = [f'--workdir={tmp_path / "run"}', f'--data={data}', '--utterances=3', '--rounds=1']
    timed = json.loads(launch('launch/benchmark_lattices.py', *flags).stdout.splitlines()[-1])
    assert (timed['utterances'], timed['without_path']) == (3, 0)
    assert min(timed['search'], timed['pair'], timed['kaldi'], timed['arcs_per_frame']) > 1


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
        (
            ['--config=configs/demo.py', '--workdir=x', '--config.sequence.updatez=3'],
            "no field 'updatez'",
        ),
        (['--config=configs/demo.py'], 'workdir'),
        (['--config=configs/kaldi.py', '--workdir=x', '--config.data.train=nowhere'], 'nowhere'),
        (['--config=configs/demo.py', '--workdir=x', 'config.seed=3'], "['config.seed=3']"),
        (['--config=configs/nope.py', '--workdir=x'], 'nope.py'),
    ],
)
def test_wrong_flags_say_which(flags, message, tmp_path):
    flags = [flag.replace('=x', f'={tmp_path}') for flag in flags]
    done = launch('launch/train.py', *flags, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('script', ['decode', 'align', 'replay'])
def test_words_that_are_no_flags_are_refused(script, tmp_path):
    flags = [f'--workdir={tmp_path}', *[f'--data={tmp_path}'] * (script != 'replay')]
    flags += [f'--out={tmp_path / "out"}'] * (script == 'align')
    done = launch(f'launch/{script}.py', *flags, 'beam=3', check=False)
    assert done.returncode == 1
    assert "Unknown arguments: ['beam=3']" in done.stderr + done.stdout


def test_acoustic_scales_that_are_no_numbers_are_refused(tmp_path):
    flags = [f'--workdir={tmp_path}', f'--data={tmp_path}', '--acoustic_scales=0.1,loud']
    done = launch('launch/decode.py', *flags, check=False)
    assert done.returncode == 1
    assert "--acoustic_scales must be numbers: could not convert string to float: 'loud'" in (
        done.stderr + done.stdout
    )


@pytest.mark.parametrize('script', ['decode', 'align'])
def test_an_empty_folder_says_to_train_first(script, tmp_path):
    flags = [f'--workdir={tmp_path}', f'--data={tmp_path}']
    flags += [f'--out={tmp_path / "out"}'] * (script == 'align')
    done = launch(f'launch/{script}.py', *flags, check=False)
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
