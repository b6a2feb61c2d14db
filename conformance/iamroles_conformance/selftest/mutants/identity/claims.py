"""Mutants of claims and principals: JWT-EXP to JWT-AT, PRINCIPAL, OUTBOUND."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from iamroles_agent.audit import redaction
from iamroles_agent.base.identity import RoleArn
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.spop.connection import Connection
from iamroles_agent.tokens import authenticator, claims, keys
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_conformance.selftest.mutants.edits import role_arns
from iamroles_conformance.selftest.mutants.override import after, around, fail, rescue
from iamroles_conformance.selftest.registry import Override, mutant

# --- times


def _rule(name: str, change: Callable[[Any], Any]) -> Override:
    """Change a value of an issuer's compiled rules."""
    return after(ClaimRules, "__init__")(
        lambda self, *_args, **_how: setattr(self, name, change(getattr(self, name)))
    )


def _claims(edit: Callable[[dict[str, Any], float], dict[str, Any]]) -> Override:
    """Change the claims before their times are judged."""
    return around(ClaimRules, "_times")(
        lambda sound, self, payload, now: sound(self, edit(dict(payload), now), now)
    )


def _never_ahead(claim: str) -> Override:
    """Read a time that is ahead as now."""

    @_claims
    def edit(payload: dict[str, Any], now: float) -> dict[str, Any]:
        ahead = isinstance(payload.get(claim), int) and payload[claim] > now
        return payload | ({claim: int(now)} if ahead else {})

    return edit


def _coerced(claim: str) -> Override:
    """Read a claim as a lenient library does."""

    @rescue(claims, "_seconds", Refusal)
    def seconds(_refusal: Any, payload: Any, name: str) -> Any:
        with suppress(TypeError, ValueError, OverflowError):
            if name == claim:
                payload[name] = int(float(payload[name]))  # others read it there
                return payload[name]
        return None

    return seconds


@mutant("identity.lifetime-needs-iat", "JWT-EXP-003", "bounds lifetimes only where iat is given")
@around(ClaimRules, "_times")
def lifetime_needs_iat(sound: Any, self: Any, payload: Any, now: float) -> Any:
    kept, self._lifetime = self._lifetime, self._lifetime if "iat" in payload else float("inf")
    try:
        return sound(self, payload, now)
    finally:
        self._lifetime = kept


