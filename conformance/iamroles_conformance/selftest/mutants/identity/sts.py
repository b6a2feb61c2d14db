"""Mutants of pre-signed URLs: how one is taken apart, what the agent asks. STS-ALLOW to STS-REBUILD."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from iamroles_agent.tokens.encoding import decode_base64url
from iamroles_agent.tokens.sts import _PARAMETERS
from iamroles_conformance.selftest.mutants.identity.header import _override
from iamroles_conformance.selftest.registry import mutant

_VERIFIER = "sts.StsVerifier"


def _identity(edit: Callable[..., Any]) -> None:
    """Change the identity that an answer gives."""

    def make(sound: Any) -> Any:
        def identity(self: Any, question: Any, caller: Any, digest: bytes) -> Any:
            found = sound(self, question, caller, digest)
            return found._replace(**edit(found))

        return identity

    _override(_VERIFIER, "_identity", make)


@mutant("identity.sts-principal", kills=["STS-ALLOW-001"], title="forgets who assumed the role")
def sts_principal() -> None:
    _identity(lambda found: {"principal": str(found.roles[0])})


@mutant("identity.sts-padding", kills=["STS-FORM-001"], title="accepts padding in a credential")
def sts_padding() -> None:
    _override("sts", "decode_base64url", lambda sound: lambda text: sound(text.rstrip(b"=")))


@mutant("identity.sts-any-size", kills=["STS-SIZE-001"], title="judges credentials of any size")
def sts_any_size() -> None:
    _override("sts", "MAX_CREDENTIAL", lambda sound: 1 << 20)


def _split(edit: Callable[[Any], Any]) -> None:
    """Change the URL's parts before they are judged."""
    _override("sts", "urlsplit", lambda sound: lambda url: edit(sound(url)))


@mutant("identity.sts-any-scheme", kills=["STS-URL-001"], title="accepts any scheme")
def sts_any_scheme() -> None:
    _split(lambda parts: parts._replace(scheme="https"))


@mutant("identity.sts-host-part", kills=["STS-HOST-001"], title="compares the host without user and port")
def sts_host_part() -> None:
    _split(lambda parts: parts._replace(netloc=parts.hostname or ""))


@mutant("identity.sts-host-suffix", kills=["STS-HOST-001"], title="looks for a known host within the URL's")
def sts_host_suffix() -> None:
    def make(sound: Any) -> Any:
        def read(token: bytes, endpoints: Any, now: float) -> Any:
            class Near(dict[str, Any]):
                def get(self, host: str, default: Any = None) -> Any:
                    return next((found for known, found in self.items() if known in host), default)

            return sound(token, Near(endpoints), now)

        return read

    _override("sts", "read_credential", make)
    _split(lambda parts: parts)


def _query(edit: Callable[[list[tuple[str, str]]], list[tuple[str, str]]]) -> None:
    """Change the query's pairs before they are judged."""
    _override("sts", "parse_qsl", lambda sound: lambda query, **how: edit(sound(query, **how)))


@mutant("identity.sts-unknown-parameter", kills=["STS-QUERY-001"], title="passes over unknown parameters")
def sts_unknown_parameter() -> None:
    _query(lambda pairs: [(name, value) for name, value in pairs if name.lower() in _PARAMETERS])


