import numpy as np

from seqtrain.data.augment import SpecAugmentConfig, spec_augment

LENGTHS = np.array([60, 30, 0], np.int32)


def ones():
    return np.ones((3, 60, 40), np.float32)


def masked(config, seed=0, lengths=LENGTHS):
    return spec_augment(ones(), lengths, np.random.default_rng(seed), config) == 0


def test_same_seed_same_masks_and_the_input_is_untouched():
    features = ones()
    config = SpecAugmentConfig()
    a = spec_augment(features, LENGTHS, np.random.default_rng(3), config)
    b = spec_augment(features, LENGTHS, np.random.default_rng(3), config)
    np.testing.assert_array_equal(a, b)
    assert (features == 1).all()
    assert (a == 0).any()


def test_widths_are_bounded():
    only_time = SpecAugmentConfig(0, 0, 1, max_time_width=20, max_time_fraction=0.2)
    only_bands = SpecAugmentConfig(1, 8, 0)
    frames, bands = set(), set()
    for seed in range(200):
        frames.add(masked(only_time, seed)[0].all(axis=1).sum())
        bands.add(masked(only_bands, seed)[0].all(axis=0).sum() if seed else 0)
    assert frames == set(range(13))  # 0.2 of 60 frames
    assert max(frames) == 12
    assert max(masked(only_bands, s)[0, 0].sum() for s in range(200)) == 8


def test_padding_and_empty_rows_stay():
    config = SpecAugmentConfig(4, 20, 4, 30, 1.0)
    for seed in range(20):
        mask = masked(config, seed)
        assert not mask[1, 30:].any()
        assert not mask[2].any()


def test_a_row_does_not_depend_on_the_other_rows_lengths():
    a = masked(SpecAugmentConfig(), 5, np.array([60, 30, 0], np.int32))
    b = masked(SpecAugmentConfig(), 5, np.array([60, 12, 60], np.int32))
    np.testing.assert_array_equal(a[0], b[0])


def test_no_masks_change_nothing():
    assert not masked(SpecAugmentConfig(0, 8, 0, 20)).any()
