"""The statement about an agent after a run: no more than the run has shown.

"Conforms" is said of a *conformance class* (from wire to bound) in a *grade*. `core` accepts whatever the
standards permit; `strict` adds what SPEC.md asks beyond them. It is said only where every MUST
check of the class in the whole suite was played and passed. A check that was not selected, does not apply,
could not be judged, or fails as the vendor's list says, was not passed: the class is then told by its counts.
A false allow costs its class in both grades, whatever check saw it, and also if the vendor's list has it.
Of an agent that declares `spop = false`, a class is what HAProxy's lanes hold of it. What only the reference
agent's own tests see (class `inside` of the catalogue) has no check, so no conformance needs it.

The statement is computed from the document's checks alone, so a reader of a published report can compute it
again, and an edited sentence does not survive that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.catalogue import CLASSES, Grade
from iamroles_scenarios.declarations.results import Verdict
from iamroles_scenarios.declarations.scenario import ALL_LANES, PROXY_LANES, PlannedCheck
from iamroles_scenarios.stage.spec import declares

Document = dict[str, Any]
_PASS = Verdict.PASS.value
_OPTIONAL = frozenset({"actor", "age", "certificate", "dpop", "limits", "mcp", "proof", "renew"})
"""Features whose clauses count in a class only if declared (8.3, 8.10, 9.8, 11.6, 12 to 14)."""
_RED = {Verdict.FAIL.value, Verdict.WARNING.value, Verdict.DEPARTURE.value}
_JUDGED = {_PASS, Verdict.KNOWN_FAILURE.value, *_RED}


def untestable(verdicts: Sequence[str], grade: Grade) -> bool:
    """Decide if a run ends with a code of its own: nothing failed, but some checks could not be judged."""
    judged = [verdict for verdict in verdicts if verdict != Verdict.UNTESTABLE.value]
    return len(judged) < len(verdicts) and (not judged or holds(judged, grade))


def holds(verdicts: Sequence[str], grade: Grade) -> bool:
    """Decide if a run may end with exit code 0: something was played, and nothing of the grade failed."""
    bad = {verdict.value for verdict in Verdict if not verdict.good}
    if grade == "strict":
        bad.add(Verdict.DEPARTURE.value)
    return bool(verdicts) and not bad.intersection(verdicts)


def statement(
    product: str,
    checks: Sequence[Mapping[str, Any]],
    *,
    features: Mapping[str, Any],
    known_failures: Mapping[str, str],
    grade: Grade = "core",
) -> Document:
    """The statement on a run.

    Args:
        product: name and version.
        checks: the `checks` of a result document: `name` and `verdict` are looked at.
        features: what the agent declares.
        known_failures: reason by check.
        grade: by which the exit code is judged.

    Returns:
        JSON-able: `sentence`, `beside` (sentences that belong next to it), `grade`, `holds`, `conforms`
        (class names by grade), `coverage`, `classes`, and lists of what is `beside`.
    """
    verdicts: dict[str, str] = {}
    for check in checks:  # if a check appears twice, the verdict that is not a pass counts
        if verdicts.get(check["name"], _PASS) == _PASS:
            verdicts[str(check["name"])] = str(check["verdict"])
    absent = frozenset(one for one in ("spop", *_OPTIONAL) if not declares(features, one))
    lets_in = {check["name"] for check in checks if check.get("evidence", {}).get("false_allow")}
    classes = [_class(name, verdicts, lets_in, absent) for name in CLASSES if _checks_of(name, absent)]
    played = sum(verdicts.get(check.name) in _JUDGED for check in _all())
    found: Document = {
        "grade": grade,
        "holds": holds(list(verdicts.values()), grade),
        "conforms": {
            name: [one["class"] for one in classes if one[name]["conforms"]] for name in ("strict", "core")
        },
        "coverage": {"played": played, "of": len(_all())},
        "classes": classes,
        "known_failures": [
            {"check": name, "reason": known_failures.get(name) or known_failures.get(name.split("[")[0], "")}
            for name in _with(verdicts, Verdict.KNOWN_FAILURE)
        ],
        "absent_features": sorted(
            feature
            for feature in {one for check in _all() for one in check.features}
            if not declares(features, feature)
        ),
        "warnings": _with(verdicts, Verdict.WARNING),
        "departures": _with(verdicts, Verdict.DEPARTURE),
    }
    return {"sentence": _sentence(product, found, verdicts), "beside": _beside(found), **found}


def _class(name: str, verdicts: Mapping[str, str], lets_in: set[str], absent: frozenset[str]) -> Document:
    checks = _checks_of(name, absent)
    must = [check for check in checks if check.must or check.name in lets_in]
    core = [check.name for check in must if check.grade == "core" or check.name in lets_in]
    return {
        "class": name,
        "title": CLASSES[name],
        "core": _counts(core, verdicts),
        "strict": _counts([check.name for check in must], verdicts),
        "should": _counts([check.name for check in checks if not check.must], verdicts),
    }


def _counts(names: list[str], verdicts: Mapping[str, str]) -> Document:
    judged = [name for name in names if verdicts.get(name) in _JUDGED]
    passed = [name for name in judged if verdicts[name] == _PASS]
    return {
        "conforms": bool(names) and len(passed) == len(names),
        "of": len(names),
        "played": len(judged),
        "passed": len(passed),
        "failed": [name for name in judged if verdicts[name] != _PASS],
        "missing": [name for name in names if verdicts.get(name) not in _JUDGED],
    }


def _sentence(product: str, found: Document, verdicts: Mapping[str, str]) -> str:
    classes, conforms = found["classes"], found["conforms"]
    if not conforms["core"] and len(verdicts) < len(_all()):
        return f"{_narrow(found, verdicts)} That is no statement of conformance."
    grades = [
        (grade, [name for name in conforms[grade] if grade == "strict" or name not in conforms["strict"]])
        for grade in ("strict", "core")
    ]
    conforming = " and ".join(f"{_joined(names)} ({grade})" for grade, names in grades if names)
    parts = [f"{product} conforms to {conforming}." if conforming else f"{product} conforms to no class."]
    return " ".join([*parts, *(_lacking(one) for one in classes if not one["core"]["conforms"])])


def _lacking(one: Document) -> str:
    core = one["core"]
    if failed := len(core["failed"]):
        return f"It does not conform to {one['class']}: {failed} of {core['of']} MUST checks failed."
    return f"No statement on {one['class']}: {core['played']} of {core['of']} MUST checks were played."


def _narrow(found: Document, verdicts: Mapping[str, str]) -> str:
    coverage = found["coverage"]
    noun = "check" if coverage["of"] == 1 else "checks"
    counts = Counter(verdicts.values())
    failed = counts[Verdict.FAIL.value] + counts[Verdict.KNOWN_FAILURE.value]
    sentence = (
        f"{coverage['played']} of {coverage['of']} {noun} played: {counts[_PASS]} passed, {failed} failed"
    )
    permitted = [(Verdict.WARNING.value, "warning"), (Verdict.DEPARTURE.value, "departure")]
    for verdict, word in permitted:
        if count := counts[verdict]:
            sentence += f", {count} {word}{'s' if count > 1 else ''}"
    return f"{sentence}."


def _beside(found: Document) -> list[str]:
    known = [f"{one['check']} ({one['reason']})" for one in found["known_failures"]]
    parts = [
        ("known failures", known),
        ("absent features", found["absent_features"]),
        ("warnings (SHOULD)", found["warnings"]),
        ("departures (strict)", found["departures"]),
    ]
    return [f"{title}: {', '.join(names)}" for title, names in parts if names]


def _with(verdicts: Mapping[str, str], wanted: Verdict) -> list[str]:
    return [name for name, verdict in verdicts.items() if verdict == wanted.value]


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


@cache
def _all() -> tuple[PlannedCheck, ...]:
    return tuple(plan())


@cache
def _checks_of(name: str, absent: frozenset[str]) -> tuple[PlannedCheck, ...]:
    """The checks of a class for an agent without these features; without SPOP those through HAProxy."""
    lanes = PROXY_LANES if "spop" in absent else ALL_LANES
    return tuple(
        check
        for check in _all()
        if name in check.classes and check.lane in lanes and not check.features & absent
    )
