"""What `Fsa.validate` refuses."""

import numpy as np
import pytest

from seqtrain.fsa import Fsa, FsaError

GOOD = {
    'src': [0],
    'dst': [1],
    'pdf': [0],
    'weight': [0.0],
    'initial': [0.0, -np.inf],
    'final': [-np.inf, 0.0],
}


def test_a_good_one_passes_and_holds_its_types():
    fsa = Fsa(**GOOD).validate()
    assert fsa.src.dtype == fsa.pdf.dtype == np.int32
    assert fsa.weight.dtype == fsa.initial.dtype == np.float32
    assert (fsa.num_states, fsa.num_arcs, fsa.num_pdfs) == (2, 1, 1)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'src': [0, 0]}, 'one entry per arc'),
        ({'final': [0.0]}, 'one entry per state'),
        ({'src': [2]}, 'Arc 0: src=2 is not a state'),
        ({'dst': [-1]}, 'Arc 0: dst=-1'),
        ({'pdf': [-1]}, 'epsilon'),
        ({'pdf': [2**32 + 1]}, 'Arc 0: pdf is 4294967297; it must be an integer of 32 bits'),
        ({'pdf': [1.9]}, 'pdf is 1.9'),
        ({'dst': [np.nan]}, 'dst is nan'),
        ({'weight': [np.nan]}, r'weight\[0\] is nan'),
        ({'final': [np.inf, 0.0]}, r'final\[0\] is inf'),
        ({'initial': [-np.inf, -np.inf]}, 'No initial state'),
        ({'final': [-np.inf, -np.inf]}, 'No final state'),
        ({'initial': [], 'final': []}, 'no states'),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(FsaError, match=message):
        Fsa(**{**GOOD, **change}).validate()


def test_an_acceptor_cannot_change_after_it_was_packed():
    weight = np.zeros(1, np.float32)
    fsa = Fsa([0], [0], [0], weight, [0.0], [0.0])
    with pytest.raises(ValueError, match='read-only'):
        fsa.weight[:] = -1.0
    weight[:] = -1.0  # the caller's array stays the caller's
    assert fsa.weight.tolist() == [0.0]
