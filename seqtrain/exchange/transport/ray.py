"""The `ray` transport: shards and replica hosts as Ray actors, on one machine or many.

    from seqtrain.exchange.transport import ray as ray_transport
    ray_transport.start()                                 # or start(address='head:6379')
    with ray_transport.RayServer(params, 2, rule, policy, directory=DIR) as server:
        results = ray_transport.run_replicas(server, body, num_workers, args)

`body(endpoint, worker, *args)` runs in a process of its own and calls `endpoint.connect(worker)`,
which gives the same `Client` as the local transport. One message carries one large array.

Every call is sent at most once (`max_task_retries=0`): after a crash nobody knows whether a push
had been applied, so it counts as refused, the replica joins again and goes on. Ray itself speaks
pickle between its processes; token authentication is therefore on unless it is switched off.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from seqtrain.exchange import eventlog
from seqtrain.exchange.client import Client
from seqtrain.exchange.courier import ExchangeError, Pulled, Versions
from seqtrain.exchange.memory import keep_freed_memory
from seqtrain.exchange.messages import Event
from seqtrain.exchange.partition import Partition
from seqtrain.exchange.policy import Policy, check_lease
from seqtrain.exchange.store import RuleLike, shard_rule
from seqtrain.exchange.transport.cluster import start, stop, xla_flags
from seqtrain.exchange.transport.ray_lines import PATIENCE_S, RayChannel, Watcher, gone, load_ray
from seqtrain.exchange.transport.shard_host import ShardHost

CLOSE_S = 30.0
"""How long shards may take to write their last checkpoints."""


def host_env() -> dict[str, str]:
    """The environment of a shard's process: one device of the host, XLA's other flags as here."""
    return {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla_flags()}


class RayEndpoint:
    """What a replica needs to connect; travels to other processes."""

    def __init__(
        self, actors: Sequence[Any], partition: Partition, policy: Policy, patience_s: float
    ):
        self.actors, self.partition, self.policy = list(actors), partition, policy
        self.patience_s = patience_s

    def connect(self, worker: int, *, overlap: bool = True, **options: Any) -> Client:
        """A client for one replica; options as for `LocalServer.connect`."""
        return Client(
            RayChannel(self.actors, self.patience_s),
            self.partition,
            operator.index(worker),
            overlap=overlap and not self.policy.sync,
            take_turns=self.policy.waits,
            **options,
        )


class _ShardProcess(ShardHost):
    """A shard's process."""

    def __init__(self, *args: Any, **options: Any):
        keep_freed_memory()
        super().__init__(*args, **options)


class _RuleBook:
    """The rules that came after the first, for shards that are started again."""

    def __init__(self):
        self._rules: dict[int, list[Any]] = {}

    def add(self, number: int, rules: list[Any]) -> None:
        self._rules[number] = rules

    def get(self, number: int, shard: int) -> Any:
        return self._rules[number][shard]


def _rule_from(book: Any, shard: int, number: int) -> Any:
    return load_ray().get(book.get.remote(number, shard))


