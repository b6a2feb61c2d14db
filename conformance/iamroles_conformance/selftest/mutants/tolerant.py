"""Behaviours of sound agents that differ from the reference's, each once a false accusation."""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.policy import checks, compiled, resources
from iamroles_agent.policy.regions import Region
from iamroles_agent.processes import remote
from iamroles_agent.serving import gate, idle, server
from iamroles_agent.spop import actions, frames, messages, values
from iamroles_agent.spop.actions import VariableScope, set_var, unset_var
from iamroles_agent.spop.connection import Connection
from iamroles_agent.spop.errors import Status
from iamroles_agent.spop.values import DataType
from iamroles_agent.tokens import authenticator, claims, jwks, jws, keys, sts
from iamroles_agent.tokens.proof import Bindings, ProofRules
from iamroles_conformance.selftest.mutants import edits as edit
from iamroles_conformance.selftest.mutants.override import around, before, rescue, setting
from iamroles_conformance.selftest.registry import mutant
from iamroles_tools.haproxy import render

mutant("tolerant.displaces", "", "ends an idle connection at once, by a timeout, in favour of another")(
    setting(idle, "IDLE", 0.0),
    around(Connection, "disconnect")(
        lambda sound, self, status, why: sound(self, Status.TIMEOUT if "the place" in why else status, why)
    ),
)
mutant("tolerant.names-levels", "", "says at its start what it does at an ERROR")(
    before(server.Server, "start")(lambda _self: server.log.warning("panic: handler for ERROR is installed"))
)
mutant("tolerant.ends-half-closed", "", "ends a WebSocket when its client closes its side")(
    edit.replaced("longest = HALF", 'if txn:get_var("txn.iam_tunnel") then error() end', name="iam-live.lua")
)
mutant("tolerant.ages-early", "", "ends connections long before `max_connection_age`, also busy ones")(
    setting(server, "_YOUNGEST", 0.3), setting(server, "GENTLY", 0.0)
)


_KEPT = "request_id|client_port|status|reason|role|rule|expires|principal|session|backend"
mutant("tolerant.short-record", "", "records no more than SPEC.md 1.14 asks for")(
    edit.text(lambda text: re.sub(rf',\\"(?!{_KEPT})\w+\\":.*?(?=,\\"|}}"\n)', "", text))
)


@mutant("tolerant.bad-gateway", "", "answers 502 in place of an event stream where none may pass")
@around(render, "configuration")
def bad_gateway(sound: Any, *args: Any, **how: Any) -> Any:
    old, new = (f"http-response return status {status} " for status in (403, 502))
    return {name: text.replace(old, new) for name, text in sound(*args, **how).items()}


_lazily = (
    around(jwks.KeySource, "start")(
        lambda sound, self: sound(self) if self._keys or self.settings.refresh < 3600 else None
    ),
    setting(jwks, "MAX_HOLD", 0.0),
)


@mutant("tolerant.counts-each-fetch", "", "fetches long-lived keys at need; a fetch is a cooldown", *_lazily)
@around(jwks.KeySource, "_fetch")
async def counts_each_fetch(sound: Any, self: Any) -> None:
    began = self._monotonic()
    await sound(self)
    self._cooldown_end = began + self.settings.cooldown


mutant("tolerant.holds-back", "", "holds unknown kids back until the end of a cooldown of two seconds")(
    setting(jwks, "MAX_HOLD", 2.0)
)


@mutant("tolerant.huge-times", "", "reads integers past 2^53, and then refuses the lifetime")
@around(claims, "_seconds")
def huge_times(sound: Any, payload: Any, name: str) -> Any:
    value = payload.get(name)
    return value if type(value) is int and value > 1 << 53 else sound(payload, name)


@mutant("tolerant.reads-keys", "", "refuses a `jwk` and an `x5c` that are not keys (RFC 7515)")
@before(jws, "read_header")
def reads_keys(protected: bytes) -> None:
    if re.search(rb'"oct"|"x5c": ?\["http', protected):
        raise Refusal(Reason.TOKEN_MALFORMED, "no public key")


