"""The simulator: deterministic, agrees with arithmetic where that is easy, lives with failures."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest

from seqtrain.exchange import Policy, rules
from seqtrain.exchange.plots import compare
from seqtrain.exchange.scenario import Dist, Quadratic, Scenario
from seqtrain.exchange.simulate import Simulation

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLOCKWORK = Scenario(
    Policy(num_workers=4),
    duration_s=100.0,
    step_s=Dist('constant', 1.0),
    latency_s=Dist('constant', 1e-4),
    size=1000,
    apply_s=1e-4,
)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    scenario = dataclasses.replace(
        CLOCKWORK, step_s=Dist('lognormal', 1.0, 0.3), replica_mtbf_s=40.0, shard_mtbf_s=50.0
    )
    first, again = (Simulation(scenario).run() for _ in range(2))
    other = Simulation(dataclasses.replace(scenario, seed=1)).run()
    np.testing.assert_array_equal(first.time_s, again.time_s)
    np.testing.assert_array_equal(first.staleness, again.staleness)
    assert len(first.time_s) != len(other.time_s) or np.any(first.time_s != other.time_s)


def test_throughput_is_the_sum_of_the_single_speeds_and_sync_that_of_the_slowest():
    slow = dataclasses.replace(CLOCKWORK, slow=((0, 4.0),))
    fast_sum = 3 + 1 / 4
    assert Simulation(slow).run().throughput == pytest.approx(fast_sum, rel=0.03)
    sync = dataclasses.replace(slow, policy=Policy(mode='sync', num_workers=4))
    assert Simulation(sync).run().throughput == pytest.approx(4 / 4, rel=0.05)
    backup = dataclasses.replace(slow, policy=Policy(mode='sync', num_workers=4, quorum=3))
    assert Simulation(backup).run().throughput == pytest.approx(3.0, rel=0.05)


def test_overlap_costs_staleness_and_saves_time_on_a_slow_line():
    line = dataclasses.replace(CLOCKWORK, latency_s=Dist('constant', 0.1))
    with_overlap = Simulation(line).run()
    without = Simulation(dataclasses.replace(line, overlap=False)).run()
    assert with_overlap.busy.mean() > 0.98
    assert without.busy.mean() == pytest.approx(1 / 1.2, abs=0.03)  # there and back, once
    assert with_overlap.staleness.mean() > 1.5 * without.staleness.mean()


def test_a_staleness_bound_holds_and_costs_throughput():
    free = Simulation(CLOCKWORK).run()
    policy = Policy(num_workers=4, max_staleness=1)
    bounded = Simulation(dataclasses.replace(CLOCKWORK, policy=policy)).run()
    assert bounded.staleness.max() <= 1
    assert bounded.rejected == 0
    assert 1.5 < bounded.throughput < free.throughput


@pytest.mark.parametrize('max_staleness', [0, 1, 4])
@pytest.mark.parametrize('num_shards', [1, 2, 4])
def test_replicas_that_wait_for_each_other_never_wait_in_a_circle(num_shards, max_staleness):
    policy = Policy(num_workers=8, max_staleness=max_staleness)
    for seed in range(3):
        scenario = dataclasses.replace(
            CLOCKWORK,
            policy=policy,
            num_shards=num_shards,
            latency_s=Dist('exponential', 1e-3),
            seed=seed,
        )
        result = Simulation(scenario).run()
        assert result.time_s[-1] > scenario.duration_s - 3.0
        assert result.throughput > 0.9 * (max_staleness + 1)


@pytest.mark.parametrize('mode', ['async', 'sync'])
def test_a_push_and_the_pull_after_it_take_one_journey(mode):
    scenario = dataclasses.replace(
        CLOCKWORK,
        policy=Policy(mode=mode, num_workers=1),
        duration_s=1000.0,
        step_s=Dist('constant', 1e-3),
        latency_s=Dist('constant', 1.0),
        overlap=False,
    )
    assert Simulation(scenario).run().throughput == pytest.approx(1 / 2, rel=0.01)


def test_failures_cost_what_they_should():
    scenario = dataclasses.replace(
        CLOCKWORK, duration_s=2000.0, replica_mtbf_s=100.0, restart_s=25.0, lease_s=5.0
    )
    result = Simulation(scenario).run()
    assert result.deaths == pytest.approx(64, abs=24)  # a life of 100 s after every 25 s of death
    assert 0.70 < result.throughput / 4 < 0.90  # a death costs the restart and half a step
    sync = dataclasses.replace(scenario, policy=Policy(mode='sync', num_workers=4))
    assert 0.3 < Simulation(sync).run().throughput / 4 < 0.90  # the leases keep rounds going


def test_who_is_dead_does_not_die_again():
    """Lives of 20 s and deaths of 30 s: two fifths of the time alive, less half a step a life."""
    policy = Policy(num_workers=200)
    failing = {'replica_mtbf_s': 20.0, 'restart_s': 30.0, 'lease_s': 5.0}
    scenario = dataclasses.replace(CLOCKWORK, policy=policy, duration_s=2000.0, **failing)
    result = Simulation(scenario).run()
    assert result.deaths == pytest.approx(200 * 2000 / 50, rel=0.05)
    assert result.busy.mean() == pytest.approx(0.4, abs=0.03)


def test_a_shard_that_restarts_loses_at_most_a_checkpoint_interval():
    scenario = dataclasses.replace(
        CLOCKWORK, num_shards=2, shard_mtbf_s=30.0, shard_restart_s=1.0, checkpoint_s=5.0
    )
    simulation = Simulation(scenario)
    result = simulation.run()
    assert result.shard_deaths > 2
    for state in simulation._shards:
        state.check()
    lost = len(result.time_s) - simulation._shards[0].version
    assert 0 <= lost <= result.shard_deaths * 5 * 4
    assert result.throughput > 2.0


def test_real_gradients_reach_the_optimum():
    scenario = dataclasses.replace(CLOCKWORK, num_shards=2)
    problem = Quadratic(size=20, condition=5.0, noise=0.01)
    result = Simulation(scenario, rules.sgd(0.05), problem).run()
    assert result.loss[-1][1] < 1e-3 * result.loss[0][1]


def test_the_toys_gradient_is_the_gradient_of_its_loss():
    problem = Quadratic(size=6, noise=0.0)
    values = np.linspace(-1, 1, 6).astype(np.float32)
    for i in range(6):
        step = np.zeros(6, np.float32)
        step[i] = 1e-2
        slope = (problem.loss(values + step) - problem.loss(values - step)) / 2e-2
        assert slope == pytest.approx(problem.gradient(values, 0, 0)[i], abs=1e-3)


@pytest.mark.parametrize('kind', ['constant', 'uniform', 'exponential', 'lognormal'])
def test_distributions_keep_their_mean(kind):
    drawn = Dist(kind, 2.0, 0.5).draw(np.random.default_rng(0), 20_000)
    assert drawn.mean() == pytest.approx(2.0, rel=0.02)
    assert drawn.min() > 0


def test_impossible_scenarios_are_refused():
    with pytest.raises(ValueError, match='no distribution'):
        Dist('gaussian')
    with pytest.raises(ValueError, match='negative'):
        Dist('uniform', 1.0, 2.0)
    for change, message in (
        ({'duration_s': 0.0}, 'duration_s is 0.0'),
        ({'replica_mtbf_s': 0.0}, 'replica_mtbf_s is 0.0'),
        ({'duration_s': float('inf')}, 'needs an end'),
        ({'bandwidth': Dist('constant', 0.0)}, 'bandwidth'),
        ({'step_s': Dist(mean=0.0), 'latency_s': Dist(mean=0.0), 'apply_s': 0.0}, 'no time'),
        ({'slow': ((-1, 2.0),)}, 'slow=-1'),
        ({'slow': ((99, 2.0),)}, 'slow=99'),
        ({'queue_size': 0}, 'queue_size is 0; it must be above 0'),
        ({'checkpoint_s': 0.0}, 'checkpoint_s is 0.0; it must be above 0'),
        ({'serve_s': -1.0}, 'serve_s is -1.0; it must be 0 or above'),
        ({'apply_s': float('nan')}, 'apply_s is nan'),
        ({'restart_s': -5.0}, 'restart_s is -5.0'),
        ({'lease_s': -1.0}, 'lease_s is -1.0'),
        ({'shard_restart_s': -100.0}, 'shard_restart_s is -100.0'),
        ({'num_shards': 1001}, 'num_shards is 1001 for 1000'),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(CLOCKWORK, **change)
    with pytest.raises(ValueError, match='none at all'):
        Dist('constant', float('nan'))
    with pytest.raises(ValueError, match='neither'):
        Simulation(CLOCKWORK, rules.sgd(0.1))


def test_replicas_on_slow_lines_push_less_often():
    lines = Dist('lognormal', 1e5, 1.0)
    scenario = dataclasses.replace(CLOCKWORK, size=10_000, bandwidth=lines, overlap=False)
    result = Simulation(scenario).run()
    # A push and a pull of 40 kB each, and a step of 1 s.
    drawn = lines.draw(np.random.default_rng((scenario.seed, 3)), 4)
    expected = 100.0 / (1.0 + 2 * 4e4 / drawn)
    np.testing.assert_allclose(np.bincount(result.worker), expected, rtol=0.05, atol=1)


@pytest.mark.parametrize('num_shards', [1, 4])
def test_all_shards_share_a_replicas_line(num_shards):
    scenario = Scenario(
        Policy(num_workers=1),
        duration_s=10.0,
        step_s=Dist('constant', 1.0),
        latency_s=Dist('constant', 0.0),
        bandwidth=Dist('constant', 4e6),
        num_shards=num_shards,
        apply_s=0.0,
        serve_s=0.0,
    )
    # All values come in one second, then comes a step, then the first shard's part of the push.
    assert Simulation(scenario).run().time_s[0] == pytest.approx(1 + 1 + 1 / num_shards)


def test_ten_thousand_replicas():
    fast = dataclasses.replace(CLOCKWORK, duration_s=1.5, apply_s=1e-5, serve_s=1e-5)
    result = Simulation(dataclasses.replace(fast, policy=Policy(num_workers=10_000))).run()
    assert len(np.unique(result.worker)) == 10_000


def test_pictures_are_drawn(tmp_path):
    sync = dataclasses.replace(CLOCKWORK, policy=Policy(mode='sync', num_workers=4))
    short = dataclasses.replace(CLOCKWORK, duration_s=0.5)
    runs = {name: Simulation(one).run() for name, one in
            {'async': CLOCKWORK, 'sync': sync, 'none': short}.items()}  # fmt: skip
    compare(runs, tmp_path / 'times.png')
    runs['toy'] = Simulation(CLOCKWORK, rules.sgd(0.05), Quadratic(size=5)).run()
    compare(runs, tmp_path / 'loss.png')
    widths = [plt.imread(tmp_path / name).shape[1] for name in ('times.png', 'loss.png')]
    assert widths[1] == pytest.approx(1.5 * widths[0], rel=0.01)  # a third panel for the loss


def test_the_script_ends_with_json(tmp_path):
    command = [sys.executable, str(ROOT / 'launch' / 'simulate.py'), f'--out={tmp_path}']
    command += ['--problem=none', '--workers=8', '--duration_s=30', '--slow=0:4']
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    numbers = json.loads(done.stdout.strip().splitlines()[-1])
    assert numbers['async']['pushes_per_s'] > numbers['sync']['pushes_per_s'] > 0
    assert numbers['backup']['pushes_per_s'] > 2 * numbers['sync']['pushes_per_s']
    assert (tmp_path / 'simulation.png').exists()


@pytest.mark.parametrize(
    ('flag', 'message'),
    [
        ('--workdir=run', '--workdir needs --problem=acoustic'),
        ('--config=configs/demo.py', '--config needs --problem=acoustic'),
        ('--problem=none --noise=0.1', '--noise needs --problem=toy'),
        ('--backups=1.5', 'backups'),
        ('--seed=-1', 'seed'),
    ],
)
def test_the_script_refuses_flags_that_nobody_reads(flag, message):
    command = [sys.executable, 'launch/simulate.py', '--workers=2', '--duration_s=1']
    command += flag.split()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_half_an_hour_of_a_thousand_replicas():
    """A quarter of what RESULTS.md times, at half the speed that is wanted there."""
    scenario = Scenario(
        Policy(num_workers=1000),
        duration_s=1800.0,
        step_s=Dist('lognormal', 10.0, 0.3),
        slowness=Dist('lognormal', 1.0, 0.3),
    )
    started = time.process_time()
    result = Simulation(scenario).run()
    assert time.process_time() - started < 30
    assert len(result.time_s) > 150_000
