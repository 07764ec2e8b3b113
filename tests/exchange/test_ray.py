"""The `ray` transport with real processes. Slow (Ray takes seconds to start); quick parts first."""

import asyncio
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import types

import jax
import numpy as np
import pytest

from seqtrain import exchange
from seqtrain.exchange import Policy, replay, rules
from seqtrain.exchange.transport import cluster, ray_lines
from seqtrain.exchange.transport import ray as ray_transport
from seqtrain.exchange.transport.shard_host import ShardHost

START = {'w': np.zeros(6, np.float32)}


def gradient(event, params):
    return {'w': np.cos(params['w'] + event.worker).astype(np.float32)}


def test_shards_compile_as_their_driver_does_for_one_device(monkeypatch):
    here = '--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0'
    monkeypatch.setenv('XLA_FLAGS', here)
    assert ray_transport.host_env()['XLA_FLAGS'] == '--xla_backend_optimization_level=0'


def test_a_replica_that_leaves_goes_when_the_shards_know(monkeypatch):
    calls = []

    class Actor:
        call = property(lambda self: self)

        def remote(self, messages):
            calls.append(messages)
            return len(calls)

    waited = []
    fake = types.SimpleNamespace(wait=lambda calls, num_returns, timeout: waited.append(calls))
    monkeypatch.setattr(ray_lines, 'load_ray', lambda: fake)
    channel = ray_lines.RayChannel([Actor(), Actor()])
    channel.send(0, exchange.Pull(1, 0))
    channel.send(0, exchange.Leave(1))  # in one call with what is still unanswered
    channel.send(1, exchange.Leave(1))
    channel.close()
    channel.close()
    assert [[type(message).__name__ for message in call] for call in calls] == [
        ['Pull', 'Leave'],
        ['Leave'],
    ]
    assert waited == [[1, 2]]


def replica(endpoint, worker, steps):
    """What each process runs."""
    with endpoint.connect(worker) as client:
        for seq in range(steps):
            params, versions = client.latest()
            client.push(gradient(exchange.Event('', 0, worker, seq), params), versions)
        client.flush()
        return os.getpid(), client.stats()


WRONG_TOKEN = """
import sys, time
from seqtrain import exchange
from seqtrain.exchange.transport import ray as ray_transport
started = time.monotonic()
try:
    ray_transport.start(sys.argv[1])
except exchange.ExchangeError as error:
    assert 'token' in str(error), error
    print('refused', time.monotonic() - started)
"""


def test_shards_end_though_on_event_had_failed(monkeypatch):
    done = []
    fake = types.SimpleNamespace(wait=lambda *args, **options: None, kill=done.append)
    monkeypatch.setattr(ray_transport, 'load_ray', lambda: fake)
    server = object.__new__(ray_transport.RayServer)
    call = types.SimpleNamespace(remote=lambda: done.append('closed'))
    shard = types.SimpleNamespace(close=call)
    server._closed, server._actors, server._book = False, [shard], 'rules'
    server._watcher = object.__new__(ray_lines.Watcher)
    server._watcher._done = threading.Event()
    server._watcher._thread = threading.Thread()
    server._watcher._thread.start()
    server._watcher._error = OSError('No space left on device')
    with pytest.raises(exchange.ExchangeError, match='on_event failed: No space'):
        server.snapshot()  # who asks the shards hears of it, not only who closes them
    with pytest.raises(exchange.ExchangeError, match='on_event failed: No space'):
        server.close()
    assert done == ['closed', shard, 'rules']
    server.close()  # again changes nothing
    assert len(done) == 3


class Away:
    """A shard that Ray is just starting again: the first calls of each kind find nobody."""

    def __init__(self, error):
        self._error, self.calls, self.missed = error, [], 1

    def __getattr__(self, method):
        def remote(*args):
            self.calls.append(method)
            if self.calls.count(method) <= self.missed:
                return self._error
            return exchange.Params(-1, 5, np.zeros(6, np.float32)) if method == 'read' else 'done'

        return types.SimpleNamespace(remote=remote)


@pytest.fixture
def server_away(monkeypatch):
    """A server of one shard that is away."""
    errors = pytest.importorskip('ray').exceptions

    def get(answer):
        if isinstance(answer, Exception):
            raise answer
        return answer

    fake = types.SimpleNamespace(get=get, exceptions=errors)
    monkeypatch.setattr(ray_transport, 'load_ray', lambda: fake)
    server = object.__new__(ray_transport.RayServer)
    server._actors = [Away(errors.ActorUnavailableError('it is being started again', None))]
    server.partition = exchange.Partition.make(START, 1)
    server._watcher, server._watched, server._directory = None, False, 'a directory'
    return server


