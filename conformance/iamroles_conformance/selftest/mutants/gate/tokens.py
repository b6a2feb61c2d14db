"""Mutants of credentials: TOKEN, ROTATE, CLOUD."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from iamroles_agent import gate
from iamroles_agent.gate import Gate
from iamroles_agent.identity import RoleArn
from iamroles_agent.reasons import Reason, Refusal
from iamroles_agent.tokens import authenticator
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.jws import parse
from iamroles_agent.tokens.keys import Key, KeySet
from iamroles_conformance.selftest.mutants.edits import actions_out
from iamroles_conformance.selftest.mutants.gate.policy import unknown_role_is_known
from iamroles_conformance.selftest.mutants.override import override
from iamroles_conformance.selftest.registry import mutant


def _claims(name: str, make: Any) -> None:
    override(ClaimRules, name, make)


@mutant("gate.accepts-expired", kills=["TOKEN-TIME-001"], title="accepts expired tokens")
def accepts_expired() -> None:
    def make(sound: Any) -> Any:
        def times(self: Any, payload: Any, now: float) -> Any:
            exp, iat = sound(self, payload, min(now, payload.get("exp", now + 1) - 1))
            return exp + 86400, iat

        return times

    _claims("_times", make)


@mutant(
    "gate.cache-outlives-token",
    kills=["TOKEN-TIME-002"],
    title="serves a remembered verdict after the expiry",
)
def cache_outlives_token() -> None:
    def make(sound: Any) -> Any:
        def remember(self: Any, state: Any, key: bytes, verdict: Any) -> None:
            verdict.expires += 3600
            sound(self, state, key, verdict)

        return remember

    override(gate.Gate, "_remember", make)


@mutant("gate.ignores-audience", kills=["TOKEN-AUD-001"], title="ignores aud")
def ignores_audience() -> None:
    _claims("_plain_audience", lambda sound: lambda self, payload: None)


@mutant(
    "gate.issuer-slash", kills=["TOKEN-ISS-001"], title="takes an issuer with a trailing slash for the same"
)
def issuer_slash() -> None:
    _issuer(lambda self, iss: self._issuers.get(iss) or self._issuers.get(iss.rstrip("/")))


@mutant(
    "gate.any-issuer", kills=["TOKEN-ISS-001"], title="judges a token of an unknown issuer by the first one"
)
def any_issuer() -> None:
    _issuer(lambda self, iss: self._issuers.get(iss) or next(iter(self._issuers.values())))


def _issuer(find: Any) -> None:
    def make(sound: Any) -> Any:
        def issuer_of(self: Any, jws: Any) -> Any:
            iss = jws.payload.get("iss")
            return find(self, iss) if isinstance(iss, str) else sound(self, jws)

        return issuer_of

    override(Authenticator, "_issuer_of", make)


@mutant("gate.no-signature", kills=["TOKEN-SIG-001"], title="does not verify signatures")
def no_signature() -> None:
    Key.verifier = lambda self, alg: lambda signature, data: True


@mutant("gate.alg-none", kills=["TOKEN-SIG-002"], title="accepts unsigned tokens (alg none)")
def alg_none() -> None:
    def make(sound: Any) -> Any:
        async def verify(self: Any, token: bytes, digest: bytes) -> Any:
            if not token.startswith(b"iam-sts-v1."):
                jws = parse(token, self._max_bytes)
                if jws.header.alg.lower() == "none":
                    rules = self._issuer_of(jws).rules
                    return rules.identity(jws.payload, jws.header, self._clock(), ""), None, True
            return await sound(self, token, digest)

        return verify

    override(Authenticator, "_verify", make)


def _identify(make: Any) -> None:
    override(Gate, "_identify", make)


@mutant(
    "gate.two-credentials", kills=["TOKEN-COUNT-001"], title="judges the last of two Authorization headers"
)
def two_credentials() -> None:
    def make(sound: Any) -> Any:
        return lambda self, auth, check: sound(self, auth, replace(check, authorization_count=1))

    _identify(make)


@mutant("gate.no-token-invalid", kills=["TOKEN-MISSING-001"], title="calls a missing token an invalid one")
def no_token_invalid() -> None:
    def make(sound: Any) -> Any:
        async def identify(self: Any, authenticator: Any, check: Any) -> Any:
            if not check.authorization:
                raise Refusal(Reason.TOKEN_MALFORMED, "none")
            return await sound(self, authenticator, check)

        return identify

    _identify(make)


@mutant("gate.scheme-case", kills=["TOKEN-SCHEME-001"], title="takes only `Bearer` in this spelling")
def scheme_case() -> None:
    def make(sound: Any) -> Any:
        return lambda text: sound(text) if text.startswith("Bearer") else None

    override(authenticator, "bearer", make)


def _answers(edit: Any) -> None:
    """Change each ACK's actions as text substitution."""
    actions_out(edit)


