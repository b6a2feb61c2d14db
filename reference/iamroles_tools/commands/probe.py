"""`iamroles agent probe`: look whether an agent answers, as the health check of a container or pod.

It runs every few seconds, so it imports the agent's codec and little else. One timer bounds all that it waits
for: names, files, sockets, and an agent that is silent or sends one octet a second.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import tomllib
from collections.abc import Iterator
from importlib import import_module
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iamroles_agent.commands.shared import policy_option
from iamroles_agent.spop import frames, values
from iamroles_agent.spop.actions import decode
from iamroles_agent.spop.errors import RemoteProtocolError
from iamroles_agent.spop.frames import FrameBuffer, FrameType, RawFrame
from iamroles_agent.spop.values import DataType, Value
from iamroles_tools.commands.inputs import bad_input

if TYPE_CHECKING:
    import ssl

ABSENT, UNREADY = 1, 4
"""Exit statuses: no agent answered; one did, but it is not ready."""
_UNIX = "unix:"
_Pairs = dict[str, tuple[DataType, Value]]
_SIZE, _IDS = 16380, b"\x01\x01"
_HELLO: _Pairs = {
    "supported-versions": (DataType.STRING, b"2.0"),
    "max-frame-size": (DataType.UINT32, _SIZE),
    "capabilities": (DataType.STRING, b"pipelining"),
}
_CHECKED: _Pairs = _HELLO | {"healthcheck": (DataType.BOOL, True)}
_GOODBYE: _Pairs = {"status-code": (DataType.UINT32, 0), "message": (DataType.STRING, b"")}
_CONTEXT: _Pairs = {"request-id": (DataType.STRING, b"iamroles-probe")}
_CHECK: _Pairs = {
    "authorization": (DataType.NULL, None),
    "method": (DataType.STRING, b"GET"),
    "path": (DataType.STRING, b"/"),
    "src": (DataType.IPV4, IPv4Address("127.0.0.1")),
}


class _Fault(Exception):  # noqa: N818 - what was seen, not a fault of this program
    """An agent does not answer as it must."""


class Probe:
    """Looks at one agent after another; its state is for the report that time is up."""

    def __init__(self) -> None:
        self.tls: ssl.SSLContext | None = None
        """For TCP addresses; None: plain TCP."""
        self.where, self.doing = "", ""
        """The address, and what is awaited there."""
        self.asks = self.alive = False
        """True if readiness is asked for, and once a whole HELLO or DISCONNECT came from it."""

    def look(self, address: str, *, ask: bool) -> tuple[int, str]:
        """Return an exit status, and what was seen."""
        self.where, self.doing, self.asks, self.alive = address, "a connection", ask, False
        try:
            with self._connected() as sock:
                self._greeted(sock, _CHECKED)
            seen = self._asked() if ask else "alive: it said HELLO"
        except (_Fault, RemoteProtocolError, OSError, ValueError) as error:
            return self.failed(_why(error, address.removeprefix(_UNIX)))
        return 0, f"{address}: {seen}"

    def failed(self, why: str) -> tuple[int, str]:
        """Return the same if it goes no further."""
        if self.alive:
            return UNREADY if self.asks else 0, f"{self.where}: alive, but not ready: {why}"
        return ABSENT, f"{self.where}: no agent answers: {why}"

    def _connected(self) -> socket.socket:
        if self.where.startswith(_UNIX):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(self.where.removeprefix(_UNIX))
            return sock
        host, _, port = self.where.rpartition(":")
        if not host or re.fullmatch("[0-9]{1,5}", port) is None or not 0 < int(port) <= 0xFFFF:
            bad_input(f'{_printable(self.where)}: write "host:port" with the port, or "unix:/path"')
        sock = socket.create_connection((host.removeprefix("[").removesuffix("]"), int(port)))
        self.doing = "the TLS handshake"
        return self.tls.wrap_socket(sock) if self.tls else sock

    def _greeted(self, sock: socket.socket, hello: _Pairs) -> Iterator[RawFrame]:
        """Say HELLO, and return the frames after the agent's."""
        self.doing = "HELLO"
        _send(sock, FrameType.HAPROXY_HELLO, frames.encode_pairs(hello))
        found = self._frames(sock)
        if (kind := next(found).type) != FrameType.AGENT_HELLO:
            raise _Fault(f"its first frame has the type {kind}, not that of HELLO")
        self.alive = True
        return found

    def _frames(self, sock: socket.socket) -> Iterator[RawFrame]:
        buffer = FrameBuffer(_SIZE)
        while data := sock.recv(_SIZE):
            for frame in buffer.split(data):
                if frame.type == FrameType.AGENT_DISCONNECT:
                    said = frames.read_pairs(frame)
                    self.alive = True
                    raise _Fault(f"it disconnects: {_text(said.get(b'message', (None, b''))[1])}")
                yield frame
        raise _Fault("it closed the connection without an answer")

    def _asked(self) -> str:
        """Ask a question without a credential, and return what the verdict says."""
        with self._connected() as sock:
            found = self._greeted(sock, _HELLO)
            self.doing = "a verdict"
            messages = (b"iam-context", _CONTEXT), (b"iam-check", _CHECK)
            encoded = [
                values.encode_string(name) + bytes((len(arguments),)) + frames.encode_pairs(arguments)
                for name, arguments in messages
            ]
            _send(sock, FrameType.NOTIFY, b"".join(encoded), _IDS)
            frame = next(found)
            if frame.type != FrameType.ACK or frame.ids != _IDS:
                raise _Fault(f"a frame of type {frame.type} is not the answer to the question")
            told = {action.name: action.value for action in decode(frame.data[frame.start : frame.end])}
            _send(sock, FrameType.HAPROXY_DISCONNECT, frames.encode_pairs(_GOODBYE))
        allow, status = told.get("allow"), told.get("status")
        if not isinstance(allow, bool) or type(status) is not int:
            raise _Fault("its answer holds no verdict")
        verdict = f"{'allowed' if allow else 'refused'}, {status} {_text(told.get('reason'))}".rstrip()
        if status == 503:
            raise _Fault(f"a question is {verdict}")
        return f"ready: a question without a credential is {verdict}"


