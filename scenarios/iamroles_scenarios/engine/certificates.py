"""HAProxy's certificate: made, replaced while people connect, and looked at; and an authority of our own."""

from __future__ import annotations

import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from iamroles_scenarios.base.errors import AgentFault, HarnessFault
from iamroles_scenarios.jose.keys import SigningKey, certificate_of

if TYPE_CHECKING:
    from iamroles_scenarios.stage import AgentSpec, World

_FILE, _AUTHORITY = "site.pem", "iamroles test authority"
_DAYS = -1, 30
_IN_A_ROW = 10
"""Connections that must show the new certificate one after the other."""
_SHOWN = 5.0
"""Seconds, times the scale, until they do: a reload's old worker lets go of the socket a little later."""


class Certificate:
    """A self-signed certificate and its key."""

    def __init__(self) -> None:
        key = SigningKey("site", "ES256", ec.generate_private_key(ec.SECP256R1()))
        self.der = key.certificate()
        private = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.public = ssl.DER_cert_to_PEM_cert(self.der)
        self.pem = self.public + private


class ProxyCertificates:
    """The certificate that a world's HAProxy shows, and its successors.

    Attributes:
        settings, files: of a world whose HAProxy shows the first.
    """

    def __init__(self) -> None:
        self._turns = [Certificate() for _ in range(3)]
        self.settings = {"IAM_BIND": f"ssl crt {_FILE}"}
        self.files = {_FILE: self._turns[0].pem}

    @property
    def tls(self) -> ssl.SSLContext:
        """The context of a client that takes the certificate that is shown, and the next, and no other."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # one name for all: the whole counts
        context.load_verify_locations(cadata="".join(one.public for one in self._turns[:2]))
        return context

    def replace(self, world: World, by: str, scale: float) -> str:
        """Install the next certificate, and wait until it is shown; return why that failed, or "".

        Args:
            world: whose HAProxy shows it.
            by: as `CertificateStep.by`.
            scale: multiplies the time until it must be shown.
        """
        change = {"runtime": _by_runtime, "reload": _by_reload}[by]
        why = change(world, self._turns[1]) or _shows(world, self._turns[1], scale)
        if not why:
            self._turns.append(self._turns.pop(0))
        return why


def _by_runtime(world: World, certificate: Certificate) -> str:
    """Replace it through the Runtime API (management.txt section 9.3), and its file for the next reload.

    Returns:
        Why that failed, or "".
    """
    world.haproxy.put(_FILE, certificate.pem)
    ask = world.haproxy.runtime
    name = next((line for line in ask("show ssl cert").splitlines() if line.endswith(_FILE)), _FILE)
    said = ask(f"set ssl cert {name} <<\n{certificate.pem}") + ask(f"commit ssl cert {name}")
    return "" if "Success" in said else f"HAProxy does not take a certificate: {said.strip()}"


def _by_reload(world: World, certificate: Certificate) -> str:
    """Replace it by its file and a reload; return "" as `_by_runtime`."""
    world.haproxy.put(_FILE, certificate.pem)
    world.haproxy.reload()
    return ""


def _shows(world: World, certificate: Certificate, scale: float) -> str:
    """Wait until every new connection is shown this certificate; return why not, or ""."""
    deadline = time.monotonic() + _SHOWN * scale
    row = 0
    while row < _IN_A_ROW:
        try:
            row = row + 1 if _shown(world, _SHOWN * scale) == certificate.der else 0
        except OSError as error:
            return f"a handshake failed: {error}"
        if time.monotonic() > deadline and not row:
            return f"another certificate is shown {_SHOWN:g} s after it was replaced"
    return ""


def _shown(world: World, within: float) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    proxy = world.proxy
    with (
        socket.create_connection((proxy.host, proxy.port), within) as plain,
        context.wrap_socket(plain) as line,
    ):
        return line.getpeercert(binary_form=True) or b""


def proxy_fault(agent: AgentSpec, message: str) -> Exception:
    """Return the exception for a fault of the proxy: the agent's, if it brings its own configuration."""
    if "render" in agent.haproxy:
        return AgentFault(message)
    return HarnessFault(f"HAProxy with the shipped configuration, not the agent: {message}")


class Authority:
    """Issues certificates for hosts."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        ca = [x509.BasicConstraints(ca=True, path_length=0), x509.KeyUsage(*(i == 5 for i in range(9)))]
        self.public = self._issued(self._key, _AUTHORITY, (self._key, _AUTHORITY), ca)
        """Its own certificate, PEM."""

    def issue(
        self,
        host: str,
        *,
        by: str = "",
        days: tuple[int, int] = _DAYS,
        client: bool = False,
        named: bool = True,
        before: Sequence[str] = (),
        kind: Callable[[str], x509.GeneralName] = x509.DNSName,
    ) -> str:
        """Return a certificate for a host, and its key, PEM.

        Args:
            host: a DNS name, or an address of IPv4.
            by: "itself": self-signed; "server": issued by the holder of another server's certificate.
            days: from now in which it is good.
            client: True: for clients alone.
            named: False: the host stands in its subject alone.
            before: DNS names that stand before the host's.
            kind: of the host's name, if it is not an address.
        """
        key, signer, chain = ec.generate_private_key(ec.SECP256R1()), (self._key, _AUTHORITY), ""
        if by:
            signer = (key, host) if by == "itself" else (ec.generate_private_key(ec.SECP256R1()), "www.test")
        if by == "server":
            chain = self._issued(*signer, (self._key, _AUTHORITY), [])
        address = host.replace(".", "").isdecimal()
        name = x509.IPAddress(ip_address(host)) if address else kind(host)
        names = [*map(x509.DNSName, before), name]
        extensions: list[x509.ExtensionType] = [x509.SubjectAlternativeName(names)] if named else []
        extensions += [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])] if client else []
        issued = self._issued(key, host, signer, extensions, days) + chain
        return issued + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    @staticmethod
    def _issued(
        key: ec.EllipticCurvePrivateKey,
        name: str,
        signer: tuple[ec.EllipticCurvePrivateKey, str],
        extensions: Sequence[x509.ExtensionType],
        days: tuple[int, int] = _DAYS,
    ) -> str:
        builder = certificate_of(key.public_key(), name, signer[1], days)
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer[0].public_key())
        for extension in (*extensions, own, above):  # RFC 5280 wants all of them
            critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(signer[0], hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def context(side: int, pem: str) -> ssl.SSLContext:
    """Return a context that shows this certificate, or none, and takes any."""
    found = ssl.SSLContext(side)
    if side == ssl.PROTOCOL_TLS_CLIENT:
        found.check_hostname, found.verify_mode = False, ssl.CERT_NONE
    if pem:
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(pem)
            file.flush()
            found.load_cert_chain(file.name)
    return found
