"""Behaviours of sound agents that differ from the reference's, each once a false accusation."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from iamroles_agent import gate
from iamroles_agent.policy import compiled
from iamroles_agent.reasons import Reason, Refusal
from iamroles_agent.spop import actions, messages, values
from iamroles_agent.tokens import authenticator, claims, jws, remote, sts
from iamroles_conformance.selftest.mutants.override import around, both
from iamroles_conformance.selftest.registry import mutant


@mutant("tolerant.huge-times", kills=[], title="reads integers past 2^53, and then refuses the lifetime")
@around(claims, "_seconds")
def huge_times(sound: Any, payload: Any, name: str) -> Any:
    value = payload.get(name)
    return value if type(value) is int and value > 1 << 53 else sound(payload, name)


@mutant("tolerant.odd-kid", kills=[], title="looks up any kid, and finds no key for an odd one")
@around(jws, "read_header")
def odd_kid(sound: Any, protected: bytes) -> Any:
    try:
        return sound(protected)
    except ValueError as error:
        if "`kid`" not in str(error):
            raise
        raise Refusal(Reason.KEY_UNKNOWN, "no key of this kid") from None


@mutant("tolerant.plain-subjects", kills=[], title="refuses principals beyond ASCII")
@around(claims, "_label")
def plain_subjects(sound: Any, value: object, name: str) -> Any:
    if isinstance(value, str) and not value.isascii():
        raise Refusal(Reason.CLAIM_INVALID, f"{name} is not ASCII")
    return sound(value, name)


@mutant("tolerant.same-twice", kills=[], title="takes an argument that is there twice and the same")
@around(messages, "_read_message")
def same_twice(sound: Any, data: bytes, pos: int, end: int) -> Any:
    name, arguments, doubled, after = sound(data, pos, end)
    if doubled and _all_alike(data, pos, end):
        doubled = False
    return name, arguments, doubled, after


def _all_alike(data: bytes, pos: int, end: int) -> bool:
    _, at = values.read_string(data, pos, end)
    seen: dict[bytes, Any] = {}
    for _ in range(data[at]):
        argument, at = values.read_string(data, at + (not seen), end)
        kind, value, at = values.read(data, at, end)
        if seen.setdefault(argument, (kind, value)) != (kind, value):
            return False
    return True


@mutant("tolerant.trailing-blank", kills=[], title="drops blanks behind a token (RFC 9110 5.5)")
@around(authenticator, "bearer")
def trailing_blank(sound: Any, text: str) -> Any:
    return sound(text.rstrip(" \t") if re.fullmatch(r"\S+ +\S+[ \t]+", text) else text)


@mutant("tolerant.canonical-request", kills=[], title="knows a requested role by its canonical ARN alone")
@around(compiled.Policy, "arns_named")
def canonical_request(sound: Any, self: Any, requested: str) -> Any:
    canonical = re.fullmatch(r"arn:[^:]+:iam::[0-9]{12}:role/[^/]+", requested)
    return frozenset() if requested.startswith("arn:") and not canonical else sound(self, requested)


@mutant("tolerant.refuses-large", kills=[], title="refuses where the tags do not fit the agreed frame")
@around(actions, "fit")
def refuses_large(sound: Any, encoded: bytes, limit: int) -> Any:
    return sound(encoded if len(encoded) <= limit else actions.LAST_RESORT, limit)


@mutant("tolerant.terse-refusals", kills=[], title="names nobody in a refusal, though it knows who asks")
@around(gate, "encode_verdict")
def terse_refusals(sound: Any, decision: Any, *signed: Any) -> Any:
    if decision.allow:
        return sound(decision, *signed)
    nobody = dict.fromkeys(("role", "principal", "session", "issuer"), "")
    return sound(replace(decision, **nobody, expires=None), *signed)


def _sts_form(sound: Any, *arguments: Any) -> Any:
    try:
        return sound(*arguments)
    except Refusal as refusal:
        if refusal.reason is not Reason.STS_REJECTED:
            raise
        raise Refusal(Reason.TOKEN_MALFORMED, refusal.detail) from None


mutant(
    "tolerant.sts-form",
    kills=[],
    title="calls what is wrong in a pre-signed URL malformed",
    apply=both(*(around(place, "read_credential")(_sts_form) for place in (remote, sts))),
)
