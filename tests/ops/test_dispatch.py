"""The choice of a backend, and what compiles when."""

import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from backends import BACKENDS
from jax.sharding import Mesh, PartitionSpec

from seqtrain import losses, ops
from seqtrain.fsa import Fsa
from seqtrain.ops import cpu, dispatch


def test_without_the_core_it_says_so_once_and_runs_on_xla(monkeypatch, caplog):
    monkeypatch.setattr(cpu, '_HERE', cpu._HERE / 'nowhere')
    cpu.available.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger='seqtrain'):
            assert not cpu.available()
            assert not cpu.available()
        assert len(caplog.records) == 1
        assert 'C++ compiler' in caplog.text
        assert dispatch.backends() == ('xla',)
        with pytest.raises(ValueError, match='not built'):
            dispatch.check('cpu')
        with pytest.raises(RuntimeError, match='not built'):
            cpu.instructions()
    finally:
        cpu.available.cache_clear()


@pytest.mark.skipif(not cpu.available(), reason='the C++ core is not built')
def test_a_core_for_another_jaxlib_says_so_once_and_leaves_xla(monkeypatch, caplog):
    started = []

    def refuse(target, *args, **kwargs):
        assert started, 'the backend that checks the version is not there'
        raise jax.errors.JaxRuntimeError(f'INVALID_ARGUMENT: {target}: API version')

    monkeypatch.setattr(jax, 'local_devices', lambda backend: started.append(backend))
    monkeypatch.setattr(jax.ffi, 'register_ffi_target', refuse)
    cpu.available.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger='seqtrain'):
            assert not cpu.available()
            assert not cpu.available()
        assert len(caplog.records) == 1
        assert '--no-build-isolation' in caplog.text
        assert dispatch.backends() == ('xla',)
    finally:
        cpu.available.cache_clear()


def test_one_compilation_per_shape_whatever_the_graphs():
    rng = np.random.default_rng(0)
    traces = []

    @jax.jit
    def step(scores, lengths, graphs):
        traces.append(1)
        return ops.log_partition(scores, lengths, graphs)

    for _ in range(3):
        fsas = [oracles.random_fsa(rng, rng.integers(1, 5), rng.integers(1, 9), 3) for _ in 'ab']
        graphs = ops.pack_batch(fsas, num_states=5, num_arcs=10, num_pdfs=3)
        step(jnp.zeros((2, 4, 3)), jnp.array([4, 3], jnp.int32), graphs)
    assert len(traces) == 1


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('batched', [False, True])
def test_a_length_outside_the_batch_is_the_trouble_of_one_utterance(backend, batched):
    fsa = oracles.hmm_fsa(np.random.default_rng(4), 4, 8, 3)
    graph = ops.pack_batch([fsa] * 4) if batched else ops.pack(fsa)
    scores = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5, 3)), jnp.float32)

    def everything(lengths):
        def expected(scores):
            value, log_z = ops.expected_accuracy(scores, lengths, graph, scores, backend=backend)
            return value.sum(), (value, log_z)

        gradient, (value, log_z) = jax.grad(expected, has_aux=True)(scores)
        best, labels = ops.viterbi(scores, lengths, graph, backend=backend)
        total, gamma = ops.occupancies(scores, lengths, graph, backend=backend)
        return np.stack([value, log_z, total, best]), gradient, gamma, labels

    want = everything(np.array([5, 5, 4, 4], np.int32))
    got = everything(np.array([5, 6, 4, -1], np.int32))
    assert np.isfinite(want[0]).all()
    np.testing.assert_array_equal(want[0][:, ::2], got[0][:, ::2])
    assert np.isnan(got[0][:, 1::2]).all()
    for whole, part, blank in zip(want[1:], got[1:], (0, 0, -1), strict=True):
        np.testing.assert_array_equal(whole[::2], part[::2])
        assert (part[1::2] == blank).all()


@pytest.mark.parametrize('backend', BACKENDS)
def test_no_utterances_are_a_batch(backend):
    graph = ops.pack(oracles.random_fsa(np.random.default_rng(0), 4, 8, 3))
    scores, lengths = jnp.zeros((0, 5, 3)), jnp.zeros(0, jnp.int32)

    def total(scores):
        log_z = ops.log_partition(scores, lengths, graph, backend=backend)
        value, _ = ops.expected_accuracy(scores, lengths, graph, scores, backend=backend)
        return log_z.sum() + value.sum()

    assert jax.grad(total)(scores).shape == (0, 5, 3)
    assert ops.viterbi(scores, lengths, graph, backend=backend)[1].shape == (0, 5)


