"""`Store`: optimiser states of all kinds go into snapshots and files and come back bit for bit."""

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqtrain.exchange import Join, Policy, Push, Store, rules
from seqtrain.exchange.transport.shard_host import ShardHost

ONES = np.ones(3, np.float32)
START = np.array([1.0, -2.0, 3.0], np.float32)
RULES = {
    'half precision': optax.adam(0.1, mu_dtype=jnp.bfloat16),
    'a random key': optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(3)), optax.sgd(0.1)),
    'counters': optax.adamw(0.1),
    'nothing': optax.sgd(0.1),
}


def bits(store):
    arrays = store.snapshot()
    return [array.tobytes() for array in [arrays['values'], *arrays['opt_state']]]


@pytest.mark.parametrize('rule', RULES.values(), ids=RULES)
def test_a_snapshot_brings_the_optimiser_back(rule):
    store = Store(START, rule)
    store.apply(ONES, 0, 0, 1.0)
    saved, structure = store.snapshot(), store.structure
    store.apply(ONES, 1, 0, 1.0)
    went_on = bits(store)
    store.restore(saved, 1, structure)
    store.apply(ONES, 1, 0, 1.0)
    assert bits(store) == went_on


@pytest.mark.parametrize('rule', RULES.values(), ids=RULES)
def test_a_shard_that_crashes_brings_the_optimiser_back(rule, tmp_path):
    async def run():
        first = ShardHost(0, START, rule, Policy(), directory=str(tmp_path))
        await first.call([Join(0)])
        await first.call([Push(0, 0, 0, ONES)])
        await first.close()
        second = ShardHost(0, START, rule, Policy(), directory=str(tmp_path))
        assert second._state.version == 1
        assert bits(second._state.store) == bits(first._state.store)
        await second.call([Join(0)])
        (ack,) = await second.call([Push(0, 1, 1, ONES, generation=1)])
        assert ack.version == 2
        await second.close()

    asyncio.run(run())


def test_old_values_go_with_the_rule_that_wanted_them():
    store = Store(START, rules.dc_asgd(0.1))
    store.read()
    store.apply(ONES, 0, 0, 1.0)
    assert store.history
    store.set_rule(optax.sgd(0.1))
    assert not store.history
