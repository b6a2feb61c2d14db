"""Mutants of credentials: TOKEN, ROTATE, CLOUD."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.serving import gate
from iamroles_agent.serving.gate import Gate
from iamroles_agent.tokens import authenticator
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.jws import parse
from iamroles_agent.tokens.keys import Key, KeySet
from iamroles_conformance.selftest.mutants.edits import actions_out
from iamroles_conformance.selftest.mutants.gate.policy import unknown_role_is_known
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.mutants.policy.edits import role_arns
from iamroles_conformance.selftest.registry import Override, mutant


@mutant("gate.accepts-expired", "TOKEN-TIME-001", "accepts expired tokens")
@around(ClaimRules, "_times")
def accepts_expired(sound: Any, self: Any, payload: Any, now: float) -> Any:
    exp, iat = sound(self, payload, min(now, payload.get("exp", now + 1) - 1))
    return exp + 86400, iat


@mutant("gate.cache-outlives-token", "TOKEN-TIME-002", "serves a remembered verdict after the expiry")
@around(gate.Gate, "_remember")
def cache_outlives_token(sound: Any, self: Any, state: Any, key: bytes, verdict: Any) -> None:
    verdict.expires += 3600
    sound(self, state, key, verdict)


mutant("gate.ignores-audience", "TOKEN-AUD-001", "ignores aud")(
    around(ClaimRules, "_plain_audience")(lambda sound, self, payload: ())
)


def _issuer(find: Any) -> Override:
    @around(Authenticator, "_issuer_of")
    def issuer_of(sound: Any, self: Any, jws: Any) -> Any:
        iss = jws.payload.get("iss")
        return (find(self, iss) if isinstance(iss, str) else None) or sound(self, jws)

    return issuer_of


mutant("gate.issuer-slash", "TOKEN-ISS-001", "takes an issuer with a trailing slash for the same")(
    _issuer(lambda self, iss: self._issuers.get(iss) or self._issuers.get(iss.rstrip("/")))
)
mutant("gate.any-issuer", "TOKEN-ISS-001", "judges a token of an unknown issuer by the first one")(
    _issuer(lambda self, iss: self._issuers.get(iss) or next(iter(self._issuers.values())))
)
mutant("gate.no-signature", "TOKEN-SIG-001", "does not verify signatures")(
    setting(Key, "verifier", lambda self, alg: lambda signature, data: True)
)


@mutant("gate.alg-none", "TOKEN-SIG-002", "accepts unsigned tokens (alg none)")
@around(Authenticator, "_verify")
async def alg_none(sound: Any, self: Any, token: bytes, *rest: Any) -> Any:
    if not token.startswith(b"iam-sts-v1."):
        jws = parse(token, self._max_bytes)
        if jws.header.alg.lower() == "none":
            rules = self._issuer_of(jws).rules
            return rules.identity(jws.payload, jws.header, self._clock(), ""), None, True
    return await sound(self, token, *rest)


mutant("gate.two-credentials", "TOKEN-COUNT-001", "judges the last of two Authorization headers")(
    around(Gate, "_identify")(
        lambda sound, self, auth, check: sound(self, auth, replace(check, authorization_count=1))
    )
)


@mutant("gate.no-token-invalid", "TOKEN-MISSING-001", "calls a missing token an invalid one")
@around(Gate, "_identify")
async def no_token_invalid(sound: Any, self: Any, authenticator: Any, check: Any) -> Any:
    if not check.authorization:
        raise Refusal(Reason.TOKEN_MALFORMED, "none")
    return await sound(self, authenticator, check)


mutant("gate.scheme-case", "TOKEN-SCHEME-001", "takes only `Bearer` in this spelling")(
    around(authenticator, "bearer")(lambda sound, text: sound(text) if text.startswith("Bearer") else None)
)


def _renamed(name: bytes, old: bytes, new: bytes) -> Any:
    before = bytes([len(name)]) + name + b"\x08" + bytes([len(old)]) + old
    after = bytes([len(name)]) + name + b"\x08" + bytes([len(new)]) + new
    return lambda actions: actions.replace(before, after)


mutant("gate.error-code-token", "TOKEN-ERROR-001", "says invalid_request of a bad token")(
    actions_out(_renamed(b"error", b"invalid_token", b"invalid_request"))
)
mutant("gate.error-code-scope", "TOKEN-ERROR-002", "says invalid_token of a role without the route")(
    actions_out(_renamed(b"error", b"insufficient_scope", b"invalid_token"))
)


@mutant("gate.one-reason", "TOKEN-REASON-001", "gives one reason for all bad tokens")
@actions_out
def one_reason(actions: bytes) -> bytes:
    for reason in (b"token_expired", b"audience_mismatch", b"issuer_untrusted", b"signature_invalid"):
        actions = _renamed(b"reason", reason, b"token_malformed")(actions)
    return actions


# --- keys
mutant("gate.one-key", "ROTATE-KEY-001", "knows only the first key of a set")(
    around(KeySet, "__init__")(lambda sound, self, keys, dropped=(): sound(self, keys[:1], dropped))
)


async def _asks_nothing(_sound: Any, _self: Any, _kid: str) -> None:
    return


_no_schedule = around(KeySource, "_schedule")(lambda _sound, _self, _delay: None)
mutant("gate.no-refetch", "ROTATE-KEY-002", "never asks again for an unknown kid")(
    around(KeySource, "_ask")(_asks_nothing), _no_schedule
)
mutant("gate.keeps-removed-keys", "ROTATE-KEY-003", "goes on with keys that were removed")(_no_schedule)
mutant("gate.session-is-role", "CLOUD-ROLE-001", "takes the session name for the role's name")(
    role_arns(
        lambda sound, text: sound(re.sub(r"assumed-role/([^/]+)/([^/]+)$", r"assumed-role/\2/\1", text))
    )
)


@mutant("gate.no-aws-tokens", "CLOUD-ROLE-002", "does not know AWS's claims")
@around(ClaimRules, "_aws")
def no_aws_tokens(_sound: Any, _self: Any, _payload: Any, _now: float) -> Any:
    raise Refusal(Reason.ROLE_MISSING, "no roles")


mutant("gate.cloud-vouches", "CLOUD-ROLE-003", "gives an unmapped cloud role the first role's grants")(
    unknown_role_is_known
)
