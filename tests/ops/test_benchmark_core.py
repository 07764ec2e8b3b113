"""launch/benchmark_core.py times nothing under a wrong name."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest
from absl import app, flags

from seqtrain import ops

# Another's program: the float64 reference, which says that its calls took 3, 1 and 2 seconds.
OTHER = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np, oracles, pathlib
from seqtrain.fsa import Fsa
folder = pathlib.Path(sys.argv[1])
read = lambda name, dtype: np.fromfile(folder / name, dtype)
b, t, p, s, a = map(int, (folder / 'sizes.txt').read_text().split()[:5])
src, dst, pdf = read('arcs.i32', np.int32).reshape(a, 3).T
weights = [read(name + '.f32', np.float32) for name in ('weight', 'initial', 'final')]
fsa = Fsa(src, dst, pdf, *weights)
assert fsa.num_states == s
scores = read('scores.f32', np.float32).reshape(b, t, p).astype(float)
log_z, gamma = zip(*[oracles.forward_backward(x, fsa) for x in scores])
np.array(log_z).tofile(folder / 'log_z.f64')
(np.array(gamma) * {scale}).astype(np.float32).tofile(folder / 'gradient.f32')
print('3 6\\n1 2\\n2 4')
"""


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
        ('--graphs=wsj --wsj=nowhere', 'There is no WSJ denominator at nowhere'),
        ('--kernels=los', "Unknown kernels ['los']"),
        ('--backends=cuda', "Unknown backends ['cuda']"),
        ('--batches=1,x', "--batches are numbers from 1 on; got ['x']"),
        ('--frames=0', "--frames are numbers from 1 on; got ['0']"),
        ('--other=k2', "--other is NAME=COMMAND; got ['k2']"),
        ('--other=cpu=k2.py', "['cpu'] are names of our backends"),
    ],
)
def test_what_cannot_be_timed_is_refused(monkeypatch, capsys, command, flag, message, tmp_path):
    monkeypatch.setattr(command, 'measured', lambda *_: iter(()))
    monkeypatch.setattr(command, 'work', lambda *_: 0.0)
    with pytest.raises(SystemExit) as ended:
        app.run(
            command.main, ['benchmark_core.py', '--graphs=200', *flag.split(), f'--out={tmp_path}']
        )
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert message in printed.out + printed.err


@pytest.mark.parametrize(('scale', 'error'), [(1.0, 0.0), (0.5, 0.05)])
def test_anothers_program_is_timed_and_compared(command, tmp_path, scale, error):
    program = tmp_path / 'other.py'
    program.write_text(OTHER.format(tests=str(pathlib.Path(__file__).parents[1]), scale=scale))
    flags.FLAGS(['benchmark_core.py'])
    case = command.Case('200', 2, 5, 'reference', 'loss')
    graph = command.packed('200')
    scores = np.random.default_rng(0).standard_normal((2, 5, graph.num_pdfs), np.float32)
    timing = command.time_other(f'{sys.executable} {program}', case, graph, scores, 1.0)
    assert (timing.median_s, timing.least_s, timing.processor_s) == (2, 1, 2)
    assert timing.log_z_error < 1e-5
    assert error - 1e-5 <= timing.gradient_error
    assert (timing.gradient_error < 1e-5) == (error == 0)


def test_a_program_that_fails_is_named(command):
    flags.FLAGS(['benchmark_core.py'])
    case = command.Case('200', 1, 3, 'broken', 'loss')
    graph = ops.pack(command.GRAPHS['200']())
    scores = np.zeros((1, 3, graph.num_pdfs), np.float32)
    words = "import sys; print('no such graph', file=sys.stderr); sys.exit(7)"
    with pytest.raises(RuntimeError, match=r'(?s)failed with 7:.*no such graph'):
        command.time_other(f'{sys.executable} -c "{words}"', case, graph, scores, 1.0)
