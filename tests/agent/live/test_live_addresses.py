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
from gate_bench import gate_bench
from waiting import until

from iamroles_scenarios.checks.live.stream import Stream, StreamShape
from iamroles_scenarios.stage import haproxies, open_stage

PATIENCE = 30.0
IDLE, DOWNLOAD = StreamShape("websocket", busy=False), StreamShape("download")
MAPPED = "::ffff:192.0.2.9"


HEAD = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL = HEAD + struct.pack("!BBH", 0x20, 0, 0)


def v1(src, port):
    family, dst = ("TCP6", "::1") if ":" in src else ("TCP4", "192.0.2.1")
    return f"PROXY {family} {src} {dst} {port} 443\r\n".encode()


def v2(src, port):
    kind, dst = (0x21, "::1") if ":" in src else (0x11, "192.0.2.1")
    body = ip_address(src).packed + ip_address(dst).packed + struct.pack("!HH", port, 443)
    return HEAD + struct.pack("!BBH", 0x21, kind, len(body)) + body


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
        if isinstance(self._listener, str):
            found = socket.socket(socket.AF_UNIX)
            found.connect(self._listener)
            return found
        found = socket.create_connection(self._listener, PATIENCE)
        if self.client[1] is None:
            self.client[1] = found.getsockname()[1]
        return found


class Gate:
    """A gate with a listener of each kind."""

    def __init__(self, here, directory, stack):
        self.here, self.directory, self._stack = here, directory, stack
        proxied, six, mapped = (self._port(host) for host in ("127.0.0.1", "::1", "::"))
        there = {
            "proxied": (f"127.0.0.1:{proxied} accept-proxy", ("127.0.0.1", proxied)),
            "six": (f"ipv6@[::1]:{six}", ("::1", six)),
            "mapped": (f"[::]:{mapped} v4v6", ("127.0.0.1", mapped)),
            "unix": (f"unix@{directory}/u accept-proxy", f"{directory}/u"),
            "plain unix": (f"unix@{directory}/p", f"{directory}/p"),
        }
        proxy, haproxy, mark = here.world.proxy, here.world.haproxy, '    bind "${IAM_BIND[*]}"\n'
        self.listeners = {name: address for name, (_, address) in there.items()}
        self.listeners["tcp"] = proxy.host, proxy.port
        lines = mark + "".join(f"    bind {line}\n" for line, _ in there.values())
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
        texts = [log.read_text() for log in self.directory.glob("audit*.jsonl")]  # one of each worker
        lines = [json.loads(line) for text in texts for line in text.split("\n")[:-1]]  # the last may be torn
        allowed = [one for one in lines if one.get("principal") == sub and one.get("verdict") == "allow"]
        cuts = (one for one in lines if one.get("event") == "cut")
        return allowed, [one for one in cuts if one["about"].get("principal") == sub]


@pytest.fixture(scope="module", params=haproxies.here())
def gate(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("a")
    audit = {"path": str(directory / "audit.jsonl"), "sync": "0s"}
    with (
        open_stage("processes", haproxy=request.param) as stage,
        gate_bench(stage, "forms", revoking=True, audit=audit) as here,
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
    def opened(what, *role, **how):
        return {form: gate.opened(form, f"{what} {form}", *role, **how) for form in FORMS}

    lasting, revoked, policy = opened("lasting"), opened("revoked"), opened("policy", "writer")
    gate.here.revoke(principals=[f"revoked {form}" for form in FORMS])
    must_end(gate, revoked, "revoked")
    document = copy.deepcopy(gate.here.loan.policy)
    document["grants"] = [grant for grant in document["grants"] if grant["id"] != "L2"]
    gate.here.reload(document)
    must_end(gate, policy, "policy")
    must_end(gate, opened("expired", path="/plain/a", shape=DOWNLOAD, exp="+4s"), "expired")
    assert [form for form, stream in lasting.items() if not stream.lives()] == []


def test_a_client_without_an_address_is_refused(gate):
    token = gate.here.token(sub="nobody", exp="+15m")
    with closing(Client(gate, "plain unix", "/live/reader", token)) as stream:
        assert stream.answered(PATIENCE) == 503
