"""Finding a Ray cluster, or starting one: addresses, tokens, who answers. Starts none."""

import contextlib
import os
import socket
import socketserver
import threading
import time

import pytest

from seqtrain import exchange
from seqtrain.exchange.transport import cluster
from seqtrain.exchange.transport import ray as ray_transport


def test_a_wrong_address_gets_one_sentence_at_once():
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    started = time.monotonic()
    for address in (f'127.0.0.1:{port}', 'nowhere'):
        with pytest.raises(exchange.ExchangeError, match='Nobody answers'):
            ray_transport.start(address)
    assert time.monotonic() - started < 30


@contextlib.contextmanager
def answering(answer):
    """A port where somebody says `answer` to whatever comes."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(answer)
            self.rfile.read()  # until the caller hangs up

    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f'127.0.0.1:{server.server_address[1]}'
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize('answer', [b'', b'HTTP/1.0 400 Bad request\r\n\r\n'])
def test_an_address_where_somebody_else_listens_is_not_waited_for(answer, monkeypatch):
    monkeypatch.setattr(cluster, 'CONNECT_S', 0.2)
    with answering(answer) as address, pytest.raises(exchange.ExchangeError, match='as Ray would'):
        ray_transport.start(address)


def test_a_cluster_that_asks_for_no_token_is_not_joined():
    settings = cluster._frame(cluster._SETTINGS, 0, 0)
    head = cluster._frame(cluster._HEADERS, cluster._END_HEADERS, 1)
    told = cluster._frame(cluster._DATA, 0, 1, b'the id')
    with answering(settings + head + told) as address:
        with pytest.raises(exchange.ExchangeError, match='RAY_AUTH_MODE=token'):
            ray_transport.start(address)
        assert cluster._knock(address)
    refused = cluster._frame(cluster._HEADERS, cluster._END_HEADERS | cluster._END_STREAM, 1)
    with answering(settings + refused) as address:
        assert not cluster._knock(address)


def test_a_ray_of_our_own_has_its_time_and_no_wrong_token(monkeypatch):
    monkeypatch.setenv('RAY_AUTH_MODE', 'token')
    monkeypatch.setenv('RAY_AUTH_TOKEN', 'some token')
    patience = []

    def init(**options):
        patience.append([name for name in os.environ if name.endswith('port_wait_time_s')])
        raise RuntimeError('Timed out waiting for file gcs_server_port')

    monkeypatch.setattr(pytest.importorskip('ray'), 'init', init)
    with pytest.raises(exchange.ExchangeError, match=r'did not start on this machine.*Timed out'):
        ray_transport.start()
    assert patience == [[]]
