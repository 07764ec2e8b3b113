"""Into a Ray cluster and out again: tokens, addresses, and sentences for those who stay outside.

Ray speaks pickle between its processes: whoever may connect may run code. So a token is asked for
by default, and a cluster that lets in callers without one is not joined.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import pathlib
import secrets
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from seqtrain.exchange.courier import ExchangeError
from seqtrain.exchange.transport.ray_lines import load_ray

CONNECT_S = 5.0
TRIES = '3'
"""How often Ray asks a head that answers but refuses; its own default is 20, a second apart."""

_REFUSALS = (ConnectionError, RuntimeError, ValueError, TimeoutError)
_WHERE = 'give the HOST:PORT that `ray start --head` printed'
_TOKENS = (
    'start the cluster with RAY_AUTH_MODE=token and use its token here (RAY_AUTH_TOKEN or '
    'RAY_AUTH_TOKEN_PATH)'
)


def xla_flags() -> str:
    """XLA_FLAGS but for the number of host devices: what every process of a run should share.

    They decide about the last bits of a step, and a shard's rule is compiled by them, too.
    """
    flags = os.environ.get('XLA_FLAGS', '').split()
    return ' '.join(f for f in flags if not f.startswith('--xla_force_host_platform_device_count'))


def start(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    temp_dir: str | None = None,
    authenticate: bool = True,
) -> None:
    """Starts Ray on this machine, or joins a running cluster; one that is joined already is kept.

    Args:
      address: 'HOST:PORT' of the head node; None starts Ray here, for this program only.
      num_cpus: what Ray shall believe this machine has (address=None only).
      temp_dir: Ray's own files (address=None only).
      authenticate: token authentication. A cluster must have been started with
        RAY_AUTH_MODE=token and the same token: RAY_AUTH_TOKEN, or a file of mode 600 that
        RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token.

    Raises:
      ExchangeError: no Ray, nobody or somebody else at the address, another token or none, or a
        cluster that asks for none; one sentence, within seconds.
    """
    imported = 'ray' in sys.modules
    if imported and load_ray().is_initialized():
        return
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    os.environ['RAY_AUTH_MODE'] = 'token' if authenticate else 'disabled'
    if authenticate and address is None:
        _make_token()
    ray = load_ray()
    if imported:  # it read the environment then; so does Ray itself when it changes its mind
        with contextlib.suppress(AttributeError):
            ray._raylet.Config.initialize('')
    options: dict[str, Any] = {'address': 'local', 'num_cpus': num_cpus, '_temp_dir': temp_dir}
    if address is not None:
        if _knock(address) and authenticate:
            raise ExchangeError(
                f'Ray at {address} lets in callers without a token, who may run any code there: '
                f'{_TOKENS}.'
            )
        options = {'address': address}
    options['include_dashboard'] = False if address is None else None
    try:
        few = contextlib.nullcontext() if address is None else _tries()
        with few, warnings.catch_warnings():
            # JAX warns of forks; Ray's children become other programs at once.
            warnings.filterwarnings('ignore', r'os\.fork\(\) was called', RuntimeWarning)
            ray.init(log_to_driver=False, **options)
    except (*_REFUSALS, ray.exceptions.RayError) as error:
        reason = f'Ray says: {_last_line(error.__cause__ or error)}'
        if address is None:
            raise ExchangeError(
                'Ray did not start on this machine, which may be busy, or out of memory or disk: '
                f'try again. {reason}'
            ) from error
        raise ExchangeError(
            f'Ray at {address} did not let us in, most likely for another token, or none: '
            f'{_TOKENS}. {reason}'
        ) from error


def stop() -> None:
    """Lets go of Ray; a Ray that `start` began ends."""
    with warnings.catch_warnings():
        # Ray kills its processes and does not wait until the last of them is dead.
        warnings.filterwarnings('ignore', r'subprocess \d+ is still running', ResourceWarning)
        load_ray().shutdown()
        gc.collect()


def _make_token() -> None:
    """A fresh token for a Ray of our own, in a file that only this user can read."""
    if {'RAY_AUTH_TOKEN', 'RAY_AUTH_TOKEN_PATH'} & os.environ.keys():
        return
    handle, path = tempfile.mkstemp(prefix='seqtrain-ray-token-')  # mode 600
    with os.fdopen(handle, 'w') as file:
        file.write(secrets.token_hex(32))
    os.environ['RAY_AUTH_TOKEN_PATH'] = path
    atexit.register(lambda: pathlib.Path(path).unlink(missing_ok=True))


@contextlib.contextmanager
def _tries() -> Iterator[None]:
    """Fewer tries while the context lasts, unless the environment says how many."""
    name = 'RAY_gcs_server_port_wait_time_s'
    ours = name not in os.environ
    os.environ.setdefault(name, TRIES)
    try:
        yield
    finally:
        if ours:
            del os.environ[name]


def _last_line(error: BaseException) -> str:
    """The first sentence of an error's last line: before it there are stack traces."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip().split('. ')[0][:300] if lines else type(error).__name__


# -- a call by hand: Ray itself would try for minutes where somebody else listens --------------

_PREFACE = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'
_DATA, _HEADERS, _RESET, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS = 1, 4


def _knock(address: str) -> bool:
    """Asks a head for its cluster's id, without a token.

    Returns:
      Whether it told, that is, whether it lets in anybody.

    Raises:
      ExchangeError: nobody listens, or somebody who is no Ray head.
    """
    host, _, port = address.rpartition(':')
    try:
        with socket.create_connection((host, int(port)), CONNECT_S) as line:
            if os.environ.get('RAY_USE_TLS', '0') in ('1', 'true'):
                return False  # certificates keep strangers out
            return _asked(line)
    except TimeoutError as error:
        raise ExchangeError(f'{address!r} does not answer as Ray would; {_WHERE}.') from error
    except (OSError, ValueError) as error:
        raise ExchangeError(f'Nobody answers at {address!r} ({error}); {_WHERE}.') from error


def _asked(line: socket.socket) -> bool:
    """One gRPC call over HTTP/2 (RFC 9113); a refusal is a head without a body."""
    fields = b'\x83\x86' + b''.join(  # POST, http; the rest literal (RFC 7541, 6.2.2)
        name + bytes([len(value)]) + value
        for name, value in [
            (b'\x04', b'/ray.rpc.NodeInfoGcsService/GetClusterId'),  # :path
            (b'\x01', b'ray'),  # :authority
            (b'\x0f\x10', b'application/grpc'),  # content-type
            (b'\x00\x02te', b'trailers'),
        ]
    )
    empty = bytes(5)  # an uncompressed gRPC message of length 0
    line.sendall(
        _PREFACE
        + _frame(_SETTINGS, 0, 0)
        + _frame(_HEADERS, _END_HEADERS, 1, fields)
        + _frame(_DATA, _END_STREAM, 1, empty)
    )
    first = True
    for kind, flags, stream in _frames(line):
        if first and kind != _SETTINGS:
            break
        first = False
        if stream == 1 and kind == _DATA:
            return True
        if kind == _GOAWAY or (stream == 1 and (kind == _RESET or flags & _END_STREAM)):
            return False
    raise TimeoutError('no HTTP/2 here')


def _frame(kind: int, flags: int, stream: int, payload: bytes = b'') -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _frames(line: socket.socket) -> Iterator[tuple[int, int, int]]:
    """(kind, flags, stream) of each frame that arrives."""
    with line.makefile('rb') as file:
        while len(head := file.read(9)) == 9:
            file.read(int.from_bytes(head[:3]))
            yield head[3], head[4], int.from_bytes(head[5:]) & 0x7FFFFFFF
