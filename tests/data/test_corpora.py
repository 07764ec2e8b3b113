"""Corpora by name: prepared from archives and folders, without network and without TensorFlow."""

import io
import socket
import subprocess
import sys
import tarfile
import urllib.error

import numpy as np
import pytest
from tensorflow_datasets.core.utils import gcs_utils

from seqtrain.data import corpora, features, kaldi
from seqtrain.data.builders import archives, fsdd, synth_digits, yesno
from seqtrain.data.utterance import DataError


def tar_of(path, files):
    with tarfile.open(path, 'w:gz') as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def yesno_archive(tmp_path, make_audio):
    """An archive laid out like waves_yesno.tar.gz, with five recordings of noise."""
    names = ['0_1_1_0_0_1_1_0', '0_0_0_0_0_0_0_0', '1_1_1_1_0_0_0_0', '1_0_1_0_1_0_1_0']
    files = {
        f'waves_yesno/{name}.wav': make_audio(seed=i, container='WAV')
        for i, name in enumerate(names)
    }
    files['waves_yesno/0_1_0_1_0_1_0_1.wav'] = make_audio(container='WAV')[:-500]
    files['waves_yesno/README'] = b'about'
    files['waves_yesno/other.wav'] = b'not one of the corpus'
    return tar_of(tmp_path / 'waves_yesno.tar.gz', files)


def test_yesno_from_the_archive(yesno_archive, tmp_path):
    train = corpora.load('yesno', 'train', source=yesno_archive, cache_dir=tmp_path)
    test = corpora.load('yesno', 'test', source=yesno_archive, cache_dir=tmp_path)
    assert [u.id for u in test.utterances] == ['yn-1_0_1_0_1_0_1_0', 'yn-1_1_1_1_0_0_0_0']
    assert test.utterances[0].text == 'YES NO YES NO YES NO YES NO'
    assert test.utterances[0].audio.startswith(b'fLaC')
    assert set(train.lexicon) == {'YES', 'NO'}
    expected = np.random.default_rng(3).standard_normal(8000) * 1000
    np.testing.assert_array_equal(test.utterances[0].samples(), expected.astype(np.int16))
    result = features.compute(train.utterances, features.FeatureConfig())
    assert result.ids == ('yn-0_0_0_0_0_0_0_0', 'yn-0_1_1_0_0_1_1_0')
    assert [s.id for s in result.skipped] == ['yn-0_1_0_1_0_1_0_1']
    assert 'truncated' in result.skipped[0].reason


def test_yesno_from_a_kaldi_folder_is_what_the_folder_says(data_dir, tmp_path):
    folder = data_dir / 'yesno'
    for split, count in (('train', 31), ('test', 29)):
        corpus = corpora.load('yesno', split, source=folder, cache_dir=tmp_path)
        direct = {u.id: u for u in kaldi.read_dir(folder / split)}
        assert len(corpus.utterances) == count
        for ours in corpus.utterances:
            theirs = direct[ours.id]
            assert (ours.text, ours.speaker) == (theirs.text, theirs.speaker)
        np.testing.assert_array_equal(ours.samples(), theirs.samples())


def test_a_folder_with_segments_keeps_the_segments(make_kaldi_dir, make_audio, tmp_path):
    for part in ('train', 'test'):
        files = {'wav.scp': 'r r.flac\n', 'segments': 'u r 0.25 0.75\n', 'text': 'u YES\n'}
        make_kaldi_dir(files, part)
    (tmp_path / 'r.flac').write_bytes(make_audio())
    corpus = corpora.load('yesno', 'train', source=tmp_path, cache_dir=tmp_path / 'cache')
    (direct,) = kaldi.read_dir(tmp_path / 'train')
    np.testing.assert_array_equal(corpus.utterances[0].samples(), direct.samples())
    assert len(direct.samples()) == 4000


