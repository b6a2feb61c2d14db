"""TLS of a blunt client: with a certificate of its own or without, each connection new or resumed."""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections.abc import Sequence


class ClientTls:
    """Speaks TLS to a server whose certificate is not looked at.

    Args:
        certificate: PEM of a certificate and its key, shown if the server asks; "": none.
        version: the only version that is spoken.
        alpn: the protocols that are offered.
        resumes: a connection resumes the session of the one before it.
    """

    def __init__(
        self,
        certificate: str = "",
        *,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        alpn: Sequence[str] = ("http/1.1",),
        resumes: bool = False,
    ) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._context.minimum_version = self._context.maximum_version = version
        self._context.set_alpn_protocols(list(alpn))
        self._resumes = resumes
        self._session: ssl.SSLSession | None = None
        if certificate:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write(certificate)
                file.flush()
                self._context.load_cert_chain(file.name)

    def wrap(self, plain: socket.socket) -> ssl.SSLSocket:
        """Shake hands.

        Raises:
            OSError: the server ended it.
        """
        return self._context.wrap_socket(plain, session=self._session)

    def keep(self, line: ssl.SSLSocket) -> None:
        """Keep a connection's session, if sessions are resumed; TLS 1.3 has one after the first answer."""
        if self._resumes and line.session is not None:
            self._session = line.session
