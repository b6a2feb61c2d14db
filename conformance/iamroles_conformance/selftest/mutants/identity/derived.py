"""Mutants for the checks that are derived from tables: credentials, claims, texts, times and reasons."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA384

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.policy import compiled
from iamroles_agent.serving import gate
from iamroles_agent.spop import actions
from iamroles_agent.spop.actions import VariableScope, set_var
from iamroles_agent.spop.values import DataType
from iamroles_agent.tokens import authenticator, claims, jws, keys
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_agent.tokens.jwks import KeySource
from iamroles_conformance.selftest.mutants import edits as edit
from iamroles_conformance.selftest.mutants.identity.sts import any_account
from iamroles_conformance.selftest.mutants.override import after, around, before, rescue, setting
from iamroles_conformance.selftest.registry import Override, mutant

# --- the memory of identities (kind 2 of docs/derived-checks.md)


def _known_by(part: Callable[[bytes], bytes]) -> Override:
    """Remember identities by a part of the credential."""
    return setting(
        authenticator, "hashlib", SimpleNamespace(sha256=lambda token: hashlib.sha256(part(token)))
    )


def _unsigned(token: bytes) -> bytes:
    """Take the signature out of a pre-signed URL, and leave other credentials as they are."""
    if not token.startswith(b"iam-sts-v1."):
        return token
    try:
        url = base64.urlsafe_b64decode(token[11:] + b"==")
    except ValueError:
        return token
    return re.sub(rb"X-Amz-Signature=[^&]*", b"", url)


mutant("identity.derived-known-unsigned", "DERIVED-CREDENTIAL-001", "knows a token by header and payload")(
    _known_by(lambda token: token.rpartition(b".")[0] or token)
)
mutant("identity.derived-known-by-signature", "DERIVED-CREDENTIAL-001", "knows a token by its signature")(
    _known_by(lambda token: token.rpartition(b".")[2])
)
mutant("identity.derived-sts-unsigned", "DERIVED-CREDENTIAL-002", "knows a URL without its signature")(
    _known_by(_unsigned)
)

# --- keys of issuers and endpoints (kind 3)


def _ruled(name: str, value: Callable[[Any, Any, Any], object]) -> Override:
    """Change a member of an issuer's rules once they are compiled: `value(rules, issuer, limits)`."""
    return after(ClaimRules, "__init__")(
        lambda self, issuer, limits: setattr(self, name, value(self, issuer, limits))
    )


mutant("identity.derived-accounts-of-aws", "DERIVED-KEY-002", "checks `accounts` of the profile `aws` alone")(
    _ruled("_accounts", lambda rules, of, _: rules._accounts if of.profile == "aws" else frozenset())
)
mutant("identity.derived-greater-lifetime", "DERIVED-KEY-002", "takes the greater of two lifetimes")(
    _ruled("_lifetime", lambda _, issuer, limits: max(issuer.max_lifetime, limits.max_lifetime or 0.0))
)
mutant("identity.derived-cognito-roles", "DERIVED-KEY-002", "reads Cognito's roles where others have them")(
    _ruled("_find_roles", lambda _, issuer, __: claims._finder((issuer.roles_claim,)))
)
mutant("identity.derived-preferred-by-arn", "DERIVED-KEY-002", "passes over a preferred role that is no ARN")(
    _ruled(
        "_find_preferred", lambda rules, *_: (find := rules._find_preferred) and (lambda of: _arn(find(of)))
    )
)
mutant("identity.derived-aws-vouches", "DERIVED-KEY-002", "lets an issuer without `accounts` vouch for all")(
    _ruled("_accounts", lambda rules, *_: rules._accounts or frozenset({"111111111111", "222222222222"}))
)


@mutant("identity.derived-user-is-malformed", "DERIVED-KEY-002", "calls a user of AWS a malformed role")
@rescue(ClaimRules, "_aws", Refusal)
def _user_is_malformed(refusal: Any, *_asked: Any) -> None:
    if refusal.reason is Reason.ROLE_MISSING:
        raise Refusal(Reason.ROLE_MALFORMED, refusal.detail)


mutant("identity.derived-sts-accounts", "DERIVED-KEY-003", "does not hold an STS endpoint to its `accounts`")(
    any_account
)


def _arn(wish: Any) -> Any:
    return None if isinstance(wish, str) and not wish.startswith("arn:") else wish