@mutant("tolerant.odd-kid", "", "looks up any kid, and finds no key for an odd one")
@rescue(jws, "read_header", ValueError)
def odd_kid(error: Any, _protected: bytes) -> None:
    if "`kid`" in str(error):
        raise Refusal(Reason.KEY_UNKNOWN, "no key of this kid")


mutant("tolerant.lone-key", "", "verifies a token with a kid by the only key, if none has a kid")(
    around(keys.KeySet, "find")(lambda sound, self, kid, alg: sound(self, kid if self._by_kid else None, alg))
)
mutant("tolerant.session-of-jti", "", "takes jti for the session of a token without the claim")(
    around(claims.ClaimRules, "identity")(
        lambda sound, self, found, *more: (
            who if (who := sound(self, found, *more)).session else who._replace(session=found.get("jti", ""))
        )
    )
)


@mutant("tolerant.plain-subjects", "", "refuses principals beyond ASCII")
@before(claims, "_label")
def plain_subjects(value: object, name: str) -> None:
    if isinstance(value, str) and not value.isascii():
        raise Refusal(Reason.CLAIM_INVALID, f"{name} is not ASCII")


@mutant("tolerant.same-twice", "", "takes an argument that is there twice and the same")
@around(messages, "_read_message")
def same_twice(sound: Any, data: bytes, pos: int, end: int) -> Any:
    name, arguments, doubled, after = sound(data, pos, end)
    return name, arguments, doubled and not _all_alike(data, pos, end), after


def _all_alike(data: bytes, pos: int, end: int) -> bool:
    _, at = values.read_string(data, pos, end)
    seen: dict[bytes, Any] = {}
    for _ in range(data[at]):
        argument, at = values.read_string(data, at + (not seen), end)
        kind, value, at = values.read(data, at, end)
        if seen.setdefault(argument, (kind, value)) != (kind, value):
            return False
    return True


@mutant("tolerant.canonical-request", "", "knows a requested role by its canonical ARN alone")
@around(compiled.Policy, "arns_named")
def canonical_request(sound: Any, self: Any, requested: str) -> Any:
    canonical = re.fullmatch(r"arn:[^:]+:iam::[0-9]{12}:role/[^/]+", requested)
    return frozenset() if requested.startswith("arn:") and not canonical else sound(self, requested)


mutant("tolerant.trailing-blank", "", "drops blanks behind a token (RFC 9110 5.5)")(
    around(authenticator, "bearer")(
        lambda sound, text: sound(text.rstrip(" \t") if re.fullmatch(r"\S+ +\S+[ \t]+", text) else text)
    )
)
mutant("tolerant.refuses-large", "", "refuses where the tags do not fit the agreed frame")(
    around(actions, "shorten")(
        lambda sound, encoded, limit: sound(encoded if len(encoded) <= limit else actions.LAST_RESORT, limit)
    )
)
_NOBODY = dict.fromkeys(("role", "principal", "session", "issuer"), "") | {"expires": None}
mutant("tolerant.terse-refusals", "", "names nobody in a refusal, though it knows who asks")(
    edit.refused(lambda _decision: _NOBODY)
)


def _sts_form(refusal: Any, *_arguments: Any) -> None:
    if refusal.reason is Reason.STS_REJECTED:
        raise Refusal(Reason.TOKEN_MALFORMED, refusal.detail)


mutant("tolerant.sts-form", "", "calls what is wrong in a pre-signed URL malformed, also a missing token")(
    setting(sts, "_REQUIRED", frozenset(sts._PARAMETERS)),
    *(rescue(module, "read_credential", Refusal)(_sts_form) for module in (remote, sts)),
)


mutant("tolerant.sts-any-type", "", "reads an answer of STS whatever its content type")(
    around(sts, "read_answer")(lambda sound, answer: sound(replace(answer, content_type="application/json")))
)


@mutant("tolerant.sts-over", "", "calls a credential expired if STS says so")
@rescue(sts.StsVerifier, "_ask", Refusal)
def sts_over(refusal: Any, *_asked: Any) -> None:
    if "ExpiredToken" in refusal.detail:
        raise Refusal(Reason.TOKEN_EXPIRED, refusal.detail)


