"""The errors whose message is meant for the person at the keyboard, without a traceback."""

from seqtrain.data.utterance import DataError
from seqtrain.exchange import ExchangeError
from seqtrain.fsa import FsaError
from seqtrain.graphs import LexiconError, OovError
from seqtrain.training.checkpoint import CheckpointError
from seqtrain.training.workdir import WorkdirError

FOR_USERS = (
    CheckpointError,
    DataError,
    ExchangeError,
    FileNotFoundError,
    FsaError,
    LexiconError,
    OovError,
    WorkdirError,
)
