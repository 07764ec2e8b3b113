"""Outer derivatives against enumeration and finite differences."""

import dataclasses

import jax
import numpy as np
import pytest

from seqtrain import losses, ops
from seqtrain.lattices import LatticeError, LatticeGenerator
from seqtrain.lattices.operations import union
from seqtrain.lattices.outer import expected_accuracy, mmi, shuffled_frames


@pytest.fixture
def pair(graph, scores):
    generator = LatticeGenerator(graph, beam=1e3, lattice_beam=4.0, acoustic_scale=0.7)
    return generator.pair(scores(5), 'x y')


def difference(value, logits, step=1e-3):
    """∂value/∂logits by central differences."""
    result = np.zeros(logits.shape)
    for index in np.ndindex(*logits.shape):
        moved = [logits.astype(np.float32).copy() for _ in range(2)]
        moved[0][index] += step
        moved[1][index] -= step
        result[index] = (value(moved[0]) - value(moved[1])) / (2 * step)
    return result


def random_accuracy(graph, frames=5):
    return np.random.default_rng(5).random((frames, graph.num_pdfs)).astype(np.float32)


def test_mmi(pair, graph, scores):
    logits = scores(5, seed=1)
    outer = mmi(pair.numerator, pair.denominator, logits)
    assert outer.value < 0
    np.testing.assert_allclose(outer.derivative.sum(axis=1), 0, atol=1e-6)
    expected = difference(lambda a: mmi(pair.numerator, pair.denominator, a).value, logits)
    np.testing.assert_allclose(outer.derivative, expected, atol=2e-3)


def test_boosted_mmi(pair, graph, scores):
    logits, accuracy = scores(5, seed=1), random_accuracy(graph)

    def value(a):
        return mmi(pair.numerator, pair.denominator, a, boost=0.8, accuracy=accuracy).value

    outer = mmi(pair.numerator, pair.denominator, logits, boost=0.8, accuracy=accuracy)
    np.testing.assert_allclose(outer.derivative, difference(value, logits), atol=2e-3)
    # exp(-b A) makes every rival weaker.
    assert outer.value > mmi(pair.numerator, pair.denominator, logits).value
    with pytest.raises(ValueError, match='needs accuracies'):
        mmi(pair.numerator, pair.denominator, logits, boost=0.1)


def test_expected_accuracy_by_enumeration(pair, graph, scores, lattice_paths):
    logits, accuracy = scores(5, seed=1), random_accuracy(graph)
    paths = lattice_paths(pair.denominator.rescore(logits))
    weights = np.array([weight for _, _, weight in paths])
    share = np.exp(weights - np.logaddexp.reduce(weights))
    gains = np.array([accuracy[np.arange(5), list(pdfs)].sum() for pdfs, _, _ in paths])
    outer = expected_accuracy(pair.denominator, logits, accuracy)
    assert outer.value == pytest.approx((share * gains).sum(), abs=1e-5)
    derivative = np.zeros(logits.shape)
    for (pdfs, _, _), p, gain in zip(paths, share, gains, strict=True):
        derivative[np.arange(5), list(pdfs)] += 0.7 * p * (gain - (share * gains).sum())
    np.testing.assert_allclose(outer.derivative, derivative, atol=1e-5)
    np.testing.assert_allclose(outer.derivative.sum(axis=1), 0, atol=1e-5)


def test_expected_accuracy_by_differences(pair, graph, scores):
    logits, accuracy = scores(5, seed=2), random_accuracy(graph)
    outer = expected_accuracy(pair.denominator, logits, accuracy)
    expected = difference(lambda a: expected_accuracy(pair.denominator, a, accuracy).value, logits)
    np.testing.assert_allclose(outer.derivative, expected, atol=2e-3)


def test_priors_are_taken_off(pair, graph, scores):
    logits = scores(5, seed=1)
    priors = np.linspace(-2, 0, graph.num_pdfs).astype(np.float32)
    with_priors = mmi(pair.numerator, pair.denominator, logits, priors=priors)
    plain = mmi(pair.numerator, pair.denominator, logits - priors)
    np.testing.assert_allclose(with_priors.derivative, plain.derivative, atol=1e-6)
    np.testing.assert_array_equal(with_priors.logits, logits)


def test_correction_follows_a_single_logit(pair, scores):
    # Without terms across frames it is exact to first order for a move of one logit.
    logits = scores(5, seed=1)
    outer = mmi(pair.numerator, pair.denominator, logits)
    t, k = np.unravel_index(np.argmax(np.abs(outer.curvature)), logits.shape)
    moved = logits.copy()
    moved[t, k] += 0.2
    exact = mmi(pair.numerator, pair.denominator, moved).derivative[t, k]
    stale, corrected = outer.derivative[t, k], outer.corrected(moved)[t, k]
    assert abs(exact - stale) > 0.005
    assert abs(exact - corrected) < 0.25 * abs(exact - stale)
    with pytest.raises(ValueError, match='shape'):
        outer.corrected(moved[:2])
    accuracy = np.zeros_like(logits)
    with pytest.raises(ValueError, match='only MMI'):
        expected_accuracy(pair.denominator, logits, accuracy).corrected(moved)


