"""launch/benchmark_core.py times nothing under a wrong name."""

import importlib.util
import pathlib

import pytest
from absl import app, flags


@pytest.fixture
def command():
    """The script as a module, with its flags as long as a test takes."""
    before = set(flags.FLAGS)
    path = pathlib.Path(__file__).parents[2] / 'launch' / 'benchmark_core.py'
    spec = importlib.util.spec_from_file_location('launch_benchmark_core', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
    ('flag', 'message'),
    [
        ('--graphs=wjs', "Unknown graphs ['wjs']"),
        ('--kernels=los', "Unknown kernels ['los']"),
        ('--backends=cuda', "Unknown backends ['cuda']"),
        ('--batches=1,x', "--batches are numbers from 1 on; got ['x']"),
        ('--frames=0', "--frames are numbers from 1 on; got ['0']"),
    ],
)
def test_what_cannot_be_timed_is_refused(monkeypatch, capsys, command, flag, message, tmp_path):
    monkeypatch.setattr(command, 'measured', lambda *_: iter(()))
    monkeypatch.setattr(command, 'work', lambda *_: 0.0)
    with pytest.raises(SystemExit) as ended:
        app.run(command.main, ['benchmark_core.py', flag, f'--out={tmp_path}'])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert message in printed.out + printed.err
