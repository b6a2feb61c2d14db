"""What is asked under load, and what the right answer is.

A load test that only counts status 200 measures how fast a gate is wrong. Here every answer is judged: the
status, the backend that answered, and the identity that this backend was told. Each caller has a name of its
own, so an identity that leaks from one remembered verdict into another shows.

The cases come in weights that resemble an edge: most requests are allowed and repeat what was asked before;
some are refused; a few bring a token that was never seen. Three are there to be compared with each other:

- `not-asked`: a path that HAProxy refuses by itself, so no agent and no backend are involved: the floor;
- `refused-known`: the same, but the agent is asked, and remembers: the cost of a remembered check;
- `first-use`: allowed, with a token seen for the first time: its signature is checked.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field

from iamroles_scenarios.declarations.documents import Model

ACCOUNT = "111111111111"
FLOOR = "not-asked"
KNOWN = "refused-known"
FIRST = "first-use"
CALLERS = 40
"""Names in the mix; each asks with tokens of its own."""
ORDERS = 25
"""Different paths that a caller reads."""
_SHORT = 3
"""Seconds between the deaths of two tokens that expire during the run."""


class Answer(Model):
    """What must come back."""

    status: int
    backend: str = ""
    principal: str = ""
    role: str = ""
    rule: str = ""
    error: str = ""
    """RFC 6750 code of the challenge."""


class Question(Model):
    """One request and its right answer."""

    method: str = "GET"
    path: str
    headers: dict[str, str] = Field(default_factory=dict)
    right: Answer
    expires: int | None = None
    """Epoch seconds at which `right` becomes `afterwards`."""
    afterwards: Answer | None = None


class Case(Model):
    """Questions of one kind, which share a histogram."""

    name: str
    weight: int
    questions: list[Question]
    once: bool = False
    """Each question is asked once; when all were, the next case in the list stands in."""


class Plan(Model):
    """All that the process which makes the load needs to know."""

    rate: float
    """Requests a second, offered by all users together."""
    users: int
    duration: float
    """Seconds, the warm-up included."""
    warmup: float
    """Seconds at the start whose verdicts count and whose latencies do not."""
    seed: int
    patience: float = 5.0
    """Seconds after the end in which what was sent may still be answered."""
    cases: list[Case]


Minter = Callable[[Mapping[str, Any]], str]
"""A recipe of `iamroles_scenarios.jose` in, a token out."""


def cases(mint: Minter, *, rate: float, duration: float, now: float | None = None) -> list[Case]:
    """The mix, with tokens for a run of `duration` seconds at `rate` requests a second."""
    now = time.time() if now is None else now
    life = f"+{math.ceil(duration) + 300}s"
    names = [f"caller-{number}" for number in range(CALLERS)]
    readers = {name: mint({"sub": name, "roles": ["reader"], "exp": life}) for name in names}
    both = {name: mint({"sub": name, "roles": ["reader", "writer"], "exp": life}) for name in names[:10]}
    limited = mint({"sub": "contractor", "roles": ["reader", "contractor"], "exp": life})
    reads = [
        _allowed(name, token, path=f"/orders/{number}")
        for name, token in readers.items()
        for number in range(ORDERS)
    ]
    fresh = max(1, math.ceil(rate * duration * 0.02))
    return [
        Case(
            name=FIRST,
            weight=1,
            once=True,
            questions=[
                _allowed(f"new-{number}", mint({"sub": f"new-{number}", "roles": ["reader"], "exp": life}))
                for number in range(fresh)
            ],
        ),
        Case(name="allowed-read", weight=58, questions=reads),
        Case(
            name="allowed-write",
            weight=10,
            questions=[_written(name, token) for name, token in both.items()],
        ),
        Case(
            name=KNOWN,
            weight=10,
            questions=[
                _refused(403, "insufficient_scope", token, method="DELETE") for token in readers.values()
            ],
        ),
        Case(
            name="refused-overlap",
            weight=3,
            questions=[_refused(403, "insufficient_scope", token) for token in both.values()],
        ),
        Case(
            name="refused-rule",
            weight=3,
            questions=[_refused(403, "insufficient_scope", limited, path="/orders/export", role="reader")],
        ),
        Case(name="no-token", weight=2, questions=[_refused(401, "", "")]),
        Case(
            name="bad-token",
            weight=4,
            questions=[
                _refused(401, "invalid_token", mint({"roles": ["reader"], **flaw}))
                for flaw in (
                    {"signature": "flipped"},
                    {"aud": "elsewhere"},
                    {"key": "other"},
                    {"alg": "none"},
                    {"roles": ["not an arn/"]},
                )
            ],
        ),
        Case(
            name="expired",
            weight=3,
            questions=[
                _refused(401, "invalid_token", mint({"sub": name, "roles": ["reader"], "exp": "-2s"}))
                for name in names[:5]
            ],
        ),
        Case(name="expiring", weight=3, questions=_expiring(mint, now, duration)),
        Case(name=FLOOR, weight=3, questions=[_refused(400, "invalid_request", "", path="/orders//1")]),
    ]


def _expiring(mint: Minter, now: float, duration: float) -> list[Question]:
    """One token dies every few seconds of the run; before that it opens, after it is refused."""
    ends = [math.ceil(now + after) for after in range(_SHORT, math.ceil(duration) + _SHORT, _SHORT)]
    questions = []
    for end in ends:
        name = f"short-{end}"
        opened = _allowed(name, mint({"sub": name, "roles": ["reader"], "exp": end}))
        closed = Answer(status=401, error="invalid_token")
        questions.append(opened.model_copy(update={"expires": end, "afterwards": closed}))
    return questions


def _allowed(name: str, token: str, *, path: str = "/orders/1") -> Question:
    role = f"arn:aws:iam::{ACCOUNT}:role/reader"
    return Question(
        path=path,
        headers={"Authorization": f"Bearer {token}"},
        right=Answer(status=200, backend="orders-ro", principal=name, role=role, rule="R1"),
    )


def _written(name: str, token: str) -> Question:
    return Question(
        method="POST",
        path="/orders",
        headers={"Authorization": f"Bearer {token}", "X-IAM-Role": "writer"},
        right=Answer(
            status=200,
            backend="orders-rw",
            principal=name,
            role=f"arn:aws:iam::{ACCOUNT}:role/writer",
            rule="R2",
        ),
    )


def _refused(
    status: int, error: str, token: str, *, method: str = "GET", path: str = "/orders/1", role: str = ""
) -> Question:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if role:
        headers["X-IAM-Role"] = role
    return Question(method=method, path=path, headers=headers, right=Answer(status=status, error=error))


def judge(question: Question, status: int, challenge: str, body: bytes, *, sent: float, done: float) -> str:
    """What is wrong with an answer, in words; "" if it is right.

    Args:
        question: what was asked.
        status: of the answer.
        challenge: its `WWW-Authenticate`.
        body: the echo backend's report, where a backend was reached.
        sent: epoch seconds just before the request was sent.
        done: epoch seconds just after the answer was read.
    """
    if question.expires is None or question.afterwards is None or done < question.expires:
        return _differs(question.right, status, challenge, body)
    if sent >= question.expires:
        return _differs(question.afterwards, status, challenge, body)
    # On its way while the token died: either is right, a mixture is not.
    before = _differs(question.right, status, challenge, body)
    return before and _differs(question.afterwards, status, challenge, body)


def _differs(right: Answer, status: int, challenge: str, body: bytes) -> str:
    if status != right.status:
        return f"status {status} where {right.status} is right"
    if right.error and f'error="{right.error}"' not in challenge:
        return f"challenge {challenge!r} where error={right.error!r} is right"
    if not right.backend:
        return "" if status != 200 else "a backend was reached"
    try:
        echo = json.loads(body)
        headers: Sequence[Sequence[str]] = echo["headers"]
        got = {"backend": echo["backend"]} | {
            name: _one(headers, f"x-iam-{name}") for name in ("principal", "role", "rule")
        }
    except (ValueError, KeyError, TypeError):
        return "the answer is not an echo backend's"
    for name, value in got.items():
        if value != getattr(right, name):
            return f"{name} {value!r} where {getattr(right, name)!r} is right"
    leaked = [name for name, _ in headers if name.lower() == "authorization"]
    return "the token reached the backend" if leaked else ""


def _one(headers: Sequence[Sequence[str]], name: str) -> str:
    return ", ".join(value for key, value in headers if key.lower() == name)
