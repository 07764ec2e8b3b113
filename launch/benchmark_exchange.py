"""Measures what the exchange costs. About two minutes; the last line is JSON.

    python launch/benchmark_exchange.py               # everything
    python launch/benchmark_exchange.py --noray       # without Ray

Keep the machine otherwise idle: the figures are about what is left of it.
"""

import json
import os

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=4')

import jax
from absl import app, flags
from absl import logging as absl_logging

from seqtrain.exchange import Policy, benchmark, rules
from seqtrain.exchange.memory import keep_freed_memory

FLAGS = flags.FLAGS
flags.DEFINE_integer('parameters', 10_000_000, 'Size of the large model.')
flags.DEFINE_integer('small', 100_000, 'Size of the model of the straggler runs.')
flags.DEFINE_integer('shards', 2, 'Shards of the large model.')
flags.DEFINE_integer('replicas', 4, 'Replicas of the straggler runs.')
flags.DEFINE_float('step_s', 0.2, 'The stand-in step of the large model.')
flags.DEFINE_float('straggler_step_s', 0.05, 'The step of a fast replica in the straggler runs.')
flags.DEFINE_float('slow_factor', 4.0, 'How much slower the straggler is.')
flags.DEFINE_float('duration_s', 8.0, 'Length of one measurement.')
flags.DEFINE_bool('ray', True, 'Measure the ray transport too.')


def bandwidth() -> dict[str, float]:
    """Push and pull against memcpy, per shard count."""
    memcpy = benchmark.memcpy_bandwidth(4 * FLAGS.parameters)
    numbers = {'memcpy_gb_per_s': memcpy / 1e9}
    for shards in sorted({1, FLAGS.shards}):
        moved = benchmark.shard_bandwidth(FLAGS.parameters, shards)
        numbers[f'push_pull_gb_per_s_{shards}_shards'] = moved / 1e9
        numbers[f'push_pull_gb_per_s_per_shard_{shards}_shards'] = moved / shards / 1e9
        numbers[f'memcpy_fraction_{shards}_shards'] = moved / memcpy
    adagrad = benchmark.shard_bandwidth(
        FLAGS.parameters, FLAGS.shards, rule=rules.downpour_adagrad(0.1)
    )
    numbers['memcpy_fraction_adagrad'] = adagrad / memcpy
    numbers['memcpy_fraction'] = numbers[f'memcpy_fraction_{FLAGS.shards}_shards']
    return numbers


def idle_local() -> dict[str, float]:
    """Device idle share with the large model, one replica and two."""
    params = benchmark.tree(FLAGS.parameters)
    step = benchmark.standin_step(FLAGS.step_s)
    numbers = {}
    for replicas in (1, 2):
        policy = Policy(num_workers=replicas)
        works = benchmark.run_local(
            params, FLAGS.shards, policy, [step] * replicas, FLAGS.duration_s
        )
        mean = sum(work.idle for work in works) / replicas
        numbers[f'device_idle_fraction_local_{replicas}_replicas'] = mean
    numbers['device_idle_fraction_local'] = numbers['device_idle_fraction_local_1_replicas']
    return numbers


def idle_ray() -> dict[str, float]:
    """Device idle share through Ray, shards and replica in processes of their own."""
    from seqtrain.exchange.transport import ray as ray_transport

    ray_transport.start(num_cpus=4)
    try:
        params = benchmark.tree(FLAGS.parameters)
        with ray_transport.RayServer(params, FLAGS.shards, rules.sgd(1e-3)) as server:
            args = (FLAGS.parameters, FLAGS.step_s, FLAGS.duration_s)
            (work,) = ray_transport.run_replicas(server, benchmark.ray_body, 1, args)
    finally:
        ray_transport.stop()
    return {'device_idle_fraction_ray': work.idle}


def stragglers() -> dict[str, float]:
    """One replica slowed down: asynchronous against synchronous, stand-in and real steps."""
    sizes = (FLAGS.replicas, FLAGS.slow_factor, FLAGS.duration_s, FLAGS.small)
    standin = benchmark.straggler(benchmark.standin_step, FLAGS.straggler_step_s, *sizes)

    def real(step_s: float):
        repeats = max(1, round(step_s / FLAGS.straggler_step_s * 10))
        return benchmark.real_step(256, repeats, jax.devices()[0])

    on_cpu = benchmark.straggler(real, FLAGS.straggler_step_s, *sizes)
    return {
        'straggler_async_fraction': standin['async'],
        'straggler_sync_fraction': standin['sync'],
        'straggler_async_fraction_real_cpu': on_cpu['async'],
        'straggler_sync_fraction_real_cpu': on_cpu['sync'],
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'Unknown arguments: {argv[1:]}.')
    absl_logging.set_verbosity(absl_logging.WARNING)
    keep_freed_memory()
    # Ray first, and gone before the others: it forks, which JAX must not be up for.
    parts = ([idle_ray] if FLAGS.ray else []) + [bandwidth, idle_local, stragglers]
    numbers: dict[str, float] = {'cores': os.cpu_count() or 0}
    for part in parts:
        measured = part()
        print(part.__name__, {name: round(value, 4) for name, value in measured.items()})
        numbers |= measured
    print(json.dumps(numbers))


if __name__ == '__main__':
    app.run(main)
