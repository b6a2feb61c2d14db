"""What a request is while it waits for its answer, and what may become of the answer, on every HAProxy."""

import base64
import contextlib
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import puppet_gate
import pytest
from puppet_gate import YES, ask, connect, h2, raw, record
from waiting import until

from iamroles_tools.haproxy import render

world = puppet_gate.world


def waiting(world):
    """Return the rows of `iam-wait` by key: how many streams use each, and its end."""
    rows = re.findall(r" key=(\S+) use=(\d+) .*gpt0=(\d+)", world.haproxy.runtime("show table iam-wait"))
    return {key.replace("\\", ""): (int(use), int(end)) for key, use, end in rows}


@pytest.mark.parametrize("client", [ask, h2])
def test_a_request_that_waits_is_in_the_list_exactly_as_long_as_it_waits(world, client):
    yes = {**YES, "ticket": f"who.{client.__name__}"}
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        # Longer than the table keeps a row that is not used.
        answer = pool.submit(client, world, "/wait?after=2500", yes)
        [key] = until(lambda: [key for key in waiting(world) if key.endswith(f"|{yes['ticket']}")])
        assert f" id={key.partition('|')[0]} " in world.haproxy.runtime("show sess all")
        until(lambda: waiting(world).get(key) != (1, YES["expires"]))
        assert time.monotonic() - began >= 2.5
        assert getattr(answer.result(), "status", answer.result()) == 200
    assert waiting(world).get(key, (0,))[0] == 0


def test_a_request_without_a_ticket_is_in_the_list_too(world):
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, world, "/wait?after=500")
        until(lambda: [key for key, (use, _) in waiting(world).items() if key.endswith(("|", "|-")) and use])
        assert answer.result().status == 200


