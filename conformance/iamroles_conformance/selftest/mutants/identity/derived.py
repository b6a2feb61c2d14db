"""Mutants for the checks that are derived from tables: credentials, claims, texts, times and reasons."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.policy import compiled
from iamroles_agent.serving import gate
from iamroles_agent.spop import actions
from iamroles_agent.spop.actions import Scope, set_var
from iamroles_agent.spop.values import DataType
from iamroles_agent.tokens import authenticator, claims, jws, keys
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_agent.tokens.sts import StsVerifier
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.mutants.policy import edits as edit
from iamroles_conformance.selftest.registry import Override, mutant


# --- the memory of identities (kind 2 of docs/derived-checks.md)
def _known_by(part: Callable[[bytes], bytes]) -> Override:
    """Remember identities by a part of the credential."""
    return setting(
        authenticator, "hashlib", SimpleNamespace(sha256=lambda token: hashlib.sha256(part(token)))
    )


def _unsigned(token: bytes) -> bytes:
    """A pre-signed URL without its signature; any other credential as it is."""
    if not token.startswith(b"iam-sts-v1."):
        return token
    try:
        url = base64.urlsafe_b64decode(token[11:] + b"==")
    except ValueError:
        return token
    return re.sub(rb"X-Amz-Signature=[^&]*", b"", url)


mutant(
    "identity.derived-known-unsigned", "DERIVED-CREDENTIAL-001", "remembers an identity by header and payload"
)(_known_by(lambda token: token.rpartition(b".")[0] or token))
mutant(
    "identity.derived-known-by-signature",
    "DERIVED-CREDENTIAL-001",
    "remembers an identity by the signature alone",
)(_known_by(lambda token: token.rpartition(b".")[2]))
mutant(
    "identity.derived-sts-unsigned",
    "DERIVED-CREDENTIAL-002",
    "remembers a caller by the URL without its signature",
)(_known_by(_unsigned))


# --- keys of issuers and endpoints (kind 3)
def _ruled(**members: Callable[[Any, Any, Any], object]) -> Override:
    """Change members of an issuer's rules once they are compiled."""

    @around(ClaimRules, "__init__")
    def init(sound: Any, self: Any, issuer: Any, limits: Any) -> None:
        sound(self, issuer, limits)
        for name, value in members.items():
            setattr(self, name, value(self, issuer, limits))

    return init


mutant(
    "identity.derived-accounts-of-aws",
    "DERIVED-KEY-002",
    "holds an issuer to its `accounts` with the profile `aws` alone",
)(_ruled(_accounts=lambda rules, issuer, _: rules._accounts if issuer.profile == "aws" else frozenset()))
mutant("identity.derived-greater-lifetime", "DERIVED-KEY-002", "takes the greater of two lifetimes")(
    _ruled(_lifetime=lambda _, issuer, limits: max(issuer.max_lifetime, limits.max_lifetime or 0.0))
)
mutant(
    "identity.derived-cognito-roles",
    "DERIVED-KEY-002",
    "reads the roles of Cognito's tokens where other issuers have them",
)(_ruled(_find_roles=lambda _, issuer, __: claims._finder(claims._path(issuer.roles_claim))))
mutant("identity.derived-sts-accounts", "DERIVED-KEY-003", "does not hold an STS endpoint to its `accounts`")(
    around(StsVerifier, "_identity")(
        lambda sound, self, asked, *rest: sound(
            self, replace(asked, endpoint=asked.endpoint.model_copy(update={"accounts": []})), *rest
        )
    )
)


# --- times (kind 5)
@mutant(
    "identity.derived-last-second",
    "DERIVED-TIME-001",
    "grants one second more than `exp` and leeway, to tokens that it remembers",
)
@around(ClaimRules, "identity")
def _last_second(sound: Any, self: Any, *rest: Any) -> Any:
    found = sound(self, *rest)
    return found._replace(not_after=found.not_after + 1)


mutant(
    "identity.derived-told-otherwise", "DERIVED-TIME-001", "tells an end without the leeway that it keeps"
)(
    edit.decided(
        lambda policy, identity, _, found: (
            replace(found, expires=found.expires - int(_leeway(policy, identity))) if found.allow else found
        )
    )
)


def _leeway(policy: Any, identity: Any) -> float:
    """Of the issuer that an identity comes from."""
    return sum(float(issuer.leeway) for issuer in policy.config.issuers if issuer.name == identity.issuer)


# --- claims and tags (kind 6)
mutant("identity.derived-audience-split", "DERIVED-CLAIM-001", "splits an audience at blanks and commas")(
    around(ClaimRules, "_check_audience")(
        lambda sound, self, aud: sound(self, re.split("[ ,]", aud) if isinstance(aud, str) else aud)
    )
)
mutant("identity.derived-roles-flat", "DERIVED-CLAIM-001", "reads roles out of lists in the list")(
    around(ClaimRules, "_roles")(
        lambda sound, self, value: sound(
            self,
            [role for each in value for role in (each if isinstance(each, list) else [each])]
            if isinstance(value, list)
            else value,
        )
    )
)
mutant("identity.derived-times-as-text", "DERIVED-CLAIM-001", "reads a time that is a text")(
    around(claims, "_seconds")(
        lambda sound, payload, name: (
            int(payload[name])
            if isinstance(payload.get(name), str) and payload[name].isdigit()
            else sound(payload, name)
        )
    )
)
mutant("identity.derived-tags-trimmed", "DERIVED-TAG-001", "takes the outer blanks off a principal")(
    around(claims, "_label")(
        lambda sound, value, name: sound(value.strip() if isinstance(value, str) else value, name)
    )
)
mutant("identity.derived-tags-cut", "DERIVED-TAG-001", "cuts a long principal")(
    edit.decided(lambda _, __, ___, found: replace(found, principal=found.principal[:256]))
)


