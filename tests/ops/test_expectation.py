"""Expected accuracy and its gradient against path enumeration, on every backend present."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import oracles
import pytest
from backends import BACKENDS

from seqtrain import ops
from seqtrain.fsa import Fsa

FRAMES, PDFS = 5, 3


def batch_of(seed: int, scale: float, make):
    rng = np.random.default_rng(seed)
    fsas = [make(rng, 4, 9, PDFS) for _ in range(4)]
    scores = (scale * rng.normal(size=(4, FRAMES, PDFS))).astype(np.float32)
    accuracy = rng.normal(size=(4, FRAMES, PDFS)).astype(np.float32)
    return fsas, scores, accuracy, np.array([FRAMES, 3, 1, 0], np.int32)


def value_and_gradient(scores, lengths, graph, accuracy, **options):
    def total(s):
        value, log_z = ops.expected_accuracy(s, lengths, graph, accuracy, **options)
        return value.sum(), (value, log_z)

    (_, out), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(scores))
    return *out, np.asarray(gradient)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('scale', [1.0, 20.0, 200.0])
@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('make', [oracles.random_fsa, oracles.hmm_fsa])
@pytest.mark.parametrize('seed', [0, 1])
def test_matches_enumeration(backend, scale, shared, make, seed):
    fsas, scores, accuracy, lengths = batch_of(seed, scale, make)
    fsas = [fsas[0]] * 4 if shared else fsas
    graph = ops.pack(fsas[0]) if shared else ops.pack_batch(fsas, 4, 9)
    value, log_z, gradient = value_and_gradient(scores, lengths, graph, accuracy, backend=backend)
    want_z = ops.log_partition(jnp.asarray(scores), lengths, graph, backend=backend)
    np.testing.assert_allclose(log_z, want_z, rtol=1e-5)
    for b, fsa in enumerate(fsas):
        n = lengths[b]
        want, want_gradient = oracles.enumerate_accuracy(scores[b, :n], fsa, accuracy[b, :n])
        np.testing.assert_allclose(value[b], want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gradient[b, :n], want_gradient, atol=1e-5)
        assert not np.any(gradient[b, n:])


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('leaky', [0.0, 0.1])
def test_one_score_out_of_range_leaves_the_rest_uncertain(backend, leaky):
    # The log domain must be right where many paths still count, not only where one is left.
    fsas, scores, accuracy, lengths = batch_of(5, 1.0, oracles.random_fsa)
    graph = ops.pack_batch(fsas, 4, 9)
    options = {'leaky': leaky, 'backend': backend}
    low, lower = scores.copy(), scores.copy()
    low[:, 0, 0], lower[:, 0, 0] = -60.0, -300.0  # the same but for rounding; one is redone
    want = value_and_gradient(low, lengths, graph, accuracy, **options)
    got = value_and_gradient(lower, lengths, graph, accuracy, **options)
    some = np.isfinite(got[1]) & (lengths > 2) & (np.abs(got[1] - want[1]) < 1)
    assert some.any()
    np.testing.assert_allclose(got[0][some], want[0][some], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[2][some], want[2][some], atol=1e-5)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('make', [oracles.random_fsa, oracles.hmm_fsa])
def test_leaky_value_and_gradient_agree(backend, make):
    # The value against occupancies, the gradient against differences of the value.
    fsas, scores, accuracy, _ = batch_of(2, 1.0, make)
    lengths = np.array([5, 3, 1, 4], np.int32)
    graph = ops.pack(fsas[0])
    options = {'leaky': 0.1, 'backend': backend}
    value, _, gradient = value_and_gradient(scores, lengths, graph, accuracy, **options)
    gamma = ops.occupancies(jnp.asarray(scores), lengths, graph, **options)[1]
    np.testing.assert_allclose(value, (gamma * accuracy).sum((1, 2)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient.sum(-1), np.zeros((4, FRAMES)), atol=1e-5)

    def total(s):
        return ops.expected_accuracy(s, lengths, graph, accuracy, **options)[0].sum()

    jax.test_util.check_grads(
        total, (jnp.asarray(scores),), order=1, modes=['rev'], eps=1e-2, atol=2e-2, rtol=2e-2
    )


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('shared', [False, True])
def test_leaky_moments_in_the_log_domain(backend, shared):
    # A pdf that single precision cannot hold beside the others sends all utterances there.
    fsas, scores, accuracy, lengths = batch_of(2, 1.0, oracles.random_fsa)
    scores[:, 0, 0] -= 300
    fsas = [fsas[0]] * 4 if shared else fsas
    graph = ops.pack(fsas[0]) if shared else ops.pack_batch(fsas, 4, 9)
    value, _, gradient = value_and_gradient(
        scores, lengths, graph, accuracy, leaky=0.1, backend=backend
    )
    for b, n in enumerate(lengths):

        def expected(s, b=b, n=n):
            return (oracles.forward_backward(s, fsas[b], 0.1)[1] * accuracy[b, :n]).sum()

        own = scores[b, :n].astype(np.float64)
        np.testing.assert_allclose(value[b], expected(own), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gradient[b, :n], oracles.slope(expected, own), atol=1e-5)


@pytest.mark.parametrize('backend', BACKENDS)
def test_long_utterances_lose_no_digits(backend):
    # Every frame is independent in this graph, so the gradient has a closed form.
    rng = np.random.default_rng(0)
    fsa = Fsa(np.zeros(PDFS), np.zeros(PDFS), range(PDFS), np.zeros(PDFS), [0.0], [0.0])
    scores = rng.normal(size=(1, 900, PDFS)).astype(np.float32)
    accuracy = 1 + rng.normal(size=(1, 900, PDFS)).astype(np.float32)
    value, _, gradient = value_and_gradient(
        scores, np.array([900]), ops.pack(fsa), accuracy, backend=backend
    )
    prob = np.exp(scores.astype(np.float64))
    prob /= prob.sum(-1, keepdims=True)
    mean = (prob * accuracy).sum(-1, keepdims=True)
    np.testing.assert_allclose(value[0], mean.sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, prob * (accuracy - mean), atol=1e-5)


@pytest.mark.parametrize('backend', ops.backends())
@pytest.mark.parametrize('own_pdf', [True, False])
def test_moments_are_centred(backend, own_pdf):
    # Every state leads to every other, so that frames are independent and the gradient has a closed
    # form. 3,000 frames earn 6,000 in all, of which single precision holds 5e-4.
    frames, rng = 3000, np.random.default_rng(0)
    src, dst, pdf = (x.ravel() for x in np.indices((PDFS, PDFS, 1 if own_pdf else PDFS)))
    ends = 1e-3 * np.arange(PDFS)  # of different futures, or the states would be merged
    fsa = Fsa(src, dst, dst if own_pdf else pdf, np.zeros(len(src)), ends, ends)
    scores = rng.normal(size=(1, frames, PDFS)).astype(np.float32)
    accuracy = 2 + rng.normal(size=(1, frames, PDFS)).astype(np.float32)
    value, _, gradient = value_and_gradient(
        scores, np.array([frames]), ops.pack(fsa), accuracy, backend=backend
    )
    total = scores.astype(np.float64)
    total[0, -1] += fsa.final if own_pdf else 0.0
    prob = np.exp(total)
    prob /= prob.sum(-1, keepdims=True)
    mean = (prob * accuracy).sum(-1, keepdims=True)
    np.testing.assert_allclose(value[0], mean.sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, prob * (accuracy - mean), atol=1e-5)


@pytest.mark.parametrize('backend', BACKENDS)
def test_one_bad_utterance_never_touches_another(backend):
    _, scores, accuracy, _ = batch_of(3, 1.0, oracles.random_fsa)
    loop = Fsa(np.zeros(PDFS), np.zeros(PDFS), range(PDFS), np.zeros(PDFS), [0.0], [0.0])
    short = Fsa([0, 1], [1, 2], [0, 1], [0, 0], [0, *[-np.inf] * 2], [*[-np.inf] * 2, 0])
    graph = ops.pack_batch([loop, short, loop, loop])
    lengths = np.array([5, 1, 4, 3], np.int32)
    scores[2, 0, 1] = np.nan
    accuracy[3, 0, 0] = np.inf
    value, log_z, gradient = map(
        np.asarray, value_and_gradient(scores, lengths, graph, accuracy, backend=backend)
    )
    assert np.isfinite(value[0])
    assert np.any(gradient[0])
    assert value[1] == 0
    assert log_z[1] == -np.inf
    assert np.isnan(value[2:]).all()
    assert not np.any(gradient[1:])


def test_bad_input_gets_a_sentence():
    graph = ops.pack(Fsa([0], [0], [2], [0.0], [0.0], [0.0]))
    scores = jnp.zeros((2, 3, 4))
    with pytest.raises(ValueError, match='accuracy must be float32 of shape'):
        ops.expected_accuracy(scores, jnp.array([3, 3]), graph, jnp.zeros((2, 3)))
    with pytest.raises(NotImplementedError, match='once'):
        jax.jacrev(
            jax.grad(lambda s: ops.expected_accuracy(s, jnp.array([3, 3]), graph, s)[0].sum())
        )(scores)
