"""Fixtures and settings that every test shares."""

import os
import pathlib

# Four devices; programs are compiled in one piece each, since both processors have tests to run.
os.environ['XLA_FLAGS'] = ' '.join(
    [
        '--xla_force_host_platform_device_count=4',
        '--xla_cpu_parallel_codegen_split_count=1',
        os.environ.get('XLA_FLAGS', ''),  # the last of equal flags counts
    ]
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

jax.config.update('jax_compilation_cache_dir', str(ROOT / '.jax_cache'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


@pytest.fixture(scope='session')
def data_dir() -> pathlib.Path:
    """The folder of real recordings; skips the test where it is absent."""
    path = pathlib.Path(os.environ.get('SEQTRAIN_DATA', ROOT.parent / 'shared' / 'data'))
    if not path.is_dir():
        if os.environ.get('CI'):
            pytest.fail(f'No real recordings at {path}; CI must not skip: set SEQTRAIN_DATA.')
        pytest.skip(f'No real recordings at {path}; set SEQTRAIN_DATA.')
    return path
