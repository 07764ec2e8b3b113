"""JAX set up for a run: one device per replica, a compile cache that outlives the process.

XLA splits sums over the threads of its pool, as many as there are cores or host devices, whichever
are more; so the last bits of a step depend on both. A run leaves in `machine.json` what decides
about them, and its replay compares.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pathlib
import platform
from typing import Any

import jax
import ml_collections

from seqtrain.exchange.transport import cluster
from seqtrain.training.workdir import read_json, write_json

logger = logging.getLogger(__name__)


def cache_root(cache_dir: str = '') -> pathlib.Path:
    """The folder for everything that can be made again: `cache_dir`, else $SEQTRAIN_CACHE."""
    default = os.environ.get('SEQTRAIN_CACHE') or '~/.cache/seqtrain'
    return pathlib.Path(cache_dir or default).expanduser()


def count(exchange: ml_collections.ConfigDict) -> int:
    """Host devices that a run's own process needs; replicas that are processes have theirs."""
    return 1 if exchange.ray_replicas else exchange.num_replicas


def set_up(num_replicas: int, cache_dir: str = '') -> None:
    """Asks for one host device per replica and turns the persistent compile cache on.

    Call it before anything touches a device; later calls change nothing but the cache. Each host
    device compiles a program for itself; the cache turns all but the first into a look-up.
    """
    _keep_memory()
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


# Of glibc's malloc.h: the option, and what it is set to.
_KEEPING = {
    'M_ARENA_MAX': (-8, 1),  # threads share one heap: arenas of their own are mapped and unmapped
    'M_MMAP_MAX': (-4, 0),  # large arrays come from it, too
    'M_TRIM_THRESHOLD': (-1, -1),  # and its end is never given back
}


def _keep_memory() -> None:
    """Tells glibc to keep what is freed, if there is one and no `MALLOC_...` variable says more.

    XLA's CPU backend frees a step's arrays at its end. By default glibc gives them back to the
    system and asks for them again in the next step, and every page of them is cleared each time.
    A process then holds as much as it ever needed, up to half as much again (RESULTS.md).
    """
    if os.name != 'posix' or any(name.startswith('MALLOC_') for name in os.environ):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, 'mallopt'):
        for option, value in _KEEPING.values():
            library.mallopt(option, value)


def replica_devices(num_replicas: int, trains: bool = False) -> list[jax.Device]:
    """One device per replica; replicas share devices where there are too few.

    Args:
      num_replicas: of the run.
      trains: warns where devices are shared.
    """
    devices = jax.local_devices()
    if trains and len(devices) < num_replicas:
        logger.warning(
            '%d replicas share %d device(s): they run asynchronously, but not at once.',
            num_replicas,
            len(devices),
        )
    return [devices[n % len(devices)] for n in range(num_replicas)]


MACHINE = 'machine.json'


def machine() -> dict[str, Any]:
    """What decides about the last bits of a step; JSON types."""
    affinity = getattr(os, 'sched_getaffinity', None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return {
        'backend': jax.default_backend(),
        'device': jax.local_devices()[0].device_kind,
        'processor': platform.machine(),
        'jax': jax.__version__,
        'threads': max(cores, jax.local_device_count()),
        'xla_flags': cluster.xla_flags(),
    }


def record_machine(folder: pathlib.Path) -> None:
    """Leaves `machine.json` where a run begins; warns where one goes on elsewhere."""
    file = folder / MACHINE
    if not file.exists():
        write_json(file, machine())
        return
    for change in machine_changes(folder):
        logger.warning('The run began with another %s: its replay will not be exact.', change)


def machine_changes(folder: pathlib.Path) -> list[str]:
    """What is no longer as `machine.json` has it, a phrase each."""
    file = folder / MACHINE
    then = read_json(file) if file.exists() else {}
    now = machine()
    return [f'{key} ({then[key]}, now {now[key]})' for key in then if then[key] != now.get(key)]
