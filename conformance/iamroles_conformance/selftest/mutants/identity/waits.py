"""Mutants of waits and refusals that outlive their cause (kind 8 of docs/derived-checks.md), and of drips."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens import transport
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.keys import KeySet
from iamroles_agent.tokens.transport import Answer, Transport, TransportError
from iamroles_conformance.selftest.mutants.override import around, rescue, setting
from iamroles_conformance.selftest.registry import Override, mutant

_LONG = 3600.0
"""Seconds, longer than any check waits."""


_hurry: ContextVar[float] = ContextVar("_hurry")
"""Seconds of the timeout that a mutant lifted."""


def _unhurried(chosen: str) -> Override:
    """Lift the timeout of calls with this text in their URL or headers."""

    @around(Transport, "get")
    async def get(sound: Any, self: Any, url: str, *, seconds: float, **how: Any) -> Any:
        named = chosen in url or chosen in (how.get("headers") or {})
        _hurry.set(seconds)
        return await sound(self, url, seconds=_LONG if named else seconds, **how)

    return get


def _within(of: Any, name: str) -> Override:
    """Bound a part of an exchange by the timeout that was lifted."""

    @around(of, name)
    async def bounded(sound: Any, *arguments: Any) -> Any:
        async with asyncio.timeout(_hurry.get()):
            return await sound(*arguments)

    return bounded


@mutant("identity.one-key-a-kid", "JWKS-SET-006", "knows one key for each kid")
@around(KeySet, "find")
def _first_of_kid(_sound: Any, self: Any, kid: str | None, alg: str) -> Any:
    named = self._keys if kid is None else self._by_kid.get(kid, ())
    return next((key for key in named[:1] if key.fits(alg)), None)


mutant("identity.waits-for-drips", "JWKS-DRIP-001", "restarts its timeout with each byte of a key server")(
    _unhurried("http"), _within(transport._Connection, "more")
)
mutant("identity.waits-for-bodies", "DERIVED-WAIT-001", "waits without end for an answer that has begun")(
    _unhurried("http"), _within(Transport, "_connect"), _within(transport, "_read_head")
)
mutant("identity.waits-for-discovery", "DERIVED-WAIT-001", "bounds the fetch of key sets, not of discovery")(
    _unhurried("openid-configuration")
)
mutant("identity.waits-for-sts", "DERIVED-WAIT-002", "waits for STS as long as it takes")(_unhurried("Host"))


@mutant("identity.cut-is-whole", "DERIVED-WAIT-002", "takes an answer that it cut off itself for a refusal")
@rescue(Transport, "get", TransportError)
def cut_is_whole(error: Any, *_asked: Any, **_how: Any) -> Any:
    refusal = b"<E><Error><Code>SignatureDoesNotMatch</Code></Error></E>"
    return Answer(403, "text/xml", refusal) if "too long" in str(error) else None


mutant("identity.reads-the-first-part", "JWKS-SET-003 STS-ANSWER-003", "cuts and reads a long answer")(
    setting(transport._Connection, "rest", transport._Connection.take)
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
