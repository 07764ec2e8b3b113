"""Which errors are for the person at the keyboard, and which a run can live with."""

from seqtrain.data.utterance import DataError
from seqtrain.exchange import ExchangeError, ReplayError
from seqtrain.exchange.eventlog import EventLogError
from seqtrain.exchange.partition import PartitionError
from seqtrain.extras import MissingPackageError
from seqtrain.fsa import FsaError
from seqtrain.graphs import LexiconError, OovError
from seqtrain.graphs.alignment_files import CtmError
from seqtrain.graphs.arpa import ArpaError
from seqtrain.training.checkpoint import CheckpointError
from seqtrain.training.config import ConfigError
from seqtrain.training.workdir import WorkdirError

_OF_ALL: tuple[type[Exception], ...] = (
    ArpaError,
    CheckpointError,
    ConfigError,
    CtmError,
    DataError,
    EventLogError,
    ExchangeError,
    FileNotFoundError,
    FsaError,
    LexiconError,
    MissingPackageError,
    OovError,
    PartitionError,
    ReplayError,
    WorkdirError,
)
"""What one replica meets the others will meet, too."""

FOR_USERS: tuple[type[Exception], ...] = (*_OF_ALL, OSError)
"""Their message is a sentence that says what to do: no traceback is shown."""


def of_replica(error: BaseException) -> bool:
    """Whether an error is one replica's own, so that the others may go on without it.

    What happens in a client's exchange thread (a computation that failed on the device, for
    one) comes as an `ExchangeError` that names it as its cause.
    """
    if isinstance(error, ExchangeError) and error.__cause__ is not None:
        error = error.__cause__
    return isinstance(error, Exception) and not isinstance(error, _OF_ALL)


def line(error: BaseException) -> str:
    """The error's kind and the beginning of its message."""
    message = str(error).strip().split('\n')[0][:300]
    return f'{type(error).__name__}: {message}' if message else type(error).__name__
