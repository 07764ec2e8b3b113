"""What a run exchanges: the server with its rule, and what replicas push to it, from the config.

Rules want one of three things (see `exchange.rules`), and a replica pushes one of them:

    pushed     is made by                                   config.exchange
    gradient   one batch                                    local_steps=1
    delta      local steps from the pulled parameters       local_steps=H
    values     local steps from the replica's own ones      local_steps=H, rule=easgd
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np
import optax

from seqtrain import exchange
from seqtrain.training import prepare, server_rule
from seqtrain.training.replica import LocalTraining

CODECS = {'none': 'float32', 'bfloat16': 'bfloat16', 'int8': 'int8'}
LOCAL_OPTIMIZERS = {
    'adam': optax.adam(1.0),
    'adamw': optax.adamw(1.0),
    'momentum': optax.sgd(1.0, 0.9),
    'sgd': optax.sgd(1.0),
}


def check(config: ml_collections.ConfigDict) -> None:
    """Raises for an exchange section that contradicts itself.

    Raises:
      ValueError: a sentence that names the field and what to do.
    """
    settings = config.exchange
    _choose(settings, 'rule', server_rule.RULES)
    _choose(settings, 'transport', ('local', 'ray'))
    _choose(settings, 'codec', CODECS)
    _choose(settings, 'local_optimizer', LOCAL_OPTIMIZERS)
    policy(config)
    server_rule.check(settings)
    if settings.mode == 'async' and settings.on_stale == 'drop' and settings.max_staleness < 0:
        raise ValueError(
            'config.exchange.on_stale=drop drops what is older than config.exchange.max_staleness: '
            'set that, too.'
        )
    for field in ('replica_gpus', 'replica_tpus'):
        if getattr(settings, field) and not settings.ray_replicas:
            raise ValueError(f'config.exchange.{field} needs config.exchange.ray_replicas=True.')
    _check_amounts(config)
    if settings.lease_s < 0:
        raise ValueError(
            f'config.exchange.lease_s is {settings.lease_s}: give seconds, longer than a step and '
            'the compilation before the first one take, or 0 for never.'
        )
    if settings.dylu and (settings.local_steps < 2 or settings.mode == 'sync'):
        raise ValueError(
            'config.exchange.dylu gives each replica its own number of local steps: it needs '
            'local_steps of 2 or more and mode=async.'
        )
    if settings.ray_replicas and settings.transport != 'ray':
        raise ValueError('config.exchange.ray_replicas needs config.exchange.transport=ray.')
    if settings.ray_address and settings.transport != 'ray':
        raise ValueError('config.exchange.ray_address needs config.exchange.transport=ray.')


def _check_amounts(config: ml_collections.ConfigDict) -> None:
    """Updates that can be shared out, learning rates that can decay, means of what is counted."""
    settings = config.exchange
    for name in ('bootstrap', 'sequence'):
        part = getattr(config, name)
        if part.average and settings.local_steps > 1:
            raise ValueError(
                f'config.{name}.average is a mean over pushed gradients: set '
                'config.exchange.local_steps=1, or average to 0.'
            )
        if not (part.learning_rate > 0 and part.final_learning_rate > 0):
            raise ValueError(
                f'config.{name}.learning_rate and final_learning_rate must be above 0: the one '
                'decays exponentially to the other.'
            )
    if settings.mode != 'sync' or settings.backup_replicas:
        return
    mono = ('mono_updates', 'mono_sequence_updates') if not config.start_from else ()
    shared = {
        'bootstrap.updates': config.bootstrap.updates,
        **{f'bootstrap.{name}': config.bootstrap[name] for name in mono},
        'sequence.updates': config.sequence.updates,
    }
    for name, updates in shared.items():
        if 0 < updates < settings.num_replicas:
            raise ValueError(
                f'config.{name} is {updates}: with mode=sync every one of the '
                f'{settings.num_replicas} replicas needs at least one.'
            )


def _choose(settings: ml_collections.ConfigDict, field: str, known: Any) -> None:
    value = getattr(settings, field)
    if value not in known:
        raise ValueError(f'config.exchange.{field} is {value!r}; choose {" or ".join(known)}.')


def policy(config: ml_collections.ConfigDict) -> exchange.Policy:
    """In what order and how late updates are applied."""
    settings = config.exchange
    backups = settings.backup_replicas
    if backups and (settings.mode != 'sync' or not 0 < backups < settings.num_replicas):
        raise ValueError(
            f'config.exchange.backup_replicas is {backups}: it needs mode=sync and must be '
            f'smaller than num_replicas, which is {settings.num_replicas}.'
        )
    bounded = settings.mode == 'async' and settings.max_staleness >= 0
    return exchange.Policy(
        mode=settings.mode,
        num_workers=settings.num_replicas,
        quorum=settings.num_replicas - backups if backups else None,
        max_staleness=settings.max_staleness if bounded else None,
        on_stale=settings.on_stale,
    )


def local_training(config: ml_collections.ConfigDict, stage: str) -> LocalTraining | None:
    """How replicas train between pushes in a stage of this name; None: they push gradients."""
    settings = config.exchange
    if settings.local_steps == 1:
        return None
    part, rounds, done = config.sequence, 1, 0
    if stage.startswith('ce-'):
        part, rounds, done = config.bootstrap, config.bootstrap.rounds, int(stage[3:])
    decay = part.final_learning_rate / part.learning_rate
    by_values = server_rule.RULES[settings.rule].pushed == 'values'
    return LocalTraining(
        settings.local_steps,
        LOCAL_OPTIMIZERS[settings.local_optimizer],
        (settings.local_learning_rate or part.learning_rate) * decay ** (done / rounds),
        decay ** (1 / max(1, rounds * part.updates)),
        settings.keep_state,
        server_rule.elastic(settings) if by_values else None,
        settings.dylu,
    )


def client_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What a replica's end of the exchange is made with."""
    settings = config.exchange
    return {'queue_size': 1, 'overlap': settings.overlap, 'codec': CODECS[settings.codec]}


