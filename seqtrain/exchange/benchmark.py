"""What the exchange costs, measured against its own limits: memcpy, and a device that never rests.

The stand-in step takes its time without using the host's cores, as a real accelerator does: what a
replica then loses is the exchange's doing. `real_step` burns the host's cores instead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqtrain.exchange import rules
from seqtrain.exchange.client import Client
from seqtrain.exchange.messages import Join, Pull, Push
from seqtrain.exchange.partition import Partition
from seqtrain.exchange.policy import Policy
from seqtrain.exchange.state import ShardState
from seqtrain.exchange.store import Store
from seqtrain.exchange.transport.local import LocalServer


class Work(NamedTuple):
    """What a replica did: steps, wall seconds, seconds that its device computed."""

    steps: int
    wall_s: float
    busy_s: float

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.steps / self.wall_s

    @property
    def idle(self) -> float:
        """Share of the time that the device rested."""
        return max(0.0, 1 - self.busy_s / self.wall_s)


def tree(num_parameters: int, num_leaves: int = 8) -> dict[str, np.ndarray]:
    """A model of so many parameters."""
    parts = np.array_split(np.zeros(num_parameters, np.float32), num_leaves)
    return {f'layer_{i}': part for i, part in enumerate(parts)}


def memcpy_bandwidth(num_bytes: int, repeats: int = 20) -> float:
    """Bytes per second that one thread copies from one array to another (the best of them)."""
    source = np.ones(num_bytes // 4, np.float32)
    target = np.zeros_like(source)
    return num_bytes / min(_timed(lambda: np.copyto(target, source)) for _ in range(repeats))


def shard_bandwidth(
    num_parameters: int, num_shards: int, repeats: int = 10, rule: Any = None
) -> float:
    """Bytes per second of push and pull together, through all shards' state machines at once.

    Each shard has a thread that pushes an update, waits until it is applied and copies the pulled
    values out. 4 bytes per parameter go in and 4 come out.
    """
    rule = rule if rule is not None else rules.sgd(0.1)
    model = tree(num_parameters)
    updates = Partition.make(model, num_shards).split(model)
    shards = [ShardState(Store(part, rule), shard=i) for i, part in enumerate(updates)]
    targets = [np.ones_like(part) for part in updates]

    def exchange(i: int) -> None:
        shard = shards[i]
        shard.handle(Push(0, shard.version, shard.version, updates[i]))
        (params,) = shard.handle(Pull(0))
        np.copyto(targets[i], params.values)  # type: ignore[union-attr]

    def all_shards() -> None:
        threads = [threading.Thread(target=exchange, args=(i,)) for i in range(num_shards)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for shard in shards:
        shard.handle(Join(0))
    all_shards()  # compiles
    return 8 * num_parameters / min(_timed(all_shards) for _ in range(repeats))


def _timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def standin_step(step_s: float) -> Callable[[], None]:
    """A device that is busy for so long and leaves the host's cores alone."""
    return lambda: time.sleep(step_s)


def real_step(size: int, repeats: int, device: jax.Device) -> Callable[[], None]:
    """A CPU that multiplies matrices."""
    x = jax.device_put(np.full((size, size), 1e-3, np.float32), device)
    run = jax.jit(lambda x: jax.lax.fori_loop(0, repeats, lambda i, y: jnp.tanh(y @ x), x))
    run(x).block_until_ready()
    return lambda: run(x).block_until_ready()


def replica(
    client: Client, update: Any, step: Callable[[], None], duration_s: float, warm_up: int = 3
) -> Work:
    """Steps and pushes for so long; the first steps are not counted."""
    busy_s, steps = 0.0, -warm_up
    started = time.perf_counter()
    while steps < 1 or time.perf_counter() - started < duration_s:
        if steps == 0:
            started, busy_s = time.perf_counter(), 0.0
        pulled = client.latest()
        busy_s += _timed(step)
        client.push(update, pulled.versions)
        steps += 1
    return Work(steps, time.perf_counter() - started, busy_s)


def run_local(
    params: Any,
    num_shards: int,
    policy: Policy,
    steps: Sequence[Callable[[], None]],
    duration_s: float,
    **options: Any,
) -> list[Work]:
    """One replica thread per step function on a local server; what each did."""
    done: list[Work | None] = [None] * len(steps)
    errors: list[BaseException] = []
    update = jax.device_put(params)  # as a device leaves it: the client need not copy it at once
    with LocalServer(params, num_shards, rules.sgd(1e-3), policy) as server:

        def body(worker: int) -> None:
            try:
                with server.connect(worker, **options) as client:
                    done[worker] = replica(client, update, steps[worker], duration_s)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=body, args=(n,)) for n in range(len(steps))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return [work for work in done if work is not None]


def ray_body(
    endpoint: Any, worker: int, num_parameters: int, step_s: float, duration_s: float
) -> Work:
    """A replica of the ray transport, in its own process."""
    with endpoint.connect(worker) as client:
        update = jax.device_put(tree(num_parameters))
        return replica(client, update, standin_step(step_s), duration_s)


def straggler(
    make_step: Callable[[float], Callable[[], None]],
    step_s: float,
    num_replicas: int,
    slow_factor: float,
    duration_s: float,
    num_parameters: int,
) -> dict[str, float]:
    """Throughput with one slow replica over the sum of the single rates, async and sync.

    Args:
      make_step: seconds -> step function.
      step_s: a fast replica's step.
      num_replicas: N.
      slow_factor: how much slower replica 0 is.
      duration_s: per measurement.
      num_parameters: size of the model.
    """
    params = tree(num_parameters)
    fast, slow = make_step(step_s), make_step(step_s * slow_factor)
    steps = [slow] + [fast] * (num_replicas - 1)
    single = {
        id(step): run_local(params, 2, Policy(), [step], duration_s)[0].rate
        for step in (slow, fast)
    }
    total = sum(single[id(step)] for step in steps)
    modes = {
        'async': Policy(num_workers=num_replicas),
        'sync': Policy(mode='sync', num_workers=num_replicas),
    }
    return {
        mode: sum(w.rate for w in run_local(params, 2, policy, steps, duration_s)) / total
        for mode, policy in modes.items()
    }