def _renamed(name: bytes, old: bytes, new: bytes) -> Any:
    before = bytes([len(name)]) + name + b"\x08" + bytes([len(old)]) + old
    after = bytes([len(name)]) + name + b"\x08" + bytes([len(new)]) + new
    return lambda actions: actions.replace(before, after)


@mutant("gate.error-code-token", kills=["TOKEN-ERROR-001"], title="says invalid_request of a bad token")
def error_code_token() -> None:
    _answers(_renamed(b"error", b"invalid_token", b"invalid_request"))


@mutant(
    "gate.error-code-scope", kills=["TOKEN-ERROR-002"], title="says invalid_token of a role without the route"
)
def error_code_scope() -> None:
    _answers(_renamed(b"error", b"insufficient_scope", b"invalid_token"))


@mutant("gate.one-reason", kills=["TOKEN-REASON-001"], title="gives one reason for all bad tokens")
def one_reason() -> None:
    def edit(actions: bytes) -> bytes:
        for reason in (b"token_expired", b"audience_mismatch", b"issuer_untrusted", b"signature_invalid"):
            actions = _renamed(b"reason", reason, b"token_malformed")(actions)
        return actions

    _answers(edit)


# --- keys -------------------------------------------------------------------------------------------------


def _keys(name: str, make: Any) -> None:
    override(KeySource, name, make)


@mutant("gate.one-key", kills=["ROTATE-KEY-001"], title="knows only the first key of a set")
def one_key() -> None:
    override(KeySet, "__init__", lambda sound: lambda self, keys, dropped=(): sound(self, keys[:1], dropped))


@mutant("gate.no-refetch", kills=["ROTATE-KEY-002"], title="never asks again for an unknown kid")
def no_refetch() -> None:
    def make(_sound: Any) -> Any:
        async def ask(_self: Any, _kid: str) -> None:
            return

        return ask

    _keys("_ask", make)
    _keys("_schedule", lambda sound: lambda self, delay: None)


@mutant("gate.keeps-removed-keys", kills=["ROTATE-KEY-003"], title="goes on with keys that were removed")
def keeps_removed_keys() -> None:
    _keys("_schedule", lambda sound: lambda self, delay: None)


@mutant("gate.session-is-role", kills=["CLOUD-ROLE-001"], title="takes the session name for the role's name")
def session_is_role() -> None:
    sound = RoleArn.parse.__func__  # type: ignore[attr-defined]

    def parse(cls: Any, text: str) -> Any:
        swapped = re.sub(r"assumed-role/([^/]+)/([^/]+)$", r"assumed-role/\2/\1", text)
        return sound(cls, swapped)

    RoleArn.parse = classmethod(parse)


@mutant("gate.no-aws-tokens", kills=["CLOUD-ROLE-002"], title="does not know AWS's claims")
def no_aws_tokens() -> None:
    def refuse(_self: Any, _payload: Any, _now: float) -> Any:
        raise Refusal(Reason.ROLE_MISSING, "no roles")

    _claims("_aws", lambda sound: refuse)


@mutant(
    "gate.cloud-vouches",
    kills=["CLOUD-ROLE-003"],
    title="gives an unmapped cloud role the first role's grants",
)
def cloud_vouches() -> None:
    unknown_role_is_known()