# --- whatever a server answers --------------------------------------------------------------------------

ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The answer to the key of RFC 6455 section 1.3."""
WEBSOCKET = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
WEBSOCKET.append("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
ASKED = {
    "nothing": [],
    "connection": ["Connection: Upgrade"],
    "websocket without connection": ["Upgrade: websocket"],
    "h2c": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
    "unknown": ["Connection: Upgrade", "Upgrade: nobodys/1"],
    "two": [*WEBSOCKET, "Upgrade: nobodys/1"],
    "websocket": WEBSOCKET,
}
SWITCH = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "
_BARE = (100, 101, 102, 103, 199, 204, 205, 304, 999)
_EMPTY = (200, 401, 407, 426, 500, 503)
BROKEN = "early, then another"
"""HAProxy 3.0.11 loops for ever on this answer, whatever its configuration (docs/haproxy.md)."""
ANSWERS = {
    **{f"status {status}": f"HTTP/1.1 {status} X\r\n\r\n" for status in _BARE},
    **{f"empty {status}": f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n" for status in _EMPTY},
    "to another": f"{SWITCH}nobodys/1\r\n\r\n",
    "to h2c": f"{SWITCH}h2c\r\n\r\n",
    "to websocket, unproven": f"{SWITCH}websocket\r\n\r\n",
    "to websocket": f"{SWITCH}websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n",
    BROKEN: f"HTTP/1.1 103 X\r\n\r\n{SWITCH}nobodys/1\r\n\r\n",
    "whole, then another": f"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n{SWITCH}nobodys/1\r\n\r\n",
    "200 that upgrades": "HTTP/1.1 200 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "without an end": "HTTP/1.1 200 X\r\n\r\n",
    "half a head": "HTTP/1.1 200 X\r\nContent-Le",
    "half a body": "HTTP/1.1 200 X\r\nContent-Length: 10\r\n\r\nhalf",
    "half a chunk": "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf",
    "a chunk of garbage": "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "two lengths": "HTTP/1.1 200 X\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhalf",
    "another protocol": "SSH-2.0-x\r\n",
    "another version": "HTTP/2.0 200 X\r\n\r\n",
    "garbage": "\0\1\2\3",
}  # fmt: skip
MARK = b"through the tunnel\r\n\r\n"


def every(world, expires):
    """Ask both backends for each answer in each way; yield what was asked, and the connection."""
    for backend in ("alpha", "beta"):
        for said, answer in ANSWERS.items():
            if said == BROKEN and world.haproxy.version.startswith("3.0."):
                continue
            for wanted, headers in ASKED.items():
                target = "/raw?raw=" + base64.urlsafe_b64encode(answer.encode()).decode().rstrip("=")
                connection = connect(world)
                yes = {**YES, "backend": backend, "expires": expires}
                connection.sendall(raw(target, yes, headers=headers))
                yield (backend, said, wanted), connection


def arrived(connection):
    """Return what has come by now."""
    connection.setblocking(False)
    text = b""
    with contextlib.suppress(OSError):
        while piece := connection.recv(65_536):
            text += piece
    return text


def said_into(connection):
    with contextlib.suppress(OSError):
        connection.setblocking(True)
        connection.sendall(MARK)


MINE = ("alpha", "to websocket", "websocket")


def passed(world, life):
    """Return where a mark came back, before and after the end; None if the host is slow."""
    end = int(time.time()) + life
    with contextlib.ExitStack() as stack:
        open_ones = {what: stack.enter_context(one) for what, one in every(world, end)}
        for connection in open_ones.values():
            said_into(connection)
        until(lambda: MARK in open_ones[MINE].recv(65_536, socket.MSG_PEEK) or time.time() > end)
        ask(world)  # what was sent before has gone both ways
        through = {what for what, one in open_ones.items() if MARK in arrived(one)}
        if time.time() >= end:
            return None
        until(lambda: time.time() > end + 1, 2 * life)
        for connection in open_ones.values():
            said_into(connection)
        ask(world)
        return through, {what for what, one in open_ones.items() if MARK in arrived(one)}


def test_no_byte_of_a_tunnel_passes_unless_the_gate_let_an_upgrade_through(world):
    through, late = passed(world, 8) or passed(world, 29)

    # Whatever a server switches to then, the client asked for a tunnel and the gate let it through.
    assert MINE in through
    assert {(backend, wanted) for backend, _, wanted in through} == {MINE[::2]}
    assert late == set()


def test_an_upload_that_waits_at_its_end_is_refused_and_the_gate_lives(world):
    yes = {**YES, "expires": int(time.time()) + 3}
    length = 100_000  # more than HAProxy holds when it runs its rules
    headers = [f"Content-Length: {length}"]
    waits = ask(world, "/slow?after=60000", yes, method="POST", headers=headers, body=b"x" * length)

    assert waits.status == 401
    assert ask(world).status == 200


def test_each_refusal_of_the_rules_gives_its_reason(world):
    refusals = [
        line.strip()
        for name in ("haproxy.cfg", "no-streams.cfg")
        for line in render.shipped(name).splitlines()
        if re.match(r"    http-\w+ return status [345]", line)
    ]
    # The reason of these is the agent's, or was set before; without an answer it is `fault`.
    known = ("if iam_refused", "{ var(txn.iam_verdict) -m int", "unless iam_pass", "iam_note_")
    silent = [one for one in refusals if not any(text in one for text in known)]
    assert (len(refusals) > 12, len(silent)) == (True, 1)  # that one stands in the backend iam-unrouted


@pytest.mark.parametrize(
    ("told", "status", "reason"),
    [
        ({"backend": "nowhere"}, 503, "backend_unknown"),
        ({"expires": 1}, 401, "token_expired"),
        ({"principal": "a\nb"}, 503, "tag_unsafe"),
    ],
)
def test_a_refusal_of_the_gate_itself_has_a_reason_in_the_record(world, told, status, reason):
    path = f"/why/{reason}"
    assert ask(world, path, {**YES, **told}).status == status
    assert record(world, path=path)["reason"] == reason
