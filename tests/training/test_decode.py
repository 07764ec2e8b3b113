"""Decoding with a run: phones, several acoustic scales, what cannot be had."""

import json
import pathlib

import jax
import numpy as np
import pytest

from seqtrain.graphs import NGramLm, arpa
from seqtrain.training import assembly, decode, experiment, force_align, recognizer
from seqtrain.training import config as config_lib
from seqtrain.training.checkpoint import Checkpoints
from seqtrain.training.errors import FOR_USERS
from seqtrain.training.workdir import read_json

SCALES = (1e-4, 0.3, 1.0)


@pytest.fixture(scope='module')
def trained(make_config, tmp_path_factory):
    """A run that scored phones, too, and its test set."""
    folder = tmp_path_factory.mktemp('trained')
    config = make_config(decode__phone_error_rate=True, decode__phone_acoustic_scale=0.5)
    experiment.run(config, folder / 'run', quiet=True)
    return folder / 'run', assembly.load_split(config.data, 'test')


@pytest.mark.parametrize('unit', ['word', 'phone'])
def test_the_same_as_at_the_end_of_the_run(trained, kaldi_copy, tmp_path, unit):
    run, utterances = trained
    data = kaldi_copy(utterances, tmp_path / 'data')
    result = decode.run(run, str(data), unit=unit)
    score = read_json(run / 'decode' / f'mmi-{unit}' / 'score.json')
    assert {name: result[name] for name in ('errors', 'words')} == {
        name: score[name] for name in ('errors', 'words')
    }
    assert result['acoustic_scale'] == {'word': 1.0, 'phone': 0.5}[unit]
    ours = pathlib.Path(result['output'])
    assert ours.read_text() == (run / 'decode' / f'mmi-{unit}' / 'text').read_text()
    assert ours.parent.name == {'word': 'data', 'phone': 'data-phone'}[unit]
    assert 'scales' not in result


def test_the_best_of_several_scales_is_kept(trained, kaldi_copy, tmp_path):
    run, utterances = trained
    data = kaldi_copy(utterances, tmp_path / 'data')
    alone = [
        decode.run(run, str(data), str(tmp_path / f'{s}'), unit='phone', acoustic_scales=[s])
        for s in SCALES
    ]
    result = decode.run(run, str(data), unit='phone', acoustic_scales=SCALES)
    assert [row['errors'] for row in result['scales']] == [one['errors'] for one in alone]
    assert [row['acoustic_scale'] for row in result['scales']] == list(SCALES)
    best = min(alone, key=lambda one: one['errors'])
    assert best['errors'] < alone[0]['errors']  # scores that hardly count: not the best
    names = ('errors', 'wer', 'acoustic_scale', 'utterances')
    assert [result[name] for name in names] == [best[name] for name in names]
    kept = pathlib.Path(result['output']).read_text()
    assert kept == pathlib.Path(best['output']).read_text()


def test_against_another_system(trained, kaldi_copy, tmp_path):
    run, utterances = trained
    data = kaldi_copy(utterances, tmp_path / 'data')
    alone = decode.run(run, str(data))
    assert 'wer_change' not in alone
    perfect = decode.run(run, str(data), against=str(data / 'text'))  # the references themselves
    low, high = perfect['wer_change']
    assert 0 < low <= alone['wer'] <= high
    assert perfect['wer_improves'] == 0
    assert decode.run(run, str(data), against=alone['output'])['wer_change'] == [0, 0]


def test_what_cannot_be_compared_is_refused(trained, kaldi_copy, tmp_path):
    run, utterances = trained
    data = kaldi_copy(utterances, tmp_path / 'data')
    others = tmp_path / 'others'
    with pytest.raises(FOR_USERS, match=r'against=.*others'):
        decode.run(run, str(data), against=str(others))
    others.write_text('somebody-else one two\n')
    with pytest.raises(FOR_USERS, match='none of the utterances'):
        decode.run(run, str(data), against=str(others))
    (data / 'text').unlink()
    with pytest.raises(FOR_USERS, match='needs transcripts'):
        decode.run(run, str(data), against=str(others))


def test_another_language_model(trained, kaldi_copy, tmp_path):
    run, utterances = trained
    data = kaldi_copy(utterances, tmp_path / 'data')
    arpa.write(NGramLm.estimate([['one']], 1, vocabulary=['one', 'perhaps']), tmp_path / 'lm.arpa')
    file = str(tmp_path / 'lm.arpa')
    result = decode.run(run, str(data), word_lm=file)
    lines = pathlib.Path(result['output']).read_text().splitlines()
    assert {word for line in lines for word in line.split()[1:]} == {'one'}
    with pytest.raises(FOR_USERS, match='is a model of words'):
        decode.run(run, str(data), unit='phone', word_lm=file)
    arpa.write(NGramLm.estimate([['ONE']], 1), tmp_path / 'lm.arpa')
    with pytest.raises(FOR_USERS, match='No word of the language model is in the lexicon: ONE but'):
        decode.run(run, str(data), word_lm=file)
    (tmp_path / 'lm.arpa').write_text('nothing')
    with pytest.raises(FOR_USERS, match=r'lm\.arpa'):
        decode.run(run, str(data), word_lm=file)


