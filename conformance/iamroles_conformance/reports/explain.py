"""A result for people: requirement, sent, expected, received, trace, logs, and how to run it again."""

from __future__ import annotations

from collections.abc import Iterator

from iamroles_conformance.reports import contract
from iamroles_scenarios.base.recording import without_secrets
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.declarations.results import CheckResult, Verdict
from iamroles_scenarios.declarations.scenario import PlannedCheck

_WORDS = {
    Verdict.FAIL: "FAIL",
    Verdict.WARNING: "WARNING: a SHOULD that failed, which RFC 2119 permits",
    Verdict.DEPARTURE: "DEPARTURE from the grade strict, which the standards permit",
    Verdict.UNTESTABLE: "UNTESTABLE, which counts as a failure",
    Verdict.HARNESS_ERROR: "HARNESS ERROR: the suite's own fault, no verdict on the agent",
}


def failure(check: PlannedCheck, result: CheckResult, again: str, explained: set[str] | None = None) -> str:
    """The text of a check that did not pass.

    Args:
        check: which.
        result: what came of it.
        again: the command that runs it again.
        explained: causes that earlier failures explained; one gets a line now, and a new cause is added.
    """
    head = f"{_WORDS.get(result.verdict, result.verdict)}: {check.name}\n  {check.title}\n  {result.message}"
    if explained is not None and result.cause:
        if result.cause in explained:
            return f"{_WORDS.get(result.verdict, result.verdict)}: {check.name}: {result.cause}"
        explained.add(result.cause)
    evidence = result.evidence
    parts = [
        ("requirement", "\n".join(catalogue().quote(name) for name in result.requirements)),
        *((f"clause {number}", _clause(number)) for number in _clauses(result)),
        ("sent", evidence.sent),
        ("expected", evidence.expected),
        ("received", evidence.received),
        ("trace", _end(evidence.trace)),
        *((f"log of {part}", _end(text)) for part, text in evidence.logs.items()),
        ("run it again", again),
    ]
    return without_secrets(
        "\n".join([head, *(_section(title, text) for title, text in parts if text.strip())])
    )


_LINES, _WIDTH = 14, 400
"""Lines of a trace or a log on a terminal; `report.json` has more."""


def _end(text: str) -> str:
    lines = text.splitlines()
    left_out = [f"… {len(lines) - _LINES} lines before"] if len(lines) > _LINES else []
    cut = [line if len(line) <= _WIDTH else f"{line[:_WIDTH]}…" for line in lines[-_LINES:]]
    return "\n".join([*left_out, *cut])


def _clauses(result: CheckResult) -> list[str]:
    """The clauses of SPEC.md behind a result, each once."""
    known = catalogue()
    return list(
        dict.fromkeys(one for name in result.requirements if name in known for one in known[name].clauses)
    )


def _clause(number: str) -> str:
    """Its first paragraph: tables and examples that follow are for `iamroles conformance spec`."""
    return contract.clause(number).split("\n\n")[0]


def _section(title: str, text: str) -> str:
    return f"\n--- {title}\n{text.rstrip()}"


def about(name: str, planned: list[PlannedCheck]) -> Iterator[str]:
    """Lines that explain a requirement, a scenario or a check; empty if the name is unknown."""
    known = catalogue()
    if name in known:
        item = known[name]
        yield f"{item.id}  {item.level}, class {item.class_}, grade {item.grade}"
        yield f"  requires   {item.text}"
        yield f"  against    {item.attack}"
        yield f"  source     {item.cited}"
        for check in planned:
            if name in check.requirements:
                yield f"  proved by  {check.name}: {check.title}"
        return
    base = name.partition("[")[0]
    found = [check for check in planned if check.id == base or check.id.startswith(f"{base}.")]
    scenario = next((check.scenario for check in found if check.scenario), None)
    if scenario is not None:
        yield f"{scenario.id}: {scenario.title}"
        yield from (f"  {line}" for line in scenario.why.strip().splitlines())
    for check in found:
        yield f"{check.name}: {check.title}"
        if check.function is not None and check.function.explanation:
            yield f"  {check.function.explanation}"
        yield from (f"  {known.quote(requirement)}" for requirement in check.requirements)
