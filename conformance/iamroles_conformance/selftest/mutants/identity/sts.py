"""Mutants of pre-signed URLs: how one is taken apart, what the agent asks. STS-ALLOW to STS-REBUILD."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from iamroles_agent.processes import remote
from iamroles_agent.tokens import sts
from iamroles_agent.tokens.encoding import decode_base64url
from iamroles_agent.tokens.sts import _PARAMETERS, Question, StsVerifier
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.registry import Override, both, mutant


def _identity(edit: Callable[..., Any]) -> Override:
    """Change the identity that an answer gives."""

    @around(StsVerifier, "_identity")
    def identity(sound: Any, self: Any, question: Any, caller: Any, digest: bytes) -> Any:
        found = sound(self, question, caller, digest)
        return found._replace(**edit(found))

    return identity


mutant("identity.sts-principal", "STS-ALLOW-001", "forgets who assumed the role")(
    _identity(lambda found: {"principal": str(found.roles[0])})
)
mutant("identity.sts-padding", "STS-FORM-001", "accepts padding in a credential")(
    around(sts, "decode_base64url")(lambda sound, text: sound(text.rstrip(b"=")))
)
mutant("identity.sts-any-size", "STS-SIZE-001", "judges credentials of any size")(
    setting(sts, "MAX_CREDENTIAL", 1 << 20)
)


def _split(edit: Callable[[Any], Any]) -> Override:
    """Change the URL's parts before they are judged."""
    return around(sts, "urlsplit")(lambda sound, *told: edit(sound(*told)))


mutant("identity.sts-any-scheme", "STS-URL-001", "accepts any scheme")(
    _split(lambda parts: parts._replace(scheme="https"))
)
mutant("identity.sts-host-part", "STS-HOST-001", "compares the host without user and port")(
    _split(lambda parts: parts._replace(netloc=parts.hostname or ""))
)


class _Near(dict[str, Any]):
    def get(self, host: str, default: Any = None) -> Any:
        return next((found for known, found in self.items() if known in host), default)


mutant("identity.sts-host-suffix", "STS-HOST-001", "looks for a known host within the URL's")(
    both(
        *(
            around(place, "read_credential")(
                lambda sound, token, endpoints, now: sound(token, _Near(endpoints), now)
            )
            for place in (remote, sts)
        )
    )
)


def _query(edit: Callable[[list[tuple[str, str]]], list[tuple[str, str]]]) -> Override:
    """Change the query's pairs before they are judged."""
    return around(sts, "parse_qsl")(lambda sound, *told, **how: edit(sound(*told, **how)))


mutant("identity.sts-unknown-parameter", "STS-QUERY-001", "passes over unknown parameters")(
    _query(lambda pairs: [(name, value) for name, value in pairs if name.lower() in _PARAMETERS])
)


@mutant("identity.sts-first-of-two", "STS-QUERY-002", "takes the first of two parameters")
@_query
def sts_first_of_two(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    first: dict[str, tuple[str, str]] = {}
    for name, value in pairs:
        first.setdefault(name.lower(), (name, value))
    return list(first.values())


@mutant("identity.sts-defaults", "STS-QUERY-003", "fills in parameters that are missing")
@_query
def sts_defaults(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    names = {name for name, _ in pairs}
    known = {"Action": "GetCallerIdentity", "Version": "2011-06-15"}
    return [*pairs, *((name, value) for name, value in known.items() if name not in names)]


def _judged_as(edit: Callable[[dict[str, str]], dict[str, str]]) -> Override:
    """Judge other values than those that travel."""
    return around(sts, "_check_values")(
        lambda sound, values, endpoint: sound(values | edit(values), endpoint)
    )


mutant("identity.sts-any-action", "STS-ACTION-001", "asks STS whatever the URL says")(
    _judged_as(lambda values: {"action": "GetCallerIdentity"})
)
mutant("identity.sts-unbound", "STS-BIND-001", "accepts a signature that covers no edge")(
    _judged_as(lambda values: {"x-amz-signedheaders": "host;x-iam-edge"})
)
mutant("identity.sts-other-edge", "STS-BIND-002", "supplies the name of another edge")(
    around(Question, "headers")(lambda sound, self: sound(self) | {"x-iam-edge": "edge-b"})
)
mutant("identity.sts-any-expires", "STS-EXPIRES-001", "ignores X-Amz-Expires")(
    _judged_as(lambda values: {"x-amz-expires": "60"})
)
mutant("identity.sts-old-date", "STS-DATE-001", "leaves the date to STS")(setting(sts, "LIFETIME", 10**8))
mutant("identity.sts-future-date", "STS-DATE-002", "accepts dates ahead")(setting(sts, "CLOCK_SKEW", 10**8))
mutant("identity.sts-long-life", "STS-EXPIRY-001", "lets access live an hour")(
    _identity(lambda found: {"not_after": found.issued_at + 3600})
)
mutant(
    "identity.sts-asks-once",
    "STS-EXPIRY-003",
    "believes an answer of STS for as long as the credential could last",
)(_identity(lambda found: {"check_again": None}))
_known: dict[str, Any] = {}


@mutant(
    "identity.sts-key-cache",
    "STS-EXPIRY-002 STS-AUTH-001",
    "remembers a caller by access key, without the signature",
)
@around(StsVerifier, "_ask")
async def sts_key_cache(sound: Any, self: Any, question: Any, *rest: Any) -> Any:
    if question.key_id not in _known:
        _known[question.key_id] = await sound(self, question, *rest)
    return _known[question.key_id]


_queries: dict[str, str] = {}


_forwards = around(Question, "url")(
    lambda _sound, self: f"{self.endpoint.endpoint}/?{_queries[self.signature]}"
)


@mutant("identity.sts-forwards", "STS-REBUILD-001", "forwards the caller's query as it is", _forwards)
@around(sts, "read_credential")
def _noted(sound: Any, token: bytes, endpoints: Any, now: float) -> Any:
    question = sound(token, endpoints, now)
    url = decode_base64url(token.partition(b".")[2]).decode()
    _queries[question.signature] = url.partition("?")[2]
    return question


@mutant("identity.sts-account", "STS-ACCOUNT-001", "accepts roles of any account")
@around(StsVerifier, "_identity")
def sts_account(sound: Any, self: Any, question: Any, caller: Any, digest: bytes) -> Any:
    open_endpoint = question.endpoint.model_copy(update={"accounts": []})
    return sound(self, replace(question, endpoint=open_endpoint), caller, digest)


@mutant("identity.sts-name-cache", "PRINCIPAL-ACCOUNT-001", "remembers roles by name")
@around(StsVerifier, "_identity")
def sts_name_cache(sound: Any, self: Any, question: Any, caller: Any, digest: bytes) -> Any:
    name = re.sub(r"::\d{12}:", "::", caller.arn)
    return _known.setdefault(name, sound(self, question, caller, digest))