class RayServer:
    """The shards as Ray actors; the same methods as `LocalServer`.

    Args:
      params, num_shards, rule, policy, lease_s: as for `LocalServer`.
      directory: where the shards keep checkpoints and event logs; on a cluster, a shared one.
        Without it a shard that dies is lost for good.
      checkpoint_every: applied updates between a shard's checkpoints.
      num_cpus: what Ray reserves per shard; several shards share a node.
      ready_s: how long the shards may take to start.
      on_event: called with every event, within about a second, in the order of each shard (not
        across shards: see `events`). What a shard did in the second before it crashed is missed.
    """

    def __init__(
        self,
        params: Any,
        num_shards: int,
        rule: RuleLike,
        policy: Policy | None = None,
        *,
        directory: str | None = None,
        checkpoint_every: int = 100,
        lease_s: float | None = None,
        num_cpus: float = 0.1,
        ready_s: float = 120.0,
        on_event: Callable[[Event], None] | None = None,
    ):
        check_lease(lease_s)
        ray = load_ray()
        self._watcher: Watcher | None = None
        self._watched, self._closed = on_event is not None, False
        self.policy = policy or Policy()
        self.partition = Partition.make(params, num_shards)
        host = ray.remote(_ShardProcess).options(
            num_cpus=num_cpus,
            max_restarts=-1 if directory else 0,
            max_task_retries=0,
            max_concurrency=4 * self.policy.num_workers + 16,
            runtime_env={'env_vars': host_env()},
        )
        # A shard that starts again is made from the same arguments: Ray forgets large ones unless
        # somebody holds them.
        parts = enumerate(self.partition.split(params))
        self._kept = [
            (ray.put(values), ray.put(shard_rule(rule, self.partition, s))) for s, values in parts
        ]
        self._book = ray.remote(_RuleBook).options(num_cpus=0).remote()
        self._rule_number = 0
        self._actors = [
            host.remote(
                s,
                values,
                one_rule,
                self.policy,
                directory=os.path.abspath(directory) if directory else None,
                checkpoint_every=checkpoint_every,
                lease_s=lease_s,
                start_s=time.time(),
                later_rule=functools.partial(_rule_from, self._book, s),
                keep_events=self._watched or not directory,
            )
            for s, (values, one_rule) in enumerate(self._kept)
        ]
        self._directory = directory
        try:
            ray.get([actor.ready.remote() for actor in self._actors], timeout=ready_s)
        except ray.exceptions.GetTimeoutError as error:
            self.close()
            raise ExchangeError(
                f'The shards did not start within {ready_s} s: too few CPUs in the cluster, or '
                'seqtrain is not installed on its nodes.'
            ) from error
        if on_event is not None:
            self._watcher = Watcher(self._actors, on_event)

    @property
    def endpoint(self) -> RayEndpoint:
        """Give it to replicas in other processes."""
        return RayEndpoint(self._actors, self.partition, self.policy, self._patience_s)

    @property
    def _patience_s(self) -> float:
        return PATIENCE_S if self._directory else 0.0  # without one nobody comes back

    def connect(self, worker: int, **options: Any) -> Client:
        """A client in this process."""
        return self.endpoint.connect(worker, **options)

    def params(self) -> Pulled:
        """The current parameters and versions, as owned NumPy arrays."""
        read = self._all('read')
        versions = Versions(
            tuple(params.version for params in read), tuple(params.generation for params in read)
        )
        return Pulled(self.partition.join([params.values for params in read]), versions)

    def events(self) -> list[Event]:
        """The event logs of all shards in one causal order.

        With a directory it is read from there and so survives crashes of shards. The logs are read
        one after another: of what happens meanwhile, the part that fits together is in it.

        Raises:
          ExchangeError: `on_event` took them, and there is no directory.
        """
        if self._directory:
            names = [f'shard-{s}.events.jsonl' for s in range(self.partition.num_shards)]
            paths = [os.path.join(self._directory, name) for name in names]
            return eventlog.merge([eventlog.read(path)[1] for path in paths], complete=False)
        if self._watched:
            raise ExchangeError(
                'The events went to on_event; keep them there, or give the server a directory.'
            )
        return eventlog.merge([events for _, events in self._all('events')], complete=False)

    def set_rule(self, rule: RuleLike, *, keep_state: bool = False, note: str = '') -> None:
        """Changes the rule on all shards, between stages."""
        rules = [shard_rule(rule, self.partition, s) for s in range(self.partition.num_shards)]
        self._rule_number += 1
        number = self._rule_number
        load_ray().get(self._book.add.remote(number, rules))
        for actor, one in zip(self._actors, rules, strict=True):
            self._insist(actor, 'set_rule', one, keep_state, note, number)

    def snapshot(self) -> list[dict[str, Any]]:
        """One snapshot per shard (each consistent in itself), also saved to the directory."""
        return self._all('snapshot')

    def restore(self, snapshots: list[dict[str, Any]]) -> None:
        """Goes back to snapshots; replicas join again by themselves."""
        if len(snapshots) != len(self._actors):
            raise ValueError(
                f'{len(snapshots)} snapshots for {len(self._actors)} shards; '
                'use the number of shards that the checkpoint was written with.'
            )
        self._each('restore', [(snapshot,) for snapshot in snapshots])

    def expire(self, worker: int) -> None:
        """Takes a replica to have left."""
        self._all('expire', worker)

    def expect(self, workers: Iterable[int]) -> None:
        """Lets rounds wait for replicas that are about to join, as `LocalServer.expect` does."""
        workers = list(workers)
        for actor in self._actors:
            self._insist(actor, 'expect', workers)

    def check(self) -> None:
        """Asserts every shard's invariants."""
        self._all('check')

    def kill_shard(self, shard: int) -> None:
        """Kills a shard's process as a crash would; Ray starts it again from its checkpoint."""
        load_ray().kill(self._actors[shard], no_restart=False)

    def close(self) -> None:
        """Ends the shards' processes; what they acknowledged is in the directory. Idempotent.

        Raises:
          ExchangeError: `on_event` had failed; the shards have ended all the same.
        """
        watcher, self._watcher = self._watcher, None
        try:
            if watcher is not None:
                watcher.close()
        finally:
            self._close_shards()

    def _close_shards(self) -> None:
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(Exception):  # Ray may be gone already
            ray, calls = load_ray(), [actor.close.remote() for actor in self._actors]
            ray.wait(calls, num_returns=len(calls), timeout=CLOSE_S)
            for actor in [*self._actors, self._book]:
                ray.kill(actor)

    def __enter__(self) -> RayServer:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def _all(self, method: str, *args: Any) -> list[Any]:
        if self._watcher is not None:
            self._watcher.check()
        return self._each(method, [args] * len(self._actors))

    def _each(self, method: str, args: Sequence[tuple]) -> list[Any]:
        """Calls all shards at once, again where one was just being started again."""
        ray = load_ray()
        asked = [
            (actor, one, getattr(actor, method).remote(*one))
            for actor, one in zip(self._actors, args, strict=True)
        ]
        answers = []
        for actor, one, call in asked:
            try:
                answers.append(ray.get(call))
            except ray.exceptions.RayActorError:
                answers.append(self._insist(actor, method, *one))
        return answers

    def _insist(self, actor: Any, method: str, *args: Any) -> Any:
        """Calls a shard until it is there again: for calls that may be repeated.

        Raises:
          ExchangeError: it did not come back.
        """
        ray = load_ray()
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return ray.get(getattr(actor, method).remote(*args))
            except ray.exceptions.RayActorError as error:
                if time.monotonic() > deadline:
                    raise gone('A shard', self._patience_s, error) from error
                time.sleep(0.1)