@mutant("identity.sts-first-of-two", kills=["STS-QUERY-002"], title="takes the first of two parameters")
def sts_first_of_two() -> None:
    def edit(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        first: dict[str, tuple[str, str]] = {}
        for name, value in pairs:
            first.setdefault(name.lower(), (name, value))
        return list(first.values())

    _query(edit)


@mutant("identity.sts-defaults", kills=["STS-QUERY-003"], title="fills in parameters that are missing")
def sts_defaults() -> None:
    def edit(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        names = {name for name, _ in pairs}
        known = {"Action": "GetCallerIdentity", "Version": "2011-06-15"}
        return [*pairs, *((name, value) for name, value in known.items() if name not in names)]

    _query(edit)


def _judged_as(edit: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Judge other values than those that travel."""

    def make(sound: Any) -> Any:
        return lambda values, endpoint: sound(values | edit(values), endpoint)

    _override("sts", "_check_values", make)


@mutant("identity.sts-any-action", kills=["STS-ACTION-001"], title="asks STS whatever the URL says")
def sts_any_action() -> None:
    _judged_as(lambda values: {"action": "GetCallerIdentity"})


@mutant("identity.sts-unbound", kills=["STS-BIND-001"], title="accepts a signature that covers no edge")
def sts_unbound() -> None:
    _judged_as(lambda values: {"x-amz-signedheaders": "host;x-iam-edge"})


@mutant("identity.sts-other-edge", kills=["STS-BIND-002"], title="supplies the name of another edge")
def sts_other_edge() -> None:
    def make(sound: Any) -> Any:
        return lambda self: sound(self) | {"x-iam-edge": "edge-b"}

    _override("sts.Question", "headers", make)


@mutant("identity.sts-any-expires", kills=["STS-EXPIRES-001"], title="ignores X-Amz-Expires")
def sts_any_expires() -> None:
    _judged_as(lambda values: {"x-amz-expires": "60"})


@mutant("identity.sts-old-date", kills=["STS-DATE-001"], title="leaves the date to STS")
def sts_old_date() -> None:
    _override("sts", "LIFETIME", lambda sound: 10**8)


@mutant("identity.sts-future-date", kills=["STS-DATE-002"], title="accepts dates ahead")
def sts_future_date() -> None:
    _override("sts", "CLOCK_SKEW", lambda sound: 10**8)


@mutant("identity.sts-long-life", kills=["STS-EXPIRY-001"], title="lets access live an hour")
def sts_long_life() -> None:
    _identity(lambda found: {"not_after": found.issued_at + 3600})


@mutant(
    "identity.sts-asks-once",
    kills=["STS-EXPIRY-003"],
    title="believes an answer of STS for as long as the credential could last",
)
def sts_asks_once() -> None:
    _identity(lambda found: {"check_again": None})


@mutant(
    "identity.sts-key-cache",
    kills=["STS-EXPIRY-002", "STS-AUTH-001"],
    title="remembers a caller by access key, without the signature",
)
def sts_key_cache() -> None:
    known: dict[str, Any] = {}

    def make(sound: Any) -> Any:
        async def ask(self: Any, question: Any, digest: bytes) -> Any:
            if question.key_id not in known:
                known[question.key_id] = await sound(self, question, digest)
            return known[question.key_id]

        return ask

    _override(_VERIFIER, "_ask", make)


@mutant("identity.sts-forwards", kills=["STS-REBUILD-001"], title="forwards the caller's query as it is")
def sts_forwards() -> None:
    queries: dict[str, str] = {}

    def reading(sound: Any) -> Any:
        def read(token: bytes, endpoints: Any, now: float) -> Any:
            question = sound(token, endpoints, now)
            url = decode_base64url(token.partition(b".")[2]).decode()
            queries[question.signature] = url.partition("?")[2]
            return question

        return read

    _override("sts", "read_credential", reading)
    _override(
        "sts.Question",
        "url",
        lambda sound: lambda self: f"{self.endpoint.endpoint}/?{queries[self.signature]}",
    )


@mutant("identity.sts-account", kills=["STS-ACCOUNT-001"], title="accepts roles of any account")
def sts_account() -> None:
    def make(sound: Any) -> Any:
        def identity(self: Any, question: Any, caller: Any, digest: bytes) -> Any:
            open_endpoint = question.endpoint.model_copy(update={"accounts": []})
            return sound(self, replace(question, endpoint=open_endpoint), caller, digest)

        return identity

    _override(_VERIFIER, "_identity", make)


@mutant("identity.sts-name-cache", kills=["PRINCIPAL-ACCOUNT-001"], title="remembers roles by name")
def sts_name_cache() -> None:
    known: dict[str, Any] = {}

    def make(sound: Any) -> Any:
        def identity(self: Any, question: Any, caller: Any, digest: bytes) -> Any:
            name = re.sub(r"::\d{12}:", "::", caller.arn)
            return known.setdefault(name, sound(self, question, caller, digest))

        return identity

    _override(_VERIFIER, "_identity", make)
