"""Every way to exchange updates, by config: rules, local steps, codecs, DyLU, backups; replayed."""

import numpy as np
import pytest

from seqtrain.exchange import eventlog
from seqtrain.graphs import NGramLm, arpa
from seqtrain.training import config as config_lib
from seqtrain.training import experiment, monitor, replay, server_rule, serving

SMALL = {
    'bootstrap__rounds': 1,
    'bootstrap__updates': 12,
    'sequence__updates': 0,
    'data__max_test': 2,
}
THRESHOLDS = {'keep': 0.5, 'shrink': 0.5, 'max_shrink': 0.5, 'turn': 0.5, 'kappa': 1.0}
HELOCO = {f'rule_options__{name}': value for name, value in THRESHOLDS.items()}
SYNC = {'mode': 'sync'}
KINDS = {
    'bfloat16': {'codec': 'bfloat16'},
    'int8': {'codec': 'int8', 'rule': 'downpour_adagrad'},
    'cgad': {'rule': 'cgad', 'rule_options__alpha': 0.1, 'rule_options__cutoff': 8.0},
    'dc_asgd_adaptive': {'rule': 'dc_asgd_adaptive', 'scale_by_frames': True},
    'backup': {**SYNC, 'backup_replicas': 1},
    'easgd': {'rule': 'easgd', 'local_steps': 2},
    'averaging': {'rule': 'averaging', 'local_steps': 2},
    'block_momentum': {**SYNC, 'rule': 'block_momentum', 'local_steps': 2, 'keep_state': False},
    'delayed_nesterov': {'rule': 'delayed_nesterov', 'local_steps': 2, 'dylu': True},
    'momentum_lookahead': {'rule': 'momentum_lookahead', 'local_steps': 3, 'codec': 'int8'},
    'heloco': {'rule': 'heloco', 'local_steps': 2, 'local_optimizer': 'adam', **HELOCO},
}
QUICK = ('int8', 'backup', 'heloco')


def exchange(**settings):
    return {f'exchange__{name}': value for name, value in settings.items()}


