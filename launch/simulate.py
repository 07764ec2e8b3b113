"""Simulates asynchronous, synchronous and backup-replica training under virtual time.

    python launch/simulate.py --out=DIR                                    # the toy, 64 replicas
    python launch/simulate.py --problem=none --workers=1000 --duration_s=7200 --step_s=10 --out=DIR
    python launch/simulate.py --slow=0:4 --out=DIR                         # replica 0 is 4× slower
    python launch/simulate.py --problem=acoustic --config=configs/yesno.py --workers=8 --out=DIR
    python launch/simulate.py --problem=acoustic --workdir=RUN --workers=8 --out=DIR

The toy is a quadratic. The acoustic model trains for real, by the rule of its config: cross-entropy
from the beginning (--config), or the sequence criterion from where a run has ended (--workdir).
Prints one line per mode, writes simulation.png into DIR, and ends with one line of JSON.
"""

import functools
import json
import os
import pathlib
import sys
import time
from typing import Any

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from seqtrain import extras
from seqtrain.exchange import Policy, rules
from seqtrain.exchange.plots import compare
from seqtrain.exchange.scenario import KINDS, Dist, Problem, Quadratic, Result, Scenario
from seqtrain.exchange.simulate import Simulation
from seqtrain.training import config as config_lib
from seqtrain.training import errors, server_rule
from seqtrain.training import experiment as experiment_lib
from seqtrain.training.problem import AcousticProblem

