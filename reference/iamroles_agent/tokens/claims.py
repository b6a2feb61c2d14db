"""Make an identity of a verified payload, by the rules of an issuer (JWT-EXP to JWT-AT, OUTBOUND).

The order is the contract's (SPEC.md section 4): times, audience, other claims, roles. Each failure is one
typed reason. The time is an argument, so that tests can check exact boundaries: at `now >= exp` a token is
expired.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from iamroles_agent.base.config import Issuer, Limits
from iamroles_agent.base.encoding import decode_base64url
from iamroles_agent.base.identity import MAX_TAG, Actor, Identity, RoleArn, is_tag, resource_ground
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens.grounds import (
    MOST_AUDIENCES,
    claim_paths,
    ground,
    rules_ground,
    token_grounds,
    types_of,
)
from iamroles_agent.tokens.jws import Header

AWS_CLAIMS = "https://sts.amazonaws.com/"
"""The claim in which STS nests its claims about a principal (GetWebIdentityToken)."""

_MAX_SECONDS = 1 << 53
_MAX_SETS = 1024
_MAX_KEPT, _MAX_ROLES_KEPT = 1024, 32
"""Longer scope strings, and longer lists of roles, are read again each time, so that they fill no memory."""
_OTHER_PRINCIPAL = re.compile(
    r"arn:aws[a-z-]*:(?:iam|sts)::(?P<account>[0-9]{12}):(?:root|user/\S+|federated-user/\S+)", re.ASCII
)
_MAX_ACTORS, _MAX_CHAIN = 8, 2048
"""Actors of a token that are kept, and characters of their names; the others are forgotten."""
_CONFIRMED = frozenset(("jkt", "x5t#S256"))
"""Members of `cnf` whose proof the gate knows."""
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z", re.ASCII)

Payload = dict[str, Any]
_identity = tuple.__new__
"""Makes an `Identity` faster than `Identity(...)`, without its names."""

# Interned: 100,000 identities of a few roles share a few objects. Only verified tokens get here.
role_arn = lru_cache(maxsize=4096)(RoleArn.parse)


def _finder(path: tuple[str, ...]) -> Callable[[Payload], Any]:
    """Return a reader of the claim at a path; it returns None if the claim is absent, null or unreachable."""
    if len(path) == 1:
        (only,) = path
        return lambda payload: payload.get(only)

    def find(payload: Payload) -> Any:  # noqa: ANN401 - a claim may be anything
        value: Any = payload
        for name in path:
            if not isinstance(value, dict):
                return None
            value = value.get(name)
        return value

    return find


def _seconds(payload: Payload, name: str) -> int | None:
    """Read a NumericDate that is a JSON integer (JWT-EXP-002; RFC 7519 also permits fractions)."""
    value = payload.get(name)
    if type(value) is int and 0 <= value <= _MAX_SECONDS:
        return value
    if name in payload:
        raise Refusal(Reason.CLAIM_INVALID, f"{name} is not a JSON integer from 0 to 2^53")
    return None


def _label(value: object, name: str) -> str:
    """Check that a value is a text that may become a tag."""
    if isinstance(value, str) and is_tag(value):
        return value
    what = f"{name} is not a printable string of 1 to {MAX_TAG}, without blanks around it"
    raise Refusal(Reason.CLAIM_INVALID, what)


class ClaimRules:
    """One issuer's rules, compiled."""

    def __init__(self, issuer: Issuer, limits: Limits) -> None:
        self.issuer = issuer
        self.name, self._url = issuer.name, issuer.issuer
        self.algorithms = frozenset(issuer.algorithms)
        self.types = types_of(issuer)
        self._rules = rules_ground(issuer)
        self._profile = issuer.profile
        self._leeway = issuer.leeway
        self._lifetime = min(issuer.max_lifetime, limits.max_lifetime or issuer.max_lifetime)
        self._audiences = frozenset(issuer.audiences)
        self._client_ids = frozenset(issuer.client_ids)
        self._accounts = frozenset(issuer.accounts)
        paths = claim_paths(issuer)
        self._find_roles = _finder(paths["roles_claim"])
        preferred, scope = paths["preferred_role_claim"], paths["scope_claim"]
        self._find_preferred = _finder(preferred) if preferred else None
        self._find_scope = _finder(scope) if scope else None
        self._find_session = _finder(paths["session_claim"])
        self._find_principal = _finder(paths["principal_claim"])
        self._role_sets: dict[tuple[str, ...], tuple[RoleArn, ...]] = {}
        self._scope_sets: dict[str, frozenset[str]] = {}
        self._audience: Callable[[Payload], tuple[str, ...]] = (
            self._cognito_audience if issuer.profile == "cognito" else self._plain_audience
        )

    def identity(
        self, payload: Payload, header: Header, now: float, credential: str, proof: tuple[str, ...] = ()
    ) -> Identity:
        """Judge the claims of a verified token, whose `iss` is already matched.

        `credential` is its name for the audit, `proof` the grounds of the token itself: its key, its size.

        Raises:
            Refusal: the first reason, in the order of SPEC.md section 4.
        """
        exp, iat = self._times(payload, now)
        audience = self._audience(payload)
        binding = self._binding(payload["cnf"]) if "cnf" in payload else None
        actor = actor_of(payload["act"], self._url) if "act" in payload else None
        profile = self._profile
        if profile == "rfc9068":
            _check_rfc9068(payload, iat)
        end = exp + int(self._leeway)
        life = f"exp:{exp}" if iat is None else f"life:{exp - iat}"
        more = (*audience, ground("typ", header.typ), self._rules, life, *proof)
        if payload.get("nbf", 0) > now:
            more = (*more, f"nbf:{payload['nbf']}")
        principal = _label(self._find_principal(payload), "the principal claim")
        session = self._find_session(payload)
        session = "" if session is None else _label(session, "the session claim")
        scopes = self._scopes(self._find_scope(payload)) if self._find_scope else None
        preferred: RoleArn | None = None
        if profile == "aws":
            roles, outer = self._aws(payload, now)
            end = min(end, outer) if outer is not None else end
            actor = self._aws_actor(payload, actor)
        else:
            roles = self._roles(self._find_roles(payload))
            if self._find_preferred and (wish := self._find_preferred(payload)) is not None:
                preferred = _role(wish)
        return _identity(
            Identity,
            (
                *(self.name, principal, session, roles, end, iat, preferred, scopes, credential),
                *(header.kid or "", None, token_grounds(self._url, header.alg, more), binding, actor),
            ),
        )

    def _binding(self, cnf: object) -> tuple[str, str]:
        """Read the keys that the token is bound to (RFC 7800), if this issuer's tokens may be.

        Raises:
            Refusal: `token_bound`, `claim_invalid`.
        """
        if self.issuer.bound == "refused":
            raise _bound(cnf)
        if not isinstance(cnf, dict) or not cnf or not _CONFIRMED.issuperset(cnf):
            raise Refusal(Reason.CLAIM_INVALID, "cnf is not an object of jkt, x5t#S256 or both")
        for name, thumbprint in cnf.items():
            try:
                whole = len(decode_base64url(thumbprint.encode())) == 32
            except (ValueError, AttributeError):
                whole = False
            if not whole:
                raise Refusal(Reason.CLAIM_INVALID, f"{name} is not a SHA-256 in base64url")
        return cnf.get("jkt", ""), cnf.get("x5t#S256", "")

    def _times(self, payload: Payload, now: float) -> tuple[int, int | None]:
        exp, iat, nbf = _seconds(payload, "exp"), _seconds(payload, "iat"), _seconds(payload, "nbf")
        if exp is None:
            raise Refusal(Reason.CLAIM_INVALID, "exp is missing: a token without an end is not accepted")
        if now >= exp + int(self._leeway):  # in whole seconds, like `expires`
            raise Refusal(Reason.TOKEN_EXPIRED, f"expired {now - exp:.0f} s ago")
        if nbf is not None and nbf > now + self._leeway:
            raise Refusal(Reason.TOKEN_NOT_YET_VALID, f"nbf is {nbf - now:.0f} s ahead")
        if iat is not None and iat > now + self._leeway:
            raise Refusal(Reason.TOKEN_NOT_YET_VALID, f"iat is {iat - now:.0f} s ahead")
        lifetime = exp - (now if iat is None else iat)
        if lifetime > self._lifetime:
            raise Refusal(
                Reason.TOKEN_LIFETIME, f"lives {lifetime:.0f} s, at most {self._lifetime:.0f} are accepted"
            )
        return exp, iat

    def _plain_audience(self, payload: Payload) -> tuple[str, ...]:
        if "aud" not in payload and self._client_ids and self._profile == "generic":
            return self._check_client(payload)
        return self._check_audience(payload.get("aud"))

    def _check_audience(self, aud: object) -> tuple[str, ...]:
        """Check `aud` (RFC 7519 section 4.1.3): one of its strings is ours. Return grounds, ours first."""
        names = [aud] if isinstance(aud, str) else aud
        if not isinstance(names, list) or not names or not all(isinstance(one, str) for one in names):
            raise Refusal(Reason.AUDIENCE_MISMATCH, "aud is missing, or not a string or array of strings")
        if self._audiences.isdisjoint(names):
            raise Refusal(Reason.AUDIENCE_MISMATCH, "aud names none of the audiences of this issuer")
        ours = sorted(self._audiences.intersection(names))
        names = [*ours, *[name for name in names if name not in self._audiences][:MOST_AUDIENCES]]
        urls = [name for name in names if name.startswith("http")]  # a reload may make each a resource
        return (*(ground("aud", name) for name in names), *map(resource_ground, urls))

    def _check_client(self, payload: Payload) -> tuple[str, ...]:
        client = payload.get("client_id")
        if not isinstance(client, str) or client not in self._client_ids:
            raise Refusal(Reason.AUDIENCE_MISMATCH, "client_id is not one of this issuer's client_ids")
        return (ground("client", client),)

    def _cognito_audience(self, payload: Payload) -> tuple[str, ...]:
        """Check `client_id` of an access token, `aud` of an ID token; `token_use` tells them apart.

        `client_ids` in the policy permits access tokens, `audiences` ID tokens: a policy for access tokens
        alone never accepts an ID token (JWT-COGNITO-002).
        """
        use = payload.get("token_use")
        if use == "access" and self._client_ids:
            return self._check_client(payload)
        if use == "id" and self._audiences:
            return self._check_audience(payload.get("aud"))
        kind = use if use in ("access", "id") else "something else"
        raise Refusal(Reason.TYPE_NOT_ALLOWED, f"token_use is {kind}")

    def _scopes(self, value: object) -> frozenset[str] | None:
        if value is None:
            return frozenset() if self.issuer.scope_required else None
        if isinstance(value, str):
            # Many tokens share few scope strings; as with roles, only accepted tokens get here.
            known = self._scope_sets.get(value)
            if known is None:
                if len(self._scope_sets) >= _MAX_SETS:
                    self._scope_sets.clear()
                known = frozenset(value.split(" ")) - {""}
                if len(value) <= _MAX_KEPT:
                    self._scope_sets[value] = known
            return known
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return frozenset(value)
        raise Refusal(Reason.CLAIM_INVALID, "the scope claim is not a string or array of strings")

    def _roles(self, value: object) -> tuple[RoleArn, ...]:
        if value is None or value == []:
            raise Refusal(Reason.ROLE_MISSING, "the token has no role")
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list):
            raise Refusal(Reason.ROLE_MALFORMED, "the roles claim is not a string or array of strings")
        # Many tokens share few sets of roles; only sets of verified and accepted tokens are kept.
        spelled = tuple(entries)
        try:
            known = self._role_sets.get(spelled)
        except TypeError:  # an object or array among them
            known = None
        if known is not None:
            return known
        roles = self._judge_roles(entries)
        if len(self._role_sets) >= _MAX_SETS:
            self._role_sets.clear()
        if len(roles) <= _MAX_ROLES_KEPT:
            self._role_sets[spelled] = roles
        return roles

    def _judge_roles(self, entries: list[object]) -> tuple[RoleArn, ...]:
        roles = tuple(dict.fromkeys(_role(entry) for entry in entries))
        if self._accounts and any(role.account not in self._accounts for role in roles):
            raise Refusal(Reason.CLAIM_INVALID, "a role of an account that this issuer may not assert")
        return roles

    def _aws(self, payload: Payload, now: float) -> tuple[tuple[RoleArn, ...], int | None]:
        """Return the roles and the outer session's end of an STS GetWebIdentityToken JWT (OUTBOUND)."""
        nested = payload.get(AWS_CLAIMS)
        if not isinstance(nested, dict):
            # EKS service-account tokens come from AWS too, and name no role (OUTBOUND-IRSA-001).
            raise Refusal(Reason.CLAIM_INVALID, f"{AWS_CLAIMS!r} is missing: not a GetWebIdentityToken JWT")
        account = nested.get("aws_account")
        if not isinstance(account, str) or account not in self._accounts:
            raise Refusal(Reason.CLAIM_INVALID, "aws_account is not an account configured for this issuer")
        arn = nested.get("principal_id") if _for_end_user(payload, nested) else payload.get("sub")
        if not isinstance(arn, str):
            raise Refusal(Reason.CLAIM_INVALID, "the principal's ARN is missing")
        if other := _OTHER_PRINCIPAL.fullmatch(arn):
            if other["account"] != account:
                raise Refusal(Reason.CLAIM_INVALID, "the principal's account is not aws_account")
            raise Refusal(Reason.ROLE_MISSING, "the principal is a user or root, not a role")
        role = _role(arn)
        if role.account != account:
            raise Refusal(Reason.CLAIM_INVALID, "the principal's account is not aws_account")
        outer = _outer_end(nested)
        if outer is not None and now >= outer:
            raise Refusal(Reason.TOKEN_EXPIRED, "the session that asked for the token is over")
        return (role,), outer

    def _aws_actor(self, payload: Payload, act: Actor | None) -> Actor | None:
        """Return who acts in a token of AWS: for an end user the role, whatever `act` says."""
        nested = payload.get(AWS_CLAIMS, {})
        if not _for_end_user(payload, nested):
            return act
        return Actor(_label(nested.get("principal_id"), "principal_id"), self._url)


