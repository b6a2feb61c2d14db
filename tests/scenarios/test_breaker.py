"""The relay that breaks: each fault does what its name says, and all is well when it ends."""

import socket
import ssl
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import pytest
from listening import listening

from iamroles_scenarios.checks.derived.certificates import ROWS, shown
from iamroles_scenarios.checks.proxy import proof
from iamroles_scenarios.engine.certificates import Authority, context
from iamroles_scenarios.stage.breaker import FAULTS, Breaker
from iamroles_scenarios.wire.frames import Frame, FrameType


@pytest.fixture
def echo():

    def repeat(sock):
        while data := sock.recv(4096):
            sock.sendall(data)

    with listening(repeat) as address:
        yield address


@pytest.fixture
def breaker(echo):
    with Breaker("127.0.0.1", echo) as made:
        yield made


def connected(breaker):
    host, _, port = breaker.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def told(sock, data):
    """Return what comes back, until all did or the connection ended."""
    sock.sendall(data)
    back = b""
    while len(back) < len(data) and (piece := sock.recv(4096)):
        back += piece
    return back


@pytest.mark.parametrize("fault", ["", "late", "drip"])
def test_what_only_delays_loses_nothing(breaker, fault):
    if fault:
        breaker.breaks(fault)
    with connected(breaker) as sock:
        assert told(sock, b"abc" * 500) == b"abc" * 500
    assert (breaker.longest > 0) is (fault == "drip"), "the suite's own time, of a drip alone"
    breaker.mends()
    assert breaker.longest == 0


def test_a_reset_is_a_reset_in_the_middle(breaker):
    breaker.breaks("reset")
    with connected(breaker) as sock, pytest.raises(ConnectionError):
        told(sock, b"x" * 100_000)


def test_half_an_answer_ends_like_a_whole_one(breaker):
    breaker.breaks("half")
    with connected(breaker) as sock:
        assert len(told(sock, b"x" * 1000)) < 300


def test_nothing_passes_a_cut_until_it_is_mended(breaker):
    with connected(breaker) as sock:
        assert told(sock, b"a") == b"a"
        breaker.breaks("cut")
        sock.sendall(b"b")
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(10)
        breaker.mends()
        assert sock.recv(1) == b"b"


def test_a_port_that_was_refused_is_nobody_else_s_and_the_same_when_it_is_mended(breaker):
    host, _, port = breaker.address.rpartition(":")
    with connected(breaker) as sock:
        told(sock, b"a")
        breaker.breaks("refused")
        with pytest.raises(ConnectionError):
            told(sock, b"b") or told(sock, b"c") or sock.sendall(b"d") or told(sock, b"e")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((host, int(port)))
    with pytest.raises(ConnectionRefusedError):
        connected(breaker)
    breaker.mends()
    with connected(breaker) as sock:
        assert told(sock, b"abc") == b"abc"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mended_relay_passes_everything(breaker, fault):
    with connected(breaker):
        breaker.breaks(fault)
    breaker.mends()
    with connected(breaker) as sock:
        assert told(sock, b"abc" * 500) == b"abc" * 500


def test_the_same_seed_breaks_at_the_same_byte(echo):
    lengths = []
    for _ in range(2):
        with Breaker("127.0.0.1", echo, seed=5) as breaker:
            breaker.breaks("half")
            with connected(breaker) as sock:
                lengths.append(len(told(sock, b"x" * 1000)))
    assert lengths[0] == lengths[1]


def test_an_unknown_fault_is_told(breaker):
    with pytest.raises(ValueError, match="known are refused, cut"):
        breaker.breaks("rain")


@pytest.mark.parametrize("fault", ["", "tls"])
def test_its_end_is_no_error_to_a_connection_that_is_not_there_yet(caplog, fault):
    with ExitStack() as held:
        full = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        held.enter_context(socket.create_connection(full.getsockname()))  # the next one waits
        breaker = held.enter_context(Breaker("127.0.0.1", f"127.0.0.1:{full.getsockname()[1]}"))
        if fault:
            breaker.shows(context(ssl.PROTOCOL_TLS_SERVER, AUTHORITY.issue("agent")))
        held.enter_context(connected(breaker))
        assert breaker.wait_tried(10)
        breaker.close()

    assert not caplog.messages


AUTHORITY = Authority()
CLIENT = ssl.create_default_context(cadata=AUTHORITY.public)


@pytest.mark.parametrize("row", [row for row in ROWS if "certificate" in row], ids=lambda row: row["what"])
def test_a_client_believes_the_sound_certificate_alone(breaker, row):
    """Else a row proves nothing: the wrong server must be wrong, and nothing else."""
    breaker.shows(shown(row, AUTHORITY, "127.0.0.1"))
    with connected(breaker) as sock, pytest.raises(ssl.SSLError):
        CLIENT.wrap_socket(sock, server_hostname="127.0.0.1")
    assert breaker.wait_tried(10)

    breaker.shows(shown({}, AUTHORITY, "127.0.0.1"))
    with connected(breaker) as sock:
        assert breaker.wait_tried(10)
        breaker.shows(None)
        with suppress(OSError), CLIENT.wrap_socket(sock, server_hostname="127.0.0.1") as line:
            assert not told(line, b"abc"), "its handshake was under way"

    breaker.shows(shown({}, AUTHORITY, "127.0.0.1"))
    with connected(breaker) as sock, CLIENT.wrap_socket(sock, server_hostname="127.0.0.1") as line:
        assert told(line, b"abc" * 500) == b"abc" * 500


def test_a_hello_that_comes_in_two_records_of_tls_is_a_hello():
    def greets(sock):
        with context(ssl.PROTOCOL_TLS_SERVER, AUTHORITY.issue("agent")).wrap_socket(sock, True) as line:
            line.recv(4096)
            said = Frame(FrameType.AGENT_HELLO).encode()
            for piece in (said[:4], said[4:]):
                line.sendall(piece)

    with listening(greets) as address:
        here = SimpleNamespace(seconds=float)
        assert proof._greeted(here, AUTHORITY.issue("proxy"), address)
