"""Forced alignment of a data directory: files, times, what is skipped, agreement, bad input."""

import re
import types

import numpy as np
import pytest

from seqtrain.data.utterance import DataError
from seqtrain.graphs import Lexicon, LexiconError, Topology, alignment_files, intervals
from seqtrain.training import assembly, experiment, force_align
from seqtrain.training.workdir import WorkdirError


@pytest.fixture(scope='module')
def trained(tmp_path_factory, make_config):
    """A short run, and its test set."""
    folder = tmp_path_factory.mktemp('align')
    config = make_config(bootstrap__rounds=1, sequence__updates=0, data__max_test=3)
    experiment.run(config, folder / 'run', quiet=True)
    return folder / 'run', assembly.load_split(config.data, 'test')


def test_files_agree_with_each_other(trained, kaldi_copy, tmp_path):
    run, utterances = trained
    data = kaldi_copy(utterances, tmp_path / 'data')
    result = force_align.run(run, str(data), str(tmp_path / 'out'))
    assert (result['utterances'], result['skipped']) == (3, 0)
    out = tmp_path / 'out'
    words, phones, states = (
        alignment_files.read_ctm(out / f'{kind}.ctm') for kind in ('words', 'phones', 'states')
    )
    names = [line.split()[0] for line in (out / 'phones.txt').read_text().splitlines()]
    assert names[0] == '<eps>'  # 0 is no phone in Kaldi
    frames = alignment_files.read_alignments(out / 'phones.ark')
    pdfs = alignment_files.read_alignments(out / 'ali.ark')
    for utterance in utterances:
        spoken, name = phones[utterance.id], utterance.id
        assert ' '.join(part.label for part in words[name]) == utterance.text
        assert spoken[0].start_s == 0.0
        ends = {round(part.end_s, 3) for part in spoken}
        assert {round(part.end_s, 3) for part in words[name]} <= ends
        assert ends <= {round(part.end_s, 3) for part in states[name]}
        assert len(frames[name]) == len(pdfs[name])
        changes = [names[k] for k, _ in _runs(frames[name])]
        assert changes == [label for label, _ in _runs([part.label for part in spoken])]
        text = (out / 'textgrid' / f'{name}.TextGrid').read_text()
        assert re.findall(r'name = "(.*)"', text) == ['words', 'phones', 'states']
        assert f'xmax = {spoken[-1].end_s:.6g}' in text


def _runs(values):
    values = list(values)
    starts = [0, *(1 + np.flatnonzero(np.array(values[1:]) != np.array(values[:-1])))]
    return [(values[start], start) for start in starts]


def test_blanks_at_the_end_belong_to_the_recording(tmp_path):
    lexicon = Lexicon.from_dict({'A': 'X'})
    network = types.SimpleNamespace(subsampling=1)
    aligner = force_align.Aligner(network, None, lexicon, Topology.make('ctc', 2))
    features = types.SimpleNamespace(ids=['u'], texts=['A'], num_frames=[6])
    pdfs = {'u': np.array([0, 2, 2, 0, 0, 0])}
    found, skipped = aligner.in_seconds(features, pdfs, 0.01)
    assert not skipped
    assert found['u'].phones == [intervals.Interval('X', 0.01, 0.03)]
    force_align._write(tmp_path, found, pdfs, aligner)
    phones = alignment_files.read_alignments(tmp_path / 'phones.ark')['u']
    names = [line.split() for line in (tmp_path / 'phones.txt').read_text().splitlines()]
    assert [number for _, number in names] == ['0', '1', '2', '3']
    assert [names[n][0] for n in phones] == ['<blk>', 'X', 'X', '<blk>', '<blk>', '<blk>']
    text = (tmp_path / 'textgrid' / 'u.TextGrid').read_text()
    assert re.search(r'^xmax = (\S+)', text, re.MULTILINE)[1] == '0.06'
    assert re.findall(r'xmax = (\S+)\n +text = "(.*)"', text)[-1] == ('0.06', '')


def test_bad_utterances_are_named_and_the_others_aligned(trained, kaldi_copy, tmp_path, caplog):
    run, utterances = trained
    first, second, third = (u.id for u in utterances)
    texts = {first: 'zero perhaps', second: ' '.join(['seven'] * 300)}
    bad = kaldi_copy(utterances, tmp_path / 'bad', texts)
    result = force_align.run(run, str(bad), str(tmp_path / 'out'))
    assert (result['utterances'], result['skipped']) == (1, 2)
    assert f'Skipped {first}' in caplog.text
    assert 'perhaps' in caplog.text
    assert 'too short by' in caplog.text
    good = kaldi_copy(utterances, tmp_path / 'good')
    force_align.run(run, str(good), str(tmp_path / 'all'))
    alone, among = (
        alignment_files.read_ctm(tmp_path / one / 'phones.ctm') for one in ('out', 'all')
    )
    assert alone[third] == among[third]
    only = kaldi_copy(utterances[:1], tmp_path / 'only', texts)
    with pytest.raises(DataError, match='perhaps'):
        force_align.run(run, str(only), str(tmp_path / 'none'))