def test_shell_commands_run_where_they_are_allowed(trained, kaldi_copy, tmp_path, caplog):
    run, utterances = trained
    data = kaldi_copy(utterances[:2], tmp_path / 'data')
    lines = (data / 'wav.scp').read_text().splitlines()
    piped = [f'{name} cat {file} |' for name, file in map(str.split, lines)]
    (data / 'wav.scp').write_text('\n'.join(piped) + '\n')
    with pytest.raises(FOR_USERS, match=r'Nothing can be decoded.*with --allow_pipes'):
        decode.run(run, str(data))
    assert caplog.text.count('config.data.allow_pipes=True') == 2
    assert decode.run(run, str(data), allow_pipes=True)['utterances'] == 2
    aligned = force_align.run(run, str(data), str(tmp_path / 'aligned'), allow_pipes=True)
    assert aligned['utterances'] == 2
    config = config_lib.from_json(read_json(run / 'config.json'))
    config.data.allow_pipes = True
    config.data.corpus, config.data.train = 'kaldi', str(data)
    assert not any(one.problem for one in assembly.load_split(config.data, 'train'))


def test_the_mean_of_several_checkpoints(make_config, kaldi_copy, tmp_path):
    config = make_config(checkpoint__keep=20, checkpoint__every_updates=1, data__max_test=2)
    experiment.run(config, tmp_path / 'run', quiet=True)
    files = recognizer.ModelFiles.read(tmp_path / 'run' / 'model')
    _, params = assembly.network(config, files.num_inputs, files.num_outputs)
    checkpoints = Checkpoints(tmp_path / 'run' / 'checkpoints')
    found = checkpoints.newest(20)
    checkpoints.close()
    updates = [one.updates for one in found]
    assert updates[0] == 14
    assert updates == sorted({n for n in updates if n > 8}, reverse=True)  # of the last stage
    several = [recognizer.params_of(one, params) for one in found]
    mean, newest = recognizer.trained(config, tmp_path / 'run', params, len(found))
    assert newest.updates == 14
    for one, *leaves in zip(*map(jax.tree.leaves, (mean, *several)), strict=True):
        np.testing.assert_allclose(one, sum(leaves) / len(found), rtol=1e-5, atol=1e-7)
        assert one.dtype == np.float32
    data = kaldi_copy(assembly.load_split(config.data, 'test'), tmp_path / 'data')
    assert decode.run(tmp_path / 'run', str(data), average=len(found))['utterances'] == 2
    with pytest.raises(FOR_USERS, match=f'keeps {len(found)} checkpoints of its last stage'):
        decode.run(tmp_path / 'run', str(data), average=len(found) + 1)


def test_without_transcripts_at_one_scale(trained, kaldi_copy, tmp_path):
    run, utterances = trained
    data = kaldi_copy(utterances, tmp_path / 'data')
    (data / 'text').unlink()
    result = decode.run(run, str(data), acoustic_scales=[0.3])
    assert (result['utterances'], result['acoustic_scale']) == (len(utterances), 0.3)
    assert 'wer' not in result
    with pytest.raises(FOR_USERS, match='found by transcripts'):
        decode.run(run, str(data), acoustic_scales=SCALES)


def test_words_where_nothing_was_said_are_insertions(trained, kaldi_copy, tmp_path):
    run, utterances = trained
    data = kaldi_copy(utterances[:2], tmp_path / 'data')
    said = decode.run(run, str(data))
    silent, spoken = (
        f'{one.id} {text}' for one, text in zip(utterances, ('', 'one'), strict=False)
    )
    (data / 'text').write_text(f'{silent}\n{spoken}\n')
    words = dict(
        line.split(maxsplit=1) for line in pathlib.Path(said['output']).read_text().splitlines()
    )
    result = decode.run(run, str(data))
    assert result['words'] == 1
    assert result['insertions'] >= len(words[utterances[0].id].split()) > 0
    assert decode.run(run, str(data), unit='phone')['insertions'] > 0
    (data / 'text').write_text(f'{silent}\n')
    nothing_said = decode.run(run, str(data))
    assert (nothing_said['words'], nothing_said['wer']) == (0, None)
    json.dumps(nothing_said, allow_nan=False)


def test_nothing_to_decode_is_an_error(trained, kaldi_copy, tmp_path):
    run, utterances = trained
    data = kaldi_copy(utterances[:2], tmp_path / 'data')
    for file in data.glob('*.flac'):
        file.unlink()
    with pytest.raises(
        FOR_USERS, match=r'Nothing can be decoded\. The first was skipped: .* is missing'
    ):
        decode.run(run, str(data))


@pytest.mark.parametrize('scales', [(0.0,), (0.3, -1.0), (float('nan'),), (float('inf'),)])
def test_scales_that_are_none_are_refused(trained, kaldi_copy, tmp_path, scales):
    run, utterances = trained
    data = kaldi_copy(utterances, tmp_path / 'data')
    with pytest.raises(FOR_USERS, match='must be positive'):
        decode.run(run, str(data), acoustic_scales=scales)


def test_features_that_the_network_does_not_take_are_refused(trained, given_features, tmp_path):
    run, _ = trained
    data = given_features(tmp_path / 'data', 'one', 13)
    with pytest.raises(FOR_USERS, match='given have 13 values per frame, the network takes 40'):
        decode.run(run, str(data))


def test_a_run_without_phones_says_how_to_have_them(make_config, kaldi_copy, tmp_path):
    config = make_config(bootstrap__updates=1, sequence__updates=0)
    experiment.run(config, tmp_path / 'run', quiet=True)
    data = kaldi_copy(assembly.load_split(config.data, 'test'), tmp_path / 'data')
    with pytest.raises(FOR_USERS, match=r"graphs of word, none of 'phone'.*phone_error_rate=True"):
        decode.run(tmp_path / 'run', str(data), unit='phone')
