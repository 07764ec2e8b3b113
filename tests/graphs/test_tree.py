"""Decision trees find the contexts that matter, in data made for it."""

import numpy as np
import pytest

from seqtrain.graphs import Topology
from seqtrain.graphs.alignment import uniform_alignment
from seqtrain.graphs.tree import ContextStatistics, grow, phone_questions

VOWELS, STOPS = (1, 2), (3, 4)


def statistics(kind='chain', depends_on='left', utterances=150, shift=3.0):
    """Phone 5 sounds different next to a vowel; 1, 2 sound alike, and so do 3, 4."""
    rng = np.random.default_rng(0)
    topology = Topology.make(kind, 6)
    result = ContextStatistics(topology)
    means = np.array([[0, 0], [4, 4], [4, 4.5], [-4, 4], [-4, 4.5], [0, -4]])
    for _ in range(utterances):
        phones = rng.permutation([1, 2, 3, 4, 5, 5]).tolist()
        frames = 4 * topology.num_states * len(phones)
        pdfs = uniform_alignment(phones, topology, frames)
        owner = np.repeat(np.arange(len(phones)), frames // len(phones))
        features = means[np.array(phones)[owner]] + rng.normal(size=(frames, 2))
        around = [-1, *phones, -1]
        for index, phone in enumerate(phones):
            neighbour = around[index if depends_on == 'left' else index + 2]
            if phone == 5 and neighbour in VOWELS:
                features[owner == index] += shift
        result.add(features, pdfs)
    return result


def test_questions_are_clusters_of_like_phones():
    questions = phone_questions(statistics())
    assert {frozenset(VOWELS), frozenset(STOPS), frozenset([5])} <= set(questions)
    assert frozenset([1, 3]) not in questions
    assert len(questions) == len(set(questions))


def test_biphone_tree_splits_where_the_data_do():
    stats = statistics()
    tied = grow(stats, context='left', min_gain=100.0)
    assert not tied.right_context
    assert tied.pdfs(1, 5) == tied.pdfs(2, 5) != tied.pdfs(3, 5)
    assert tied.pdfs(3, 5) == tied.pdfs(4, 5)
    assert tied.num_pdfs == 12 + 2  # forward and loop of phone 5 split once each
    np.testing.assert_array_equal(np.sort(tied.base_pdf), sorted([*range(12), 10, 11]))


def test_left_trees_do_not_see_the_right():
    stats = statistics(depends_on='right')
    assert grow(stats, context='left', min_gain=100.0).num_pdfs == 12
    tied = grow(stats, context='both', min_gain=100.0)
    assert tied.right_context
    assert tied.pdfs(3, 5, 1) == tied.pdfs(-1, 5, 2) != tied.pdfs(3, 5, 4)


def test_three_state_trees_are_grown_per_state():
    tied = grow(statistics('hmm3'), context='left', min_gain=100.0)
    assert tied.num_pdfs == 18 + 3
    forward, loop = tied.pdfs(1, 5)
    assert forward == loop


def test_limits_are_kept():
    stats = statistics()
    assert grow(stats, num_pdfs=13, min_gain=100.0).num_pdfs == 13
    assert grow(stats, min_frames=1e9).num_pdfs == 12
    assert grow(stats, untied=range(6)).num_pdfs == 12
    grown = grow(stats, context='both', min_gain=0.1, min_frames=10.0, num_pdfs=60)
    assert 14 < grown.num_pdfs <= 60
    np.testing.assert_array_equal(np.unique(grown.table), np.arange(grown.num_pdfs))


def test_same_data_same_tree():
    one, two = (grow(statistics(), context='both', min_gain=5.0) for _ in range(2))
    assert one.content() == two.content()


def test_splits_of_equal_gain_come_in_turn():
    def row(frames, mean):
        return np.array([frames, frames * mean, frames * (1 + mean**2)])

    means = {1: -10.0, 2: -9.0, 3: 9.0, 4: 10.0}
    stats = ContextStatistics(Topology.make('hmm1', 6))
    for phone in range(6):
        stats.sums[phone] = {(-1, -1): row(100, means.get(phone, 0.0))}
    for phone in (1, 2):  # the same frames, and their halves mirror each other
        stats.sums[phone] = {(left, -1): row(200, mean) for left, mean in means.items()}
    tied = grow(stats, min_gain=1.0)
    for phone in (1, 2):
        assert len({tied.pdfs(left, phone) for left in means}) == 4


def test_bad_input():
    stats = statistics(utterances=1)
    with pytest.raises(ValueError, match='choose left or both'):
        grow(stats, context='right')
    with pytest.raises(ValueError, match='4 aligned frames, 3 of features'):
        stats.add(np.zeros((3, 2)), [2, 3, 3, 3])
    with pytest.raises(ValueError, match='No statistics'):
        grow(ContextStatistics(stats.topology))
