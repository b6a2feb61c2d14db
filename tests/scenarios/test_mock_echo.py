"""The echo backends, as a process, over sockets."""

import base64
import http.client
import itertools
import json
import os
import socket
import struct
from contextlib import contextmanager, nullcontext

import pytest
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_process import running

from iamroles_scenarios.base import process
from iamroles_scenarios.mock.echo import WebSocketEcho, main


@pytest.fixture(scope="module")
def echo():
    with running("mock.echo", "--backend", "orders-ro", "--backend", "orders-rw") as mock:
        yield mock


@pytest.mark.parametrize("backends", [["a=65536"], ["a=http"], ["=9002"], ["a=0", "a"]])
def test_what_cannot_be_served_as_asked_is_refused(monkeypatch, backends):
    monkeypatch.setattr(process, "run", lambda served: served.close())
    with pytest.raises(SystemExit, match="2"):
        main([f"--backend={backend}" for backend in backends])


@contextmanager
def connected(echo, backend="orders-ro"):
    host, port = echo.ready["backends"][backend].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        yield connection


def report(stream):
    """Read an answer, and return what it tells of its request."""
    stream.readline()
    head = http.client.parse_headers(stream)
    return json.loads(stream.read(int(head["Content-Length"])))


def test_each_backend_tells_its_name_and_what_it_received(echo):
    for name, address in echo.ready["backends"].items():
        url = f"http://{address}/a%2Fb//c?q=1"
        told = urllib3.request("POST", url, body=b"12345", headers={"X-A": "1"}).json()

        assert (told["backend"], told["method"], told["path"]) == (name, "POST", "/a%2Fb//c?q=1")
        assert ["X-A", "1"] in told["headers"]
        assert told["body"] == 5


def test_headers_keep_order_spelling_and_repetition(echo):
    with connected(echo) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx-iam-Role: a\r\nHost: h\r\nx-iam-Role:  b \r\n\r\n")

        told = report(connection.makefile("rb"))

    assert told["headers"] == [["x-iam-Role", "a"], ["Host", "h"], ["x-iam-Role", "b"]]


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_pipelined_requests_in_any_segments_are_answered_in_order(echo, step):
    head = b"POST /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n"
    sized = b"PUT /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nGET "
    data = chunked + sized + b"GET /3 HTTP/1.1\r\nHost: h\r\n\r\n"
    with connected(echo) as connection:
        for start in range(0, len(data), step):
            connection.sendall(data[start : start + step])
        connection.shutdown(socket.SHUT_WR)
        stream = connection.makefile("rb")
        reports = [report(stream) for _ in range(3)]

    assert [(each["path"], each["body"]) for each in reports] == [("/1", 5), ("/2", 4), ("/3", 0)]


@pytest.mark.parametrize(
    "bad",
    [
        *(b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n"),
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        *(b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"x" * 70_000),
    ],
)
def test_what_is_not_http_is_refused(echo, bad):
    with connected(echo) as connection:
        connection.sendall(bad)

        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 400 ")


def test_connection_close_is_honoured(echo):
    with connected(echo) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")

        assert b"Connection: close" in connection.makefile("rb").read()


def masked(opcode, payload, *, final=True):
    mask, size = os.urandom(4), len(payload)
    first = (0x80 if final else 0) | opcode
    head = struct.pack("!BB", first, 0x80 | size) if size < 126 else struct.pack("!BBH", first, 0xFE, size)
    return head + mask + bytes(octet ^ mask[index % 4] for index, octet in enumerate(payload))


def unmasked(opcode, payload):
    first, size = 0x80 | opcode, len(payload)
    head = struct.pack("!BB", first, size) if size < 126 else struct.pack("!BBH", first, 126, size)
    return head + payload


def handshake(path):
    key = base64.b64encode(bytes(16)).decode()
    fields = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: h\r\n{fields}\r\n".encode()


def test_websocket_echoes_pongs_and_closes(echo):
    with connected(echo) as connection:
        connection.sendall(handshake("/live") + masked(1, b"hello") + masked(9, b"p"))
        connection.sendall(masked(1, b"a" * 200, final=False) + masked(0, b"b") + masked(8, b"\x03\xe8"))
        data = connection.makefile("rb").read()

    head, _, frames = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"X-Echo-Backend: orders-ro" in head
    expected = [(1, b"hello"), (10, b"p"), (1, b"a" * 200 + b"b"), (8, b"\x03\xe8")]
    assert frames == b"".join(unmasked(*each) for each in expected)


@pytest.mark.parametrize("quiet", [False, True])
def test_an_endless_websocket_goes_on_when_its_client_has_closed_its_side(echo, quiet):
    with connected(echo) as connection, connection.makefile("rb") as stream:
        connection.sendall(handshake("/live?endless=1" + "&quiet=1" * quiet))
        connection.shutdown(socket.SHUT_WR)
        http.client.parse_headers(stream)
        connection.settimeout(0.3 if quiet else 10)

        with pytest.raises(TimeoutError) if quiet else nullcontext():
            assert stream.read(6) == unmasked(9, b"") * 3


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_websocket_echo_does_not_depend_on_segments(messages, step):
    data, echo = b"".join(masked(2, message) for message in messages), WebSocketEcho()

    out = b"".join(echo.feed(data[start : start + step]) for start in range(0, len(data), step))

    assert out == b"".join(unmasked(2, message) for message in messages)


def test_unmasked_frames_are_a_protocol_error():
    echo = WebSocketEcho()

    assert echo.feed(unmasked(1, b"x")) == unmasked(8, struct.pack("!H", 1002))
    assert echo.closed


def test_event_stream_goes_on_until_the_client_leaves(echo):
    with connected(echo) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\n\r\n")
        stream = connection.makefile("rb")
        data = (line.strip()[6:] for line in stream if line.startswith(b"data: "))
        lines = list(itertools.islice(data, 3))

    assert json.loads(lines[0])["path"] == "/live"
    assert lines[1:] == [b"1", b"2"]


def test_requests_are_counted_and_the_question_is_not(echo):
    address = echo.ready["backends"]["orders-rw"]
    url = f"http://{address}/_control/counters"
    before = urllib3.request("GET", url).json()

    urllib3.request("GET", f"http://{address}/")

    more = {count: before[count] + 1 for count in ("requests", "reached")}
    assert urllib3.request("GET", url).json() == {"backend": "orders-rw", **more}
