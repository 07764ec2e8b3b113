"""The kernels of the gpu backend, interpreted, where the log domain cannot hide what they do; and
what they become for a GPU. The contract is tested with the other backends'."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from backends import TRITON, lowered_for_cuda

from seqtrain import ops
from seqtrain.fsa import Fsa
from seqtrain.ops import forward_backward, gpu, log_expectation
from seqtrain.ops.gpu import kernels, passes, rows

FRAMES, STATES, ARCS, PDFS = 10, 35, 150, 5


@pytest.fixture
def few_at_once(monkeypatch):
    """Several launches of occupancies, the last one with frames to spare; sums in several parts."""
    monkeypatch.setattr(passes, 'FRAMES_AT_ONCE', 4)
    monkeypatch.setattr(kernels, '_PIECE', 4)


def graph_of(make, seed: int) -> Fsa:
    """Always with paths: all states start and end, with different weights."""
    rng = np.random.default_rng(seed)
    fsa = make(rng, STATES, ARCS, PDFS)
    return Fsa(fsa.src, fsa.dst, fsa.pdf, fsa.weight, *rng.normal(size=(2, STATES)))


def case(shared: bool, make=oracles.random_fsa):
    """Two blocks of lanes if shared, else graphs of one lane; several blocks of states and more
    arcs a state than are read at a time; padding in all of them."""
    batch = 9 if shared else 3
    fsas = [graph_of(make, 0)] * batch if shared else [graph_of(make, i) for i in range(batch)]
    graph = ops.pack(fsas[0]) if shared else ops.pack_batch(fsas, STATES + 2, ARCS + 90)
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(2, batch, FRAMES, PDFS)).astype(np.float32)
    lengths = np.resize([FRAMES, 4, 1, 8, 9, 0], batch).astype(np.int32)
    return fsas, graph, *scores, lengths


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ('shared', 'leaky'),
    [
        (False, 0.0),
        (True, 0.1),
        pytest.param(False, 0.1, marks=SLOW),
        pytest.param(True, 0.0, marks=SLOW),
    ],
)
def test_kernels_match_float64(few_at_once, shared, leaky):
    fsas, graph, scores, _, lengths = case(shared)
    plan = passes._plan(scores, graph, leaky, 1, interpret=True)
    assert plan.padded_frames > FRAMES
    assert plan.states.rows < STATES
    run = jax.jit(lambda s, n, g: passes.forward_backward(s, n, g, leaky, interpret=True))
    out = run(scores, lengths, graph)
    assert np.all(out.trusted)
    for b, fsa in enumerate(fsas):
        n = lengths[b]
        want_z, want = oracles.forward_backward(scores[b, :n], fsa, leaky)
        np.testing.assert_allclose(out.log_z[b], want_z, rtol=1e-5)
        np.testing.assert_allclose(out.gamma[b, :n], want, atol=1e-5)
        assert not np.any(out.gamma[b, n:])


@pytest.mark.parametrize(('shared', 'leaky'), [(True, 0.1), pytest.param(False, 0.0, marks=SLOW)])
def test_moments_match_the_log_domain(few_at_once, shared, leaky):
    _, graph, scores, accuracy, lengths = case(shared)
    accuracy = accuracy + 3  # far from centred
    run = jax.jit(lambda s, a, n, g: passes.expectation(s, a, n, g, leaky, interpret=True))
    out = run(scores, accuracy, lengths, graph)
    assert np.all(out.trusted)
    slow = jax.jit(lambda s, a, n, g: log_expectation.expectation(s, a, n, g, leaky))
    want = slow(scores, accuracy, lengths, graph)
    for a, b in zip((out.log_z, out.value, out.gradient), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_moments_match_enumeration(few_at_once):
    rng = np.random.default_rng(0)
    fsa = oracles.random_fsa(rng, 4, 9, 3)
    scores, accuracy = rng.normal(size=(2, 2, 6, 3)).astype(np.float32)
    lengths = np.array([6, 3], np.int32)
    out = jax.jit(lambda s, a, g: passes.expectation(s, a, lengths, g, 0.0, interpret=True))(
        scores, accuracy, ops.pack(fsa)
    )
    assert np.all(out.trusted)
    for b, n in enumerate(lengths):
        want, gradient = oracles.enumerate_accuracy(scores[b, :n], fsa, accuracy[b, :n])
        np.testing.assert_allclose(out.value[b], want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out.gradient[b, :n], gradient, atol=1e-5)
        assert not np.any(out.gradient[b, n:])


def test_what_underflows_is_redone():
    # Path A leads by e^70 a frame in the first half, path B in the second; both end equal.
    fsa = Fsa([0, 1], [0, 1], [0, 1], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    half = np.array([[0.0, -70.0]] * 4)
    crossing = np.concatenate([half, half[:, ::-1]])
    scores = jnp.asarray(np.stack([crossing, np.zeros((8, 2))]), jnp.float32)
    lengths, graph = jnp.array([8, 5]), ops.pack(fsa)
    log_z, gamma = ops.occupancies(scores, lengths, graph, backend='gpu')
    np.testing.assert_allclose(log_z, [np.log(2) - 280, np.log(2)], rtol=1e-5)
    np.testing.assert_allclose(gamma[0], np.full((8, 2), 0.5), atol=1e-5)


def test_bad_utterances_stay_alone_under_jit_grad_vmap_and_checkpoint():
    chain = Fsa([0, 1], [1, 2], [0, 1], [0, 0], [0, -np.inf, -np.inf], [-np.inf, -np.inf, 0])
    loop = Fsa(np.zeros(3), np.zeros(3), range(3), np.zeros(3), [0.0], [0.0])
    graph, lengths = ops.pack_batch([chain, loop, loop]), jnp.array([1, 5, 4])
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 3, 5, 3)).astype(np.float32)
    scores[0, 1, 2, 0] = np.nan

    @jax.checkpoint
    def total(s, weight):
        log_z = ops.log_partition(s, lengths, graph, backend='gpu')
        return (weight * log_z).sum(), log_z

    weight = jnp.array([2.0, 3.0, 4.0])
    step = jax.jit(jax.vmap(jax.grad(total, has_aux=True), in_axes=(0, None)))
    gradient, log_z = step(scores, weight)
    assert np.all(log_z[:, 0] == -np.inf)
    assert np.isnan(log_z[0, 1])
    assert not np.any(gradient[:, 0])
    assert not np.any(gradient[0, 1])
    valid = (np.arange(5) < np.asarray(lengths)[:, None])[:, :, None]
    softmax = np.where(valid, jax.nn.softmax(scores, -1), 0) * np.asarray(weight)[:, None, None]
    np.testing.assert_allclose(gradient[0, 2], softmax[0, 2], atol=1e-5)
    np.testing.assert_allclose(gradient[1, 1:], softmax[1, 1:], atol=1e-5)


@pytest.mark.parametrize('shared', [False, True])
def test_they_lower_to_triton_without_a_gpu(shared):
    _, graph, scores, accuracy, lengths = case(shared)

    def value(s, a, g):
        return ops.expected_accuracy(s, lengths, g, a, leaky=0.1, backend='gpu')[0].sum()

    def log_z(s, a, g):
        return ops.log_partition(s, lengths, g, backend='gpu').sum()

    for function in (value, log_z):
        text = lowered_for_cuda(jax.grad(function), scores, accuracy, graph)
        # α, β and occupancies; MLIR bytecode begins with 'ML' and 0xEF.
        assert len(re.findall(rf'custom_call @{re.escape(TRITON)}\(', text)) == 3
        assert len(re.findall(r'ir = "ML\\EFR', text)) == 3
        assert text.count('name = "seqtrain_step"') == 2
        assert text.count('name = "seqtrain_occupy"') == 1


def test_they_lower_where_jax_uses_64_bits():
    _, graph, scores, accuracy, lengths = case(shared=True)

    def value(s, a, n, g):
        return ops.expected_accuracy(s, n, g, a, leaky=0.1, backend='gpu')[0]

    with jax.enable_x64(True):
        text = lowered_for_cuda(value, scores, accuracy, lengths.astype(np.int64), graph)
    assert TRITON in text


def test_a_frame_is_one_launch_and_moves_no_history():
    # XLA adds the loop's counter; anything else in the loop would cost more than the kernel.
    _, graph, scores, _, lengths = case(shared=True)
    text = lowered_for_cuda(
        lambda s, n, g: passes.forward_backward(s, n, g, 0.0, interpret=False),
        scores,
        lengths,
        graph,
    )
    calls = [x for x in text.splitlines() if TRITON in x and '"seqtrain_step"' in x]
    assert all(x.count('output_operand_alias<') == 3 for x in calls)
    for loop in re.findall(r'stablehlo\.while(?:.|\n)*?\n    +\} do \{((?:.|\n)*?)\n    +\}', text):
        if 'seqtrain_step' in loop:
            assert 'dynamic_update_slice' not in loop
            assert 'stablehlo.concatenate' not in loop


def test_no_copy_of_the_graph_per_utterance():
    states, arcs, batch, frames = 20, 3000, 16, 7
    fsa = oracles.random_fsa(np.random.default_rng(0), states, arcs, 4)
    lengths = jnp.full(batch, frames)
    closed = jax.make_jaxpr(
        lambda s, g: passes.expectation(s, s, lengths, g, 0.1, interpret=False)
    )(jnp.zeros((batch, frames, 4)), ops.pack(fsa))
    largest = max(v.aval.size for e in outer_equations(closed.jaxpr) for v in e.outvars)
    padded = rows.padded(states, 16)
    assert arcs <= largest <= 2 * (frames + 1) * padded * batch < arcs * batch


def outer_equations(jaxpr):
    """Equations outside kernels."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name == 'pallas_call':
            continue
        for parameter in jax.tree.leaves(equation.params):
            inner = getattr(parameter, 'jaxpr', parameter)
            if hasattr(inner, 'eqns'):
                yield from outer_equations(inner)


