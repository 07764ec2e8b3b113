"""Training on lattices in small: modes, criteria, failures, going on, replay."""

import dataclasses
import math
import re
import types

import kaldifst
import numpy as np
import pytest

from seqtrain.data.utterance import DataError
from seqtrain.exchange import Event, ReplayError, eventlog
from seqtrain.graphs import Lexicon, NGramLm, Topology, arpa
from seqtrain.lattices import LatticeGenerator, LatticePair
from seqtrain.training import (
    assembly,
    experiment,
    lattice,
    lattice_replay,
    lattice_stage,
    monitor,
    replay,
)
from seqtrain.training.lattice import Made
from seqtrain.training.workdir import WorkdirError


@pytest.fixture
def lattice_config(make_config):
    """Two replicas, eight updates by cross-entropy, six on lattices."""

    def make(**changes):
        fields = {'sequence__graph': 'lattice', 'lattice__acoustic_scale': 0.5, **changes}
        return make_config(**fields)

    return make


def rows_of(folder, stage):
    return [row for row in monitor.read_updates(folder) if row.stage == stage]


SLOW = pytest.mark.slow


def test_the_speed_of_several_batches_is_that_of_all_their_audio():
    slow = {'lattice_s': 9.0, 'lattice_speed': 1.0, 'lattice_depth': 2.0}
    fast = {'lattice_s': 1.0, 'lattice_speed': 10.0, 'lattice_depth': 4.0}
    known = {'lattice_s': 0.0, 'lattice_depth': 3.0}
    failed = {'lattice_s': 2.0}
    assert lattice.merged([slow, fast, known, failed]) == {
        'lattice_s': 12.0,
        'lattice_speed': 1.9,
        'lattice_depth': 3.0,
    }


def test_the_oracle_wer_of_several_batches_is_errors_over_words():
    made = [[Made(words=1, oracle_errors=1)], [Made(), Made(words=9)], [Made(words=0)]]
    found = [lattice.summary(some, some, 1.0, 1.0) for some in made]
    assert [one.get('oracle_wer') for one in found] == [1.0, 0.0, None]
    together = lattice.merged(found)
    assert (together['oracle_errors'], together['oracle_words']) == (1, 10)
    assert together['oracle_wer'] == pytest.approx(0.1)


def test_a_batch_without_a_lattice_has_neither_depth_nor_speed():
    made = [Made(reason='no path'), None]
    found = lattice.summary(made, made, 2.0, 0.0)
    assert found == {'lattice_failed': 1, 'lattice_pruned': 0, 'lattice_s': 2.0}


def test_what_was_done_to_a_lattice_counts_where_it_is_made():
    again, new = (Made(depth=d, pruned=True, words=2, oracle_errors=1) for d in (30.0, 50.0))
    found = lattice.summary([again, new], [None, new], 1.0, 1.0)
    assert found['lattice_depth'] == 40.0
    assert (found['lattice_pruned'], found['oracle_words']) == (1, 2)


def test_only_audio_that_got_lattices_counts_for_the_speed():
    class SomeFail(lattice.LatticeMaker):
        def utterance(self, logits, index, look=False):
            return Made(reason='' if index else 'no path')

    features = types.SimpleNamespace(features=[np.zeros((n, 1)) for n in (500, 100, 20)])
    maker = SomeFail(None, types.SimpleNamespace(features=features))
    logits, lengths = np.zeros((4, 1, 1)), np.ones(4, int)
    made, _, audio_s = maker.make(logits, lengths, np.array([2, -1, 0, 1]))
    assert [one and one.reason for one in made] == ['', None, 'no path', '']
    assert audio_s == pytest.approx(1.2)


def test_denominators_by_a_given_language_model(tmp_path):
    model = NGramLm.estimate([['yes', 'perhaps'], ['yes', 'no']], 2)
    arpa.write(model, tmp_path / 'lm.arpa')
    found = lattice.word_model(['no no'], 1, str(tmp_path / 'lm.arpa'))
    assert found.logprob(('yes',), 'no') == pytest.approx(model.logprob(('yes',), 'no'))
    lexicon = Lexicon.from_dict({'yes': 'Y EH S', 'no': 'N OW'})
    topology = Topology.make('chain', len(lexicon.phones))
    graph = lattice.denominator_graph(lexicon, topology, found, None)
    assert graph.words == ('<eps>', 'no', 'yes')  # perhaps has no pronunciation


