"""The benchmark in small: its numbers are of the right kind, and the script ends with JSON."""

import json
import pathlib
import platform
import subprocess
import sys

import numpy as np
import pytest

from seqtrain.exchange import Policy, benchmark
from seqtrain.exchange.memory import ALIGNMENT, aligned_empty, keep_freed_memory

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_standin_device_is_idle_only_for_the_exchange():
    step = benchmark.standin_step(0.01)
    (work,) = benchmark.run_local(benchmark.tree(1000), 2, Policy(), [step], 0.3)
    assert 0 <= work.idle < 0.9
    assert work.rate == pytest.approx(work.steps / work.wall_s)
    assert work.steps >= 2


def test_one_slow_replica_costs_sync_far_more_than_async():
    fractions = benchmark.straggler(benchmark.standin_step, 0.02, 3, 4.0, 1.0, 100)
    assert fractions['sync'] < 0.6  # 3 replicas at the pace of the slowest: 0.33
    assert fractions['async'] > fractions['sync'] + 0.2


def test_bandwidth_is_counted_in_bytes_both_ways():
    assert benchmark.memcpy_bandwidth(1 << 20, 3) > 1e8
    assert benchmark.shard_bandwidth(100_000, 2, 3) > 1e6


def test_aligned_vectors_begin_where_xla_wants_them():
    for size in (1, 17, 1000):
        vector = aligned_empty(size)
        assert vector.shape == (size,)
        assert vector.dtype == np.float32
        assert vector.ctypes.data % ALIGNMENT == 0


def test_keeping_freed_memory_says_whether_it_could():
    assert keep_freed_memory() is (platform.libc_ver()[0] == 'glibc')


@pytest.mark.slow
def test_the_script_ends_with_json():
    command = [sys.executable, str(ROOT / 'launch' / 'benchmark_exchange.py'), '--noray']
    command += ['--parameters=100000', '--small=1000', '--duration_s=0.5', '--step_s=0.02']
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    numbers = json.loads(done.stdout.strip().splitlines()[-1])
    assert {
        'straggler_async_fraction',
        'straggler_sync_fraction',
        'device_idle_fraction_local',
        'memcpy_fraction',
    } <= numbers.keys()
