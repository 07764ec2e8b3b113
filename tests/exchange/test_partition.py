"""Partition: round trips, balance, large leaves split, wrong trees refused."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from seqtrain.exchange import Partition, PartitionError


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5),
    num_shards=st.integers(1, 7),
)
def test_split_and_join_are_inverse_and_balanced(shapes, num_shards):
    rng = np.random.default_rng(0)
    tree = {str(i): rng.normal(size=s).astype(np.float32) for i, s in enumerate(shapes)}
    size = sum(leaf.size for leaf in tree.values())
    if size < num_shards:
        with pytest.raises(PartitionError, match='Cannot cut'):
            Partition.make(tree, num_shards)
        return
    partition = Partition.make(tree, num_shards)
    shards = partition.split(tree)
    sizes = [len(shard) for shard in shards]
    assert sum(sizes) == size
    assert max(sizes) - min(sizes) <= 1
    back = partition.join(shards)
    for name, leaf in tree.items():
        np.testing.assert_array_equal(back[name], leaf)
        assert not any(np.shares_memory(back[name], shard) for shard in shards)
    ids = np.concatenate([partition.segments(s) for s in range(num_shards)])
    expected = np.repeat(np.arange(len(shapes)), [leaf.size for leaf in tree.values()])
    np.testing.assert_array_equal(ids, expected)


def test_other_float_types_come_back_as_they_were():
    tree = {'h': jnp.array([1.5, -2.0], jnp.bfloat16), 'f': jnp.array([0.1], jnp.float32)}
    partition = Partition.make(tree, 2)
    assert all(shard.dtype == np.float32 for shard in partition.split(tree))
    back = partition.join(partition.split(tree))
    assert back['h'].dtype == jnp.bfloat16
    np.testing.assert_array_equal(back['h'].astype(np.float32), [1.5, -2.0])
    np.testing.assert_array_equal(back['f'], tree['f'])


def test_what_single_precision_cannot_hold_is_refused_or_becomes_infinite():
    tree = {'w': np.array([0.1, 1e38])}
    partition = Partition.make(tree, 1)
    (shard,) = partition.split(tree)
    np.testing.assert_array_equal(shard, np.float32([0.1, 1e38]))
    (update,) = partition.split({'w': np.array([1.0, -1e300])})
    np.testing.assert_array_equal(update, [1.0, -np.inf])
    for wrong in (1e300, np.nan):
        with pytest.raises(PartitionError, match=r"'w'\] of dtype float64 .* scale it"):
            Partition.make({'w': np.array([1.0, wrong])}, 1)


def test_wrong_trees_get_a_sentence():
    tree = {'a': np.zeros(3, np.float32), 'b': np.zeros((2, 2), np.float32)}
    partition = Partition.make(tree, 2)
    with pytest.raises(PartitionError, match='structure'):
        partition.split({'a': tree['a']})
    with pytest.raises(PartitionError, match=r"'b'.*shape \(4,\)"):
        partition.split({'a': tree['a'], 'b': np.zeros(4, np.float32)})
    with pytest.raises(PartitionError, match=r"'b'\] is of type float; make it an array"):
        Partition.make({'a': tree['a'], 'b': 1.0}, 1)
    for empty in ({}, {'a': np.zeros(0, np.float32)}):
        with pytest.raises(PartitionError, match='without parameters'):
            Partition.make(empty, 1)
    with pytest.raises(PartitionError, match='int32'):
        Partition.make({'count': np.zeros(3, np.int32)}, 1)