def test_fsdd_from_its_archive(data_dir, tmp_path):
    source = next((data_dir / 'fsdd').glob('*.tar.gz'))
    assert archives.file_hash(source) == fsdd.Fsdd.SHA256
    train = corpora.load('fsdd', 'train', source=source, cache_dir=tmp_path)
    test = corpora.load('fsdd', 'test', source=source, cache_dir=tmp_path)
    assert (len(train.utterances), len(test.utterances)) == (2250, 250)
    assert len({u.id for u in test.utterances}) == 250
    assert {u.text for u in test.utterances} == set(test.lexicon)
    assert all(int(u.id.split('-')[2]) < 5 for u in test.utterances)
    with tarfile.open(source) as archive:
        wave = archive.extractfile('free-spoken-digit-dataset-1.0.9/recordings/7_jackson_3.wav')
        expected = np.frombuffer(wave.read()[44:], np.int16)
    (ours,) = [u for u in test.utterances if u.id == 'jackson-7-03']
    assert (ours.text, ours.speaker, ours.sample_rate) == ('seven', 'jackson', 8000)
    np.testing.assert_array_equal(ours.samples(), expected)


def test_fsdd_from_a_folder_and_a_changed_folder_is_another_corpus(tmp_path, make_audio):
    folder = tmp_path / 'recordings'
    folder.mkdir()
    (folder / '3_ann_5.wav').write_bytes(make_audio(container='WAV'))
    (folder / '3_ann_4.wav').write_bytes(make_audio(container='WAV'))
    (folder / 'noise.wav').write_bytes(b'')
    first = corpora.load('fsdd', 'test', source=folder, cache_dir=tmp_path / 'cache')
    assert [(u.id, u.text) for u in first.utterances] == [('ann-3-04', 'three')]
    (folder / '4_ann_0.wav').write_bytes(make_audio(container='WAV'))
    second = corpora.load('fsdd', 'test', source=folder, cache_dir=tmp_path / 'cache')
    assert [u.text for u in second.utterances] == ['three', 'four']


def test_preparing_from_a_local_source_asks_no_server(yesno_archive, tmp_path, monkeypatch):
    def refuse(*args):
        pytest.fail('a server was asked')

    monkeypatch.setattr(gcs_utils, 'gcs_dataset_info_files', refuse)
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    assert corpora.load('yesno', 'test', source=yesno_archive, cache_dir=tmp_path).utterances


def test_a_prepared_corpus_is_not_made_again(yesno_archive, tmp_path, monkeypatch):
    corpora.load('yesno', 'test', source=yesno_archive, cache_dir=tmp_path)
    monkeypatch.setattr(yesno.Yesno, 'utterances', lambda self: pytest.fail('made again'))
    corpus = corpora.load('yesno', 'test', source=yesno_archive, cache_dir=tmp_path)
    assert len(corpus.utterances) == 2


def test_without_network_one_sentence_says_what_to_put_where(tmp_path, monkeypatch):
    def no_network(url, timeout):
        raise urllib.error.URLError('Network is unreachable')

    monkeypatch.setattr(archives.urllib.request, 'urlopen', no_network)
    with pytest.raises(DataError) as error:
        corpora.load('yesno', 'train', cache_dir=tmp_path)
    message = str(error.value)
    assert 'Network is unreachable' in message
    assert yesno.Yesno.URL in message
    assert str(tmp_path / 'downloads' / 'yesno-waves_yesno.tar.gz') in message
    assert not list((tmp_path / 'downloads').iterdir())


def test_download_is_checked_and_kept(yesno_archive, tmp_path, monkeypatch):
    monkeypatch.setattr(yesno.Yesno, 'URL', yesno_archive.as_uri())
    with pytest.raises(DataError, match='damaged or incomplete: delete it'):
        corpora.load('yesno', 'test', cache_dir=tmp_path)
    monkeypatch.setattr(yesno.Yesno, 'SHA256', archives.file_hash(yesno_archive))
    assert len(corpora.load('yesno', 'test', cache_dir=tmp_path).utterances) == 2
    yesno_archive.unlink()
    assert len(corpora.load('yesno', 'test', cache_dir=tmp_path).utterances) == 2


def test_a_truncated_archive_is_an_error(yesno_archive, tmp_path):
    yesno_archive.write_bytes(yesno_archive.read_bytes()[:2000])
    with pytest.raises(DataError, match=r'is damaged .*: download it again'):
        corpora.load('yesno', 'test', source=yesno_archive, cache_dir=tmp_path)


def test_a_source_without_a_split_is_an_error(tmp_path, make_audio):
    (tmp_path / '0_ann_9.wav').write_bytes(make_audio(container='WAV'))
    with pytest.raises(DataError, match="no recordings for the split 'test' of fsdd"):
        corpora.load('fsdd', 'train', source=tmp_path, cache_dir=tmp_path / 'cache')


