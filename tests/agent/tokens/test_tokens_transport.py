"""The transport against servers that speak raw bytes: what it keeps, takes for whole, and says."""

import asyncio
import contextlib
import itertools
import json
import os
import socket
import ssl
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spop_client import until
from tokens_support import hanging_resolver, issuer

from iamroles_agent.base.config import KeySettings
from iamroles_agent.tokens import transport as module
from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.transport import Transport, TransportError
from iamroles_scenarios.engine.certificates import Certificate, ProxyCertificates

OK = b"HTTP/1.1 200 OK\r\nContent-Type: Application/JSON; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CLOSING = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


class Server:
    """Gives its answers in turn; notes requests, and which connection each came on."""

    def __init__(self, *answers, host="127.0.0.1", tls=None):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.create_server((host, 0), family=family)
        self.port = self.sock.getsockname()[1]
        self.answers, self.tls = list(answers), tls
        self.requests, self.came_on, self.socks = [], [], []
        self.closed = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        with contextlib.suppress(OSError, ssl.SSLError):
            while True:
                sock, _ = self.sock.accept()
                self.socks.append(sock)
                threading.Thread(target=self._serve, args=(sock, len(self.socks)), daemon=True).start()

    def _serve(self, sock, number):
        with contextlib.suppress(OSError, ssl.SSLError):
            if self.tls is not None:
                sock = self.tls.wrap_socket(sock, server_side=True)
            with sock, sock.makefile("rb") as lines:
                while head := b"".join(itertools.takewhile(bytes.strip, lines)):
                    self.requests.append(head.decode())
                    self.came_on.append(number)
                    answer = self.answers.pop(0)
                    if isinstance(answer, threading.Event):
                        answer.wait(30)
                        break
                    sock.sendall(answer)
                    if answer[-1:] != OK[-1:] or b"close" in answer:
                        break
        self.closed.set()


async def get(transport, server, path="/keys", host="127.0.0.1", scheme="http", **about):
    return await transport.get(
        f"{scheme}://{host}:{server.port}{path}", **{"seconds": 5.0, "max_bytes": 1000, **about}
    )


@pytest.fixture
def transport():
    return Transport()


async def test_a_connection_is_kept_and_asked_again(transport):
    server = Server(OK, OK)

    for path, more in (("/a?b=%2f", {}), ("", {"headers": {"X-One": "1"}})):
        answer = await get(transport, server, path, **more)
        assert (answer.status, answer.content_type, answer.body) == (200, "application/json", b"{}")
    assert server.came_on == [1, 1]
    assert server.requests[0].splitlines() == [
        *("GET /a?b=%2f HTTP/1.1", f"Host: 127.0.0.1:{server.port}", "Accept-Encoding: identity"),
        "User-Agent: iamroles-agent",
    ]
    assert server.requests[1].startswith("GET / HTTP/1.1\r\n")
    assert "X-One: 1" in server.requests[1]


async def test_the_host_may_be_named_by_who_signed_it(transport):
    server = Server(OK)

    await get(transport, server, headers={"Host": "sts.eu-west-1.amazonaws.com"})

    assert server.requests[0].count("Host:") == 1
    assert "Host: sts.eu-west-1.amazonaws.com\r\n" in server.requests[0]


async def test_two_places_share_no_connection(transport):
    one, two = Server(OK, OK), Server(OK)

    for server in (one, two, one):
        await get(transport, server)

    assert (one.came_on, two.came_on) == ([1, 1], [1])


@pytest.mark.parametrize("first", [CLOSING, OK.replace(b"HTTP/1.1", b"HTTP/1.0")], ids=["close", "http-1.0"])
async def test_a_connection_that_the_server_closes_is_not_kept(transport, first):
    server = Server(first, OK)

    assert [(await get(transport, server)).body for _ in range(2)] == [b"{}"] * 2
    assert server.came_on == [1, 2]


@pytest.mark.parametrize("seen", [True, False], ids=["by-the-loop", "not-yet"])
@pytest.mark.parametrize("sent", [OK.replace(b"{}", b"[]"), b"x", None], ids=["answer", "byte", "end"])
async def test_a_connection_on_which_anything_came_while_it_was_idle_is_not_asked(transport, sent, seen):
    """An answer that nobody asked for would be taken for the next question's, also by a busy event loop.

    A server that goes on sending fills no memory.
    """
    server = Server(OK, OK)
    await get(transport, server)
    [(_, idle)] = transport._idle
    if sent:
        server.socks[0].sendall(sent)
    else:
        server.socks[0].shutdown(socket.SHUT_WR)
    if seen:
        await until(lambda: idle.spoilt and (sent is None or idle.transport.is_closing()))

    assert (await get(transport, server)).body == b"{}"
    assert server.came_on == [1, 2]


