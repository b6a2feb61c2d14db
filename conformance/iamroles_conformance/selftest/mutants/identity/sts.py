"""Mutants of pre-signed URLs: how one is taken apart, what the agent asks, what STS answers, its troubles."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from iamroles_agent.base.encoding import decode_base64url
from iamroles_agent.base.identity import Identity
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.control.relay import Relay
from iamroles_agent.processes import remote
from iamroles_agent.serving import gate
from iamroles_agent.tokens import sts, sts_answer
from iamroles_agent.tokens.admission import Admission
from iamroles_agent.tokens.sts import _PARAMETERS, Flights, Question, StsVerifier
from iamroles_agent.tokens.sts_answer import Caller, Rejected, Unavailable, _read_caller
from iamroles_agent.tokens.transport import Answer, Transport
from iamroles_conformance.selftest.mutants.override import after, around, rescue, setting
from iamroles_conformance.selftest.registry import Override, mutant

# --- a credential, taken apart


def _split(edit: Callable[[Any], Any]) -> Override:
    """Change the URL's parts before they are judged."""
    return around(sts, "urlsplit")(lambda sound, *url: edit(sound(*url)))


class _Near(dict[str, Any]):
    def get(self, host: str, default: Any = None) -> Any:
        return next((found for known, found in self.items() if known in host), default)


def _query(edit: Callable[[list[tuple[str, str]]], list[tuple[str, str]]]) -> Override:
    """Change the query's pairs before they are judged."""
    return around(sts, "parse_qsl")(lambda sound, *query, **how: edit(sound(*query, **how)))


