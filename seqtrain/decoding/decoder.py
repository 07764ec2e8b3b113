"""`Decoder`: beam search through a decoding graph, on kaldi-decoder."""

from __future__ import annotations

import dataclasses

import numpy as np

from seqtrain import extras
from seqtrain.graphs.hlg import DecodingGraph

# kaldi-decoder works on float32 costs: −inf is replaced by something that still adds up.
_IMPOSSIBLE = -1e8


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """What the decoder found for one utterance.

    Attributes:
      words: the best path's words.
      score: its log-weight, acoustic (scaled) plus graph; −inf where nothing was found.
      ok: the path ends in a final state. Otherwise `words` is the best partial path, or nothing,
        and `reason` says why.
      pdfs: i32[T], the pdf of every frame on that path.
      reason: empty where `ok`.
    """

    words: tuple[str, ...]
    score: float
    ok: bool
    pdfs: np.ndarray
    reason: str = ''

    @property
    def text(self) -> str:
        return ' '.join(self.words)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Viterbi beam search.

    Attributes:
      graph: from `decoding_graph`.
      beam: paths worse than the best by more than this are dropped (natural log).
      max_active: at most this many states survive a frame.
      acoustic_scale: factor on the matrix: 1.0 for models trained with LF-MMI, about 0.1 for
        log-posteriors minus log-priors of hybrid models.
    """

    graph: DecodingGraph
    beam: float = 15.0
    max_active: int = 7000
    acoustic_scale: float = 1.0

    def __post_init__(self):
        if self.beam <= 0 or self.max_active < 2 or self.acoustic_scale <= 0:
            raise ValueError(
                f'beam={self.beam}, max_active={self.max_active}, '
                f'acoustic_scale={self.acoustic_scale}: all must be positive, max_active above 1.'
            )

    def decode(self, log_likelihoods: np.ndarray) -> Hypothesis:
        """Finds the best path of one utterance.

        Where no path within the beam reaches a final state the search is done once more with twice
        the beam and no limit on active states.

        Args:
          log_likelihoods: f32[T, P], natural log, any constant offset per frame.

        Returns:
          The hypothesis; not `ok`, with a reason, for zero frames and non-finite values: one
          utterance's trouble is never an exception.

        Raises:
          ValueError: the matrix has not the graph's number of pdfs.
        """
        scores = np.array(log_likelihoods, np.float32)
        if scores.ndim != 2 or scores.shape[1] != self.graph.num_pdfs:
            raise ValueError(
                f'A matrix of shape {scores.shape} for a graph of {self.graph.num_pdfs} pdfs; '
                f'decode with the graph of the same model.'
            )
        if not len(scores):
            return _nothing('no frames')
        if np.isnan(scores).any() or (scores == np.inf).any():
            return _nothing('non-finite scores')
        scores *= np.float32(self.acoustic_scale)
        top = scores.max(axis=1, keepdims=True)
        top[top == -np.inf] = 0
        scores = np.maximum(scores - top, np.float32(_IMPOSSIBLE))
        found = self._search(scores, self.beam, self.max_active)
        if not found.ok:
            found = self._search(scores, 2 * self.beam, np.iinfo(np.int32).max)
        return dataclasses.replace(found, score=found.score + float(top.sum(dtype=np.float64)))

    def _search(self, scores: np.ndarray, beam: float, max_active: int) -> Hypothesis:
        kaldi_decoder = extras.load('kaldi_decoder')
        kaldifst = extras.load('kaldifst')

        options = kaldi_decoder.FasterDecoderOptions(beam=beam, max_active=max_active)
        search = kaldi_decoder.FasterDecoder(self.graph.fst, options)
        search.decode(kaldi_decoder.DecodableCtc(np.ascontiguousarray(scores)))
        reached = search.reached_final()
        found, path = search.get_best_path(use_final_probs=True)
        if not found:
            return _nothing('no path through the graph')
        _, ilabels, olabels, weight = kaldifst.get_linear_symbol_sequence(path)
        score = -(weight.value1 + weight.value2)
        pdfs = np.array(ilabels, np.int32) - 1
        words = tuple(self.graph.words[label] for label in olabels)
        if len(pdfs) < len(scores):
            return Hypothesis(words, -np.inf, False, pdfs, f'the search ended at frame {len(pdfs)}')
        if score < _IMPOSSIBLE / 2:
            return _nothing('no path with finite scores')
        if not reached:
            return Hypothesis(words, score, False, pdfs, 'no final state within the beam')
        return Hypothesis(words, score, True, pdfs)


def _nothing(reason: str) -> Hypothesis:
    return Hypothesis((), -np.inf, False, np.zeros(0, np.int32), reason)
