"""A small recogniser, and all paths of graphs and lattices by brute force."""

import kaldifst
import numpy as np
import pytest

from seqtrain.graphs import Lexicon, NGramLm, Topology, decoding_graph


@pytest.fixture(scope='session')
def lexicon():
    return Lexicon.from_dict({'x': ['a', 'a b'], 'y': 'b', 'hom': 'b', 'z': 'b a'})


@pytest.fixture(scope='session')
def word_lm():
    return NGramLm.estimate([s.split() for s in ['x y', 'z x', 'hom z', 'y y x', 'hom y']], 2)


@pytest.fixture(scope='session', params=['chain', 'ctc'])
def graph(request, lexicon, word_lm):
    return decoding_graph(lexicon, Topology.make(request.param, 3), word_lm)


@pytest.fixture
def scores(graph):
    def draw(num_frames=5, seed=0, scale=2.0):
        shape = (num_frames, graph.num_pdfs)
        return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)

    return draw


@pytest.fixture
def graph_paths():
    """All paths of a decoding graph over some scores: [(pdfs, words, log-weight)]."""

    def walk(graph, scores, scale=1.0):
        found = []

        def step(state, time, pdfs, words, weight):
            final = graph.fst.final(state).value
            if time == len(scores) and np.isfinite(final):
                found.append((pdfs, words, weight - final))
            for arc in kaldifst.ArcIterator(graph.fst, state):
                after = weight - arc.weight.value
                spoken = (*words, graph.words[arc.olabel]) if arc.olabel else words
                if arc.ilabel == 0:
                    step(arc.nextstate, time, pdfs, spoken, after)
                elif time < len(scores):
                    acoustic = scale * float(scores[time, arc.ilabel - 1])
                    path = (*pdfs, arc.ilabel - 1)
                    step(arc.nextstate, time + 1, path, spoken, after + acoustic)

        step(graph.fst.start, 0, (), (), 0.0)
        return sorted(found, key=lambda path: -path[2])

    return walk


@pytest.fixture
def lattice_paths():
    """All paths of a lattice: [(pdfs, words, log-weight)]."""

    def walk(lattice):
        partial = {0: [((), (), 0.0)]}
        found = []
        for state in range(lattice.num_states):
            for pdfs, words, weight in partial.get(state, []):
                if np.isfinite(lattice.final[state]):
                    found.append((pdfs, words, weight + float(lattice.final[state])))
            for arc in np.flatnonzero(lattice.src == state):
                label = lattice.word[arc]
                pdf = (int(lattice.pdf[arc]),) if lattice.pdf[arc] >= 0 else ()
                spoken = (lattice.words[label],) if label else ()
                step = float(lattice.weight[arc])
                partial.setdefault(int(lattice.dst[arc]), []).extend(
                    (p + pdf, w + spoken, weight + step) for p, w, weight in partial.get(state, [])
                )
        return sorted(found, key=lambda path: -path[2])

    return walk