mutant("identity.recheck-late", "STS-EXPIRY-003", "believes an answer of STS two seconds too long")(
    setting(Identity, "believed_until", property(lambda self: (self.check_again or self.not_after - 2) + 2))
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


def _judged_as(**values: str) -> Override:
    """Judge other values than those that travel."""
    other = {name.replace("_", "-"): value for name, value in values.items()}
    return around(sts, "_check_values")(lambda sound, values, endpoint: sound(values | other, endpoint))


mutant("identity.sts-padding", "STS-FORM-001", "accepts padding in a credential")(
    around(sts, "decode_base64url")(lambda sound, text: sound(text.rstrip(b"=")))
)
mutant("identity.sts-any-size", "STS-SIZE-001", "judges credentials of any size")(
    setting(sts, "MAX_CREDENTIAL", 1 << 20)
)
mutant("identity.sts-any-scheme", "STS-URL-001", "accepts any scheme")(
    _split(lambda parts: parts._replace(scheme="https"))
)
mutant("identity.sts-host-part", "STS-HOST-001", "compares the host without user and port")(
    _split(lambda parts: parts._replace(netloc=parts.hostname or ""))
)
mutant("identity.sts-host-suffix", "STS-HOST-001", "looks for a known host within the URL's")(
    *(
        around(module, "read_credential")(
            lambda sound, token, endpoints, now: sound(token, _Near(endpoints), now)
        )
        for module in (remote, sts)
    )
)
mutant("identity.sts-unknown-parameter", "STS-QUERY-001", "passes over unknown parameters")(
    _query(lambda pairs: [(name, value) for name, value in pairs if name.lower() in _PARAMETERS])
)
mutant("identity.sts-any-action", "STS-ACTION-001", "asks STS whatever the URL says")(
    _judged_as(action="GetCallerIdentity")
)
mutant("identity.sts-unbound", "STS-BIND-001", "accepts a signature that covers no edge")(
    _judged_as(x_amz_signedheaders="host;x-iam-edge")
)
mutant("identity.sts-any-expires", "STS-EXPIRES-001", "ignores X-Amz-Expires")(_judged_as(x_amz_expires="60"))
mutant("identity.sts-old-date", "STS-DATE-001", "leaves the date to STS")(setting(sts, "LIFETIME", 10**8))
mutant("identity.sts-future-date", "STS-DATE-002", "accepts dates ahead")(setting(sts, "CLOCK_SKEW", 10**8))
mutant("identity.sts-near-date", "STS-DATE-003", "accepts dates up to 15 minutes ahead, as AWS does")(
    setting(sts, "CLOCK_SKEW", 900)
)

# --- what the agent asks, and what it makes of the caller


def _identity(edit: Callable[..., Any]) -> Override:
    """Change the identity that an answer gives."""

    @around(StsVerifier, "_identity")
    def identity(sound: Any, self: Any, question: Any, caller: Any) -> Any:
        found = sound(self, question, caller)
        return found._replace(**edit(found))

    return identity


_known: dict[str, Any] = {}
_queries: dict[str, str] = {}


@mutant("identity.sts-key-cache", "STS-EXPIRY-002 STS-AUTH-001", "remembers a caller by access key alone")
@around(StsVerifier, "_ask")
async def sts_key_cache(sound: Any, self: Any, question: Any, *rest: Any) -> Any:
    if question.key_id not in _known:
        _known[question.key_id] = await sound(self, question, *rest)
    return _known[question.key_id]


@around(sts, "read_credential")
def _noted(sound: Any, token: bytes, endpoints: Any, now: float) -> Any:
    question = sound(token, endpoints, now)
    url = decode_base64url(token.partition(b".")[2]).decode()
    _queries[question.signature] = url.partition("?")[2]
    return question


@around(StsVerifier, "_identity")
def any_account(sound: Any, self: Any, question: Any, *rest: Any) -> Any:
    """Accept roles of any account."""
    endpoint = question.endpoint.model_copy(update={"accounts": []})
    return sound(self, replace(question, endpoint=endpoint), *rest)


@mutant("identity.sts-name-cache", "PRINCIPAL-ACCOUNT-001", "remembers roles by name")
@around(StsVerifier, "_identity")
def sts_name_cache(sound: Any, self: Any, question: Any, caller: Any) -> Any:
    name = re.sub(r"::\d{12}:", "::", caller.arn)
    return _known.setdefault(name, sound(self, question, caller))


mutant("identity.sts-principal", "STS-ALLOW-001", "forgets who assumed the role")(
    _identity(lambda found: {"principal": str(found.roles[0])})
)
mutant("identity.sts-other-edge", "STS-BIND-002", "supplies the name of another edge")(
    around(Question, "headers")(lambda sound, self: sound(self) | {"x-iam-edge": "edge-b"})
)
mutant("identity.sts-forwards", "STS-REBUILD-001", "forwards the caller's query as it is")(
    around(Question, "url")(lambda _sound, self: f"{self.endpoint.endpoint}/?{_queries[self.signature]}"),
    _noted,
)
mutant("identity.sts-long-life", "STS-EXPIRY-001", "lets access live an hour")(
    _identity(lambda found: {"not_after": found.issued_at + 3600})
)
mutant("identity.sts-asks-once", "STS-EXPIRY-003", "believes an answer of STS until the credential's end")(
    _identity(lambda found: {"check_again": None})
)
mutant("identity.sts-outlived", "STS-EXPIRY-002", "believes STS for longer than the credential lives")(
    _identity(lambda found: {"not_after": max(found.not_after, found.check_again)})
)
mutant("identity.sts-account", "STS-ACCOUNT-001", "accepts roles of any account")(any_account)

# --- what STS answers


_answers = rescue(sts, "read_answer", Rejected, Unavailable)
"""If the strict reading refuses, use this."""


@mutant("identity.sts-anywhere", "STS-ANSWER-001", "finds the caller anywhere in an answer")
@_answers
def sts_anywhere(_error: Any, answer: Any) -> Any:
    arn = re.search(rb"arn:aws:sts::(\d{12}):assumed-role/\w+/([\w-]+)", answer.body)
    if arn is None or answer.status != 200:
        return None
    return Caller(arn[0].decode(), arn[1].decode(), f"AROA:{arn[2].decode()}")


@mutant("identity.sts-any-status", "STS-ANSWER-001", "believes an answer of any status")
@_answers
def sts_any_status(_error: Any, answer: Any) -> Any:
    try:
        return _read_caller(replace(answer, status=200)) if answer.status > 200 else None
    except Rejected:
        return None


@mutant("identity.sts-account-unread", "STS-ANSWER-002", "does not compare ARN and account")
@_answers
def sts_account_unread(_error: Any, answer: Any) -> Any:
    try:
        said = json.loads(answer.body)["GetCallerIdentityResponse"]["GetCallerIdentityResult"]
    except (ValueError, KeyError, TypeError):
        return None
    return Caller(said["Arn"], said["Arn"].split(":")[4], said["UserId"])


@mutant("identity.sts-redirect", "STS-REDIRECT-001", "follows a redirect of STS")
@around(Transport, "get")
async def sts_redirect(sound: Any, self: Any, url: str, *, headers: Any = None, **how: Any) -> Any:
    answer = await sound(self, url, headers=headers, **how)
    if not 300 <= answer.status < 400 or "x-iam-edge" not in (headers or {}):
        return answer
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=5)
    connection.request("GET", f"/?{parts.query}", headers=dict(headers))
    target = connection.getresponse().headers["Location"]
    return await sound(self, target, headers={"Accept": "application/json"}, **how)


