"""Mutants of what STS answers, and of its troubles: STS-ANSWER, STS-REDIRECT, STS-TIMEOUT, STS-THROTTLE."""

from __future__ import annotations

import http.client
import json
import re
import urllib.request
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from iamroles_agent.base.reasons import Refusal
from iamroles_agent.tokens import sts, sts_answer
from iamroles_agent.tokens.sts import StsVerifier
from iamroles_agent.tokens.sts_answer import Caller, Rejected, Unavailable, _read_caller
from iamroles_agent.tokens.transport import Answer, Transport
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.registry import Override, mutant


def _answers(read: Any) -> Override:
    """Where the strict reading refuses, read once more as `read` does."""

    @around(sts, "read_answer")
    def read_answer(sound: Any, answer: Any) -> Any:
        try:
            return sound(answer)
        except (Rejected, Unavailable):
            found = read(answer)
            if found is None:
                raise
            return found

    return read_answer


@mutant("identity.sts-anywhere", "STS-ANSWER-001", "finds the caller anywhere in an answer")
@_answers
def sts_anywhere(answer: Any) -> Any:
    arn = re.search(rb"arn:aws:sts::(\d{12}):assumed-role/\w+/([\w-]+)", answer.body)
    if arn is None or answer.status != 200:
        return None
    return Caller(arn[0].decode(), arn[1].decode(), f"AROA:{arn[2].decode()}")


@mutant("identity.sts-any-status", "STS-ANSWER-001", "believes an answer of any status")
@_answers
def sts_any_status(answer: Any) -> Any:
    try:
        return _read_caller(replace(answer, status=200)) if answer.status > 200 else None
    except Rejected:
        return None


mutant("identity.sts-any-type", "STS-ANSWER-001", "believes an answer of any content type")(
    around(sts, "read_answer")(lambda sound, answer: sound(replace(answer, content_type="application/json")))
)


@mutant("identity.sts-account-unread", "STS-ANSWER-002", "does not compare ARN and account")
@_answers
def sts_account_unread(answer: Any) -> Any:
    try:
        said = json.loads(answer.body)["GetCallerIdentityResponse"]["GetCallerIdentityResult"]
    except (ValueError, KeyError, TypeError):
        return None
    return Caller(said["Arn"], said["Arn"].split(":")[4], said["UserId"])


mutant("identity.sts-large-answer", "STS-ANSWER-003", "reads answers of any size")(
    setting(sts, "_MAX_ANSWER", 1 << 30)
)


@mutant("identity.sts-redirect", "STS-REDIRECT-001", "follows a redirect of STS")
@around(Transport, "get")
def sts_redirect(sound: Any, self: Any, url: str, *, headers: Any = None, **how: Any) -> Any:
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


@mutant("identity.sts-blocks", "STS-TIMEOUT-001", "waits for STS and for nothing else")
@around(sts, "in_thread")
async def sts_blocks(_sound: Any, work: Any, *_timeout: Any) -> Any:
    return work()


mutant("identity.sts-throttled-is-401", "STS-THROTTLE-001", "takes throttling for a verdict on the caller")(
    setting(sts_answer, "_THROTTLING", frozenset())
)
_failed: dict[bytes, Refusal] = {}


@mutant(
    "identity.sts-trouble-remembered",
    "STS-THROTTLE-002",
    "remembers a failed question against the credential",
)
@around(StsVerifier, "_ask")
async def sts_trouble_remembered(sound: Any, self: Any, question: Any, digest: bytes, source: str) -> Any:
    if digest in _failed:
        raise _failed[digest]
    try:
        return await sound(self, question, digest, source)
    except Refusal as refusal:
        _failed[digest] = refusal
        raise


mutant("identity.sts-no-backoff", "STS-THROTTLE-003", "asks a throttling STS for each request")(
    setting(sts, "_FIRST_PAUSE", 0.0)
)
