"""Every criterion with its gradient exports for every platform, from a host with a CPU only."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from backends import TRITON, on_cuda
from jax import export

from seqtrain import losses, ops

B, T, P = 2, 6, 4
SCORES = jax.ShapeDtypeStruct((B, T, P), jnp.float32)


@functools.cache
def graphs():
    rng = np.random.default_rng(0)
    fsas = [oracles.random_fsa(rng, 4, 10, P) for _ in range(B)]
    return ops.pack(oracles.hmm_fsa(rng, 4, 10, P)), ops.pack_batch(fsas)


def criteria():
    labels, lengths = jnp.zeros((B, T), jnp.int32), jnp.full(B, T, jnp.int32)
    accuracy = losses.frame_accuracy(labels, P)
    return {
        'mmi': lambda x, d, n: losses.lf_mmi(x, lengths, n, d, leaky=0.1).value,
        'bmmi': lambda x, d, n: losses.lf_mmi(x, lengths, n, d, boost=0.1, accuracy=accuracy).value,
        'smbr': lambda x, d, n: losses.smbr(x, lengths, labels, d).value,
        'mpe': lambda x, d, n: losses.mpe(x, lengths, labels, n, [0, 0, 1, 1]).value,
        'ctc': lambda x, d, n: losses.ctc(x, lengths, n).value,
        'ctc_crf': lambda x, d, n: losses.ctc_crf(x, lengths, n, d).value,
        'cross_entropy': lambda x, d, n: losses.cross_entropy(x, labels, lengths),
    }


@pytest.mark.parametrize('platform', ['cpu', 'cuda', 'tpu'])
@pytest.mark.parametrize('name', ['mmi', 'bmmi', 'smbr', 'mpe', 'ctc', 'ctc_crf', 'cross_entropy'])
def test_exports_without_a_custom_call_of_ours(name, platform):
    shared, each = graphs()
    criterion = criteria()[name]

    def total(x):
        return criterion(x, shared, each).sum()

    module = export.export(jax.jit(jax.value_and_grad(total)), platforms=[platform])(SCORES)
    assert module.platforms == (platform,)
    targets = ''.join(re.findall(r'custom_call\s*@\S+', module.mlir_module()))
    assert 'seqtrain' not in targets
    assert 'triton' not in targets


@pytest.mark.parametrize('name', ['mmi', 'smbr'])
def test_the_gpu_kernels_are_exported_where_they_are_asked_for(name):
    # Not by 'auto': JAX promises no compatibility for Triton calls, and old GPUs cannot run them.
    shared, each = graphs()
    lengths, labels = jnp.full(B, T, jnp.int32), jnp.zeros((B, T), jnp.int32)
    criterion = {
        'mmi': lambda x: losses.lf_mmi(x, lengths, each, shared, leaky=0.1, backend='gpu'),
        'smbr': lambda x: losses.smbr(x, lengths, labels, shared, backend='gpu'),
    }[name]
    step = jax.jit(jax.value_and_grad(lambda x: criterion(x).value.sum()))
    with on_cuda():
        with pytest.raises(ValueError, match='compatibility guarantees'):
            export.export(step, platforms=['cuda'])(SCORES)
        allowed = export.DisabledSafetyCheck.custom_call(TRITON)
        module = export.export(step, platforms=['cuda'], disabled_checks=[allowed])(SCORES)
    assert f'custom_call @{TRITON}(' in module.mlir_module()
    with pytest.raises(ValueError, match='cannot run on'):
        export.export(step, platforms=['tpu'])(SCORES)


def test_an_exported_module_computes_the_same():
    shared, each = graphs()

    def total(x):
        return criteria()['mmi'](x, shared, each).sum()

    module = export.export(jax.jit(jax.value_and_grad(total)), platforms=['cpu', 'tpu'])(SCORES)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, P)), jnp.float32)
    value, gradient = module.call(x)
    want, want_gradient = jax.value_and_grad(total)(x)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-5)