# --- texts (kind 7)
def _text(text: str) -> str:
    """An argument's bytes as the text that they spell."""
    return text.encode("latin-1", "replace").decode("utf-8", "replace")


mutant("identity.derived-kelvin-host", "DERIVED-EXACT-001", "takes U+212A KELVIN SIGN in a host for a `k`")(
    around(compiled, "canonical_host")(lambda sound, text: sound(_text(text).lower()))
)
mutant("identity.derived-kelvin-path", "DERIVED-EXACT-001", "takes U+212A KELVIN SIGN in a path for a `k`")(
    edit.canonical(lambda sound, path: sound(path if path.isascii() else _text(path).replace("\u212a", "k")))
)
mutant("identity.derived-audience-url", "DERIVED-EXACT-001", "drops a slash behind an audience")(
    around(ClaimRules, "_check_audience")(
        lambda sound, self, aud: sound(self, aud.rstrip("/") if isinstance(aud, str) else aud)
    )
)


# --- reasons (kind 9)
@mutant("identity.derived-503-with-code", "DERIVED-REASON-001", "sets an error code beside a 503")
@around(gate, "encode_verdict")
def _code_of_503(sound: Any, decision: Any, *rest: Any) -> bytes:
    code = set_var(Scope.TRANSACTION, "error", DataType.STRING, b"server_error")
    found: bytes = sound(decision, *rest)
    return found + code if decision.status == 503 else found


@mutant("identity.derived-short-end", "DERIVED-REASON-001", "tells the end of access as a UINT32")
@around(actions, "set_var")
def _short_end(sound: Any, scope: Any, name: str, kind: Any, value: Any) -> bytes:
    return bytes(sound(scope, name, DataType.UINT32 if name == "expires" else kind, value))


def _refusing(change: Callable[[Any], dict[str, Any]]) -> Override:
    """A refusal tells what a change makes of it."""
    return around(gate, "encode_verdict")(
        lambda sound, decision, *rest: sound(
            decision if decision.allow else replace(decision, **change(decision)), *rest
        )
    )


mutant("identity.derived-backend-of-refusals", "DERIVED-REASON-001", "names a back end beside a refusal")(
    _refusing(lambda _: {"backend": "orders-ro"})
)


def _of(self: Any, token: bytes) -> tuple[str, ...]:
    claimed = jws.parse(token, self._max_bytes).payload
    return str(claimed.get("sub")), str(claimed.get("sid"))


@around(Authenticator, "_verify")
async def _remembers_claims(sound: Any, self: Any, token: bytes, *rest: Any) -> Any:
    try:
        return await sound(self, token, *rest)
    except Refusal as refusal:
        if refusal.reason is Reason.SIGNATURE_INVALID:
            _claimed[:] = _of(self, token)
        raise


_claimed: list[str] = []


def _who_claims(decision: Any) -> dict[str, Any]:
    forged = decision.reason is Reason.SIGNATURE_INVALID
    return {"principal": _claimed[0], "session": _claimed[1]} if forged else {}


mutant(
    "identity.derived-names-the-forger",
    "DERIVED-REASON-001",
    "names in a refusal whom a forged token claims to be",
)(_remembers_claims, _refusing(_who_claims))
mutant(
    "identity.derived-late-end", "DERIVED-REASON-001", "tells in a refusal that access ends an hour later"
)(_refusing(lambda decision: {} if decision.expires is None else {"expires": decision.expires + 3600}))
mutant(
    "identity.derived-role-asked-for",
    "DERIVED-REASON-001",
    "names in a refusal a role that the token does not have",
)(
    _refusing(
        lambda decision: (
            {"role": "arn:aws:iam::111111111111:role/brief"}
            if decision.reason is Reason.ROLE_NOT_IN_TOKEN
            else {}
        )
    )
)


@mutant("identity.derived-claims-first", "DERIVED-REASON-002", "judges the claims before the signature")
@around(Authenticator, "_verify")
async def _claims_first(sound: Any, self: Any, token: bytes, *rest: Any) -> Any:
    if not token.startswith(b"iam-sts"):
        found = jws.parse(token, self._max_bytes)
        rules = self._issuer_of(found).rules
        rules.identity(found.payload, found.header, self._clock(), "")
    return await sound(self, token, *rest)


mutant("identity.derived-scope-first", "DERIVED-REASON-002", "names a missing scope before a deny")(
    edit.decided(
        lambda _, identity, __, found: (
            replace(found, reason=Reason.SCOPE_INSUFFICIENT, rule="")
            if found.reason is Reason.DENIED_BY_RULE and identity.scopes == {"nothing"}
            else found
        )
    )
)


# --- algorithms
@mutant("identity.derived-one-edwards", "DERIVED-ALGORITHM-001", "takes EdDSA where Ed25519 is named")
@around(authenticator, "check_header")
def _one_edwards(sound: Any, token: Any, rules: Any) -> Any:
    if token.header.alg == "EdDSA" and "Ed25519" in rules.algorithms:
        return "EdDSA"
    return sound(token, rules)


@mutant("identity.derived-wide-edwards", "DERIVED-ALGORITHM-001", "takes Ed448 for Ed25519")
def _wide_edwards() -> None:
    keys.ALGORITHMS["Ed25519"] = keys.Algorithm("OKP", ("Ed25519", "Ed448"), keys._eddsa)
