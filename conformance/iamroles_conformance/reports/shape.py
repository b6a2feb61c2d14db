"""The form that a saved result document must have before anything is made from it.

Bundles and reports come from strangers, so a wrong one is named with its place and refused. Keys that no form
reads may be anything: older and newer suites write other ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from iamroles_scenarios.declarations.results import Verdict


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Product(_Model):
    name: str
    version: str


class _Evidence(_Model):
    sent: str = ""
    expected: str = ""
    received: str = ""
    trace: str = ""
    logs: dict[str, str] = {}


class _Check(_Model):
    check: str
    lane: str
    name: str
    title: str
    level: str
    requirements: list[str]
    verdict: Annotated[Verdict, Field(strict=False)]
    message: str
    seconds: float
    again: list[str] = []
    evidence: _Evidence = _Evidence()


class _Stage(_Model):
    kind: str
    why: str


class _Requirement(_Model):
    id: str
    level: str
    verdict: str


class _Share(_Model):
    played: int
    of: int


class _Coverage(_Model):
    requirements: _Share
    MUST: _Share


class _Statement(_Model):
    grade: str = "core"
    sentence: str
    beside: list[str]


class _Document(_Model):
    suite: str
    product: _Product
    finished: str
    seconds: float
    stage: _Stage
    haproxy: str | None = None
    features: dict[str, Any]
    known_failures: dict[str, str]
    reproduce: str
    digests: dict[str, Any] = {}
    environment: dict[str, Any] | None = None
    seeds: dict[str, Any] | None = None
    load_sound: bool | None = None
    statement: _Statement
    findings: list[str] | None = None
    host: list[str] | None = None
    not_played: list[str] | None = None
    not_produced: list[str] | None = None
    totals: dict[str, int]
    coverage: _Coverage | None = None
    requirements: list[_Requirement]
    checks: list[_Check] = Field(min_length=1)


def fault(document: Mapping[str, Any]) -> str | None:
    """All that is missing (`lacks seconds, checks[].title`), else the first that is wrong, and where."""
    try:
        _Document.model_validate(document)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        missing = dict.fromkeys(_place(one["loc"], "[]") for one in errors if one["type"] == "missing")
        return f"lacks {', '.join(missing)}" if missing else f"{_place(errors[0]['loc'])}: {errors[0]['msg']}"
    return None


def _place(parts: Iterable[int | str], each: str = "[{}]") -> str:
    return "".join(each.format(part) if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
