"""Uniform alignments and the phones of an alignment."""

import pytest
from path_enumeration import enumerate_paths

from seqtrain.graphs import Lexicon, Topology, numerator, relabel
from seqtrain.graphs.alignment import Segment, segments, uniform_alignment


def test_uniform_by_hand():
    chain = uniform_alignment([0, 2, 0], Topology.make('chain', 3), 8)
    assert chain.tolist() == [0, 1, 4, 5, 5, 0, 1, 1]
    assert uniform_alignment([1], Topology.make('hmm3', 2), 4).tolist() == [3, 4, 5, 5]
    assert uniform_alignment([0, 0, 1], Topology.make('ctc', 2), 4).tolist() == [1, 0, 1, 2]


@pytest.mark.parametrize('kind', ['chain', 'ctc', 'hmm1', 'hmm3'])
def test_uniform_is_a_path_of_the_numerator(kind):
    lexicon = Lexicon.from_dict({'w': 'a b b'})
    topology = Topology.make(kind, 3)
    frames = 11 if kind == 'hmm3' else 7
    pdfs = uniform_alignment(lexicon.variants('w')[0], topology, frames)
    numerator_ = numerator('w', lexicon, topology, optional_silence=False)
    assert tuple(pdfs.tolist()) in enumerate_paths(numerator_, frames)


def test_too_short_says_by_how_much():
    with pytest.raises(ValueError, match='5 frames for 6 HMM states: 1 frames too short'):
        uniform_alignment([0, 1], Topology.make('hmm3', 2), 5)
    with pytest.raises(ValueError, match='No phones'):
        uniform_alignment([], Topology.make('hmm3', 2), 5)


@pytest.mark.parametrize('kind', ['chain', 'ctc', 'hmm3'])
def test_segments_undo_uniform(kind):
    phones = [0, 1, 1, 2, 0]
    topology = Topology.make(kind, 3)
    pdfs = uniform_alignment(phones, topology, 40)
    found = segments([*pdfs, -1, -1], topology)
    assert [s.phone for s in found] == phones
    blank = (pdfs == topology.blank).sum() if kind == 'ctc' else 0
    assert blank == (7 if kind == 'ctc' else 0)  # one of six units of 40 frames
    assert sum(s.frames for s in found) == 40 - blank
    assert all(s.frames > 0 and pdfs[s.start] == topology.forward[s.phone][0] for s in found)


def test_segments_by_hand():
    assert segments([1, 1, 0, 0], Topology.make('hmm1', 2)) == [Segment(1, 0, 2), Segment(0, 2, 2)]
    repeated = segments([0, 1, 2, 0, 1, 2], Topology.make('hmm3', 1))
    assert repeated == [Segment(0, 0, 3), Segment(0, 3, 3)]
    assert segments([], Topology.make('chain', 2)) == []


def test_pdfs_and_phones_of_another_topology_are_named():
    topology = Topology.make('chain', 4)
    with pytest.raises(
        ValueError, match=r'Frame 1 has pdf 57, but chain with 4 phones has .*0\.\.7'
    ):
        segments([0, 57], topology)
    with pytest.raises(ValueError, match='Frame 1 has pdf 57'):
        relabel([0, 57], topology, topology)
    for phone in (-1, 4):
        with pytest.raises(ValueError, match=rf'phone {phone}, but phone ids are 0\.\.3'):
            uniform_alignment([0, phone], topology, 10)
