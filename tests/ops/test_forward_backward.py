"""Sums over paths against float64 references, on every backend present."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from backends import BACKENDS

from seqtrain import ops
from seqtrain.fsa import Fsa
from seqtrain.ops import scaled

FRAMES, PDFS = 6, 3


def batch_of(seed: int, scale: float, make=oracles.random_fsa, batch: int = 4):
    rng = np.random.default_rng(seed)
    fsas = [make(rng, 5, 12, PDFS) for _ in range(batch)]
    scores = (scale * rng.normal(size=(batch, FRAMES, PDFS))).astype(np.float32)
    lengths = rng.integers(0, FRAMES + 1, size=batch).astype(np.int32)
    return fsas, scores, lengths


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('leaky', [0.0, 0.1])
@pytest.mark.parametrize('scale', [1.0, 20.0, 200.0])
@pytest.mark.parametrize('make', [oracles.random_fsa, oracles.hmm_fsa])
def test_shared_graph_matches_float64(backend, leaky, scale, make):
    fsas, scores, lengths = batch_of(3, scale, make)
    lengths[0] = FRAMES
    graph = ops.pack(fsas[0])
    assert (graph.group is None) == (make is oracles.random_fsa)
    log_z, gamma = ops.occupancies(
        jnp.asarray(scores), lengths, graph, leaky=leaky, backend=backend
    )
    oracles.check(log_z, np.asarray(gamma), scores, lengths, [fsas[0]] * 4, leaky)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('leaky', [0.0, 0.1])
@pytest.mark.parametrize('scale', [1.0, 20.0, 200.0])
@pytest.mark.parametrize('seed', range(8))
def test_batch_of_graphs_matches_float64(backend, leaky, scale, seed):
    fsas, scores, lengths = batch_of(seed, scale)
    graphs = ops.pack_batch(fsas, num_states=6, num_arcs=14)
    log_z, gamma = ops.occupancies(
        jnp.asarray(scores), lengths, graphs, leaky=leaky, backend=backend
    )
    oracles.check(log_z, np.asarray(gamma), scores, lengths, fsas, leaky)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('leaky', [0.0, 0.1])
def test_the_log_domain_keeps_its_digits(backend, leaky):
    # At -30,000 single precision knows sums to 2e-3; many paths of all frames compete.
    rng = np.random.default_rng(0)
    fsa = oracles.hmm_fsa(rng, 30, 150, 8)
    fsa = dataclasses.replace(fsa, initial=np.zeros(30), final=np.zeros(30))
    scores = (rng.normal(size=(2, 60, 8)) - 30_000).astype(np.float32)
    scores[:, ::7, 3] -= 200  # beyond what scaled probabilities hold
    lengths = np.array([60, 47], np.int32)
    for graph in (ops.pack(fsa), ops.pack_batch([fsa, fsa])):
        log_z, gamma = ops.occupancies(
            jnp.asarray(scores), lengths, graph, leaky=leaky, backend=backend
        )
        oracles.check(log_z, np.asarray(gamma), scores, lengths, [fsa, fsa], leaky)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('kind', [np.int8, np.uint16])
def test_lengths_may_be_integers_of_any_size(backend, kind):
    fsas, scores, lengths = batch_of(4, 1.0)
    log_z, gamma = ops.occupancies(
        jnp.asarray(scores), jnp.asarray(lengths.astype(kind)), ops.pack(fsas[0]), backend=backend
    )
    oracles.check(log_z, np.asarray(gamma), scores, lengths, [fsas[0]] * 4)


@pytest.mark.parametrize('backend', BACKENDS)
def test_one_bad_utterance_never_touches_another(backend):
    fsas, scores, _ = batch_of(11, 1.0, batch=5)
    chain = Fsa(
        [0, 1, 2], [1, 2, 3], [0, 1, 2], np.zeros(3), [0, *[-np.inf] * 3], [*[-np.inf] * 3, 0]
    )
    fsas[1] = chain
    lengths = np.full(5, FRAMES, np.int32)
    lengths[1] = 2  # too short for the chain
    spoiled = scores.copy()
    spoiled[2, 1, 0] = np.nan
    spoiled[3, 0, 2] = np.inf
    graphs = ops.pack_batch(fsas)
    clean_z, clean = ops.occupancies(jnp.asarray(scores), lengths, graphs, backend=backend)
    log_z, gamma = map(
        np.asarray, ops.occupancies(jnp.asarray(spoiled), lengths, graphs, backend=backend)
    )
    assert log_z[1] == -np.inf
    assert np.isnan(log_z[2])
    assert np.isnan(log_z[3])
    assert not np.any(gamma[1:4])
    np.testing.assert_array_equal(log_z[[0, 4]], np.asarray(clean_z)[[0, 4]])
    np.testing.assert_array_equal(gamma[[0, 4]], np.asarray(clean)[[0, 4]])


@pytest.mark.parametrize('backend', BACKENDS)
def test_relations(backend):
    fsas, scores, _ = batch_of(5, 2.0)
    lengths = np.array([6, 3, 5, 4], np.int32)
    graphs = ops.pack_batch(fsas, num_states=6, num_arcs=14)

    def run(s, g=graphs, n=lengths):
        return ops.occupancies(jnp.asarray(s), n, g, backend=backend)

    log_z, gamma = run(scores)
    feasible = np.isfinite(log_z)
    rows = np.asarray(gamma.sum(-1))
    valid = (np.arange(FRAMES) < lengths[:, None]) & feasible[:, None]
    np.testing.assert_allclose(rows, valid.astype(np.float32), atol=1e-5)

    padded = scores.copy()
    padded[np.arange(FRAMES) >= lengths[:, None]] = np.nan
    np.testing.assert_array_equal(run(padded)[0], log_z)
    np.testing.assert_array_equal(run(padded)[1], gamma)

    shifted_z, shifted = run(scores + 3.0)
    np.testing.assert_allclose(shifted_z, log_z + 3.0 * lengths, rtol=1e-5)
    np.testing.assert_allclose(shifted, gamma, atol=1e-5)

    order = [2, 0, 3, 1]
    reordered = ops.pack_batch([fsas[i] for i in order], num_states=6, num_arcs=14)
    np.testing.assert_allclose(
        run(scores[order], reordered, lengths[order])[0], log_z[np.array(order)], rtol=1e-6
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_forbidden_pdfs_are_legal(backend):
    fsas, scores, _ = batch_of(8, 1.0)
    scores[:, 2, 1] = -np.inf
    scores[1, 3, :] = -np.inf  # nothing is possible in this frame
    lengths = np.full(4, FRAMES, np.int32)
    log_z, gamma = ops.occupancies(
        jnp.asarray(scores), lengths, ops.pack_batch(fsas), backend=backend
    )
    oracles.check(log_z, np.asarray(gamma), scores, lengths, fsas)
    assert log_z[1] == -np.inf


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradient_is_the_occupancy_and_composes(backend):
    fsas, scores, _ = batch_of(5, 1.0)
    graph = ops.pack(fsas[0])
    lengths = jnp.array([6, 3, 5, 4], jnp.int32)
    scores = jnp.asarray(scores)
    gamma = ops.occupancies(scores, lengths, graph, backend=backend)[1]

    def total(s, scale=1.0):
        return (scale * ops.log_partition(s, lengths, graph, backend=backend)).sum()

    plain = jax.grad(total)(scores)
    np.testing.assert_array_equal(plain, gamma)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(scores, 2.0), 2 * gamma, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(jax.checkpoint(total))(scores), gamma, rtol=1e-6)
    stack = jnp.stack([scores, scores + 1.0, 2 * scores])
    mapped = jax.vmap(jax.grad(total))(stack)
    for one, s in zip(mapped, stack, strict=True):
        np.testing.assert_allclose(one, jax.grad(total)(s), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('leaky', [0.0, 0.1])
def test_matrix_products_and_segment_sums_agree(leaky):
    fsas, scores, lengths = batch_of(3, 1.0, oracles.hmm_fsa)
    graph = ops.pack(fsas[0])
    assert scaled.is_dense(graph, on_cpu=True)
    assert not scaled.is_dense(ops.pack_batch(fsas), on_cpu=False)
    for dense in (False, True):
        out = scaled.forward_backward(jnp.asarray(scores), lengths, graph, leaky, dense)
        oracles.check(out.log_z, np.asarray(out.gamma), scores, lengths, [fsas[0]] * 4, leaky)
        assert np.all(out.trusted)


def test_rounding_over_long_utterances_does_not_look_like_a_lost_path():
    # The log domain would give the same numbers, only many times later.
    graph = ops.pack(oracles.hmm_fsa(np.random.default_rng(2), 30, 200, 7))
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2000, 7)), jnp.float32)
    lengths = np.full(4, 2000, np.int32)
    out = jax.jit(lambda s: scaled.forward_backward(s, lengths, graph, 0.0))(scores)
    assert np.all(out.trusted)
    log_z, gamma = ops.occupancies(scores, lengths, graph, backend='auto')
    np.testing.assert_allclose(out.log_z, log_z, rtol=1e-6)
    np.testing.assert_allclose(out.gamma, gamma, atol=1e-5)


def test_second_derivatives_are_refused():
    fsas, scores, lengths = batch_of(5, 1.0)

    def total(s):
        return ops.log_partition(s, lengths, ops.pack(fsas[0])).sum()

    with pytest.raises(NotImplementedError, match='expected_accuracy'):
        jax.jacrev(jax.grad(total))(jnp.asarray(scores))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'scores': np.zeros((4, 6), np.float32)}, r'\[B, T, P\]'),
        ({'scores': np.zeros((4, 6, 2), np.float32)}, 'another network'),
        ({'scores': np.zeros((4, 6, 3), np.int32)}, 'float32'),
        ({'lengths': np.zeros(3, np.int32)}, 'lengths'),
        ({'leaky': -0.1}, 'leaky'),
        ({'scores': [[[0.0]]], 'lengths': [1]}, 'scores must be an array; got list'),
        ({'leaky': None}, 'leaky must be a finite number'),
        ({'leaky': np.inf}, 'leaky must be a finite number'),
        ({'leaky': np.nan}, 'leaky'),
        ({'backend': 'abacus'}, 'backend'),
    ],
)
def test_bad_input_gets_a_sentence(change, message):
    graph = ops.pack(Fsa([0], [0], [2], [0.0], [0.0], [0.0]))
    given_ = {'scores': np.zeros((4, 6, 3), np.float32), 'lengths': np.zeros(4, np.int32)}
    with pytest.raises(ValueError, match=message):
        ops.log_partition(**{'graph': graph, **given_, **change})


def _cast(dtype, *names):
    return lambda graph: {name: getattr(graph, name).astype(dtype) for name in names}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (_cast(jnp.bfloat16, 'weight'), 'graph.weight must be float32 .* got bfloat16'),
        (_cast(jnp.float16, 'initial', 'final'), 'graph.initial must be float32'),
        (_cast(jnp.int16, 'src', 'dst', 'pdf'), 'graph.src must be int32 .* got int16'),
        (_cast(np.uint32, 'min_frames'), 'graph.min_frames must be int32'),
        (lambda graph: {'weight': graph.weight[..., :1]}, 'ops.pack_batch and leave'),
        (lambda graph: {'final': graph.final[..., :1]}, 'graph.final'),
        (lambda graph: {'min_frames': graph.min_frames[None]}, 'graph.min_frames'),
        (lambda graph: {'pdf': [0, 1]}, 'graph.pdf must be int32 .* got list'),
        (lambda graph: {'src': graph.src[None, None]}, 'graph.src'),
    ],
)
@pytest.mark.parametrize('batched', [False, True])
def test_graphs_that_were_tampered_with_get_a_sentence(change, message, batched):
    fsa = Fsa([0, 0], [0, 1], [0, 1], [-0.1, -0.2], [0.0, -1.0], [0.0, -2.0])
    graph = jax.tree.map(jnp.asarray, ops.pack_batch([fsa] * 2) if batched else ops.pack(fsa))
    spoilt = dataclasses.replace(graph, **change(graph))
    scores, lengths = jnp.zeros((2, 3, 2)), jnp.full(2, 3)
    for call in (ops.log_partition, ops.occupancies, ops.viterbi):
        with pytest.raises(ValueError, match=message):
            call(scores, lengths, spoilt)
    with pytest.raises(ValueError, match=message):
        ops.expected_accuracy(scores, lengths, spoilt, scores)


def test_groups_that_do_not_fit_get_a_sentence():
    graph = ops.pack(Fsa([0, 1], [0, 0], [0, 0], [0.0, 0.0], [0.0, 0.0], [0.0, -1.0]))
    assert graph.group is not None
    for name in ('group', 'group_dst', 'group_pdf'):
        for wrong in (None, getattr(graph, name)[:-1], getattr(graph, name).astype(jnp.float32)):
            spoilt = dataclasses.replace(graph, **{name: wrong})
            with pytest.raises(ValueError, match=r'graph\.group'):
                ops.log_partition(jnp.zeros((2, 3, 1)), jnp.full(2, 3), spoilt)


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_graph_of_another_network_gives_nan_not_a_wrong_number(backend):
    fsa = Fsa([0], [0], [7], [0.0], [0.0], [0.0])
    good = Fsa([0], [0], [1], [0.0], [0.0], [0.0])
    scores = jnp.zeros((2, 4, 3))
    log_z, gamma = ops.occupancies(
        scores, jnp.array([4, 4]), ops.pack_batch([fsa, good]), backend=backend
    )
    assert np.isnan(log_z[0])
    assert log_z[1] == 0.0
    assert not np.any(gamma[0])


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('weight', [0.0, 100.0])
def test_a_pdf_without_scores_is_no_other_utterances_trouble(backend, weight):
    """In the log domain (weights beyond exp) and outside of it."""
    wrong = Fsa([0, 0], [0, 0], [0, 2], [100.0, 99.0], [0.0], [0.0])
    right = Fsa([0, 0], [0, 0], [0, 1], [weight, weight], [0.0], [0.0])
    graphs, lengths = ops.pack_batch([wrong, right]), np.array([2, 2], np.int32)
    scores = jnp.zeros((2, 2, 2))
    log_z, gamma = ops.occupancies(scores, lengths, graphs, backend=backend)
    assert np.isnan(log_z[0])
    assert not np.any(gamma[0])
    np.testing.assert_allclose(gamma[1], 0.5, atol=1e-6)

    def expected(scores):
        accuracy = jnp.broadcast_to(jnp.arange(2.0), scores.shape)
        return ops.expected_accuracy(scores, lengths, graphs, accuracy, backend=backend)[0][1]

    np.testing.assert_allclose(jax.grad(expected)(scores)[1], [[-0.25, 0.25]] * 2, atol=1e-6)


@pytest.mark.parametrize('backend', BACKENDS)
def test_an_arc_that_nobody_can_take_may_name_any_pdf(backend):
    fsa = Fsa([0] * 4, [0] * 4, [0, 1, 1, 5_000_000], [0, 0.1, 0.2, -np.inf], [0.0], [0.0])
    scores = np.zeros((2, 3, 2), np.float32)
    scores[:, 1, 1] = -200  # beyond exp: in the log domain
    lengths = np.array([3, 3], np.int32)
    log_z, gamma = ops.occupancies(scores, lengths, ops.pack_batch([fsa] * 2), backend=backend)
    whole = Fsa([0] * 3, [0] * 3, [0, 1, 1], [0, 0.1, 0.2], [0.0], [0.0])
    oracles.check(log_z, np.asarray(gamma), scores, lengths, [whole] * 2)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('weight', [43.6, 43.8, 44.0, 44.2, 44.4])
@pytest.mark.parametrize('batch', [1, 8])
def test_sums_whose_inverse_underflows_are_not_lost(backend, weight, batch):
    fsa = Fsa([0], [0], [0], [weight], [0.0], [0.0])
    scores, lengths = jnp.zeros((batch, 2, 1)), np.full(batch, 2, np.int32)
    for graph in (ops.pack(fsa), ops.pack_batch([fsa] * batch)):
        log_z, gamma = ops.occupancies(scores, lengths, graph, backend=backend)
        np.testing.assert_allclose(log_z, 2 * weight, rtol=1e-6)
        np.testing.assert_allclose(gamma, 1.0, atol=1e-6)


def overflowing(kind: str) -> ops.Graph:
    """A graph for two utterances of three frames."""
    loop = Fsa(np.zeros(PDFS), np.zeros(PDFS), range(PDFS), np.zeros(PDFS), [0.0], [0.0])
    if kind == 'shared':
        return ops.pack(loop)
    lattice = oracles.lattice_fsa(np.random.default_rng(0), 3, PDFS)
    return ops.pack_batch([lattice if kind == 'lattice' else loop] * 2)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('kind', ['shared', 'batched', 'lattice'])
@pytest.mark.parametrize('score', [3e38, -3e38])
def test_a_sum_beyond_single_precision_has_no_gradient(backend, kind, score):
    graph, lengths = overflowing(kind), np.array([3, 3])
    scores = jnp.zeros((2, 3, PDFS)).at[0].set(score)
    log_z, gamma = ops.occupancies(scores, lengths, graph, backend=backend)
    assert log_z[0] == np.copysign(np.inf, score)
    assert not np.any(gamma[0])
    np.testing.assert_allclose(gamma[1].sum(-1), np.ones(3), rtol=1e-5)

    def expected(scores):
        accuracy = jnp.broadcast_to(jnp.arange(1.0 * PDFS), scores.shape)
        return ops.expected_accuracy(scores, lengths, graph, accuracy, backend=backend)[0]

    value, pull = jax.vjp(expected, scores)
    assert value[0] == 0
    assert not np.any(pull(jnp.ones(2))[0][0])
    best, labels = ops.viterbi(scores, lengths, graph, backend=backend)
    assert best[0] == log_z[0]
    assert (labels[0] == -1).all()
    assert (labels[1] >= 0).all()
