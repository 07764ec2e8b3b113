"""The examples of README.md run one after the other."""

import pathlib
import re

import jax
import optax
from flax import nnx

from seqtrain import models

README = pathlib.Path(__file__).parent.parent / 'README.md'


def test_the_criterion_in_a_loop_of_ones_own():
    blocks = re.findall(r'^```python\n(.*?)^```', README.read_text(), re.MULTILINE | re.DOTALL)
    found = {}
    for block in blocks:
        exec(block, found)
    assert found['out'].valid.all()
    pdfs = found['topology'].num_pdfs
    config = models.TdnnConfig(num_inputs=8, num_outputs=pdfs, num_hidden=16)
    model = models.Tdnn(config, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    features = jax.random.normal(jax.random.key(1), (2, 120, 8))
    frames = jax.numpy.array([120, 91])
    batch = (features, frames, found['num'], found['den'])
    values = [float(found['step'](model, optimizer, *batch)) for _ in range(20)]
    assert values[-1] < 0.8 * values[0]
