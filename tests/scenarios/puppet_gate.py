"""The shipped HAProxy configuration before a puppet agent, on every HAProxy, and clients to ask it."""

import http.client
import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.stage import AgentSpec, haproxies, open_stage

HERE = Path(__file__).parent
ISSUER = {
    "name": "corp",
    "issuer": "https://idp.example",
    "audiences": ["edge"],
    "algorithms": ["RS256"],
    "accounts": ["111111111111"],
}
POLICY = {
    "version": 1,
    "issuers": [ISSUER],
    "backends": [{"name": "alpha", "streams": True}, {"name": "beta"}],
}
YES = {
    "status": 200,
    "role": "arn:aws:iam::111111111111:role/reader",
    "principal": "alice",
    "session": "s-1",
    "issuer": "corp",
    "rule": "R1",
    "backend": "alpha",
    "expires": 4102444800,
    "allow": True,
}


def puppet_spec(**tables):
    document = {
        **tables,
        "spec": 1,
        "name": "puppet",
        "launch": {"command": [sys.executable, str(HERE / "stage_puppet.py")]},
        "features": {"oidc": True, "reload": "SIGHUP"},
    }
    return AgentSpec.of(document, HERE / "agent.toml")


def places():
    """Each version of HAProxy once: as a process where this host has it, else as a container."""
    found = {}
    for choice in ("path", "wheel"):
        try:
            binary = haproxies.find(choice)
        except StageError:
            continue
        found.setdefault(haproxies.version(binary), ("processes", binary))
    for release in haproxies.RELEASES:
        if not any(version.startswith(f"{release}.") for version in found):
            found[release] = ("containers", release)
    return [pytest.param(place, id=f"haproxy-{version}") for version, place in sorted(found.items())]


@pytest.fixture(scope="module", params=places())
def world(request):
    kind, haproxy = request.param
    if kind == "containers":
        request.getfixturevalue("engine")
    with open_stage(kind, haproxy=haproxy) as stage:
        world = stage.world(puppet_spec(), POLICY, settings={"IAM_TIMEOUT_PROCESSING": "500ms"})
        yield SimpleNamespace(agent=world.agent, haproxy=world.haproxy, proxy=world.proxy, stage=stage)


class Answer:
    """One answer of the gate."""

    def __init__(self, connection, method="GET"):
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        self.status = response.status
        self.challenge = response.getheader("WWW-Authenticate")
        self.headers = response.getheaders()
        self.body = response.read() if response.status != 101 else b""

    @property
    def echo(self):
        return json.loads(self.body)

    def header(self, name):
        return [value for key, value in self.echo["headers"] if key == name]


def connect(world):
    connection = socket.create_connection((world.proxy.host, world.proxy.port), timeout=10)
    connection.settimeout(10)
    return connection


def raw(target="/orders/1", answer=YES, *, method="GET", headers=(), host="api.example", body=b""):
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    if answer is not None:
        lines.append(f"Authorization: Puppet {json.dumps(answer)}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


def ask(world, *arguments, **options):
    with connect(world) as connection:
        connection.sendall(raw(*arguments, **options))
        return Answer(connection, options.get("method", "GET"))


def asked(world, request_id):
    """Return what the agent was asked for one request."""
    line = world.agent.wait_line(lambda text: text.startswith('{"asked"') and request_id in text)
    return json.loads(line)["asked"]["iam-check"]


def all_asked(world):
    """Everything the agent was asked so far: a marker request flushes what is on its way."""
    asked(world, ask(world, "/marker").header("x-iam-request-id")[0])
    return [line for line in world.agent.lines() if line.startswith('{"asked"') and "/marker" not in line]


def fields_of(path="/orders/1", answer=YES, *, method="GET", authority="api.example", headers=()):
    """The header fields of an HTTP/2 request, in their order."""
    fields = [(":method", method), (":scheme", "http"), (":path", path)]
    if authority is not None:
        fields.append((":authority", authority))
    return [*fields, ("authorization", f"Puppet {json.dumps(answer)}"), *headers]


def h2(world, path="/orders/1", answer=YES, **options):
    """The status of an HTTP/2 request (RFC 9113, prior knowledge)."""
    return h2_exchange(world, fields_of(path, answer, **options))[0]


def h2_exchange(world, fields):
    """Status and body of an HTTP/2 request; literal header fields only (RFC 7541). Status 0: reset."""

    def frame(kind, flags, stream, payload):
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    def integer(value):
        out = bytearray([min(value, 127)])
        value -= 127
        while value >= 0:
            out.append((value & 127) | (128 if value > 127 else 0))
            value = (value >> 7) if value > 127 else -1
        return bytes(out)

    def field(name, value):
        return b"\x00" + integer(len(name)) + name + integer(len(value)) + value

    block = b"".join(field(name.encode(), value.encode("latin-1")) for name, value in fields)
    status, body = 0, b""
    with connect(world) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 5, 1, block))
        stream = connection.makefile("rb")
        while head := stream.read(9):
            payload = stream.read(int.from_bytes(head[:3], "big"))
            if head[3] == 1:
                known = {0x88: 200, 0x8C: 400}
                status = known.get(payload[0]) or int(payload[2:5])
            elif head[3] == 0:
                body += payload
            elif head[3] in (3, 7):  # RST_STREAM, GOAWAY: refused below HTTP
                return 0, body
            if head[3] in (0, 1) and head[4] & 1:
                break
    return status, body
