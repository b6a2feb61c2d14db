"""Mutants of what strangers and their servers may cost: drips, floods, shared kids."""

from __future__ import annotations

from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens import transport
from iamroles_agent.tokens.keys import KeySet
from iamroles_agent.tokens.sts import StsVerifier
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.registry import mutant

mutant("identity.waits-for-drips", "JWKS-DRIP-001", "begins its timeout anew with each byte of a key server")(
    setting(transport._Exchange, "cut", lambda _self: None)
)
_blocked: set[str] = set()


@mutant(
    "identity.sts-blocks-sources",
    "STS-FLOOD-001",
    "turns away everybody at an address from which a forged credential came",
)
@around(StsVerifier, "verify")
async def _blocking(sound: Any, self: Any, token: bytes, digest: bytes, source: str = "") -> Any:
    if source in _blocked:
        raise Refusal(Reason.STS_UNAVAILABLE, "too many failures from there")
    try:
        return await sound(self, token, digest, source)
    except Refusal:
        _blocked.add(source)
        raise


@mutant("identity.one-key-a-kid", "JWKS-SET-006", "knows one key for each kid")
@around(KeySet, "find")
def _first_of_kid(_sound: Any, self: Any, kid: str | None, alg: str) -> Any:
    named = self._keys if kid is None else self._by_kid.get(kid, ())
    return next((key for key in named[:1] if key.fits(alg)), None)
