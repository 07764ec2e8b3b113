"""Models: shapes, padding never leaks, receptive field, dropout only when asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seqtrain import models
from seqtrain.models import layers

MODELS = {
    'tdnn1': lambda rngs: models.Tdnn(models.TdnnConfig(5, 7, 16, subsampling=1), rngs=rngs),
    'tdnn3': lambda rngs: models.Tdnn(models.TdnnConfig(5, 7, 16, subsampling=3), rngs=rngs),
    'dnn1': lambda rngs: models.Dnn(models.DnnConfig(5, 7, 16), rngs=rngs),
    'dnn3': lambda rngs: models.Dnn(models.DnnConfig(5, 7, 16, subsampling=3), rngs=rngs),
}


@pytest.fixture(params=sorted(MODELS))
def model(request):
    return MODELS[request.param](nnx.Rngs(0))


def features(num_frames=20, seed=0):
    return np.random.default_rng(seed).normal(size=(2, num_frames, 5)).astype(np.float32)


def test_shape_is_ceil_of_frames_over_subsampling(model):
    logits = model(jnp.asarray(features(20)), jnp.array([20, 7]))
    assert logits.shape == (2, -(-20 // model.subsampling), 7)
    assert logits.dtype == jnp.float32


def test_padding_content_and_amount_change_no_valid_frame(model):
    lengths = jnp.array([20, 7])
    x = features(20)
    reference = model(jnp.asarray(x), lengths)
    dirty = x.copy()
    dirty[1, 7:] = np.nan
    longer = np.concatenate([dirty, np.full((2, 9, 5), 1e9, np.float32)], axis=1)
    for other in (dirty, longer):
        logits = model(jnp.asarray(other), lengths)
        for b, n in enumerate(models.subsampled_lengths(lengths, model.subsampling)):
            np.testing.assert_allclose(logits[b, :n], reference[b, :n], rtol=1e-5, atol=1e-6)


def test_an_output_sees_its_context_and_no_more(model):
    before, after = model.context
    lengths = jnp.array([20, 20])
    row, place = 3, 3 * model.subsampling
    x = features(20)
    reference = model(jnp.asarray(x), lengths)[0, row]
    for frame in range(20):
        moved = x.copy()
        moved[0, frame] += 1
        seen = not np.array_equal(model(jnp.asarray(moved), lengths)[0, row], reference)
        assert seen == (place - before <= frame <= place + after)


def test_dropout_acts_only_with_a_key():
    config = models.TdnnConfig(5, 7, 16, dropout=0.5)
    model = models.Tdnn(config, rngs=nnx.Rngs(0))
    x, lengths = jnp.asarray(features()), jnp.array([20, 20])
    np.testing.assert_array_equal(model(x, lengths), model(x, lengths))
    dropped = model(x, lengths, jax.random.key(1))
    assert not np.allclose(dropped, model(x, lengths))
    np.testing.assert_array_equal(dropped, model(x, lengths, jax.random.key(1)))


def test_splice_takes_the_named_frames_and_zeros_outside():
    x = jnp.arange(1.0, 5.0)[None, :, None]
    np.testing.assert_array_equal(
        layers.splice(x, (-2, 0, 1))[0], [[0, 1, 2], [0, 2, 3], [1, 3, 4], [2, 4, 0]]
    )


@pytest.mark.parametrize(('length', 'kept'), [(0, 0), (1, 1), (3, 1), (4, 2), (9, 3)])
def test_subsampled_length(length, kept):
    assert int(models.subsampled_lengths(jnp.array([length]), 3)[0]) == kept
