"""The client of live streams: what it has seen, and up to when."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import CheckFailed, TooSlow, Untestable
from iamroles_scenarios.checks.live import crowd, fixture, revoking
from iamroles_scenarios.checks.live.fixture import SOCKET, UPLOAD, LiveBench
from iamroles_scenarios.checks.live.multiplexed import H2Client
from iamroles_scenarios.checks.live.over_h2 import offered
from iamroles_scenarios.checks.live.stream import BEAT, ObservedStream, Stream, StreamShape
from iamroles_scenarios.engine import bench
from iamroles_scenarios.jose.encoding import b64url

RESET = b"\0\0\4\3\0\0\0\0\1\0\0\0\x08"
"""RST_STREAM (RFC 9113, section 6.4) of the first stream."""
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.fixture
def over_h2():
    """Give a client of HTTP/2, and the proxy's end of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        proxy = SimpleNamespace(host=host, port=port)
        here = SimpleNamespace(world=SimpleNamespace(proxy=proxy), seconds=lambda _: 0)
        with closing(H2Client(here)) as client, closing(server.accept()[0]) as line:
            yield client, line


def test_a_late_reader_of_http_2_still_sees_an_end_that_came_in_time(over_h2):
    client, line = over_h2
    with ThreadPoolExecutor(1) as pool:
        stream = client.stream(SOCKET, "/", "e30." + b64url(b'{"exp": 1}') + ".")
        with client._lock:  # the reader stands
            line.sendall(RESET)
            ended = pool.submit(stream.until, time.time())
        assert ended.result()
        assert not client.fault
        looked = stream.looked
        line.sendall(SETTINGS)
        assert client._settled.wait(10)
        client.close()
        assert stream.looked == looked, "of what has ended nothing is known"


@pytest.mark.parametrize(
    ("said", "why"), [(b"", TooSlow), (SETTINGS, None), (b"HTTP/1.1 400 Bad Request\r\n\r\n", Untestable)]
)
def test_without_websockets_over_http_2_the_other_streams_are_played(over_h2, said, why):
    client, line = over_h2
    line.sendall(said)
    if why is Untestable:
        line.shutdown(socket.SHUT_WR)
        assert client.over.wait(10)
    elif said:
        assert client._settled.wait(10)
    with pytest.raises(why) if why else nullcontext():
        assert offered(client, [SOCKET, UPLOAD]) == [UPLOAD]


def test_an_upload_that_nobody_reads_for_a_while_has_not_ended(monkeypatch):
    monkeypatch.setattr(StreamShape, "beat", b"x" * (1 << 24))  # more than both kernels hold
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        here = SimpleNamespace(world=SimpleNamespace(proxy=SimpleNamespace(host=host, port=port)))
        token = "e30." + b64url(b'{"exp": 1}') + "."
        with closing(Stream(here, UPLOAD, "/", token)) as stream, closing(server.accept()[0]) as line:
            assert not stream.over.wait(10 * BEAT)
            while not stream.sent:
                assert line.recv(1 << 20), "it has ended"


@pytest.mark.parametrize(
    ("seen", "looked", "why"), [(0.5, 0.4, None), (3.0, 0.4, TooSlow), (3.0, 2.9, CheckFailed)]
)
def test_an_end_that_was_seen_too_late_proves_nothing_and_a_late_judge_costs_no_margin(
    monkeypatch, seen, looked, why
):
    monkeypatch.setattr(LiveBench, "failed", lambda _, what: CheckFailed(what))
    now = [0.0]
    for module in (bench, fixture):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: now[0]))
    here = LiveBench(SimpleNamespace(seconds=lambda seconds: seconds), SimpleNamespace(suffix=""))
    stream = ObservedStream(SOCKET, "e30." + b64url(b'{"exp": 0}') + ".")
    stream.until = lambda _: not now.__setitem__(0, 9.0)  # its reader, or this thread, was late
    stream.ended, stream.looked = seen, looked

    for hold in (lambda: here.must_end([stream], "it"), lambda: here.must_expire([stream])):
        now[0] = 0.0
        with recording.recorded() as found, pytest.raises(why) if why else nullcontext():
            hold()
        assert found.narrowest in (None, recording.Wait("it", seen, 1.0))


@pytest.mark.parametrize("half", [False, True])
def test_a_proxy_may_end_a_websocket_when_its_client_closes_its_side(monkeypatch, half):
    monkeypatch.setattr(LiveBench, "failed", lambda _, what: CheckFailed(what))
    target = SimpleNamespace(seconds=lambda seconds: seconds / 100)
    here = LiveBench(target, SimpleNamespace(suffix=""))
    stream = ObservedStream(replace(SOCKET, half=half), "e30." + b64url(b'{"exp": 9999999999}') + ".")
    stream.status = 101
    stream._answered.set()
    stream.end()

    holds = [here.must_begin, lambda one: here.must_last([one], "it", 0), lambda one: here.must_expire([one])]
    for hold in holds:
        with nullcontext() if half else pytest.raises(CheckFailed):
            hold(stream)


@pytest.mark.parametrize(
    ("status", "patience", "late"), [(503, -1, True), (503, 600, False), (403, -1, False)]
)
def test_a_stream_that_was_refused_is_over_unless_the_proxy_gave_up(monkeypatch, status, patience, late):
    here = MagicMock(begin=lambda *_: SimpleNamespace(status=status), stretched=lambda _: 0)
    here.world.haproxy.processing = patience
    monkeypatch.setattr(revoking, "live_bench", lambda *_, **__: nullcontext(here))

    with pytest.raises(TooSlow) if late else nullcontext():
        revoking.under_way(None)


def test_a_process_that_judges_many_crowds_does_not_run_out_of_ports():
    assert all(crowd.preamble("192.0.2.7", port) for port in islice(crowd._PORTS, 1 << 16))