def start_transport(config: ml_collections.ConfigDict) -> None:
    """What has to run before JAX does: Ray forks, which a process with JAX's threads must not."""
    if config.exchange.transport == 'ray':
        from seqtrain.exchange.transport import ray as ray_transport

        ray_transport.start(config.exchange.ray_address or None)


def server(
    config: ml_collections.ConfigDict,
    params: Any,
    kind: str,
    on_event: Callable[..., None],
    directory: pathlib.Path,
) -> Any:
    """The parameter server, with the rule of the stage that begins.

    Args:
      config: `exchange` names transport, mode and bounds.
      params: the initial parameters.
      kind: of the stage, for the rule.
      on_event: takes every event of the exchange.
      directory: where shards in processes of their own keep what they need to start again.

    Returns:
      A `LocalServer`, or a `RayServer` with the same methods.
    """
    settings = config.exchange
    first, order = server_rule.make(config, kind), policy(config)
    options: dict[str, Any] = {'lease_s': settings.lease_s or None, 'on_event': on_event}
    if settings.transport == 'local':
        return exchange.LocalServer(params, settings.num_shards, first, order, **options)
    from seqtrain.exchange.transport import ray as ray_transport

    directory.mkdir(exist_ok=True)
    return ray_transport.RayServer(
        params,
        settings.num_shards,
        first,
        order,
        directory=str(directory),
        checkpoint_every=config.checkpoint.every_updates,
        **options,
    )


def hosts(
    config: ml_collections.ConfigDict,
    data: prepare.TrainingData,
    params: Any,
    server: Any,
    labels: Sequence[np.ndarray] | None,
    folder: pathlib.Path,
) -> Any:
    """The replicas' processes (`hosts.Hosts`), or None where replicas are threads of this one."""
    if not config.exchange.ray_replicas:
        return None
    from seqtrain.training.hosts import Hosts

    return Hosts(config, data, params, server.endpoint, labels, folder)