async def test_a_kept_connection_that_ends_without_a_word_is_replaced_at_once(transport):
    server = Server(OK, b"", OK)
    await get(transport, server)

    assert (await get(transport, server)).body == b"{}"
    assert server.came_on == [1, 1, 2]


async def test_a_kept_connection_that_breaks_an_answer_off_is_not_asked_twice(transport):
    server = Server(OK, OK[:9], OK)
    await get(transport, server)

    with pytest.raises(TransportError, match="ended early"):
        await get(transport, server)
    assert server.came_on == [1, 1]


async def test_one_call_at_most_waits_for_connections_that_the_network_forgot(transport):
    silent = threading.Event()
    server = Server(*[OK] * 4)
    await asyncio.gather(*[get(transport, server) for _ in range(3)])
    server.answers.insert(0, silent)

    with pytest.raises(TransportError, match="took too long"):
        await get(transport, server, seconds=0.2)
    silent.set()
    assert transport._idle == []
    assert (await get(transport, server)).body == b"{}"


@pytest.mark.parametrize("kept", [0.0, 0.1])
async def test_a_connection_is_not_kept_for_ever(transport, monkeypatch, kept):
    """The server's name may have another address by then, or its authority may be withdrawn."""
    monkeypatch.setattr(module, "_KEPT", kept)
    server = Server(OK, OK)
    await get(transport, server)

    assert await asyncio.to_thread(server.closed.wait, 10)
    assert (await get(transport, server)).body == b"{}"
    assert server.came_on == [1, 2]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "ended early"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{", "ended early"),
        *((CHUNKED + b"5\r\n{", "ended early"), (CHUNKED + b"1\r\n{\r\n", "ended early")),
        (CHUNKED + b"2\r\n{}x\r\n0\r\n\r\n{}", "malformed chunk"),
        (CHUNKED + b"+2\r\n{}\r\n0\r\n\r\nx", "malformed chunk"),
        (CHUNKED + b"ffffffff\r\nx", "an answer above 1000 bytes"),
        (CHUNKED + b"1\r\nx\r\n" * 1001 + b"x", "an answer above 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, "an answer above 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000, "an answer above 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000, "a head above 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70000, "a head above 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nAb\r\n\r\nx", "malformed header"),
        (CHUNKED + b"0\r\n" + b"a: b\r\n" * 20_000 + b"\r\nx", "a head above 65536 bytes"),
        (CHUNKED + (b"1;" + b"a" * 60_000 + b"\r\nx\r\n") * 2 + b"0\r\n\r\nx", "a head above 65536 bytes"),
        (OK.replace(b"\r\nC", b"\r\n C", 1) + b"x", "malformed header"),
        (OK.replace(b": ", b" : ") + b"x", "malformed header"),
        (OK.replace(b"; ", b"\n") + b"x", "malformed header"),
        (OK.replace(b"\r\n", b"\r\n:\r\n", 1) + b"x", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}x", "ambiguous"),
        (CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n") + b"2\r\n{}", "ambiguous"),
        (CHUNKED.replace(b"chunked", b"gzip, chunked") + b"2\r\n{}", "ambiguous"),
        (CHUNKED.replace(b"/1.1", b"/1.0") + b"2\r\n{}\r\n0\r\n\r\nx", "ambiguous"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK + b"x", "not an answer of HTTP/1"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9 + OK + b"x", "not an answer of HTTP/1"),
        *((b"SSH-2.0-x\r\n\r\nx", "not an answer of HTTP/1"), (b"", "ended early")),
    ],
    ids=["short", "short-closing", "short-chunk", "no-last-chunk", "long-chunk", "odd-chunk", "large-chunk",
         "many-chunks", "large", "large-open", "headers", "line", "no-header", "trailers", "extensions",
         "folded", "space", "line-feed", "no-name", "two-lengths", "odd-length", "both", "coding",
         "chunked-1.0", "switching", "interim", "other", "nothing"],
)  # fmt: skip
async def test_what_is_not_whole_is_no_answer(transport, answer, said):
    server = Server(answer, OK)

    with pytest.raises(TransportError, match=said):
        await get(transport, server)
    assert (await get(transport, server)).body == b"{}"
    assert server.came_on == [1, 2]


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED + b"1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n",
        CHUNKED + b"2\r\n{}\r\n0\r\nDigest: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
        b"HTTP/1.1 200\r\nContent-Length:2\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=["chunks", "trailers", "interim", "no-reason"],
)
async def test_what_is_whole_is_read(transport, answer):
    assert (await get(transport, Server(answer))).body == b"{}"


