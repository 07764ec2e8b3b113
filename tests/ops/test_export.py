"""Every criterion with its gradient exports for every platform, from a host with a CPU only."""

import functools
import itertools
import re

import criteria
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backends import TRITON, on_cuda
from criteria import CRITERIA, FRAMES, LABELS, LENGTHS, PDFS
from jax import export

from seqtrain import losses

SCORES = jax.ShapeDtypeStruct((len(LENGTHS), FRAMES, PDFS), jnp.float32)
SEQUENCE = {
    **CRITERIA,
    'leaky mmi': lambda *args, **options: CRITERIA['mmi'](*args, leaky=0.1, **options),
}
FRAME = {
    'cross_entropy': lambda x: losses.cross_entropy(x, LABELS, LENGTHS),
    'soft cross_entropy': lambda x: losses.cross_entropy(x, jax.nn.one_hot(LABELS, PDFS), LENGTHS),
    'output_l2': lambda x: losses.output_l2(x, LENGTHS),
    'out_of_range': lambda x: losses.out_of_range(x, LENGTHS),
}


@functools.cache
def graphs(lattices: bool):
    return criteria.packed(*criteria.graphs(lattices), lattices)


def criterion(name: str, lattices: bool):
    """f(scores) -> f32[B]."""
    if name in FRAME:
        return FRAME[name]
    num, den = graphs(lattices)
    return lambda x: SEQUENCE[name](x, LENGTHS, num, den).value


@pytest.mark.parametrize('platform', ['cpu', 'cuda', 'tpu'])
@pytest.mark.parametrize(
    ('name', 'lattices'),
    [*itertools.product(SEQUENCE, [False, True]), *((name, False) for name in FRAME)],
)
def test_exports_without_a_custom_call_of_ours(name, lattices, platform):
    one = criterion(name, lattices)
    step = jax.jit(jax.value_and_grad(lambda x: one(x).sum()))
    module = export.export(step, platforms=[platform])(SCORES)
    assert module.platforms == (platform,)
    targets = ''.join(re.findall(r'custom_call\s*@\S+', module.mlir_module()))
    assert 'seqtrain' not in targets
    assert 'triton' not in targets


@pytest.mark.parametrize('name', ['leaky mmi', 'smbr'])
def test_the_gpu_kernels_are_exported_where_they_are_asked_for(name):
    # Not by 'auto': JAX promises no compatibility for Triton calls, and old GPUs cannot run them.
    num, den = graphs(lattices=False)

    def total(x):
        return SEQUENCE[name](x, LENGTHS, num, den, backend='gpu').value.sum()

    step = jax.jit(jax.value_and_grad(total))
    with on_cuda():
        with pytest.raises(ValueError, match='compatibility guarantees'):
            export.export(step, platforms=['cuda'])(SCORES)
        allowed = export.DisabledSafetyCheck.custom_call(TRITON)
        module = export.export(step, platforms=['cuda'], disabled_checks=[allowed])(SCORES)
    assert f'custom_call @{TRITON}(' in module.mlir_module()
    with pytest.raises(ValueError, match='cannot run on'):
        export.export(step, platforms=['tpu'])(SCORES)


@pytest.mark.parametrize('name', ['leaky mmi', 'smbr'])
@pytest.mark.parametrize('lattices', [False, True])
def test_an_exported_module_computes_the_same(name, lattices):
    one = criterion(name, lattices)

    def total(x):
        return one(x).sum()

    module = export.export(jax.jit(jax.value_and_grad(total)), platforms=['cpu', 'tpu'])(SCORES)
    x = jnp.asarray(criteria.logits())
    value, gradient = module.call(x)
    want, want_gradient = jax.value_and_grad(total)(x)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-5)