# --- times (kind 5)


def _later(identity: Any) -> Any:
    return identity._replace(not_after=identity.not_after + 1)


def _without_leeway(found: Any, policy: Any, identity: Any, _request: Any) -> dict[str, Any]:
    issuers = (issuer for issuer in policy.config.issuers if issuer.name == identity.issuer)
    return {"expires": found.expires - int(sum(float(issuer.leeway) for issuer in issuers))}


mutant("identity.derived-last-second", "DERIVED-TIME-001", "grants remembered tokens one second too much")(
    around(ClaimRules, "identity")(lambda sound, self, *rest: _later(sound(self, *rest)))
)
mutant(
    "identity.derived-told-otherwise", "DERIVED-TIME-001", "reports an end without the leeway that it keeps"
)(edit.granted(_without_leeway))

# --- claims and tags (kind 6)


def _flat(value: list[Any]) -> list[Any]:
    return [role for each in value for role in (each if isinstance(each, list) else [each])]


@mutant("identity.derived-times-as-text", "DERIVED-CLAIM-001", "reads a time that is a text")
@around(claims, "_seconds")
def _times_as_text(sound: Any, payload: Any, name: str) -> Any:
    value = payload.get(name)
    return int(value) if isinstance(value, str) and value.isdigit() else sound(payload, name)


mutant("identity.derived-audience-split", "DERIVED-CLAIM-001", "splits an audience at blanks and commas")(
    around(ClaimRules, "_check_audience")(
        lambda sound, self, aud: sound(self, re.split("[ ,]", aud) if isinstance(aud, str) else aud)
    )
)
mutant("identity.derived-roles-flat", "DERIVED-CLAIM-001", "reads roles out of lists in the list")(
    around(ClaimRules, "_roles")(
        lambda sound, self, value: sound(self, _flat(value) if isinstance(value, list) else value)
    )
)
mutant("identity.derived-tags-trimmed", "DERIVED-TAG-001", "takes the outer blanks off a principal")(
    around(claims, "_label")(
        lambda sound, value, name: sound(value.strip() if isinstance(value, str) else value, name)
    )
)
mutant("identity.derived-tags-cut", "DERIVED-TAG-001", "cuts a long principal")(
    edit.decided(lambda found, *_: replace(found, principal=found.principal[:256]))
)

# --- texts (kind 7)


def _text(text: str) -> str:
    """Decode an argument's bytes as UTF-8."""
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
    code = set_var(VariableScope.TRANSACTION, "error", DataType.STRING, b"server_error")
    found: bytes = sound(decision, *rest)
    return found + code if decision.status == 503 else found


_claimed: list[str] = []


@rescue(Authenticator, "_verify", Refusal)
def _remembers_claims(refusal: Any, self: Any, token: bytes, *_rest: Any) -> None:
    if refusal.reason is Reason.SIGNATURE_INVALID:
        claimed = jws.parse(token, self._max_bytes).payload
        _claimed[:] = str(claimed.get("sub")), str(claimed.get("sid"))


def _who_claims(decision: Any) -> dict[str, Any]:
    forged = decision.reason is Reason.SIGNATURE_INVALID
    return {"principal": _claimed[0], "session": _claimed[1]} if forged else {}


def _role_asked_for(decision: Any) -> dict[str, Any]:
    asked = decision.reason is Reason.ROLE_NOT_IN_TOKEN
    return {"role": "arn:aws:iam::111111111111:role/brief"} if asked else {}


@mutant("identity.derived-claims-first", "DERIVED-REASON-002", "judges the claims before the signature")
@before(Authenticator, "_verify")
def _claims_first(self: Any, token: bytes, *_rest: Any) -> None:
    if not token.startswith(b"iam-sts"):
        found = jws.parse(token, self._max_bytes)
        rules = self._issuer_of(found).rules
        rules.identity(found.payload, found.header, self._clock(), "")


def _scope_first(found: Any, _policy: Any, identity: Any, _request: Any) -> Any:
    denied = found.reason is Reason.DENIED_BY_RULE and identity.scopes == {"nothing"}
    return replace(found, reason=Reason.SCOPE_INSUFFICIENT, rule="") if denied else found


