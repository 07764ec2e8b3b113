"""sMBR and MPE against path enumeration; accuracies against counting by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from backends import BACKENDS

from seqtrain import losses, ops
from seqtrain.losses import Reason


@pytest.fixture
def setting():
    rng = np.random.default_rng(4)
    fsas = [oracles.hmm_fsa(rng, 4, 10, 3) for _ in range(3)]
    logits = rng.normal(size=(3, 5, 3)).astype(np.float32)
    labels = rng.integers(0, 3, size=(3, 5)).astype(np.int32)
    return fsas, logits, labels, np.array([5, 4, 2], np.int32)


def run(criterion, logits):
    def total(x):
        out = criterion(x)
        return out.value.sum(), out

    (_, out), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))
    return out, np.asarray(gradient)


def by_hand(labels, classes, silence=(), one_class=True, silence_error=1.0):
    """Frame accuracies by the definition, one entry at a time."""
    accuracy = np.zeros((*labels.shape, len(classes)))
    for (b, t), ref in np.ndenumerate(labels):
        for p in range(len(classes)):
            if ref >= 0 and p in silence and ref not in silence:
                accuracy[b, t, p] = 1 - silence_error
                continue
            if ref < 0 or (p in silence and not one_class):
                continue
            both_silent = p in silence and ref in silence
            one_silent = ref in silence and p not in silence
            accuracy[b, t, p] = both_silent or (classes[p] == classes[ref] and not one_silent)
    return accuracy


@pytest.mark.parametrize('one_class', [True, False])
@pytest.mark.parametrize('silence', [(), (0,), (0, 2)])
@pytest.mark.parametrize('silence_error', [1.0, 0.25, 0.0])
def test_frame_accuracy(one_class, silence, silence_error):
    labels = np.array([[0, 1, 2, 3, -1, 0]], np.int32)
    got = losses.frame_accuracy(
        jnp.asarray(labels),
        4,
        silence=silence,
        one_silence_class=one_class,
        max_silence_error=silence_error,
    )
    expected = by_hand(labels, [0, 1, 2, 3], silence, one_class, silence_error)
    np.testing.assert_array_equal(got, expected)


def test_a_label_of_another_network_earns_nothing():
    accuracy = losses.frame_accuracy(jnp.array([[3, 4, 400, -7, 0]]), 4)
    np.testing.assert_array_equal(accuracy.sum(-1), [[1, 0, 0, 0, 1]])


def test_per_segment_accuracy_counts_phones():
    labels = jnp.array([[0, 1, 1, 2, 2, 2]])  # phones a a a b b b (pdfs 0 and 1 are phone a)
    accuracy = losses.frame_accuracy(labels, 3, classes=[0, 0, 1], per_segment=True)
    along = np.take_along_axis(np.asarray(accuracy), np.asarray(labels)[:, :, None], 2)
    np.testing.assert_allclose(along.sum(), 2.0, rtol=1e-6)


def test_no_frames_have_no_segments():
    accuracy = losses.frame_accuracy(jnp.zeros((2, 0), int), 3, per_segment=True)
    assert accuracy.shape == (2, 0, 3)


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('kind', ['pdf', 'state', 'mpe', 'mpfe'])
def test_value_and_gradient_match_enumeration(setting, shared, kind):
    fsas, logits, labels, lengths = setting
    fsas = [fsas[0]] * 3 if shared else fsas
    graph = ops.pack(fsas[0]) if shared else ops.pack_batch(fsas)
    classes = [0, 1, 2] if kind == 'pdf' else [0, 1, 1]

    def criterion(x):
        if kind in ('pdf', 'state'):
            return losses.smbr(x, lengths, labels, graph, states=classes, acoustic_scale=0.5)
        return losses.mpe(
            x, lengths, labels, graph, classes, per_phone=kind == 'mpe', acoustic_scale=0.5
        )

    out, gradient = run(criterion, logits)
    for b, fsa in enumerate(fsas):
        n = lengths[b]
        accuracy = by_hand(labels[b : b + 1, :n], classes)[0]
        if kind == 'mpe':
            kinds = np.array(classes)[labels[b, :n]]
            edges = np.flatnonzero(np.r_[True, np.diff(kinds) != 0, True])
            for start, end in itertools.pairwise(edges):
                accuracy[start:end] /= end - start
        want, want_gradient = oracles.enumerate_accuracy(0.5 * logits[b, :n], fsa, accuracy)
        np.testing.assert_allclose(out.value[b], want, atol=1e-5)
        np.testing.assert_allclose(gradient[b, :n], 0.5 * want_gradient, atol=1e-5)
        assert not np.any(gradient[b, n:])


@pytest.mark.parametrize('name', ['smbr', 'mpe'])
@pytest.mark.parametrize('own', [True, False])
def test_a_boost_makes_paths_with_errors_likelier(setting, name, own):
    """E[A] and its derivatives over p ∝ exp(κ·score − b·A'), by enumeration."""
    fsas, logits, labels, lengths = setting
    classes = [0, 1, 2] if name == 'smbr' else [0, 1, 1]
    accuracy = by_hand(labels, classes)
    margin = accuracy if own else by_hand(labels, [0, 1, 1], (0,), silence_error=0.0)
    options = {'acoustic_scale': 0.5, 'boost': 0.7}
    if name == 'mpe':
        options |= {'phones': classes, 'per_phone': False}
    if not own:
        options['boost_accuracy'] = jnp.asarray(margin, jnp.float32)
    graphs = ops.pack_batch(fsas)
    criterion = getattr(losses, name)
    out, gradient = run(lambda x: criterion(x, lengths, labels, graphs, **options), logits)
    plain, _ = run(
        lambda x: criterion(x, lengths, labels, graphs, **(options | {'boost': 0.0})), logits
    )
    for b, fsa in enumerate(fsas):
        n = lengths[b]
        scores = 0.5 * logits[b, :n] - 0.7 * margin[b, :n]
        want, want_gradient = oracles.enumerate_accuracy(scores, fsa, accuracy[b, :n])
        np.testing.assert_allclose(out.value[b], want, atol=1e-5)
        np.testing.assert_allclose(gradient[b, :n], 0.5 * want_gradient, atol=1e-5)
    if own:
        assert np.all(np.asarray(out.value) < np.asarray(plain.value))


def test_rows_sum_to_zero_and_invalid_utterances_have_a_reason(setting):
    fsas, logits, labels, lengths = setting
    logits[1, 0, 0] = np.nan
    out, gradient = run(lambda x: losses.smbr(x, lengths, labels, ops.pack_batch(fsas)), logits)
    assert out.reason[1] == Reason.NON_FINITE
    assert not np.any(gradient[1])
    assert np.any(gradient[0])
    np.testing.assert_allclose(gradient.sum(-1), np.zeros((3, 5)), atol=1e-5)


@pytest.mark.parametrize('one_class', [True, False])
@pytest.mark.parametrize('name', ['smbr', 'mpe'])
def test_silence_and_priors_reach_the_criteria(setting, name, one_class):
    fsas, logits, labels, lengths = setting
    priors = np.log([0.5, 0.3, 0.2]).astype(np.float32)
    options = {
        'silence': (0,),
        'one_silence_class': one_class,
        'log_priors': priors,
        'acoustic_scale': 0.5,
    }
    if name == 'mpe':
        options |= {'phones': [0, 1, 1], 'per_phone': False}
    out, gradient = run(
        lambda x: getattr(losses, name)(x, lengths, labels, ops.pack_batch(fsas), **options), logits
    )
    assert np.all(out.valid)
    classes = [0, 1, 2] if name == 'smbr' else [0, 1, 1]
    for b, fsa in enumerate(fsas):
        n = lengths[b]
        accuracy = by_hand(labels[b : b + 1, :n], classes, (0,), one_class)[0]
        scores = 0.5 * (logits[b, :n] - priors)
        want, want_gradient = oracles.enumerate_accuracy(scores, fsa, accuracy)
        np.testing.assert_allclose(out.value[b], want, atol=1e-5)
        np.testing.assert_allclose(gradient[b, :n], 0.5 * want_gradient, atol=1e-5)


@pytest.mark.parametrize('name', ['smbr', 'mpe'])
def test_the_leak_reaches_the_criteria(setting, name):
    # E[A] = Σ γ accuracy, with the occupancies of the leaky graph.
    fsas, logits, labels, lengths = setting
    phones = {'phones': [0, 1, 1], 'per_phone': False} if name == 'mpe' else {}
    criterion = getattr(losses, name)
    out, _ = run(
        lambda x: criterion(x, lengths, labels, ops.pack(fsas[0]), leaky=0.1, **phones), logits
    )
    classes = phones.get('phones', [0, 1, 2])
    for b, n in enumerate(lengths):
        _, gamma = oracles.forward_backward(logits[b, :n], fsas[0], leaky=0.1)
        want = (gamma * by_hand(labels[b : b + 1, :n], classes)[0]).sum()
        np.testing.assert_allclose(out.value[b], want, rtol=1e-5)


def test_bad_input_gets_a_sentence():
    labels = jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(ValueError, match='one class for each'):
        losses.frame_accuracy(labels, 3, classes=[0, 1])
    with pytest.raises(ValueError, match='outside'):
        losses.frame_accuracy(labels, 3, silence=[3])
    with pytest.raises(ValueError, match='silence is a sequence'):
        losses.frame_accuracy(labels, 3, silence=0)
    with pytest.raises(ValueError, match='labels must be integers; got float32'):
        losses.frame_accuracy(labels.astype(jnp.float32), 3)
    with pytest.raises(ValueError, match=r'labels must be \[B, T\]'):
        losses.frame_accuracy(labels[0], 3)
    with pytest.raises(ValueError, match='max_silence_error must lie between 0 and 1'):
        losses.frame_accuracy(labels, 3, silence=[0], max_silence_error=2)


@pytest.mark.parametrize('name', ['smbr', 'mpe'])
def test_logits_that_are_none_get_a_sentence(setting, name):
    fsas, logits, labels, lengths = setting
    den, more = ops.pack(fsas[0]), [range(3)] if name == 'mpe' else []
    for wrong, message in (
        (logits.tolist(), 'logits must be an array; got list'),
        (logits[0], r'logits must be \[B, T, P\]'),
        (jnp.asarray(logits, jnp.float16), 'logits must be float32'),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(losses, name)(wrong, lengths, labels, den, *more)


@pytest.mark.parametrize('name', ['smbr', 'mpe'])
def test_labels_and_denominator_in_the_wrong_order_get_a_sentence(setting, name):
    fsas, logits, labels, lengths = setting
    phones = {'phones': range(logits.shape[2])} if name == 'mpe' else {}
    with pytest.raises(ValueError, match='labels must be integers; got Graph'):
        getattr(losses, name)(logits, lengths, ops.pack(fsas[0]), labels, **phones)


@pytest.mark.parametrize('name', ['smbr', 'mpe'])
@pytest.mark.parametrize(
    'strict', [jax.checking_leaks, lambda: jax.numpy_rank_promotion('raise')], ids=['leaks', 'rank']
)
def test_the_checks_of_jax_find_nothing(setting, name, strict):
    fsas, logits, labels, lengths = setting
    den, options = ops.pack(fsas[0]), {'phones': range(3)} if name == 'mpe' else {}

    def total(x):
        criterion = getattr(losses, name)
        return criterion(x, lengths, labels, den, backend='xla', **options).value.sum()

    jax.clear_caches()
    with strict():
        assert np.isfinite(jax.jit(jax.grad(total))(logits)).all()


@pytest.mark.parametrize('shape', [(1, 5), (5,), (3, 1), (3, 6)])
@pytest.mark.parametrize('name', ['smbr', 'mpe'])
def test_labels_are_not_stretched(setting, name, shape):
    fsas, logits, _, lengths = setting
    more = ([0, 1, 2],) if name == 'mpe' else ()
    with pytest.raises(ValueError, match='labels'):
        getattr(losses, name)(
            jnp.asarray(logits), lengths, np.zeros(shape, np.int32), ops.pack(fsas[0]), *more
        )


@pytest.mark.parametrize('phones', [[-1, 0, 1], ['a', 'b', 'c'], [0.5, 1.5, 2.5]])
def test_phones_may_have_any_names(setting, phones):
    fsas, logits, labels, lengths = setting
    labels[:, 2:] = 0  # the last phone would run on into padding
    den = ops.pack(fsas[0])
    got, want = (
        losses.mpe(jnp.asarray(logits), lengths, labels, den, names)
        for names in (phones, [0, 1, 2])
    )
    np.testing.assert_array_equal(got.value, want.value)


@pytest.mark.parametrize('silence', [[True, False, False], [0.5]])
def test_silence_is_pdf_numbers(silence):
    with pytest.raises(ValueError, match='numbers of pdfs'):
        losses.frame_accuracy(jnp.zeros((1, 2), jnp.int32), 3, silence=np.array(silence))


@pytest.mark.parametrize('backend', BACKENDS)
def test_accuracies_that_overflow_are_the_trouble_of_one_utterance(setting, backend):
    fsas, logits, _, lengths = setting
    accuracy = np.zeros_like(logits)
    accuracy[0, :, 0] = 3e38
    accuracy[1:, :, 0] = 1.0
    out, gradient = run(
        lambda x: losses.bayes_risk(
            x, lengths, ops.pack(fsas[0]), jnp.asarray(accuracy), backend=backend
        ),
        logits,
    )
    assert np.isfinite(gradient).all()
    assert np.isfinite(out.value).all()
    assert out.valid[1:].all()
    if not out.valid[0]:
        assert not gradient[0].any()
