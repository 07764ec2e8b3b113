"""Beam search and scoring, on kaldi-decoder and jiwer."""

from seqtrain.decoding.decoder import Decoder, Hypothesis
from seqtrain.decoding.scoring import WerResult, read_text, score_wer, write_text

__all__ = ['Decoder', 'Hypothesis', 'WerResult', 'read_text', 'score_wer', 'write_text']
