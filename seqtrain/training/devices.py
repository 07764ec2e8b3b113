"""JAX set up for a run: one device per replica, a compile cache that outlives the process."""

from __future__ import annotations

import logging
import os
import pathlib

import jax

logger = logging.getLogger(__name__)


def cache_root(cache_dir: str = '') -> pathlib.Path:
    """The folder for everything that can be made again: `cache_dir`, else $SEQTRAIN_CACHE."""
    default = os.environ.get('SEQTRAIN_CACHE') or '~/.cache/seqtrain'
    return pathlib.Path(cache_dir or default).expanduser()


def set_up(num_replicas: int, cache_dir: str = '') -> None:
    """Asks for one host device per replica and turns the persistent compile cache on.

    Call it before anything touches a device; later calls change nothing but the cache. Each host
    device compiles a program for itself; the cache turns all but the first into a look-up.
    """
    if jax.config.values['jax_compilation_cache_dir'] is None:
        folder = cache_root(cache_dir) / 'jax'
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    try:
        jax.config.update('jax_num_cpu_devices', num_replicas)
    except RuntimeError:  # the backend is up already, with what XLA_FLAGS said
        logger.debug('JAX already runs; it keeps its %d devices.', jax.device_count())


def replica_devices(num_replicas: int) -> list[jax.Device]:
    """One device per replica; replicas share devices where there are too few."""
    devices = jax.local_devices()
    if len(devices) < num_replicas:
        logger.warning(
            '%d replicas share %d device(s): they run asynchronously, but not at once.',
            num_replicas,
            len(devices),
        )
    return [devices[n % len(devices)] for n in range(num_replicas)]
