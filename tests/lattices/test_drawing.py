"""The picture holds the words and states it should."""

import xml.etree.ElementTree as ElementTree

from seqtrain.lattices import LatticeGenerator, n_best
from seqtrain.lattices.drawing import to_svg

SVG = '{http://www.w3.org/2000/svg}'


def test_the_picture_has_the_words_of_the_paths(graph, scores):
    lattice = LatticeGenerator(graph, beam=1e3, lattice_beam=8.0).decode(scores(5))
    best = n_best(lattice, 50)
    for beam in (0.5, 3.0):
        root = ElementTree.fromstring(to_svg(lattice, beam=beam))
        drawn = {text.text for text in root.iter(f'{SVG}text')}
        within = {w for words, score in best if score >= best[0][1] - beam for w in words}
        assert within <= drawn
        coloured = [t.text for t in root.iter(f'{SVG}text') if t.get('fill') == '#b3380f']
        assert sorted(coloured) == sorted(best[0][0])


def test_large_lattices_are_cut_down(graph, scores):
    lattice = LatticeGenerator(graph, beam=1e3, lattice_beam=12.0).decode(scores(6))
    root = ElementTree.fromstring(to_svg(lattice, beam=12.0, max_states=8))
    centres = {(c.get('cx'), c.get('cy')) for c in root.iter(f'{SVG}circle')}
    assert 2 <= len(centres) <= 8
