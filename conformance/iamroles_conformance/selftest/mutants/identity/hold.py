"""Mutants of what strangers and their servers may cost: drips, floods, shared kids."""

from __future__ import annotations

from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens import transport
from iamroles_agent.tokens.keys import KeySet
from iamroles_agent.tokens.sts import StsVerifier
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.registry import mutant

mutant(
    "identity.waits-for-drips",
    kills=["JWKS-DRIP-001"],
    title="begins its timeout anew with each byte of a key server",
    apply=setting(transport._Exchange, "cut", lambda _self: None),
)

_blocked: set[str] = set()


@around(StsVerifier, "verify")
async def _blocking(sound: Any, self: Any, token: bytes, digest: bytes, source: str = "") -> Any:
    if source in _blocked:
        raise Refusal(Reason.STS_UNAVAILABLE, "too many failures from there")
    try:
        return await sound(self, token, digest, source)
    except Refusal:
        _blocked.add(source)
        raise


mutant(
    "identity.sts-blocks-sources",
    kills=["STS-FLOOD-001"],
    title="turns away everybody at an address from which a forged credential came",
    apply=_blocking,
)


@around(KeySet, "find")
def _first_of_kid(_sound: Any, self: Any, kid: str | None, alg: str) -> Any:
    named = self._keys if kid is None else self._by_kid.get(kid, ())
    return next((key for key in named[:1] if key.fits(alg)), None)


mutant(
    "identity.one-key-a-kid",
    kills=["JWKS-SET-006"],
    title="knows one key for each kid",
    apply=_first_of_kid,
)
