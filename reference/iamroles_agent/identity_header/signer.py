"""Make the JWT that the backend of an allowed decision gets.

How cached verdicts stay cheap
------------------------------
A signature takes longer than many remembered verdicts. So a token names the principal, its actor, the role
and the backend, and nothing of the request: one token serves all requests of a caller to a backend. It is
reused until half its life has passed, and the verdict that holds it is remembered for the same time. A
remembered verdict costs as much as without the header; each question is judged again every half minute, with
a single signature for each caller, role and backend. A token always has at least half its life left.
"""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any, NamedTuple

from jwt.api_jws import PyJWS

from iamroles_agent.base.identity import Decision
from iamroles_agent.identity_header.keys import KeyRing
from iamroles_agent.identity_header.shared import SharedRing

LONGEST_LIFE = 60
"""Seconds that a token lives, at most."""
TYPE = "iam-identity+jwt"
"""`typ` of the header (RFC 8725 section 3.11): no other kind of token has it."""
_HALF = 4096
"""Tokens that each half of the memory holds."""

_CALLER = attrgetter("principal", "session", "role", "issuer", "backend", "expires", "actor")


class Signed(NamedTuple):
    """A token, and the epoch seconds from which and until which it may be used again."""

    token: str
    since: int
    fresh_until: int


class Signer:
    """Signs identities with the keys of a ring; `lifetime` is 2 to 60 seconds."""

    def __init__(self, ring: KeyRing | SharedRing, issuer: str, lifetime: int = LONGEST_LIFE) -> None:
        self.ring = ring
        self._issuer, self._lifetime = issuer, lifetime
        self._jws = PyJWS()
        self._young: dict[tuple[Any, ...], Signed] = {}
        self._old: dict[tuple[Any, ...], Signed] = {}

    def sign(self, decision: Decision, now: float) -> Signed:
        """Return the token of an allowed decision, for its backend, before its `expires`."""
        key = _CALLER(decision)
        known = self._young.get(key) or self._old.pop(key, None)
        if known is None or not known.since <= now < known.fresh_until:
            known = self._made(decision, now)
        if len(self._young) >= _HALF:
            self._old, self._young = self._young, {}
        self._young[key] = known
        return known

    def _made(self, decision: Decision, at: float) -> Signed:
        now = int(at)
        end = now + self._lifetime
        if decision.expires is not None:
            end = min(end, decision.expires)
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "aud": decision.backend,
            "sub": decision.principal,
            "iat": now,
            "exp": end,
            "role": decision.role,
            "session": decision.session,
            "idp": decision.issuer,
        }
        if decision.actor is not None:
            claims["act"] = {"sub": decision.actor.sub, "iss": decision.actor.issuer}
        signing = self.ring.signing(at)
        token = self._jws.encode(
            json.dumps(claims, separators=(",", ":")).encode(),
            signing.private,
            "ES256",
            headers={"kid": signing.kid, "typ": TYPE},
        )
        return Signed(token, now, now + max(1, (end - now) // 2))
