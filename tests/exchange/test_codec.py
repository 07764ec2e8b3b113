"""Encodings: exact cases, bounds of the error, what error feedback keeps, damaged messages."""

import numpy as np
import pytest

from seqtrain.exchange import Join, Policy, Push, Reason, ShardState, Store, rules
from seqtrain.exchange.codec import BLOCK, Compressor, Encoded, decode, encode


def test_values_on_the_grid_survive_exactly():
    x = np.array([0.5, -1.0, 0.0, 256.0], np.float32)
    np.testing.assert_array_equal(decode(encode(x, 'bfloat16')), x)
    x = np.arange(-127, 128, dtype=np.float32) * 0.5
    np.testing.assert_array_equal(decode(encode(x, 'int8')), x)


def test_int8_error_is_half_a_step_of_its_own_block():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=BLOCK), 1e-4 * rng.normal(size=BLOCK + 7)])
    x = x.astype(np.float32)
    encoded = encode(x, 'int8')
    assert encoded.data.dtype == np.int8
    assert len(encoded.scale) == 3
    error = np.abs(decode(encoded) - x)
    for i in range(3):
        block = slice(i * BLOCK, (i + 1) * BLOCK)
        assert error[block].max() <= 0.501 * np.abs(x[block]).max() / 127


def test_zeros_and_empty():
    for kind in ('bfloat16', 'int8'):
        np.testing.assert_array_equal(decode(encode(np.zeros(5, np.float32), kind)), 0)
        assert decode(encode(np.zeros(0, np.float32), kind)).shape == (0,)


@pytest.mark.parametrize('kind', ['bfloat16', 'int8'])
def test_error_feedback_loses_nothing_over_time(kind):
    x = np.array([1.0, 1e-3, -3e-3, 0.7], np.float32)
    with_feedback, without = Compressor(kind), Compressor(kind, error_feedback=False)
    n = 400
    total = sum(decode(with_feedback(0, x)) for _ in range(n))
    lossy = sum(decode(without(0, x)) for _ in range(n))
    np.testing.assert_allclose(total / n, x, atol=1.0 / n)
    assert np.abs(lossy / n - x).max() > np.abs(total / n - x).max()


@pytest.mark.parametrize('kind', ['bfloat16', 'int8'])
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_non_finite_updates_are_refused_and_do_not_poison_the_feedback(kind, bad):
    state = ShardState(Store(np.zeros(3), rules.sgd(1.0)), Policy(num_workers=1))
    state.handle(Join(0))
    compress = Compressor(kind)
    update = np.array([1.0, bad, 2.0], np.float32)
    (reply,) = state.handle(Push(0, 0, 0, compress(0, update)))
    assert reply.reason is Reason.NON_FINITE
    assert np.isfinite(decode(compress(0, np.ones(3, np.float32)))).all()


@pytest.mark.parametrize('kind', ['bfloat16', 'int8'])
def test_what_rounding_makes_infinite_does_not_poison_the_feedback(kind):
    compress = Compressor(kind)
    largest = np.array([np.finfo(np.float32).max, 1.0], np.float32)
    assert np.isinf(decode(compress(0, largest))[0])
    assert np.isfinite(decode(compress(0, np.ones(2, np.float32)))).all()


def test_an_overflow_leaves_the_feedback_of_the_others():
    compress, small = Compressor('bfloat16'), 2.0**-9
    compress(0, np.array([np.finfo(np.float32).max, 1 + small], np.float32))
    sent = decode(compress(0, np.array([1.0, small], np.float32)))
    np.testing.assert_array_equal(sent, [1.0, 2 * small])


@pytest.mark.parametrize(
    'damaged',
    [
        Encoded(np.zeros(3, np.int16), np.ones(1, np.float32)),
        Encoded(np.zeros(3, np.int8), np.ones(2, np.float32)),
        Encoded(np.zeros((3, 1), np.int8), np.ones(1, np.float32)),
    ],
)
def test_damaged_encodings_are_refused(damaged):
    state = ShardState(Store(np.zeros(3), rules.sgd(1.0)), Policy(num_workers=1))
    state.handle(Join(0))
    (reply,) = state.handle(Push(0, 0, 0, damaged))
    assert reply.reason is Reason.DTYPE
    assert state.version == 0


def test_an_unknown_codec_is_named():
    with pytest.raises(ValueError, match='int4'):
        Compressor('int4')
