"""Tickets: HAProxy keeps one with each allowed request, so that an agent can judge a long stream again.

A ticket is base64url of compact JSON, without padding: it stands in the key of a stick-table and in answers
of the Runtime API, where blanks, `=` and line breaks would need escapes. It holds no secret: the credential's
hash, never the credential. HAProxy shows it only to the operator.

It has two parts with a dot between: who (the credential, its role and backend), and the request. For a
backend that renews HAProxy keeps the first part, which is the same for all requests of a credential.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from iamroles_agent.base.encoding import decode_base64url, encode_base64url
from iamroles_agent.base.identity import Actor, Decision, Identity, McpHeaders, Request, RoleArn
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.policy.paths import canonical

_as_json = json.JSONEncoder(separators=(",", ":")).encode
MAX_BYTES = 2400
"""The table's keys have 2600 bytes; what is before the ticket there takes less than 200."""


class TicketError(Exception):
    """A ticket that this agent cannot read: of another version, cut off, or not a ticket."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """The identity and the request behind an open stream."""

    agent: str
    """The agent that wrote it."""
    identity: Identity
    request: Request | None
    """None: it was too long to keep, so it cannot be judged again."""
    role: str
    backend: str
    rule: str
    partial: bool = False
    """True if the beginning of too long a path stands for it: shorter patterns fit both or neither."""

    def encode(self) -> str:
        """As text of `A-Za-z0-9_-.`, at most `MAX_BYTES`."""
        who = self._who()
        text = f"{who}.{self._what(self.request, self.partial)}"
        if len(text) > MAX_BYTES and self.request is not None:
            text = f"{who}.{self._what(_beginning(self.request, len(text) - MAX_BYTES), partial=True)}"
        return text if len(text) <= MAX_BYTES else ""

    def _who(self) -> str:
        who = self.identity
        members: dict[str, object] = {
            "v": 1,
            "g": self.agent,
            "i": who.issuer,
            "p": who.principal,
            "s": who.session,
            "a": [str(arn) for arn in who.roles],
            "e": who.not_after,
            "t": who.issued_at,
            "d": None if who.preferred is None else str(who.preferred),
            "o": None if who.scopes is None else sorted(who.scopes),
            "c": who.credential,
            "k": who.key_id,
            "w": list(who.grounds) or None,
            "j": who.binding,
            "n": who.actor and who.actor[:3],
            "r": self.role,
            "b": self.backend,
        }
        return _packed(members)

    def _what(self, request: Request | None, partial: bool) -> str:
        members: dict[str, object] = {"u": self.rule}
        if request is not None:
            members |= {
                "m": request.method,
                "h": request.host,
                "l" if partial else "f": request.path,  # former releases refuse an absent `f`
                "x": str(request.src),
                "q": request.requested_role,
                "y": list(request.mcp[:4]) if any(request.mcp) else None,
            }
        return _packed(members)

    @staticmethod
    @lru_cache(maxsize=2048)
    def decode(text: str) -> Ticket:
        """Read a ticket back, or its first part, which has no request.

        Raises:
            TicketError: it cannot be read.
        """
        try:
            found: dict[str, Any] = {}
            for piece in text.split("."):
                found |= json.loads(decode_base64url(piece.encode()))
            if found["v"] != 1:
                raise TicketError(f"a ticket of version {found['v']!r}")
            request = None
            if "x" in found:
                method, host, path = (found.get(name, "") for name in ("m", "h", "fl"["l" in found]))
                mcp = McpHeaders(*found.get("y", ()))
                request = Request(method, host, path, ip_address(found["x"]), found.get("q"), mcp)
            identity = Identity(
                issuer=found.get("i", ""),
                principal=found.get("p", ""),
                session=found.get("s", ""),
                roles=tuple(RoleArn.parse(arn) for arn in found.get("a", ())),
                not_after=int(found["e"]),
                issued_at=found.get("t"),
                preferred=RoleArn.parse(found["d"]) if "d" in found else None,
                scopes=frozenset(found["o"]) if "o" in found else None,
                credential=found.get("c", ""),
                key_id=found.get("k", ""),
                grounds=tuple(found.get("w", ())),
                binding=(str(found["j"][0]), str(found["j"][1])) if "j" in found else None,
                actor=Actor(str(found["n"][0]), str(found["n"][1]), bool(found["n"][2]))
                if "n" in found
                else None,
            )
            role, backend, rule = (found.get(name, "") for name in "rbu")
            return Ticket(found.get("g", ""), identity, request, role, backend, rule, "l" in found)
        except (ValueError, LookupError, TypeError, AttributeError, Refusal) as error:
            raise TicketError(f"no ticket: {type(error).__name__}") from error


def _packed(members: dict[str, object]) -> str:
    kept = {key: value for key, value in members.items() if value not in ("", None)}
    return encode_base64url(_as_json(kept).encode())


def _beginning(request: Request, excess: int) -> Request | None:
    """Shorten the path to a canonical beginning that takes less by `excess` characters of base64."""
    end = len(request.path) - excess * 3 // 4 - 1
    for last in range(end, max(end - 24, 0), -1):  # it may not end within a character, or with a blank
        with suppress(Refusal):
            return replace(request, path=canonical(request.path[:last]))
    return None


def ticket(agent: str, identity: Identity, request: Request, decision: Decision) -> str:
    """The ticket of an allowed request."""
    return Ticket(agent, identity, request, decision.role, decision.backend, decision.rule).encode()
