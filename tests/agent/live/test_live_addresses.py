"""A stream is found, ended and recorded whatever HAProxy knows its client by: each form of an address.

Each form has four streams: a revocation ends the first, a policy the second, its token the third, which is in
a backend without streams, and the last lives on.
"""

import copy
import json
import socket
import struct
import time
from contextlib import ExitStack, closing
from ipaddress import ip_address

import pytest
from waiting import until

from iamroles_scenarios.checks.live.fixture import live_bench
from iamroles_scenarios.checks.live.stream import Stream, StreamShape
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage import haproxies, open_stage
from iamroles_scenarios.stage.reference import reference_agent

PATIENCE = 30.0
IDLE, DOWNLOAD = StreamShape("websocket", busy=False), StreamShape("download")
MAPPED = "::ffff:192.0.2.9"


def v1(src, port, dst="192.0.2.1"):
    family = "TCP6" if ":" in src else "TCP4"
    return f"PROXY {family} {src} {'::1' if ':' in src else dst} {port} 443\r\n".encode()


def v2(src, port):
    address = ip_address(src)
    packed = address.packed + ip_address("::1" if address.version == 6 else "192.0.2.1").packed
    body = packed + struct.pack("!HH", port, 443)
    kind = 0x21 if address.version == 6 else 0x11
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x21, kind, len(body)) + body


LOCAL = b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x20, 0, 0)
FORMS = {
    "IPv4": ("tcp", b"", "127.0.0.1", None),
    "IPv6": ("six", b"", "::1", None),
    "mapped": ("mapped", b"", "::ffff:127.0.0.1", None),
    "v1 IPv4": ("proxied", v1("192.0.2.9", 1111), "192.0.2.9", 1111),
    "v1 IPv6": ("proxied", v1("2001:db8::9", 1112), "2001:db8::9", 1112),
    "v1 mapped": ("proxied", v1(MAPPED, 1113), MAPPED, 1113),
    "v1 no port": ("proxied", v1("192.0.2.9", 0), "192.0.2.9", 0),
    "v1 unknown": ("proxied", b"PROXY UNKNOWN\r\n", "127.0.0.1", None),
    "v2 IPv4": ("proxied", v2("192.0.2.9", 1114), "192.0.2.9", 1114),
    "v2 IPv6": ("proxied", v2("2001:db8::9", 1115), "2001:db8::9", 1115),
    "v2 mapped": ("proxied", v2(MAPPED, 1116), MAPPED, 1116),
    "v2 local": ("proxied", LOCAL, "127.0.0.1", None),
    "Unix, v1 IPv4": ("unix", v1("192.0.2.9", 1117), "192.0.2.9", 1117),
    "Unix, v2 IPv6": ("unix", v2("2001:db8::9", 1118), "2001:db8::9", 1118),
}
"""By name: the listener, what is said before the request, the client's address, and its port; None: own."""


class Client(Stream):
    """A stream through one of several listeners."""

    def __init__(self, gate, form, path, token, shape=IDLE):
        self.where, preamble, *self.client = FORMS.get(form, (form, b"", "", None))
        self._listener = gate.listeners[self.where]
        super().__init__(gate.here, shape, path, token, preamble)

    def _connected(self, here):
        where = self._listener
        if isinstance(where, tuple):
            found = socket.create_connection(where, PATIENCE)
            self.client[1] = found.getsockname()[1] if self.client[1] is None else self.client[1]
            return found
        found = socket.socket(socket.AF_UNIX)
        found.connect(where)
        return found