def test_what_may_be_repeated_waits_for_a_shard_that_comes_back(server_away):
    assert server_away.params().versions.numbers == (5,)
    assert server_away.snapshot() == ['done']
    server_away.expire(0)
    server_away.expect([0])
    server_away.check()
    server_away.restore([{}])
    methods = ['read', 'snapshot', 'expire', 'expect', 'check', 'restore']
    assert server_away._actors[0].calls == [method for method in methods for _ in range(2)]


def test_a_shard_that_cannot_come_back_is_not_waited_for(server_away):
    server_away._directory, server_away._actors[0].missed = None, 99
    with pytest.raises(exchange.ExchangeError, match='is gone; give the server a directory'):
        server_away.snapshot()
    with pytest.raises(exchange.ExchangeError, match='is gone; give the server a directory'):
        server_away.expect([0])


def test_a_shard_that_never_comes_back_is_not_blamed_on_the_directory(server_away, monkeypatch):
    monkeypatch.setattr(ray_transport, 'PATIENCE_S', 1e-6)
    server_away._actors[0].missed = 99
    with pytest.raises(exchange.ExchangeError, match=r'does not come back.*being started again'):
        server_away.snapshot()


def test_snapshots_of_another_number_of_shards_are_refused_with_a_sentence(server_away):
    with pytest.raises(ValueError, match='number of shards that the checkpoint'):
        server_away.restore([{}, {}])


def test_events_that_went_to_on_event_are_not_kept_for_anybody_else(server_away):
    server_away._directory, server_away._watched = None, True
    with pytest.raises(exchange.ExchangeError, match='went to on_event'):
        server_away.events()


def test_events_are_let_go_once_they_were_fetched(monkeypatch):
    monkeypatch.setattr(
        ray_lines,
        'load_ray',
        lambda: types.SimpleNamespace(get=lambda x: x, exceptions=types.SimpleNamespace()),
    )
    heard = []
    watcher = object.__new__(ray_lines.Watcher)
    watcher._on_event, watcher._seen = heard.append, {}
    for process in range(2):  # the second is one that was started again
        monkeypatch.setattr(os, 'getpid', lambda process=process: process)
        shard = ShardHost(0, np.zeros(6, np.float32), rules.sgd(0.1), Policy())
        ask = types.SimpleNamespace(remote=lambda *args, of=shard: asyncio.run(of.events(*args)))
        watcher._actors = [types.SimpleNamespace(events=ask)]
        asyncio.run(shard.call([exchange.Join(0)]))
        for seq in range(3):
            push = exchange.Push(0, seq, seq, np.ones(6, np.float32))
            asyncio.run(shard.call([push]))
            watcher._fetch()
            assert len(shard._events) == (2 if seq == 0 else 1)
        watcher._fetch()
        assert shard._events == []
    assert [event.kind for event in heard] == ['joined', *['applied'] * 3] * 2


def test_events_that_nobody_asks_for_are_not_kept(tmp_path):
    options = {'directory': str(tmp_path), 'keep_events': False}
    shard = ShardHost(0, np.zeros(6, np.float32), rules.sgd(0.1), Policy(), **options)
    asyncio.run(shard.call([exchange.Join(0)]))
    assert asyncio.run(shard.events()) == (os.getpid(), [])
    asyncio.run(shard.close())
    _, events = exchange.eventlog.read(tmp_path / 'shard-0.events.jsonl')
    assert [event.kind for event in events] == ['joined']


@pytest.mark.parametrize('lease_s', [0, -1.0])
def test_a_lease_that_nobody_could_keep_is_refused(lease_s):
    with pytest.raises(ValueError, match='lease_s is'):
        ray_transport.RayServer(START, 1, rules.sgd(0.1), lease_s=lease_s)


@pytest.fixture(scope='module')
def ray_here():
    # JAX may be at work already.
    jax.block_until_ready(jax.numpy.zeros(1))
    import ray  # before `start` has said that tokens are asked for

    ray_transport.start(num_cpus=4)
    ray_transport.start()  # there already
    assert ray.is_initialized()
    yield ray_transport
    ray_transport.stop()


