"""Waits without end, and refusals that outlive their cause: kind 8 of docs/derived-checks.md."""

from __future__ import annotations

from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens import jwks, sts, transport
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.transport import Transport, in_thread
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.registry import Override, mutant

_LONG = 3600.0
"""Seconds that nobody waits for."""


def _patient(module: Any) -> Override:
    """Leave no thread behind, however long it takes."""
    return setting(module, "in_thread", lambda work, _patience=None: in_thread(work))


@mutant(
    "identity.waits-for-bodies",
    "DERIVED-WAIT-001",
    "gives whoever has begun to answer all the time that he wants",
    _patient(jwks),
)
@around(transport._Connection, "getresponse")
def _at_leisure(sound: Any, self: Any) -> Any:
    sock, response = self.sock, sound(self)
    self.exchange.deadline += _LONG
    sock.settimeout(_LONG)
    return response


def _unhurried(chosen: str) -> Override:
    """A call whose URL, or header, has this text in it takes as long as it takes."""

    @around(Transport, "get")
    def get(sound: Any, self: Any, url: str, *, timeout: float, **how: Any) -> Any:
        named = chosen in url or chosen in (how.get("headers") or {})
        return sound(self, url, timeout=_LONG if named else timeout, **how)

    return get


mutant(
    "identity.waits-for-discovery",
    "DERIVED-WAIT-001",
    "bounds the fetch of a key set and not that of the discovery document",
)(_unhurried("openid-configuration"), _patient(jwks))
mutant("identity.waits-for-sts", "DERIVED-WAIT-002", "waits for STS as long as it takes")(
    _unhurried("Host"), _patient(sts)
)


@mutant(
    "identity.cut-is-whole",
    "DERIVED-WAIT-002",
    "takes an answer that it cut off itself for a short one, and so for a refusal",
)
@around(Transport, "_exchange")
def _whole(sound: Any, self: Any, exchange: Any, *args: Any) -> Any:
    answer = sound(self, exchange, *args)
    exchange.over = False
    return answer


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


mutant(
    "identity.refuses-for-ever-claims",
    "DERIVED-RELOAD-003",
    "remembers a token that was refused for a claim that was wrong beyond a reload",
)(_stubborn(Reason.AUDIENCE_MISMATCH, Reason.CLAIM_INVALID))
mutant(
    "identity.refuses-for-ever-algorithms",
    "DERIVED-RELOAD-003",
    "remembers a token that was refused for an algorithm or a type beyond a reload",
)(_stubborn(Reason.ALGORITHM_NOT_ALLOWED, Reason.TYPE_NOT_ALLOWED))
mutant(
    "identity.refuses-for-ever-sizes",
    "DERIVED-RELOAD-003",
    "remembers a token that was refused for its length beyond a reload",
)(_stubborn(Reason.TOKEN_TOO_LARGE))
mutant(
    "identity.refuses-for-ever-times",
    "DERIVED-RELOAD-003",
    "remembers a token that was refused for its times beyond a reload",
)(_stubborn(Reason.TOKEN_NOT_YET_VALID, Reason.TOKEN_LIFETIME))