FLAGS = flags.FLAGS
flags.DEFINE_string('out', None, 'Folder for simulation.png; none is drawn without it.')
flags.DEFINE_enum(
    'problem', 'toy', ['toy', 'acoustic', 'none'], 'What is trained; none: time only.'
)
config_flags.DEFINE_config_file('config', None, 'acoustic: an experiment.', lock_config=True)
flags.DEFINE_string('workdir', None, 'acoustic: the folder of a run to go on from.')
flags.DEFINE_integer('loss_samples', 200, 'How often the loss is measured.', lower_bound=1)
flags.DEFINE_integer('workers', 64, 'Replicas.', lower_bound=1, upper_bound=10_000)
flags.DEFINE_integer('shards', 1, 'Shards.', lower_bound=1)
flags.DEFINE_integer('parameters', 1_000_000, 'Parameters in all, for the time that they travel.')
flags.DEFINE_float('duration_s', 600.0, 'Virtual seconds.', lower_bound=0)
flags.DEFINE_float('step_s', 1.0, 'Mean time per update of a replica.', lower_bound=0)
flags.DEFINE_enum('step_kind', 'lognormal', KINDS, 'Distribution of the time per update.')
flags.DEFINE_float('step_spread', 0.3, 'Its spread: σ of the logarithm, or half width / mean.')
flags.DEFINE_float('speed_spread', 0.3, "σ of the logarithm of the replicas' slowness.")
flags.DEFINE_multi_string('slow', [], 'REPLICA:FACTOR, makes one replica slower.')
flags.DEFINE_enum('latency_kind', 'exponential', KINDS, 'Distribution of the one-way latency.')
flags.DEFINE_float('latency_s', 1e-3, 'Mean one-way latency.')
flags.DEFINE_float('latency_spread', 0.5, 'Its spread, as of --step_spread.')
flags.DEFINE_float('bandwidth', 1e9, 'Mean bytes per second of a replica.')
flags.DEFINE_float('bandwidth_spread', 0.0, "σ of the logarithm of the replicas' bandwidths.")
flags.DEFINE_float('apply_s', 1e-3, 'How long a shard is busy with a push.')
flags.DEFINE_float('replica_mtbf_s', float('inf'), 'Mean time between deaths of a replica.')
flags.DEFINE_float('shard_mtbf_s', float('inf'), 'Mean time between deaths of a shard.')
flags.DEFINE_float(
    'backups',
    0.05,
    'Share of replicas that a round does without; at least one.',
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_integer('max_staleness', None, 'Bound τ of the asynchronous run, by waiting.')
flags.DEFINE_bool('overlap', False, 'Compute while the exchange goes on.')
flags.DEFINE_float('learning_rate', 0.3, 'Of the toy, divided by max(1, staleness).')
flags.DEFINE_float('noise', 0.5, "Standard deviation of the toy's gradient noise.")
flags.DEFINE_multi_enum(
    'mode', ['async', 'sync', 'backup'], ['async', 'sync', 'backup'], 'Which modes to run.'
)
flags.DEFINE_integer('seed', 0, 'Of everything.', lower_bound=0)

_NEEDS = {'acoustic': ('config', 'workdir'), 'toy': ('learning_rate', 'noise')}


def policy(mode: str) -> Policy:
    """The policy of one of the modes that are compared."""
    workers = FLAGS.workers
    if mode == 'async':
        return Policy(num_workers=workers, max_staleness=FLAGS.max_staleness)
    quorum = None
    if mode == 'backup':
        quorum = max(1, min(workers - 1, round(workers * (1 - FLAGS.backups))))
    return Policy(mode='sync', num_workers=workers, quorum=quorum)


def scenario(mode: str) -> Scenario:
    """The scenario of the flags in one mode."""
    try:
        slow = tuple((int(n), float(f)) for n, f in (pair.split(':') for pair in FLAGS.slow))
    except ValueError:
        raise app.UsageError(f'--slow is REPLICA:FACTOR, such as 0:4; got {FLAGS.slow}.') from None
    return Scenario(
        policy(mode),
        FLAGS.duration_s,
        FLAGS.seed,
        Dist(FLAGS.step_kind, FLAGS.step_s, FLAGS.step_spread),
        Dist('lognormal', 1.0, FLAGS.speed_spread),
        slow,
        Dist(FLAGS.latency_kind, FLAGS.latency_s, FLAGS.latency_spread),
        Dist('lognormal', FLAGS.bandwidth, FLAGS.bandwidth_spread),
        FLAGS.parameters,
        FLAGS.shards,
        FLAGS.apply_s,
        overlap=FLAGS.overlap,
        replica_mtbf_s=FLAGS.replica_mtbf_s,
        shard_mtbf_s=FLAGS.shard_mtbf_s,
        sample_s=FLAGS.duration_s / FLAGS.loss_samples,
    )


def experiment() -> tuple[ml_collections.ConfigDict, str]:
    """The config of the acoustic problem, and its criterion."""
    if (FLAGS.workdir is None) == (FLAGS.config is None):
        raise app.UsageError('--problem=acoustic needs either --config=FILE or --workdir=RUN.')
    if FLAGS.workdir is None:
        config = FLAGS.config
    else:
        file = pathlib.Path(FLAGS.workdir) / 'config.json'
        config = config_lib.from_json(json.loads(file.read_text()))
        config.start_from = FLAGS.workdir
    experiment_lib.check(config)  # before it has numbers of replicas that its updates need not fit
    config.seed, config.exchange.num_replicas = FLAGS.seed, FLAGS.workers
    return config, 'ce' if FLAGS.workdir is None else 'sequence'


def trained(mode: str) -> tuple[Any, Problem | None]:
    """The rule and the problem of the flags in one mode; nothing where only time matters."""
    if FLAGS.problem == 'none':
        return None, None
    if FLAGS.problem == 'toy':
        stages = [rules.scale_by_staleness()] if mode == 'async' else []
        rule = rules.chain(*stages, rules.sgd(FLAGS.learning_rate))
        return rule, Quadratic(noise=FLAGS.noise, seed=FLAGS.seed)
    config, kind = experiment()
    config.exchange.mode = 'async' if mode == 'async' else 'sync'
    with config_lib.checking():
        server_rule.check(config.exchange)
    return server_rule.make(config, kind), acoustic()


@functools.cache
def acoustic() -> AcousticProblem:
    """The acoustic problem, the same for all modes."""
    return AcousticProblem(*experiment())


def summary(result: Result, wall_s: float) -> dict[str, float | int | None]:
    """The numbers of one run."""
    return {
        'pushes_applied': len(result.time_s),
        'pushes_per_s': result.throughput,
        'pushes_rejected': result.rejected,
        'mean_staleness': float(result.staleness.mean()) if len(result.staleness) else None,
        'max_staleness': int(result.staleness.max()) if len(result.staleness) else None,
        'busy': float(result.busy.mean()),
        'deaths': result.deaths,
        'final_loss': result.loss[-1][1] if result.loss else None,
        'wall_s': wall_s,
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'Unknown arguments: {argv[1:]}.')
    absl_logging.set_verbosity(absl_logging.WARNING)
    for needed, names in _NEEDS.items():
        for name in names:
            if FLAGS[name].present and FLAGS.problem != needed:
                raise app.UsageError(f'--{name} needs --problem={needed}.')
    try:
        planned = {mode: scenario(mode) for mode in FLAGS.mode}
    except ValueError as error:
        raise app.UsageError(str(error)) from None
    try:
        if FLAGS.out:
            extras.load('matplotlib')
        runs = {mode: Simulation(one, *trained(mode)) for mode, one in planned.items()}
    except errors.FOR_USERS as error:
        sys.exit(f'{type(error).__name__}: {error}')
    results, numbers = {}, {}
    for mode, simulation in runs.items():
        started = time.perf_counter()
        results[mode] = simulation.run()
        numbers[mode] = summary(results[mode], time.perf_counter() - started)
        print(mode, numbers[mode])
    if FLAGS.out:
        os.makedirs(FLAGS.out, exist_ok=True)
        compare(results, os.path.join(FLAGS.out, 'simulation.png'))
    print(json.dumps(numbers))


if __name__ == '__main__':
    app.run(main, flags_parser=config_lib.parse_flags)
