"""The `local` transport: threads, order, errors, and the bit-identity with a plain loop."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqtrain import exchange
from seqtrain.exchange import Policy, rules
from seqtrain.exchange.transport import local

TREE = {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3), 'bias': np.ones(3, np.float32)}


def zeros_like(tree):
    return jax.tree.map(np.zeros_like, tree)


def ones_like(tree):
    return jax.tree.map(np.ones_like, tree)


@jax.jit
def toy_gradient(w, x):
    return jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(w)


@pytest.mark.parametrize(
    'rule',
    [
        rules.downpour_adagrad(0.05, 0.1),
        rules.sgd(0.1, 0.9),
        rules.adam(optax.linear_schedule(0.1, 0.0, 40)),
        optax.chain(rules.scale_by_frames(), rules.adam(0.01)),
    ],
)
def test_one_replica_one_shard_is_bit_identical_to_the_plain_loop(rule):
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(40, 8, 16)).astype(np.float32)
    start = rng.normal(size=16).astype(np.float32)
    values = jnp.asarray(start)
    state = rule.init(values)
    for x in batches:
        gradient = toy_gradient(values, x)
        values, state = rules.step(rule)(values, state, gradient, 0, 0, 8.0, None)
    policy = Policy(num_workers=1, max_staleness=0)
    with (
        exchange.LocalServer({'w': start}, 1, rule, policy) as server,
        server.connect(0) as client,
    ):
        for x in batches:
            params, versions = client.latest()
            client.push({'w': toy_gradient(params['w'], x)}, versions, frames=8.0)
        trained, versions = client.latest()
        server.check()
    assert versions.numbers == (40,)
    np.testing.assert_array_equal(trained['w'], np.asarray(values))


def run_replicas(server, num_workers, steps, body=None):
    """`steps` pushes of ones by each of `num_workers` threads; returns their clients' stats."""
    stats, errors = [None] * num_workers, []

    def replica(worker):
        try:
            with server.connect(worker) as client:
                for step in range(steps):
                    params, versions = client.latest()
                    if body is not None:
                        body(worker, step, params)
                    client.push(ones_like(params), versions, frames=1.0)
                client.flush()
                stats[worker] = client.stats()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=replica, args=(n,)) for n in range(num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
    return stats


@pytest.mark.parametrize('max_staleness', [None, 0, 1, 5])
def test_every_push_is_applied_once_and_the_bound_holds(max_staleness):
    policy = Policy(num_workers=4, max_staleness=max_staleness)
    with exchange.LocalServer(zeros_like(TREE), 3, rules.sgd(1.0), policy) as server:
        stats = run_replicas(server, 4, 25)
        server.check()
        params, versions = server.params()
    assert versions.numbers == (100, 100, 100)
    np.testing.assert_array_equal(params['kernel'], -100 * np.ones((2, 3)))
    assert sum(s.applied for s in stats) == 300
    assert sum(s.rejected for s in stats) == 0
    applied = [event for event in server.events() if event.kind == 'applied']
    assert len(applied) == 300
    if max_staleness is not None:
        assert max(event.s1 for event in applied) <= max_staleness


def test_sync_applies_the_frame_weighted_mean_of_each_round_once():
    policy = Policy(mode='sync', num_workers=3)
    seen = []
    with exchange.LocalServer({'w': np.zeros(2, np.float32)}, 2, rules.sgd(1.0), policy) as server:

        def replica(worker):
            with server.connect(worker) as client:
                for _ in range(5):
                    params, versions = client.latest()
                    seen.append((versions.numbers, float(params['w'][0])))
                    update = np.full(2, worker, np.float32)
                    client.push({'w': update}, versions, frames=2.0**worker)

        threads = [threading.Thread(target=replica, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        params, versions = server.params()
    mean = (0 * 1 + 1 * 2 + 2 * 4) / 7
    assert versions.numbers == (5, 5)
    np.testing.assert_allclose(params['w'], -5 * mean, rtol=1e-6)
    # Whoever pulls in round r sees exactly r rounds applied, on both shards.
    for numbers, value in seen:
        assert numbers[0] == numbers[1]
        np.testing.assert_allclose(value, -numbers[0] * mean, rtol=1e-5)


def test_frame_weights_make_a_round_equal_to_one_large_batch():
    policy = Policy(mode='sync', num_workers=2)
    state = exchange.ShardState(exchange.Store(np.zeros(1), rules.sgd(1.0)), policy)
    for worker in range(2):
        state.handle(exchange.Join(worker))
    first, second = np.array([3.0], np.float32), np.array([-1.0], np.float32)
    state.handle(exchange.Push(1, 0, 0, second, frames=30.0))
    state.handle(exchange.Push(0, 0, 0, first, frames=10.0))
    np.testing.assert_allclose(state.store.values, [-(10 * 3.0 + 30 * -1.0) / 40])


def test_an_error_in_the_thread_is_raised_at_the_next_call():
    with exchange.LocalServer(zeros_like(TREE), 2, rules.sgd(1.0)) as server:
        client = server.connect(0)
        params, versions = client.latest()
        client.push({'kernel': params['kernel']}, versions)  # a leaf is missing
        with pytest.raises(exchange.ExchangeError, match='structure'):
            client.flush()
        with pytest.raises(exchange.ExchangeError, match='structure'):
            client.push(params, versions)
        with pytest.raises(exchange.ExchangeError, match='structure'):
            client.close()
        with pytest.raises(exchange.ExchangeError, match='closed'):
            client.poll()


def test_numpy_updates_are_copied_and_pulled_trees_are_handed_out_again_as_they_were():
    with (
        exchange.LocalServer(zeros_like(TREE), 2, rules.sgd(1.0)) as server,
        server.connect(0, queue_size=1) as client,
    ):
        params, versions = client.latest()
        update = ones_like(params)
        client.push(update, versions)
        update['bias'][:] = 99
        client.flush()
        np.testing.assert_array_equal(server.params().params['bias'], -1)
        newest = client.latest().params
        with pytest.raises(ValueError, match='read-only'):
            newest['bias'] += 7
        assert client.latest().params is newest
        np.testing.assert_array_equal(newest['bias'], -1)
        assert server.params().params['bias'].flags.writeable


def test_poll_hands_each_pull_out_once_and_never_waits():
    with (
        exchange.LocalServer(zeros_like(TREE), 1, rules.sgd(1.0)) as server,
        server.connect(0) as client,
    ):
        params, versions = client.latest()
        assert client.poll() is None
        client.push(ones_like(params), versions)
        client.flush()
        assert client.poll().versions.numbers == (1,)
        assert client.poll() is None
        assert client.pull().versions.numbers == (1,)


def test_pulled_parameters_are_put_on_the_replicas_device():
    device = jax.local_devices()[-1]
    with exchange.LocalServer(TREE, 2, rules.sgd(1.0)) as server:  # noqa: SIM117
        with server.connect(0, device=device) as client:
            params, _ = client.latest()
            assert params['kernel'].devices() == {device}
            np.testing.assert_array_equal(params['kernel'], TREE['kernel'])


def test_a_dead_sync_replica_does_not_stop_the_others():
    policy = Policy(mode='sync', num_workers=2)
    with exchange.LocalServer(zeros_like(TREE), 2, rules.sgd(1.0), policy) as server:
        dead, alive = server.connect(0), server.connect(1)
        dead.latest()
        params, versions = alive.latest()
        alive.push(ones_like(params), versions)  # waits for replica 0
        dead.kill()
        assert server.params().versions.numbers == (0, 0)
        server.expire(0)
        assert alive.latest().versions.numbers == (1, 1)
        alive.close()


def test_a_silent_replica_expires_by_its_lease():
    policy = Policy(mode='sync', num_workers=2)
    with exchange.LocalServer(zeros_like(TREE), 1, rules.sgd(1.0), policy, lease_s=0.2) as server:
        dead, alive = server.connect(0), server.connect(1)
        dead.latest()
        dead.kill()
        params, versions = alive.latest()
        alive.push(ones_like(params), versions)
        assert alive.latest().versions.numbers == (1,)  # the one who waits expires the silent one
        alive.close()


def test_a_wait_ends_however_short_the_lease_is():
    policy = Policy(num_workers=1)
    with exchange.LocalServer(zeros_like(TREE), 1, rules.sgd(1.0), policy, lease_s=0.02) as server:
        assert local.LocalChannel(server, 0).receive(0.05) is None


def test_snapshot_restore_goes_back_and_replicas_rejoin_by_themselves(caplog):
    rule = rules.downpour_adagrad(0.5)
    with (
        exchange.LocalServer(zeros_like(TREE), 2, rule) as server,
        server.connect(0) as client,
    ):
        for _ in range(3):
            client.push(ones_like(TREE), client.latest().versions)
            client.flush()
        saved = server.snapshot()
        before = server.params()
        client.push(ones_like(TREE), client.latest().versions)
        client.flush()
        old = client.latest()
        server.restore(saved)
        np.testing.assert_array_equal(server.params().params['bias'], before.params['bias'])
        client.push(ones_like(TREE), old.versions)  # refused: another generation
        client.flush()
        assert {r.reason for r in client.rejections} == {exchange.Reason.NOT_JOINED}
        params, versions = client.pull()
        assert versions.numbers == (3, 3)
        assert versions.generations == (1, 1)
        np.testing.assert_array_equal(params['bias'], before.params['bias'])
        client.push(ones_like(TREE), versions)
        client.flush()
        assert server.params().versions.numbers == (4, 4)
        assert client.stats().rejoins == 1
    fresh = exchange.LocalServer(zeros_like(TREE), 2, rule)
    fresh.restore(saved)
    np.testing.assert_array_equal(fresh.params().params['kernel'], before.params['kernel'])
    with fresh.connect(0) as client:  # a restarted replica counts on from its last seq
        client.push(ones_like(TREE), client.latest().versions)
        client.flush()
        assert client.stats().rejected == 0
    fresh.close()


def test_snapshots_of_another_run_are_refused_with_a_sentence():
    one = exchange.LocalServer(TREE, 1, rules.sgd(1.0))
    two = exchange.LocalServer(TREE, 2, rules.sgd(1.0))
    adam = exchange.LocalServer(TREE, 1, rules.adam(1.0))
    with pytest.raises(ValueError, match='number of shards'):
        two.restore(one.snapshot())
    with pytest.raises(ValueError, match='another model'):
        two.restore_shard(0, one.snapshot()[0])
    with pytest.raises(ValueError, match='another rule'):
        adam.restore(one.snapshot())
    momentum = exchange.LocalServer(TREE, 1, rules.momentum_lookahead(1.0))
    adagrad = exchange.LocalServer(TREE, 1, rules.downpour_adagrad(1.0))
    snapshots = momentum.snapshot()
    with pytest.raises(ValueError, match='another rule'):
        adagrad.restore(snapshots)
    del snapshots[0]['meta']['opt_state']  # of an older checkpoint, which says nothing of it
    adagrad.restore(snapshots)


def test_the_rule_changes_between_stages():
    with (
        exchange.LocalServer(zeros_like(TREE), 2, rules.sgd(1.0)) as server,
        server.connect(0) as client,
    ):
        client.push(ones_like(TREE), client.latest().versions)
        client.flush()
        server.set_rule(rules.sgd(0.25), note='stage 2')
        client.push(ones_like(TREE), client.pull().versions)
        client.flush()
        np.testing.assert_array_equal(server.params().params['bias'], -1.25)
        notes = [event.note for event in server.events() if event.kind == 'rule']
        assert notes == ['stage 2', 'stage 2']


def test_closing_the_server_wakes_whoever_waits():
    policy = Policy(mode='sync', num_workers=2)
    server = exchange.LocalServer(zeros_like(TREE), 1, rules.sgd(1.0), policy)
    client = server.connect(0)
    params, versions = client.latest()
    client.push(ones_like(params), versions)
    server.close()
    with pytest.raises(exchange.ExchangeError, match='server is closed'):
        client.latest()
    with pytest.raises(exchange.ExchangeError, match='server is closed'):
        client.close()


def test_no_thread_is_left():
    before = set(threading.enumerate())
    with exchange.LocalServer(zeros_like(TREE), 2, rules.sgd(1.0), Policy(num_workers=3)) as server:
        run_replicas(server, 3, 2)
    assert {t for t in threading.enumerate() if t.name.startswith('exchange')} <= before


def test_a_replica_that_rests_holds_nobody_up():
    policy = Policy(num_workers=2, max_staleness=0)
    with (
        exchange.LocalServer(zeros_like(TREE), 2, rules.sgd(1.0), policy) as server,
        server.connect(0) as resting,
        server.connect(1) as busy,
    ):
        resting.push(ones_like(TREE), resting.latest().versions)
        resting.flush()
        for _ in range(5):
            busy.push(ones_like(TREE), busy.latest().versions)
        busy.flush()
        assert server.params().versions.numbers == (6, 6)
        assert busy.stats().rejected == 0


def test_dylu_gives_slow_replicas_fewer_local_steps():
    with (
        exchange.LocalServer(TREE, 2, rules.averaging(), Policy(num_workers=2)) as server,
        server.connect(0) as fast,
        server.connect(1) as slow,
    ):
        assert slow.local_steps(8) == 8  # nothing is known yet
        for client, step_s in ((fast, 0.1), (slow, 0.35)):
            client.push(zeros_like(TREE), client.latest().versions, steps=8, step_s=step_s)
            client.flush()
        fast.pull()
        slow.pull()
        assert fast.local_steps(8) == 8
        assert slow.local_steps(8) == 2  # ⌊0.1/0.35 · 8⌋
        assert slow.local_steps(1) == 1
    steps = [event.steps for event in server.events() if event.kind == 'applied']
    assert steps == [8, 8, 8, 8]


@pytest.mark.parametrize('codec', ['bfloat16', 'int8'])
def test_small_codecs_train_as_well_thanks_to_error_feedback(codec):
    target = np.linspace(-1, 1, 50).astype(np.float32)
    with exchange.LocalServer({'w': np.zeros(50, np.float32)}, 2, rules.sgd(0.2)) as server:  # noqa: SIM117
        with server.connect(0, codec=codec) as client:
            for _ in range(60):
                params, versions = client.pull()
                client.push({'w': params['w'] - target}, versions)
            client.flush()
            sent = client.stats().bytes_pushed
    np.testing.assert_allclose(server.params().params['w'], target, atol=1e-3)
    assert sent < 60 * 50 * 4 * 0.6


@pytest.mark.parametrize(('overlap', 'staleness'), [(True, 1), (False, 0)])
def test_overlap_costs_staleness_and_no_overlap_costs_waiting(overlap, staleness):
    with (
        exchange.LocalServer(zeros_like(TREE), 2, rules.sgd(1.0)) as server,
        server.connect(0, overlap=overlap) as client,
    ):
        for _ in range(10):
            pulled = client.latest()
            with server.hold(0):  # the exchange cannot be done before the next step begins
                client.push(ones_like(TREE), pulled.versions)
                ahead = client.latest() if overlap else None
            if ahead is not None:
                assert ahead.versions == pulled.versions
                client.push(ones_like(TREE), ahead.versions)
            client.flush()
        ages = [event.s1 for event in server.events() if event.kind == 'applied']
    assert max(ages) == staleness