class Gate:
    """A gate with a listener of each kind."""

    def __init__(self, here, directory, stack):
        self.here, self.log, self._stack = here, directory / "audit.jsonl", stack
        proxied, six, mapped = (self._port(host) for host in ("127.0.0.1", "::1", "::"))
        proxy = here.world.proxy
        self.listeners = {
            "tcp": (proxy.host, proxy.port),
            "proxied": ("127.0.0.1", proxied),
            "six": ("::1", six),
            "mapped": ("127.0.0.1", mapped),
            "unix": str(directory / "u"),
            "plain unix": str(directory / "p"),
        }
        binds = (
            f"127.0.0.1:{proxied} accept-proxy",
            f"ipv6@[::1]:{six}",
            f"[::]:{mapped} v4v6",
            f"unix@{directory}/u accept-proxy",
            f"unix@{directory}/p",
        )
        haproxy, mark = here.world.haproxy, '    bind "${IAM_BIND[*]}"\n'
        lines = mark + "".join(f"    bind {line}\n" for line in binds)
        haproxy._files["haproxy.cfg"] = haproxy._files["haproxy.cfg"].replace(mark, lines)
        haproxy.reload()

    def _port(self, host):
        """Reserve a port: HAProxy may listen there too, nobody else."""
        held = self._stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, 0))
        return held.getsockname()[1]

    def opened(self, form, sub, role="reader", path="", shape=IDLE, **recipe):
        token = self.here.token(sub=sub, roles=[role], **{"exp": "+15m", **recipe})
        found = self._stack.enter_context(closing(Client(self, form, path or f"/live/{role}", token, shape)))
        assert found.opened(PATIENCE), (form, found.status)
        return found

    def records(self, sub):
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        allowed = [one for one in lines if one.get("principal") == sub and one.get("verdict") == "allow"]
        return allowed, [
            one for one in lines if one.get("event") == "cut" and one["about"].get("principal") == sub
        ]


@pytest.fixture(scope="module", params=haproxies.here())
def gate(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("a")
    agent = reference_agent()
    with (
        open_stage("processes", haproxy=request.param) as stage,
        closing(Worlds(stage, agent, namespace="-forms")) as worlds,
        live_bench(
            Target("gate", stage, agent, worlds, 5.0),
            "forms",
            revoking=True,
            audit={"path": str(directory / "audit.jsonl"), "sync": "0s"},
        ) as here,
        ExitStack() as stack,
    ):
        yield Gate(here, directory, stack)


def must_end(gate, streams, cause):
    """Hold each to end, and its record to say whose it was, as the record of its decision does."""
    for form, stream in streams.items():
        assert stream.until(time.time() + PATIENCE), (form, cause)
        sub = f"{cause} {form}"
        allowed, [cut] = until(lambda sub=sub: (found := gate.records(sub))[1] and found, PATIENCE, sub)
        src, port = stream.client
        assert cut["about"]["cause"] == cause
        assert ip_address(cut["about"]["src"]) == ip_address(src)
        assert (cut["about"]["src"], cut.get("port")) == (allowed[0]["src"], port or None)


def test_every_form_of_an_address_is_found_ended_and_recorded(gate):
    lasting = {form: gate.opened(form, f"lasting {form}") for form in FORMS}
    revoked = {form: gate.opened(form, f"revoked {form}") for form in FORMS}
    policy = {form: gate.opened(form, f"policy {form}", "writer") for form in FORMS}

    gate.here.revoke(principals=[f"revoked {form}" for form in FORMS])
    must_end(gate, revoked, "revoked")
    document = copy.deepcopy(gate.here.loan.policy)
    document["grants"] = [grant for grant in document["grants"] if grant["id"] != "L2"]
    gate.here.reload(document)
    must_end(gate, policy, "policy")
    end = int(time.time()) + 4
    expired = {
        form: gate.opened(form, f"expired {form}", path="/plain/a", shape=DOWNLOAD, exp=end) for form in FORMS
    }
    must_end(gate, expired, "expired")
    assert [form for form, stream in lasting.items() if not stream.lives()] == []


def test_a_client_without_an_address_is_refused(gate):
    token = gate.here.token(sub="nobody", exp="+15m")
    with closing(Client(gate, "plain unix", "/live/reader", token)) as stream:
        assert stream.answered(PATIENCE) == 503
