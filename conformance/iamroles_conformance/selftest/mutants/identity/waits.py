"""Mutants of waits and refusals that outlive their cause (kind 8 of docs/derived-checks.md), and of drips."""

from __future__ import annotations

from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens import jwks, sts, transport
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.keys import KeySet
from iamroles_agent.tokens.transport import Transport, in_thread
from iamroles_conformance.selftest.mutants.override import after, around, setting
from iamroles_conformance.selftest.registry import Override, mutant

_LONG = 3600.0
"""Seconds, longer than any check waits."""


def _patient(module: Any) -> Override:
    """Wait for a thread to its end, however long it takes."""
    return setting(module, "in_thread", lambda work, _patience=None: in_thread(work))


@around(transport._Connection, "getresponse")
def _at_leisure(sound: Any, self: Any) -> Any:
    sock, response = self.sock, sound(self)
    self.exchange.deadline += _LONG
    sock.settimeout(_LONG)
    return response


def _unhurried(chosen: str) -> Override:
    """Lift the timeout of calls with this text in their URL or headers."""

    @around(Transport, "get")
    def get(sound: Any, self: Any, url: str, *, timeout: float, **how: Any) -> Any:
        named = chosen in url or chosen in (how.get("headers") or {})
        return sound(self, url, timeout=_LONG if named else timeout, **how)

    return get


@mutant("identity.one-key-a-kid", "JWKS-SET-006", "knows one key for each kid")
@around(KeySet, "find")
def _first_of_kid(_sound: Any, self: Any, kid: str | None, alg: str) -> Any:
    named = self._keys if kid is None else self._by_kid.get(kid, ())
    return next((key for key in named[:1] if key.fits(alg)), None)


mutant("identity.waits-for-drips", "JWKS-DRIP-001", "restarts its timeout with each byte of a key server")(
    setting(transport._Exchange, "cut", lambda _self: None)
)
mutant("identity.waits-for-bodies", "DERIVED-WAIT-001", "waits without end for an answer that has begun")(
    _at_leisure, _patient(jwks)
)
mutant("identity.waits-for-discovery", "DERIVED-WAIT-001", "bounds the fetch of key sets, not of discovery")(
    _unhurried("openid-configuration"), _patient(jwks)
)
mutant("identity.waits-for-sts", "DERIVED-WAIT-002", "waits for STS as long as it takes")(
    _unhurried("Host"), _patient(sts)
)
mutant("identity.cut-is-whole", "DERIVED-WAIT-002", "takes an answer that it cut off itself for a refusal")(
    after(Transport, "_exchange")(lambda _self, exchange, *_: setattr(exchange, "over", False))
)

# --- refusals that outlive a reload

_refused: dict[tuple[str, str], Refusal] = {}


def _stubborn(*reasons: Reason) -> Override:
    """Remember refusals for these reasons through every reload."""

    @around(Authenticator, "authenticate")
    async def authenticate(sound: Any, self: Any, authorization: str, source: str = "") -> Any:
        if (authorization, source) in _refused:
            raise _refused[authorization, source]
        try:
            return await sound(self, authorization, source)
        except Refusal as refusal:
            if refusal.reason in reasons:
                _refused[authorization, source] = refusal
            raise

    return authenticate


mutant("identity.refuses-for-ever-claims", "DERIVED-RELOAD-003", "keeps refusals for claims over a reload")(
    _stubborn(Reason.AUDIENCE_MISMATCH, Reason.CLAIM_INVALID)
)
mutant("identity.refuses-for-ever-algorithms", "DERIVED-RELOAD-003", "keeps refusals for alg, typ at reload")(
    _stubborn(Reason.ALGORITHM_NOT_ALLOWED, Reason.TYPE_NOT_ALLOWED)
)
mutant("identity.refuses-for-ever-sizes", "DERIVED-RELOAD-003", "keeps refusals for length over a reload")(
    _stubborn(Reason.TOKEN_TOO_LARGE)
)
mutant("identity.refuses-for-ever-times", "DERIVED-RELOAD-003", "keeps refusals for times over a reload")(
    _stubborn(Reason.TOKEN_NOT_YET_VALID, Reason.TOKEN_LIFETIME)
)
