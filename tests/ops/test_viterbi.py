"""Best paths against enumeration."""

import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from seqtrain import ops
from seqtrain.fsa import Fsa


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('seed', range(6))
def test_best_path_matches_enumeration(shared, seed):
    rng = np.random.default_rng(seed)
    fsas = [oracles.random_fsa(rng, 5, 12, 3) for _ in range(4)]
    scores = rng.normal(size=(4, 6, 3)).astype(np.float32) * 3
    lengths = np.array([6, 4, 1, 0], np.int32)
    if shared:
        fsas = [fsas[0]] * 4
    graph = ops.pack(fsas[0]) if shared else ops.pack_batch(fsas, 5, 12)
    best, labels = ops.viterbi(jnp.asarray(scores), lengths, graph)
    for b, fsa in enumerate(fsas):
        n = lengths[b]
        want, among = oracles.best_path(scores[b, :n], fsa)
        assert np.all(labels[b, n:] == -1)
        if among:
            np.testing.assert_allclose(best[b], want, rtol=1e-5, atol=1e-5)
            assert labels[b, :n].tolist() in among
        else:
            assert best[b] == -np.inf
            assert np.all(labels[b] == -1)


def test_bad_scores_give_no_alignment_and_leave_the_rest_alone():
    fsa = Fsa([0, 0], [0, 0], [0, 1], [0.0, 0.0], [0.0], [0.0])
    scores = np.zeros((2, 4, 3), np.float32)
    scores[0, 1, 1] = np.nan
    best, labels = ops.viterbi(jnp.asarray(scores), np.array([4, 4], np.int32), ops.pack(fsa))
    assert np.isnan(best[0])
    assert np.all(labels[0] == -1)
    assert np.all(labels[1] >= 0)
