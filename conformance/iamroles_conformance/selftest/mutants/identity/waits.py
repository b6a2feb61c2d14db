"""Waits without end, and refusals that outlive their cause: kind 8 of docs/derived-checks.md."""

from __future__ import annotations

from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens import jwks, sts, transport
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.transport import Transport, in_thread
from iamroles_conformance.selftest.mutants.override import around, both, setting
from iamroles_conformance.selftest.registry import Apply, mutant

_LONG = 3600.0
"""Seconds that nobody waits for."""


def _patient(module: Any) -> Apply:
    """Leave no thread behind, however long it takes."""
    return setting(module, "in_thread", lambda work, _patience=None: in_thread(work))


@around(transport._Connection, "getresponse")
def _at_leisure(sound: Any, self: Any) -> Any:
    sock, response = self.sock, sound(self)
    self.exchange.deadline += _LONG
    sock.settimeout(_LONG)
    return response


mutant(
    "identity.waits-for-bodies",
    kills=["DERIVED-WAIT-001"],
    title="gives whoever has begun to answer all the time that he wants",
    apply=both(_at_leisure, _patient(jwks)),
)


def _unhurried(chosen: str) -> Apply:
    """A call whose URL, or header, has this text in it takes as long as it takes."""

    @around(Transport, "get")
    def get(sound: Any, self: Any, url: str, *, timeout: float, **how: Any) -> Any:
        named = chosen in url or chosen in (how.get("headers") or {})
        return sound(self, url, timeout=_LONG if named else timeout, **how)

    return get


mutant(
    "identity.waits-for-discovery",
    kills=["DERIVED-WAIT-001"],
    title="bounds the fetch of a key set and not that of the discovery document",
    apply=both(_unhurried("openid-configuration"), _patient(jwks)),
)
mutant(
    "identity.waits-for-sts",
    kills=["DERIVED-WAIT-002"],
    title="waits for STS as long as it takes",
    apply=both(_unhurried("Host"), _patient(sts)),
)


@around(Transport, "_exchange")
def _whole(sound: Any, self: Any, exchange: Any, *args: Any) -> Any:
    answer = sound(self, exchange, *args)
    exchange.over = False
    return answer


mutant(
    "identity.cut-is-whole",
    kills=["DERIVED-WAIT-002"],
    title="takes an answer that it cut off itself for a short one, and so for a refusal",
    apply=_whole,
)

_refused: dict[tuple[str, str], Refusal] = {}


def _stubborn(*reasons: Reason) -> Apply:
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


for _name, _reasons, _title in (
    ("claims", (Reason.AUDIENCE_MISMATCH, Reason.CLAIM_INVALID), "a claim that was wrong"),
    ("algorithms", (Reason.ALGORITHM_NOT_ALLOWED, Reason.TYPE_NOT_ALLOWED), "an algorithm or a type"),
    ("sizes", (Reason.TOKEN_TOO_LARGE,), "its length"),
    ("times", (Reason.TOKEN_NOT_YET_VALID, Reason.TOKEN_LIFETIME), "its times"),
):
    mutant(
        f"identity.refuses-for-ever-{_name}",
        kills=["DERIVED-RELOAD-003"],
        title=f"remembers a token that was refused for {_title} beyond a reload",
        apply=_stubborn(*_reasons),
    )