def chosen(backend, platforms, exporting=False):
    which = forward_backward._kernel._chosen(backend, platforms, exporting)
    return getattr(which, 'func', which), getattr(which, 'keywords', {})


def test_auto_is_the_kernels_on_a_gpu_that_runs_them(monkeypatch):
    device, portable = forward_backward._gpu, forward_backward._xla
    assert chosen('gpu', ('cuda',)) == (device, {'interpret': False})
    assert chosen('gpu', ('cpu',)) == (device, {'interpret': True})
    monkeypatch.setattr(gpu, 'available', lambda: True)
    assert chosen('auto', ('cuda',)) == (device, {'interpret': False})
    for platforms, exporting in ((('cuda',), True), (('tpu',), False), (('cuda', 'tpu'), False)):
        assert chosen('auto', platforms, exporting) == (portable, {'on_cpu': False})
    monkeypatch.setenv('SEQTRAIN_BACKEND', 'xla')
    assert chosen('auto', ('cuda',)) == (portable, {'on_cpu': False})
    monkeypatch.delenv('SEQTRAIN_BACKEND')
    monkeypatch.setattr(gpu, 'available', lambda: False)
    assert chosen('auto', ('cuda',)) == (portable, {'on_cpu': False})
    with pytest.raises(ValueError, match='cannot run on'):
        chosen('gpu', ('tpu',))


