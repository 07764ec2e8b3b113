"""Frame-level criteria and penalties against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from seqtrain import losses, ops
from seqtrain.fsa import Fsa


def test_cross_entropy_of_uniform_outputs_is_log_p_per_labelled_frame():
    logits = jnp.zeros((2, 4, 5))
    labels = jnp.array([[0, 1, -1, 3], [4, 4, 4, 4]])
    value = losses.cross_entropy(logits, labels, jnp.array([4, 2]))
    np.testing.assert_allclose(value, [3 * np.log(5), 2 * np.log(5)], rtol=1e-6)


def test_cross_entropy_gradient_is_softmax_minus_target():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4)), jnp.float32)
    labels, lengths = jnp.array([[1, -1, 2]]), jnp.array([2])
    gradient = jax.grad(lambda x: losses.cross_entropy(x, labels, lengths).sum())(logits)
    want = np.asarray(jax.nn.softmax(logits[0, 0])) - np.eye(4)[1]
    np.testing.assert_allclose(gradient[0, 0], want, atol=1e-6)
    assert not np.any(gradient[0, 1:])


def test_soft_labels_of_one_hot_rows_equal_hard_labels():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4)), jnp.float32)
    logits = logits.at[0, 0, 3].set(-jnp.inf)
    soft = jax.nn.one_hot(jnp.array([[1, 0, 2]]), 4)
    hard = losses.cross_entropy(logits, jnp.array([[1, 0, 2]]), jnp.array([3]))
    np.testing.assert_allclose(losses.cross_entropy(logits, soft, jnp.array([3])), hard, rtol=1e-6)


def test_padding_is_ignored_even_if_it_is_nan():
    logits = jnp.zeros((1, 3, 2)).at[0, 2].set(jnp.nan)
    lengths = jnp.array([2])
    for penalty in (
        lambda x: losses.cross_entropy(x, jnp.zeros((1, 3), jnp.int32), lengths),
        lambda x: losses.output_l2(x, lengths),
        lambda x: losses.out_of_range(x, lengths),
    ):
        value, pull = jax.vjp(penalty, logits)
        assert np.all(np.isfinite(value))
        assert np.all(np.isfinite(pull(value)[0]))


@pytest.mark.parametrize('spoilt', [np.nan, np.inf, 'row'])
def test_a_bad_utterance_can_be_masked_out_of_the_gradient(spoilt):
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(2, 3, 4)).astype(np.float32)
    bad = clean.copy()
    bad[1, 2, 1 if spoilt != 'row' else slice(None)] = -np.inf if spoilt == 'row' else spoilt
    lengths, keep = jnp.array([3, 3]), jnp.array([True, False])
    soft = jnp.asarray(rng.dirichlet(np.ones(4), size=(2, 3)), jnp.float32)
    for loss in (
        lambda x: losses.cross_entropy(x, jnp.ones((2, 3), jnp.int32), lengths),
        lambda x: losses.cross_entropy(x, soft, lengths),
        lambda x: losses.output_l2(x, lengths),
        lambda x: losses.out_of_range(x, lengths, limit=0.1),
    ):
        assert np.isnan(loss(jnp.asarray(bad))[1])
        total = jax.value_and_grad(lambda x, loss=loss: jnp.where(keep, loss(x), 0.0).sum())
        (value, gradient), want = total(jnp.asarray(bad)), total(jnp.asarray(clean))
        np.testing.assert_array_equal(value, want[0])
        np.testing.assert_array_equal(gradient[0], want[1][0])
        assert not np.any(gradient[1])


def test_a_frame_left_out_may_hold_anything():
    logits = jnp.zeros((1, 2, 3)).at[0, 1].set(jnp.nan)
    for labels in (jnp.array([[1, -1]]), jnp.eye(3)[None, :2].at[0, 1].set(0.0)):
        value, pull = jax.vjp(
            lambda x, y=labels: losses.cross_entropy(x, y, jnp.array([2])), logits
        )
        np.testing.assert_allclose(value, [np.log(3)], rtol=1e-6)
        assert np.isfinite(pull(value)[0]).all()


def test_a_label_outside_the_network_is_nan():
    value = losses.cross_entropy(jnp.zeros((2, 1, 2)), jnp.array([[2], [1]]), jnp.array([1, 1]))
    assert np.isnan(value[0])
    assert np.isfinite(value[1])


@pytest.mark.parametrize('label', [4, np.nan, np.inf, -np.inf])
def test_a_label_that_cannot_be_read_is_the_trouble_of_one_utterance(label):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(3, 4, 4)), jnp.float32)
    lengths = jnp.array([4, 4, 3])  # what stands in padding does not matter
    labels = np.array(rng.integers(4, size=(3, 4)), np.int32)
    if label != 4:
        labels = np.eye(4, dtype=np.float32)[labels]
    spoilt = labels.copy()
    spoilt[[0, 2], [1, 3], ...] = label

    def total(x, labels, keep=1.0):
        loss = losses.cross_entropy(x, labels, lengths)
        return jnp.where(keep, loss, 0.0).sum(), loss

    step = jax.grad(total, has_aux=True)
    want, loss = step(logits, labels)
    for keep in (jnp.ones(3), jnp.array([0.0, 1.0, 1.0])):
        gradient, value = step(logits, spoilt, keep)
        assert np.isnan(value[0])
        np.testing.assert_array_equal(value[1:], loss[1:])
        assert not np.any(gradient[0])
        np.testing.assert_array_equal(gradient[1:], want[1:])


@pytest.mark.parametrize('kind', [jnp.float16, jnp.bfloat16])
def test_half_precision_is_refused(kind):
    # 100 frames of 50 outputs near 40 are beyond float16, as a sum of squares.
    logits, lengths = jnp.full((1, 100, 50), 40.0, kind), jnp.array([100])
    for loss in (
        lambda x: losses.cross_entropy(x, jnp.zeros((1, 100), jnp.int32), lengths),
        lambda x: losses.output_l2(x, lengths),
        lambda x: losses.out_of_range(x, lengths),
    ):
        with pytest.raises(ValueError, match='logits must be float32'):
            loss(logits)


@pytest.mark.parametrize(
    'loss',
    [
        lambda x: losses.cross_entropy(x, jnp.zeros((2, 3), jnp.int32), jnp.array([3, 3])),
        lambda x: losses.output_l2(x, jnp.array([3, 3])),
        lambda x: losses.out_of_range(x, jnp.array([3, 3])),
        lambda x: losses.ctc(x, jnp.array([3, 3]), None),
    ],
)
def test_logits_that_are_none_get_a_sentence(loss):
    for wrong in (jnp.zeros((2, 3)), jnp.zeros((2, 3, 4, 5))):
        with pytest.raises(ValueError, match=r'logits must be \[B, T, P\]'):
            loss(wrong)
    with pytest.raises(ValueError, match='logits must be an array; got list'):
        loss([[[0.0]] * 3] * 2)


def test_penalties():
    logits = jnp.array([[[3.0, -4.0], [100.0, 0.0]]])
    np.testing.assert_allclose(losses.output_l2(logits, jnp.array([1])), [12.5])
    np.testing.assert_allclose(losses.out_of_range(logits, jnp.array([2])), [0.5 * 70.0**2])
    np.testing.assert_allclose(
        losses.out_of_range(logits, jnp.array([2]), limit=2.0), [0.5 * (1 + 4 + 98.0**2)]
    )


def test_f_smoothing_interpolates():
    value = losses.f_smoothing(jnp.array([-2.0]), jnp.array([5.0]), 0.1)
    np.testing.assert_allclose(value, [-0.9 * 2 - 0.1 * 5], rtol=1e-6)
    with pytest.raises(ValueError, match='between 0 and 1'):
        losses.f_smoothing(jnp.array([-2.0]), jnp.array([5.0]), 1.5)


def test_labels_of_another_shape_get_a_sentence():
    with pytest.raises(ValueError, match='labels must be'):
        losses.cross_entropy(jnp.zeros((2, 3, 4)), jnp.zeros((2, 4), jnp.int32), jnp.array([3, 3]))


def test_chain_trainings_second_branch():
    # xent_regularize: numerator occupancies are the soft labels of another output layer.
    rng = np.random.default_rng(0)
    x, other = jnp.asarray(rng.normal(size=(2, 1, 4, 3)), jnp.float32)
    lengths = jnp.array([3])
    fsa = Fsa([0, 0, 1, 1], [0, 1, 1, 0], [0, 1, 2, 0], np.zeros(4), np.zeros(2), np.zeros(2))
    loop = Fsa(np.zeros(3), np.zeros(3), range(3), np.zeros(3), [0.0], [0.0])

    packed = ops.pack_batch([fsa]), ops.pack(loop)

    def loss(x, other):
        out = losses.lf_mmi(x, lengths, *packed)
        branch = losses.cross_entropy(other, out.occupancy, lengths)
        return (-out.value + 0.1 * branch).sum()

    own, branch = jax.grad(loss, argnums=(0, 1))(x, other)
    _, gamma = oracles.forward_backward(np.asarray(x[0, :3]), fsa)
    want = 0.1 * (np.asarray(jax.nn.softmax(other[0, :3])) - gamma)
    np.testing.assert_allclose(branch[0, :3], want, atol=1e-6)
    plain = jax.grad(lambda x: -losses.lf_mmi(x, lengths, *packed).value.sum())
    np.testing.assert_array_equal(own, plain(x))  # nothing flows back through the soft labels
    assert not np.any(branch[0, 3:])


def test_f_smoothing_mixes_the_gradients():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 3)), jnp.float32)
    labels, lengths = jnp.array([[0, 1, 1, 2]]), jnp.array([4])
    loop = ops.pack(Fsa(np.zeros(3), np.zeros(3), range(3), np.zeros(3), [0.0], [0.0]))

    def smoothed(x, weight):
        value = losses.smbr(x, lengths, labels, loop).value
        return losses.f_smoothing(value, losses.cross_entropy(x, labels, lengths), weight).sum()

    at = [np.asarray(jax.grad(smoothed)(x, weight)) for weight in (0.0, 0.25, 1.0)]
    np.testing.assert_allclose(at[1], 0.75 * at[0] + 0.25 * at[2], atol=1e-6)


def test_attach_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match='attach takes'):
        losses.attach(jnp.zeros((2, 3, 4)), jnp.zeros(2), jnp.zeros((2, 3, 5)))


@pytest.mark.parametrize('wrong', [-1, 4])
def test_a_length_outside_the_batch_is_the_trouble_of_one_utterance(wrong):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    labels = jnp.ones((2, 3), jnp.int32)
    for loss in (
        lambda x, n: losses.cross_entropy(x, labels, n),
        lambda x, n: losses.cross_entropy(x, jax.nn.one_hot(labels, 4), n),
        lambda x, n: losses.output_l2(x, n),
        lambda x, n: losses.out_of_range(x, n, limit=0.1),
    ):
        value, pull = jax.vjp(lambda x, loss=loss: loss(x, jnp.array([3, wrong])), logits)
        want, pull_right = jax.vjp(lambda x, loss=loss: loss(x, jnp.array([3, 3])), logits)
        assert np.isnan(value[1])
        assert value[0] == want[0]
        np.testing.assert_array_equal(pull(value)[0][0], pull_right(want)[0][0])
        assert not np.any(pull(value)[0][1])


def test_lists_are_arrays_and_other_kinds_get_a_sentence():
    logits, labels, lengths = jnp.zeros((1, 2, 3)), [[0, -1]], [2]
    np.testing.assert_allclose(losses.cross_entropy(logits, labels, lengths), [np.log(3)])
    np.testing.assert_array_equal(losses.output_l2(logits, lengths), [0.0])
    with pytest.raises(ValueError, match=r'labels \[B, T\] must be integers; got float32'):
        losses.cross_entropy(logits, jnp.zeros((1, 2)), lengths)
    with pytest.raises(ValueError, match='lengths must be integers'):
        losses.output_l2(logits, [2.0])
    with pytest.raises(ValueError, match=r'lengths must be \(1,\)'):
        losses.output_l2(logits, [[2]])


def test_the_weight_of_f_smoothing_may_be_traced():
    value, loss = jnp.array([3.0]), jnp.array([1.0])
    smooth = jax.value_and_grad(lambda w: losses.f_smoothing(value, loss, w).sum())
    np.testing.assert_allclose(jax.jit(smooth)(0.25), (2.0, -4.0))
