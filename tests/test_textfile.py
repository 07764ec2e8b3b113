"""Lines of text files, and that every format has them from there."""

import gzip

import pytest

from seqtrain.data import kaldi
from seqtrain.decoding import read_text
from seqtrain.fsa import Fsa, FsaError
from seqtrain.graphs import Lexicon, LexiconError, alignment_files, arpa
from seqtrain.textfile import read_lines

SEPARATORS = ['\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\x85', '\u2028', '\u2029']
ARPA = '\\data\\\nngram 1=3\n\n\\1-grams:\n-99 <s>\n-0.3 </s>\n-0.3 a\n\n\\end\\\n'


def kaldi_texts(path):
    (path.parent / 'wav.scp').write_text('u1 a.wav\nu2 b.wav\n')
    return [(one.id, one.text) for one in kaldi.read_dir(path.parent)]


def alignments(path):
    return {name: pdfs.tolist() for name, pdfs in alignment_files.read_alignments(path).items()}


def acceptor(path):
    fsa = Fsa.read(path)
    return fsa.src.tolist(), fsa.dst.tolist(), fsa.pdf.tolist(), fsa.weight.tolist()


FORMATS = {
    'text': (read_text, 'u1 a b\nu2 c\n', ValueError),
    'a.ctm': (alignment_files.read_ctm, 'u1 1 0 0.5 a\nu2 1 0 0.5 b\n', alignment_files.CtmError),
    'ali.ark': (alignments, 'u1 1 2\nu2 3\n', ValueError),
    'a.txt': (acceptor, '0 1 1 1\n1 2 2 2\n2\n', FsaError),
    'lexicon': (Lexicon.read, 'A X Y\nB Z\n', LexiconError),
    'lm.arpa': (arpa.read, ARPA, arpa.ArpaError),
}
WITH_KALDI = FORMATS | {'kaldi/text': (kaldi_texts, 'u1 a b\nu2 c\n', kaldi.DataError)}


@pytest.fixture(params=WITH_KALDI)
def case(request, tmp_path):
    """A file of some format, how it is read, what stands in it and its error."""
    path = tmp_path / request.param
    path.parent.mkdir(exist_ok=True)
    return path, *WITH_KALDI[request.param]


def test_lines_end_at_line_feeds_alone(tmp_path):
    path = tmp_path / 'a'
    path.write_bytes('a\u2028b\x0cc\r\n\nd'.encode())
    assert read_lines(path) == ['a\u2028b\x0cc\r', '', 'd']
    path.write_text('')
    assert read_lines(path) == []
    path.write_text('a\n\n')
    assert read_lines(path) == ['a', '']


@pytest.mark.parametrize('separator', SEPARATORS)
@pytest.mark.parametrize('name', FORMATS)
def test_other_separators_are_white_space(tmp_path, name, separator):
    read, text, _ = FORMATS[name]
    (tmp_path / name).write_text(text)
    plain = read(tmp_path / name)
    (tmp_path / name).write_bytes(separator.join(text.rsplit(' ', 1)).encode())
    assert read(tmp_path / name) == plain


def test_a_byte_order_mark_and_returns_are_no_content(case):
    path, read, text, _ = case
    path.write_text(text)
    plain = read(path)
    path.write_bytes(text.replace('\n', '\r\n').encode('utf-8-sig'))
    assert read(path) == plain


def test_another_encoding_is_named_with_its_line(case):
    path, read, text, error = case
    path.write_bytes(text.replace('\n', '\n\u00fc ', 1).encode('latin-1'))
    with pytest.raises(error, match=rf'{path.name}:2: not UTF-8; convert it'):
        read(path)


def test_a_packed_file_is_named(case):
    path, read, text, error = case
    path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(error, match=rf'{path.name}: not text; unpack it'):
        read(path)