def test_wrong_names_are_errors_that_list_the_right_ones(tmp_path):
    with pytest.raises(DataError, match='yesno, fsdd, synth_digits or the path'):
        corpora.load('librispeech', 'train', cache_dir=tmp_path)
    with pytest.raises(DataError, match='no archive or folder of fsdd at'):
        corpora.load('fsdd', 'train', source=tmp_path / 'absent', cache_dir=tmp_path)
    with pytest.raises(DataError, match=r'holds no \.wav file'):
        corpora.load('fsdd', 'train', source=tmp_path, cache_dir=tmp_path / 'cache')
    with pytest.raises(DataError, match='use synth_digits/demo, synth_digits/small'):
        corpora.load('synth_digits/huge', 'train', cache_dir=tmp_path)
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        corpora.load('synth_digits/small', 'dev', cache_dir=tmp_path)


def test_a_folder_does_not_hide_the_corpus_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'yesno').mkdir()  # a workdir, for one
    with pytest.raises(DataError, match='no archive or folder of yesno at'):
        corpora.load('yesno', 'train', source=tmp_path / 'absent', cache_dir=tmp_path)
    with pytest.raises(DataError, match=r'neither feats\.scp nor wav\.scp'):
        corpora.load('./yesno', 'train')


def test_a_kaldi_directory_by_its_path(make_kaldi_dir, make_audio, tmp_path):
    (tmp_path / 'a.flac').write_bytes(make_audio())
    folder = make_kaldi_dir({'wav.scp': 'a a.flac\nb sox b.wav |\n', 'text': 'a yes\nb no\n'})
    corpus = corpora.load(folder, 'train')
    assert [u.id for u in corpus.utterances] == ['a']
    assert [s.id for s in corpus.skipped] == ['b']


def test_synth_digits_small(tmp_path):
    pytest.importorskip('espeakng_loader')
    train = corpora.load('synth_digits/small', 'train', cache_dir=tmp_path)
    test = corpora.load('synth_digits/small', 'test', cache_dir=tmp_path)
    assert (len(train.utterances), len(test.utterances)) == (24, 12)
    assert not {u.speaker for u in train.utterances} & {u.speaker for u in test.utterances}
    for one in train.utterances:
        again = synth_digits.make('train', int(one.id.rsplit('-', 1)[1]))
        assert again.audio == one.audio
        assert again.alignment == one.alignment
        check_alignment(one, train.lexicon)


def check_alignment(one, lexicon):
    """It covers the audio without gaps and spells the transcript in the lexicon's phones."""
    ends = [end for _, _, end in one.alignment]
    assert [start for _, start, _ in one.alignment] == [0.0, *ends[:-1]]
    assert ends[-1] == pytest.approx(len(one.samples()) / one.sample_rate, abs=1e-3)
    spelled = [phone for phone, _, _ in one.alignment if phone != synth_digits.SILENCE]
    for word in one.text.split():
        fitting = [p.split() for p in lexicon[word] if spelled[: len(p.split())] == p.split()]
        assert fitting, (one.id, word, spelled)
        del spelled[: max(map(len, fitting))]
    assert not spelled


def test_synthesis_does_not_depend_on_the_order():
    pytest.importorskip('espeakng_loader')
    numbers = range(0, 126, 3)  # Every third voice, those with breath noise among them.
    forward = {n: synth_digits.make('train', n).audio for n in numbers}
    backward = {n: synth_digits.make('train', n).audio for n in reversed(numbers)}
    assert forward == backward
    assert len(set(forward.values())) == len(numbers)


def test_voices_are_disjoint_and_all_used():
    train, test = synth_digits.voices('train'), synth_digits.voices('test')
    assert sorted(train + test) == sorted(set(train + test))
    assert {v for v, _ in train + test} == set(synth_digits.VARIANTS)
    assert len(test) > 15


def test_tensorflow_is_not_imported(tmp_path, yesno_archive):
    program = (
        'import sys; from seqtrain.data import corpora\n'
        f'corpora.load("yesno", "test", source={str(yesno_archive)!r}, '
        f'cache_dir={str(tmp_path)!r}).utterances[0]\n'
        'assert not [m for m in sys.modules if m.split(".")[0] == "tensorflow"]'
    )
    subprocess.run([sys.executable, '-c', program], check=True)
