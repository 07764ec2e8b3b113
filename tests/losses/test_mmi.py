"""lf_mmi: value, gradient, validity."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import oracles
import pytest
from backends import BACKENDS

from seqtrain import losses, ops
from seqtrain.fsa import Fsa
from seqtrain.losses import Reason

INF = np.inf


def chain(pdfs) -> Fsa:
    """A left-to-right chain with self loops; log-weights make it a sub-probability."""
    n = len(pdfs)
    src, dst = [*range(n), *range(1, n + 1)], [*range(1, n + 1), *range(1, n + 1)]
    first = np.where(np.arange(n + 1) == 0, 0.0, -INF)
    return Fsa(src, dst, [*pdfs, *pdfs], np.log(np.full(2 * n, 0.5)), first, first[::-1])


def loop(num_pdfs: int) -> Fsa:
    """Every sequence of pdfs."""
    zeros = np.zeros(num_pdfs)
    return Fsa(zeros, zeros, range(num_pdfs), zeros, [0.0], [0.0])


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    numerators = [chain([0, 1]), chain([2, 1, 0]), chain([1])]
    return numerators, rng.normal(size=(3, 5, 3)).astype(np.float32), np.array([5, 4, 3], np.int32)


@pytest.mark.parametrize('scale', [1.0, 0.3])
def test_value_and_gradient_match_the_oracle(batch, scale):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))

    def total(x):
        out = losses.lf_mmi(x, lengths, num, den, acoustic_scale=scale, denominator_scale=0.9)
        return out.value.sum(), out

    (_, out), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))
    for b, fsa in enumerate(numerators):
        n = lengths[b]
        num_z, num_gamma = oracles.forward_backward(scale * logits[b, :n], fsa)
        den_z, den_gamma = oracles.forward_backward(scale * logits[b, :n], loop(3))
        np.testing.assert_allclose(out.value[b], num_z - 0.9 * den_z, rtol=1e-5, atol=1e-5)
        want = scale * (num_gamma - 0.9 * den_gamma)
        np.testing.assert_allclose(gradient[b, :n], want, atol=1e-5)
        assert not np.any(gradient[b, n:])
    assert np.all(out.valid)


def test_rows_sum_to_zero_and_a_matched_pair_is_not_positive(batch):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))

    def total(x):
        return losses.lf_mmi(x, lengths, num, den).value.sum()

    gradient = jax.grad(total)(jnp.asarray(logits))
    np.testing.assert_allclose(gradient.sum(-1), np.zeros((3, 5)), atol=1e-5)
    assert np.all(losses.lf_mmi(jnp.asarray(logits), lengths, num, den).value <= 0)


def test_infeasible_utterances_have_a_reason_and_no_gradient(batch):
    numerators, logits, lengths = batch
    exact = Fsa([0, 1], [1, 2], [0, 0], [0, 0], [0, -INF, -INF], [-INF, -INF, 0])
    fsas = [numerators[0], chain([0] * 7), exact, numerators[2], numerators[2]]
    num, den = ops.pack_batch(fsas), ops.pack(loop(3))
    logits = np.concatenate([logits, logits[:2]])
    logits[3, 0, 0] = np.nan
    lengths = np.array([5, 4, 3, 3, 3], np.int32)

    def total(x):
        out = losses.lf_mmi(x, lengths, num, den)
        return out.value.sum(), out

    (value, out), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))
    assert out.reason.tolist() == [
        Reason.OK,
        Reason.TOO_SHORT,
        Reason.NO_PATH,
        Reason.NON_FINITE,
        Reason.OK,
    ]
    assert out.short_by.tolist() == [0, 3, 0, 0, 0]
    assert out.valid.tolist() == [True, False, False, False, True]
    assert np.isfinite(value)
    assert not np.any(gradient[1:4])
    assert np.any(gradient[0])
    assert np.any(gradient[4])
    np.testing.assert_array_equal(out.value[1:4], 0)
    # An utterance that the denominator alone has no path for: its numerator teaches nothing, too.
    one = losses.lf_mmi(jnp.asarray(logits[:1]), [5], ops.pack_batch(fsas[:1]), ops.pack(exact))
    assert one.reason.tolist() == [Reason.NO_PATH]
    assert not np.any(one.occupancy)


def test_finite_differences(batch):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))

    def total(x):
        return losses.lf_mmi(x, lengths, num, den, leaky=0.1).value.sum()

    jax.test_util.check_grads(
        total, (jnp.asarray(logits),), order=1, modes=['rev'], eps=1e-2, atol=2e-2, rtol=2e-2
    )


def test_boosted_denominator_matches_enumeration(batch):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))
    labels = jnp.array([[0, 0, 1, 1, 1], [2, 1, 1, 0, -1], [1, 1, 1, -1, -1]])
    accuracy = losses.frame_accuracy(labels, 3)
    out = losses.lf_mmi(jnp.asarray(logits), lengths, num, den, boost=0.7, accuracy=accuracy)
    for b in range(3):
        n = lengths[b]
        found = oracles.paths(logits[b, :n], loop(3))
        weights = [
            p.log_weight - 0.7 * sum(int(a == labels[b, t]) for t, a in enumerate(p.arcs))
            for p in found
        ]
        np.testing.assert_allclose(out.denominator[b], oracles.logsumexp(weights), rtol=1e-5)
    with pytest.raises(ValueError, match='frame_accuracy'):
        losses.lf_mmi(jnp.asarray(logits), lengths, num, den, boost=0.1)


def test_frames_without_overlap_are_dropped(batch):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))
    logits[0, 2] = [-60.0, -60.0, 0.0]  # the denominator is in pdf 2, the numerator never is

    def gradient(drop_below):
        def total(x):
            return losses.lf_mmi(x, lengths, num, den, drop_below=drop_below).value.sum()

        return np.asarray(jax.grad(total)(jnp.asarray(logits)))

    kept, dropped = gradient(None), gradient(1e-4)
    assert np.any(kept[0, 2])
    assert not np.any(dropped[0, 2])
    others = np.ones((3, 5), bool)
    others[0, 2] = False
    np.testing.assert_array_equal(kept[others], dropped[others])


def test_priors_and_numerator_occupancies(batch):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))
    priors = np.log([0.5, 0.3, 0.2]).astype(np.float32)
    out = losses.lf_mmi(jnp.asarray(logits), lengths, num, den, log_priors=priors)
    want = losses.lf_mmi(jnp.asarray(logits - priors), lengths, num, den)
    np.testing.assert_allclose(out.value, want.value, rtol=1e-6)
    np.testing.assert_allclose(out.occupancy.sum((1, 2)), lengths, rtol=1e-5)


def test_what_does_not_fit_gets_a_sentence(batch):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))
    for options, message in (
        ({'log_priors': np.zeros(1, np.float32)}, 'log_priors must be'),
        ({'boost': 0.1, 'accuracy': np.zeros((3, 5, 1), np.float32)}, 'accuracy must be'),
        ({'leaky': -0.1}, 'leaky'),
        ({'backend': 'abacus'}, 'backend'),
    ):
        with pytest.raises(ValueError, match=message):
            losses.lf_mmi(jnp.asarray(logits), lengths, num, den, **options)


def test_graphs_are_packed_and_lengths_are_integers(batch):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))
    with pytest.raises(ValueError, match=r'ops\.pack or ops\.pack_batch; got Fsa'):
        losses.lf_mmi(jnp.asarray(logits), lengths, num, loop(3))
    with pytest.raises(ValueError, match='lengths must be integers'):
        losses.lf_mmi(jnp.asarray(logits), [5.0, 4.0, 3.0], num, den)
    listed = losses.lf_mmi(jnp.asarray(logits), lengths.tolist(), num, den)
    want = losses.lf_mmi(jnp.asarray(logits), lengths, num, den)
    np.testing.assert_array_equal(listed.value, want.value)


@pytest.mark.parametrize(
    'scales', [{'acoustic_scale': 0.3}, {'denominator_scale': 0.7}, {'boost': 0.1}]
)
def test_scales_may_be_traced(batch, scales):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))
    logits, accuracy = jnp.asarray(logits), jnp.asarray(logits > 0, jnp.float32)

    def criterion(scales):
        return losses.lf_mmi(logits, lengths, num, den, accuracy=accuracy, **scales).value

    np.testing.assert_allclose(jax.jit(criterion)(scales), criterion(scales), rtol=1e-6)


@pytest.mark.parametrize('name', ['acoustic_scale', 'denominator_scale'])
def test_scales_have_their_gradient(batch, name):
    numerators, logits, lengths = batch
    lengths = np.array([5, 2, 3])  # one is too short
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))

    def total(scale):
        return losses.lf_mmi(jnp.asarray(logits), lengths, num, den, **{name: scale}).value.sum()

    jax.test_util.check_grads(total, (0.7,), order=1, modes=['rev'], rtol=1e-2, atol=1e-2)


def test_the_leak_is_part_of_the_program(batch):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))
    with pytest.raises(ValueError, match='leaky is part of the program'):
        jax.jit(lambda k: losses.lf_mmi(logits, lengths, num, den, leaky=k).value)(0.1)


@pytest.mark.parametrize('name', ['acoustic_scale', 'denominator_scale', 'boost', 'ctc_weight'])
@pytest.mark.parametrize('scale', [np.nan, np.inf])
def test_scales_that_are_not_finite_leave_nothing_valid(batch, name, scale):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))
    options = {'accuracy': jnp.ones(logits.shape)} if name == 'boost' else {}
    criterion = losses.ctc_crf if name == 'ctc_weight' else losses.lf_mmi

    def total(x):
        out = criterion(x, lengths, num, den, **{name: scale}, **options)
        return out.value.sum(), out

    (_, out), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))
    assert not out.valid.any()
    assert not np.any(out.value)
    assert not np.any(gradient)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('lattices', [False, True])
def test_leaky_denominator_matches_float64(batch, backend, lattices):
    numerators, logits, lengths = batch
    den = ops.pack_batch([loop(3)] * 3) if lattices else ops.pack(loop(3))
    num = ops.pack_batch(numerators)

    def total(x):
        out = losses.lf_mmi(x, lengths, num, den, leaky=0.1, backend=backend)
        return out.value.sum(), out

    (_, out), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))
    for b, fsa in enumerate(numerators):
        n = lengths[b]
        num_z, num_gamma = oracles.forward_backward(logits[b, :n], fsa)
        den_z, den_gamma = oracles.forward_backward(logits[b, :n], loop(3), leaky=0.1)
        np.testing.assert_allclose(out.value[b], num_z - den_z, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gradient[b, :n], num_gamma - den_gamma, atol=1e-5)


def test_second_derivatives_are_refused(batch):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))

    def total(x):
        return losses.lf_mmi(x, lengths, num, den).value.sum()

    with pytest.raises(NotImplementedError, match='once'):
        jax.jacrev(jax.grad(total))(jnp.asarray(logits))


def ctc_graph(labels) -> Fsa:
    """CTC topology of a label sequence; blank is pdf 0."""
    units = [0]
    for label in labels:
        units += [label, 0]
    src, dst, pdf = [], [], []
    start = len(units)
    for i, unit in enumerate(units):
        skip = i >= 2 and unit not in (0, units[i - 2])
        for j in [i, *([i - 1] if i else []), *([i - 2] if skip else [])]:
            src, dst, pdf = [*src, j], [*dst, i], [*pdf, unit]
    for i in (0, 1):
        src, dst, pdf = [*src, start], [*dst, i], [*pdf, units[i]]
    initial = np.where(np.arange(start + 1) == start, 0.0, -INF)
    final = np.where(np.isin(np.arange(start + 1), [start - 1, start - 2]), 0.0, -INF)
    return Fsa(src, dst, pdf, np.zeros(len(src)), initial, final)


def test_ctc_matches_optax(batch):
    import optax

    _, _, lengths = batch
    logits = np.random.default_rng(1).normal(size=(3, 5, 3)).astype(np.float32)
    sequences = [[1, 2], [1, 1], [2]]
    graphs = ops.pack_batch([ctc_graph(s) for s in sequences])
    labels, is_pad = np.zeros((3, 2), np.int32), np.ones((3, 2), np.float32)
    for b, s in enumerate(sequences):
        labels[b, : len(s)], is_pad[b, : len(s)] = s, 0
    pad = (np.arange(5) >= lengths[:, None]).astype(np.float32)

    def ours(x):
        return losses.ctc(x, lengths, graphs).value.sum()

    def theirs(x):
        return -optax.ctc_loss(x, pad, labels, is_pad).sum()

    x = jnp.asarray(logits)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-4)
    np.testing.assert_allclose(jax.grad(ours)(x), jax.grad(theirs)(x), atol=1e-4)
    short = losses.ctc(x, np.array([2, 2, 2], np.int32), graphs)
    assert short.reason.tolist() == [Reason.OK, Reason.TOO_SHORT, Reason.OK]
    assert short.short_by.tolist() == [0, 1, 0]


def test_ctc_crf_is_a_ratio_of_sums(batch):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))
    out = losses.ctc_crf(jnp.asarray(logits), lengths, num, den, ctc_weight=0.1)
    for b, fsa in enumerate(numerators):
        n = lengths[b]
        scores = np.asarray(jax.nn.log_softmax(logits[b, :n]))
        num_z = oracles.forward_backward(scores, fsa)[0]
        den_z = oracles.forward_backward(scores, loop(3))[0]
        np.testing.assert_allclose(out.value[b], 1.1 * num_z - den_z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('criterion', [losses.ctc, losses.ctc_crf])
@pytest.mark.parametrize('row', [False, True])
def test_bad_logits_stay_alone_through_the_softmax(batch, criterion, row):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))
    graphs = (num,) if criterion is losses.ctc else (num, den)
    logits[1, 0, slice(None) if row else 1] = -np.inf if row else np.inf
    logits[0, 4:] = np.nan  # padding of a shorter utterance
    lengths = np.array([4, 4, 3], np.int32)

    def total(x):
        out = criterion(x, lengths, *graphs)
        return out.value.sum(), out

    (_, out), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))
    assert out.reason.tolist() == [Reason.OK, Reason.NON_FINITE, Reason.OK]
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[1])
    assert np.any(gradient[0])


@pytest.mark.parametrize('trouble', ['padding', 'utterance', 'forbidden'])
def test_one_utterances_trouble_stays_out_of_the_gradient_by_the_scale(batch, trouble):
    numerators, logits, lengths = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))
    lengths = np.array([5, 3, 4], np.int32)

    def gradient(x, rows):
        def total(scale):
            return losses.lf_mmi(x, lengths, num, den, acoustic_scale=scale).value[rows].sum()

        return jax.grad(total)(0.7)

    spoilt = logits.copy()
    if trouble == 'padding':
        spoilt[1, 3:] = np.nan
        np.testing.assert_array_equal(gradient(spoilt, ...), gradient(logits, ...))
    elif trouble == 'utterance':
        spoilt[2, 1, 0] = np.nan
        others = np.array([0, 1])
        np.testing.assert_allclose(gradient(spoilt, ...), gradient(logits, others), rtol=1e-6)
    else:
        spoilt[0, 1, 2] = -np.inf
        logits[0, 1, 2] = -1e4
        np.testing.assert_allclose(gradient(spoilt, ...), gradient(logits, ...), rtol=1e-5)


def test_an_infeasible_utterance_stays_out_of_the_gradient_by_the_weight_of_ctc(batch):
    numerators, logits, _ = batch
    num, den = ops.pack_batch(numerators), ops.pack(loop(3))

    def gradient(lengths):
        def total(weight):
            out = losses.ctc_crf(logits, np.array(lengths), num, den, ctc_weight=weight)
            return jnp.where(jnp.arange(3) < 2, out.value, 0.0).sum(), out.valid

        return jax.grad(total, has_aux=True)(0.1)

    all_valid, _ = gradient([5, 5, 5])
    one_short, valid = gradient([5, 5, 0])
    np.testing.assert_array_equal(valid, [True, True, False])
    assert all_valid != 0
    np.testing.assert_array_equal(one_short, all_valid)