@pytest.mark.parametrize(
    'kind', [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_every_kind_of_exchange_trains_and_replays(kind, make_config, tmp_path):
    config = make_config(**SMALL, exchange__num_shards=2, **exchange(**KINDS[kind]))
    result = experiment.run(config, tmp_path, quiet=True)
    assert result['updates'] == 12
    rows = monitor.read_updates(tmp_path)
    steps = config.exchange.local_steps
    leases = [push.leases for push in monitor.read_pushes(tmp_path).values()]
    assert sum(map(len, leases)) == 12
    assert max(map(len, leases)) == steps
    events = eventlog.read(tmp_path / monitor.EVENTS)[1]
    pushed = {(e.worker, e.seq): e.steps for e in events if e.kind in ('applied', 'rejected')}
    assert sum(pushed.values()) == 12
    assert np.isfinite([row.metrics['loss'] for row in rows]).all()
    replayed = replay.run(tmp_path)
    assert replayed['identical']
    assert replayed['pushes'] == len(pushed)


def test_replay_says_when_what_a_local_optimiser_saw_is_missing(make_config, tmp_path):
    config = make_config(
        **SMALL, **exchange(rule='averaging', local_steps=2, num_replicas=1, num_shards=1)
    )
    experiment.run(config, tmp_path, quiet=True)
    log = tmp_path / monitor.EVENTS
    header, events = eventlog.read(log)
    log.unlink()
    with eventlog.EventLog(log, header) as kept:
        for event in events:
            if event.seq != 1:
                kept.append(event)
    with pytest.raises(ValueError, match=r'logged it|incomplete'):  # others may be based on it
        replay.run(tmp_path)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'rule': 'nag'}, 'nag.*choose'),
        ({'codec': 'zip'}, 'choose none or bfloat16'),
        ({'local_optimizer': 'lion', 'local_steps': 2}, 'choose adam'),
        ({'rule': 'easgd'}, 'set local_steps to 2'),
        ({'rule': 'heloco', **HELOCO}, 'set local_steps to 2'),
        ({'rule': 'heloco', 'local_steps': 2}, 'rule_options.keep'),
        ({'rule': 'cgad'}, 'rule_options.alpha'),
        ({'rule': 'adam', 'local_steps': 4}, 'set local_steps=1.*heloco'),
        ({'rule': 'block_momentum', 'local_steps': 2}, 'mode=sync'),
        ({'rule': 'easgd', 'local_steps': 2, **SYNC}, 'mode=async'),
        ({'rule': 'easgd', 'local_steps': 2, 'codec': 'int8'}, 'codec to none'),
        ({'rule': 'easgd', 'local_steps': 2, 'scale_by_frames': True}, 'scale_by_frames'),
        ({'local_steps': 0}, 'at least 1'),
        ({'dylu': True}, 'local_steps of 2'),
        ({'backup_replicas': 1}, 'mode=sync'),
        ({'backup_replicas': 2, **SYNC}, 'smaller than num_replicas'),
        ({'lease_s': -1.0}, 'give seconds'),
        ({'ray_replicas': True}, 'transport=ray'),
        ({'rule_options__elastic': 0.1}, 'rule_options.elastic: of them it takes none'),
        ({'rule': 'cgad', 'rule_options__momentum': 0.1}, 'takes only alpha, cutoff'),
        ({'outer_learning_rate': 0.1}, 'outer_learning_rate is not read'),
        ({'outer_learning_rate': 0.1, 'rule': 'easgd', 'local_steps': 2}, 'is not read'),
        ({'local_learning_rate': 0.1}, 'local_learning_rate needs'),
        ({'local_optimizer': 'adam'}, 'local_optimizer needs'),
        ({'keep_state': False}, 'keep_state needs'),
        ({'on_stale': 'drop'}, 'max_staleness: set that'),
        ({'replica_gpus': 0.5}, 'replica_gpus needs'),
        ({'num_replicas': 5, **SYNC}, 'needs at least one'),
    ],
)
def test_wrong_combinations_say_what_to_do(settings, message, make_config, tmp_path):
    config = make_config(**exchange(**settings))
    with pytest.raises(ValueError, match=message):
        experiment.run(config, tmp_path / 'never', quiet=True)
    assert not (tmp_path / 'never').exists()


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'bootstrap__final_learning_rate': 0.0}, 'bootstrap.*above 0'),
        ({'sequence__learning_rate': -1e-3}, 'sequence.*above 0'),
        ({'checkpoint__every_updates': 0}, 'at least 1'),
        ({'checkpoint__keep': 0}, 'at least 1'),
        (
            {'bootstrap__mono_updates': 1, 'exchange__mode': 'sync'},
            'mono_updates is 1: with mode=sync',
        ),
        ({'exchange__clip_norm': -1.0}, 'clip_norm is -1.0: it must be at least 0'),
        ({'exchange__max_restarts': -1}, 'max_restarts is -1'),
        ({'sequence__updates': -5}, 'sequence.updates is -5'),
        ({'bootstrap__updates': -4}, 'bootstrap.updates is -4'),
        ({'bootstrap__rounds': -2}, 'bootstrap.rounds is -2'),
        ({'data__max_train': -20}, 'data.max_train is -20'),
        ({'data__max_test': -1}, 'data.max_test is -1'),
        ({'graph__word_lm_order': -1}, 'word_lm_order is -1'),
        ({'graph__word_lm_smoothing': 'good-turing'}, 'choose witten-bell, kneser-ney, none'),
        ({'graph__word_lm': 'nowhere.arpa'}, 'config.graph.word_lm: nowhere.arpa: no such'),
        ({'lattice__word_lm': 'nowhere.arpa'}, 'config.lattice.word_lm: nowhere.arpa: no such'),
        ({'graph__num_tied': 0}, 'num_tied is 0: it must be at least 1'),
        ({'graph__min_count': -3}, 'min_count is -3'),
        ({'model__subsampling': 0}, 'subsampling is 0: it must be at least 1'),
        ({'model__dropout': 1.0}, 'dropout is 1.0.*below 1'),
        ({'sequence__leaky': -1.0}, 'sequence.leaky is -1.0'),
        ({'sequence__acoustic_scale': 0.0}, 'sequence.acoustic_scale is 0.0: it must be above 0'),
        ({'sequence__leaky': float('inf')}, 'leaky is inf: it must be a finite'),
        ({'sequence__boost': -1.0}, 'boost is -1.0'),
        ({'exchange__num_shards': 0}, 'num_shards is 0'),
        ({'data__batch_size': 0}, 'batch_size is 0'),
        ({'model__kind': 'lstm'}, "kind is 'lstm'; choose tdnn, dnn"),
        ({'model__offsets': ((-1, 0), ())}, 'offsets is .*give each layer its frames'),
        ({'model__offsets': ()}, 'offsets is .*give each layer its frames'),
        ({'bootstrap__mono_offsets': (1, 2)}, 'mono_offsets is .*give each layer its frames'),
        ({'bootstrap__learning_rate': float('inf')}, 'learning_rate is inf'),
        ({'data__speeds': (1.0, float('nan'))}, 'speeds is nan'),
        ({'spec_augment__num_freq_masks': -1}, 'num_freq_masks is -1'),
        ({'spec_augment__max_freq_width': -3}, 'max_freq_width is -3'),
        ({'graph__phone_lm_order': 0}, 'phone_lm_order is 0'),
        ({'graph__silence_probability': 1.0}, 'silence_probability is 1.0.*below 1'),
        ({'model__num_hidden': 0}, 'num_hidden is 0'),
        ({'exchange__local_learning_rate': -1.0}, 'local_learning_rate is -1.0'),
        ({'decode__beam': 0.0}, 'decode.beam is 0.0: it must be above 0'),
        ({'decode__max_active': 1}, 'max_active is 1: it must be at least 2'),
        ({'decode__acoustic_scale': 0.0}, 'acoustic_scale is 0.0.*above 0'),
        ({'decode__ce_acoustic_scale': -0.3}, 'ce_acoustic_scale is -0.3.*above 0'),
        ({'decode__phone_acoustic_scale': -1.0}, 'phone_acoustic_scale is -1.0'),
        ({'decode__ce_phone_acoustic_scale': -1.0}, 'ce_phone_acoustic_scale is -1.0'),
        ({'seed': -1}, 'seed is -1: it must be at least 0'),
    ],
)
def test_wrong_amounts_say_what_to_do(fields, message, make_config, tmp_path):
    with pytest.raises(ValueError, match=message):
        experiment.run(make_config(**fields), tmp_path / 'never', quiet=True)
    assert not (tmp_path / 'never').exists()


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (
            {'exchange__local_steps': 4, 'exchange__rule': 'averaging'},
            'bootstrap.average is a mean over pushed gradients',
        ),
        ({'bootstrap__average': 1.0}, 'average is 1.0: it must be at least 0 and below 1'),
        ({'sequence__average': 0.1, 'data__dev': 'DIR'}, 'the best checkpoint is kept.*one of'),
    ],
)
def test_a_mean_that_cannot_be_is_refused(fields, message, make_config):
    with pytest.raises(config_lib.ConfigError, match=message):
        experiment.check(make_config(**{'bootstrap__average': 0.2, **fields}))