def test_perturbed_copies_do_not_count_for_the_language_model(lattice_config):
    once, thrice = (
        lattice_stage.word_model(config, assembly.training_data(config))
        for config in (lattice_config(), lattice_config(data__speeds=(0.9, 1.0, 1.1)))
    )
    assert thrice == once


def test_silence_in_denominators_may_be_more_likely_than_in_decoding(lattice_config):
    config = lattice_config(graph__silence_probability=0.2)
    data = assembly.training_data(config)
    network, _ = assembly.network(config, data.features.dim, data.topology.num_pdfs)
    lm = lattice_stage.word_model(config, data)
    weights = {}
    for own in (-1.0, 0.0, 0.9):
        config.lattice.silence_probability = own
        work = lattice_stage.of_size(config, data, network, [], lm, None)
        weights[own] = _silence_weights(work.maker.generator.graph)
    assert not weights[0.0]
    assert min(weights[-1.0]) > min(weights[0.9])
    shared = lattice.denominator_graph(data.lexicon, data.topology, lm, None, 0.2)
    assert weights[-1.0] == _silence_weights(shared)


def _silence_weights(graph):
    states = range(graph.fst.num_states)
    arcs = [arc for state in states for arc in kaldifst.ArcIterator(graph.fst, state)]
    return [arc.weight.value for arc in arcs if arc.ilabel == 1]  # silence is entered


@pytest.mark.parametrize(
    'criterion', ['mmi', pytest.param('smbr', marks=SLOW), pytest.param('mpe', marks=SLOW)]
)
def test_lattices_for_every_batch(lattice_config, tmp_path, criterion):
    config = lattice_config(sequence__criterion=criterion)
    result = experiment.run(config, tmp_path, quiet=True)
    rows = rows_of(tmp_path, criterion)
    assert len(rows) == 6
    assert result['skipped'] == 0
    for row in rows:
        metrics = row.metrics
        assert metrics['row_sum'] < 1e-5
        assert metrics['gradient_norm'] > 0
        assert metrics['numerator_occupancy'] == pytest.approx(1, abs=1e-5)
        assert metrics['denominator_occupancy'] == pytest.approx(1, abs=1e-5)
        assert metrics['lattice_depth'] > 1
        assert metrics['lattice_failed'] == 0
        assert 0 <= metrics['oracle_wer'] <= 1
        assert metrics['lattice_speed'] > 0
        assert not row.invalid
        assert not row.reasons
    events = eventlog.read(tmp_path / monitor.EVENTS)[1]
    ages = [e.s2 for e in events if e.kind == 'applied' and e.version > 8]
    # The first batch of a replica has lattices of its own parameters, the others older ones.
    assert 0 in ages
    assert max(ages) > 0
    assert 0 <= result['device_idle_share'] <= 1
    page = (tmp_path / 'report.html').read_text()
    assert '<svg' in page
    assert 'arcs per frame' in page


def test_lattices_of_phones(lattice_config, tmp_path):
    config = lattice_config(
        sequence__criterion='mpe', lattice__unit='phone', lattice__word_lm_order=2
    )
    experiment.run(config, tmp_path, quiet=True)
    rows = rows_of(tmp_path, 'mpe')
    assert len(rows) == 6
    assert not any(row.reasons for row in rows)
    assert all(row.metrics['row_sum'] < 1e-5 for row in rows)
    page = (tmp_path / 'report.html').read_text()
    caption = re.search(r': ([^:]+)\. [0-9.]+ arcs per frame; .* errors in ([0-9]+) phones', page)
    phones = caption[1].split()
    assert len(phones) == int(caption[2])
    lexicon = Lexicon.read(tmp_path / 'model' / 'lexicon.txt')
    assert set(phones) <= set(lexicon.phones) - {lexicon.silence}


@SLOW
def test_lattices_kept_for_two_epochs(lattice_config, tmp_path):
    config = lattice_config(
        lattice__mode='epoch',
        lattice__epochs_per_lattice=2,
        lattice__ahead=0,
        exchange__num_replicas=1,
        sequence__updates=24,
    )
    experiment.run(config, tmp_path, quiet=True)
    rows = rows_of(tmp_path, 'mmi')
    epochs = {}
    for row in rows:
        epochs.setdefault(row.lease[1], []).append(row.metrics['lattice_s'])
    whole = [epoch for epoch in sorted(epochs) if epoch > min(epochs)][:-1]
    for epoch in whole:  # every other epoch costs the host nothing
        made = [seconds > 0 for seconds in epochs[epoch]]
        assert all(made) if epoch % 2 == 0 else not any(made), (epoch, made)
    events = eventlog.read(tmp_path / monitor.EVENTS)[1]
    assert max(e.s2 for e in events) >= 4


