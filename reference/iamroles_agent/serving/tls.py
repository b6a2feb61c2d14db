"""Mutual TLS on TCP sockets (`[agent.tls]`): HAProxy and the agent prove to each other who they are.

A secret in the answer would not do: an impostor that is asked has seen the client's token by then, and any
process that may connect could ask the agent for the secret.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iamroles_agent.base import files
from iamroles_agent.base.config import AgentTls
from iamroles_agent.base.encoding import lower_ascii
from iamroles_agent.base.errors import StartError

_MAX_BYTES, _PAUSE = 4 << 20, 1.0
"""Bytes of a file, and seconds after a failure that may pass: strangers' connections must cost little."""

log = logging.getLogger("iamroles.server")


class Tls:
    """The certificate to show, and the certificates to accept, as the files say at this moment.

    Args:
        settings: `[agent.tls]`.
        beside: the directory to which its paths are relative.

    Raises:
        StartError: a file cannot be used.
    """

    def __init__(self, settings: AgentTls, beside: Path) -> None:
        self._certificate, self._ca = beside / settings.certificate, beside / settings.ca
        self._names = set(map(lower_ascii, settings.names))
        self._stamp, self._again = self._look(), 0.0
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """Return the context of a new connection, made again if a file has changed and all are good."""
        if time.monotonic() >= self._again and (stamp := self._look()) != self._stamp:
            try:
                self._context = self._load()
            except StartError as error:
                log.error("%s; the certificates before it stay in force", error)
                if not isinstance(error.__cause__, ssl.SSLError | ValueError):
                    self._again = time.monotonic() + _PAUSE  # too few descriptors, or half a change
                    return self._context
            else:
                log.info("the certificates of agent.tls were read again")
            self._stamp = stamp
        return self._context

    def accepts(self, certificate: Mapping[str, Any] | None) -> bool:
        """Look whether a peer's certificate, which an authority of `ca` issued, carries one of the names."""
        found = (certificate or {}).get("subjectAltName", ())
        return not self._names or any(kind == "DNS" and lower_ascii(n) in self._names for kind, n in found)

    def _look(self) -> list[files.Stamp | None]:
        return [files.stamp(path) for path in (self._certificate, self._ca)]

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        key, path, what = "certificate", self._certificate, "one certificate, its chain and key, in PEM"
        try:
            files.read(path, _MAX_BYTES)  # OpenSSL would wait for a FIFO, and all requests with it
            context.load_cert_chain(path, password="")
            if path.stat().st_mode & 0o007:
                log.warning("%s: everybody may read this key, and answer in the agent's place", path)
            key, path, what = "ca", self._ca, "certificates of authorities, in PEM"
            files.read(path, _MAX_BYTES)
            context.load_verify_locations(path)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
            raise StartError(f"agent.tls.{key}: {path}: {why}. It must hold {what}") from error
        return context
