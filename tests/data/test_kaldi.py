import kaldi_native_io
import numpy as np
import pytest

from seqtrain.data import kaldi
from seqtrain.data.utterance import AudioError, DataError, decode


@pytest.mark.parametrize(
    ('part', 'count', 'rate'),
    [
        ('yesno/train', 31, 8000),
        ('yesno/test', 29, 8000),
        ('fsdd_strings/test', 61, 8000),
        ('fsdd_unseen/train', 398, 8000),
        ('fsdd_unseen/test', 205, 8000),
        ('speechocean/dev', 200, 16000),
    ],
)
def test_real_directories(data_dir, part, count, rate):
    records = list(kaldi.read_dir(data_dir / part))
    durations = dict(map(str.split, (data_dir / part / 'utt2dur').read_text().splitlines()))
    lines = (data_dir / part / 'text').read_text().splitlines()
    texts = dict(line.split(' ', 1) for line in lines)
    assert len(records) == len({r.id for r in records}) == count
    assert {r.id: r.text for r in records} == texts
    assert not any(r.problem for r in records)
    for record in records[::20]:
        assert record.sample_rate == rate
        assert len(record.samples()) / rate == pytest.approx(float(durations[record.id]), abs=1e-4)


def test_paths_are_found_from_the_working_directory_too(make_kaldi_dir, make_audio, tmp_path):
    folder = make_kaldi_dir({'wav.scp': 'a audio/a.flac\nb {}\n'.format(tmp_path / 'b.flac')})
    (tmp_path / 'audio').mkdir()
    (tmp_path / 'audio' / 'a.flac').write_bytes(make_audio(seed=1))
    (tmp_path / 'b.flac').write_bytes(make_audio(seed=2))
    a, b = kaldi.read_dir(folder)
    assert len(a.samples()) == len(b.samples()) == 8000


def test_working_directory_comes_first(make_kaldi_dir, make_audio, tmp_path, monkeypatch):
    folder = make_kaldi_dir({'wav.scp': 'a a.flac\n'})
    (tmp_path / 'a.flac').write_bytes(make_audio(seconds=1))
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'a.flac').write_bytes(make_audio(seconds=2))
    monkeypatch.chdir(tmp_path / 'elsewhere')
    (record,) = kaldi.read_dir(folder)
    assert len(record.samples()) == 16000


def test_segments(make_kaldi_dir, make_audio, tmp_path):
    folder = make_kaldi_dir(
        {
            'wav.scp': f'rec {tmp_path / "rec.flac"}\n',
            'segments': 'u1 rec 0.1 0.4\nu2 rec 0.5 -1\nu3 gone 0 1\nu4 rec x 1\nu5 rec 0.2\n'
            'u6 rec 0 inf\nu7 rec nan 1\nu8 rec 0 -3\n',
            'text': 'u1  yes   no \nu2\tno\nu3 yes\n',
            'spk2utt': 's1 u1 u2\n',
        }
    )
    (tmp_path / 'rec.flac').write_bytes(make_audio())
    u1, u2, u3, u4, u5, u6, u7, u8 = kaldi.read_dir(folder)
    assert (u1.text, u1.speaker, len(u1.samples())) == ('yes no', 's1', 2400)
    assert (u2.text, u2.speaker, len(u2.samples())) == ('no', 's1', 4000)
    assert (u3.speaker, u3.problem) == ('u3', 'recording gone is not in wav.scp')
    assert 'segments line "u4 rec x 1" is not' in u4.problem
    assert 'segments line "u5 rec 0.2" is not' in u5.problem
    assert 'segments line "u6 rec 0 inf" is not' in u6.problem
    assert 'segments line "u7 rec nan 1" is not' in u7.problem
    with pytest.raises(AudioError, match='is empty'):  # the recording's end is -1 alone
        u8.samples()


def test_recordings_in_archives(make_kaldi_dir, make_audio, tmp_path):
    first, second = (make_audio(seed=seed, container='WAV') for seed in (1, 2))
    (tmp_path / 'wav.ark').write_bytes(b'r1 ' + first + b'r2 ' + second)
    (tmp_path / 'w:3').write_bytes(first)
    place = len(first) + 6
    folder = make_kaldi_dir(
        {
            'wav.scp': f'r1 wav.ark:3\nr2 {tmp_path}/wav.ark:{place}\nr3 wav.ark:4\n'
            f'r4 wav.ark:9999999\nr5 none.ark:3\nr6 w:3\n'
        }
    )
    records = list(kaldi.read_dir(folder))
    for record, encoded in zip([*records[:2], records[5]], (first, second, first), strict=True):
        assert record.encoded() == encoded
        assert record.sample_rate == 8000
        np.testing.assert_array_equal(record.samples(), decode(encoded)[0])
    for record, message in zip(
        records[2:5], ['no WAV file at byte 4 of', 'no WAV file at byte', 'is missing'], strict=True
    ):
        with pytest.raises(AudioError, match=message):
            record.samples()
    segments = make_kaldi_dir({'segments': 'u1 r2 0.25 0.5\n'})
    (part,) = kaldi.read_dir(segments)
    np.testing.assert_array_equal(part.samples(), decode(second)[0][2000:4000])


