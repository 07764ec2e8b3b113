"""The acoustic model under virtual time: real gradients, the same by seed."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from seqtrain.exchange import Policy
from seqtrain.exchange.scenario import Dist, Scenario
from seqtrain.exchange.simulate import Simulation
from seqtrain.training import server_rule
from seqtrain.training.problem import AcousticProblem

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def problem(make_config):
    return AcousticProblem(make_config(data__spec_augment=True), loss_batches=2)


def test_its_gradient_points_uphill_and_depends_on_replica_and_step(problem):
    values = problem.start()
    gradient = problem.gradient(values, 0, 0)
    assert gradient.shape == values.shape
    np.testing.assert_array_equal(gradient, problem.gradient(values, 0, 0))
    for worker, step in ((1, 0), (0, 1), (0, 4)):  # 4 batches are an epoch
        assert np.any(gradient != problem.gradient(values, worker, step))
    mean = np.mean([problem.gradient(values, 0, step) for step in range(4)], axis=0)
    step = 1e-3 / np.linalg.norm(mean)
    slope = (problem.loss(values + step * mean) - problem.loss(values - step * mean)) / 2e-3
    assert slope > 0.3 * np.linalg.norm(mean)  # of other batches, not augmented


def test_the_loss_is_measured_without_dropout(make_config):
    plain, dropping = (AcousticProblem(make_config(model__dropout=d)) for d in (0.0, 0.5))
    assert dropping.loss(plain.start()) == plain.loss(plain.start())
    assert np.any(dropping.gradient(plain.start(), 0, 0) != plain.gradient(plain.start(), 0, 0))


def test_simulated_training_lowers_the_loss_and_repeats_bit_for_bit(problem, make_config):
    config = make_config(bootstrap__learning_rate=1e-2)
    scenario = Scenario(
        Policy(num_workers=2), duration_s=8.0, step_s=Dist('lognormal', 1.0, 0.3), sample_s=8.0
    )
    runs = [Simulation(scenario, server_rule.make(config, 'ce'), problem).run() for _ in range(2)]
    assert runs[0].loss == runs[1].loss
    np.testing.assert_array_equal(runs[0].time_s, runs[1].time_s)
    (_, first), *_, (_, last) = runs[0].loss
    assert last < 0.9 * first


def test_lattices_and_trees_from_scratch_are_refused(make_config):
    for field in ({'sequence__graph': 'lattice'}, {'graph__context': 'biphone'}):
        with pytest.raises(ValueError, match='simulator'):
            AcousticProblem(make_config(**field))


@pytest.mark.parametrize(
    'field', [{'local_steps': 4}, {'codec': 'int8'}, {'scale_by_frames': True}]
)
def test_what_simulated_replicas_do_not_do_is_refused(field, make_config):
    config = make_config(**{f'exchange__{name}': value for name, value in field.items()})
    with pytest.raises(ValueError, match='push gradients as they are'):
        AcousticProblem(config)


@pytest.mark.slow
def test_the_script_trains_the_acoustic_model(arguments, tmp_path):
    flags = [flag for flag in arguments if flag.startswith('--config')]
    command = [sys.executable, 'launch/simulate.py', '--problem=acoustic', *flags]
    command += ['--workers=4', '--duration_s=10', '--loss_samples=2', f'--out={tmp_path}']
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.jax_cache')}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert numbers['async']['pushes_per_s'] > numbers['sync']['pushes_per_s']
    assert all(np.isfinite(one['final_loss']) for one in numbers.values())
    assert (tmp_path / 'simulation.png').exists()
