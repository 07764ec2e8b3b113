"""Lattices for a batch: made on a replica's host from its network's scores, packed for its device.

Not here: when they are made and by which parameters (`lattice_source`), and the sums over their
paths, which are those of the lattice-free criteria (`losses`, on a batch of graphs).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from seqtrain import ops
from seqtrain.fsa import Fsa
from seqtrain.graphs import DecodingGraph, Lexicon, NGramLm, Topology, arpa, decoding_graph
from seqtrain.lattices import LatticeError, LatticeGenerator, LatticePair, oracle_errors
from seqtrain.training.prepare import TrainingData
from seqtrain.training.workdir import read_json, write_json

SIZES = 'lattice_sizes.json'
_MODES = ('decode', 'epoch', 'outer')
_UNITS = ('word', 'phone')
# Room above what a first look at the data needs.
_MARGIN = 1.25
_MULTIPLE = 64
# What the summary of several batches adds up.
_ADDED = (
    *('lattice_failed', 'lattice_pruned', 'lattice_s', 'lattice_idle_s'),
    *('oracle_errors', 'oracle_words'),
)


@dataclasses.dataclass(frozen=True)
class LatticeConfig:
    """How lattices are made and how long they serve.

    Attributes:
      mode: 'decode': anew for every batch; 'epoch': anew when an utterance has been seen
        `epochs_per_lattice` times, meanwhile its lattices are rescored by the device; 'outer': as
        'epoch', but the outer derivatives are kept, too, and their frames shuffled across
        utterances.
      epochs_per_lattice: of 'epoch' and 'outer'; lattices are made anew in epochs that this
        divides.
      ahead: for how many of its next batches a replica makes lattices while the device works: their
        parameters are then so many updates older. 0 makes them when it is a batch's turn; with
        'outer' any other number makes those of the whole next block.
      beam, lattice_beam, max_active: of the search (Kaldi's make_denlats.sh: 13, 7, 5000).
      acoustic_scale: κ, in the search and in the criterion.
      unit: what competes: 'word', sequences of words; 'phone', those of phones, whatever words
        they make, with the first pronunciations of the transcript as reference.
      word_lm_order: of the denominators' n-gram of these units, weak on purpose.
      word_lm: an ARPA file to take instead; its units without pronunciation are left out.
      silence_probability: of a silence between words in denominators; −1: that of `config.graph`,
        which decoding has. More silence arcs are a cure for models that run away (Su et al. 2013).
      threads: utterances that a replica searches at once.
      batches_per_block: of 'outer': frames are shuffled within so many batches.
      correction: of 'outer' and mmi: old derivatives are moved to the new outputs, to first order.
    """

    mode: str = 'decode'
    epochs_per_lattice: int = 1
    ahead: int = 1
    beam: float = 13.0
    lattice_beam: float = 7.0
    max_active: int = 5000
    acoustic_scale: float = 0.1
    unit: str = 'word'
    word_lm_order: int = 1
    word_lm: str = ''
    silence_probability: float = -1.0
    threads: int = 1
    batches_per_block: int = 4
    correction: bool = False

    def __post_init__(self):
        if self.mode not in _MODES:
            raise ValueError(f'config.lattice.mode is {self.mode!r}; choose {", ".join(_MODES)}.')
        if self.unit not in _UNITS:
            raise ValueError(f'config.lattice.unit is {self.unit!r}; choose {" or ".join(_UNITS)}.')
        counts = ('epochs_per_lattice', 'word_lm_order', 'threads', 'batches_per_block')
        for name in ('max_active', *counts):
            if getattr(self, name) < 1:
                raise ValueError(f'config.lattice.{name} is {getattr(self, name)}; at least 1.')
        if self.ahead < 0:
            raise ValueError(f'config.lattice.ahead is {self.ahead}; at least 0.')
        for name in ('beam', 'lattice_beam', 'acoustic_scale'):
            if not getattr(self, name) > 0:
                raise ValueError(f'config.lattice.{name} is {getattr(self, name)}; above 0.')
        if not (self.silence_probability == -1 or 0 <= self.silence_probability < 1):
            raise ValueError(
                f'config.lattice.silence_probability is {self.silence_probability}; at least 0 and '
                'below 1, or -1 for that of config.graph.'
            )
        if self.correction and self.mode != 'outer':
            raise ValueError('config.lattice.correction belongs to config.lattice.mode=outer.')

    def generator(self, graph: DecodingGraph) -> LatticeGenerator:
        """The search with these settings."""
        return LatticeGenerator(
            graph, self.beam, self.lattice_beam, self.max_active, self.acoustic_scale
        )


@dataclasses.dataclass(frozen=True)
class Sizes:
    """States and arcs per output frame for which batches of lattices are packed."""

    numerator: tuple[float, float]
    denominator: tuple[float, float]

    def of(self, frames: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(states, arcs) of numerators and of denominators of so many frames."""

        def padded(rates: tuple[float, float]) -> tuple[int, int]:
            states, arcs = (_MULTIPLE * (1 + int(rate * frames) // _MULTIPLE) for rate in rates)
            return states, arcs

        return padded(self.numerator), padded(self.denominator)

    @classmethod
    def fit(cls, made: Sequence[Made], frames: Sequence[int]) -> Sizes:
        """Room for 19 of 20 of the lattices and a quarter more; what is larger will be pruned."""
        rates = []
        for side in ('numerator', 'denominator'):
            fsas = [(getattr(one, side), f) for one, f in zip(made, frames, strict=True)]
            sizes = [(fsa.num_states / f, fsa.num_arcs / f) for fsa, f in fsas if fsa is not None]
            states, arcs = _MARGIN * np.quantile(sizes or [(4.0, 8.0)], 0.95, axis=0)
            rates.append((round(float(states), 2), round(float(arcs), 2)))
        return cls(*rates)

    def write(self, folder: pathlib.Path) -> None:
        write_json(folder / SIZES, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: pathlib.Path) -> Sizes | None:
        """What `write` wrote; None where it has not yet."""
        if not (folder / SIZES).is_file():
            return None
        fields = read_json(folder / SIZES)
        return cls(**{name: tuple(value) for name, value in fields.items()})


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """The lattices of one utterance as acceptors, or the reason why there are none.

    Attributes:
      numerator, denominator: None where there is a reason.
      reason: why the utterance is masked.
      depth: arcs per frame of the denominator.
      pruned: whether it had to be pruned to fit its batch.
      words, oracle_errors: of the reference and of the best path that the search left, where it
        was looked at, else 0.
    """

    numerator: Fsa | None = None
    denominator: Fsa | None = None
    reason: str = ''
    depth: float = 0.0
    pruned: bool = False
    words: int = 0
    oracle_errors: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class LatticeMaker:
    """Makes and packs lattices; shared by the replicas' threads.

    Attributes:
      generator: the search over the denominators' decoding graph.
      data: the training set: features, buckets.
      sizes: see there; None makes lattices of any size, for a first look.
      threads: utterances at once.
      unit: of the graph, see `LatticeConfig`.
      frame_shift_s: of the features, in seconds.
    """

    generator: LatticeGenerator
    data: TrainingData
    sizes: Sizes | None = None
    threads: int = 1
    unit: str = 'word'
    frame_shift_s: float = 0.01

    def text(self, index: int) -> str:
        """An utterance's transcript in the graph's units."""
        return spelt(self.data.features.texts[index], self.data.lexicon, self.unit)

    def make(
        self, logits: np.ndarray, lengths: np.ndarray, indices: np.ndarray
    ) -> tuple[list[Made | None], float, float]:
        """Lattices of a batch's utterances, None for padding rows; the seconds it took; and seconds
        of the utterances that got theirs.

        Args:
          logits: f32[B, U, P], scaled log-likelihoods.
          lengths: i32[B], output frames.
          indices: i32[B], utterances; −1 for padding rows.
        """
        started = time.perf_counter()

        def one(row: int) -> Made | None:
            if indices[row] < 0:
                return None
            return self.utterance(logits[row, : lengths[row]], int(indices[row]), look=row == 0)

        rows = range(len(indices))
        if self.threads > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                made = list(pool.map(one, rows))
        else:
            made = [one(row) for row in rows]
        seconds = time.perf_counter() - started
        good = [row for row, one in enumerate(made) if one is not None and not one.reason]
        frames = sum(len(self.data.features.features[indices[row]]) for row in good)
        return made, seconds, frames * self.frame_shift_s

    def utterance(self, logits: np.ndarray, index: int, look: bool = False) -> Made:
        """The lattices of one utterance; its trouble comes back as a reason.

        They fit the shortest bucket that the utterance fits: in another epoch it may be there,
        even if the rest of an epoch has moved it to a longer one now.

        Args:
          logits: f32[U, P].
          index: of the utterance.
          look: whether to find out the oracle errors, which takes a while.
        """
        text = self.text(index)
        pair = self.generator.pair(logits, text)
        if not pair.ok:
            return Made(reason=pair.reason)
        assert pair.denominator is not None
        try:
            numerator, denominator, pruned = self._fitted(pair, index)
        except LatticeError as error:
            return Made(reason=str(error))
        words = errors = 0
        if look and pair.found is not None:
            words, errors = len(text.split()), oracle_errors(pair.found, text)
        return Made(numerator, denominator, '', pair.denominator.depth(), pruned, words, errors)

    def _fitted(self, pair: LatticePair, index: int) -> tuple[Fsa, Fsa, bool]:
        if self.sizes is None:
            assert pair.numerator is not None
            assert pair.denominator is not None
            return pair.numerator.to_fsa(), pair.denominator.to_fsa(), False
        bucket = self.data.buckets.of(len(self.data.features.features[index]))
        limits = self.sizes.of(self._frames(bucket))
        numerator, denominator, beam = pair.to_fsas(*limits[1], numerator_size=limits[0])
        return numerator, denominator, beam < math.inf

    def pack(self, made: Sequence[Made | None], bucket: int) -> tuple[ops.Graph, ops.Graph]:
        """Numerators and denominators of a batch on the host; utterances without have no path."""
        assert self.sizes is not None
        num_pdfs = self.data.topology.num_pdfs
        numerators = [_NO_PATH if one is None else one.numerator or _NO_PATH for one in made]
        denominators = [_NO_PATH if one is None else one.denominator or _NO_PATH for one in made]
        sizes = self.sizes.of(self._frames(bucket))
        above, below = (
            ops.pack_batch(fsas, states, arcs, num_pdfs=num_pdfs)
            for fsas, (states, arcs) in zip((numerators, denominators), sizes, strict=True)
        )
        return above, below

    def _frames(self, bucket: int) -> int:
        return -(-self.data.buckets.shapes[bucket][1] // self.data.subsampling)


_NO_PATH = Fsa(
    np.zeros(0, np.int32),
    np.zeros(0, np.int32),
    np.zeros(0, np.int32),
    np.zeros(0, np.float32),
    np.array([0.0, -np.inf], np.float32),
    np.array([-np.inf, 0.0], np.float32),
)
"""An acceptor of nothing: the criteria mask its utterance."""


def spelt(text: str, lexicon: Lexicon, unit: str) -> str:
    """A transcript in words, or in the phones of their first pronunciations."""
    return text if unit == 'word' else ' '.join(lexicon.canonical(text))


def word_model(texts: Sequence[str], order: int, arpa_file: str = '') -> NGramLm:
    """The denominators' weak LM: a Witten-Bell n-gram of the training transcripts' words or phones.

    Kaldi (steps/make_denlats.sh) takes a unigram, so that lattices hold what a strong model would
    rule out.

    Args:
      texts: transcripts in words or phones.
      order: of the n-gram.
      arpa_file: a model to take instead.
    """
    if arpa_file:
        return arpa.read(arpa_file)
    sentences = [text.split() for text in texts]
    words = sorted({word for sentence in sentences for word in sentence})
    return NGramLm.estimate(sentences, order, vocabulary=words)


def denominator_graph(
    lexicon: Lexicon,
    topology: Topology,
    word_lm: NGramLm,
    cache_dir: pathlib.Path | None,
    silence_probability: float = 0.5,
) -> DecodingGraph:
    """The decoding graph of denominators.

    Args:
      lexicon, topology: of the training set.
      word_lm: see `word_model`.
      cache_dir: keeps graphs by the hash of their contents; None builds it.
      silence_probability: of a silence at every word boundary: the more likely it is, the more
        lattices hold silence beside the words, which keeps a model from running away (Su et al.
        2013 add such arcs to finished lattices).
    """
    if cache_dir is not None:
        cache_dir.mkdir(parents=True, exist_ok=True)
    return decoding_graph(
        lexicon,
        topology,
        word_lm,
        silence_probability=silence_probability,
        skip_oov=True,  # of an ARPA file; an estimated model has none
        cache_dir=cache_dir,
    )


def merged(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """One summary of several batches': times and counts are added, the rest are means.

    Speed and oracle WER are those of all of them together.
    """
    result = {}
    for name in sorted({name for one in found for name in one}):
        values = [one[name] for one in found if name in one]
        result[name] = sum(values) / (1 if name in _ADDED else len(values))
    return result | rates(found)


def rates(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """`lattice_speed` and `oracle_wer` of several batches together, where any of them has one."""
    timed = [one for one in found if 'lattice_speed' in one]
    words = sum(one.get('oracle_words', 0) for one in found)
    result = {}
    if timed:
        audio_s = sum(one['lattice_s'] * one['lattice_speed'] for one in timed)
        result['lattice_speed'] = audio_s / sum(one['lattice_s'] for one in timed)
    if words:
        result['oracle_wer'] = sum(one.get('oracle_errors', 0) for one in found) / words
    return result


def summary(
    made: Sequence[Made | None], new: Sequence[Made | None], seconds: float, audio_s: float
) -> dict[str, float]:
    """What a batch's lattices were like, for the log.

    Args:
      made: of the batch.
      new: those of them that were not there before; what was done to lattices counts once.
      seconds: that the search took.
      audio_s: seconds of the utterances that got their lattices from it.

    Returns:
      Times in seconds, the speed in times real time; no depth where there is no lattice, no speed
      where none was made, no oracle WER where no words were looked at.
    """
    good, fresh = (
        [one for one in some if one is not None and not one.reason] for some in (made, new)
    )
    found: dict[str, float] = {
        'lattice_failed': sum(one is not None and bool(one.reason) for one in made),
        'lattice_pruned': sum(one.pruned for one in fresh),
        'lattice_s': seconds,
    }
    if good:
        found['lattice_depth'] = sum(one.depth for one in good) / len(good)
    if seconds and audio_s:
        found['lattice_speed'] = audio_s / seconds
    if words := sum(one.words for one in fresh):
        errors = sum(one.oracle_errors for one in fresh)
        found |= {'oracle_errors': errors, 'oracle_words': words, 'oracle_wer': errors / words}
    return found