@pytest.mark.slow
def test_a_run_over_processes_survives_a_killed_shard_and_replays(ray_here, tmp_path):
    rule = rules.sgd(0.1, 0.5)
    with ray_here.RayServer(
        START, 2, rule, Policy(num_workers=2), directory=str(tmp_path), checkpoint_every=10
    ) as server:
        path = str(pathlib.Path(__file__).parent)
        results = ray_here.run_replicas(server, replica, 2, (25,), env={'PYTHONPATH': path})
        assert len({pid for pid, _ in results} | {os.getpid()}) == 3
        assert server.params().versions.numbers == (50, 50)
        with server.connect(0) as client:
            client.latest()
            server.kill_shard(1)
            for seq in range(25, 75):  # the killed process may still answer the first few
                params, versions = client.pull()
                event = exchange.Event('', 0, 0, seq)
                client.push(gradient(event, params), versions)
                client.flush()
            assert client.stats().rejoins >= 1
        server.check()
        versions = server.params().versions
        assert versions.generations == (0, 1)
        assert versions.numbers[0] == 100
        assert 50 - 10 <= versions.numbers[1] <= 100
        stores = replay(server.events(), START, 2, rule, gradient)
        shards = server.partition.split(server.params().params)
        for store, values in zip(stores, shards, strict=True):
            np.testing.assert_array_equal(store.values, values)
    for shard, number in enumerate(versions.numbers):  # the clean stop kept what was acknowledged
        with np.load(tmp_path / f'shard-{shard}.npz', allow_pickle=False) as saved:
            assert json.loads(saved['meta'].tobytes())['version'] == number


@pytest.mark.slow
def test_a_killed_shard_comes_back_with_the_current_rule(ray_here, tmp_path):
    with ray_here.RayServer(START, 2, rules.sgd(0.1, 0.5), directory=str(tmp_path)) as server:
        later = rules.adam(0.5)
        server.set_rule(later, note='second')
        with server.connect(0) as client:
            client.latest()
            pid, _ = ray_lines.load_ray().get(server._actors[0].events.remote())
            os.kill(pid, signal.SIGKILL)
            _wait_for_generation(server, 1)
            for seq in range(20):
                params, versions = client.pull()
                client.push(gradient(exchange.Event('', 0, 0, seq), params), versions)
                client.flush()
        assert server.params().versions.generations == (1, 0)
        stores = replay(
            server.events(), START, 2, rules.sgd(0.1, 0.5), gradient, later_rules=[(later, False)]
        )
        shards = server.partition.split(server.params().params)
        for store, values in zip(stores, shards, strict=True):
            np.testing.assert_array_equal(store.values, values)


@pytest.mark.slow
def test_sync_over_processes_equals_sync_in_threads(ray_here, tmp_path):
    policy = Policy(mode='sync', num_workers=2)
    heard = []
    with ray_here.RayServer(
        START, 2, rules.sgd(0.1), policy, directory=str(tmp_path), on_event=heard.append
    ) as server:
        path = str(pathlib.Path(__file__).parent)
        ray_here.run_replicas(server, replica, 2, (10,), env={'PYTHONPATH': path})
        over_ray = server.params()
        events = server.events()
    assert sorted(map(str, heard)) == sorted(map(str, events))
    assert sum(event.kind == 'applied' for event in heard) == 2 * 2 * 10
    assert sum(event.kind == 'left' for event in events) == 2 * 2  # before their processes ended
    assert over_ray.versions.numbers == (10, 10)
    with exchange.LocalServer(START, 2, rules.sgd(0.1), policy) as server:
        clients = [server.connect(n) for n in range(2)]
        for seq in range(10):
            for worker, client in enumerate(clients):
                params, versions = client.latest()
                event = exchange.Event('', 0, worker, seq)
                client.push(gradient(event, params), versions)
        for client in clients:
            client.flush()
        here = server.params()
        for client in clients:
            client.close()
    np.testing.assert_array_equal(over_ray.params['w'], here.params['w'])


def _wait_for_generation(server, generation):
    """Until shard 0 is back: a killed process may still answer for a while."""
    while server.params().versions.generations[0] != generation:
        pass


def _pull_for_ever(client):
    while True:  # a killed process may still answer a pull or two
        client.pull()


@pytest.mark.slow
def test_a_shard_without_a_directory_that_dies_is_said_to_be_gone(ray_here):
    with ray_here.RayServer(START, 1, rules.sgd(0.1)) as server:
        client = server.connect(0)
        client.latest()
        server.kill_shard(0)
        with pytest.raises(exchange.ExchangeError, match='directory'):
            _pull_for_ever(client)
        with pytest.raises(exchange.ExchangeError, match='directory'):
            client.close()


@pytest.mark.slow
@pytest.mark.parametrize('token', ['not-the-right-one' * 2, None], ids=['wrong', 'none'])
def test_without_the_right_token_nobody_gets_in(ray_here, token, tmp_path):
    import ray

    address = ray.get_runtime_context().gcs_address
    assert not cluster._knock(address)  # not even a question is answered
    env = {k: v for k, v in os.environ.items() if not k.startswith('RAY_')}
    env |= {'HOME': str(tmp_path)} | ({'RAY_AUTH_TOKEN': token} if token else {})
    done = subprocess.run(
        [sys.executable, '-c', WRONG_TOKEN, address], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith('refused')
    assert float(done.stdout.split()[1]) < 30
