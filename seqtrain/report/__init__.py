"""The run report: one self-contained HTML page, and its figures as PNG."""

from seqtrain.report.record import RunRecord, Segment, Wer
from seqtrain.report.write import write

__all__ = ['RunRecord', 'Segment', 'Wer', 'write']