def test_vmap_over_graphs_and_scores():
    rng = np.random.default_rng(1)
    fsas = [oracles.random_fsa(rng, 4, 9, 3) for _ in range(6)]
    scores = jnp.asarray(rng.normal(size=(3, 2, 5, 3)), jnp.float32)
    lengths = jnp.array([5, 3], jnp.int32)
    batches = [ops.pack_batch(fsas[i : i + 2], 4, 9) for i in (0, 2, 4)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
    mapped = jax.vmap(lambda s, g: ops.log_partition(s, lengths, g))(scores, stacked)
    for i, graphs in enumerate(batches):
        np.testing.assert_allclose(
            mapped[i], ops.log_partition(scores[i], lengths, graphs), rtol=1e-6
        )
    shared = jax.tree.map(
        lambda x: x[:, 0], stacked
    )  # one graph for every entry of the mapped axis
    mapped = jax.vmap(lambda s, g: ops.log_partition(s, lengths, g))(scores, shared)
    for i in range(3):
        graph = jax.tree.map(lambda x, i=i: x[i], shared)
        np.testing.assert_allclose(
            mapped[i], ops.log_partition(scores[i], lengths, graph), rtol=1e-6
        )


def everything(backend: str):
    """f(scores, lengths, graphs, graph) -> a result of every kernel, one row an utterance."""

    def kernels(scores, lengths, graphs, graph):
        def total(scores):
            log_z = ops.log_partition(scores, lengths, graph, leaky=0.1, backend=backend)
            value, _ = ops.expected_accuracy(scores, lengths, graphs, scores, backend=backend)
            mmi = losses.lf_mmi(scores, lengths, graphs, graph, backend=backend).value
            return (log_z + value + mmi).sum(), (log_z, value, mmi)

        gradient, values = jax.grad(total, has_aux=True)(scores)
        return gradient, *values, *ops.viterbi(scores, lengths, graph, backend=backend)

    return kernels


def sharded_everything():
    """`everything`'s arguments, how two devices share them, and the mesh."""
    rng = np.random.default_rng(2)
    fsas = [oracles.hmm_fsa(rng, 4, 8, 3) for _ in range(4)]
    scores = rng.normal(size=(4, 5, 3)).astype(np.float32)
    scores[0, 1, 0] = -200  # redone in the log domain by one device only
    args = jnp.asarray(scores), jnp.array([5, 3, 4, 2]), ops.pack_batch(fsas), ops.pack(fsas[0])
    batch, whole = PartitionSpec('d'), PartitionSpec()
    return args, (batch, batch, batch, whole), Mesh(two_devices(), ('d',))


def two_devices():
    devices = jax.devices()[:2]
    if len(devices) < 2:
        pytest.skip('needs two devices')
    return np.array(devices)


@pytest.mark.parametrize('backend', BACKENDS)
def test_devices_that_share_a_batch_by_shard_map_compute_the_same(backend):
    args, specs, mesh = sharded_everything()
    kernels = everything(backend)
    shared = jax.shard_map(kernels, mesh=mesh, in_specs=specs, out_specs=PartitionSpec('d'))
    want = jax.jit(kernels)(*args)
    for a, b in zip(jax.jit(shared)(*args), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_the_gpu_kernels_lower_inside_shard_map():
    args, specs, mesh = sharded_everything()
    shared = jax.shard_map(
        everything('gpu'), mesh=mesh, in_specs=specs, out_specs=PartitionSpec('d')
    )
    assert 'manual_computation' in jax.jit(shared).lower(*args).as_text()


@pytest.mark.parametrize('which', range(6))
def test_shard_map_knows_that_results_differ_between_devices(which):
    args, specs, mesh = sharded_everything()
    shared = jax.shard_map(
        lambda *args: everything('auto')(*args)[which],
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec(),
    )
    with pytest.raises(ValueError, match='replicated'):
        jax.eval_shape(shared, *args)


def test_importing_ops_needs_no_device():
    program = 'from seqtrain import ops; print(*ops.BACKENDS)'
    nowhere = os.environ | {'JAX_PLATFORMS': 'nowhere'}  # asking for a device is an error there
    command = [sys.executable, '-c', program]
    done = subprocess.run(command, env=nowhere, capture_output=True, text=True)
    assert done.stdout.split() == ['auto', 'xla', 'cpu', 'gpu'], done.stderr


@pytest.mark.parametrize('backend', BACKENDS)
def test_vmap_over_no_frames(backend):
    graph = ops.pack(Fsa([0], [0], [0], [0.0], [-1.0], [-2.0]))
    scores, lengths = jnp.zeros((2, 3, 0, 1)), jnp.zeros((2, 3), jnp.int32)
    total = jax.vmap(lambda s, n: ops.log_partition(s, n, graph, backend=backend))(scores, lengths)
    np.testing.assert_array_equal(total, np.full((2, 3), -3.0))
    risk, _ = jax.vmap(lambda s, n: ops.expected_accuracy(s, n, graph, s, backend=backend))(
        scores, lengths
    )
    np.testing.assert_array_equal(risk, np.zeros((2, 3)))
    best, path = jax.vmap(lambda s, n: ops.viterbi(s, n, graph, backend=backend))(scores, lengths)
    np.testing.assert_array_equal(best, np.full((2, 3), -3.0))
    assert path.shape == (2, 3, 0)
