"""The transport against servers that speak raw bytes: what it keeps, takes for whole, and says."""

import contextlib
import itertools
import os
import socket
import ssl
import threading

import pytest

from iamroles_agent.tokens import transport as module
from iamroles_agent.tokens.transport import Transport, TransportError
from iamroles_scenarios.engine.certificates import Certificate, ProxyCertificates

OK = b"HTTP/1.1 200 OK\r\nContent-Type: Application/JSON; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}"
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
                    sock.sendall(answer)
                    if answer[-1:] != OK[-1:] or b"close" in answer:
                        break
        self.closed.set()


def get(transport, server, path="/keys", host="127.0.0.1", scheme="http", **about):
    return transport.get(
        f"{scheme}://{host}:{server.port}{path}", **{"timeout": 5.0, "max_bytes": 1000, **about}
    )


@pytest.fixture
def transport():
    with contextlib.closing(Transport()) as made:
        yield made


def test_a_connection_is_kept_and_asked_again(transport):
    server = Server(OK, OK)

    answers = [get(transport, server, "/a?b=%2f"), get(transport, server, "", headers={"X-One": "1"})]

    assert [(each.status, each.content_type, each.body) for each in answers] == [
        (200, "application/json", b"{}")
    ] * 2
    assert server.came_on == [1, 1]
    assert server.requests[0].splitlines() == [
        "GET /a?b=%2f HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "Accept-Encoding: identity",
        "User-Agent: iamroles-agent",
    ]
    assert server.requests[1].startswith("GET / HTTP/1.1\r\n")
    assert "X-One: 1" in server.requests[1]


def test_the_host_may_be_named_by_who_signed_it(transport):
    server = Server(OK)

    get(transport, server, headers={"Host": "sts.eu-west-1.amazonaws.com"})

    assert server.requests[0].count("Host:") == 1
    assert "Host: sts.eu-west-1.amazonaws.com\r\n" in server.requests[0]


def test_two_places_share_no_connection(transport):
    one, two = Server(OK, OK), Server(OK)

    for server in (one, two, one):
        get(transport, server)

    assert (one.came_on, two.came_on) == ([1, 1], [1])


@pytest.mark.parametrize("first", [CLOSING, OK.replace(b"HTTP/1.1", b"HTTP/1.0")], ids=["close", "http-1.0"])
def test_a_connection_that_the_server_closes_is_not_kept(transport, first):
    server = Server(first, OK)

    assert get(transport, server).body == get(transport, server).body == b"{}"
    assert server.came_on == [1, 2]


def test_a_connection_that_ended_while_it_was_idle_is_not_asked(transport):
    server = Server(OK, OK)
    get(transport, server)
    [(_, idle)] = transport._idle
    idle.sock.shutdown(socket.SHUT_WR)
    assert server.closed.wait(5)

    assert get(transport, server).body == b"{}"
    assert server.came_on == [1, 2]


def test_what_was_not_asked_for_is_no_answer(transport):
    """It would be taken for the next question's."""
    server = Server(OK, OK)
    get(transport, server)
    server.socks[0].sendall(OK.replace(b"{}", b"[]"))

    assert get(transport, server).body == b"{}"
    assert server.came_on == [1, 2]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, "an answer above 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000, "an answer above 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "HTTPException"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70000 + b"\r\n\r\n", "LineTooLong"),
        (b"SSH-2.0-x\r\n", "BadStatusLine"),
        (b"", "RemoteDisconnected"),
    ],
    ids=["short", "short-closing", "short-chunk", "no-last-chunk", "large", "large-open", "headers", "line",
         "other", "nothing"],
)  # fmt: skip
def test_what_is_not_whole_is_no_answer(transport, answer, said):
    server = Server(answer, OK)

    with pytest.raises(TransportError, match=said):
        get(transport, server)
    assert get(transport, server).body == b"{}"
    assert server.came_on == [1, 2]


def test_chunks_are_read(transport):
    chunks = b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
    server = Server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)

    assert get(transport, server).body == b"{}"


def test_the_next_version_of_ip(transport):
    try:
        server = Server(OK, host="::1")
    except OSError:
        pytest.skip("this host has no IPv6")

    get(transport, server, host="[::1]")

    assert f"Host: [::1]:{server.port}\r\n" in server.requests[0]


def test_nobody_there_and_nobody_who_answers(transport):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(TransportError, match=r"timed out|took too long"):
            transport.get(f"http://127.0.0.1:{port}/", timeout=0.1, max_bytes=1)
    with pytest.raises(TransportError, match="cannot connect"):
        transport.get(f"http://127.0.0.1:{port}/", timeout=5.0, max_bytes=1)
    with pytest.raises(TransportError, match="cannot connect"):
        transport.get("http://nobody.invalid/", timeout=5.0, max_bytes=1)


def test_kept_connections_are_bounded(transport, monkeypatch):
    monkeypatch.setattr(module, "_IDLE", 2)
    servers = [Server(OK, OK) for _ in range(3)]
    for server in servers:
        get(transport, server)

    assert servers[0].closed.wait(5)
    assert len(transport._idle) == 2


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: 1", "/ü"])
def test_a_target_that_is_no_uri_is_not_sent(transport, path):
    with pytest.raises(TransportError):
        get(transport, Server(OK), path)


def test_a_certificate_must_be_of_an_authority(transport, monkeypatch, tmp_path):
    site, shown = ProxyCertificates(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (pem,) = site.files.values()
    (tmp_path / "site.pem").write_text(pem)
    shown.load_cert_chain(tmp_path / "site.pem")
    server = Server(OK, OK, tls=shown)

    with pytest.raises(TransportError, match="its certificate is not accepted: self-signed"):
        get(transport, server, scheme="https")
    monkeypatch.setattr(module, "_authorities", lambda: site.tls)
    assert get(transport, server, scheme="https").body == get(transport, server, scheme="https").body == b"{}"
    assert server.came_on == [2, 2]


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
