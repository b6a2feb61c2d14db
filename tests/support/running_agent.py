"""A connection to an agent, a question for it, and a token that it allows."""

import socket
import time
from ipaddress import ip_address

from programs import PATIENCE
from spop_transcript import check_message, cut, hello, notify, variables
from tokens_support import AUDIENCE, ROLE, mint

from iamroles_agent.spop.values import DataType


def question(token, path="/orders/1"):
    """The `iam-check` message."""
    return check_message(
        authorization=(DataType.STRING, f"Bearer {token}".encode()),
        path=(DataType.STRING, path.encode()),
        src=(DataType.IPV4, ip_address("192.0.2.1")),
    )


def connect(address):
    assert isinstance(address, str)
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        sock.connect(address.removeprefix("unix:"))
        return sock
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE)


def receive(sock):
    """The variables of the next ACK (none of another frame)."""

    def exactly(size):
        data = b""
        while len(data) < size:
            more = sock.recv(size - len(data))
            assert more, "the agent closed"
            data += more
        return data

    head = exactly(4)
    (raw,) = cut(head + exactly(int.from_bytes(head, "big")))
    if raw.type != 103:
        return {}
    return variables(raw.data[raw.start : raw.end])


def answered(sock, asked=None):
    """Ask the first question of a connection, and return the answer."""
    sock.sendall(hello() + notify(asked))
    receive(sock)
    return receive(sock)


def good_token(issuer):
    """A token that lives for an hour from now."""
    now = int(time.time())
    return mint({
        "iss": issuer, "aud": AUDIENCE, "sub": "user@example.com", "jti": "id-1", "iat": now,
        "exp": now + 3600, "roles": [ROLE],
    })  # fmt: skip
