"""What is particular to the C++ core: lanes, both directions at once, checkpoints, threads."""

import concurrent.futures
import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import Mesh, PartitionSpec

from seqtrain import ops
from seqtrain.fsa import Fsa
from seqtrain.ops import cpu, log_expectation

pytestmark = pytest.mark.skipif(not cpu.available(), reason='the C++ core is not built')


MAKES = pytest.mark.parametrize('make', [oracles.random_fsa, oracles.hmm_fsa, oracles.mixed_fsa])


def graph_of(make, states=40, arcs=200, pdfs=7, seed=0):
    """A larger random graph that always has paths: all states start and end."""
    fsa = make(np.random.default_rng(seed), states, arcs, pdfs)
    ends = np.random.default_rng(seed + 1).normal(size=states)
    return Fsa(fsa.src, fsa.dst, fsa.pdf, fsa.weight, ends, ends[::-1])


def ragged(batch, frames, pdfs=7, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(batch, frames, pdfs)).astype(np.float32)
    return jnp.asarray(scores), rng.integers(1, frames + 1, size=batch).astype(np.int32)


@MAKES
@pytest.mark.parametrize('leaky', [0.0, 0.05])
def test_every_number_of_lanes_agrees_with_xla(make, leaky):
    # 1 runs both directions at once; 3, 7 and 33 leave lanes empty; lengths differ.
    graph = ops.pack(graph_of(make))
    scores, lengths = ragged(33, 12)
    want_z, want = ops.occupancies(scores, lengths, graph, leaky=leaky, backend='xla')
    before = cpu.redone()
    for batch in (1, 3, 7, 16, 33):
        log_z, gamma = ops.occupancies(
            scores[:batch], lengths[:batch], graph, leaky=leaky, backend='cpu'
        )
        np.testing.assert_allclose(log_z, want_z[:batch], rtol=1e-5)
        np.testing.assert_allclose(gamma, want[:batch], atol=1e-5)
    # The log domain would hide what the lanes got wrong.
    assert cpu.redone() == before


@pytest.fixture(params=['avx512', 'avx2', 'base'])
def instructions(request):
    best = cpu.instructions()
    try:
        cpu.choose_instructions(request.param)
    except ValueError:
        pytest.skip(f'this machine has no {request.param}')
    assert cpu.instructions() == request.param
    yield request.param
    cpu.choose_instructions(best)


@MAKES
def test_every_instruction_set_agrees_with_xla(instructions, make):
    graph = ops.pack(graph_of(make))
    scores, lengths = ragged(33, 12)
    accuracy = ragged(33, 12, seed=1)[0]
    want = ops.occupancies(scores, lengths, graph, backend='xla')
    want_moments = log_expectation.expectation(scores, accuracy, lengths, graph, 0.0)
    want_best = ops.viterbi(scores, lengths, graph, backend='xla')
    before = cpu.redone()
    for batch in (1, 5, 16, 33):
        s, n = scores[:batch], lengths[:batch]
        got = cpu.forward_backward(s, n, graph, 0.0)
        moments = cpu.expectation(s, accuracy[:batch], n, graph, 0.0)
        best = cpu.viterbi(s, n, graph)
        for a, b in zip((*got, *moments), (*want, *want_moments), strict=True):
            np.testing.assert_allclose(a, b[:batch], rtol=1e-5, atol=1e-5)
        for a, b in zip(best, want_best, strict=True):
            np.testing.assert_array_equal(a, b[:batch])
    assert cpu.redone() == before


def test_every_instruction_set_takes_the_same_of_equal_paths(instructions):
    fsa = graph_of(oracles.random_fsa)
    flat = Fsa(fsa.src, fsa.dst, fsa.pdf, 0 * fsa.weight, 0 * fsa.initial, 0 * fsa.final)
    scores, lengths = ragged(33, 12)
    scores = jnp.round(scores)
    want = ops.viterbi(scores, lengths, ops.pack(flat), backend='xla')
    for batch in (1, 4, 5, 16, 33):
        best = cpu.viterbi(scores[:batch], lengths[:batch], ops.pack(flat))
        for a, b in zip(best, want, strict=True):
            np.testing.assert_array_equal(a, b[:batch])


def test_the_graphs_are_of_all_kinds():
    # No groups; groups, each the only one of its state; groups, some of which share a state.
    random, hmm, mixed = (ops.pack(graph_of(make)) for make in MAKES.args[1])
    assert random.group is None
    assert len(hmm.group_dst) == len(set(hmm.group_dst.tolist()))
    assert len(mixed.group_dst) > len(set(mixed.group_dst.tolist()))


def test_unknown_instructions_are_refused():
    with pytest.raises(ValueError, match='no kernels'):
        cpu.choose_instructions('avx1024')


