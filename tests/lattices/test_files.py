"""Kaldi text archives: round trip, a file written by hand, and what damaged ones say."""

import numpy as np
import pytest

from seqtrain.lattices import LatticeError, LatticeGenerator, read_archive, write_archive


def test_round_trip(graph, scores, tmp_path, lattice_paths):
    generator = LatticeGenerator(graph, beam=1e3, lattice_beam=4.0, acoustic_scale=0.5)
    lattices = {f'u{n}': generator.decode(scores(5, seed=n)) for n in range(3)}
    write_archive(tmp_path / 'lat.txt', lattices)
    again = read_archive(tmp_path / 'lat.txt', graph.words, acoustic_scale=0.5)
    assert again.keys() == lattices.keys()
    for name, lattice in lattices.items():
        expected, found = lattice_paths(lattice), lattice_paths(again[name])
        assert sorted(p[:2] for p in found) == sorted(p[:2] for p in expected)
        assert [p[2] for p in found] == pytest.approx([p[2] for p in expected], abs=1e-5)


KALDI = """utt-a
0 1 3 1 1.5,2.5
0 2 4 0 0.5,1
2 1 0 2 0.25,0
1 3 1 0 ,4
3 0.125,0

utt-b
0 1 1 1
1
"""


def test_by_hand(tmp_path, lattice_paths):
    (tmp_path / 'lat.txt').write_text(KALDI)
    found = read_archive(tmp_path / 'lat.txt', ['<eps>', 'x', 'y'], acoustic_scale=2.0)
    assert list(found) == ['utt-a', 'utt-b']
    assert sorted(lattice_paths(found['utt-a'])) == [
        ((2, 0), ('x',), pytest.approx(-(1.5 + 0.125) - 2 * (2.5 + 4))),
        ((3, 0), ('y',), pytest.approx(-(0.5 + 0.25 + 0.125) - 2 * (1 + 4))),
    ]
    assert lattice_paths(found['utt-b']) == [((0,), ('x',), 0.0)]


COMPACT = """utt-c
0 1 1 0.5,2,7_7_3
0 2 2 1,1,3_7
1 3 0 0.25,0,
2 4 0
4 3 0 0,1,3
3 0.125,1,7
"""


def test_compact_lattices(tmp_path, lattice_paths):
    (tmp_path / 'lat.txt').write_text(COMPACT)
    pdf_of_label = [-1, 9, 9, 4, 9, 9, 9, 5]
    found = read_archive(
        tmp_path / 'lat.txt', ['<eps>', 'x', 'y'], acoustic_scale=0.5, pdf_of_label=pdf_of_label
    )['utt-c']
    assert found.num_frames == 4
    assert sorted(lattice_paths(found)) == [
        ((4, 5, 4, 5), ('y',), pytest.approx(-(1 + 0.125) - 0.5 * (1 + 1 + 1))),
        ((5, 5, 4, 5), ('x',), pytest.approx(-(0.5 + 0.25 + 0.125) - 0.5 * (2 + 1))),
    ]
    silent = found.rescore(np.zeros((4, 10), np.float32))  # labels of final weights, too
    assert [path[2] for path in lattice_paths(silent)] == pytest.approx(
        [path[2] for path in lattice_paths(found.rescore(np.zeros((4, 10))))]
    )
    assert sorted(path[2] for path in lattice_paths(silent)) == pytest.approx([-1.125, -0.875])
    with pytest.raises(LatticeError, match=r'lat\.txt:2: input label 7 has no pdf'):
        read_archive(tmp_path / 'lat.txt', ['<eps>', 'x', 'y'], pdf_of_label=[-1, 0])


@pytest.mark.parametrize(
    'text', ['0 1 3 1 1,2\n1 0.5,7\n', '0 1 1 1,2,3\n1 0.5,7,\n', '0 1 1 1,2,3\n1 0.5,7,0\n']
)
def test_acoustic_weights_of_ends_stay_apart(tmp_path, lattice_paths, text):
    (tmp_path / 'lat.txt').write_text(f'u\n{text}')
    lattice = read_archive(tmp_path / 'lat.txt', ['<eps>', 'x'], acoustic_scale=0.1)['u']
    assert lattice_paths(lattice) == [((2,), ('x',), pytest.approx(-1.5 - 0.1 * (2 + 7)))]
    silent = lattice.rescore(np.zeros((1, 3)))
    assert lattice_paths(silent) == [((2,), ('x',), pytest.approx(-1.5))]
    fsa = lattice.to_fsa()
    assert fsa.weight[0] + fsa.final[fsa.dst[0]] == pytest.approx(-1.5)
    write_archive(tmp_path / 'again.txt', {'u': lattice})
    again = read_archive(tmp_path / 'again.txt', ['<eps>', 'x'], acoustic_scale=0.1)['u']
    assert lattice_paths(again) == lattice_paths(lattice)


