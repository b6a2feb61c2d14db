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
from iamroles_conformance.selftest.mutants.override import around, both, setting
from iamroles_conformance.selftest.mutants.policy.edits import role_arns
from iamroles_conformance.selftest.registry import Apply, mutant


@mutant("gate.accepts-expired", kills=["TOKEN-TIME-001"], title="accepts expired tokens")
@around(ClaimRules, "_times")
def accepts_expired(sound: Any, self: Any, payload: Any, now: float) -> Any:
    exp, iat = sound(self, payload, min(now, payload.get("exp", now + 1) - 1))
    return exp + 86400, iat


@mutant(
    "gate.cache-outlives-token",
    kills=["TOKEN-TIME-002"],
    title="serves a remembered verdict after the expiry",
)
@around(gate.Gate, "_remember")
def cache_outlives_token(sound: Any, self: Any, state: Any, key: bytes, verdict: Any) -> None:
    verdict.expires += 3600
    sound(self, state, key, verdict)


mutant(
    "gate.ignores-audience",
    kills=["TOKEN-AUD-001"],
    title="ignores aud",
    apply=around(ClaimRules, "_plain_audience")(lambda sound, self, payload: None),
)


def _issuer(find: Any) -> Apply:
    @around(Authenticator, "_issuer_of")
    def issuer_of(sound: Any, self: Any, jws: Any) -> Any:
        iss = jws.payload.get("iss")
        return find(self, iss) if isinstance(iss, str) else sound(self, jws)

    return issuer_of


mutant(
    "gate.issuer-slash",
    kills=["TOKEN-ISS-001"],
    title="takes an issuer with a trailing slash for the same",
    apply=_issuer(lambda self, iss: self._issuers.get(iss) or self._issuers.get(iss.rstrip("/"))),
)


mutant(
    "gate.any-issuer",
    kills=["TOKEN-ISS-001"],
    title="judges a token of an unknown issuer by the first one",
    apply=_issuer(lambda self, iss: self._issuers.get(iss) or next(iter(self._issuers.values()))),
)


mutant(
    "gate.no-signature",
    kills=["TOKEN-SIG-001"],
    title="does not verify signatures",
    apply=setting(Key, "verifier", lambda self, alg: lambda signature, data: True),
)


@mutant("gate.alg-none", kills=["TOKEN-SIG-002"], title="accepts unsigned tokens (alg none)")
@around(Authenticator, "_verify")
async def alg_none(sound: Any, self: Any, token: bytes, *rest: Any) -> Any:
    if not token.startswith(b"iam-sts-v1."):
        jws = parse(token, self._max_bytes)
        if jws.header.alg.lower() == "none":
            rules = self._issuer_of(jws).rules
            return rules.identity(jws.payload, jws.header, self._clock(), ""), None, True
    return await sound(self, token, *rest)


mutant(
    "gate.two-credentials",
    kills=["TOKEN-COUNT-001"],
    title="judges the last of two Authorization headers",
    apply=around(Gate, "_identify")(
        lambda sound, self, auth, check: sound(self, auth, replace(check, authorization_count=1))
    ),
)


@mutant("gate.no-token-invalid", kills=["TOKEN-MISSING-001"], title="calls a missing token an invalid one")
@around(Gate, "_identify")
async def no_token_invalid(sound: Any, self: Any, authenticator: Any, check: Any) -> Any:
    if not check.authorization:
        raise Refusal(Reason.TOKEN_MALFORMED, "none")
    return await sound(self, authenticator, check)


mutant(
    "gate.scheme-case",
    kills=["TOKEN-SCHEME-001"],
    title="takes only `Bearer` in this spelling",
    apply=around(authenticator, "bearer")(
        lambda sound, text: sound(text) if text.startswith("Bearer") else None
    ),
)


def _renamed(name: bytes, old: bytes, new: bytes) -> Any:
    before = bytes([len(name)]) + name + b"\x08" + bytes([len(old)]) + old
    after = bytes([len(name)]) + name + b"\x08" + bytes([len(new)]) + new
    return lambda actions: actions.replace(before, after)


mutant(
    "gate.error-code-token",
    kills=["TOKEN-ERROR-001"],
    title="says invalid_request of a bad token",
    apply=actions_out(_renamed(b"error", b"invalid_token", b"invalid_request")),
)


mutant(
    "gate.error-code-scope",
    kills=["TOKEN-ERROR-002"],
    title="says invalid_token of a role without the route",
    apply=actions_out(_renamed(b"error", b"insufficient_scope", b"invalid_token")),
)


@mutant("gate.one-reason", kills=["TOKEN-REASON-001"], title="gives one reason for all bad tokens")
@actions_out
def one_reason(actions: bytes) -> bytes:
    for reason in (b"token_expired", b"audience_mismatch", b"issuer_untrusted", b"signature_invalid"):
        actions = _renamed(b"reason", reason, b"token_malformed")(actions)
    return actions


# --- keys -------------------------------------------------------------------------------------------------


mutant(
    "gate.one-key",
    kills=["ROTATE-KEY-001"],
    title="knows only the first key of a set",
    apply=around(KeySet, "__init__")(lambda sound, self, keys, dropped=(): sound(self, keys[:1], dropped)),
)


async def _asks_nothing(_sound: Any, _self: Any, _kid: str) -> None:
    return


_no_schedule = around(KeySource, "_schedule")(lambda _sound, _self, _delay: None)
mutant(
    "gate.no-refetch",
    kills=["ROTATE-KEY-002"],
    title="never asks again for an unknown kid",
    apply=both(around(KeySource, "_ask")(_asks_nothing), _no_schedule),
)


mutant(
    "gate.keeps-removed-keys",
    kills=["ROTATE-KEY-003"],
    title="goes on with keys that were removed",
    apply=_no_schedule,
)


mutant(
    "gate.session-is-role",
    kills=["CLOUD-ROLE-001"],
    title="takes the session name for the role's name",
    apply=role_arns(
        lambda sound, text: sound(re.sub(r"assumed-role/([^/]+)/([^/]+)$", r"assumed-role/\2/\1", text))
    ),
)


@mutant("gate.no-aws-tokens", kills=["CLOUD-ROLE-002"], title="does not know AWS's claims")
@around(ClaimRules, "_aws")
def no_aws_tokens(_sound: Any, _self: Any, _payload: Any, _now: float) -> Any:
    raise Refusal(Reason.ROLE_MISSING, "no roles")


mutant(
    "gate.cloud-vouches",
    kills=["CLOUD-ROLE-003"],
    title="gives an unmapped cloud role the first role's grants",
    apply=unknown_role_is_known,
)
