"""A replica's step: the two halves give the whole gradient; a bad utterance gives none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from seqtrain import losses, models, ops
from seqtrain.graphs import Lexicon, PhoneLm, Topology, denominator, numerator, training_phones
from seqtrain.lattices.search import search
from seqtrain.training import steps

LEXICON = Lexicon.from_dict({'yes': 'Y EH S', 'no': 'N OW'})
TEXTS = ['yes no', 'no', 'no yes no']
TOPOLOGY = Topology.make('chain', len(LEXICON.phones))


@pytest.fixture(scope='module')
def setting():
    phone_lm = PhoneLm.estimate(training_phones(TEXTS, LEXICON), LEXICON.phones, order=3)
    model = models.Tdnn(models.TdnnConfig(5, TOPOLOGY.num_pdfs, 8), rngs=nnx.Rngs(0))
    network, params = steps.Network.make(model)
    rng = np.random.default_rng(0)
    lengths = np.array([60, 45, 60], np.int32)
    batch = steps.DeviceBatch(
        rng.normal(size=(3, 60, 5)).astype(np.float32),
        lengths,
        rng.integers(-1, TOPOLOGY.num_pdfs, (3, 20)).astype(np.int32),
        ops.pack_batch([numerator(text, LEXICON, TOPOLOGY, phone_lm) for text in TEXTS]),
        np.uint32(0),
    )
    log_prior = rng.normal(size=TOPOLOGY.num_pdfs).astype(np.float32)
    return network, params, batch, log_prior, ops.pack(denominator(phone_lm, TOPOLOGY))


def sequence_step(network, clip_norm=0.0, **weights):
    phones = tuple(TOPOLOGY.phone_of_pdf().tolist())
    config = steps.SequenceConfig(phone_of_pdf=phones, **weights)
    return steps.make_step(network, lambda p, den: steps.sequence(p, den, config), clip_norm)


def assert_trees_close(a, b, rtol=1e-4, atol=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def test_mmi_gradient_is_that_of_the_whole_loss(setting):
    network, params, batch, log_prior, den = setting

    def loss(p):
        logits = network(p, batch.features, batch.lengths)
        out = losses.lf_mmi(logits, -(-batch.lengths // 3), batch.numerators, den)
        return -out.value.sum() / 55

    gradients, metrics = sequence_step(network)(params, batch, log_prior, den)
    assert_trees_close(gradients, jax.grad(loss)(params))
    assert float(metrics['loss']) == pytest.approx(float(loss(params)), rel=1e-5)
    assert float(metrics['frames']) == 55
    assert float(metrics['row_sum']) < 1e-6


def test_regularisers_are_added(setting):
    network, params, batch, log_prior, den = setting
    logits = network(params, batch.features, batch.lengths)
    lengths = -(-batch.lengths // 3)
    plain = sequence_step(network)(params, batch, log_prior, den)[1]['loss']
    both = sequence_step(network, ce_weight=0.3, output_l2=0.01)(params, batch, log_prior, den)[1]
    ce = losses.cross_entropy(logits + log_prior, batch.labels, lengths).sum() / 55
    l2 = losses.output_l2(logits, lengths).sum() / 55
    assert float(both['loss']) == pytest.approx(float(plain + 0.3 * ce + 0.01 * l2), rel=1e-5)


@pytest.mark.parametrize('criterion', ['smbr', 'mpe'])
def test_mmi_is_added_to_a_risk(setting, criterion):
    network, params, batch, log_prior, den = setting
    lengths = np.array([60, 45, 12], np.int32)  # the last: too short for its transcript
    batch = dataclasses.replace(batch, lengths=lengths)
    sums = {}
    for name, weights in {
        'risk': {'criterion': criterion},
        'mmi': {'boost': 0.1},
        'both': {'criterion': criterion, 'mmi_weight': 0.5, 'boost': 0.1},
    }.items():
        sums[name] = sequence_step(network, **weights)(params, batch, log_prior, den)
        np.testing.assert_array_equal(sums[name][1]['valid'], [True, True, name == 'risk'])
    batch = dataclasses.replace(batch, lengths=np.array([60, 45, 0], np.int32))
    risk, metrics = sequence_step(network, criterion=criterion)(params, batch, log_prior, den)
    expected = jax.tree.map(lambda a, b: a + 0.5 * b, risk, sums['mmi'][0])
    assert_trees_close(sums['both'][0], expected)
    value = metrics['value'] + 0.5 * sums['mmi'][1]['value']
    assert float(sums['both'][1]['value']) == pytest.approx(float(value), rel=1e-5)
    assert losses.Reason(int(sums['both'][1]['reason'][2])) == losses.Reason.TOO_SHORT


REGULARISERS = [
    {},
    {'ce_weight': 0.3},
    {'output_l2': 0.01},
    {'criterion': 'smbr', 'mmi_weight': 0.5, 'boost': 0.1, 'risk_boost': 0.3},
]


@pytest.mark.parametrize('weights', REGULARISERS)
def test_an_infeasible_utterance_changes_no_other_gradient(setting, weights):
    network, params, batch, log_prior, den = setting
    short = dataclasses.replace(batch, lengths=np.array([60, 45, 6], np.int32))
    left_out = dataclasses.replace(batch, lengths=np.array([60, 45, 0], np.int32))
    step = sequence_step(network, **weights)
    gradients, metrics = step(params, short, log_prior, den)
    np.testing.assert_array_equal(metrics['valid'], [True, True, False])
    assert losses.Reason(int(metrics['reason'][2])) == losses.Reason.TOO_SHORT
    expected, also = step(params, left_out, log_prior, den)
    assert_trees_close(gradients, expected)
    assert float(metrics['loss']) == pytest.approx(float(also['loss']), rel=1e-6)


@pytest.mark.parametrize('weights', REGULARISERS)
def test_a_batch_without_a_feasible_utterance_has_no_gradient(setting, weights):
    network, params, batch, log_prior, den = setting
    short = dataclasses.replace(batch, lengths=np.array([3, 1, 6], np.int32))
    gradients, metrics = sequence_step(network, **weights)(params, short, log_prior, den)
    assert not metrics['valid'].any()
    assert float(metrics['loss']) == float(metrics['gradient_norm']) == 0
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize('weights', REGULARISERS)
def test_an_utterance_that_is_not_finite_leaves_the_loss_alone(setting, weights):
    _, _, batch, log_prior, den = setting
    phones = tuple(TOPOLOGY.phone_of_pdf().tolist())
    config = steps.SequenceConfig(phone_of_pdf=phones, **weights)
    criterion = steps.sequence(log_prior, den, config)
    logits = np.random.default_rng(1).normal(size=(3, 20, TOPOLOGY.num_pdfs)).astype(np.float32)
    broken = logits.copy()
    broken[1, 3, 0] = np.nan
    lengths = np.array([20, 15, 20], np.int32)
    loss, metrics = criterion(broken, lengths, batch)
    np.testing.assert_array_equal(metrics['valid'], [True, False, True])
    expected, _ = criterion(logits, lengths * metrics['valid'], batch)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_cross_entropy_step(setting):
    network, params, batch, log_prior, _ = setting

    def loss(p):
        logits = network(p, batch.features, batch.lengths) + log_prior
        logp = jax.nn.log_softmax(logits)
        frames = jnp.arange(20)[None] < (-(-batch.lengths // 3))[:, None]
        picked = jnp.take_along_axis(logp, jnp.maximum(batch.labels, 0)[..., None], -1)[..., 0]
        return -jnp.where(frames & (batch.labels >= 0), picked, 0).sum() / 55

    gradients, metrics = steps.make_step(network, steps.cross_entropy, 0.0)(
        params, batch, log_prior
    )
    assert_trees_close(gradients, jax.grad(loss)(params))
    assert float(metrics['loss']) == pytest.approx(float(loss(params)), rel=1e-5)


def test_clipping_bounds_the_norm_and_reports_it_unclipped(setting):
    network, params, batch, log_prior, den = setting
    whole, metrics = sequence_step(network)(params, batch, log_prior, den)
    clipped, also = sequence_step(network, clip_norm=0.01)(params, batch, log_prior, den)
    norm = float(metrics['gradient_norm'])
    assert norm > 0.01
    assert float(also['gradient_norm']) == pytest.approx(norm, rel=1e-5)
    assert_trees_close(clipped, jax.tree.map(lambda g: g * (0.01 / norm), whole))


def test_changing_priors_compiles_nothing_anew(setting):
    network, params, batch, log_prior, _ = setting
    step = steps.make_step(network, steps.cross_entropy, 0.0)
    step(params, batch, log_prior)
    step(params, batch, log_prior + 1)
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    'weights',
    [
        {'boost': 0.1},
        {'criterion': 'smbr'},
        {'criterion': 'mpe'},
        {'criterion': 'mpe', 'risk_boost': 0.5},
    ],
)
def test_every_criterion_has_zero_row_sums_and_a_descent_direction(setting, weights):
    network, params, batch, log_prior, den = setting
    step = sequence_step(network, **weights)
    gradients, metrics = step(params, batch, log_prior, den)
    assert float(metrics['row_sum']) < 1e-6
    assert float(metrics['gradient_norm']) > 0
    small = 1e-2 / float(metrics['gradient_norm'])
    moved = jax.tree.map(lambda p, g: p - small * g, params, gradients)
    assert float(step(moved, batch, log_prior, den)[1]['loss']) < float(metrics['loss'])


@pytest.mark.parametrize(('settings', 'error'), [({}, 0.0), ({'max_silence_error': 1.0}, 1.0)])
def test_silence_is_an_error_of_its_own_size_where_rivals_are_boosted(setting, settings, error):
    """exp(b · errors) as in Kaldi: silence in place of speech counts max_silence_error."""
    _, _, batch, log_prior, den = setting
    phones = TOPOLOGY.phone_of_pdf()
    config = steps.SequenceConfig('mmi', tuple(phones.tolist()), boost=0.7, **settings)
    logits = np.random.default_rng(1).normal(size=(3, 20, len(phones))).astype(np.float32)
    lengths = np.array([20, 15, 20], np.int32)
    labels = np.maximum(batch.labels, 0)
    wrong = np.where(phones == 0, error, 1.0) * (phones[labels][:, :, None] != phones)

    def by_errors(a):
        accuracy = (1 - wrong).astype(np.float32)
        out = losses.lf_mmi(a, lengths, batch.numerators, den, boost=0.7, accuracy=accuracy)
        return -out.value.sum() / 55

    with_labels = dataclasses.replace(batch, labels=labels)
    criterion = steps.sequence(log_prior, den, config)
    (loss, _), gradient = jax.value_and_grad(criterion, has_aux=True)(logits, lengths, with_labels)
    expected, slope = jax.value_and_grad(by_errors)(logits)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-6)


@pytest.mark.parametrize('criterion', ['smbr', 'mpe'])
def test_risks_are_boosted_by_the_errors_of_boosted_mmi(setting, criterion):
    _, _, batch, log_prior, den = setting
    phones = tuple(TOPOLOGY.phone_of_pdf().tolist())
    config = steps.SequenceConfig(criterion, phones, risk_boost=0.7, acoustic_scale=0.5)
    logits = np.random.default_rng(1).normal(size=(3, 20, len(phones))).astype(np.float32)
    lengths = np.array([20, 15, 20], np.int32)
    silence = np.flatnonzero(np.array(phones) == 0)
    margin = losses.frame_accuracy(
        batch.labels, len(phones), classes=phones, silence=silence, max_silence_error=0.0
    )

    def boosted(a):
        options = {'silence': silence, 'boost': 0.7, 'boost_accuracy': margin}
        options |= {'acoustic_scale': 0.5} | ({'phones': phones} if criterion == 'mpe' else {})
        out = getattr(losses, criterion)(a, lengths, batch.labels, den, **options)
        return -out.value.sum() / 55

    loss = steps.sequence(log_prior, den, config)
    (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(logits, lengths, batch)
    expected, slope = jax.value_and_grad(boosted)(logits)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-6)


def test_right_states_are_at_least_as_many_as_right_pdfs(setting):
    network, params, batch, log_prior, den = setting
    # The reference only loops, so that a frame which enters a state has the right state alone.
    loops = np.array([TOPOLOGY.loop[phone][0] for phone in TOPOLOGY.phone_of_pdf()])
    batch = dataclasses.replace(batch, labels=loops[batch.labels].astype(np.int32))
    value = {}
    for name, states in (('pdf', ()), ('state', tuple(TOPOLOGY.state_of_pdf().tolist()))):
        step = sequence_step(network, criterion='smbr', state_of_pdf=states)
        value[name] = float(step(params, batch, log_prior, den)[1]['value'])
    assert 0 < value['pdf'] < value['state'] < 1


@pytest.mark.parametrize(
    ('weights', 'message'),
    [
        ({'criterion': 'mbr'}, 'choose mmi'),
        ({'criterion': 'mpe', 'boost': 0.1}, 'boost belongs to mmi.*mmi_weight 0'),
        ({'criterion': 'smbr', 'drop_below': 0.1}, 'drop_frames belongs to mmi'),
        ({'mmi_weight': 0.5}, 'mmi_weight belongs to smbr and mpe'),
        ({'risk_boost': 0.5}, 'risk_boost belongs to smbr and mpe'),
        ({'criterion': 'mpe', 'risk_boost': -0.5}, 'risk_boost is -0.5; it must not be negative'),
        ({'criterion': 'smbr', 'mmi_weight': -0.5}, 'must not be negative'),
        ({'ce_weight': -1.0}, 'must not be negative'),
        ({'output_l2': float('nan')}, 'must not be negative'),
        ({'max_silence_error': 1.5}, 'between 0 and 1'),
    ],
)
def test_impossible_criteria_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        steps.SequenceConfig(**weights)


@pytest.mark.parametrize('criterion', ['mmi', 'smbr', 'mpe'])
def test_exhaustive_lattices_give_the_lattice_free_step(setting, criterion):
    network, params, batch, log_prior, _ = setting
    phone_lm = PhoneLm.estimate(training_phones(TEXTS, LEXICON), LEXICON.phones, order=3)
    logits = np.asarray(network(params, batch.features, batch.lengths))
    above = [numerator(text, LEXICON, TOPOLOGY, phone_lm) for text in TEXTS]
    below = [denominator(phone_lm, TOPOLOGY)] * 3
    lattices = [
        ops.pack_batch(
            [
                search(
                    oracles.search_graph(fsa), row[: -(-n // 3)], beam=1e6, lattice_beam=1e6
                ).to_fsa()
                for fsa, row, n in zip(side, logits, batch.lengths, strict=True)
            ]
        )
        for side in (above, below)
    ]
    on_lattices = dataclasses.replace(batch, numerators=lattices[0], denominators=lattices[1])
    step = sequence_step(network, criterion=criterion)
    expected, metrics = step(params, batch, log_prior, ops.pack(below[0]))
    gradients, also = step(params, on_lattices, log_prior, None)
    assert float(also['loss']) == pytest.approx(float(metrics['loss']), abs=1e-5)
    assert float(also['denominator_occupancy']) == pytest.approx(1, abs=1e-6)
    assert_trees_close(gradients, expected, rtol=1e-3, atol=1e-5)
