"""What people ask of lattices: n-best lists, oracle errors, word confidences, another LM."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from seqtrain import extras
from seqtrain.fsa.fsa import NEG_INF
from seqtrain.graphs.ngram import BOS, EOS, NGramLm
from seqtrain.lattices.lattice import Lattice, LatticeError
from seqtrain.lattices.openfst import to_kaldifst
from seqtrain.lattices.operations import PathSums, best_arcs, path_sums, prune

# Rounding of weights in determinisation; OpenFst's 1/1024 adds up and changes the order of paths.
_DELTA = 1e-5
_FIRST_BEAM = 1.0
_ALL = np.finfo(np.float64).max  # a beam that leaves out what cannot be taken, and nothing else


@dataclasses.dataclass(frozen=True)
class WordConfidence:
    """A word of the best path.

    Attributes:
      word: as in the lattice.
      frame: of the network's outputs, counted from 0, at which the search recognised it.
      confidence: its posterior probability, 0 to 1.
    """

    word: str
    frame: int
    confidence: float


def n_best(lattice: Lattice, n: int) -> list[tuple[tuple[str, ...], float]]:
    """The n best distinct word sequences with the log-weight of each one's best path.

    Word lattices are determinised, which can take as many steps as there are paths that differ in
    time alone; so from narrow to wide, until n sequences lie within the beam. Prune large lattices
    first if they may have fewer.
    """
    if n < 1:
        raise ValueError(f'n={n}; ask for at least one.')
    beam, arcs = _FIRST_BEAM, prune(lattice, _ALL).num_arcs
    while True:
        kept = prune(lattice, beam)
        found = _shortest(kept, n)
        enough = len(found) == n and found[-1][1] >= found[0][1] - beam
        if enough or kept.num_arcs == arcs:
            return found
        beam *= 1.5


def _shortest(lattice: Lattice, n: int) -> list[tuple[tuple[str, ...], float]]:
    """The n best of a lattice that is determinised as a whole."""
    kaldifst = extras.load('kaldifst')

    paths = kaldifst.shortest_path(word_fst(lattice), n=n)
    # Of a single path there is no list, and one made of a path without arcs loses its weight.
    linear = [paths] if n == 1 else kaldifst.convert_nbest_to_vector(paths)
    found = []
    for path in linear:
        _, _, labels, cost = kaldifst.get_linear_symbol_sequence(path)
        found.append((tuple(lattice.words[label] for label in labels), 0.0 - cost.value))
    return sorted(found, key=lambda entry: -entry[1])


def word_fst(lattice: Lattice):
    """The lattice's word sequences, each once, as a deterministic `kaldifst.StdVectorFst`.

    Costs are −log, those of the best paths. Arcs of weight −inf are left out.
    """
    kaldifst = extras.load('kaldifst')

    fst = to_kaldifst(lattice, lattice.word, lattice.weight)
    kaldifst.rmepsilon(fst)
    return kaldifst.determinize(fst, delta=_DELTA)


def oracle_errors(lattice: Lattice, reference: str | Sequence[str]) -> int:
    """Word errors of the path that is nearest to the reference: least edit distance of all.

    A path of weight −inf is none. Divide the sum over utterances by the number of reference words
    for the oracle WER.
    """
    words = reference.split() if isinstance(reference, str) else list(reference)
    label_of = {word: label for label, word in enumerate(lattice.words)}
    labels = np.array([label_of.get(word, -1) for word in words], np.int64)
    # cost[s, j]: least edits of a path to s against the first j reference words.
    cost = np.full((lattice.num_states, len(words) + 1), np.inf)
    cost[0] = np.arange(len(words) + 1)
    arcs = np.flatnonzero(lattice.weight > NEG_INF)
    columns = (lattice.src[arcs], lattice.dst[arcs], lattice.word[arcs])
    for src, dst, word in zip(*(column.tolist() for column in columns), strict=True):
        before = cost[src]
        if word:
            after = before + 1  # insertion
            after[1:] = np.minimum(after[1:], before[:-1] + (labels != word))
            # Deletions: pay one per reference word left out.
            steps = np.arange(len(after))
            after = np.minimum.accumulate(after - steps) + steps
        else:
            after = before
        np.minimum(cost[dst], after, out=cost[dst])
    return int(cost[np.isfinite(lattice.final), -1].min())


def confidences(lattice: Lattice) -> list[WordConfidence]:
    """The best path's words with posteriors.

    A word's posterior is that of all paths with this word between the middles of the gaps to its
    neighbours on the best path: paths that recognise it a little earlier or later, or twice, agree.
    """
    best = best_arcs(lattice, path_sums(lattice, np.maximum))
    spoken = best[lattice.word[best] > 0]
    if not len(spoken):
        return []
    frames = lattice.time[lattice.src[spoken]]
    distinct = np.unique(frames)
    slot = np.searchsorted((distinct[1:] + distinct[:-1]) / 2, lattice.time, side='right')
    sums, layers = path_sums(lattice), lattice.layers
    times = lattice.time[lattice.src[[arcs[0] for arcs in layers]]]
    result = []
    for arc, frame in zip(spoken.tolist(), frames.tolist(), strict=True):
        inside = slot == slot[lattice.src[arc]]
        agree = (lattice.word == lattice.word[arc]) & inside[lattice.src]
        begin, end = lattice.time[inside][[0, -1]]
        near = slice(np.searchsorted(times, begin - 1), np.searchsorted(times, end, side='right'))
        confidence = _probability(lattice, sums, layers[near], agree, inside)
        result.append(WordConfidence(lattice.words[lattice.word[arc]], frame, confidence))
    return result


def _probability(lattice: Lattice, sums: PathSums, layers, agree, inside) -> float:
    """Probability of the paths with an arc of a mask: the sum over their first ones.

    Args:
      lattice: with its sums.
      layers: of the arcs that lead to states inside.
      agree: bool[A], the mask; the arcs begin inside.
      inside: bool[S], all states of some frames that follow each other.
    """
    weight = lattice.graph + lattice.acoustic_scale * lattice.acoustic.astype(np.float64)
    alpha = np.where(inside, NEG_INF, sums.alpha)  # inside: over paths that have none yet
    alpha[0] = 0.0
    for layer in layers:
        arcs = layer[inside[lattice.dst[layer]] & ~agree[layer]]
        np.logaddexp.at(alpha, lattice.dst[arcs], alpha[lattice.src[arcs]] + weight[arcs])
    first = alpha[lattice.src[agree]] + weight[agree] + sums.beta[lattice.dst[agree]]
    return min(1.0, float(np.exp(np.logaddexp.reduce(first) - sums.total)))


def rescore_lm(lattice: Lattice, old: NGramLm, new: NGramLm, *, lm_scale: float = 1.0) -> Lattice:
    """Takes one word LM's log-probabilities out of the graph weights and puts another's in.

    States are split by the longer of the two models' histories. Exact where the search graph used
    `old` as it is (its back-off arcs can score a word sequence in more than one way; the
    conditional probability is what is taken out).

    Args:
      lattice: from a graph with `old`.
      old: the LM in the graph weights.
      new: the LM to put in.
      lm_scale: factor on the change, above 0.

    Raises:
      ValueError: a factor that is not.
      LatticeError: `new` gives every path probability 0, or `old` gives it to a word that is there.
    """

    if not 0.0 < lm_scale < np.inf:
        raise ValueError(f'lm_scale={lm_scale}; give a factor above 0.')

    def change(history: tuple[str, ...], word: str) -> float:
        taken = old.logprob(history, word)
        if taken == NEG_INF:
            said = ' '.join((*history, word))
            raise LatticeError(
                f"The old language model rules {said!r} out; is it the lattice's own?"
            )
        return lm_scale * (new.logprob(history, word) - taken)

    length = max(old.order, new.order) - 1
    start = (0, (BOS,)[:length])
    number, queue, rows = {start: 0}, [start], []
    first = np.searchsorted(lattice.src, np.arange(lattice.num_states + 1))
    for entry in queue:  # grows while it is walked
        state, history = entry
        for arc in range(first[state], first[state + 1]):
            label, weight, after = int(lattice.word[arc]), float(lattice.graph[arc]), history
            if label and weight > NEG_INF:
                word = lattice.words[label]
                weight += change(history, word)
                after = (*history, word)[max(0, len(history) + 1 - length) :] if length else ()
            if weight == NEG_INF:
                continue
            target = (int(lattice.dst[arc]), after)
            if target not in number:
                number[target] = len(queue)
                queue.append(target)
            rows.append((number[entry], number[target], arc, weight))
    origin = np.array([state for state, _ in queue])
    final = np.full(len(queue), NEG_INF)
    for place, (state, history) in enumerate(queue):
        if np.isfinite(lattice.final[state]):
            final[place] = lattice.final[state] + change(history, EOS)
    if not rows or not np.isfinite(final).any():
        raise LatticeError('The new language model gives every path probability 0.')
    return _renumber(lattice, origin, np.array(rows, np.float64), final)


def _renumber(lattice: Lattice, origin: np.ndarray, rows: np.ndarray, final) -> Lattice:
    """A lattice of split states, sorted as the states they come from."""
    order = np.argsort(origin, kind='stable')
    place = np.argsort(order)
    src, dst, arcs = place[rows[:, 0].astype(int)], place[rows[:, 1].astype(int)], rows[:, 2]
    by_src = np.argsort(src, kind='stable')
    taken = arcs[by_src].astype(int)
    split = Lattice(
        time=lattice.time[origin[order]],
        src=src[by_src],
        dst=dst[by_src],
        pdf=lattice.pdf[taken],
        word=lattice.word[taken],
        graph=rows[by_src, 3],
        acoustic=lattice.acoustic[taken],
        final=final[order],
        words=lattice.words,
        acoustic_scale=lattice.acoustic_scale,
    )
    return split.select(np.ones(split.num_arcs, bool))
