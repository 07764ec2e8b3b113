import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from seqtrain.data.buckets import Buckets
from seqtrain.data.utterance import DataError


def some_features(lengths, dim=2):
    return [np.full((n, dim), i + 1, np.float32) for i, n in enumerate(lengths)]


def test_shapes_follow_the_quantiles():
    buckets = Buckets.fit(range(1, 101), 4, batch_size=8, multiple_of=1)
    assert [t for _, t in buckets.shapes] == [25, 50, 75, 100]
    assert {b for b, _ in buckets.shapes} == {8}


def test_frames_per_batch_gives_long_utterances_fewer_rows():
    buckets = Buckets.fit([10, 20, 40, 500], 4, frames_per_batch=240, multiple_of=10)
    assert buckets.shapes == ((24, 10), (12, 20), (6, 40), (1, 500))


def test_equal_lengths_need_one_shape():
    assert Buckets.fit([50] * 9, 4, batch_size=2).shapes == ((2, 60),)


@hypothesis.given(
    st.lists(st.integers(1, 300), min_size=1, max_size=80),
    st.integers(1, 6),
    st.integers(1, 7),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_plan_takes_everything_once_and_leaves_at_most_one_batch_unfilled(lengths, count, size):
    for sizes in ({'batch_size': size}, {'frames_per_batch': 100 * size}):
        buckets = Buckets.fit(lengths, count, **sizes)
        groups = buckets.plan(range(len(lengths)), lengths)
        assert sorted(i for _, group in groups for i in group) == list(range(len(lengths)))
        assert sum(len(group) < buckets.shapes[b][0] for b, group in groups) <= 1
        for bucket, group in groups:
            rows, frames = buckets.shapes[bucket]
            assert 0 < len(group) <= rows
            assert max(lengths[i] for i in group) <= frames


def test_batch_pads_with_zeros_and_marks_empty_rows():
    buckets = Buckets(((3, 4),))
    batch = buckets.batch(0, [1, 0], some_features([2, 3]))
    assert batch.indices.tolist() == [1, 0, -1]
    assert batch.lengths.tolist() == [3, 2, 0]
    assert batch.features[:, :, 0].tolist() == [[2, 2, 2, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert (batch.features.dtype, batch.lengths.dtype) == (np.float32, np.int32)


def test_batches_cover_the_set_and_shuffle_by_seed():
    features = some_features(range(1, 40))
    buckets = Buckets.fit([len(x) for x in features], 3, batch_size=4)

    def rows(seed):
        rng = None if seed is None else np.random.default_rng(seed)
        return [batch.indices.tolist() for batch in buckets.batches(features, rng=rng)]

    for seed in (None, 0, 1):
        used = sorted(i for row in rows(seed) for i in row if i >= 0)
        assert used == list(range(39))
    assert rows(0) == rows(0) != rows(1)


def test_too_long_an_utterance_is_an_error_that_says_what_to_do():
    with pytest.raises(DataError, match='fit the buckets to all sets'):
        Buckets.fit([10], batch_size=1).of(1000)


@pytest.mark.parametrize('size', [{'batch_size': 2}, {'frames_per_batch': 100}])
def test_an_utterance_without_frames_is_an_error(size):
    with pytest.raises(DataError, match='Utterance 1 has 0 frames'):
        Buckets.fit([5, 0, 5], 2, **size)


def test_no_utterances_or_no_size_is_an_error():
    with pytest.raises(DataError, match='all were skipped'):
        Buckets.fit([], batch_size=1)
    with pytest.raises(DataError, match='either'):
        Buckets.fit([1])
    with pytest.raises(DataError, match='either'):
        Buckets.fit([1], batch_size=1, frames_per_batch=1)
    for wrong in ({'batch_size': 0}, {'batch_size': -1}, {'num_buckets': 0, 'batch_size': 1}):
        with pytest.raises(DataError, match='at least 1'):
            Buckets.fit([1], **wrong)