def test_disjoint_frames_are_dropped(graph, scores):
    generator = LatticeGenerator(graph, beam=1e3, lattice_beam=0.5)
    matrix = scores(5)
    numerator = generator.reference(matrix, 'z x')
    rival = generator.reference(matrix, 'hom')
    kept = mmi(numerator, rival, matrix).derivative
    dropped = mmi(numerator, rival, matrix, drop_below=0.0)
    zero = (dropped.derivative == 0).all(axis=1)
    assert zero.any()
    assert not dropped.curvature[zero].any()
    np.testing.assert_array_equal(dropped.derivative[~zero], kept[~zero])


@pytest.mark.parametrize('drop_below', [0.05, 0.3, None])
def test_the_device_drops_the_same_frames(pair, scores, drop_below):
    logits = 5 * scores(5, seed=3)
    num, den = (
        ops.pack_batch([lattice.to_fsa()], device=jax.devices()[0])
        for lattice in (pair.numerator, pair.denominator)
    )
    _, gradient = on_device(
        lambda a, n: losses.lf_mmi(a, n, num, den, acoustic_scale=0.7, drop_below=drop_below),
        logits,
    )
    host = mmi(pair.numerator, pair.denominator, logits, drop_below=drop_below)
    np.testing.assert_allclose(host.derivative, gradient, atol=1e-5)
    dropped = (host.derivative == 0).all(axis=1)
    np.testing.assert_array_equal(dropped, (gradient == 0).all(axis=1))
    assert dropped.any() == (drop_below is not None)
    assert not dropped.all()


def test_lattices_of_two_acoustic_scales_are_refused(pair, scores):
    other = dataclasses.replace(pair.numerator, acoustic_scale=1.0)
    with pytest.raises(LatticeError, match=r'scales 1 and 0\.7: give both the same'):
        mmi(other, pair.denominator, scores(5))
    with pytest.raises(LatticeError, match=r'scales 0\.7 and 1'):
        union(pair.denominator, other)


def test_an_arc_that_is_impossible_changes_nothing(pair, graph, scores):
    logits, accuracy = scores(5, seed=3), random_accuracy(graph)
    lattice = pair.denominator
    barred = np.arange(lattice.num_arcs) % 7 == 3
    weights = np.where(barred, -np.inf, lattice.graph).astype(np.float32)
    found = expected_accuracy(dataclasses.replace(lattice, graph=weights), logits, accuracy)
    expected = expected_accuracy(lattice.select(~barred), logits, accuracy)
    assert found.value == expected.value
    np.testing.assert_array_equal(found.derivative, expected.derivative)


def test_non_finite_logits_are_refused(pair, scores):
    logits = scores(5)
    logits[0, 0] = np.nan
    with pytest.raises(LatticeError, match='Non-finite'):
        mmi(pair.numerator, pair.denominator, logits)


def on_device(criterion, logits):
    """Value and gradient of a criterion of one utterance in `seqtrain.losses`."""
    lengths = np.array([len(logits)], np.int32)
    value, gradient = jax.value_and_grad(lambda a: criterion(a, lengths).value.sum())(logits[None])
    return float(value), np.asarray(gradient[0])


def test_the_device_agrees(pair, graph, scores):
    logits, accuracy = scores(5, seed=3), random_accuracy(graph)
    priors = np.linspace(-2, 0, graph.num_pdfs).astype(np.float32)
    num, den = (
        ops.pack_batch([lattice.to_fsa()], device=jax.devices()[0])
        for lattice in (pair.numerator, pair.denominator)
    )
    options = {'acoustic_scale': 0.7, 'log_priors': priors}
    boosted = {'boost': 0.5, 'accuracy': accuracy[None]}
    value, gradient = on_device(
        lambda a, n: losses.lf_mmi(a, n, num, den, **options, **boosted), logits
    )
    host = mmi(
        pair.numerator, pair.denominator, logits, priors=priors, boost=0.5, accuracy=accuracy
    )
    assert host.value == pytest.approx(value, abs=1e-4)
    np.testing.assert_allclose(host.derivative, gradient, atol=1e-5)
    value, gradient = on_device(
        lambda a, n: losses.bayes_risk(a, n, den, accuracy[None], **options), logits
    )
    host = expected_accuracy(pair.denominator, logits, accuracy, priors=priors)
    assert host.value == pytest.approx(value, abs=1e-4)
    np.testing.assert_allclose(host.derivative, gradient, atol=1e-5)


def test_frames_are_shuffled_without_loss():
    batches = list(shuffled_frames([3, 0, 5], 4, np.random.default_rng(0)))
    assert [len(u) for u, _ in batches] == [4, 4]
    pairs = [(int(u), int(t)) for us, ts in batches for u, t in zip(us, ts, strict=True)]
    assert sorted(pairs) == [(0, t) for t in range(3)] + [(2, t) for t in range(5)]
    assert pairs != sorted(pairs)
    assert list(shuffled_frames([], 4, np.random.default_rng(0))) == []
