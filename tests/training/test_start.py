"""Tied states: a monophone run first, its end the beginning of the next, at any interruption."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from seqtrain.data.utterance import DataError
from seqtrain.exchange import Partition, ReplayError
from seqtrain.graphs import segments
from seqtrain.training import (
    align,
    assembly,
    decode,
    experiment,
    monitor,
    problem,
    recognizer,
    replay,
    start,
    steps,
)
from seqtrain.training.batching import Batcher
from seqtrain.training.checkpoint import Position
from seqtrain.training.leasing import parts
from seqtrain.training.workdir import Workdir, WorkdirError

TREE = {'graph__context': 'triphone', 'graph__num_tied': 60, 'graph__min_count': 8}
COUNTS = {'graph__context': 'biphone', 'graph__tying': 'count', 'graph__min_count': 5}
SHORT = {'bootstrap__mono_rounds': 1, 'bootstrap__rounds': 1, 'data__max_test': 2}


@pytest.fixture
def tied_start(make_config, tmp_path):
    """A monophone run, and what a run with tied states makes of its end."""
    config = make_config(**TREE, **SHORT, sequence__updates=0)
    experiment.run(start.monophone_config(config), tmp_path / start.MONO, quiet=True)
    with Workdir(tmp_path, config.to_dict()):
        return config, start.begin(config, tmp_path)


def test_a_wider_network_gives_the_same_likelihoods(tied_start, tmp_path):
    config, begun = tied_start
    mono = start.monophone_config(config)
    topology = begun.data.topology
    net, params = assembly.network(mono, begun.data.features.dim, 1 + max(topology.base_pdf))
    params, position = recognizer.trained(mono, tmp_path / start.MONO, params)
    features = np.stack([begun.data.features.features[0][:60]])
    before, after = (
        np.asarray(network(p, features, np.array([60])))
        for network, p in ((net, params), (begun.network, begun.params))
    )
    assert topology.num_pdfs > before.shape[-1]
    np.testing.assert_allclose(after, before[..., topology.base_pdf], rtol=1e-6)
    assert position.updates == 4


def test_the_alignments_keep_their_phones(tied_start):
    _, begun = tied_start
    data = begun.data
    assert len(begun.labels) == len(data)
    for labels, frames, text in zip(
        begun.labels, data.output_lengths, data.features.texts, strict=True
    ):
        assert len(labels) == frames
        phones = [part.phone for part in segments(labels, data.topology) if part.phone]
        spoken = [data.lexicon.phone_ids[p] for p in data.lexicon.canonical(text)]
        if len(phones) == len(spoken):  # a word may have other pronunciations
            assert phones == spoken
    assert max(int(labels.max()) for labels in begun.labels) < data.topology.num_pdfs


def test_a_resumed_run_has_the_same_graphs(tied_start, tmp_path):
    config, begun = tied_start
    again = start.resume(config, tmp_path)
    assert again.data.topology.content() == begun.data.topology.content()
    assert again.data.graph_sizes == begun.data.graph_sizes
    shapes = (jax.tree.map(np.shape, one.params) for one in (again, begun))
    assert next(shapes) == next(shapes)


def test_a_tied_run_from_recordings_to_decoding(make_config, kaldi_copy, tmp_path):
    config = make_config(**COUNTS, **SHORT, bootstrap__updates=2, sequence__updates=2)
    result = experiment.run(config, tmp_path, quiet=True)
    assert (result['updates'], result['mono']['updates']) == (4, 2)
    rows = monitor.read_updates(tmp_path)
    assert [row.stage for row in rows] == ['ce-0', 'ce-0', 'mmi', 'mmi']
    assert max(row.metrics['row_sum'] for row in rows if row.stage == 'mmi') < 1e-4
    assert result['skipped'] == 0
    data = kaldi_copy(assembly.load_split(config.data, 'test'), tmp_path / 'data')
    assert decode.run(tmp_path, str(data))['errors'] == result['errors']
    final = (tmp_path / 'decode' / 'mmi-word' / 'text').read_text()
    assert (tmp_path / 'decode' / 'data' / 'text').read_text() == final


def test_a_network_that_sees_less_may_find_the_first_alignments(make_config, tmp_path):
    narrow = ((-1, 0, 1),)
    config = make_config(**SHORT, bootstrap__updates=2, sequence__updates=0)
    config.bootstrap.mono_offsets, config.bootstrap.mono_updates = narrow, 3
    result = experiment.run(config, tmp_path, quiet=True)
    assert (result['updates'], result['mono']['updates']) == (2, 3)
    mono = json.loads((tmp_path / start.MONO / 'config.json').read_text())
    assert mono['model']['offsets'] == [[-1, 0, 1]]
    begun = start.begin(config, tmp_path)
    _, fresh = assembly.network(config, begun.data.features.dim, begun.data.topology.num_pdfs)
    jax.tree.map(np.testing.assert_array_equal, begun.params, fresh)
    flat = align.flat_start(begun.data)
    assert any((a != b).any() for a, b in zip(begun.labels, flat, strict=True))


def test_lattice_free_mmi_may_find_the_first_alignments(make_config, tmp_path):
    config = make_config(
        **COUNTS, **SHORT, bootstrap__updates=2, bootstrap__mono_sequence_updates=3,
        sequence__updates=0, sequence__graph='lattice', sequence__criterion='smbr',
    )  # fmt: skip
    result = experiment.run(config, tmp_path, quiet=True)
    assert (result['updates'], result['mono']['updates']) == (2, 5)
    rows = monitor.read_updates(tmp_path / start.MONO)
    assert [row.stage for row in rows] == ['ce-0'] * 2 + ['mmi'] * 3
    mono = json.loads((tmp_path / start.MONO / 'config.json').read_text())
    assert (mono['sequence']['graph'], mono['decode']['acoustic_scale']) == ('lattice_free', 1)
    replayed = replay.run(tmp_path)
    assert replayed['identical']
    assert replayed['mono']['identical']


def test_alignments_that_processes_made_are_made_again(make_config, tmp_path):
    config = make_config(exchange__ray_replicas=True)
    data = assembly.training_data(config)
    (tmp_path / start.ALIGNERS).mkdir()
    labels = [align.flat_start(data)]
    for stage in (2, 10):
        config.seed = stage
        network, params = assembly.network(config, data.features.dim, data.topology.num_pdfs)
        labels.append(
            align.realign(
                steps.make_align(network), params, Batcher(data, 0), labels[-1],
                jax.devices()[:2], parts(config, data),
            )
        )  # fmt: skip
        (flat,) = Partition.make(params, 1).split(params)
        np.save(tmp_path / start.ALIGNERS / f'{stage}.npy', flat)
    ends = [((2, 0), 0), ((2, 1), 1), ((10, 0), 1), ((10, 3), 2), ((11, 0), 2)]
    for (stage, completed), newest in ends:
        joined = np.concatenate(labels[0])
        position = Position(stage, completed, 0, [], {}, joined, np.zeros(0))
        made = start.newest_labels(config, tmp_path, position, data, network, params)
        np.testing.assert_array_equal(np.concatenate(made), np.concatenate(labels[newest]))
    assert all(np.concatenate(one).tolist() != joined.tolist() for one in labels[1:])
    assert np.concatenate(labels[1]).tolist() != np.concatenate(labels[2]).tolist()


@pytest.mark.slow
@pytest.mark.parametrize('tying', [COUNTS, TREE | {'graph__topology': 'hmm1'}])
def test_a_tied_run_goes_on_from_any_point_and_replays(
    make_config, tmp_path, run_until_power_cut, tying
):
    config = make_config(**tying, **SHORT, sequence__updates=4)
    run_until_power_cut(config, tmp_path, updates=3)  # with monophones
    assert not (tmp_path / start.MONO / 'result.json').exists()
    run_until_power_cut(config, tmp_path, updates=7)  # one to go there, then tied ones
    assert (tmp_path / start.MONO / 'result.json').exists()
    result = experiment.run(config, tmp_path, quiet=True)
    assert (result['updates'], result['mono']['updates']) == (8, 4)
    assert len({row.stage for row in monitor.read_updates(tmp_path)}) == 2
    files = json.loads((tmp_path / 'model' / 'model.json').read_text())
    mono = json.loads((tmp_path / start.MONO / 'model' / 'model.json').read_text())
    assert files['num_outputs'] > mono['num_outputs']
    replayed = replay.run(tmp_path)
    assert replayed['identical']
    assert replayed['mono']['identical']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'graph__context': 'quinphone'}, 'choose one of mono, biphone, triphone'),
        ({'graph__context': 'triphone', 'graph__tying': 'count'}, 'biphones only'),
        ({'graph__context': 'biphone', 'graph__tying': 'hand'}, 'choose tree or count'),
        ({'graph__context': 'biphone', 'graph__topology': 'ctc'}, 'CTC blanks'),
        (
            {'graph__context': 'biphone', 'bootstrap__mono_rounds': 0},
            'mono_rounds is 0.*needs at least 1',
        ),
        ({'bootstrap__mono_sequence_updates': 5}, 'is 5, but there is no monophone run'),
    ],
)
def test_fields_that_contradict_each_other(make_config, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        experiment.run(make_config(**changes), tmp_path, quiet=True)


def test_a_development_set_that_is_not_there_is_found_before_the_monophone_run(
    make_config, tmp_path
):
    with pytest.raises(DataError, match='nowhere'):
        experiment.run(make_config(**COUNTS, **SHORT, data__dev='nowhere'), tmp_path, quiet=True)
    assert not (tmp_path / start.MONO).exists()


def test_without_sequence_updates_cross_entropy_is_the_end(make_config, tmp_path):
    config = make_config(bootstrap__rounds=1, sequence__updates=0, data__max_test=2)
    result = experiment.run(config, tmp_path, quiet=True)
    assert result['criterion'] == 'ce'
    assert (result['updates'], result['wer']) == (4, result['wer_ce'])


def test_another_criterion_from_the_same_network(make_config, tmp_path):
    before = make_config(**COUNTS, **SHORT, sequence__updates=0)
    trained = experiment.run(before, tmp_path / 'ce', quiet=True)
    after = make_config(
        **COUNTS, **SHORT, start_from=str(tmp_path / 'ce'), sequence__criterion='smbr'
    )
    after.bootstrap.rounds = 0
    after.model.dropout = 0.1  # no part of the network
    result = experiment.run(after, tmp_path / 'smbr', quiet=True)
    # What it begins with is scored as 'ce' and is what the other run ended with.
    assert result['wer_ce'] == trained['wer']
    assert not (tmp_path / 'smbr' / start.MONO).exists()
    assert replay.run(tmp_path / 'smbr')['identical']
    # The simulator reads the other run where it stands.
    simulated = problem.AcousticProblem(after, 'sequence', loss_batches=1)
    assert np.isfinite(simulated.loss(simulated.start()))
    after.graph.min_count += 1  # the other run's tree is taken over as it is
    with pytest.raises(WorkdirError, match=r'graph\.min_count is \d+, but'):
        start.begin(after, tmp_path / 'smbr', keep=False)


def test_tied_states_from_a_flat_start_by_lattice_free_mmi(
    make_config, tmp_path, run_until_power_cut
):
    mono = make_config(**SHORT, sequence__updates=4)
    trained = experiment.run(mono, tmp_path / 'mmi', quiet=True)
    files = sorted((tmp_path / 'mmi').rglob('*'))
    tied = {**TREE, **SHORT, 'start_from': str(tmp_path / 'mmi')}
    config = make_config(**tied, bootstrap__updates=2, sequence__updates=2)
    simulated = problem.AcousticProblem(config, 'sequence', loss_batches=1)
    assert np.isfinite(simulated.loss(simulated.start()))
    assert sorted((tmp_path / 'mmi').rglob('*')) == files
    run_until_power_cut(config, tmp_path / 'tied', updates=1)
    result = experiment.run(config, tmp_path / 'tied', quiet=True)
    assert result['updates'] == 4
    assert not (tmp_path / 'tied' / start.MONO).exists()
    tree = tmp_path / 'tied' / 'model' / 'tying.npz'
    kept, _ = tree.read_bytes(), tree.write_bytes(b'a replay leaves it alone')
    assert replay.run(tmp_path / 'tied')['identical']
    assert tree.read_bytes() == b'a replay leaves it alone'
    tree.write_bytes(kept)
    # Its alignments are of the network after MMI, not those that MMI began with.
    begun = start.begin(config, tmp_path / 'tied')
    assert begun.source.updates == trained['updates']
    assert not begun.source.only_ce
    again = make_config(**SHORT, start_from=str(tmp_path / 'mmi'))
    realigned = start.begin(again, tmp_path).labels  # cross-entropy comes next
    again.bootstrap.rounds = 0
    old = start.begin(again, tmp_path).labels
    base = begun.data.topology.base_pdf
    assert len(base) == 60
    for one, other in zip(begun.labels, realigned, strict=True):
        np.testing.assert_array_equal(base[one], other)
    assert any((one != other).any() for one, other in zip(realigned, old, strict=True))


def test_tied_states_with_another_network_need_cross_entropy(make_config, tmp_path):
    experiment.run(make_config(**SHORT, sequence__updates=0), tmp_path / 'ce', quiet=True)
    tied = {**TREE, **SHORT, 'start_from': str(tmp_path / 'ce'), 'model__num_hidden': 8}
    for without in ({'bootstrap__rounds': 0}, {'bootstrap__updates': 0}):
        with pytest.raises(WorkdirError, match=r'Set config\.bootstrap\.rounds and updates to 1'):
            start.begin(make_config(**{**tied, **without}), tmp_path / 'next')
    (tmp_path / 'next').mkdir()
    begun = start.begin(make_config(**tied), tmp_path / 'next')
    assert begun.params['output']['bias'].shape == (begun.data.topology.num_pdfs,)
    other = make_config(**tied, model__subsampling=1)
    with pytest.raises(WorkdirError, match=r'model\.subsampling is 1, but 3'):
        start.begin(other, tmp_path / 'next')


def _begins_as_ce(config, folder):
    """Whether a run that has a checkpoint, but no update yet, has a cross-entropy network."""
    folder.mkdir()
    begun = start.begin(config, folder)
    begun.source.write(folder)
    at_the_start = Position(0, 0, 0, [], {}, np.concatenate(begun.labels), np.zeros(0))
    return start.only_ce(config, folder, at_the_start)


def test_what_a_run_on_top_of_a_sequence_trained_network_begins_with_is_no_ce_network(
    make_config, tmp_path, run_until_power_cut
):
    before = make_config(**SHORT, sequence__updates=2)
    trained = experiment.run(before, tmp_path / 'mmi', quiet=True)
    config = make_config(start_from=str(tmp_path / 'mmi'), sequence__criterion='smbr', **SHORT)
    config.bootstrap.rounds, config.decode.ce_acoustic_scale = 0, 1e-4  # a scale that would show
    assert not _begins_as_ce(config, tmp_path / 'smbr')
    run_until_power_cut(config, tmp_path / 'smbr', updates=2)
    shutil.rmtree(tmp_path / 'mmi')  # what goes on does not need it
    result = experiment.run(config, tmp_path / 'smbr', quiet=True)
    assert result['wer_start'] == trained['wer']
    assert 'wer_ce' not in result
    folders = sorted(folder.name for folder in (tmp_path / 'smbr' / 'decode').iterdir())
    assert folders == ['smbr-word', 'start-word']
    page = (tmp_path / 'smbr' / 'report.html').read_text()
    assert 'start, test' in page
    headline = f'<dt>word error rate, LF-sMBR, test</dt><dd>{100 * result["wer"]:.2f} %</dd>'
    assert headline in page
    experiment.run(config, tmp_path / 'smbr', quiet=True)
    assert headline in (tmp_path / 'smbr' / 'report.html').read_text()


def test_a_replay_says_when_the_run_before_has_gone_on(
    make_config, tmp_path, run_until_power_cut, caplog
):
    source = make_config(data__max_test=2)
    run_until_power_cut(source, tmp_path / 'ce', updates=6)
    caplog.set_level('WARNING')
    config = make_config(start_from=str(tmp_path / 'ce'), data__max_test=2, sequence__updates=2)
    config.bootstrap.rounds = 0
    assert 'wer_ce' in experiment.run(config, tmp_path / 'next', quiet=True)
    assert re.search(r'ce has not ended: it stands at \d+ updates', caplog.text)
    assert replay.run(tmp_path / 'next')['identical']
    experiment.run(source, tmp_path / 'ce', quiet=True)
    with pytest.raises(ReplayError, match=r'trained on since \(its newest checkpoint is of 14\)'):
        replay.run(tmp_path / 'next')


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'model__num_hidden': 8}, 'model.num_hidden is 8, but 16'),
        ({'data__max_train': 6}, 'other utterances'),
        ({'data__lexicon': 'renamed.txt'}, r'lexicon has other phones.*is in one of them only'),
        ({'data__lexicon': 'more.txt'}, r'lexicon has other phones.*\(QQ is in one'),
        ({'start_from': 'nowhere'}, 'holds no run'),
    ],
)
def test_a_run_that_cannot_go_on(make_config, tmp_path, monkeypatch, change, reason):
    monkeypatch.chdir(tmp_path)
    short = {**SHORT, 'sequence__updates': 0}
    experiment.run(make_config(**short), tmp_path / 'ce', quiet=True)
    _lexicons(make_config(), tmp_path)
    config = make_config(**{'start_from': str(tmp_path / 'ce'), **change})
    with pytest.raises(WorkdirError, match=reason):
        experiment.run(config, tmp_path / 'next', quiet=True)


def _lexicons(config, folder):
    """The corpus's lexicon with a phone renamed, and with one more."""
    rows = assembly.load_lexicon(config.data)
    rows.write(folder / 'more.txt')
    lines = (folder / 'more.txt').read_text().splitlines()
    last = rows.phones[-1]
    renamed = [' '.join('PP' if p == last else p for p in line.split()) for line in lines]
    (folder / 'renamed.txt').write_text('\n'.join(renamed) + '\n')
    (folder / 'more.txt').write_text('\n'.join([*lines, 'more QQ']) + '\n')


@pytest.mark.parametrize('change', [{'start_from': 'mono'}, TREE])
def test_alignments_of_other_transcripts_are_not_taken_over(
    make_config, tmp_path, monkeypatch, change
):
    monkeypatch.chdir(tmp_path)
    config = make_config(**{**SHORT, 'bootstrap__updates': 2, 'sequence__updates': 2, **change})
    mono = start.monophone_config(config)
    mono.start_from = ''
    experiment.run(mono, tmp_path / start.MONO, quiet=True)
    real = assembly.load_split

    def changed(data, split):
        first, *rest = real(data, split)
        return [dataclasses.replace(first, text=rest[0].text), *rest]

    monkeypatch.setattr(assembly, 'load_split', changed)
    with pytest.raises(WorkdirError, match='mono was trained on other utterances or transcripts'):
        experiment.run(config, tmp_path, quiet=True)
