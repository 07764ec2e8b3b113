"""Beam search and scoring, on kaldi-decoder and jiwer."""

from seqtrain.decoding.decoder import Decoder, Hypothesis
from seqtrain.decoding.scoring import Change, WerResult, read_text, score_wer, write_text

__all__ = ['Change', 'Decoder', 'Hypothesis', 'WerResult', 'read_text', 'score_wer', 'write_text']
