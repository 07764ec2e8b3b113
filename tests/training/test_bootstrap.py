"""Flat-start alignments: hand-made cases."""

import types

import numpy as np
import pytest

from seqtrain.data.features import FeatureSet
from seqtrain.graphs import Lexicon, Topology
from seqtrain.training import align, bootstrap


def test_threshold_separates_two_classes():
    energy = np.array([0.1, 0.0, 5.0, 5.2, 4.9, 0.2])
    np.testing.assert_array_equal(bootstrap.energy_speech_mask(energy), [0, 0, 1, 1, 1, 0])


@pytest.mark.parametrize('energy', [[3.0], [2.0, 2.0, 2.0], []])
def test_one_class_is_all_speech(energy):
    assert bootstrap.energy_speech_mask(np.array(energy)).all()


CHAIN = Topology.make('chain', 3)  # silence 0, 1; phone 1 has pdfs 2, 3; phone 2 has 4, 5


def test_phones_are_spread_evenly_over_speech():
    speech = np.array([0, 0, 1, 1, 1, 0, 1, 1, 0], bool)
    labels = bootstrap.flat_start_labels(speech, [1, 2], CHAIN)
    np.testing.assert_array_equal(labels, [0, 1, 2, 3, 4, 0, 5, 5, 0])


def test_silences_shorter_than_their_states_are_speech():
    speech = np.array([0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 0], bool)
    labels = bootstrap.flat_start_labels(speech, [1], Topology.make('hmm3', 2))
    np.testing.assert_array_equal(labels, [3, 3, 4, 4, 5, 5, 5, 0, 1, 2, 2])


def test_too_little_speech_takes_all_frames():
    speech = np.array([0, 1, 0, 0], bool)
    labels = bootstrap.flat_start_labels(speech, [1, 2], CHAIN)
    np.testing.assert_array_equal(labels, [2, 3, 4, 5])
    with pytest.raises(ValueError, match='3 frames too short'):
        bootstrap.flat_start_labels(np.array([True]), [1, 2, 1, 2], CHAIN)


def test_priors_are_smoothed_frequencies():
    labels = [np.array([0, 0, 1, -1]), np.array([0])]
    np.testing.assert_allclose(
        np.exp(bootstrap.log_priors(labels, 3)), [4 / 7, 2 / 7, 1 / 7], rtol=1e-6
    )


def test_an_utterance_too_short_for_its_first_pronunciations_has_no_labels():
    lexicon = Lexicon.from_dict({'long': ['a b a b', 'a'], 'short': 'b'})
    features = FeatureSet(
        ('u', 'v'),
        ('s', 's'),
        ('long', 'short'),
        [np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)],
        (),
        8000,
    )
    data = types.SimpleNamespace(
        features=features, subsampling=1, lexicon=lexicon, topology=Topology.make('chain', 3)
    )
    first, second = align.flat_start(data)
    np.testing.assert_array_equal(first, [-1, -1, -1])
    np.testing.assert_array_equal(second, [4, 5, 5])


def test_without_silence_all_frames_are_speech():
    lexicon = Lexicon.from_dict({'x': 'a b'})
    loud = np.array([0, 0, 1, 1, 1, 1], np.float32)[:, None]
    data = types.SimpleNamespace(
        features=FeatureSet(('u',), ('s',), ('x',), [loud]),
        lexicon=lexicon,
        topology=CHAIN,
        subsampling=1,
    )
    np.testing.assert_array_equal(align.flat_start(data)[0], [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(align.flat_start(data, False)[0], [2, 3, 3, 4, 5, 5])