def test_lattices_that_are_kept_fit_every_batch_that_their_utterance_comes_into(
    lattice_config, tmp_path
):
    # Batches of 5 out of 24: in every epoch the rest of a bucket moves on to a longer one.
    lattice.Sizes((2.0, 3.0), (4.0, 6.0)).write(tmp_path)
    config = lattice_config(
        data__batch_size=5,
        data__num_buckets=3,
        lattice__mode='epoch',
        lattice__epochs_per_lattice=9,
        lattice__lattice_beam=9.0,
        exchange__num_replicas=1,
        sequence__updates=15,
    )
    experiment.run(config, tmp_path, quiet=True)
    rows = rows_of(tmp_path, 'mmi')
    assert len(rows) == 15
    assert sum(row.metrics['lattice_pruned'] for row in rows) > 0


@pytest.mark.parametrize(
    ('criterion', 'correction', 'replicas'),
    [
        pytest.param('mmi', True, 1, marks=SLOW),
        ('smbr', False, 1),
        pytest.param('mmi', False, 2, marks=SLOW),
    ],
)
def test_cached_outer_derivatives(lattice_config, tmp_path, criterion, correction, replicas):
    config = lattice_config(
        sequence__criterion=criterion,
        exchange__num_replicas=replicas,
        sequence__ce_weight=0.1,
        sequence__updates=16,
        lattice__mode='outer',
        lattice__epochs_per_lattice=2,
        lattice__batches_per_block=2,
        lattice__correction=correction,
    )
    result = experiment.run(config, tmp_path, quiet=True)
    rows = rows_of(tmp_path, criterion)
    assert result['updates'] == 24
    assert len(rows) == 16
    assert all(math.isfinite(row.metrics['loss']) for row in rows)
    assert all(row.metrics['gradient_norm'] > 0 for row in rows)
    if not correction:
        assert max(row.metrics['row_sum'] for row in rows) < 1e-5
    if replicas == 1:  # blocks end where epochs do: every frame is there once
        frames = [row.frames for row in rows]
        totals = {sum(frames[start : start + 4]) for start in range(0, 16, 4)}
        assert len(totals) == 1
        # The first push of each block tells of its lattices, of the first block too, whose lease
        # is completed twice (shapes are compiled in between).
        assert ['lattice_depth' in row.metrics for row in rows] == [True, False] * 8
        # Occupancies are of new lattices: those of every other epoch.
        told = [row.metrics for row in rows if 'denominator_occupancy' in row.metrics]
        assert len(told) == 4
        for side in ('numerator_occupancy', 'denominator_occupancy'):
            assert [metrics[side] for metrics in told] == pytest.approx([1.0] * 4, abs=1e-5)


@pytest.mark.parametrize('ahead', [1, 2, pytest.param(0, marks=SLOW)])
def test_replay_ends_with_the_same_bits(lattice_config, tmp_path, ahead):
    config = lattice_config(lattice__ahead=ahead, exchange__rule='sgd', model__dropout=0.1)
    experiment.run(config, tmp_path, quiet=True)
    result = replay.run(tmp_path)
    assert result['identical']
    assert result['pushes'] == 14


@pytest.mark.parametrize(
    'mode', ['decode', pytest.param('epoch', marks=SLOW), pytest.param('outer', marks=SLOW)]
)
def test_a_run_goes_on_among_its_lattices(lattice_config, tmp_path, run_until_power_cut, mode):
    config = lattice_config(lattice__mode=mode, lattice__epochs_per_lattice=2)
    run_until_power_cut(config, tmp_path, updates=8 + 5, killed=True)
    sizes = (tmp_path / lattice.SIZES).read_text()
    result = experiment.run(config, tmp_path, quiet=True)
    assert result['updates'] == 14
    rows = rows_of(tmp_path, 'mmi')
    assert {row.number for row in rows} == set(range(9, 15))  # what was lost was done again
    assert len({row.generation for row in rows}) == 2
    assert not any(row.reasons for row in rows)
    assert (tmp_path / lattice.SIZES).read_text() == sizes
    if mode == 'decode':
        assert replay.run(tmp_path)['identical']


