"""`decoding_graph`: words to pdfs as one transducer (HLG), for the beam search.

L (lexicon with optional silence) and G (word n-gram with back-off arcs) are composed, determinised
and minimised by kaldifst with the usual disambiguation symbols; then every phone is replaced by its
HMM with self-loops, by the code that builds the training graphs. Costs are −log.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seqtrain import extras
from seqtrain.fsa import openfst
from seqtrain.fsa.fsa import NEG_INF
from seqtrain.graphs.expansion import EPSILON, Arc, Expansion
from seqtrain.graphs.lexicon import Lexicon, LexiconError, OovError
from seqtrain.graphs.ngram import BOS, EOS, UNK, NGram, NGramLm
from seqtrain.graphs.topology import Topology

logger = logging.getLogger(__name__)

_CACHE_VERSION = 3
# Rounding of weights in determinisation and minimisation. OpenFst's 1/1024 adds up to visible score
# differences over an utterance; finer rounding makes the graphs no larger.
_DELTA = 1e-5
_BACKOFF = '#0'

Rows = Iterable[tuple[int, int, int, int, float]]
"""Arcs of a transducer under construction: (src, dst, input, output, log-weight)."""


@dataclasses.dataclass(frozen=True)
class DecodingGraph:
    """A decoding graph and its word table.

    Attributes:
      fst: `kaldifst.StdVectorFst`; input label pdf+1 (0: no frame), output label word id, costs.
      words: word names by id; id 0 is `<eps>`.
      num_pdfs: pdfs of the topology it was made for: columns of the matrices to decode.

    Raises:
      ValueError: an arc names a pdf or a word that there is not, or the graph has no start.
    """

    fst: Any
    words: tuple[str, ...]
    num_pdfs: int

    def __post_init__(self):
        kaldifst = extras.load('kaldifst')

        if self.fst.start < 0:
            raise ValueError('The decoding graph has no start state: it accepts nothing.')
        pdf = word = 0
        for state in range(self.fst.num_states):
            for arc in kaldifst.ArcIterator(self.fst, state):
                pdf, word = max(pdf, arc.ilabel), max(word, arc.olabel)
        if pdf > self.num_pdfs or word >= len(self.words):  # the search reads them unchecked
            raise ValueError(
                f'The decoding graph has input labels up to {pdf} for {self.num_pdfs} pdfs and '
                f'output labels up to {word} for {len(self.words)} words (with <eps>): it belongs '
                'to another model, or to another word table.'
            )

    def write(self, path: str | os.PathLike) -> None:
        """Writes PATH (OpenFst binary) and PATH.json (words, number of pdfs).

        Each file appears whole, the graph last: two runs may write one graph at once.

        Raises:
          OSError: it cannot be written there.
        """
        path = pathlib.Path(path)
        table = {'words': self.words, 'num_pdfs': self.num_pdfs}
        try:
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                draft = pathlib.Path(folder) / path.name
                _table_file(draft).write_text(json.dumps(table), encoding='utf-8')
                openfst.write_fst(self.fst, draft)
                os.replace(_table_file(draft), _table_file(path))
                os.replace(draft, path)
        except OSError as error:
            raise OSError(f'{path}: could not be written: {error}') from None

    @classmethod
    def read(cls, path: str | os.PathLike) -> DecodingGraph:
        """Reads what `write` wrote; ValueError names a damaged file."""
        kaldifst = extras.load('kaldifst')

        try:
            table = json.loads(_table_file(path).read_text(encoding='utf-8'))
            words, num_pdfs = tuple(table['words']), int(table['num_pdfs'])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{path}.json: damaged; delete both and build the graph again.'
            ) from None
        try:
            fst = kaldifst.StdVectorFst.read(str(path))
        except (RuntimeError, ValueError, MemoryError):  # a count of arcs that is none
            fst = None
        if fst is None:
            raise ValueError(f'{path}: not a readable graph; delete it and build it again.')
        try:
            return cls(fst, words, num_pdfs)
        except ValueError as error:
            raise ValueError(f'{path}: {error} Delete both files and build it again.') from None


def decoding_graph(
    lexicon: Lexicon,
    topology: Topology,
    word_lm: NGramLm,
    *,
    silence_probability: float = 0.5,
    skip_oov: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> DecodingGraph:
    """Composes lexicon, word language model and topology into a decoding graph.

    The best path through it is the best under: the HMMs' transition probabilities, silence or none
    at every word boundary (and at the start), the language model with its back-off arcs.

    Args:
      lexicon: pronunciations; homophones are kept apart by the language model alone.
      topology: HMMs of the phones.
      word_lm: the word n-gram; its words must be in the lexicon.
      silence_probability: of a silence at a boundary; 0 makes a graph without silences.
      skip_oov: leave out LM words without pronunciation, with a warning, instead of raising
        OovError.
      cache_dir: keeps the graph there under the hash of all inputs, and reads it from there.

    Raises:
      OovError: lists LM words without pronunciation; <unk> may be without one and is left out then.
      LexiconError: no LM word has a pronunciation.
      ValueError: a bad probability, or a lexicon with more phones than the topology.
    """
    if not 0.0 <= silence_probability < 1.0:
        raise ValueError(f'silence_probability={silence_probability}; give 0 <= p < 1.')
    known = [word for word in word_lm.words if word in lexicon.pronunciations]
    missing = set(word_lm.words) - set(known) - {UNK}
    if missing and not skip_oov:
        raise OovError(sorted(missing))
    if not set(known) - {UNK}:
        examples = (sorted(words)[:3] for words in (set(word_lm.words) - {UNK}, lexicon.words))
        raise LexiconError(
            'No word of the language model is in the lexicon: '
            + ' but '.join(' '.join(words) or 'nothing' for words in examples)
            + " there. Take a model of the lexicon's words, spelt as they are there."
        )
    if missing:
        logger.warning('%s', _left_out(word_lm, missing))
    if cache_dir is None:
        return _build(lexicon, topology, word_lm, known, silence_probability)
    path = pathlib.Path(cache_dir) / (
        f'hlg-{_content_hash(lexicon, topology, word_lm, silence_probability)}.fst'
    )
    if path.is_file() and _table_file(path).is_file():
        try:
            return DecodingGraph.read(path)
        except ValueError as error:
            logger.warning('%s It is built again.', error)
    graph = _build(lexicon, topology, word_lm, known, silence_probability)
    path.parent.mkdir(parents=True, exist_ok=True)
    graph.write(path)
    return DecodingGraph.read(path)


def _left_out(word_lm: NGramLm, missing: set[str]) -> str:
    mass = {word: math.exp(word_lm.logprob((), word)) for word in word_lm.words}
    share = sum(mass[word] for word in missing) / (sum(mass.values()) or 1.0)
    return (
        f'{len(missing)} of {len(word_lm.words)} words of the language model have no pronunciation '
        f'and cannot be recognised ({" ".join(sorted(missing)[:3])} ...): {100 * share:.1f} % of '
        'its words as they come.'
    )


def _table_file(path: str | os.PathLike) -> pathlib.Path:
    """Where the words of a graph's file are."""
    return pathlib.Path(f'{path}.json')


