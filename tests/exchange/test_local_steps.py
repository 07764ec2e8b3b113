"""Local steps: clipping, pseudo-gradients, and what a round of them does."""

import jax.numpy as jnp
import numpy as np
import optax

from seqtrain.exchange import LocalTrainer, clip, pseudo_gradient


def test_clip_scales_the_whole_tree_to_the_norm():
    tree = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
    clipped, norm = clip(tree, 1.0)
    assert float(norm) == 5.0
    np.testing.assert_allclose(clipped['a'], [0.6], rtol=1e-6)
    np.testing.assert_allclose(clipped['b'], [0.8], rtol=1e-6)
    same, _ = clip(tree, 5.0)
    np.testing.assert_array_equal(same['b'], tree['b'])


def test_clip_leaves_zero_as_it_is_and_makes_nan_of_what_has_no_norm():
    zero, norm = clip({'a': jnp.zeros(2)}, 1.0)
    assert float(norm) == 0.0
    np.testing.assert_array_equal(zero['a'], 0)
    for bad in (np.nan, np.inf, 1e20):  # the square of the last is not finite
        broken, norm = clip({'a': jnp.array([bad, 1.0])}, 1.0)
        assert not np.isfinite(norm)
        assert np.isnan(broken['a']).all()


def test_one_local_sgd_step_is_a_scaled_gradient():
    trainer = LocalTrainer(lambda w, x: w * x, optax.sgd(0.5))
    start = jnp.array([2.0, -4.0])
    result = trainer.run(start, [(3.0, 10.0)])
    np.testing.assert_allclose(result.update, 0.5 * 3.0 * start)
    assert (result.steps, result.frames) == (1, 10.0)


def test_h_local_steps_end_where_the_plain_loop_ends():
    rule = optax.adam(0.1)
    batches = [(np.float32(x), 1.0) for x in (1.0, -2.0, 0.5)]
    start = w = jnp.array([1.0, 2.0])
    state = rule.init(w)
    for x, _ in batches:
        updates, state = rule.update(w * x, state, w)
        w = optax.apply_updates(w, updates)
    result = LocalTrainer(lambda w, x: w * x, rule).run(start, batches)
    np.testing.assert_allclose(start - result.update, w, rtol=1e-6)
    np.testing.assert_allclose(result.update, pseudo_gradient(start, w), rtol=1e-5)
    assert result.steps == 3


def test_the_local_state_is_kept_or_not():
    def gradient(w, x):
        return jnp.full_like(w, x)

    start = jnp.zeros(1)
    kept = LocalTrainer(gradient, optax.sgd(1.0, 0.5), max_norm=1.0)
    anew = LocalTrainer(gradient, optax.sgd(1.0, 0.5), max_norm=1.0, keep_state=False)
    for trainer, second in ((kept, 1.5), (anew, 1.0)):
        np.testing.assert_allclose(trainer.run(start, [(5.0, 1.0)]).update, [1.0])
        np.testing.assert_allclose(trainer.run(start, [(5.0, 1.0)]).update, [second])


def test_an_elastic_replica_keeps_its_own_values_and_pushes_them():
    trainer = LocalTrainer(lambda w, x: jnp.full_like(w, x), optax.sgd(1.0), elastic=0.25)
    first = trainer.run(jnp.zeros(1), [(-4.0, 1.0)])
    np.testing.assert_allclose(first.update, [4.0])
    second = trainer.run(jnp.ones(1) * 8.0, [(-1.0, 1.0)], learning_rate=0.5)
    np.testing.assert_allclose(second.update, [4.0 - 0.25 * (4.0 - 8.0) + 0.5])