@given(st.data())
def test_an_answer_in_pieces_is_the_same(data):
    """An answer reads the same wherever its pieces are cut, and one cut short counts as none."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    whole = data.draw(st.sampled_from([head, CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"]))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole)), max_size=5)))
    missing = data.draw(st.integers(0, len(whole)))

    async def play():
        connection = module._Connection()
        reading = asyncio.ensure_future(module._read(connection, 100))
        for start, end in itertools.pairwise([0, *cuts, len(whole)]):
            connection.data_received(whole[start : min(end, len(whole) - missing)])
            await asyncio.sleep(0)
        connection.eof_received()
        return (await reading)[0].body

    if missing:
        with pytest.raises(TransportError, match="ended early"):
            asyncio.run(play())
    else:
        assert asyncio.run(play()) == b"hello"


async def test_the_next_version_of_ip(transport):
    try:
        server = Server(OK, host="::1")
    except OSError:
        pytest.skip("this host has no IPv6")

    await get(transport, server, host="[::1]")

    assert f"Host: [::1]:{server.port}\r\n" in server.requests[0]


async def test_nobody_there_and_nobody_who_answers(transport):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(TransportError, match=r"timed out|took too long"):
            await transport.get(f"http://127.0.0.1:{port}/", seconds=0.1, max_bytes=1)
    for url in (f"http://127.0.0.1:{port}/", "http://nobody.invalid/", f"http://{64 * 'a'}.invalid/"):
        with pytest.raises(TransportError, match="cannot connect"):
            await transport.get(url, seconds=5.0, max_bytes=1)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_call_that_is_given_up_leaves_no_connection(transport, scheme):
    """Also in the midst of a TLS handshake, where nothing belongs to the transport yet."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/"
        call = asyncio.ensure_future(transport.get(url, seconds=60.0, max_bytes=1))
        came, _ = await asyncio.to_thread(silent.accept)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        came.settimeout(10)

        with came, contextlib.suppress(ConnectionResetError):
            while await asyncio.to_thread(came.recv, 4096):
                pass  # until the other end is closed, or this times out
    assert transport._idle == []


async def test_calls_that_wait_for_a_name_share_a_thread_until_their_deadline(transport, monkeypatch):
    """However many credentials a stranger forges while the resolver hangs."""
    server, (asked, hang) = Server(OK), hanging_resolver(monkeypatch)
    calls = [get(transport, server, seconds=0.1) for _ in range(16)]
    given_up = await asyncio.gather(*calls, return_exceptions=True)

    assert {str(error) for error in given_up} == {"the answer took too long"}
    assert len(asked) == 1
    assert (await get(transport, server)).body == b"{}"
    assert transport._resolving == {}
    hang.set()


async def test_an_address_that_answers_nothing_keeps_none_of_the_others_waiting(transport, monkeypatch):
    """A listener whose queue is full drops what comes, as a host that is gone."""
    server = Server(OK)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        silent, refused = full.getsockname(), ("127.0.0.1", 1)
        found = [
            (socket.AF_INET, 1, 6, "", address) for address in (refused, silent, server.sock.getsockname())
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

        assert (await get(transport, server, seconds=15)).body == b"{}"


async def test_kept_connections_are_bounded(transport, monkeypatch):
    monkeypatch.setattr(module, "_IDLE", 2)
    servers = [Server(OK, OK) for _ in range(3)]
    for server in servers:
        await get(transport, server)

    assert await asyncio.to_thread(servers[0].closed.wait, 5)
    assert len(transport._idle) == 2


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: 1", "/ü"])
async def test_a_target_that_is_no_uri_is_not_sent(transport, path):
    with pytest.raises(TransportError):
        await get(transport, Server(OK), path)


async def test_a_certificate_must_be_of_an_authority(transport, monkeypatch, tmp_path):
    site, shown = ProxyCertificates(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (pem,) = site.files.values()
    (tmp_path / "site.pem").write_text(pem)
    shown.load_cert_chain(tmp_path / "site.pem")
    server = Server(OK, OK, tls=shown)
    url = f"https://127.0.0.1:{server.port}"
    led = json.dumps({"issuer": url, "jwks_uri": "http://127.0.0.1/keys"}).encode()
    server.answers.append(OK.replace(b": 2", b": %d" % len(led)).removesuffix(b"{}") + led)

    with pytest.raises(TransportError, match="its certificate is not accepted: self-signed"):
        await get(transport, server, scheme="https")
    monkeypatch.setattr(module, "_authorities", lambda: site.tls)
    assert [(await get(transport, server, scheme="https")).body for _ in range(2)] == [b"{}"] * 2
    assert server.came_on == [2, 2]
    entry = issuer(issuer=url, jwks_uri=None, insecure_http=True)
    source = KeySource(entry, KeySettings(), transport, on_loss=lambda: None)
    with pytest.raises(TransportError, match="http: only https is called"):
        await source._discover()


def test_other_authorities_need_no_restart(monkeypatch, tmp_path):
    trusted = tmp_path / "authorities.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    trusted.write_text(Certificate().public)

    first = module._authorities()
    assert module._authorities() is first
    trusted.write_text(Certificate().public + Certificate().public)
    os.utime(trusted, (1, 1))

    assert [each.cert_store_stats()["x509"] for each in (first, module._authorities())] == [1, 2]
