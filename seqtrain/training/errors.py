"""The errors whose message is meant for the person at the keyboard, without a traceback."""

from seqtrain.data.utterance import DataError
from seqtrain.exchange import ExchangeError
from seqtrain.fsa import FsaError
from seqtrain.graphs import LexiconError, OovError
from seqtrain.graphs.alignment_files import CtmError
from seqtrain.graphs.arpa import ArpaError
from seqtrain.training.checkpoint import CheckpointError
from seqtrain.training.workdir import WorkdirError

FOR_USERS = (
    ArpaError,
    CheckpointError,
    CtmError,
    DataError,
    ExchangeError,
    FileNotFoundError,
    FsaError,
    LexiconError,
    OovError,
    WorkdirError,
)