def test_a_replay_knows_which_parameters_made_the_lattices():
    ahead = replay_of(ahead=1)
    assert ahead.begin(push(0, 4, s2=0), 'first') == 'first'
    assert ahead.begin(push(1, 7, s2=3), 'second') == 'first'
    # It had no lease to prepare for, then got one of a replica that had failed.
    assert ahead.begin(push(2, 9, s2=0), 'third') == 'third'
    assert ahead.begin(push(3, 9, s2=0), 'third again') == 'third'
    assert ahead.begin(push(4, 2, s2=0, generation=1), 'restarted') == 'third again'
    assert ahead.begin(push(5, 3, s2=0, life=1, generation=1), 'fourth') == 'fourth'
    with pytest.raises(ReplayError, match=r'replica 1 .* of its push 7, 2 versions older'):
        ahead.begin(push(7, 8, s2=2, life=1, generation=1), 'fifth')


def test_a_replay_knows_lattices_made_two_pushes_before():
    ahead = replay_of(ahead=2)
    assert ahead.begin(push(0, 4, s2=0), 'first') == 'first'
    assert ahead.begin(push(1, 7, s2=3), 'second') == 'first'
    assert ahead.begin(push(2, 9, s2=5), 'third') == 'first'
    assert ahead.begin(push(3, 10, s2=3), 'fourth') == 'second'
    assert ahead.begin(push(4, 12, s2=2), 'fifth') == 'fourth'  # known one push before
    assert ahead.begin(push(6, 15, s2=3), 'sixth') == 'fifth'
    with pytest.raises(ReplayError, match='of its push 7, 4 versions older'):
        ahead.begin(push(7, 17, s2=4), 'seventh')  # made by push 5, which nobody logged


def replay_of(ahead):
    config = lattice.LatticeConfig(ahead=ahead)
    return lattice_replay.LatticeReplay(types.SimpleNamespace(config=config))


def push(seq, version, s2, life=0, generation=0):
    versions = {'bases': (version,), 'generations': (generation,)}
    return Event('applied', 0, 1, seq, version, s2=s2, life=life, **versions)


@SLOW
def test_kept_lattices_cannot_be_replayed(lattice_config, tmp_path):
    experiment.run(lattice_config(lattice__mode='epoch'), tmp_path, quiet=True)
    with pytest.raises(ReplayError, match=r'mode=epoch cannot be replayed'):
        replay.run(tmp_path)


@pytest.mark.parametrize('mode', ['decode', pytest.param('outer', marks=SLOW)])
def test_an_utterance_without_lattice_is_masked_and_named(
    lattice_config, tmp_path, monkeypatch, mode
):
    real, victims = LatticeGenerator.pair, set()

    def pair(self, scores, words):
        if not victims:
            victims.add(words)
        if words in victims:
            return LatticePair(None, None, 'no path within the beam')
        return real(self, scores, words)

    monkeypatch.setattr(LatticeGenerator, 'pair', pair)
    config = lattice_config(lattice__mode=mode, sequence__criterion='smbr')
    result = experiment.run(config, tmp_path, quiet=True)
    rows = rows_of(tmp_path, 'smbr')
    assert result['lattices_failed'] >= 1
    assert result['skipped'] >= 1
    assert {reason for row in rows for _, reason in row.reasons} == {'no path within the beam'}
    assert all(row.metrics['gradient_norm'] > 0 for row in rows)
    assert 'no lattice in smbr: no path within the beam' in (tmp_path / 'report.html').read_text()