mutant("identity.derived-short-end", "DERIVED-REASON-001", "tells the end of access as a UINT32")(
    around(actions, "set_var")(
        lambda sound, scope, name, kind, value: sound(
            scope, name, DataType.UINT32 if name == "expires" else kind, value
        )
    )
)
mutant("identity.derived-backend-of-refusals", "DERIVED-REASON-001", "names a backend beside a refusal")(
    edit.refused(lambda _: {"backend": "orders-ro"})
)
mutant("identity.derived-names-the-forger", "DERIVED-REASON-001", "names whom a forged token claims to be")(
    _remembers_claims, edit.refused(_who_claims)
)
mutant("identity.derived-late-end", "DERIVED-REASON-001", "reports an end an hour late in refusals")(
    edit.refused(lambda found: {} if found.expires is None else {"expires": found.expires + 3600})
)
mutant("identity.derived-role-asked-for", "DERIVED-REASON-001", "names a role that the token does not have")(
    edit.refused(_role_asked_for)
)
mutant("identity.derived-scope-first", "DERIVED-REASON-002", "names a missing scope before a deny")(
    edit.decided(_scope_first)
)

# --- algorithms

_ANY_SALT = padding.PSS(padding.MGF1(SHA384()), padding.PSS.AUTO)
_WIDE = keys.Algorithm("OKP", ("Ed25519", "Ed448"), keys._eddsa)


@mutant("identity.derived-one-edwards", "DERIVED-ALGORITHM-001", "takes EdDSA where Ed25519 is named")
@around(authenticator, "check_header")
def _one_edwards(sound: Any, token: Any, rules: Any) -> Any:
    if token.header.alg == "EdDSA" and "Ed25519" in rules.algorithms:
        return "EdDSA"
    return sound(token, rules)


mutant("identity.derived-wide-edwards", "DERIVED-ALGORITHM-001", "takes Ed448 for Ed25519")(
    Override(lambda: keys.ALGORITHMS.update(Ed25519=_WIDE))
)


_rules: dict[object, str] = {}


def _former_rule(found: Any, *_judged: Any) -> Any:
    return found if found.reason else replace(found, rule=_rules.setdefault(found.role, found.rule))


mutant("identity.derived-former-rule", "DERIVED-KEYS-002", "names a former rule beside the new backend")(
    edit.decided(_former_rule)
)

mutant("identity.derived-former-claims", "DERIVED-KEYS-002", "reads a token by the rules that read it first")(
    around(Authenticator, "_issuer_of")(lambda sound, it, jws: _rules.setdefault(jws[2], sound(it, jws)))
)
mutant("identity.derived-former-times", "DERIVED-KEYS-002", "keeps the former times of an issuer that stays")(
    around(KeySource, "configure")(lambda sound, self, issuer, _keys: sound(self, issuer, self.settings))
)

# --- the octets of signatures


def _signed(alg: str, change: Callable[[Any, bytes], bytes]) -> Override:
    """Change the octets of signatures by some algorithms, named by their first letters."""

    @around(keys.Key, "verifier")
    def verifier(sound: Any, self: Any, name: str) -> Any:
        verify = sound(self, name)
        return (lambda octets, data: verify(change(self, octets), data)) if name.startswith(alg) else verify

    return verifier


def _wrapped(octets: bytes) -> bytes:
    """Reduce S of Ed25519 by the order of the base point."""
    order = (1 << 252) + 27742317777372353535851937790883648493
    return octets[:32] + (int.from_bytes(octets[32:], "little") % order).to_bytes(32, "little")


mutant("identity.derived-pads-rsa", "DERIVED-SIGNATURE-001", "takes an RSA signature without its zero octet")(
    _signed("RS", lambda key, octets: octets.rjust(key.public.key_size // 8, b"\0"))
)
mutant(
    "identity.derived-first-zero", "DERIVED-SIGNATURE-001", "refuses an ECDSA r with a zero octet in front"
)(_signed("ES", lambda _, octets: b"" if octets.startswith(b"\0") else octets))
mutant("identity.derived-wraps", "DERIVED-SIGNATURE-001", "takes an S of Ed25519 above the order")(
    _signed("Ed", lambda _, octets: _wrapped(octets))
)
mutant("identity.derived-any-salt", "DERIVED-SIGNATURE-001", "takes PSS with a salt of any length")(
    Override(lambda: keys.ALGORITHMS.update(PS384=keys.Algorithm("RSA", (), keys._rsa(_ANY_SALT, SHA384()))))
)
