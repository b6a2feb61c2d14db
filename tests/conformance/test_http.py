"""The blunt HTTP client: what is written is what travels."""

from contextlib import contextmanager

import pytest
from listening import listening, nowhere

from iamroles_scenarios.base.errors import HttpFault
from iamroles_scenarios.engine.http import HttpConnection, redacted, request_bytes
from iamroles_scenarios.engine.players import challenges


@contextmanager
def _server(*answers):
    """Answers each request on a connection with the next answer, then closes."""
    received: list[bytes] = []

    def serve(connection):
        for answer in answers:
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(4096)
            received.append(data)
            connection.sendall(answer)

    with listening(serve) as address:
        yield _pair(address), received


def _pair(address):
    host, _, port = address.rpartition(":")
    return host, int(port)


def test_bytes_travel_as_they_are():
    raw = request_bytes("GET", "/a//..\\\x01\u00e9", [("X_Odd", "1"), ("X_Odd", "2")])
    with _server(b"HTTP/1.1 204 No Content\r\n\r\n") as (address, received):
        connection = HttpConnection(address, 5)
        answer = connection.exchange("GET", raw)
        connection.close()

    assert received == [b"GET /a//..\\\x01\xe9 HTTP/1.1\r\nX_Odd: 1\r\nX_Odd: 2\r\n\r\n"]
    assert answer.status == 204


def test_a_connection_is_kept():
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nWWW-Authenticate: Bearer\r\n\r\none"
    two = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo"
    raw = request_bytes("GET", "/", [])
    with _server(one, two) as (address, _):
        connection = HttpConnection(address, 5)
        first, second = connection.exchange("GET", raw), connection.exchange("GET", raw)
        connection.close()

    assert (first.body, second.body) == (b"one", b"two")
    assert first.port == second.port
    assert first.all("www-authenticate") == ["Bearer"]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        (['Bearer realm="iam", error="x"', "DPoP algs=ES256"], {"Bearer": "iam x", "DPoP": "ES256"}),
        (
            ['bearer Realm="iam",error=x , dPoP\talgs="ES256 ES384"'],
            {"Bearer": "iam x", "DPoP": "ES256 ES384"},
        ),
        (
            ['Bearer,Negotiate a/b==, ,Basic realm = "a, \\"b\\"=c"'],
            {"Bearer": "", "Negotiate": "", "Basic": 'a, "b"=c'},
        ),
        (['realm="of none"', "Bearer", 'Bearer error="x"'], {"Bearer": "x"}),
        ([], {}),
    ],
)
def test_a_challenge_is_read_in_each_spelling_that_the_rfc_permits(fields, found):
    head = "".join(f"WWW-Authenticate: {field}\r\n" for field in fields)
    with _server(f"HTTP/1.1 401 X\r\n{head}Content-Length: 0\r\n\r\n".encode()) as (address, _):
        connection = HttpConnection(address, 5)
        read = challenges(connection.exchange("GET", request_bytes("GET", "/", [])))
        connection.close()

    assert {scheme: " ".join(named.values()) for scheme, named in read.items()} == found


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        *((b"", None), (b"HTTP/1.1 200 O", "within the head"), (b"HTTP/1.1 200 OK\r\n", "within the head")),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "within the head"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", "within the head"),
    ],
)
def test_no_head_or_half_a_head_is_a_fault(cut, said):
    with _server(cut) as (address, _):
        connection = HttpConnection(address, 5)
        with pytest.raises(HttpFault, match=said):
            connection.exchange("GET", request_bytes("GET", "/", []))
        connection.close()


def test_nobody_there_is_a_fault():
    with pytest.raises(HttpFault, match="no connection to HAProxy"):
        HttpConnection(_pair(nowhere()), 5)


def test_tokens_are_not_shown():
    token = "eyJhbGciOiJSUzI1NiJ9." + "x" * 40
    shown = redacted(f"Authorization: Bearer {token}", [token])

    assert token not in shown
    assert "<61 characters>" in shown
