import numpy as np
import pytest

from seqtrain.data.augment import SpecAugmentConfig, spec_augment, warp_and_shift

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
    assert bands == set(range(9))
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


def changed(features, lengths=(60, 30, 0), seed=0, **sizes):
    config = SpecAugmentConfig(**sizes)
    rng = np.random.default_rng(seed)
    return warp_and_shift(features, np.array(lengths, np.int32), rng, config)


def ramps():
    """f32[3, 60, 40]: value = 100 · frame + band."""
    frame, band = np.meshgrid(np.arange(60), np.arange(40), indexing='ij')
    return np.repeat((100 * frame + band)[None], 3, 0).astype(np.float32)


def test_shifts_move_whole_frames_by_at_most_so_many():
    seen = set()
    for seed in range(50):
        out = changed(ramps(), seed=seed, max_shift=2)
        moved = (out[0, 30, 0] - 3000) / 100
        seen.add(moved)
        expected = np.clip(np.arange(60) + moved, 0, 59)
        np.testing.assert_array_equal(out[0], ramps()[0, expected.astype(int)])
    assert seen == {-2, -1, 0, 1, 2}


def test_warps_stretch_the_bands_by_one_factor_per_utterance():
    factors = []
    for seed in range(50):
        out = changed(ramps(), seed=seed, max_warp=0.1)
        factor = out[0, 0, 20] / 20
        factors.append(factor)
        expected = 100 * np.arange(60)[:, None] + np.minimum(factor * np.arange(40), 39)
        np.testing.assert_allclose(out[0], expected, atol=2e-3)  # float32 near 6,000
    assert 0.9 <= min(factors) < 0.92
    assert 1.08 < max(factors) <= 1.1


def test_warps_and_shifts_leave_padding_and_their_input_alone():
    features = ramps()
    out = changed(features, max_warp=0.2, max_shift=3)
    np.testing.assert_array_equal(features, ramps())
    np.testing.assert_array_equal(out[1, 30:], features[1, 30:])
    np.testing.assert_array_equal(out[2], features[2])
    assert out[1, :30].max() <= features[1, 29].max()  # nothing from the padding comes in


@pytest.mark.parametrize('sizes', [{'max_warp': 1.0}, {'max_warp': -0.1}, {'max_shift': -1}])
def test_impossible_warps_and_shifts_are_refused(sizes):
    with pytest.raises(ValueError, match='max_warp'):
        SpecAugmentConfig(**sizes)
