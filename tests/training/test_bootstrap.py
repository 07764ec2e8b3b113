"""Flat-start alignments: hand-made cases."""

import numpy as np
import pytest

from seqtrain.training import bootstrap


def test_threshold_separates_two_classes():
    energy = np.array([0.1, 0.0, 5.0, 5.2, 4.9, 0.2])
    np.testing.assert_array_equal(bootstrap.energy_speech_mask(energy), [0, 0, 1, 1, 1, 0])


@pytest.mark.parametrize('energy', [[3.0], [2.0, 2.0, 2.0], []])
def test_one_class_is_all_speech(energy):
    assert bootstrap.energy_speech_mask(np.array(energy)).all()


def test_states_are_spread_evenly_over_speech():
    speech = np.array([0, 1, 1, 1, 1, 0, 0], bool)
    labels = bootstrap.flat_start_labels(speech, [(2, 3)], (0, 1))
    np.testing.assert_array_equal(labels, [0, 2, 2, 3, 3, 0, 1])


def test_too_little_speech_takes_all_frames():
    speech = np.array([0, 1, 0, 0], bool)
    labels = bootstrap.flat_start_labels(speech, [(2, 3), (4, 5)], (0, 1))
    np.testing.assert_array_equal(labels, [2, 3, 4, 5])


def test_priors_are_smoothed_frequencies():
    labels = [np.array([0, 0, 1, -1]), np.array([0])]
    np.testing.assert_allclose(
        np.exp(bootstrap.log_priors(labels, 3)), [4 / 7, 2 / 7, 1 / 7], rtol=1e-6
    )