mutant("identity.sts-large-answer", "STS-ANSWER-003", "reads answers of any size")(
    setting(sts, "_MAX_ANSWER", 1 << 30)
)

# --- its troubles

_failed: dict[bytes, Refusal] = {}
_refused_sources: set[str] = set()


@mutant("identity.sts-blocks", "STS-TIMEOUT-001", "waits for STS and for nothing else")
@around(Transport, "get")
async def sts_blocks(sound: Any, self: Any, url: str, *, headers: Any = None, **how: Any) -> Any:
    if "Host" in (headers or {}):
        request = urllib.request.Request(url, headers=headers)  # noqa: S310
        with suppress(OSError), urllib.request.urlopen(request, timeout=how["seconds"]) as answer:  # noqa: S310, ASYNC210
            return Answer(answer.status, answer.headers.get_content_type(), answer.read())
    return await sound(self, url, headers=headers, **how)


@mutant("identity.sts-trouble-remembered", "STS-THROTTLE-002", "blames the credential for an STS's failure")
@around(StsVerifier, "_ask")
async def sts_trouble_remembered(sound: Any, self: Any, question: Any, digest: bytes, source: str) -> Any:
    if digest in _failed:
        raise _failed[digest]
    try:
        return await sound(self, question, digest, source)
    except Refusal as refusal:
        _failed[digest] = refusal
        raise


def _to_the_end(flows: Any, ticket: Any) -> None:
    for flow in flows:
        if ticket in flow.waiting:
            flow.waiting.move_to_end(ticket, last=False)


@mutant("identity.sts-blocks-sources", "STS-FLOOD-001", "blocks an address that sent one forged credential")
@around(StsVerifier, "verify")
async def _blocking(sound: Any, self: Any, token: bytes, digest: bytes, source: str = "") -> Any:
    if source in _refused_sources:
        raise Refusal(Reason.STS_UNAVAILABLE, "too many failures from there")
    try:
        return await sound(self, token, digest, source)
    except Refusal:
        _refused_sources.add(source)
        raise


mutant("identity.sts-counts-twice", "STS-THROTTLE-002", "counts answered questions as waiting for STS")(
    after(Relay, "ask")(lambda self, index, _said: self._counts.update([index]))
)


@mutant("identity.sts-left", "STS-SHARED-001", "ends a call of STS with a client that waits for it")
@around(Flights, "join")
async def sts_left(sound: Any, self: Any, ticket: Any, ask: Any) -> Any:
    try:
        return await sound(self, ticket, ask)
    except asyncio.CancelledError:
        self._flights[ticket].cancel()
        raise


mutant("identity.sts-one-queue", "STS-FLOOD-002", "has one queue for strangers, first come, first served")(
    setting(gate, "client_network", lambda _address: ""),
    after(Admission, "ask")(lambda self, ticket, _key, _source: _to_the_end(self._flows.values(), ticket)),
)
mutant("identity.sts-each-address", "STS-FLOOD-002", "knows no /64")(setting(gate, "client_network", str))
mutant("identity.sts-strangers", "STS-FLOOD-002", "knows nobody")(setting(Admission, "knows", lambda *_: 0))
mutant("identity.sts-throttled-is-401", "STS-THROTTLE-001", "takes throttling for a verdict on the caller")(
    setting(sts_answer, "_THROTTLING", frozenset())
)
mutant("identity.sts-no-backoff", "STS-THROTTLE-003", "asks a throttling STS for each request")(
    setting(sts, "_FIRST_PAUSE", 0.0)
)
