"""T = 3000, B = 32 on a real denominator in under 2 GiB: loss and gradient."""

import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from seqtrain import ops
from seqtrain.fsa import Fsa
from seqtrain.ops import cpu

BATCH, FRAMES = 32, 3000
STEP = """
import pathlib, sys
import jax, jax.numpy as jnp
from seqtrain import ops
from seqtrain.fsa import Fsa

fsa = Fsa.read(sys.argv[1])
batch, frames = map(int, sys.argv[2:])
lengths = jnp.full(batch, frames, jnp.int32)
graph = ops.pack(fsa)
step = jax.jit(jax.value_and_grad(lambda x: ops.log_partition(x, lengths, graph).sum()))
value, gamma = step(jax.random.normal(jax.random.key(0), (batch, frames, fsa.num_pdfs)))
mass = float(gamma.sum()) / (batch * frames)
print(mass, pathlib.Path('/proc/self/status').read_text())
"""


@pytest.fixture
def denominator(data_dir) -> pathlib.Path:
    return data_dir / 'wsj_den' / 'den_fsm_wsj.txt'


@pytest.mark.parametrize('expectation', [False, True])
def test_the_portable_program_fits(denominator, expectation):
    # As compiled, with the redo in the log domain.
    fsa = Fsa.read(denominator)
    lengths = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    scores = jax.ShapeDtypeStruct((BATCH, FRAMES, fsa.num_pdfs), jnp.float32)

    def total(s, n, g):
        if expectation:
            return ops.expected_accuracy(s, n, g, jnp.zeros_like(s), backend='xla')[0].sum()
        return ops.log_partition(s, n, g, backend='xla').sum()

    step = jax.jit(jax.value_and_grad(total))
    memory = step.lower(scores, lengths, ops.pack(fsa)).compile().memory_analysis()
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert total < 2 << 30


@pytest.mark.slow
@pytest.mark.skipif(not cpu.available(), reason='the C++ core is not built')
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_a_process_with_the_core_fits(denominator):
    sizes = [str(BATCH), str(FRAMES)]
    command = [sys.executable, '-c', STEP, str(denominator), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) == pytest.approx(1, abs=1e-4)
    peak = re.search(r'VmHWM:\s+(\d+) kB', done.stdout)
    assert peak is not None
    assert int(peak[1]) << 10 < 2 << 30