def _send(sock: socket.socket, kind: FrameType, payload: bytes, ids: bytes = frames.NO_IDS) -> None:
    sock.sendall(frames.encode(kind, ids, payload))


def _text(value: Value) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else ""


def _printable(text: str) -> str:
    """Make one line of what an agent or the command line brought."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _why(error: Exception, path: str) -> str:
    match error:
        case ConnectionRefusedError() if path.startswith("/") and not Path(path).is_socket():
            return "a file is there, not a socket"
        case PermissionError():
            return "permission denied: ask as the agent's user, or as a member of agent.listen_group"
        case RemoteProtocolError():
            return f"it does not speak SPOP: {error.message}"
    return str(getattr(error, "reason", "") or getattr(error, "strerror", "") or error)


def _configured(path: Path) -> tuple[list[str], Path | None, Path | None]:
    """Read `agent.listen`, and files of `agent.tls`: authorities and certificate.

    Another table may be broken: then the agent serves by the policy before it, and is not to be killed.
    """
    try:
        text = path.read_text(encoding="utf-8")
        try:
            found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            part = re.search(r"(?ms)^\[agent\]\s.*?(?=^\[(?!agent\.)|\Z)", text)
            found = tomllib.loads(part[0] if part else "?")
        agent = found.get("agent", {})
        listen, tls = agent.get("listen", []), agent.get("tls")
        addresses = [listen] if isinstance(listen, str) else [str(address) for address in listen]
        if tls is None:
            return addresses, None, None
        return addresses, path.parent / tls["ca"], path.parent / tls["certificate"]
    except OSError as error:
        bad_input(f"{path}: {error.strerror}: name the agent by ADDRESS")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        bad_input(f"{path}: agent.listen or agent.tls cannot be read ({error}): name the agent by ADDRESS")


def _trusting(ca: Path, certificate: Path | None) -> ssl.SSLContext:
    """Make the context of a TLS client that shows a certificate, as HAProxy does."""
    module, path = import_module("ssl"), ca
    context: ssl.SSLContext = module.SSLContext(module.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # a health check asks by address
    try:
        context.load_verify_locations(ca)
        if certificate is not None:
            path = certificate
            context.load_cert_chain(certificate, password="")
    except (OSError, ValueError) as error:
        bad_input(f"{path}: {_why(error, '')}")
    return context


def _end_within(seconds: float, probe: Probe) -> threading.Timer:
    """End this process in time, whatever it waits for: the timer with a line, the signal if that hangs."""

    def over() -> None:
        status, line = probe.failed(f"it waited {seconds:g} s for {probe.doing}")
        click.echo(_printable(line), err=True)
        os._exit(status)

    timer = threading.Timer(seconds, over)
    timer.daemon = True
    timer.start()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)
    return timer


@click.command()
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@policy_option("The agent's configuration, read if no ADDRESS is given.", required=False)
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["startup", "readiness", "liveness"]),
    default="readiness",
    show_default=True,
    help="Readiness: HELLO, and a question without a credential. The others: HELLO alone, and an agent that "
    "is alive passes, ready or not.",
)
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=2, show_default=True, help="Seconds.")
@click.option("--ca", type=click.Path(path_type=Path), help="PEM file of authorities: speak TLS.")
@click.option("--certificate", type=click.Path(path_type=Path), help="PEM file to show: chain and key.")
def probe(
    addresses: tuple[str, ...],
    config: Path | None,
    *,
    purpose: str,
    timeout: float,
    ca: Path | None,
    certificate: Path | None,
) -> None:
    """Look whether an agent answers at each ADDRESS, `host:port` or `unix:/path`, and say so in a line.

    The question counts in the agent's audit and metrics, with the request id `iamroles-probe`.

    Exit status: 0 if it passes, 1 if no agent answers, 2 if an option or the configuration is wrong, 4 if the
    agent is alive but not ready.
    """
    looks = Probe()
    looks.where, looks.doing = " ".join(addresses) or str(config), "the configuration"
    timer = _end_within(timeout, looks)
    names, worst = list(addresses), max
    if not names:
        if config is None:
            raise click.UsageError("say which agent: ADDRESS or --config")
        names, *own = _configured(config)
        ca, certificate = ca or own[0], certificate or own[1]
        if not names:
            names, worst = list(import_module("iamroles_agent.base.config").LISTEN), min
    if ca is not None:
        looks.tls = _trusting(ca, certificate)
    found = [looks.look(name, ask=purpose == "readiness") for name in names]
    status = worst((code for code, _ in found), key=(0, UNREADY, ABSENT).index)
    line = "; ".join(text for code, text in found if code == status)
    timer.cancel()
    click.echo(_printable(line), err=status != 0)
    sys.exit(status)