@SLOW
def test_lattices_that_do_not_fit_are_pruned_and_counted(lattice_config, tmp_path):
    lattice.Sizes((2.0, 3.0), (4.0, 6.0)).write(tmp_path)
    experiment.run(lattice_config(lattice__lattice_beam=9.0), tmp_path, quiet=True)
    rows = rows_of(tmp_path, 'mmi')
    assert sum(row.metrics['lattice_pruned'] for row in rows) > 0
    assert all(row.metrics['gradient_norm'] > 0 for row in rows)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'lattice__mode': 'never'}, 'choose decode, epoch, outer'),
        ({'lattice__unit': 'syllable'}, 'choose word or phone'),
        ({'lattice__mode': 'decode', 'lattice__correction': True}, 'belongs to'),
        ({'sequence__graph': 'lettuce'}, 'choose lattice_free or lattice'),
        ({'sequence__leaky': 0.1}, 'for lattice-free graphs'),
        ({'sequence__acoustic_scale': 0.1}, r'lattices have config\.lattice\.acoustic_scale'),
        ({'lattice__threads': 0}, 'at least 1'),
        ({'lattice__max_active': 0}, r'config\.lattice\.max_active is 0; at least 1'),
        ({'lattice__beam': -1.0}, r'config\.lattice\.beam is -1\.0; above 0'),
        ({'lattice__lattice_beam': -1e4}, 'above 0'),
        ({'lattice__acoustic_scale': 0.0}, 'above 0'),
        ({'lattice__silence_probability': 1.0}, 'silence_probability is 1.0; at least 0'),
        ({'lattice__silence_probability': -0.5}, 'or -1 for that of config.graph'),
        ({'sequence__criterion': 'sMBR'}, 'choose mmi, smbr or mpe'),
        ({'sequence__criterion': 'smbr', 'sequence__boost': 0.1}, 'boost belongs to mmi'),
        ({'sequence__criterion': 'smbr', 'sequence__drop_frames': True}, 'drop_frames belongs'),
        ({'sequence__graph': 'lattice_free', 'sequence__ce_weight': -1.0}, 'must not be negative'),
        (
            {
                'lattice__mode': 'epoch',
                'exchange__ray_replicas': True,
                'exchange__transport': 'ray',
            },
            r'set config\.data\.split_by=speaker',
        ),
    ],
)
def test_contradictions_are_refused_before_anything_is_trained(
    lattice_config, tmp_path, fields, message
):
    with pytest.raises(ValueError, match=message):
        experiment.run(lattice_config(**fields), tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_language_model_that_allows_no_transcript_ends_the_run(lattice_config, tmp_path):
    arpa.write(NGramLm.estimate([['zero']], 1), tmp_path / 'lm.arpa')
    config = lattice_config(lattice__word_lm=str(tmp_path / 'lm.arpa'))
    data = assembly.training_data(config)
    texts = ['one two'] * len(data)
    data = dataclasses.replace(data, features=dataclasses.replace(data.features, texts=texts))
    network, params = assembly.network(config, data.features.dim, data.topology.num_pdfs)
    labels = [np.zeros(1, np.int32)] * len(data)
    with pytest.raises(DataError, match=r'None of \d+ utterances has a lattice; the first: .*one'):
        lattice_stage.make(config, data, network, labels, tmp_path, params)


def test_the_language_model_stays_what_it_was(lattice_config, tmp_path, run_until_power_cut):
    file, run = tmp_path / 'lm.arpa', tmp_path / 'run'
    words = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']
    arpa.write(NGramLm.estimate([words], 1), file)
    config = lattice_config(lattice__word_lm=str(file))
    run_until_power_cut(config, run, updates=9)
    kept = file.read_text()
    arpa.write(NGramLm.estimate([words, ['zero']], 1), file)
    with pytest.raises(WorkdirError, match=r'lattice\.word_lm: .*lm\.arpa is not what it was'):
        experiment.run(config, run, quiet=True)
    file.write_text(kept)
    experiment.run(config, run, quiet=True)
    assert replay.run(run)['identical']
    arpa.write(NGramLm.estimate([words, ['zero']], 1), file)
    with pytest.raises(WorkdirError, match='is not what it was'):
        replay.run(run)


def test_damaged_sizes_are_named(tmp_path):
    sizes = lattice.Sizes((2.0, 3.0), (4.0, 8.5))
    sizes.write(tmp_path)
    assert lattice.Sizes.read(tmp_path) == sizes
    (tmp_path / lattice.SIZES).write_text('')
    with pytest.raises(WorkdirError, match=r'lattice_sizes\.json is damaged.*Delete it'):
        lattice.Sizes.read(tmp_path)


def test_each_kind_of_graph_has_its_acoustic_scale(make_config):
    topology = Topology.make('chain', 3)
    free = make_config(sequence__acoustic_scale=0.3, lattice__acoustic_scale=0.2)
    assert lattice_stage.sequence_config(free, topology).acoustic_scale == 0.3
    listed = make_config(sequence__graph='lattice', lattice__acoustic_scale=0.2)
    assert lattice_stage.sequence_config(listed, topology).acoustic_scale == 0.2