RENUMBERED = [
    ({0: 1, 1: 0}, 'u\n{0} {1} 3 1 1,2\n{1} {2} 4 0 1,1\n{2} 0.5,0\n'),
    ({0: 1, 1: 0}, 'u\n{0} {1} 0 1 1,0\n{1} {2} 3 0 1,2\n{2} 0.5,0\n'),
    ({0: 2, 1: 0, 2: 1}, 'u\n{0} {1} 3 1 1,2\n{0} {2} 4 2 1,2\n{2} 0,0\n{1} 0.5,0\n'),
    ({0: 1, 1: 2, 2: 0}, 'u\n{0} {1} 1 1,2,3_4\n{1} {2} 2 1,1,5\n{2} 0.5,0,\n'),
]


@pytest.mark.parametrize(('number', 'text'), RENUMBERED)
def test_the_first_line_begins_at_the_start_state(tmp_path, lattice_paths, number, text):
    found = []
    for numbers in (range(3), [number.get(state, state) for state in range(3)]):
        (tmp_path / 'lat.txt').write_text(text.format(*numbers))
        lattice = read_archive(tmp_path / 'lat.txt', ['<eps>', 'x', 'y'])['u']
        found.append(lattice_paths(lattice))
    assert found[0]
    assert found[1] == found[0]


def test_a_state_that_nothing_reaches_is_left_out(tmp_path, lattice_paths):
    text = 'u\n1 2 3 1 1,2\n0 1 0 2 5,0\n0 2 4 0 1,1\n2 0.5,0\n'
    (tmp_path / 'lat.txt').write_text(text)
    lattice = read_archive(tmp_path / 'lat.txt', ['<eps>', 'x', 'y'])['u']
    assert lattice_paths(lattice) == [((2,), ('x',), -3.5)]


