"""From an allowed decision to the JWT that its backend gets.

How cached verdicts stay cheap
------------------------------
A signature takes longer than many remembered verdicts. So a token says who acts in which role for which
backend, and nothing of the request: one token serves all requests of that caller to that backend. It is
handed out again until half its life has passed, and the verdict that holds it is remembered so long. A
remembered verdict costs what it did without the header; each question is judged anew every half minute, with
one signature for each caller, role and backend. Whatever is handed out has at least half its life before it.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from jwt.api_jws import PyJWS

from iamroles_agent.base.identity import Decision
from iamroles_agent.identity_header.keys import KeyRing

LONGEST_LIFE = 60
"""Seconds that a token lives, at most."""
TYPE = "iam-identity+jwt"
"""`typ` of the header (RFC 8725 section 3.11): no other token can be taken for one of these."""
_HALF = 4096
"""Tokens that one half of the memory holds."""

_Key = tuple[str, str, str, str, str, int | None]


class Signed(NamedTuple):
    """A token, and until when it may be handed out again."""

    token: str
    fresh_until: int
    """Epoch seconds."""


class Signer:
    """Signs identities with the keys of one ring.

    Args:
        ring: of keys.
        issuer: `iss`: this gate's own name.
        lifetime: seconds that a token lives, 2 to 60.
    """

    def __init__(self, ring: KeyRing, issuer: str, lifetime: int = LONGEST_LIFE) -> None:
        self.ring = ring
        self._issuer = issuer
        self._lifetime = lifetime
        self._jws = PyJWS()
        self._young: dict[_Key, Signed] = {}
        self._old: dict[_Key, Signed] = {}

    def sign(self, decision: Decision, now: float) -> Signed:
        """The token of an allowed decision.

        Args:
            decision: its backend is the audience.
            now: epoch seconds, before the decision's `expires`.
        """
        key = (
            decision.principal,
            decision.session,
            decision.role,
            decision.issuer,
            decision.backend,
            decision.expires,
        )
        known = self._young.get(key) or self._old.pop(key, None)
        if known is None or now >= known.fresh_until:
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
        claims = {
            "iss": self._issuer,
            "aud": decision.backend,
            "sub": decision.principal,
            "iat": now,
            "exp": end,
            "role": decision.role,
            "session": decision.session,
            "idp": decision.issuer,
        }
        signing = self.ring.signing(at)
        token = self._jws.encode(
            json.dumps(claims, separators=(",", ":")).encode(),
            signing.private,
            "ES256",
            headers={"kid": signing.kid, "typ": TYPE},
        )
        return Signed(token, now + max(1, (end - now) // 2))