def _build(lexicon, topology, word_lm, words, silence_probability) -> DecodingGraph:
    kaldifst = extras.load('kaldifst')

    word_ids = {word: index for index, word in enumerate(words, start=1)}
    num_phones = len(lexicon.phones)
    backoff = num_phones + 1  # first disambiguation symbol on the phone side
    left = _lexicon_fst(lexicon, word_ids, backoff, silence_probability)
    right = _grammar_fst(word_lm, word_ids)
    kaldifst.arcsort(left, 'olabel')
    kaldifst.arcsort(right, 'ilabel')
    graph = kaldifst.compose(left, right)
    kaldifst.determinize_star(graph, delta=_DELTA)
    kaldifst.minimize_encoded(graph, delta=_DELTA)
    fst = _expand(graph, topology, num_phones)
    kaldifst.connect(fst)
    if fst.start < 0:
        raise ValueError('The decoding graph accepts nothing; check the language model.')
    return DecodingGraph(fst, ('<eps>', *words), topology.num_pdfs)


def _lexicon_fst(lexicon: Lexicon, word_ids: Mapping[str, int], backoff: int, silence: float):
    """L: phones+1 to words, with optional silence after words and disambiguation symbols.

    States: 0 start, 1 between words (final), 2 before a silence, 3 after it.
    """
    no_sil = math.log(1.0 - silence)
    arcs = [(0, 1, 0, 0, no_sil), (1, 1, backoff, len(word_ids) + 1, 0.0)]
    sil_disambig = backoff + 1
    if silence:
        arcs += [(0, 2, 0, 0, math.log(silence)), (2, 3, 1, 0, 0.0), (3, 1, sil_disambig, 0, 0.0)]
    fresh = 4
    for word, phones in _disambiguate(lexicon, word_ids, sil_disambig + 1):
        output, src = word, 1
        for phone in phones[:-1]:
            arcs.append((src, fresh, phone, output, 0.0))
            output, src, fresh = 0, fresh, fresh + 1
        arcs.append((src, 1, phones[-1], output, no_sil))
        if silence:
            arcs.append((src, 2, phones[-1], output, math.log(silence)))
    return _vector_fst(arcs, {1: 0.0}, start=0)