@pytest.mark.parametrize(
    ('text', 'arcs'),
    [
        ('0 1 3 1 Infinity,0\n0 1 4 2 1,1\n1 0.5,0\n', 1),
        ('0 1 3 1 0,Infinity\n0 1 4 2 1,1\n1 0.5,0\n', 1),
        ('0 1 1 Infinity,Infinity,4_4_4\n0 1 2 1,1,4\n1 0.5,0,\n', 1),
        ('0 1 2 1,1,4\n0 1 2 1,1,4\n1 0.5,0,4\n2 Infinity,Infinity,\n', 3),
    ],
)
def test_arcs_of_infinite_cost_are_left_out(tmp_path, lattice_paths, text, arcs):
    (tmp_path / 'lat.txt').write_text(f'u\n{text}')
    lattice = read_archive(tmp_path / 'lat.txt', ['<eps>', 'x', 'y'])['u']
    assert lattice.num_arcs == arcs
    assert {words for _, words, _ in lattice_paths(lattice)} == {('y',)}


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('0 1 3 1 1.5,2.5', '0 1 3 1 1.5', r"lat\.txt:2: '1\.5' is no weight"),
        ('0 1 3 1 1.5,2.5', '0 1 3 1 1.5,', r"lat\.txt:2: '1\.5,' is no weight"),
        (
            '0 1 3 1 1.5,2.5',
            '0 1 3',
            r'lat\.txt:3: a state-level line, but .*lat\.txt:2 is compact',
        ),
        ('2 1 0 2 0.25,0', '2 1 0', r'lat\.txt:4: a compact line, but .*lat\.txt:2 is state-level'),
        ('0 1 3 1 1.5,2.5', '0 1 3 1.5,2.5', r"lat\.txt:2: no input labels in '1\.5,2\.5'"),
        ('3 0.125,0', '3 0.125', r"lat\.txt:6: '0\.125' is no weight"),
        ('3 0.125,0', '3 0.125,0,', r'lat\.txt:6: a compact line, but'),
        ('3 0.125,0', '3 0.125,0\n3 0,0', r'lat\.txt:7: a state is made final a second time'),
        ('2 1 0 2 0.25,0', '-2 1 0 2 0.25,0', r'lat\.txt:4: state -2 in a file of 5 lines'),
        ('3 0.125,0', '-1 0.125,0', r'lat\.txt:6: state -1'),
        ('2 1 0 2 0.25,0', f'2 {10**14} 0 2 0.25,0', r'lat\.txt:4: state 100000000000000'),
        ('0 1 3 1 1.5,2.5', '0 1 -3 1 1.5,2.5', r'lat\.txt:2: label -3'),
        ('0 1 3 1 1.5,2.5', f'0 1 3 {2**32 + 1} 1.5,2.5', r'lat\.txt:2: label 4294967297'),
        ('utt-b\n0 1 1 1\n', 'utt-b\n0 1 1 1,2,3_3,9\n', r"lat\.txt:9: '1,2,3_3,9' is no weight"),
        ('utt-b\n0 1 1 1\n', 'utt-b\n0 1 1 1,2,3_\n', r'lat\.txt:9: invalid literal'),
        (
            '0 1 3 1 1.5,2.5',
            '0 1 3 1 Infinity,-Infinity',
            r"'utt-a': Arc 0 has a weight that is NaN",
        ),
        ('utt-b\n0 1 1 1\n', 'utt-b\n0 1 1 1 Infinity,0\n', r'lat\.txt:9: a lattice without arcs'),
        ('0 1 3 1 1.5,2.5', '0 1 3 1 1 1', r'lat\.txt:2: 6 fields'),
        ('0 1 3 1 1.5,2.5', '0 1 3 1 1,2,3', r'lat\.txt:2: input labels in a weight'),
        ('0 1 3 1 1.5,2.5', '0 1 3 1 a,b', r'lat\.txt:2: could not convert'),
        (
            '1 3 1 0 ,4',
            '1 3 1 7 ,4',
            r"lat\.txt:1: utterance 'utt-a': Arc \d has a word that is not",
        ),
        ('2 1 0 2 0.25,0', '2 1 1 2 0.25,0', r'lat\.txt:2: paths of different lengths meet'),
        ('1 3 1 0 ,4', '1 2 0 0 ,4', r'lat\.txt'),
        ('utt-b\n0 1 1 1\n1\n', 'utt-a\n0 1 1 1\n1\n', r"lat\.txt:8: utterance 'utt-a' is there"),
        ('utt-b\n0 1 1 1\n', 'utt-b\n', r'lat\.txt:9: a lattice without arcs'),
        ('utt-b\n0 1 1 1\n1\n', 'utt-b\n\n', r"lat\.txt:8: utterance 'utt-b' has an empty"),
        ('utt-b', 'utt-b x', r'lat\.txt:8: expected an utterance id'),
        ('3 0.125,0\n', '', r'lat\.txt.*No'),
    ],
)
def test_damaged_archives_name_the_line(tmp_path, old, new, message):
    assert old in KALDI
    (tmp_path / 'lat.txt').write_text(KALDI.replace(old, new))
    with pytest.raises(LatticeError, match=message):
        read_archive(tmp_path / 'lat.txt', ['<eps>', 'x', 'y'])


def test_binary_archives_are_named(tmp_path):
    (tmp_path / 'lat.ark').write_bytes(b'utt-a \x00B\xd6\xfd\xb2\x7e\x06\x00')
    with pytest.raises(LatticeError, match=r'lat\.ark: not text'):
        read_archive(tmp_path / 'lat.ark', ['<eps>'])


def test_lattices_of_another_model_are_refused(tmp_path):
    (tmp_path / 'lat.txt').write_text(KALDI)
    words = ['<eps>', 'x', 'y']
    needed = 1 + max(one.pdf.max() for one in read_archive(tmp_path / 'lat.txt', words).values())
    assert read_archive(tmp_path / 'lat.txt', words, num_pdfs=needed)
    with pytest.raises(LatticeError, match=r"lat\.txt:1: utterance 'utt-a': .* of another model"):
        read_archive(tmp_path / 'lat.txt', words, num_pdfs=needed - 1)