def _for_end_user(payload: Payload, nested: Payload) -> bool:
    """Look whether a role acts for an end user in a token of AWS, as it says inside or outside.

    `sub` is then a name of the identity provider that the session came from. It is unique only with that
    provider, and may look like a role's ARN (OUTBOUND-ORIGIN-001).
    """
    modes = (payload.get("subject_mode"), nested.get("subject_mode"))
    if not all(mode is None or isinstance(mode, str) for mode in modes):
        raise Refusal(Reason.CLAIM_INVALID, "subject_mode is not a string")
    return "OriginIdentity" in modes


def _role(entry: object) -> RoleArn:
    if not isinstance(entry, str):
        raise Refusal(Reason.ROLE_MALFORMED, "a role is not a string")
    return role_arn(entry)


def actor_of(act: object, url: str) -> Actor:
    """Read an `act` claim of a token of issuer `url`; nested ones are not judged (RFC 8693 section 4.1)."""
    if not isinstance(act, dict):
        raise Refusal(Reason.CLAIM_INVALID, "act is not an object (RFC 8693)")
    sub, issuer = _label(act.get("sub"), "act.sub"), _label(act.get("iss", url), "act.iss")
    chain: list[tuple[str, str]] = []
    former: Any = act
    size = len(sub) + len(issuer)
    while isinstance(former := former.get("act"), dict) and len(chain) < _MAX_ACTORS - 1:
        texts = [text if isinstance(text := former.get(name), str) else "" for name in ("sub", "iss")]
        size += sum(map(len, texts))
        if size > _MAX_CHAIN:
            break
        chain.append((texts[0], texts[1]))
    return Actor(sub, issuer, issuer != url, tuple(chain))