def test_old_gpus_are_left_to_xla(monkeypatch):
    for capabilities, want in (('8.0', '9.0'), True), (('7.5',), False), (('12.0', '7.0'), False):
        devices = [type('Gpu', (), {'compute_capability': c}) for c in capabilities]
        monkeypatch.setattr(jax, 'local_devices', lambda backend, devices=devices: devices)
        assert gpu.available() == want


@pytest.mark.parametrize('lanes', [1, 3, 128])
@pytest.mark.parametrize('num_rows', [1, 5, 3000, 100_000])
@pytest.mark.parametrize('per_row', [1, 17, 3000])
@pytest.mark.parametrize('few_blocks', [False, True])
def test_tiles_are_powers_of_two_of_bounded_size(lanes, num_rows, per_row, few_blocks):
    tile = rows.tile(num_rows, num_rows * per_row, lanes, few_blocks)
    assert all(size & (size - 1) == 0 for size in (*tile, tile.warps))
    assert tile.rows * tile.arcs * tile.lanes <= 2048
    if few_blocks:
        assert num_rows / tile.rows <= 4 * np.sqrt(num_rows)


def test_rows_hold_every_arc_with_weight_once():
    rng = np.random.default_rng(0)
    key = rng.integers(6, size=(2, 40))
    weight = np.where(rng.random((2, 40)) < 0.3, 0, 1 + np.arange(40.0))
    arcs = rows.Arcs(*3 * [np.zeros((2, 40), np.int32)], weight.astype(np.float32))
    found = jax.jit(functools.partial(rows.by, num_rows=8))(arcs, key)
    for g in range(2):
        assert sorted(found.row[g].tolist()) == list(range(8))
        sizes = np.asarray(found.end[g] - found.begin[g])
        assert np.all(np.diff(sizes) <= 0)
        for row, begin, end in zip(found.row[g], found.begin[g], found.end[g], strict=True):
            want = weight[g][(key[g] == row) & (weight[g] > 0)]
            np.testing.assert_array_equal(found.arcs.weight[g, begin:end], want)
