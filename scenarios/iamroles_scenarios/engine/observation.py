"""What was seen of one request, and whether it is what was expected: lanes observe, this compares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from iamroles_scenarios.declarations.scenario import Expectation, Text, choices

TAGS = ("role", "principal", "session", "issuer", "rule", "expires")
"""Variables that become headers (SPEC.md section 1, step 5)."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One answer, in the words of SPEC.md section 3. None: this lane, or this answer, does not show it."""

    status: int | None
    allow: bool
    error: str
    backend: str
    """"" if none was reached (through HAProxy) or none was named (over SPOP)."""
    reason: str | None = None
    challenge: bool | None = None
    talkative: tuple[str, ...] = ()
    """Parameters of the challenge that tell a client, or an attacker, more than it needs."""
    tags: Mapping[str, str] = field(default_factory=dict)
    headers: tuple[tuple[str, str], ...] = ()
    """As the backend got them, names lower-case, in order."""
    path: str = ""
    """As the backend got it."""
    sent: str = ""
    received: str = ""
    trace: str = ""
    at: float = 0.0
    """Epoch seconds at which the answer was complete."""


def mismatches(expectation: Expectation, seen: Observation, expires: Mapping[str, int]) -> list[str]:
    """What differs, one sentence each; empty if all is as expected.

    Args:
        expectation: what must be seen.
        seen: what was.
        expires: the `exp` of each minted token, for `expectation.expires`.
    """
    found = [*_status(expectation, seen)]
    for name in ("error", "backend"):
        found += _text(name, getattr(expectation, name), getattr(seen, name))
    if expectation.error is not None and seen.talkative:
        found.append(f"the challenge says more than it must: {', '.join(seen.talkative)}")
    if expectation.reason is not None:
        if seen.reason is None:
            found.append("reason: HAProxy's log has no line for this request")
        found += _text("reason", expectation.reason, seen.reason)
    for name in ("role", "principal", "session", "issuer", "rule"):
        found += _text(name, getattr(expectation, name), seen.tags.get(name, ""))
    if expectation.expires is not None:
        found += _text("expires", str(expires[expectation.expires]), seen.tags.get("expires", ""))
    return [*found, *_headers(expectation, seen)]


def _status(expectation: Expectation, seen: Observation) -> list[str]:
    found = []
    if expectation.status is not None:
        wanted = [expectation.status] if isinstance(expectation.status, int) else expectation.status
        if seen.status not in wanted:
            found.append(f"status: expected {' or '.join(map(str, wanted))}, got {seen.status}")
    if expectation.allow is not None and seen.allow != expectation.allow:
        found.append(f"allow: expected {expectation.allow}, got {seen.allow}")
    if expectation.challenge is not None and seen.challenge != expectation.challenge:
        found.append(
            f"WWW-Authenticate: Bearer: expected {_there(expectation.challenge)}, is {_there(seen.challenge)}"
        )
    return found


def _text(name: str, expected: Text | None, got: str | None) -> list[str]:
    if expected is None or got is None or got in choices(expected):
        return []
    return [f"{name}: expected {' or '.join(repr(choice) for choice in choices(expected))}, got {got!r}"]


def _headers(expectation: Expectation, seen: Observation) -> list[str]:
    found = []
    for name, wanted in expectation.headers.items():
        values = [value for key, value in seen.headers if key == name]
        if values != wanted:
            found.append(f"header {name} at the backend: expected {wanted}, got {values}")
    found += [
        f"header {name} must not reach the backend, but {key} did"
        for name in expectation.absent
        for key, _ in seen.headers
        if _spelling(key) == _spelling(name)
    ]
    if expectation.only:
        names = [key for key, _ in seen.headers if re.fullmatch(r"x.iam(.*)", key)]
        if strange := sorted(set(names) - set(expectation.only)):
            found.append(f"identity headers {strange} reached the backend; the gate sets none of these")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            found.append(f"identity headers {repeated} reached the backend more than once")
    if expectation.path is not None and seen.path != expectation.path:
        found.append(f"path at the backend: expected {expectation.path!r}, got {seen.path!r}")
    return found


def _spelling(name: str) -> str:
    """Header names that a CGI-like backend cannot tell apart: `X_IAM-Role` is `X-IAM-Role`."""
    return re.sub(r"[-_.]", "-", name.lower())


def _there(value: bool | None) -> str:
    return "present" if value else "absent"


def describe(expectation: Expectation) -> str:
    """The expectation as a failed check prints it."""
    parts = []
    for name in expectation.model_fields_set - {"within"}:
        value = getattr(expectation, name)
        if value is None:
            continue
        shown = " or ".join(map(repr, value.one_of)) if hasattr(value, "one_of") else repr(value)
        parts.append(f"{name} = {shown}")
    within = "" if expectation.within is None else f" (within {expectation.within:g} s)"
    return ", ".join(sorted(parts)) + within
