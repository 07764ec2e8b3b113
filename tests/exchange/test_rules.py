"""Every rule against a trace of three or more pushes that was worked out by hand.

The traces run through a `ShardState`, so that staleness and base values come from the protocol.
A script is a list of (base version, update); the expected values are those after each push. The
worker of a push is its place in the script; all workers pull where their base version is reached.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqtrain.exchange import Join, LocalServer, Policy, Pull, Push, ShardState, Store, rules


def trace(rule, start, script, frames=None, policy=None):
    """Values after each push of the script, one row each."""
    state = ShardState(Store(np.asarray(start, np.float32), rule), policy or Policy(num_workers=8))
    for worker in range(len(script)):
        state.handle(Join(worker))
    rows = []
    for worker, (base, update) in enumerate(script):
        for later in range(worker, len(script)):
            if script[later][0] == state.version:
                state.handle(Pull(later))
        count = 1.0 if frames is None else frames[worker]
        (ack,) = state.handle(Push(worker, 0, base, np.asarray(update, np.float32), count))
        assert ack.staleness == worker - base
        rows.append(np.asarray(state.store.values))
        state.check()
    return np.stack(rows)


def test_sgd_takes_stale_gradients_as_they_are():
    got = trace(rules.sgd(0.5), [1, 0], [(0, [2, 0]), (0, [2, 4]), (1, [-2, 0])])
    np.testing.assert_allclose(got, [[0, 0], [-1, -2], [0, -2]])


def test_sgd_with_momentum():
    # m: 1, 0.5·1+1 = 1.5, 0.5·1.5+1 = 1.75
    got = trace(rules.sgd(1.0, 0.5), [0], [(0, [1]), (0, [1]), (0, [1])])
    np.testing.assert_allclose(got, [[-1], [-2.5], [-4.25]])


def test_adam():
    # b1 = b2 = 0.5. Push 1: m̂ = 1, v̂ = 1. Push 2 (g = 1): the same. Push 3 (g = −2):
    # m = 0.5·0.75 − 1 = −0.625, m̂ = −0.625/0.875 = −5/7; v = 0.5·0.75 + 2 = 2.375, v̂ = 19/7.
    got = trace(rules.adam(1.0, 0.5, 0.5), [0], [(0, [1]), (0, [1]), (1, [-2])])
    third = -2 + (5 / 7) / np.sqrt(19 / 7)
    np.testing.assert_allclose(got, [[-1], [-2], [third]], rtol=1e-5)


def test_downpour_adagrad():
    # Σg² after each push: 9, 9+16 = 25, 25+144 = 169.
    got = trace(rules.downpour_adagrad(2.0), [0], [(0, [3]), (0, [4]), (0, [12])])
    steps = [2 * 3 / 3, 2 * 4 / 5, 2 * 12 / 13]
    np.testing.assert_allclose(got[:, 0], -np.cumsum(steps), rtol=1e-6)


@pytest.mark.parametrize(('eps', 'first'), [(1e-7, 1e-4 / np.sqrt(1e-8 + 1e-7)), (0.0, 1.0)])
def test_downpour_adagrad_takes_a_small_gradient_as_far_as_epsilon_lets_it(eps, first):
    got = trace(rules.downpour_adagrad(0.1, eps=eps), [0], [(0, [1e-4])])
    np.testing.assert_allclose(got, [[-0.1 * first]], rtol=1e-6)


def test_downpour_adagrad_leaves_untouched_parameters_alone():
    got = trace(rules.downpour_adagrad(2.0), [5, 5], [(0, [1, 0])] * 3)
    np.testing.assert_allclose(got[:, 1], 5)


def test_polyak_average_ends_with_the_mean_of_the_last_versions():
    # As SGD: 6, 5, 3, −1. The mean of the last three: 7/3.
    script = [(0, [2]), (0, [1]), (1, [2]), (3, [4])]
    got = trace(rules.polyak_average(rules.sgd(1.0), 1), [8], script)
    np.testing.assert_array_equal(got, [[6], [5], [3], [-1]])
    store = Store(np.array([8], np.float32), rules.polyak_average(rules.sgd(1.0), 1))
    for version, (_, update) in enumerate(script):
        store.apply(np.asarray(update, np.float32), version, 0, 1.0)
    store.set_rule(rules.polyak_average(rules.sgd(0.5), 0), keep_state=True)
    np.testing.assert_array_equal(store.values, [-1])
    store.set_rule(rules.adam(1.0))
    np.testing.assert_allclose(store.values, [7 / 3], rtol=1e-6)
    assert store.version == 4


@pytest.mark.parametrize('pushes', [0, 1, 3])
def test_polyak_average_ends_with_the_newest_version_where_it_has_not_begun(pushes):
    rng = np.random.default_rng(0)
    store = Store(rng.normal(size=999), rules.polyak_average(rules.sgd(1.0), 3))
    for version in range(pushes):
        store.apply(rng.normal(size=999).astype(np.float32), version, 0, 1.0)
    newest = store.values
    store.set_rule(rules.sgd(1.0))
    np.testing.assert_array_equal(store.values, newest)


def test_polyak_average_asks_the_shard_for_base_values_where_its_rule_does():
    got = [
        trace(rule, [1, 0], [(0, [2, 0]), (0, [2, 4]), (1, [-2, 0])])
        for rule in (rules.dc_asgd(0.5), rules.polyak_average(rules.dc_asgd(0.5), 0))
    ]
    np.testing.assert_array_equal(*got)


def test_polyak_average_from_before_the_start_is_refused():
    with pytest.raises(ValueError, match='begin is -1'):
        rules.polyak_average(rules.sgd(1.0), -1)


def test_schedules_count_applied_updates():
    rule = rules.sgd(lambda count: jnp.where(count < 2, 1.0, 0.5))
    np.testing.assert_allclose(trace(rule, [0], [(0, [1])] * 4), [[-1], [-2], [-2.5], [-3]])


def test_scale_by_frames_with_a_reference():
    rule = optax.chain(rules.scale_by_frames(10.0), rules.sgd(1.0))
    got = trace(rule, [0], [(0, [1]), (0, [1]), (0, [2])], frames=[10, 5, 40])
    np.testing.assert_allclose(got, [[-1], [-1.5], [-9.5]])


def test_scale_by_frames_with_the_running_mean():
    # decay 0.5. Means, bias-corrected: 4; (0.5·2 + 0.5·8)/0.75 = 20/3; (0.5·5+0.5·4)/0.875 = 36/7.
    rule = optax.chain(rules.scale_by_frames(decay=0.5), rules.sgd(1.0))
    got = trace(rule, [0], [(0, [1]), (0, [1]), (0, [1])], frames=[4, 8, 4])
    steps = [1, 8 / (20 / 3), 4 / (36 / 7)]
    np.testing.assert_allclose(got[:, 0], -np.cumsum(steps), rtol=1e-6)


def test_scale_by_staleness_is_eta_over_tau():
    rule = optax.chain(rules.scale_by_staleness(), rules.sgd(1.0))
    # τ = 0, 1, 2, 1: weights 1, 1, 1/2, 1
    got = trace(rule, [0], [(0, [2]), (0, [2]), (0, [2]), (2, [2])])
    np.testing.assert_allclose(got, [[-2], [-4], [-5], [-7]])


def test_drop_stale_moves_neither_values_nor_momentum():
    rule = rules.drop_stale(rules.sgd(1.0, 0.5), 1)
    # τ = 0, 1, 2 (dropped), 1: m = 1, 1.5, (1.5), 1.75
    got = trace(rule, [0], [(0, [1]), (0, [1]), (0, [100]), (2, [1])])
    np.testing.assert_allclose(got, [[-1], [-2.5], [-2.5], [-4.25]])


def test_dc_asgd_constant():
    # λ = 0.5, η = 1. Push 1: w = w_base: 1 − 1 = 0. Push 2 from version 0 (w_base = 1):
    # g + 0.5·g²·(0−1) = 2 − 2 = 0: stays. Push 3 from version 1 (w_base = 0): −1 + 0 → w = 1.
    # Push 4 from version 0: 2 + 0.5·4·(1−1) = 2 → w = −1.
    rule = rules.dc_asgd(1.0, 0.5)
    got = trace(rule, [1], [(0, [1]), (0, [2]), (1, [-1]), (0, [2])])
    np.testing.assert_allclose(got, [[0], [0], [1], [-1]], atol=1e-6)


def test_dc_asgd_adaptive():
    # decay 0.5, λ0 = 1, ε = 0. MS: 2, then 0.5·2 + 0.5·4 = 3, then 0.5·3 + 0.5·4 = 3.5.
    # Push 1 (g=2, base = w): w = 4 − 2 = 2. Push 2 (g=2, base 4): 2 + 4/√3·(2−4).
    rule = rules.dc_asgd_adaptive(1.0, 1.0, 0.5, 0.0)
    got = trace(rule, [4], [(0, [2]), (0, [2]), (0, [-2])])
    w1 = 2.0
    w2 = w1 - (2 + 4 / np.sqrt(3) * (w1 - 4))
    w3 = w2 - (-2 + 4 / np.sqrt(3.5) * (w2 - 4))
    np.testing.assert_allclose(got, [[w1], [w2], [w3]], rtol=1e-5)


def test_gate_by_age():
    rule = optax.chain(rules.gate_by_age(alpha=np.log(2.0), cutoff=2.0), rules.sgd(1.0))
    # τ = 0: 1; τ = 1: ½·½(1+cos(π/2)) = ¼; τ = 2 and 3: 0
    got = trace(rule, [0], [(0, [4]), (0, [4]), (0, [4]), (0, [4])])
    np.testing.assert_allclose(got, [[-4], [-5], [-5], [-5]], atol=1e-6)


@pytest.mark.parametrize(('alpha', 'cutoff'), [(-0.1, 2.0), (0.5, 0.0), (0.5, float('nan'))])
def test_a_gate_that_lets_nothing_through_is_refused(alpha, cutoff):
    with pytest.raises(ValueError, match='give alpha >= 0 and cutoff > 0'):
        rules.cgad(0.1, alpha, cutoff)


def test_cgad_is_adam_on_gated_gradients_and_adam_at_age_zero():
    script = [(0, [1]), (1, [-3]), (2, [2])]
    np.testing.assert_array_equal(
        trace(rules.cgad(0.1, 0.5, 4.0), [0], script), trace(rules.adam(0.1), [0], script)
    )
    # b1 = b2 = 0.5, gates 1, ½, ¼·... as scripted: α = ln 2, no cosine to speak of.
    rule = rules.cgad(1.0, np.log(2.0), 1e6, 0.5, 0.5)
    got = trace(rule, [0], [(0, [1]), (0, [2]), (0, [-8])])
    same = trace(rules.adam(1.0, 0.5, 0.5), [0], [(0, [1]), (0, [1]), (0, [-2])])
    np.testing.assert_allclose(got, same, rtol=1e-5)


def test_delayed_nesterov():
    # ε = 1, β = 0.5, N = 2. Push 1: −4/2 = −2. Push 2: −2/2 = −1, m = 3, −0.5·3 → −4.5.
    # Push 3: −2/2 → −5.5. Push 4: 0, m = 1.5 + 1 = 2.5, −1.25 → −6.75.
    rule = rules.delayed_nesterov(1.0, 2, 0.5)
    got = trace(rule, [0], [(0, [4]), (0, [2]), (1, [2]), (2, [0])])
    np.testing.assert_allclose(got, [[-2], [-4.5], [-5.5], [-6.75]])


def test_a_period_that_never_comes_round_is_refused():
    with pytest.raises(ValueError, match='period is 0; give'):
        rules.delayed_nesterov(1.0, 0)


def test_delayed_nesterov_of_period_one_is_nesterov():
    script = [(0, [4]), (0, [-2]), (2, [1])]
    nesterov = optax.sgd(0.5, 0.9, nesterov=True)
    np.testing.assert_allclose(
        trace(rules.delayed_nesterov(0.5, 1, 0.9), [0], script),
        trace(nesterov, [0], script),
        rtol=1e-6,
    )


def test_momentum_lookahead():
    # γ = 0.5: m = 2, 0, 2 for Δ = 4, −2, 4; steps 1+4, 0−2, 1+4.
    got = trace(rules.momentum_lookahead(1.0, 0.5), [0], [(0, [4]), (0, [-2]), (0, [4])])
    np.testing.assert_allclose(got, [[-5], [-3], [-8]])


HELOCO = {'keep': 0.9, 'shrink': 1.0, 'max_shrink': 0.25, 'turn': 1.0, 'kappa': 0.0}


def test_heloco():
    # μ = 0.5, η = 1, κ = 0 (conf = 1).
    # Push 1: no momentum yet: Δ = (2,0) stays; m = (1,0); step (2,0) + 0.5·(1,0) = (2.5,0).
    # Push 2: Δ = (0,2), c = 0: λ = 1, turned onto v: (2,0); m = (1.5,0); step (2.75,0).
    # Push 3: Δ = (−2,0), c = −1: β = min(1, ¼); Δ + ¼·2·... = −2 − ¼·(−1)·2·(1) = (−1.5,0);
    #   m = (0,0); step (−1.5,0).
    # Push 4: m = 0 again: Δ = (0,2) stays; m = (0,1), step (0, 2.5).
    rule = rules.heloco(1.0, 0.5, **HELOCO)
    got = trace(rule, [0, 0], [(0, [2, 0]), (0, [0, 2]), (0, [-2, 0]), (0, [0, 2])])
    np.testing.assert_allclose(got, [[-2.5, 0], [-5.25, 0], [-3.75, 0], [-3.75, -2.5]], atol=1e-6)


def test_heloco_partial_turn_and_confidence():
    # m = (1,0) after push 1 (Δ = (2,0)). Δ = (0,1), κ = 1: conf = ½, c = 0, λ = ½:
    # ũ = (½,½), turned to norm 1: (√½,√½).
    rule = rules.heloco(1.0, 0.5, **(HELOCO | {'kappa': 1.0}))
    got = trace(rule, [0, 0], [(0, [2, 0]), (0, [0, 1]), (0, [0, 0])])
    r = np.sqrt(0.5)
    m = np.array([0.5 + 0.5 * r, 0.5 * r])
    second = np.array([-2.5, 0]) - (np.array([r, r]) + 0.5 * m)
    np.testing.assert_allclose(got[1], second, rtol=1e-5)
    np.testing.assert_allclose(got[2], second - 0.25 * m, rtol=1e-5)


def test_heloco_treats_blocks_apart():
    blocks = np.array([0, 0, 1, 1], np.int32)
    both = rules.heloco(1.0, 0.5, blocks, **HELOCO)
    one = rules.heloco(1.0, 0.5, **HELOCO)
    first, second = [[2, 0], [0, 2], [-2, 1]], [[1, 1], [1, 0.5], [0, 3]]
    joint = trace(both, [0] * 4, [(0, a + b) for a, b in zip(first, second, strict=True)])
    np.testing.assert_allclose(joint[:, :2], trace(one, [0, 0], [(0, a) for a in first]), rtol=1e-5)
    np.testing.assert_allclose(
        joint[:, 2:], trace(one, [0, 0], [(0, b) for b in second]), rtol=1e-5
    )


def test_easgd_centre_and_replica():
    # α = ½: the centre goes half way to each pushed value.
    got = trace(rules.easgd(0.5), [0], [(0, [4]), (0, [0]), (1, [-3])])
    np.testing.assert_allclose(got, [[2], [1], [-1]])
    moved = rules.elastic_pull({'w': np.array([4.0])}, {'w': np.array([0.0])}, 0.25)
    np.testing.assert_allclose(moved['w'], [3.0])


def test_averaging_by_shares():
    got = trace(rules.averaging(2), [1], [(0, [1]), (0, [3]), (2, [-2])])
    np.testing.assert_allclose(got, [[0.5], [-1], [0]])


def sync_rounds(rule, rounds):
    """Values after each sync round of pseudo-gradients given as one list per round."""
    state = ShardState(Store(np.zeros(1), rule), Policy(mode='sync', num_workers=2))
    rows = []
    for worker in range(2):
        state.handle(Join(worker))
    for version, deltas in enumerate(rounds):
        for worker, delta in enumerate(deltas):
            state.handle(Push(worker, version, version, np.array([delta], np.float32)))
        rows.append(float(state.store.values[0]))
        state.check()
    return rows


def test_averaging_in_sync_rounds_gives_the_mean_of_the_local_values():
    np.testing.assert_allclose(
        sync_rounds(rules.averaging(), [[1, 3], [0, 2], [-5, 1]]), [-2, -3, -1]
    )


def test_block_momentum():
    # η = ½, ζ = 1; G = −mean: −2, −1, 0. Δ = −2, −2, −1. Classical: w = −2, −4, −5.
    rounds = [[1, 3], [0, 2], [2, -2]]
    np.testing.assert_allclose(
        sync_rounds(rules.block_momentum(0.5, 1, False), rounds), [-2, -4, -5]
    )
    # Nesterov serves w + ηΔ: −2−1, −4−1, −5−½.
    np.testing.assert_allclose(sync_rounds(rules.block_momentum(0.5), rounds), [-3, -5, -5.5])


def test_block_momentum_of_zero_is_averaging():
    rounds = [[1, 3], [0, 2], [-5, 1]]
    assert sync_rounds(rules.block_momentum(0.0), rounds) == sync_rounds(rules.averaging(), rounds)


def test_rules_compose_and_say_who_supplies_base_params():
    rule = optax.chain(rules.scale_by_staleness(), rules.compensate_delay(), optax.adam(1e-2))
    trace(rule, [1, 2], [(0, [1, 1]), (0, [1, 0]), (0, [2, 1])])
    rule = rules.dc_asgd(1.0)
    with pytest.raises(rules.BaseParamsNeeded, match='A shard supplies'):
        rule.update(jnp.ones(2), rule.init(jnp.ones(2)), jnp.ones(2))


def test_a_shard_keeps_old_values_only_for_rules_that_want_them():
    for rule, kept in ((rules.sgd(1.0), 0), (rules.dc_asgd(1.0), 1)):
        state = ShardState(Store(np.zeros(2), rule), Policy(num_workers=2))
        state.handle(Join(0))
        state.handle(Join(1))
        assert len(state.store.history) == kept
        state.handle(Push(0, 0, 0, np.ones(2, np.float32)))
        state.handle(Pull(0))
        assert len(state.store.history) == 2 * kept  # replica 1 may still push from version 0
        state.handle(Push(1, 0, 0, np.ones(2, np.float32)))
        state.handle(Pull(1))
        state.handle(Push(1, 1, 2, np.ones(2, np.float32)))
        state.handle(Push(0, 1, 1, np.ones(2, np.float32)))
        assert set(state.store.history) == ({1, 2} if kept else set())
        for _ in range(20):  # pulls without pushes keep no more than a few versions
            state.handle(Push(0, state.members[0].seq + 1, state.version, np.ones(2, np.float32)))
            state.handle(Pull(1))
        assert len(state.store.history) <= 10 * kept
        if kept:
            (reply,) = state.handle(Push(1, 9, 3, np.ones(2, np.float32)))
            assert 'no longer kept' in reply.text


@pytest.mark.parametrize('queue_size', [2, 16])
def test_every_push_of_a_full_queue_finds_the_values_that_it_is_based_on(queue_size):
    start = {'w': np.zeros(2, np.float32)}
    with (
        LocalServer(start, 1, rules.dc_asgd(0.1)) as server,
        server.connect(0, queue_size=queue_size) as client,
    ):
        for _ in range(2):
            versions = client.pull().versions
            with server.hold(0):
                for _ in range(queue_size):
                    client.push({'w': np.ones(2, np.float32)}, versions)
            client.flush()
        assert client.rejections == []
        assert server.params().versions.numbers == (2 * queue_size,)


MADE = {
    'sgd': rules.sgd(0.1, 0.9),
    'adam': rules.adam(0.1),
    'downpour_adagrad': rules.downpour_adagrad(0.1),
    'dc_asgd': rules.dc_asgd(0.1),
    'dc_asgd_adaptive': rules.dc_asgd_adaptive(0.1),
    'compensate_delay': rules.compensate_delay(),
    'compensate_delay_adaptively': rules.compensate_delay_adaptively(),
    'cgad': rules.cgad(0.1, 0.5, 4.0),
    'gate_by_age': rules.gate_by_age(0.5, 4.0),
    'delayed_nesterov': rules.delayed_nesterov(0.1, 3),
    'momentum_lookahead': rules.momentum_lookahead(0.1),
    'heloco': rules.heloco(0.1, 0.9, **HELOCO),
    'averaging': rules.averaging(4),
    'block_momentum': rules.block_momentum(0.5),
    'easgd': rules.easgd(0.5),
    'scale_by_frames': rules.scale_by_frames(),
    'scale_by_staleness': rules.scale_by_staleness(),
    'drop_stale': rules.drop_stale(rules.adam(0.1), 2),
    'polyak_average': rules.polyak_average(rules.adam(0.1), 2),
}
NO_RULES = {'BaseParamsNeeded', 'Rule', 'chain', 'step', 'elastic_pull'}


@pytest.mark.parametrize('name', sorted(MADE.keys() - {'easgd'}))  # it takes values
def test_a_zero_update_from_the_start_moves_nothing(name):
    got = trace(MADE[name], [1, -2, 3], [(0, [0, 0, 0])] * 3)
    np.testing.assert_array_equal(got, [[1, -2, 3]] * 3)


@pytest.mark.parametrize('name', sorted(set(rules.__all__) - NO_RULES))
def test_a_rules_docstring_says_formula_source_what_is_pushed_and_the_size_of_its_state(name):
    text = getattr(rules, name).__doc__
    assert {'←', 'Source', 'Pushed: '} <= set(re.findall(r'←|Source|Pushed: ', text)) or (
        name == 'drop_stale'  # whose formula is the inner rule's
    )
    said = re.search(r'State: (0 or n|n \+ as inner|as inner|\d?n|0)', text)[1]
    n = 7
    held = sum(leaf.size == n for leaf in jax.tree.leaves(MADE[name].init(jnp.zeros(n))))
    sizes = {'0 or n': 1, 'n + as inner': 3, 'as inner': 2, '0': 0, 'n': 1, '2n': 2}
    assert sizes[said] == held
