"""An answer as a lane saw it, compared with what was expected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from iamroles_scenarios.declarations.scenario import Expectation, choices

TAGS = ("role", "principal", "session", "issuer", "rule", "expires")
"""Variables that become headers (SPEC.md section 1, step 5)."""
_TEXT_TAGS = TAGS[:-1]
_SEEN = ("status", "allow", "error", "backend", "reason")


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
    trace: object = ""
    """Becomes text when it is read, which it is of failures only."""
    leaked: tuple[str, ...] = ()
    """Credentials that a refusal holds (`base.sent`)."""
    at: float = 0.0
    """Epoch seconds at which the answer was complete."""
    record: Mapping[str, Any] | None = None
    """The line of HAProxy's log, if it was waited for and came."""
    unknown: bool = False
    """The proxy said 501 to a method beyond RFC 9110 and PATCH, as it may (SPEC.md 1.20)."""
    others: tuple[Observation, ...] = ()
    """The answers of the agent's other workers to the same question."""

    @property
    def opened(self) -> bool:
        """True if any worker allowed it."""
        return any(one.allow for one in (self, *self.others))

    @property
    def shown(self) -> dict[str, object]:
        return {**dict.fromkeys(TAGS, ""), **self.tags, **{name: getattr(self, name) for name in _SEEN}}


def falsely_allowed(expectation: Expectation, seen: Observation) -> bool:
    """Tell whether a request was allowed that could only be refused."""
    statuses = expectation.status if isinstance(expectation.status, list) else [expectation.status or 0]
    return seen.opened and (expectation.allow is False or min(statuses) >= 400)


def differences(wanted: Mapping[str, object], got: Mapping[str, object]) -> list[str]:
    """Return what differs, one sentence each. No other function says whether an answer is right.

    Args:
        wanted: what must be seen by name; of a set, any member suffices. Other names are not looked at.
        got: what was seen. A value of another type is wrong: `1` is not `True`.
    """
    found = []
    for name, wish in wanted.items():
        good, value = wish if isinstance(wish, AbstractSet) else {wish}, got.get(name)
        if not any(type(value) is type(each) and value == each for each in good):
            found.append(f"{name}: expected {' or '.join(sorted(map(repr, good)))}, got {value!r}")
    return found


def mismatches(expectation: Expectation, seen: Observation, expires: Mapping[str, int]) -> list[str]:
    """Return what differs in the answer of any worker, one sentence each; empty if all is as expected.

    Args:
        expectation: what must be seen.
        seen: what was.
        expires: the `exp` of each minted token, for `expectation.expires`.
    """
    wanted: dict[str, object] = {}
    if expectation.status is not None:
        wanted["status"] = (
            expectation.status if isinstance(expectation.status, int) else set(expectation.status)
        )
    if expectation.allow is not None:
        wanted["allow"] = expectation.allow
    for name in ("error", "backend", "reason", *_TEXT_TAGS):
        if (text := getattr(expectation, name)) is not None:
            wanted[name] = set(choices(text))
    if expectation.expires is not None:
        wanted["expires"] = str(expires[expectation.expires])
    found = [f"the refusal holds a credential: {name}" for name in seen.leaked]
    if seen.unknown:
        return found
    if expectation.reason is not None and seen.reason is None:
        found.append("reason: HAProxy's log has no line for this request")
        del wanted["reason"]
    if expectation.error is not None and seen.talkative:
        found.append(f"the challenge says more than it must: {', '.join(seen.talkative)}")
    if expectation.challenge is not None and seen.challenge != expectation.challenge:
        found.append(
            f"WWW-Authenticate: Bearer: expected {_there(expectation.challenge)}, is {_there(seen.challenge)}"
        )
    found = [*differences(wanted, seen.shown), *found, *_headers(expectation, seen)]
    found += [each for other in seen.others for each in mismatches(expectation, other, expires)]
    return list(dict.fromkeys(found))


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
        names = [key for key, _ in seen.headers if re.fullmatch(r"x[^a-z0-9]+iam(.*)", key)]
        if strange := sorted(set(names) - set(expectation.only)):
            found.append(f"identity headers {strange} reached the backend; the gate sets none of these")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            found.append(f"identity headers {repeated} reached the backend more than once")
    if expectation.path is not None and seen.path != expectation.path:
        found.append(f"path at the backend: expected {expectation.path!r}, got {seen.path!r}")
    return found


def _spelling(name: str) -> str:
    """Return one spelling for names that a CGI-like backend cannot tell apart: `X_IAM-Role`, `X-IAM-Role`."""
    return re.sub(r"[-_.]", "-", name.lower())


def _there(value: bool | None) -> str:
    return "present" if value else "absent"


def describe(expectation: Expectation) -> str:
    """Return the expectation as a failed check prints it."""
    parts = []
    for name in expectation.model_fields_set - {"within"}:
        value = getattr(expectation, name)
        if value is None:
            continue
        shown = " or ".join(map(repr, value.one_of)) if hasattr(value, "one_of") else repr(value)
        parts.append(f"{name} = {shown}")
    within = "" if expectation.within is None else f" (within {expectation.within:g} s)"
    return ", ".join(sorted(parts)) + within