def test_impossible_file_names_and_byte_order_marks(make_kaldi_dir, make_audio, tmp_path):
    names = f'u1 {tmp_path / "a.flac"}\nu2 {"x" * 5000}\nu3 a\0b\n'
    folder = make_kaldi_dir({'wav.scp': names, 'text': '\ufeffu1 yes\nu2 no\nu3 no\n'})
    (tmp_path / 'a.flac').write_bytes(make_audio())
    u1, u2, u3 = kaldi.read_dir(folder)
    assert (u1.text, u1.problem, len(u1.samples())) == ('yes', '', 8000)
    assert 'is no file name' in u2.problem
    with pytest.raises(AudioError, match='cannot be read'):
        u3.samples()


def test_features_come_before_audio(make_kaldi_dir, tmp_path):
    matrix = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    ark = tmp_path / 'feats.ark'
    with kaldi_native_io.FloatMatrixWriter(f'ark,scp:{ark},{tmp_path / "feats.scp"}') as writer:
        writer.write('u1', matrix)
        writer.write('u2', 2 * matrix)
    folder = make_kaldi_dir(
        {
            'feats.scp': (tmp_path / 'feats.scp').read_text().replace(f'{tmp_path}/', '')
            + 'u3 feats.ark:9999\nu4 none.ark:3\nu5 cat feats.ark |\n',
            'wav.scp': 'u1 nothing.flac\n',
            'text': 'u1 yes\nu2 no\nu3 no\nu4 no\nu5 no\n',
        }
    )
    u1, u2, *bad = kaldi.read_dir(folder)
    np.testing.assert_array_equal(u1.features, matrix)
    np.testing.assert_array_equal(u2.features, 2 * matrix)
    assert u1.audio is None
    assert u1.text == 'yes'
    assert [b.id for b in bad] == ['u3', 'u4', 'u5']
    assert 'cannot be read' in bad[0].problem
    assert 'none.ark is missing' in bad[1].problem
    assert 'pipe' in bad[2].problem


def test_compressed_features_are_expanded(make_kaldi_dir, tmp_path):
    matrix = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    folder = make_kaldi_dir({})
    target = f'ark,scp:{tmp_path / "c.ark"},{folder / "feats.scp"}'
    with kaldi_native_io.CompressedMatrixWriter(target) as writer:
        writer.write('u', matrix, kaldi_native_io.CompressionMethod.kAutomaticMethod)
    (record,) = kaldi.read_dir(folder)
    np.testing.assert_allclose(record.features, matrix, atol=0.05)


@pytest.mark.parametrize('compressed', [False, True])
def test_rows_and_columns_of_given_features(make_kaldi_dir, tmp_path, compressed):
    matrix = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    target = f'ark,scp:{tmp_path / "f.ark"},{tmp_path / "f.scp"}'
    if compressed:
        with kaldi_native_io.CompressedMatrixWriter(target) as writer:
            writer.write('u', matrix, kaldi_native_io.CompressionMethod.kAutomaticMethod)
    else:
        with kaldi_native_io.FloatMatrixWriter(target) as writer:
            writer.write('u', matrix)
    place = (tmp_path / 'f.scp').read_text().split()[1]
    folder = make_kaldi_dir(
        {'feats.scp': f'a {place}[0:9]\nb {place}[10:19,1:2]\nc {place}[:,0:2]\nd {place}[30:31]\n'}
    )
    *good, bad = kaldi.read_dir(folder)
    for record, rows in zip(good, (matrix[:10], matrix[10:, 1:3], matrix[:, :3]), strict=True):
        np.testing.assert_allclose(record.features, rows, atol=0.05 if compressed else 0)
    assert 'cannot be read' in bad.problem


def test_pipes_run_only_where_allowed(make_kaldi_dir, make_audio, tmp_path):
    (tmp_path / 'a.flac').write_bytes(make_audio())
    folder = make_kaldi_dir(
        {'wav.scp': f'a touch {tmp_path}/ran; cat {tmp_path}/a.flac |\nb exit 3 |\n'}
    )
    assert all('shell command' in r.problem for r in kaldi.read_dir(folder))
    assert not (tmp_path / 'ran').exists()
    a, b = kaldi.read_dir(folder, allow_pipes=True)
    assert len(a.samples()) == 8000
    assert 'failed' in b.problem


def test_repeated_and_orphan_ids_are_named(make_kaldi_dir, make_audio, tmp_path):
    (tmp_path / 'a.flac').write_bytes(make_audio())
    folder = make_kaldi_dir({'wav.scp': 'a a.flac\na a.flac\n', 'text': 'a yes\nc no\n'})
    first, second, orphan = kaldi.read_dir(folder)
    assert not first.problem
    assert 'occurs twice' in second.problem
    assert (orphan.id, 'neither audio nor features' in orphan.problem) == ('c', True)


def test_a_wrong_directory_is_an_error_at_the_call(tmp_path):
    with pytest.raises(DataError, match='no Kaldi data directory at'):
        kaldi.read_dir(tmp_path / 'absent')
    with pytest.raises(DataError, match=r'neither feats\.scp nor wav\.scp'):
        kaldi.read_dir(tmp_path)


def test_a_list_in_another_encoding_is_an_error(make_kaldi_dir, make_audio, tmp_path):
    (tmp_path / 'a.flac').write_bytes(make_audio())
    folder = make_kaldi_dir({'wav.scp': 'a a.flac\n'})
    (folder / 'text').write_bytes('a grün\n'.encode('latin-1'))
    with pytest.raises(DataError, match=r'text:1: not UTF-8'):
        list(kaldi.read_dir(folder))
