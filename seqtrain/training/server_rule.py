"""The rule of the parameter server, from the config: which, with what rate, and how it ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_collections
import optax

from seqtrain.exchange import rules
from seqtrain.exchange.store import RuleLike


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


def elastic(settings: ml_collections.ConfigDict) -> float:
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
        'values', lambda s, rate: rules.easgd(elastic(s)), ('async',), ('elastic',), rated=False
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


def check(settings: ml_collections.ConfigDict) -> None:
    """Raises ValueError for a rule that does not fit the rest of `config.exchange`."""
    _check_mode(settings)
    _check_options(settings)
    _plain(settings, 1.0)


def _check_mode(settings: ml_collections.ConfigDict) -> None:
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


def _taking(*pushed: str) -> str:
    return ', '.join(name for name, rule in RULES.items() if rule.pushed in pushed)


def make(config: ml_collections.ConfigDict, kind: str) -> RuleLike:
    """The rule for stages of this kind, with its learning rate and its mean at the end."""
    settings = config.exchange
    if settings.local_steps > 1:  # the stage's learning rate is the local optimiser's
        usual = 1.0 if settings.rule in ('block_momentum', 'sgd') else 0.7
        return _plain(settings, settings.outer_learning_rate or usual)
    part, rounds = (
        (config.bootstrap, config.bootstrap.rounds) if kind == 'ce' else (config.sequence, 1)
    )
    per_version = settings.num_replicas if settings.mode == 'sync' else 1
    versions = max(1, rounds * part.updates // per_version)
    decay = part.final_learning_rate / part.learning_rate
    made = _plain(settings, optax.exponential_decay(part.learning_rate, versions, decay))
    if not part.average:
        return made
    assert isinstance(made, optax.GradientTransformation)  # the others take local steps
    return rules.polyak_average(made, versions - math.ceil(part.average * versions))


_MEAN = 'mean of '


def mean_note(kind: str) -> str:
    """What the log says where the mean of a kind of stage becomes the network."""
    return f'{_MEAN}{kind}'


def noted(config: ml_collections.ConfigDict, note: str) -> RuleLike:
    """The rule that was set with this note: that of the kind of stage, else of the last stage."""
    return make(config, note.removeprefix(_MEAN) if note.startswith(_MEAN) else 'sequence')


def averages(config: ml_collections.ConfigDict, kind: str) -> bool:
    """Whether stages of this kind end with the mean of their last versions."""
    return bool((config.bootstrap if kind == 'ce' else config.sequence).average)


def _plain(settings: ml_collections.ConfigDict, learning_rate: Any) -> RuleLike:
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
    of_blocks: Callable = chosen
    return lambda blocks: rules.chain(*before, of_blocks(blocks))