class _ReplicaHost:
    """A replica's process."""

    def run(self, body: Callable, endpoint: RayEndpoint, worker: int, args: tuple) -> Any:
        return body(endpoint, worker, *args)


def run_replicas(
    server: RayServer,
    body: Callable[..., Any],
    num_workers: int,
    args: tuple = (),
    *,
    num_cpus: float = 0.1,
    env: dict[str, str] | None = None,
) -> list[Any]:
    """Runs `body(endpoint, worker, *args)` in one process per replica; returns what they return.

    Args:
      server: the shards.
      body: an importable function; what it returns must travel.
      num_workers: how many.
      args: further arguments, the same for all; data stay with the replica if `body` reads them.
      num_cpus: what Ray reserves per replica.
      env: environment variables of the replicas' processes.

    Raises:
      ExchangeError: a replica failed; the others were ended.
    """
    ray = load_ray()
    host = ray.remote(_ReplicaHost).options(
        num_cpus=num_cpus, max_restarts=0, runtime_env={'env_vars': env or {}}
    )
    hosts = [host.remote() for _ in range(num_workers)]
    calls = [h.run.remote(body, server.endpoint, n, args) for n, h in enumerate(hosts)]
    try:
        return ray.get(calls)
    except ray.exceptions.RayError as error:
        raise ExchangeError(f'A replica failed: {error}') from error
    finally:
        for h in hosts:
            ray.kill(h)


__all__ = ['RayEndpoint', 'RayServer', 'run_replicas', 'start', 'stop']