def test_phones_that_cannot_be_spelt_cost_their_utterance_alone(
    trained, kaldi_copy, tmp_path, monkeypatch, caplog
):
    run, utterances = trained
    second = utterances[1].text
    spell = force_align.intervals.spell

    def broken(parts, text, lexicon):
        if text == second:
            raise ValueError('The phones do not spell it.')
        return spell(parts, text, lexicon)

    monkeypatch.setattr(force_align.intervals, 'spell', broken)
    data = kaldi_copy(utterances, tmp_path / 'data')
    result = force_align.run(run, str(data), str(tmp_path / 'out'))
    lost = sum(one.text == second for one in utterances)
    assert (result['utterances'], result['skipped']) == (len(utterances) - lost, lost)
    assert f'Skipped {utterances[1].id}: The phones do not spell it' in caplog.text
    monkeypatch.setattr(force_align.intervals, 'spell', lambda *_: broken(None, second, None))
    with pytest.raises(DataError, match='no utterance can be aligned'):
        force_align.run(run, str(data), str(tmp_path / 'none'))


def test_agreement_with_a_reference(trained, kaldi_copy, tmp_path):
    run, utterances = trained
    data = str(kaldi_copy(utterances, tmp_path / 'data'))
    out = tmp_path / 'out'
    force_align.run(run, data, str(out))
    shifted = {
        name: [intervals.Interval(p.label, p.start_s + 0.02, p.end_s + 0.02) for p in parts]
        for name, parts in alignment_files.read_ctm(out / 'phones.ctm').items()
    }
    alignment_files.write_ctm(tmp_path / 'shifted.ctm', shifted)
    reference = {'reference': str(tmp_path / 'shifted.ctm')}
    found = force_align.run(run, data, str(out), **reference)['agreement']
    assert (found['utterances'], found['equal_utterances']) == (3, 3)
    assert found['phones'] == found['matched_phones'] == found['boundaries'] - 3
    assert (found['within'], found['mean_ms']) == (1.0, pytest.approx(-20))
    found = force_align.run(run, data, str(out), **reference, tolerance_ms=10)['agreement']
    assert found['within'] == 0.0


def test_another_lexicon_of_the_same_phones(trained, kaldi_copy, tmp_path):
    run, utterances = trained
    text = {utterances[0].id: 'blurb one'}
    data = str(kaldi_copy(utterances[:1], tmp_path / 'data', text))
    lexicon = tmp_path / 'lexicon.txt'
    lexicon.write_text('blurb Z IH R OW\n')
    force_align.run(run, data, str(tmp_path / 'out'), lexicon_file=str(lexicon))
    words = alignment_files.read_ctm(tmp_path / 'out' / 'words.ctm')[utterances[0].id]
    assert [part.label for part in words] == ['blurb', 'one']  # one of them is the run's own
    lexicon.write_text('blurb B L ER\nblurb B L QQ\n')
    with pytest.raises(LexiconError, match=r'lexicon\.txt:\d: unknown phone'):
        force_align.run(run, data, str(tmp_path / 'out'), lexicon_file=str(lexicon))


def test_bad_input_says_what_to_do(trained, kaldi_copy, given_features, tmp_path):
    run, utterances = trained
    features = str(given_features(tmp_path / 'features', 'one', 13))
    with pytest.raises(DataError, match='13 values per frame, the network takes 40'):
        force_align.run(run, features, str(tmp_path / 'o'))
    data = str(kaldi_copy(utterances, tmp_path / 'data'))
    (tmp_path / 'bad.ctm').write_text('u1 1 0.0 0.1 a\nu1 1 zero 0.1 a\n')
    with pytest.raises(alignment_files.CtmError, match=r'bad\.ctm:2'):
        force_align.run(run, data, str(tmp_path / 'o'), reference=str(tmp_path / 'bad.ctm'))
    for line, message in {
        'rec1 1 0.0 0.1 W\n': r'no utterance of these data: rec1 \.\.\. there',
        f'{utterances[0].id} 1 0.0 0.1 W_B\n': r'no phone of these data: W_B \.\.\. there',
    }.items():
        (tmp_path / 'other.ctm').write_text(line)
        with pytest.raises(alignment_files.CtmError, match=message):
            force_align.run(run, data, str(tmp_path / 'o'), reference=str(tmp_path / 'other.ctm'))
    with pytest.raises(FileNotFoundError, match='no such CTM'):
        force_align.run(run, data, str(tmp_path / 'o'), reference=str(tmp_path / 'no.ctm'))
    with pytest.raises(WorkdirError, match='Train first'):
        force_align.run(tmp_path, data, str(tmp_path / 'o'))
