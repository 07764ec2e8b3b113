"""The C++ core walks a lattice layer by layer; values are those of the general recursions."""

import jax
import numpy as np
import pytest

from seqtrain import ops
from seqtrain.fsa import Fsa
from seqtrain.lattices import LatticeGenerator
from seqtrain.ops import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason='the C++ core is not built')


@pytest.fixture
def batch(graph, scores):
    """Three lattices of different lengths, one in a graph that is none (it has a loop)."""
    generator = LatticeGenerator(graph, beam=1e3, lattice_beam=9.0)
    lengths = np.array([7, 5, 8], np.int32)
    matrix = np.zeros((3, 8, graph.num_pdfs), np.float32)
    fsas = []
    for row, length in enumerate(lengths):
        matrix[row, :length] = scores(int(length), seed=row)
        pair = generator.pair(matrix[row, :length], 'x y')
        fsas.append(pair.denominator.to_fsa())
    return matrix, lengths, ops.pack_batch(fsas, 400, 2000)


def counted(call):
    before = cpu.layered()
    result = [np.asarray(x) for x in call()]
    return result, cpu.layered() - before


def test_occupancies(batch):
    (log_z, gamma), count = counted(lambda: ops.occupancies(*batch, backend='cpu'))
    assert count == 3
    expected = ops.occupancies(*batch, backend='xla')
    np.testing.assert_allclose(log_z, expected[0], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(gamma, expected[1], atol=1e-5)
    inside = np.arange(8) < batch[1][:, None]
    np.testing.assert_allclose(gamma.sum(-1), inside, atol=1e-6)


def test_expected_accuracy(batch):
    accuracy = np.random.default_rng(0).random(batch[0].shape).astype(np.float32)

    def both(backend):
        def value(s):
            found, log_z = ops.expected_accuracy(s, batch[1], batch[2], accuracy, backend=backend)
            return found.sum(), (found, log_z)

        gradient, aux = jax.grad(value, has_aux=True)(batch[0])
        return *aux, gradient

    found, count = counted(lambda: both('cpu'))
    assert count >= 3
    for one, other in zip(found, both('xla'), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[2].sum(-1), 0, atol=1e-6)


def test_shorter_utterances_than_their_lattice_have_no_path(batch):
    matrix, _, graph = batch
    (log_z, gamma), _ = counted(
        lambda: ops.occupancies(matrix, np.array([6, 5, 8], np.int32), graph, backend='cpu')
    )
    assert log_z[0] == -np.inf
    assert not gamma[0].any()
    assert np.isfinite(log_z[1:]).all()


def test_forbidden_pdfs_and_broken_scores(batch):
    matrix, lengths, graph = batch
    hard = matrix.copy()
    hard[0, 2, 1] = -np.inf
    hard[1, 3, 0] = np.nan
    hard[2, 4, 0] -= 300.0
    (log_z, gamma), _ = counted(lambda: ops.occupancies(hard, lengths, graph, backend='cpu'))
    expected = ops.occupancies(hard, lengths, graph, backend='xla')
    assert np.isnan(log_z[1])
    np.testing.assert_allclose(log_z, expected[0], rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(gamma, expected[1], atol=1e-5)


def test_a_graph_with_a_loop_takes_the_general_way(batch):
    matrix, lengths, _ = batch
    loop = ops.pack_batch([_loop()] * 3)
    (log_z, _), count = counted(lambda: ops.occupancies(matrix, lengths, loop, backend='cpu'))
    assert count == 0
    np.testing.assert_allclose(
        log_z, ops.log_partition(matrix, lengths, loop, backend='xla'), rtol=1e-6
    )


def _loop():
    return Fsa.from_arcs([(0, 0, 0, 0.0), (0, 1, 1, -1.0)], np.array([0, -np.inf]), np.zeros(2))
