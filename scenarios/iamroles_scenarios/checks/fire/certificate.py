"""HAProxy's certificate is replaced while people connect: through its Runtime API, and by file and reload.

Every question comes on a connection of its own, with a handshake of its own, by a client that trusts the old
and the new certificate. What goes wrong with the shipped configuration is no failure of the agent, unless it
is an answer. Some answers are slow, so that a few are always in flight.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from iamroles_scenarios.checks.fault.ground import own_suffix
from iamroles_scenarios.checks.proxy.traffic import Gate
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec, WorldSpec
from iamroles_scenarios.declarations.timeline import WindowSpec
from iamroles_scenarios.engine.fire import kindle
from iamroles_scenarios.engine.ledger import Flow, Kind
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.errors import CheckFailed, Evidence, HarnessFault, StageError, Untestable
from iamroles_scenarios.jose.keys import SigningKey

_FILE = "site.pem"
_BETWEEN = 60
"""Answers before, between and after the changes."""
_IN_A_ROW = 10
"""Connections that must show the new certificate one after the other."""
_SHOWN = 5.0
"""Seconds, times the scale, until they do: a reload's old worker lets go of the socket when it is told to."""


class Certificate:
    """A self-signed certificate and its key."""

    def __init__(self) -> None:
        key = SigningKey("site", "ES256", ec.generate_private_key(ec.SECP256R1()))
        self.der = key.certificate()
        private = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.public = ssl.DER_cert_to_PEM_cert(self.der)
        self.pem = self.public + private


def _trusting(*certificates: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # one name for all: the whole counts
    context.load_verify_locations(cadata="".join(one.public for one in certificates))
    return context


def _played(target: Target, change: Callable[[Gate, Certificate], None]) -> str:
    """Change the certificate twice under traffic; the remark."""
    first, *later = certificates = [Certificate() for _ in range(3)]
    settings = {"IAM_TIMEOUT_PROCESSING": "20s", "IAM_BIND": f"ssl crt {_FILE}"}
    spec = WorldSpec(policy="orders", own=True)
    try:
        place = target.worlds.start(spec, own_suffix(), settings=settings, files={_FILE: first.pem})
    except StageError as error:
        if "haproxy" in error.logs:
            raise Untestable(
                "HAProxy's configuration must split IAM_BIND into words, as `bind` takes them (docs/stage.md)"
            ) from error
        raise
    with place.world, closing(Gate(target, place)) as gate:
        reader, dead = (gate.token(exp=exp) for exp in ("+15m", "-5m"))
        served = Expectation(status=200, allow=True, backend="orders-ro")
        shut = [Expectation(status=status, allow=False, backend="") for status in (401, 403)]
        flows = [
            Flow("reader", RequestSpec(), reader, served),
            Flow("slow", RequestSpec(path="/orders/1?after=300"), reader, served, weight=0.5),
            Flow("dead", RequestSpec(), dead, shut[0]),
            Flow("closed", RequestSpec(path="/elsewhere"), reader, shut[1]),
        ]
        tls = _trusting(*certificates)
        with kindle(place.world, flows, rate=60, scale=target.scale, tls=tls, fresh=True) as fire:
            fire.wait(_BETWEEN)
            for number, certificate in enumerate(later, 1):
                with fire.step(f"change {number}"):
                    change(gate, certificate)
                _shows(gate, certificate)
                fire.wait(_BETWEEN)
        found = fire.judge(WindowSpec(check="all", between=["begin", "end"]))
        if found.bad:
            entry, kind, why = found.bad[0]
            sent, received = entry.shown
            if kind is Kind.LOST:
                raise _proxys(gate, f"{found}: {why}")
            raise CheckFailed(f"{found}: {why}", Evidence(sent, received=received, logs=place.world.logs()))
        return str(found)


def _shows(gate: Gate, certificate: Certificate) -> None:
    """New connections are shown this certificate, and no other any more."""
    deadline = time.monotonic() + gate.seconds(_SHOWN)
    row = 0
    while row < _IN_A_ROW:
        row = row + 1 if _shown(gate) == certificate.der else 0
        if time.monotonic() > deadline and not row:
            raise _proxys(gate, f"another certificate is shown {_SHOWN:g} s after it was replaced")


def _shown(gate: Gate) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    proxy = gate.world.proxy
    try:
        with (
            socket.create_connection((proxy.host, proxy.port), gate.seconds(_SHOWN)) as plain,
            context.wrap_socket(plain) as line,
        ):
            return line.getpeercert(binary_form=True) or b""
    except OSError as error:
        raise _proxys(gate, f"a handshake failed: {error}") from error


def _proxys(gate: Gate, message: str) -> Exception:
    """Something is wrong with the proxy: a failure of an agent that brings its own configuration."""
    if "render" in gate.target.agent.haproxy:
        return gate.failed(message)
    return HarnessFault(f"HAProxy with the shipped configuration, not the agent: {message}")


@check(
    "fire.certificate.runtime",
    requirements=["FIRE-CERTIFICATE-001"],
    lane="proxy",
    title="a certificate that is replaced through the Runtime API costs no request and no handshake",
)
def runtime(target: Target) -> str:
    """`set ssl cert` and `commit ssl cert` (management.txt section 9.3)."""

    def change(gate: Gate, certificate: Certificate) -> None:
        ask = gate.world.haproxy.runtime
        name = next((line for line in ask("show ssl cert").splitlines() if line.endswith(_FILE)), _FILE)
        said = ask(f"set ssl cert {name} <<\n{certificate.pem}") + ask(f"commit ssl cert {name}")
        if "Success" not in said:
            raise _proxys(gate, f"HAProxy does not take a certificate: {said.strip()}")

    return _played(target, change)


@check(
    "fire.certificate.reload",
    requirements=["FIRE-CERTIFICATE-001"],
    lane="proxy",
    title="a certificate that is replaced by its file and a reload costs no request and no handshake",
)
def reload(target: Target) -> str:
    """The old worker finishes the handshakes and requests that it has begun."""

    def change(gate: Gate, certificate: Certificate) -> None:
        gate.world.haproxy.put(_FILE, certificate.pem)
        gate.world.haproxy.reload()

    return _played(target, change)