@mutant("tolerant.typed-times", "", "calls a token malformed if a time is not a number, or exp is absent")
@before(claims, "_seconds")
def typed_times(payload: Any, name: str) -> None:
    if not isinstance(payload.get(name, None if name == "exp" else 0), int | float):
        raise Refusal(Reason.TOKEN_MALFORMED, f"{name} is no number")


@around(frames, "encode_pairs")
def _announces_nothing(sound: Any, pairs: Any) -> Any:
    nothing = {"capabilities": (DataType.STRING, b"")} if "capabilities" in pairs else {}
    return sound({"x-agent": (DataType.BOOL, True), **pairs, **nothing} if nothing else pairs)


mutant("tolerant.one-by-one", "", "announces no pipelining, answers a connection's questions one by one")(
    _announces_nothing, edit.one_by_one, edit.without_memory
)


mutant("tolerant.pipelines", "", "announces pipelining to each HAProxy that offers it")(
    edit.hello_text(lambda key, text: f"{text},async" if key == b"capabilities" else text)
)


@mutant("tolerant.own-variables", "", "unsets all first, sets 64-bit numbers and variables of its own")
@around(gate, "encode_verdict")
def own_variables(sound: Any, *decided: Any) -> bytes:
    said = list(actions.decode(sound(*decided)))
    own = set_var(VariableScope.SESSION, "x.version", DataType.STRING, b"1")
    own += set_var(VariableScope.TRANSACTION, "x.seen", DataType.INT32, -1)
    own += set_var(VariableScope.TRANSACTION, "x.empty", DataType.STRING, b"")
    first = (unset_var(one.scope, one.name) for one in said)
    then = (
        set_var(one.scope, one.name, DataType.UINT64 if type(one.value) is int else one.kind, one.value)
        for one in said
        if one.kind is not None
    )
    return own + b"".join((*first, *then))


_FEW = {name: keys.ALGORITHMS[name] for name in ("RS256", "ES256", "ES384")}
mutant("tolerant.few-algorithms", "", "has no algorithm but RS256, ES256 and ES384")(
    *(setting(module, "ALGORITHMS", _FEW) for module in (checks, keys, authenticator))
)


@mutant("tolerant.needs-kid", "", "refuses tokens without a kid")
@around(authenticator, "check_header")
def needs_kid(sound: Any, token: Any, rules: Any) -> Any:
    found = sound(token, rules)
    if token.header.kid is None:
        raise Refusal(Reason.KEY_UNKNOWN, "no kid")
    return found


mutant("tolerant.any-letter", "", "takes every tag that has no control character or line separator")(
    around(claims, "_label")(
        lambda sound, value, name: value if isinstance(value, str) and _plain(value) else sound(value, name)
    )
)


def _plain(text: str) -> bool:
    bad = any(unicodedata.category(one) in ("Cc", "Zl", "Zp", "Cs") for one in text)
    return 0 < len(text) <= 512 and text == text.strip() and not bad


@mutant("tolerant.null-first", "", "calls a NULL authorization no credential, whatever the count says")
@before(gate.Gate, "_identify")
def null_first(_self: Any, check: Any) -> None:
    if check.authorization is None:
        raise Refusal(Reason.NO_CREDENTIALS)


mutant("tolerant.null-count", "", "takes a NULL authorization-count for a missing count")(
    around(messages, "_check")(
        lambda sound, asked: sound(
            {k: v for k, v in asked.items() if k != b"authorization-count" or v[0] is not DataType.NULL}
        )
    )
)


def _texts(value: Any) -> Any:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else value


mutant("tolerant.skips-entries", "", "passes over entries of aud and scope that are not texts")(
    around(claims.ClaimRules, "_check_audience")(lambda sound, self, aud: sound(self, _texts(aud))),
    around(claims.ClaimRules, "_scopes")(lambda sound, self, value: sound(self, _texts(value))),
)


@mutant("tolerant.bound-is-claim", "", "calls a token that is bound to a key one with an invalid claim")
@rescue(claims.ClaimRules, "identity", Refusal)
def bound_is_claim(refusal: Any, *_judged: Any) -> None:
    if refusal.reason is Reason.TOKEN_BOUND:
        raise Refusal(Reason.CLAIM_INVALID, refusal.detail)


