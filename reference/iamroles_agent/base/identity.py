"""The canonical role ARN, the verified identity, the request and the decision."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from iamroles_agent.base.reasons import Reason, Refusal

_ROLE_ARN = re.compile(
    r"arn:(?P<partition>aws|aws-cn|aws-us-gov|aws-iso|aws-iso-b|aws-iso-e|aws-iso-f|aws-eusc)"
    r":(?:iam::(?P<account>[0-9]{12}):role/(?:[\x21-\x39\x3b-\x7e]{1,510}/)?(?P<name>[A-Za-z0-9+=,.@_-]{1,64})"
    r"|sts::(?P<sts_account>[0-9]{12}):assumed-role/(?P<sts_name>[A-Za-z0-9+=,.@_-]{1,64})"
    r"/(?P<session>[A-Za-z0-9+=,.@_-]{2,64}))",
    re.ASCII,
)


MAX_TAG = 512


def is_tag(text: str) -> bool:
    """Return whether a text is safe in a header and a log line: bounded, printable, without outer blanks."""
    # A backend that trims headers would read another value.
    return 0 < len(text) <= MAX_TAG and text.isprintable() and " " not in (text[0], text[-1])


@dataclass(frozen=True, slots=True, order=True)
class RoleArn:
    """An IAM role, canonical: partition, 12-digit account, name; case-sensitive (PRINCIPAL-ARN-003).

    A role's path is dropped, because STS loses it: an assumed-role ARN never has a path. A path with a colon
    is refused: `role/a,arn:aws:iam::…:saml-provider/b`, the pair that SAML makes, would be a role named b.
    """

    partition: str
    account: str
    name: str

    @classmethod
    def parse(cls, text: str) -> RoleArn:
        """Read an IAM role ARN or an STS assumed-role ARN.

        Raises:
            Refusal: `role_malformed`.
        """
        match = _ROLE_ARN.fullmatch(text)
        if match is None:
            raise Refusal(Reason.ROLE_MALFORMED, "not an IAM role ARN or STS assumed-role ARN")
        return cls(
            match["partition"], match["account"] or match["sts_account"], match["name"] or match["sts_name"]
        )

    def __str__(self) -> str:
        return f"arn:{self.partition}:iam::{self.account}:role/{self.name}"


class Actor(NamedTuple):
    """An actor, as the outermost `act` of a token names it (RFC 8693 section 4.1)."""

    sub: str
    issuer: str
    """Its `iss`; without one, the token's own."""
    foreign: bool = False
    """True if its issuer is not the token's own."""
    chain: tuple[tuple[str, str], ...] = ()
    """`sub` and `iss` of former actors, "" for what is absent: for the audit, never for a decision."""

    @property
    def names(self) -> frozenset[tuple[str, str]]:
        """The entries of `actors` that fit, as `sub` and `issuer`, "" for what is left out."""
        names = frozenset(((self.sub, self.issuer), ("", self.issuer), ("", "")))
        return names if self.foreign else names | {(self.sub, "")}


@lru_cache(1024)
def resource_ground(url: str) -> str:
    """Name a resource of `aud` among an identity's grounds; it opens, so it is longer than others."""
    return f"res:{hashlib.sha256(url.encode()).hexdigest()[:32]}"


class Identity(NamedTuple):
    """The identity that a verified credential proves.

    A NamedTuple, because a frozen dataclass costs four times as much to build.
    """

    issuer: str
    """The issuer's or STS endpoint's `name` in the policy."""
    principal: str
    session: str
    """An audit label (`jti`, session name); never authorises (PRINCIPAL-SESSION-001)."""
    roles: tuple[RoleArn, ...]
    """All roles of the credential, canonical, each once, in their order."""
    not_after: int
    """Epoch seconds: at `now >= not_after` the identity ends."""
    issued_at: int | None = None
    """Epoch seconds; a role's own `max_lifetime` begins here."""
    preferred: RoleArn | None = None
    scopes: frozenset[str] | None = None
    """None, unrestricted: the issuer has no scope claim, or may omit it and did."""
    credential: str = ""
    """`sha256:` and 16 hex digits of the credential's hash: names it in the audit, never reveals it."""
    key_id: str = ""
    """The JWS `kid` or AWS access key id."""
    check_again: int | None = None
    """Epoch seconds at which the credential must be verified again, if before `not_after`."""
    grounds: tuple[str, ...] = ()
    """The grounds of a token besides its claims (`tokens.grounds`)."""
    binding: tuple[str, str] | None = None
    """`jkt` and `x5t#S256` of its `cnf`, "" for an absent one; None: it is bound to no key."""
    actor: Actor | None = None

    @property
    def dated_by_caller(self) -> bool:
        """True if the caller chose `issued_at`: an STS request, which has no issuer's URL as its ground."""
        return not any(found.startswith("iss:") for found in self.grounds)

    @property
    def believed_until(self) -> int:
        """Epoch seconds until which cached results for this identity may be used."""
        return self.not_after if self.check_again is None else min(self.not_after, self.check_again)


class McpHeaders(NamedTuple):
    """The headers of a request that MCP and browsers set, as sent; `preflight` is the method asked for."""

    version: str | None = None
    method: str | None = None
    name: str | None = None
    origin: str | None = None
    preflight: str | None = None


NO_HEADERS = McpHeaders()


@dataclass(frozen=True, slots=True)
class Request:
    """The request as HAProxy will forward it (SPEC.md section 2)."""

    method: str
    host: str
    """The Host header as sent, "" if absent."""
    path: str
    src: IPv4Address | IPv6Address
    requested_role: str | None = None
    mcp: McpHeaders = NO_HEADERS


@dataclass(slots=True)
class Decision:
    """The verdict and the tags for HAProxy; the fields are the variables of SPEC.md section 3.

    Not frozen, because that costs six times as much to build; only who made it may change it.
    """

    allow: bool
    reason: Reason | None = None
    detail: str = ""
    """For the audit line; never a secret."""
    role: str = ""
    principal: str = ""
    session: str = ""
    issuer: str = ""
    rule: str = ""
    backend: str = ""
    expires: int | None = None
    credential: str = ""
    roles: tuple[str, ...] = ()
    """All roles of the credential, for the audit line."""
    unmapped: tuple[str, ...] = ()
    """Roles of the credential that the policy does not know; recorded."""
    shadow: tuple[str, ...] = field(default=())
    """Ids of shadow rules that would have changed the verdict (SHADOW-RECORD-001)."""
    ticket: str = field(default="", compare=False)
    """The text that HAProxy keeps with a long stream so that it can be judged again (`live.ticket`)."""
    keys: tuple[str, ...] = ()
    """The keys that the sender proved to hold, as `tokens.proof.Proven` names them; for the audit line."""
    proof: str = field(default="", compare=False)
    """Names the use of a DPoP proof, which the proxy counts; "" if there is nothing to count."""
    nonce: str = field(default="", compare=False)
    """A fresh DPoP nonce for the client; "" if it needs none."""
    actor: Actor | None = None
    call: tuple[str, str] | None = None
    """Method and name of a call of MCP, where they are known; for the audit line."""
    resource: str = ""
    scope: str = ""
    origin: str = ""
    document: str = ""
    answer: int = 0
    """Status of an answer that the gate gives in place of a backend: 200 with `document`, or 204."""

    @property
    def status(self) -> int:
        return (self.answer or 200) if self.reason is None else self.reason.status

    @property
    def error(self) -> str:
        """RFC 6750 error code or ""."""
        return "" if self.reason is None else self.reason.error
