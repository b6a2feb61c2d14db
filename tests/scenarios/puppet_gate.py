"""The shipped HAProxy configuration before a puppet agent, on every HAProxy, and clients to ask it."""

import contextlib
import http.client
import json
import socket
import sys
from types import SimpleNamespace

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset
from invoking import AGENTS

from iamroles_scenarios.stage import AgentSpec, haproxies, open_stage

PUPPET = [sys.executable, str(AGENTS / "puppet.py")]
RELOADS = {"features": {"oidc": True, "reload": "SIGHUP"}}
ISSUER = {"name": "corp", "issuer": "https://idp.example", "audiences": ["edge"], "algorithms": ["RS256"]}
ISSUER |= {"accounts": ["111111111111"]}
POLICY = {"version": 1, "issuers": [ISSUER]}
POLICY |= {"backends": [{"name": "alpha", "streams": True}, {"name": "beta"}]}
YES = {"status": 200, "role": "arn:aws:iam::111111111111:role/reader", "principal": "alice", "session": "s-1"}
YES |= {"issuer": "corp", "rule": "R1", "backend": "alpha", "expires": 4102444800, "allow": True}


def described(directory=AGENTS, tables=RELOADS, **launch):
    """An agent of the stage, in the words of `agent.toml`."""
    document = {"spec": 1, "name": "puppet", "launch": launch, **tables}
    return AgentSpec.of(document, directory / "agent.toml")


def puppet_spec(**tables):
    return described(tables={**RELOADS, **tables}, command=PUPPET)


def places():
    """Each version of HAProxy once: as a process where this host has it, else as a container."""
    binaries = [haproxies.find(release) for release in haproxies.here()]
    found = {haproxies.version(binary): ("processes", binary) for binary in binaries}
    for release in haproxies.RELEASES:
        if not any(version.startswith(f"{release}.") for version in found):
            found[release] = ("containers", release)
    return [pytest.param(place, id=f"haproxy-{version}") for version, place in sorted(found.items())]


def opened(request):
    """Open the stage of the place that a fixture is asked for."""
    kind, haproxy = request.param
    if kind == "containers":
        request.getfixturevalue("engine")
    return open_stage(kind, haproxy=haproxy)


@pytest.fixture(scope="module", params=places())
def stage(request):
    with opened(request) as found:
        yield found


@pytest.fixture(scope="module", params=places())
def world(request):
    with opened(request) as stage:
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


@contextlib.contextmanager
def nobody_asked(world):
    """The agent is asked nothing meanwhile: a marker request flushes what is on its way."""

    def all_asked():
        asked(world, ask(world, "/marker").header("x-iam-request-id")[0])
        return [line for line in world.agent.lines() if line.startswith('{"asked"') and "/marker" not in line]

    before = all_asked()
    yield
    assert all_asked() == before


def record(world, **wanted):
    """Wait for the line of HAProxy's log that has these members."""
    return world.haproxy.wait_log(lambda line: wanted.items() <= line.items())


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
    """Status and body of an HTTP/2 request that is sent as it is. Status 0: refused below HTTP."""
    as_it_is = {"validate_outbound_headers": False, "normalize_outbound_headers": False}
    line = H2Connection(H2Configuration(**as_it_is, header_encoding="latin-1"))
    line.initiate_connection()
    sent = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    line.send_headers(1, sent, end_stream=True)
    status, body = 0, b""
    with connect(world) as connection:
        connection.sendall(line.data_to_send())
        while received := connection.recv(65_536):
            for event in line.receive_data(received):
                match event:
                    case ResponseReceived():
                        status = int(dict(event.headers)[":status"])
                    case DataReceived():
                        body += event.data
                    case StreamEnded():
                        return status, body
                    case StreamReset() | ConnectionTerminated():
                        return 0, body
    return 0, body