def test_changed_weights_are_seen_in_the_next_call():
    # Plans are kept from call to call, and known by the content of the graph.
    graph = ops.pack(graph_of(oracles.hmm_fsa))
    scores, lengths = ragged(2, 6)
    first = ops.log_partition(scores, lengths, graph, backend='cpu')
    heavier = dataclasses.replace(graph, weight=graph.weight + 1.0)
    second = ops.log_partition(scores, lengths, heavier, backend='cpu')
    np.testing.assert_allclose(second, first + lengths, rtol=1e-5)
    for end in ('initial', 'final'):
        later = dataclasses.replace(graph, **{end: getattr(graph, end) + 1.0})
        ended = ops.log_partition(scores, lengths, later, backend='cpu')
        np.testing.assert_allclose(ended, first + 1.0, rtol=1e-5)
    third = ops.log_partition(scores, lengths, graph, backend='cpu')
    np.testing.assert_array_equal(third, first)


def test_columns_without_arcs_do_not_matter():
    # Whether most pdfs occur (they get idle columns) or few (they are picked out).
    fsa = graph_of(oracles.hmm_fsa, pdfs=7)
    # Plans of one graph for other numbers of columns are kept side by side.
    for pdfs in (9, 8, 40, 9):
        scores = np.random.default_rng(0).normal(size=(17, 8, pdfs)).astype(np.float32)
        lengths = np.full(17, 8, np.int32)
        plain = ops.occupancies(jnp.asarray(scores), lengths, ops.pack(fsa), backend='cpu')
        np.testing.assert_allclose(plain[1].sum(-1), np.ones((17, 8)), rtol=1e-5)
        scores[:, :, 7:] = 500.0
        wild = ops.occupancies(jnp.asarray(scores), lengths, ops.pack(fsa), backend='cpu')
        for a, b in zip(wild, plain, strict=True):
            np.testing.assert_array_equal(a, b)
        assert not np.any(wild[1][:, :, 7:])


@pytest.mark.parametrize('batch', [1, 17])
@pytest.mark.parametrize('pdfs', [9, 40])
def test_nan_in_columns_without_arcs_is_seen(batch, pdfs):
    graph = ops.pack(graph_of(oracles.hmm_fsa, pdfs=7))
    scores = np.random.default_rng(0).normal(size=(batch, 8, pdfs)).astype(np.float32)
    scores[0, 2, -1] = np.nan
    log_z, gamma = ops.occupancies(jnp.asarray(scores), np.full(batch, 8), graph, backend='cpu')
    assert np.isnan(log_z).tolist() == [True] + [False] * (batch - 1)
    assert not np.any(gamma[0])


def test_exponentials_are_right_to_single_precision():
    # A free loop: occupancies are a softmax, here over 40 nats in small steps.
    pdfs = 997
    fsa = Fsa(np.zeros(pdfs), np.zeros(pdfs), range(pdfs), np.zeros(pdfs), [0.0], [0.0])
    scores = np.linspace(-40, 0, pdfs, dtype=np.float32)[None, None]
    _, gamma = ops.occupancies(jnp.asarray(scores), np.array([1]), ops.pack(fsa), backend='cpu')
    want = np.exp(scores.astype(np.float64))
    np.testing.assert_allclose(gamma, want / want.sum(), rtol=1e-6)


@pytest.mark.parametrize('batch', [1, 5, 33])
@pytest.mark.parametrize('parallel', [1, 4])
def test_what_underflows_is_redone_and_counted(batch, parallel):
    # State 0 leads by e^70 a frame in the first half, state 1 in the second; both end equal. In
    # every other utterance both are equal in all frames. Arcs group if none are parallel.
    states = np.repeat([0, 1], parallel)
    none = np.zeros(2 * parallel)
    crossing = Fsa(states, states, range(2 * parallel), none, [0.0, 0.0], [0.0, 0.0])
    graph = ops.pack(crossing)
    assert (graph.group is None) == (parallel > 1)
    scores = np.zeros((batch, 8, 2 * parallel), np.float32)
    scores[::2, :4, parallel:] = scores[::2, 4:, :parallel] = -70.0
    lengths, accuracy = np.full(batch, 8, np.int32), scores / 70
    crossed = np.arange(batch) % 2 == 0
    before = cpu.redone()
    log_z, gamma = cpu.forward_backward(scores, lengths, graph, 0.0)
    want = np.log(2) + 8 * np.log(parallel) - 280 * crossed
    np.testing.assert_allclose(log_z, want, rtol=1e-6)
    np.testing.assert_allclose(gamma, np.full(gamma.shape, 0.5 / parallel), atol=1e-6)
    assert cpu.redone() == before + crossed.sum()
    _, value, gradient = cpu.expectation(scores, accuracy, lengths, graph, 0.0)
    np.testing.assert_allclose(value, -4 * crossed, atol=1e-5)
    np.testing.assert_allclose(gradient, np.zeros(gradient.shape), atol=1e-5)
    assert cpu.redone() == before + 2 * crossed.sum()


