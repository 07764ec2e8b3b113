"""XLA and Triton compile the gpu backend for an NVIDIA H100, for which no GPU is needed, only JAX's
plugin for CUDA and its assembler; see CONTRIBUTING.md. Skipped where they are not installed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from backends import TRITON, on_cuda
from jax.experimental import topologies

from seqtrain import ops

pytestmark = pytest.mark.slow

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def compiled(function, *args):
    """The executable that an H100 would run; skips where JAX has no plugin for CUDA."""
    jax.devices()  # loads the plugins
    try:
        topology = topologies.get_topology_desc(
            platform='cuda', topology_name='', target_config=H100, topology='1x1x1'
        )
    except (NotImplementedError, RuntimeError) as problem:
        pytest.skip(f'JAX has no plugin for CUDA here: {problem}')
    device = jax.sharding.SingleDeviceSharding(topology.devices[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), args)
    # Autotuning would need the GPU.
    with on_cuda():
        return (
            jax.jit(function).lower(*shapes).compile(compiler_options={'xla_gpu_autotune_level': 0})
        )


def loops_over_frames(program) -> list[list[str]]:
    """What runs in every frame: the operations of the loops around a kernel that are no names."""
    bodies = [x for x in program.as_text().split('\n\n') if TRITON in x and 'tuple(' in x]
    names = {'bitcast', 'constant', 'get-tuple-element', 'parameter', 'tuple'}
    found = [re.findall(r' = .*? ([a-z-]+)\(', body) for body in bodies]
    return [[op for op in ops_ if op not in names] for ops_ in found]


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('leaky', [0.0, 0.1])
def test_a_frame_is_a_kernel_and_a_counter(shared, leaky):
    rng = np.random.default_rng(0)
    fsas = [oracles.random_fsa(rng, 35, 150, 5) for _ in range(9)]
    graph = ops.pack(fsas[0]) if shared else ops.pack_batch(fsas)
    scores, lengths = jnp.zeros((9, 10, 5)), jnp.zeros(9, jnp.int32)

    def value(scores, lengths, graph):
        return ops.expected_accuracy(
            scores, lengths, graph, jnp.ones_like(scores), leaky=leaky, backend='gpu'
        )[0].sum()

    loops = loops_over_frames(compiled(jax.grad(value), scores, lengths, graph))
    # No copy of the state vectors of other frames; the fusion counts.
    assert [sorted(x) for x in loops].count(['custom-call', 'fusion']) == 2, loops


def test_long_utterances_fit_into_2_gib():
    # As many states and arcs as the WSJ denominator; the redo in the log domain included.
    graph = ops.pack(oracles.hmm_fsa(np.random.default_rng(0), 3033, 51_022, 84))
    program = compiled(
        lambda s, n, g: ops.occupancies(s, n, g, leaky=1e-5, backend='gpu'),
        jnp.zeros((32, 3000, 84)),
        jnp.zeros(32, jnp.int32),
        graph,
    )
    memory = program.memory_analysis()
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert total < 2 << 30