def test_sgd_takes_a_momentum(make_config):
    plain, heavy = (
        server_rule.make(make_config(exchange__rule='sgd', **options), 'ce')
        for options in ({}, {'exchange__rule_options__momentum': 0.9})
    )
    gradient = {'w': np.ones(1, np.float32)}
    for rule, steps in ((plain, [1.0, 1.0]), (heavy, [1.0, 1.9])):
        state, taken = rule.init(gradient), []
        for _ in steps:
            update, state = rule.update(gradient, state, gradient)
            taken.append(float(update['w'][0]))
        np.testing.assert_allclose(np.divide(taken, taken[0]), steps, rtol=1e-5)


@pytest.mark.parametrize(
    ('kind', 'mode', 'begin'), [('ce', 'async', 6), ('ce', 'sync', 3), ('sequence', 'async', 4)]
)
def test_a_mean_is_of_the_last_part_of_all_updates(kind, mode, begin, make_config):
    config = make_config(  # two replicas, 2 · 4 and 6 updates
        exchange__mode=mode, exchange__rule='sgd', bootstrap__average=0.25, sequence__average=0.3
    )
    rule = server_rule.make(config, kind)
    state = rule.init(np.zeros(1, np.float32))
    versions = []
    for _ in range(begin + 2):
        update, state = rule.update(np.ones(1, np.float32), state, sum(versions, np.zeros(1)))
        versions.append(update)
    values = np.cumsum(versions)
    np.testing.assert_allclose(state.mean, values[begin:].mean(), rtol=1e-6)
    assert values[begin - 1] != values[begin]


def test_every_rule_is_made_in_one_of_its_modes():
    for name, rule in server_rule.RULES.items():
        config = config_lib.default()
        config.exchange.rule, config.exchange.mode = name, rule.modes[-1]
        config.exchange.local_steps = 1 if rule.pushed in ('gradient', 'either') else 4
        for option in rule.options:
            config.exchange.rule_options[option] = 0.5
        serving.check(config)
        for kind in ('ce', 'sequence'):
            assert server_rule.make(config, kind) is not None


def test_options_survive_the_way_through_json(make_config):
    config = make_config(exchange__rule_options__alpha=0.25)
    again = config_lib.from_json(config.to_dict())
    assert again.exchange.rule_options.alpha == 0.25
    assert again.exchange.rule_options.cutoff is None


def test_the_local_learning_rate_decays_as_the_stages_do(make_config):
    config = make_config(exchange__local_steps=2, sequence__updates=100, bootstrap__updates=10)
    local = serving.local_training(config, 'mmi')
    assert local.rate(0) == config.sequence.learning_rate
    assert local.rate(100) == pytest.approx(config.sequence.final_learning_rate)
    config.exchange.local_learning_rate, config.bootstrap.rounds = 0.5, 2
    config.bootstrap.learning_rate, config.bootstrap.final_learning_rate = 4e-3, 1e-3
    first, second = (serving.local_training(config, f'ce-{r}') for r in range(2))
    assert first.rate(0) == 0.5
    assert first.rate(10) == pytest.approx(second.rate(0))
    assert second.rate(10) == pytest.approx(0.5 / 4)
    config.exchange.local_steps = 1
    assert serving.local_training(config, 'ce-0') is None


def test_a_language_model_of_other_words_is_refused(make_config, tmp_path):
    arpa.write(NGramLm.estimate([['ONE', 'TWO']], 1), tmp_path / 'lm.arpa')
    file, never = str(tmp_path / 'lm.arpa'), tmp_path / 'never'
    phones = {'lattice__unit': 'phone', 'lattice__word_lm': file}
    for fields, unit in (({'graph__word_lm': file}, 'word'), (phones, 'phone')):
        with pytest.raises(ValueError, match=f'word_lm: .*lm.arpa has no {unit} of the lexicon'):
            experiment.run(make_config(**fields), never, quiet=True)
    assert not never.exists()