@mutant("identity.number-forms", "JWT-NUM-001", "reads times out of any finite number, rounded down")
@around(claims, "_seconds")
def number_forms(sound: Any, payload: Any, name: str) -> Any:
    value = payload.get(name)
    if type(value) in (int, float) and abs(value) <= 1 << 53:
        return int(value // 1)
    return sound(payload, name)


mutant("identity.exp-optional", "JWT-EXP-001", "accepts tokens without exp")(
    _claims(lambda payload, now: {"exp": int(now) + 60} | payload)
)
mutant("identity.exp-text", "JWT-EXP-002", "reads exp out of strings and fractions")(_coerced("exp"))
mutant("identity.any-lifetime", "JWT-EXP-003", "accepts any lifetime")(
    _rule("_lifetime", lambda _configured: float("inf"))
)
mutant("identity.own-leeway", "JWT-EXP-004", "has a leeway of its own")(
    _rule("_leeway", lambda configured: max(configured, 30.0))
)
mutant("identity.no-leeway", "JWT-EXP-005", "ignores the configured leeway")(
    _rule("_leeway", lambda _configured: 0.0)
)
mutant("identity.ignores-nbf", "JWT-NBF-001", "ignores an nbf that is ahead")(_never_ahead("nbf"))
mutant("identity.nbf-text", "JWT-NBF-002", "reads nbf out of strings and fractions")(_coerced("nbf"))
mutant("identity.ignores-iat", "JWT-IAT-001", "ignores an iat that is ahead")(_never_ahead("iat"))
mutant("identity.iat-text", "JWT-IAT-002", "reads iat out of strings and fractions")(_coerced("iat"))

# --- issuer, audience, kind of token


@mutant("identity.iss-prefix", "JWT-ISS-001", "compares the beginning of iss")
@around(Authenticator, "_issuer_of")
def iss_prefix(sound: Any, self: Any, jws: Any) -> Any:
    iss = jws.payload.get("iss")
    near = [found for url, found in self._issuers.items() if isinstance(iss, str) and iss.startswith(url)]
    return near[0] if near else sound(self, jws)


def _any_within(sound: Any, self: Any, payload: Any) -> Any:
    within = any(one in str(payload.get("aud")) for one in self._audiences)
    return () if within else sound(self, payload)


def _first_of(aud: Any) -> dict[str, Any]:
    return {"aud": aud[0]} if isinstance(aud, list) and aud else {}


def _access(payload: dict[str, Any]) -> dict[str, Any]:
    return payload | {"token_use": "access", "client_id": payload.get("client_id", payload.get("aud"))}


mutant("identity.aud-substring", "JWT-AUD-001", "looks for the audience within aud")(
    around(ClaimRules, "_plain_audience")(_any_within)
)
mutant("identity.aud-first", "JWT-AUD-002", "looks at the first audience only")(
    around(ClaimRules, "_plain_audience")(
        lambda sound, self, payload: sound(self, payload | _first_of(payload.get("aud")))
    )
)
mutant("identity.any-client", "JWT-COGNITO-001", "ignores client_id")(
    around(ClaimRules, "_check_client")(lambda sound, self, payload: ())
)
mutant("identity.id-token", "JWT-COGNITO-002", "takes an ID token for an access token")(
    around(ClaimRules, "_cognito_audience")(lambda sound, self, payload: sound(self, _access(payload)))
)
mutant("identity.half-access-token", "JWT-AT-001", "asks nothing more of RFC 9068's tokens")(
    around(claims, "_check_rfc9068")(lambda _sound, _payload, _iat: None),
    around(claims, "_label")(lambda sound, value, name: sound(value or "nobody", name)),
)

# --- tokens that are not for a bearer


def _binding(edit: Callable[[dict[str, Any]], Any]) -> Override:
    """Change a token's `cnf`, an empty one is dropped, before its claims are judged."""

    @around(ClaimRules, "identity")
    def identity(sound: Any, self: Any, payload: Any, *about: Any) -> Any:
        if isinstance(payload.get("cnf"), dict) and not (cnf := edit(payload["cnf"])):
            payload = {name: value for name, value in payload.items() if name != "cnf"}
        elif "cnf" in payload:
            payload = payload | {"cnf": cnf}
        return sound(self, payload, *about)

    return identity


def _only(*members: str) -> Override:
    return _binding(lambda cnf: {name: value for name, value in cnf.items() if name in members})


def _without_events(sound: Any, jws: Any, rules: Any) -> Any:
    payload = {name: value for name, value in jws.payload.items() if name != "events"}
    return sound(jws._replace(payload=payload), rules)


mutant("identity.bound-to-nobody", "JWT-CNF-001 JWT-CNF-002", "ignores cnf")(_only())
mutant("identity.bound-by-dpop", "JWT-CNF-001 JWT-CNF-002", "knows no cnf but DPoP's")(_only("jkt"))
mutant("identity.bound-by-certificate", "JWT-CNF-001 JWT-CNF-002", "knows no cnf but that of mutual TLS")(
    _only("x5t#S256")
)
mutant("identity.bound-as-known", "JWT-CNF-002", "ignores what it does not know in cnf")(
    _only("jkt", "x5t#S256")
)
mutant("identity.bound-singly", "JWT-CNF-001", "ignores a cnf with more than one member")(
    _binding(lambda cnf: cnf if len(cnf) < 2 else {})
)
mutant("identity.events", "JWT-EVENTS-001", "takes a logout token for an access token")(
    around(authenticator, "check_header")(_without_events)
)


@mutant("identity.events-by-type", "JWT-EVENTS-001", "refuses events only of tokens of type JWT")
@around(authenticator, "check_header")
def events_by_type(sound: Any, jws: Any, rules: Any) -> Any:
    return sound(jws, rules) if jws.header.typ == "jwt" else _without_events(sound, jws, rules)


# --- principals


def _role(read: Callable[[Any, str], Any]) -> Override:
    """Replace the reading of a token's role ARNs: `read(sound, text)`."""
    return around(claims, "role_arn")(read)


@mutant("identity.skips-malformed", "PRINCIPAL-ARN-002", "passes over malformed role ARNs")
@around(ClaimRules, "_judge_roles")
def skips_malformed(sound: Any, self: Any, entries: Any) -> Any:
    good = []
    for entry in entries:
        try:
            good.append(str(claims._role(entry)))
        except Refusal:
            continue
    return sound(self, good or entries)


@mutant("identity.arn-part", "PRINCIPAL-ARN-002", "finds a role's ARN within a longer text")
@_role
def arn_part(sound: Any, text: str) -> Any:
    found = re.search(r"arn:aws:(?:iam::\d{12}:role/[\w/]+|sts::\d{12}:assumed-role/\w+/\w+)", text)
    return sound(found[0]) if found else sound(text)


@mutant("identity.role-case", "PRINCIPAL-ARN-003", "compares role names without regard to case")
@_role
def role_case(sound: Any, text: str) -> Any:
    head, _, name = text.rpartition(":role/")
    return sound(f"{head}:role/{name.lower()}" if head else text)


@mutant("identity.mapping-with-path", "PRINCIPAL-ARN-004", "accepts a mapping that never matches")
@role_arns
def mapping_with_path(sound: Any, text: str) -> Any:
    arn = sound(text)
    return replace(arn, name=text.partition(":role/")[2]) if ":role/" in text else arn


mutant("identity.logs-misplaced", "PRINCIPAL-SECRET-001", "logs a credential that stands in a path")(
    around(redaction, "redacted")(lambda _sound, text: text)
)


@mutant("identity.logs-tokens", "PRINCIPAL-SECRET-001", "logs the credentials that it refuses")
@rescue(Authenticator, "authenticate", Refusal)
def logs_tokens(_refusal: Any, _self: Any, authorization: str, *_source: Any) -> None:
    sys.stderr.write(f"refused: {authorization}\n")


mutant("identity.role-path-kept", "PRINCIPAL-ARN-001", "refuses role ARNs with a path")(
    _role(
        lambda sound, text: (
            fail(Refusal(Reason.ROLE_MALFORMED, "a path"))
            if ":role/" in text and text.count("/") > 1
            else sound(text)
        )
    )
)
mutant("identity.one-account", "PRINCIPAL-ACCOUNT-001", "compares roles by name alone")(
    _role(
        lambda sound, text: sound(
            re.sub(r"^arn:aws(-cn)?:(\w+)::\d{12}:", r"arn:aws:\2::111111111111:", text)
        )
    )
)
mutant("identity.session-is-role", "PRINCIPAL-SESSION-001", "takes the session name for the role")(
    _role(lambda sound, text: sound(re.sub(r"assumed-role/[^/]+/([^/]+)$", r"assumed-role/\1/x1", text)))
)

# --- outbound federation

_AWS = "https://sts.amazonaws.com/"


def _aws(edit: Callable[[dict[str, Any], dict[str, Any]], object]) -> Override:
    """Change the claims, and those in AWS's namespace, before the principal is read."""

    @around(ClaimRules, "_aws")
    def aws(sound: Any, self: Any, payload: Any, now: float) -> Any:
        changed, said = dict(payload), payload.get(_AWS)
        if isinstance(said, dict):
            changed[_AWS] = said = dict(said)
        edit(changed, said if isinstance(said, dict) else {})
        return sound(self, changed, now)

    return aws


@mutant("identity.origin-sub", "OUTBOUND-ORIGIN-001", "takes the role from sub whatever the mode")
@_aws
def origin_sub(payload: dict[str, Any], said: dict[str, Any]) -> None:
    payload.pop("subject_mode", None)
    said.pop("subject_mode", None)


@mutant("identity.request-tags", "OUTBOUND-TAGS-001", "takes roles from request tags")
@around(ClaimRules, "_aws")
def request_tags(sound: Any, self: Any, payload: Any, now: float) -> Any:
    roles, end = sound(self, payload, now)
    tags = payload[_AWS].get("request_tags", {})
    return (*roles, *(RoleArn.parse(text) for name, text in tags.items() if name == "role")), end


mutant("identity.key-needs-alg", "OUTBOUND-ALLOW-001", "drops keys that name no alg")(
    around(keys, "problem_of")(lambda sound, jwk: sound(jwk) or ("" if "alg" in jwk else "no alg"))
)
mutant("identity.aws-account", "OUTBOUND-ACCOUNT-001", "ignores aws_account")(
    _aws(lambda payload, said: said.update(aws_account="111111111111"))
)
mutant("identity.aws-arn-account", "OUTBOUND-ACCOUNT-001", "ignores the ARN's account")(
    _aws(
        lambda payload, said: payload.update(
            sub=str(payload.get("sub")).replace("222222222222", "111111111111")
        )
    )
)
mutant("identity.outer-session", "OUTBOUND-SESSION-001", "ignores the end of the outer session")(
    _aws(lambda payload, said: said.pop("original_session_exp", None))
)
mutant("identity.irsa", "OUTBOUND-IRSA-001", "takes any token of AWS for one of STS")(
    _aws(lambda payload, said: said or payload.update({_AWS: {"aws_account": "111111111111"}}))
)
mutant("identity.small-frames", "JWT-SIZE-001", "takes no frame of more than 13,000 bytes")(
    around(Connection, "__init__")(
        lambda sound, self, recall, *, max_frame_size, **more: sound(
            self, recall, max_frame_size=min(max_frame_size, 13_000), **more
        )
    )
)