def _bound(cnf: object) -> Refusal:
    """Refuse a token whose sender must prove a key (RFC 7800), which this issuer's may not be."""
    if not isinstance(cnf, dict) or not cnf:
        return Refusal(Reason.CLAIM_INVALID, "cnf is not an object with members (RFC 7800)")
    return Refusal(Reason.TOKEN_BOUND, "cnf binds the token to a key (DPoP, mTLS) that bearers do not prove")


def _check_rfc9068(payload: Payload, iat: int | None) -> None:
    """Check the claims that an access token must carry (RFC 9068 section 2.2)."""
    if iat is None:
        raise Refusal(Reason.CLAIM_INVALID, "iat is missing (RFC 9068)")
    for name in ("sub", "client_id", "jti"):
        if not payload.get(name) or not isinstance(payload[name], str):
            raise Refusal(Reason.CLAIM_INVALID, f"{name} is missing (RFC 9068)")


def _outer_end(nested: Payload) -> int | None:
    """Read `original_session_exp`: epoch seconds, or an instant in UTC."""
    value = nested.get("original_session_exp")
    if value is None:
        return None
    if isinstance(value, str) and _INSTANT.fullmatch(value):
        try:
            return int(datetime.fromisoformat(value).timestamp())
        except ValueError:
            pass
    elif type(value) is int and 0 <= value <= _MAX_SECONDS:
        return value
    raise Refusal(Reason.CLAIM_INVALID, "original_session_exp is not a time")
