"""The self-check passes here, and says so when a kernel is broken."""

import importlib.util
import pathlib
import re

import numpy as np
import pytest
from absl import app, flags

from seqtrain import ops
from seqtrain.fsa import Fsa
from seqtrain.ops import forward_backward, selfcheck


def test_every_check_passes_on_every_backend():
    results = list(selfcheck.run())
    assert {r.backend for r in results} == set(ops.backends(interpreted=True))
    assert [r for r in results if not r.ok] == []


def test_a_broken_kernel_fails_the_check(monkeypatch):
    right = forward_backward.occupancies

    def wrong(*args, **options):
        log_z, gamma = right(*args, **options)
        return log_z * (1 + 1e-3), gamma

    monkeypatch.setattr(selfcheck, 'occupancies', wrong)
    assert sum(not r.ok for r in selfcheck.run()) >= 4 * len(ops.backends())


@pytest.fixture
def command():
    """launch/selfcheck.py as a module."""
    path = pathlib.Path(__file__).parents[2] / 'launch' / 'selfcheck.py'
    spec = importlib.util.spec_from_file_location('launch_selfcheck', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    delattr(flags.FLAGS, 'graph')


@pytest.mark.parametrize('ok', [True, False])
def test_the_command_prints_a_table_and_exits_with_its_verdict(monkeypatch, capsys, command, ok):
    result = selfcheck.Result('a check', 'xla', 0.0 if ok else 1.0, 0.5)
    monkeypatch.setattr(selfcheck, 'run', lambda graph: iter([result]))
    with pytest.raises(SystemExit) as ended:
        app.run(command.main, ['selfcheck.py', '--graph='])
    assert ended.value.code == (0 if ok else 1)
    printed = capsys.readouterr().out
    assert re.search(r'^ok .*a check$' if ok else r'^FAILED .*a check$', printed, re.M)
    assert ('All checks passed' in printed) == ok


def test_the_command_refuses_a_graph_that_is_not_there(monkeypatch, capsys, command, tmp_path):
    monkeypatch.setattr(selfcheck, 'run', lambda graph: iter([]))
    with pytest.raises(SystemExit) as ended:
        app.run(command.main, ['selfcheck.py', f'--graph={tmp_path / "typo.txt"}'])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert 'there is no file' in printed.out + printed.err
    assert 'All checks passed' not in printed.out


@pytest.mark.parametrize('backend', ops.backends())
def test_a_real_graph_is_checked_in_float64(backend):
    loop = Fsa(np.zeros(3), np.zeros(3), range(3), np.log(np.full(3, 0.3)), [0.0], [0.0])
    assert selfcheck._real(loop, backend) <= 1e-5


def test_nan_and_exceptions_are_failures():
    assert not selfcheck.Result('x', 'xla', float('nan'), 1.0).ok
    assert not selfcheck.Result('x', 'xla', float('inf'), 1.0).ok
    assert selfcheck.Result('x', 'xla', np.float64(0.5), 1.0).ok