@MAKES
@pytest.mark.parametrize('batch', [1, 19])
def test_checkpoints_change_nothing(monkeypatch, make, batch):
    graph = ops.pack(graph_of(make))
    scores, lengths = ragged(batch, 23)
    want = cpu.forward_backward(scores, lengths, graph, 0.01)
    want_moments = cpu.expectation(scores, scores**2, lengths, graph, 0.01)
    monkeypatch.setattr(cpu, 'HISTORY_BYTES', 1)
    before = cpu.redone()
    got = cpu.forward_backward(scores, lengths, graph, 0.01)
    got_moments = cpu.expectation(scores, scores**2, lengths, graph, 0.01)
    for a, b in zip((*got, *got_moments), (*want, *want_moments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert cpu.redone() == before


@MAKES
@pytest.mark.parametrize('batch', [8, 32])
def test_a_history_beyond_the_caches_is_written_past_them(monkeypatch, instructions, make, batch):
    graph = ops.pack(graph_of(make, states=2500, arcs=10_000))
    scores, lengths = ragged(batch, 90)

    def both():
        moments = cpu.expectation(scores, scores**2, lengths, graph, 0.0)
        return *cpu.forward_backward(scores, lengths, graph, 0.0), *moments

    before, large = cpu.redone(), both()
    monkeypatch.setattr(cpu, 'HISTORY_BYTES', 1)  # so that little is kept at a time
    for a, b in zip(large, both(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert cpu.redone() == before


@MAKES
@pytest.mark.parametrize('leaky', [0.0, 0.05, 0.5])
def test_moments_in_every_number_of_lanes_agree_with_xla(make, leaky):
    graph = ops.pack(graph_of(make))
    scores, lengths = ragged(33, 9)
    accuracy = ragged(33, 9, seed=1)[0]
    before = cpu.redone()
    want = log_expectation.expectation(scores, accuracy, lengths, graph, leaky)
    for batch in (1, 3, 7, 33):
        got = cpu.expectation(scores[:batch], accuracy[:batch], lengths[:batch], graph, leaky)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b[:batch], rtol=1e-5, atol=1e-5)
    assert cpu.redone() == before


def test_four_devices_from_four_threads_at_once():
    devices = jax.devices('cpu')[:4]
    if len(devices) < 4:
        pytest.skip('needs four host devices')
    fsa = graph_of(oracles.hmm_fsa)
    scores, lengths = ragged(24, 30)
    want_z, want = ops.occupancies(scores, lengths, ops.pack(fsa), backend='xla')
    barrier = threading.Barrier(4)

    def replica(device):
        graph = jax.device_put(ops.pack(fsa), device)
        mine = jax.device_put(scores, device)
        step = jax.jit(lambda s, g: ops.occupancies(s, lengths, g, backend='cpu'))
        barrier.wait(timeout=60)
        return [jax.device_get(step(mine, graph)) for _ in range(10)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        runs = [run for result in pool.map(replica, devices) for run in result]
    for log_z, gamma in runs:
        np.testing.assert_allclose(log_z, want_z, rtol=1e-5)
        np.testing.assert_allclose(gamma, want, atol=1e-5)


def test_devices_that_share_a_batch_by_shard_map_compute_each_utterance_once():
    devices = jax.devices('cpu')[:2]
    if len(devices) < 2:
        pytest.skip('needs two host devices')
    graph = ops.pack(graph_of(oracles.hmm_fsa))
    scores, lengths = ragged(6, 9)
    scores = scores.at[:, 0, 1].set(-200.0)  # the log domain counts what it redoes
    mesh, part = Mesh(np.array(devices), ('d',)), PartitionSpec('d')
    before = cpu.redone()
    shared = jax.shard_map(
        lambda s, n: ops.occupancies(s, n, graph, backend='cpu'),
        mesh=mesh,
        in_specs=part,
        out_specs=part,
    )
    log_z, gamma = jax.block_until_ready(jax.jit(shared)(scores, lengths))
    assert cpu.redone() == before + 6
    assert gamma.sharding.spec == part
    want_z, want = ops.occupancies(scores, lengths, graph, backend='cpu')
    np.testing.assert_allclose(log_z, want_z, rtol=1e-6)
    np.testing.assert_allclose(gamma, want, atol=1e-6)


def test_results_do_not_depend_on_the_neighbours_in_the_lanes():
    graph = ops.pack(graph_of(oracles.hmm_fsa))
    scores, lengths = ragged(20, 15)
    _, together = ops.occupancies(scores, lengths, graph, backend='cpu')
    spoiled = scores.at[1::2].set(jnp.nan)
    log_z, alone = ops.occupancies(spoiled, lengths, graph, backend='cpu')
    assert np.all(np.isnan(log_z[1::2]))
    assert not np.any(alone[1::2])
    np.testing.assert_array_equal(alone[::2], together[::2])


def test_the_chosen_instructions_have_a_name():
    assert cpu.instructions() in ('avx512', 'avx2', 'base')
