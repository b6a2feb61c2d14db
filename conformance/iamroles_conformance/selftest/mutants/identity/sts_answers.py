"""Mutants of what STS answers, and of its troubles: STS-ANSWER, STS-REDIRECT, STS-TIMEOUT, STS-THROTTLE."""

from __future__ import annotations

import http.client
import json
import re
import urllib.request
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from iamroles_agent.reasons import Refusal
from iamroles_agent.tokens.sts_answer import Caller, Rejected, Unavailable, _read_caller
from iamroles_agent.tokens.transport import Answer
from iamroles_conformance.selftest.mutants.identity.header import _override
from iamroles_conformance.selftest.registry import mutant


def _answers(read: Any) -> None:
    """Where the strict reading refuses, read once more as `read` does."""

    def make(sound: Any) -> Any:
        def read_answer(answer: Any) -> Any:
            try:
                return sound(answer)
            except (Rejected, Unavailable):
                found = read(answer)
                if found is None:
                    raise
                return found

        return read_answer

    _override("sts", "read_answer", make)


@mutant("identity.sts-anywhere", kills=["STS-ANSWER-001"], title="finds the caller anywhere in an answer")
def sts_anywhere() -> None:
    def read(answer: Any) -> Any:
        arn = re.search(rb"arn:aws:sts::(\d{12}):assumed-role/\w+/([\w-]+)", answer.body)
        if arn is None or answer.status != 200:
            return None
        return Caller(arn[0].decode(), arn[1].decode(), f"AROA:{arn[2].decode()}")

    _answers(read)


@mutant("identity.sts-any-status", kills=["STS-ANSWER-001"], title="believes an answer of any status")
def sts_any_status() -> None:
    def read(answer: Any) -> Any:
        try:
            return _read_caller(replace(answer, status=200)) if answer.status > 200 else None
        except Rejected:
            return None

    _answers(read)


@mutant("identity.sts-any-type", kills=["STS-ANSWER-001"], title="believes an answer of any content type")
def sts_any_type() -> None:
    def make(sound: Any) -> Any:
        return lambda answer: sound(replace(answer, content_type="application/json"))

    _override("sts", "read_answer", make)


@mutant("identity.sts-account-unread", kills=["STS-ANSWER-002"], title="does not compare ARN and account")
def sts_account_unread() -> None:
    def read(answer: Any) -> Any:
        try:
            said = json.loads(answer.body)["GetCallerIdentityResponse"]["GetCallerIdentityResult"]
        except (ValueError, KeyError, TypeError):
            return None
        return Caller(said["Arn"], said["Arn"].split(":")[4], said["UserId"])

    _answers(read)


@mutant("identity.sts-large-answer", kills=["STS-ANSWER-003"], title="reads answers of any size")
def sts_large_answer() -> None:
    _override("sts", "_MAX_ANSWER", lambda sound: 1 << 30)


@mutant("identity.sts-redirect", kills=["STS-REDIRECT-001"], title="follows a redirect of STS")
def sts_redirect() -> None:
    def make(sound: Any) -> Any:
        def get(self: Any, url: str, *, headers: Any = None, **how: Any) -> Any:
            answer = sound(self, url, headers=headers, **how)
            if not 300 <= answer.status < 400 or "x-iam-edge" not in (headers or {}):
                return answer
            parts = urlsplit(url)
            connection = http.client.HTTPConnection(parts.netloc, timeout=5)
            connection.request("GET", f"/?{parts.query}", headers=dict(headers))
            place = connection.getresponse().headers["Location"]
            request = urllib.request.Request(place, headers={"Accept": "application/json"})  # noqa: S310
            with urllib.request.urlopen(request, timeout=5) as second:  # noqa: S310
                return Answer(200, "application/json", second.read())

        return get

    _override("transport.Transport", "get", make)


@mutant("identity.sts-blocks", kills=["STS-TIMEOUT-001"], title="waits for STS and for nothing else")
def sts_blocks() -> None:
    def make(_sound: Any) -> Any:
        async def in_thread(work: Any) -> Any:
            return work()

        return in_thread

    _override("sts", "in_thread", make)


@mutant(
    "identity.sts-throttled-is-401",
    kills=["STS-THROTTLE-001"],
    title="takes throttling for a verdict on the caller",
)
def sts_throttled_is_401() -> None:
    _override("sts_answer", "_THROTTLING", lambda sound: frozenset())


@mutant(
    "identity.sts-trouble-remembered",
    kills=["STS-THROTTLE-002"],
    title="remembers a failed question against the credential",
)
def sts_trouble_remembered() -> None:
    failed: dict[bytes, Refusal] = {}

    def make(sound: Any) -> Any:
        async def ask(self: Any, question: Any, digest: bytes) -> Any:
            if digest in failed:
                raise failed[digest]
            try:
                return await sound(self, question, digest)
            except Refusal as refusal:
                failed[digest] = refusal
                raise

        return ask

    _override("sts.StsVerifier", "_ask", make)


@mutant("identity.sts-no-backoff", kills=["STS-THROTTLE-003"], title="asks a throttling STS for each request")
def sts_no_backoff() -> None:
    _override("sts", "_FIRST_PAUSE", lambda sound: 0.0)
