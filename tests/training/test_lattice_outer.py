"""Shuffled frames with frozen outer derivatives: their gradients add up to that of utterances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seqtrain import losses, models, ops
from seqtrain.fsa import Fsa
from seqtrain.training import steps
from seqtrain.training.lattice_outer import FrameBatcher, Outer, make_frame_step, make_outer

PDFS = 6
LENGTHS = (31, 4, 60, 1)
NETWORKS = {
    'tdnn': lambda rngs: models.Tdnn(models.TdnnConfig(5, PDFS, 8), rngs=rngs),
    'tdnn1': lambda rngs: models.Tdnn(models.TdnnConfig(5, PDFS, 8, subsampling=1), rngs=rngs),
    'dnn': lambda rngs: models.Dnn(
        models.DnnConfig(5, PDFS, 8, num_layers=1, left=7, right=4, subsampling=3), rngs=rngs
    ),
}


@pytest.fixture(params=NETWORKS)
def setting(request):
    network, params = steps.Network.make(NETWORKS[request.param](nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(n, 5)).astype(np.float32) for n in LENGTHS]
    outputs = [-(-n // network.subsampling) for n in LENGTHS]
    labels = [rng.integers(0, PDFS, n).astype(np.int32) for n in outputs]
    draw = [rng.normal(size=(3, n, PDFS)).astype(np.float32) for n in outputs]
    block = [(i, Outer(float(i), *rows)) for i, rows in enumerate(draw)]
    return network, params, features, labels, block


def whole_gradient(network, params, features, labels, block, config, log_prior, correct):
    """Σ over utterances of the gradient with frozen derivatives, by whole-utterance evaluation."""

    def objective(p):
        total = 0.0
        for index, outer in block:
            x = jnp.asarray(features[index])[None]
            logits = network(p, x, jnp.array([x.shape[1]]))[0]
            g = outer.derivative
            if correct:
                moved = jax.lax.stop_gradient(logits) - outer.logits
                g = g - outer.curvature * moved
            total -= (jax.lax.stop_gradient(g) * logits).sum()
            length = jnp.array([len(logits)])
            if config.ce_weight:
                ce = losses.cross_entropy((logits + log_prior)[None], labels[index][None], length)
                total += config.ce_weight * ce.sum()
            total += config.output_l2 * losses.output_l2(logits[None], length).sum()
        return total

    return jax.grad(objective)(params)


@pytest.mark.parametrize(('ce_weight', 'correct'), [(0.0, False), (0.3, True)])
def test_minibatches_of_frames_add_up_to_utterances(setting, ce_weight, correct):
    network, params, features, labels, block = setting
    config = steps.SequenceConfig(ce_weight=ce_weight, output_l2=0.01 * ce_weight)
    log_prior = np.linspace(-2, 0, PDFS).astype(np.float32)
    batcher = FrameBatcher(network, features, labels, PDFS, correct)
    step = make_frame_step(network, config, 0.0)
    total = jax.tree.map(jnp.zeros_like, params)
    seen = []
    for members, batch in batcher.minibatches(block, 5, 64, np.random.default_rng(1)):
        gradients, metrics = step(params, batch, log_prior, None)
        assert float(metrics['frames']) == len(members)
        total = jax.tree.map(lambda a, g: a + g * len(members), total, gradients)
        seen += members.tolist()
    counts = np.bincount(seen).tolist()
    assert counts == [len(outer.derivative) for _, outer in block]
    expected = whole_gradient(network, params, features, labels, block, config, log_prior, correct)
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(jnp.abs(b).max())))


def test_passes_over_frames_have_dropout():
    config = models.TdnnConfig(5, PDFS, 8, ((-1, 0, 1),), subsampling=1, dropout=0.5)
    network, params = steps.Network.make(models.Tdnn(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(2)
    features = [rng.normal(size=(n, 5)).astype(np.float32) for n in LENGTHS]
    block = [
        (i, Outer(0.0, rng.normal(size=(n, PDFS)).astype(np.float32)))
        for i, n in enumerate(LENGTHS)
    ]
    batcher = FrameBatcher(network, features, [np.zeros(n, int) for n in LENGTHS], PDFS)
    step = make_frame_step(network, steps.SequenceConfig(), 0.0)
    prior = np.zeros(PDFS, np.float32)
    (_, one), (_, other) = batcher.minibatches(block, 2, 64, np.random.default_rng(1))
    same = dataclasses.replace(one, seed=other.seed)

    def gradient(batch):
        return np.asarray(step(params, batch, prior, None)[0]['output']['kernel'])

    np.testing.assert_array_equal(gradient(one), gradient(one))
    assert one.seed != other.seed
    assert np.abs(gradient(one) - gradient(same)).max() > 1e-3


def test_minibatches_without_frames_have_no_gradient(setting):
    network, params, features, labels, block = setting
    batcher = FrameBatcher(network, features, labels, PDFS)
    step = make_frame_step(network, steps.SequenceConfig(), 0.0)
    for some in ([], block[3:]):
        cut = batcher.minibatches(some, 3, 8, np.random.default_rng(0))
        assert len(cut) == 3
        gradients, metrics = step(params, cut[-1][1], np.zeros(PDFS, np.float32), None)
        assert float(metrics['frames']) == 0
        assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


def test_curvature_is_that_of_single_logits():
    """∂²L/∂a² by differences of the derivative, logit by logit."""
    network, params = steps.Network.make(NETWORKS['dnn'](nnx.Rngs(0)))
    rng = np.random.default_rng(3)
    features = rng.normal(size=(1, 9, 5)).astype(np.float32)
    arcs = [(t, t + 1, p, float(rng.normal())) for t in range(3) for p in range(PDFS)]
    initial, final = np.full(4, -np.inf), np.full(4, -np.inf)
    initial[0] = final[3] = 0.0
    den = Fsa.from_arcs(arcs, initial, final)
    num = Fsa.from_arcs([a for a in arcs if a[2] < 3], initial, final)
    graphs = [ops.pack_batch([fsa]) for fsa in (num, den)]
    batch = steps.DeviceBatch(
        features, np.array([9]), np.zeros((1, 3), np.int32), graphs[0], np.uint32(0), graphs[1]
    )
    config = steps.SequenceConfig(acoustic_scale=0.7)
    outer = make_outer(network, config, True)
    _, derivative, logits, curvature, occupancies = outer(params, batch)
    assert {name: float(x) for name, x in occupancies.items()} == {
        'numerator_occupancy': pytest.approx(1, abs=1e-5),
        'denominator_occupancy': pytest.approx(1, abs=1e-5),
        'rival_occupancy': pytest.approx(np.abs(derivative).sum() / 2 / (0.7 * 3), rel=1e-4),
    }

    def slope(a):
        def value(a):
            return losses.lf_mmi(a, np.array([3]), *graphs, acoustic_scale=0.7).value.sum()

        return jax.grad(value)(a)

    np.testing.assert_allclose(derivative, slope(logits), atol=1e-6)
    for t, k in [(0, 1), (1, 4), (2, 2)]:
        step = 1e-2
        moved = [slope(logits.at[0, t, k].add(d))[0, t, k] for d in (step, -step)]
        second = (moved[0] - moved[1]) / (2 * step)
        assert float(curvature[0, t, k]) == pytest.approx(-float(second), abs=1e-3)
