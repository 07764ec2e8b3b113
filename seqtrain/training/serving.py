"""What a run exchanges: the server with its rule, and what replicas push to it, from the config.

Rules want one of three things (see `exchange.rules`), and a replica pushes one of them:

    pushed     is made by                                   config.exchange
    gradient   one batch                                    local_steps=1
    delta      local steps from the pulled parameters       local_steps=H
    values     local steps from the replica's own ones      local_steps=H, rule=easgd
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np
import optax

from seqtrain import exchange
from seqtrain.exchange import rules
from seqtrain.exchange.store import RuleLike
from seqtrain.training import prepare
from seqtrain.training.replica import LocalTraining

CODECS = {'none': 'float32', 'bfloat16': 'bfloat16', 'int8': 'int8'}
LOCAL_OPTIMIZERS = {
    'adam': optax.adam(1.0),
    'adamw': optax.adamw(1.0),
    'momentum': optax.sgd(1.0, 0.9),
    'sgd': optax.sgd(1.0),
}


@dataclasses.dataclass(frozen=True)
class _Rule:
    """A rule by name: what it wants pushed, in which modes it makes sense, how it is made.

    `make(settings, learning_rate)` gets the config's exchange section. `rated` is False where the
    rule has no learning rate.
    """

    pushed: str
    make: Callable[[ml_collections.ConfigDict, Any], RuleLike]
    modes: tuple[str, ...] = ('async', 'sync')
    options: tuple[str, ...] = ()  # of config.exchange.rule_options, those that it takes
    rated: bool = True


def _options(settings: ml_collections.ConfigDict, *names: str) -> dict[str, float]:
    """Options that have no default because their source names none."""
    values = {name: getattr(settings.rule_options, name) for name in names}
    if missing := [name for name, value in values.items() if value is None]:
        raise ValueError(
            f'config.exchange.rule={settings.rule} needs config.exchange.rule_options.{missing[0]}'
            ': its source gives no usual value; see seqtrain.exchange.rules.'
        )
    return values


def _momentum(settings: ml_collections.ConfigDict, usual: float = 0.9) -> float:
    given = settings.rule_options.momentum
    return usual if given is None else given


def _elastic(settings: ml_collections.ConfigDict) -> float:
    """α of EASGD; usually 0.9 over the number of replicas (Zhang et al. 2015, section 5)."""
    given = settings.rule_options.elastic
    return 0.9 / settings.num_replicas if given is None else given


def _delayed_nesterov(settings: ml_collections.ConfigDict, rate: Any) -> rules.Rule:
    period = 1 if settings.mode == 'sync' else settings.num_replicas
    return rules.delayed_nesterov(rate, period, _momentum(settings))


def _heloco(settings: ml_collections.ConfigDict, rate: Any) -> RuleLike:
    thresholds = _options(settings, 'keep', 'shrink', 'max_shrink', 'turn', 'kappa')
    momentum = _momentum(settings)
    return lambda blocks: rules.heloco(rate, momentum, blocks, **thresholds)


RULES: dict[str, _Rule] = {
    'adam': _Rule('gradient', lambda s, rate: rules.adam(rate)),
    'averaging': _Rule(
        'delta',
        lambda s, rate: rules.averaging(1 if s.mode == 'sync' else s.num_replicas),
        rated=False,
    ),
    'block_momentum': _Rule(
        'delta',
        lambda s, rate: rules.block_momentum(_momentum(s, 1 - 1 / s.num_replicas), rate),
        ('sync',),
        ('momentum',),
    ),
    'cgad': _Rule(
        'either',
        lambda s, rate: rules.cgad(rate, **_options(s, 'alpha', 'cutoff')),
        options=('alpha', 'cutoff'),
    ),
    'dc_asgd': _Rule('gradient', lambda s, rate: rules.dc_asgd(rate)),
    'dc_asgd_adaptive': _Rule('gradient', lambda s, rate: rules.dc_asgd_adaptive(rate)),
    'delayed_nesterov': _Rule('delta', _delayed_nesterov, options=('momentum',)),
    'downpour_adagrad': _Rule('gradient', lambda s, rate: rules.downpour_adagrad(rate)),
    'easgd': _Rule(
        'values', lambda s, rate: rules.easgd(_elastic(s)), ('async',), ('elastic',), rated=False
    ),
    'heloco': _Rule(
        'delta',
        _heloco,
        options=('momentum', 'keep', 'shrink', 'max_shrink', 'turn', 'kappa'),
    ),
    'momentum_lookahead': _Rule(
        'delta', lambda s, r: rules.momentum_lookahead(r, _momentum(s)), options=('momentum',)
    ),
    'sgd': _Rule(
        'either', lambda s, rate: rules.sgd(rate, s.rule_options.momentum), options=('momentum',)
    ),
}


def check(config: ml_collections.ConfigDict) -> None:
    """Raises for an exchange section that contradicts itself.

    Raises:
      ValueError: a sentence that names the field and what to do.
    """
    settings = config.exchange
    _choose(settings, 'rule', RULES)
    _choose(settings, 'transport', ('local', 'ray'))
    _choose(settings, 'codec', CODECS)
    _choose(settings, 'local_optimizer', LOCAL_OPTIMIZERS)
    policy(config)
    _check_rule(settings)
    _check_options(settings)
    _rule(settings, 1.0)
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


def _check_rule(settings: ml_collections.ConfigDict) -> None:
    chosen, many = RULES[settings.rule], settings.local_steps > 1
    if settings.local_steps < 1:
        raise ValueError(f'config.exchange.local_steps is {settings.local_steps}; at least 1.')
    if settings.mode not in chosen.modes:
        raise ValueError(
            f'config.exchange.rule={settings.rule} is for mode={" or ".join(chosen.modes)}, the '
            f'mode is {settings.mode}.'
        )
    if chosen.pushed == 'gradient' and many:
        raise ValueError(
            f'config.exchange.rule={settings.rule} takes gradients: set local_steps=1, or choose '
            f'one of {_taking("delta", "either", "values")}.'
        )
    if chosen.pushed in ('delta', 'values') and not many:
        raise ValueError(
            f'config.exchange.rule={settings.rule} takes what local steps have changed: set '
            f'local_steps to 2 or more, or choose one of {_taking("gradient", "either")}.'
        )
    scaled = settings.scale_by_frames or settings.scale_by_staleness
    if chosen.pushed == 'values' and (scaled or settings.codec != 'none'):
        raise ValueError(
            f'config.exchange.rule={settings.rule} takes parameters as they are: set '
            'scale_by_frames and scale_by_staleness to False and codec to none.'
        )


def _check_options(settings: ml_collections.ConfigDict) -> None:
    """Nothing may be set that nobody reads."""
    chosen, name = RULES[settings.rule], f'config.exchange.rule={settings.rule}'
    given = {key for key, value in settings.rule_options.items() if value is not None}
    if extra := sorted(given.difference(chosen.options)):
        takes = f'only {", ".join(chosen.options)}' if chosen.options else 'none'
        raise ValueError(
            f'{name} does not read config.exchange.rule_options.{extra[0]}: of them it takes '
            f'{takes}.'
        )
    if settings.outer_learning_rate and (settings.local_steps == 1 or not chosen.rated):
        raise ValueError(
            f'config.exchange.outer_learning_rate is not read by {name} with '
            f'local_steps={settings.local_steps}: set it to 0.'
        )
    local = {'local_learning_rate': 0.0, 'local_optimizer': 'sgd', 'keep_state': True}
    for field, usual in local.items():
        if settings.local_steps == 1 and getattr(settings, field) != usual:
            raise ValueError(f'config.exchange.{field} needs local_steps of 2 or more.')
    if settings.mode == 'async' and settings.on_stale == 'drop' and settings.max_staleness < 0:
        raise ValueError(
            'config.exchange.on_stale=drop drops what is older than config.exchange.max_staleness: '
            'set that, too.'
        )
    for field in ('replica_gpus', 'replica_tpus'):
        if getattr(settings, field) and not settings.ray_replicas:
            raise ValueError(f'config.exchange.{field} needs config.exchange.ray_replicas=True.')


def _check_amounts(config: ml_collections.ConfigDict) -> None:
    """Updates that can be shared out, learning rates that can decay."""
    settings = config.exchange
    for name in ('bootstrap', 'sequence'):
        part = getattr(config, name)
        if not (part.learning_rate > 0 and part.final_learning_rate > 0):
            raise ValueError(
                f'config.{name}.learning_rate and final_learning_rate must be above 0: the one '
                'decays exponentially to the other.'
            )
    if settings.mode != 'sync' or settings.backup_replicas:
        return
    shared = {
        'bootstrap.updates': config.bootstrap.updates,
        'bootstrap.mono_updates': 0 if config.start_from else config.bootstrap.mono_updates,
        'sequence.updates': config.sequence.updates,
    }
    for name, updates in shared.items():
        if 0 < updates < settings.num_replicas:
            raise ValueError(
                f'config.{name} is {updates}: with mode=sync every one of the '
                f'{settings.num_replicas} replicas needs at least one.'
            )


def _taking(*pushed: str) -> str:
    return ', '.join(name for name, rule in RULES.items() if rule.pushed in pushed)


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


def rule(config: ml_collections.ConfigDict, kind: str) -> RuleLike:
    """The server's rule for stages of this kind, with its learning rate."""
    settings = config.exchange
    if settings.local_steps > 1:  # the stage's learning rate is the local optimiser's
        usual = 1.0 if settings.rule in ('block_momentum', 'sgd') else 0.7
        return _rule(settings, settings.outer_learning_rate or usual)
    part, rounds = (
        (config.bootstrap, config.bootstrap.rounds) if kind == 'ce' else (config.sequence, 1)
    )
    per_version = settings.num_replicas if settings.mode == 'sync' else 1
    versions = max(1, rounds * part.updates // per_version)
    decay = part.final_learning_rate / part.learning_rate
    return _rule(settings, optax.exponential_decay(part.learning_rate, versions, decay))


def _rule(settings: ml_collections.ConfigDict, learning_rate: Any) -> RuleLike:
    """The rule by its name, after what is done to an update before the rule sees it."""
    chosen = RULES[settings.rule].make(settings, learning_rate)
    before = []
    if settings.scale_by_frames:
        before.append(rules.scale_by_frames())
    if settings.scale_by_staleness:
        before.append(rules.scale_by_staleness())
    if not before:
        return chosen
    if isinstance(chosen, optax.GradientTransformation):
        return rules.chain(*before, chosen)
    make: Callable = chosen
    return lambda blocks: rules.chain(*before, make(blocks))


def local_training(config: ml_collections.ConfigDict, stage: str) -> LocalTraining | None:
    """How replicas train between pushes in a stage of this name; None: they push gradients."""
    settings = config.exchange
    if settings.local_steps == 1:
        return None
    part, rounds, done = config.sequence, 1, 0
    if stage.startswith('ce-'):
        part, rounds, done = config.bootstrap, config.bootstrap.rounds, int(stage[3:])
    decay = part.final_learning_rate / part.learning_rate
    return LocalTraining(
        settings.local_steps,
        LOCAL_OPTIMIZERS[settings.local_optimizer],
        (settings.local_learning_rate or part.learning_rate) * decay ** (done / rounds),
        decay ** (1 / max(1, rounds * part.updates)),
        settings.keep_state,
        _elastic(settings) if RULES[settings.rule].pushed == 'values' else None,
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
    first, order = rule(config, kind), policy(config)
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