def _disambiguate(lexicon: Lexicon, word_ids: Mapping[str, int], first_symbol: int):
    """Pronunciations as labels (phone+1); one that equals or begins another gets a symbol."""
    entries = [(i, lexicon.variants(w)) for w, i in word_ids.items()]
    counts: dict[tuple[int, ...], int] = {}
    prefixes: set[tuple[int, ...]] = set()
    for _, variants in entries:
        for phones in variants:
            counts[phones] = counts.get(phones, 0) + 1
            prefixes.update(phones[:n] for n in range(1, len(phones)))
    used: dict[tuple[int, ...], int] = {}
    for word, variants in entries:
        for phones in variants:
            labels = [phone + 1 for phone in phones]
            if counts[phones] > 1 or phones in prefixes:
                labels.append(first_symbol + used.get(phones, 0))
                used[phones] = used.get(phones, 0) + 1
            yield word, labels


def _grammar_fst(model: NGramLm, word_ids: Mapping[str, int]):
    """G: a state per context, back-off arcs with input symbol #0 and no output."""
    contexts = model.contexts()
    backoff = len(word_ids) + 1

    def longest(history: NGram) -> NGram:
        while history and history not in contexts:
            history = history[1:]
        return history

    number = {context: index for index, context in enumerate(sorted(contexts))}
    arcs, finals = [], {}
    for ngram, logprob in model.logprobs.items():
        history, word = ngram[:-1], ngram[-1]
        if logprob == NEG_INF:
            continue
        if word == EOS:
            finals[number[history]] = logprob
        elif word in word_ids:
            after = number[longest(ngram)]
            arcs.append((number[history], after, word_ids[word], word_ids[word], logprob))
    for context, state in number.items():
        weight = model.backoffs.get(context, 0.0)
        if context and weight > NEG_INF:
            arcs.append((state, number[longest(context[1:])], backoff, 0, weight))
    return _vector_fst(arcs, finals, start=number[longest((BOS,))])


def _expand(graph, topology: Topology, num_phones: int):
    """H: phones of the determinised LG become HMMs; disambiguation symbols become epsilons."""
    kaldifst = extras.load('kaldifst')

    out: dict[int, list[Arc]] = {}
    finals: dict[int, float] = {}
    for state in range(graph.num_states):
        out[state] = [
            (
                arc.ilabel - 1 if 0 < arc.ilabel <= num_phones else EPSILON,
                arc.olabel,
                -arc.weight.value,
                arc.nextstate,
            )
            for arc in kaldifst.ArcIterator(graph, state)
        ]
        if (weight := -graph.final(state).value) > NEG_INF:
            finals[state] = weight
    expansion = Expansion.of(out, [graph.start], finals, topology)
    arcs = [(src, dst, pdf + 1, word or 0, w) for src, pdf, word, w, dst in expansion.arcs]
    ends = {state: finals[source] for state, source in expansion.ends if source in finals}
    return _vector_fst(arcs, ends, start=0)


def _vector_fst(arcs: Rows, finals: Mapping[int, float], start: int):
    """A `kaldifst.StdVectorFst` from arcs and final weights (natural logs)."""
    kaldifst = extras.load('kaldifst')

    arcs = list(arcs)
    fst = kaldifst.StdVectorFst()
    for _ in range(1 + max([start, *finals, *(max(arc[:2]) for arc in arcs)])):
        fst.add_state()
    fst.start = start
    for src, dst, ilabel, olabel, weight in arcs:
        fst.add_arc(src, kaldifst.StdArc(ilabel, olabel, -weight, dst))
    for state, weight in finals.items():
        if weight > NEG_INF:
            fst.set_final(state, -weight)
    return fst


def _content_hash(
    lexicon: Lexicon, topology: Topology, model: NGramLm, silence_probability: float
) -> str:
    content: Sequence[Any] = (
        _CACHE_VERSION,
        sorted(lexicon.pronunciations.items()),
        lexicon.phones,
        topology.content(),
        model.order,
        sorted(model.logprobs.items()),
        sorted(model.backoffs.items()),
        silence_probability,
    )
    return hashlib.sha256(repr(content).encode()).hexdigest()[:24]