mutant("tolerant.plain-uris", "", "refuses a query or fragment in the htu of a proof (RFC 9449 4.2)")(
    around(ProofRules, "_uri")(
        lambda sound, self, htu, asked: sound(self, None if {"?", "#"} & set(str(htu)) else htu, asked)
    )
)
mutant("tolerant.one-key", "", "refuses a proof that names a key beside jwk")(
    around(ProofRules, "_key_of")(
        lambda sound, self, header: sound(self, {} if {"kid", "jku", "x5c"} & header.keys() else header)
    )
)


mutant("tolerant.proof-types", "", "compares the typ of a proof to the letter (RFC 9449 4.3)")(
    around(ProofRules, "_key_of")(lambda sound, self, h: sound(self, h if h.get("typ") == "dpop+jwt" else {}))
)


@mutant("tolerant.absent-is-invalid", "", "calls an absent proof an invalid one")
@rescue(Bindings, "judge", Refusal)
def absent_is_invalid(refusal: Any, *_judged: Any) -> None:
    if refusal.reason is Reason.TOKEN_BOUND and "no proof" in refusal.detail:
        raise Refusal(Reason.PROOF_INVALID, refusal.detail)


@mutant("tolerant.few-actors", "", "refuses odd former actors, more than eight, and a large `act`")
@around(claims, "actor_of")
def few_actors(sound: Any, act: Any, url: str) -> Any:
    found, count, former = sound(act, url), 1, act
    while "act" in former:
        former, count = former["act"], count + 1
        if count > 8 or not isinstance(former, dict) or not isinstance(former.get("sub"), str):
            raise Refusal(Reason.CLAIM_INVALID, "too many former actors, or an odd one")
    if len(json.dumps(act)) > 2048:
        raise Refusal(Reason.CLAIM_INVALID, "act is too large")
    return found


@mutant("tolerant.mcp-names", "", "trims names, and takes stray bits and control characters in base64")
@around(resources, "_name")
def mcp_names(sound: Any, sent: str | None) -> Any:
    try:
        return sound(sent)
    except Refusal:
        text = (sent or "").strip(" \t")
        if text.startswith("=?base64?") and text.endswith("?=") and len(text[9:-2]) % 4 == 0:
            with suppress(ValueError):
                return base64.b64decode(text[9:-2], validate=True).decode() or sound("")
        return sound(text)


mutant("tolerant.mcp-methods", "", "judges odd methods of MCP to the letter, and escapes slashes")(
    setting(resources, "METHOD", re.compile(r".+")),
    setting(resources, "json", SimpleNamespace(dumps=lambda o, **_: json.dumps(o).replace("/", r"\/") + " ")),
)


@mutant("tolerant.mcp-audience", "", "says audience_mismatch for every token that is not for a resource")
@rescue(resources.Found, "admit", Refusal)
def mcp_audience(refusal: Any, *_judged: Any) -> None:
    raise Refusal(Reason.AUDIENCE_MISMATCH, refusal.detail)


@mutant("tolerant.conflicting-actors", "", "leaves actors out of account in conflicts (SPEC.md 13.3)")
@around(Region, "meets")
def conflicting_actors(sound: Any, self: Any, other: Any) -> Any:
    return sound(replace(self, actors=None), other)


@mutant("tolerant.events-as-claims", "", "judges events behind the signature, and a list of them is private")
@around(authenticator, "check_header")
def events_as_claims(sound: Any, token: Any, rules: Any) -> Any:
    events = token.payload.pop("events", None)
    if isinstance(events, dict):
        token.payload["exp"] = "an event"
    return sound(token, rules)


@mutant("tolerant.odd-is-absent", "", "takes null, and a roles claim of another type, for none")
@around(claims.ClaimRules, "identity")
def odd_is_absent(sound: Any, self: Any, payload: Any, *about: Any) -> Any:
    payload = {name: value for name, value in payload.items() if value is not None}
    roles = self._find_roles
    self._find_roles = lambda found: value if isinstance(value := roles(found), str | list) else None
    try:
        return sound(self, payload, *about)
    finally:
        self._find_roles = roles
