"""Zero egress: nothing that a token says makes the agent open a connection, and no key comes with a token.

The stranger is an issuer of the mock IdP that no policy names: the agent could reach it, it counts every
request, and its keys would verify these tokens. A bare TCP listener beside it counts all other connections.
"""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine.bench import ALLOWED, Bench, bench, refused
from iamroles_scenarios.engine.target import Target

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import IssuerHandle

_QUIET = 0.3
"""Seconds, times the scale, that the listeners must stay silent after the last answer."""


class Listener:
    """A TCP port that the agent has no reason to call."""

    def __init__(self, address: str) -> None:
        self._socket = socket.create_server((address, 0))
        self._socket.setblocking(False)
        self.host = f"{address}:{self._socket.getsockname()[1]}"
        self.url = f"http://{self.host}"

    def calls(self) -> int:
        count = 0
        while True:
            try:
                self._socket.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1

    def close(self) -> None:
        self._socket.close()


def listening(target: Target) -> closing[Listener]:
    """Return a listener that closes when its context ends, where an agent in a container reaches it too."""
    return closing(Listener(target.stage.host))


def must_be_silent(here: Bench, listener: Listener, evil: IssuerHandle | None, what: str) -> None:
    """Fail if the agent called one of them; wait a little for a call that comes after the answer."""
    rest(here.target.seconds(_QUIET))
    calls = {"listener": listener.calls(), **(evil.counters() if evil else {})}
    if any(calls.values()):
        raise here.failed(f"{what} made the agent call: {calls}", expected="no call")


_READ = Expectation(status=[200, 401])
"""An agent may read `jwk`, `x5c` (RFC 7515 section 4.1) and `iss` (RFC 7519 section 5.3), and refuse them."""


def _pointing(base: str) -> list[dict[str, Any]]:
    return [
        {"jku": f"{base}/jwks"},
        {"x5u": f"{base}/cert.pem"},
        {"jku": f"{base}/jwks", "x5u": f"{base}/cert.pem", "jwk": {"kty": "oct", "k": "AAAA"}},
        {"kid": f"{base}/jwks"},
        {"iss": base, "jku": f"{base}/.well-known/openid-configuration"},
        {"x5c": [f"{base}/cert.pem"], "x5t": base},
    ]


@check("identity.fetch.header", "JWT-FETCH-001", features={"oidc"})
def header(target: Target) -> None:
    """jku, x5u, jwk, x5c and kid make the agent call nobody.

    Tokens by the issuer's own key and by a stranger's, each with headers that name an address.
    """
    with bench(target, "identity") as here, listening(target) as listener:
        evil = here.issuer("evil")
        for base in (listener.url, evil.url):
            for members in _pointing(base):
                token = here.token("corp", header=members, key="ES256")
                expected = _READ if members.keys() & {"jwk", "x5c", "iss"} else ALLOWED
                if "kid" in members:
                    expected = refused("key_unknown", "token_malformed")
                here.expect(f"header {members}", token, expected)
                foreign = here.token("corp", "evil", header=members, key="ES256")
                here.expect(
                    f"header {members}, signed by a stranger",
                    foreign,
                    refused("key_unknown", "token_malformed", "signature_invalid"),
                )
        must_be_silent(here, listener, evil, "a header")


@check("identity.fetch.own-key", "JWT-FETCH-002", features={"oidc"})
def own_key(target: Target) -> None:
    """A key that comes with the token does not verify it.

    As `jwk`, as `x5c`, and in a JWKS of the attacker's own behind `jku`.
    """
    with bench(target, "identity") as here:
        evil = here.issuer("evil")
        answer = refused("key_unknown", "signature_invalid", "token_malformed")
        for algorithm in ("RS256", "ES256"):
            for embed in ("jwk", "x5c", ["jwk", "x5c", "x5t"]):
                for dropped in ([], ["kid"]):
                    token = here.token("corp", "evil", key=algorithm, embed=embed, drop_header=dropped)
                    here.expect(f"{algorithm} with its own {embed}", token, answer)
                token = here.token("corp", key="other", alg=algorithm, embed=embed)
                here.expect(f"{algorithm} with {embed} under a published kid", token, answer)
            for member in ("jku", "x5u"):
                token = here.token("corp", "evil", key=algorithm, header={member: f"{evil.url}/jwks"})
                here.expect(f"{algorithm} with {member}", token, answer)


@check("identity.fetch.issuer", "JWT-FETCH-003", features={"oidc"})
def issuer(target: Target) -> None:
    """An unknown iss makes the agent call nobody.

    The tokens are sound, and their issuer has discovery and keys, but no policy names it.
    """
    with bench(target, "identity") as here, listening(target) as listener:
        stranger = here.issuer("stranger")
        for iss in (stranger.url, listener.url, f"{listener.url}/corp", f"http://{listener.host}@idp/corp"):
            token = here.token("stranger", key="ES256", iss=iss)
            here.expect(f"iss {iss}", token, refused("issuer_untrusted", "key_unknown"))
        must_be_silent(here, listener, stranger, "an iss")
