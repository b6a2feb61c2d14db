"""The result document of a run, and its published forms: JSON, JUnit XML, one HTML page.

The JSON document is the truth; the others are made from it, also later (`iamroles conformance report`). It
says what a reader needs to believe it: product and version, specification, stage, HAProxy, features claimed
and not, every verdict with its requirements, and the command that reproduces it.
"""

from __future__ import annotations

import json
import re
import shlex
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Template

from iamroles_conformance.errors import ReportError
from iamroles_conformance.reports.evidence import digests, environment, seeds
from iamroles_conformance.reports.shape import fault
from iamroles_conformance.reports.statement import holds, statement
from iamroles_conformance.subject import Subject
from iamroles_scenarios.base.errors import SelectionError, StageError
from iamroles_scenarios.base.pages.html import template
from iamroles_scenarios.base.recording import without_secrets
from iamroles_scenarios.checks.fault import not_produced
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.declarations.results import CheckResult, Verdict
from iamroles_scenarios.declarations.scenario import PlannedCheck
from iamroles_scenarios.engine.run import Run
from iamroles_scenarios.engine.setups import findings
from iamroles_scenarios.engine.verdicts import lets_in

SCHEMA = 1
SPEC = 1
"""The version of SPEC.md that was judged."""
Document = dict[str, Any]
_NAMED = 5
"""Checks that a finding names."""
_ROWS = ("requirements", "checks")
_RED = ("fail", "untestable", "harness-error", "known-failure", "departure", "warning")


def document(subject: Subject, run: Run, results: Iterable[tuple[PlannedCheck, CheckResult]]) -> Document:
    """The result document of a run, as JSON can hold it.

    Args:
        subject: the agent that was judged, as the command named it.
        run: the run, which knows agent and stage.
        results: what came of each check.
    """
    pairs = list(results)
    checks = [_check(check, result) for check, result in pairs]
    stage, load = run.stage, run.background_load
    command = ["iamroles", "conformance", "run", *subject.arguments("--")]
    command += [f"--lane={lane}" for lane in subject.lanes]
    command += [f"--budget={run.options.budget:g}s"] if run.options.budget else []
    command += [f"--check={pattern}" for pattern in _patterns(run.planned, subject.planned())]
    features, known = run.agent.features, run.agent.known_failures
    product = f"{run.agent.name} {run.agent.version}".strip()
    made = statement(product, checks, features=features, known_failures=known, grade=subject.grade)
    return {
        "schema": SCHEMA,
        "specification": SPEC,
        "suite": version("haproxy-iam-roles"),
        "product": {"name": run.agent.name, "version": run.agent.version},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(run.elapsed, 2),
        "stage": {"kind": stage.kind if stage else "none", "why": stage.why if stage else "running agent"},
        "haproxy": run.haproxy_version,
        "features": features,
        "known_failures": known,
        "reproduce": shlex.join(command),
        "digests": digests(run.agent),
        "environment": environment(),
        "seeds": seeds(),
        "passed": made["holds"] and (load is None or load.sound),
        "load_sound": load.sound if load else None,
        "statement": made,
        "findings": [
            without_secrets(text)
            for text in findings(result for _, result in pairs) + (load.sentences() if load else [])
        ],
        "host": [without_secrets(text) for text in [run.host, *_late(checks)] if text],
        "not_played": sorted({check.name for check in run.planned} - {check["name"] for check in checks}),
        "not_produced": not_produced([check.name for check in run.planned]),
        **_derived(checks),
        "checks": checks,
    }


def _patterns(chosen: list[PlannedCheck], everything: list[PlannedCheck]) -> Iterable[str]:
    """Name these checks as `--check` takes them, by the beginnings that select no other; all need no name."""
    names = [check.name for check in chosen]
    others = {check.name for check in everything} - set(names)

    def shortest(name: str) -> str:
        heads = accumulate(name.split(".")[:-1], "{}.{}".format)
        return next((head for head in heads if not any(map(re.compile(f"{head}[.-]").match, others))), name)

    return dict.fromkeys(map(shortest, names)) if others else ()


def sentences(found: Document) -> list[str]:
    """Return all that a run says in words: findings, the host, the statement and what is beside it."""
    statement = found["statement"]
    first = [*found["findings"], *found["host"], statement["sentence"]]
    return [*first, *statement["beside"], *found["not_produced"]]


def _late(checks: list[Document]) -> list[str]:
    """Say what was played again because the host was late, and which checks had it often."""
    late = [check for check in checks if check.get("again")]
    named = ", ".join(f"{check['name']} ({check['again'][0]})" for check in late[:_NAMED])
    more = f" and {len(late) - _NAMED} more" if len(late) > _NAMED else ""
    again = "played again with longer times, because the host was late"
    return [f"{len(late)} of {len(checks)} checks were {again}: {named}{more}"] if late else []


def _derived(checks: list[Document]) -> Document:
    """Compute what follows from the checks alone: counts, and the requirements that they bear on."""
    played = _requirements(checks)
    must = [name for name, item in catalogue().items() if item.level == "MUST"]
    return {
        "totals": dict(Counter(check["verdict"] for check in checks)),
        "coverage": {
            "checks": {"played": len(checks), "of": len(plan())},
            "requirements": {"played": len(played), "of": len(catalogue())},
            "MUST": {"played": sum(item["level"] == "MUST" for item in played), "of": len(must)},
        },
        "requirements": played,
    }


def _planned(check: PlannedCheck) -> Document:
    """Return what the suite knows of a check before it is played."""
    return {
        "check": check.id,
        "lane": check.lane,
        "name": check.name,
        "title": check.title,
        "level": "MUST" if check.must else "SHOULD",
        "grade": check.grade,
        "classes": sorted(check.classes),
        "requirements": list(check.requirements),
    }


def _check(check: PlannedCheck, result: CheckResult) -> Document:
    evidence = result.evidence
    found: Document = {
        **_planned(check),
        "verdict": result.verdict.value,
        "message": without_secrets(result.message),
        "seconds": round(result.seconds, 3),
    }
    if result.again:
        found["again"] = list(result.again)
    if result.verdict not in (Verdict.PASS, Verdict.NOT_APPLICABLE):
        found["evidence"] = {
            "sent": without_secrets(evidence.sent),
            "expected": evidence.expected,
            "received": without_secrets(evidence.received),
            "trace": without_secrets(evidence.trace),
            "logs": {part: without_secrets(text) for part, text in evidence.logs.items()},
        } | ({"false_allow": True} if lets_in(result) else {})
    return found


def _requirements(checks: list[Document]) -> list[Document]:
    """Each requirement that a check bears on, with the worst verdict of its checks."""
    worst = [Verdict.FAIL, Verdict.HARNESS_ERROR, Verdict.UNTESTABLE, Verdict.KNOWN_FAILURE]
    worst += [Verdict.DEPARTURE, Verdict.WARNING, Verdict.PASS, Verdict.NOT_APPLICABLE]
    order = [verdict.value for verdict in worst]
    found: list[Document] = []
    for name, item in catalogue().items():
        verdicts = {check["verdict"] for check in checks if name in check["requirements"]}
        if verdicts:
            verdict = min(verdicts, key=order.index)
            found.append(
                {
                    "id": name,
                    "level": item.level,
                    "grade": item.grade,
                    "class": item.class_,
                    "clauses": item.clauses,
                    "source": item.cited,
                    "text": item.text,
                    "verdict": verdict,
                }
            )
    return found


def load(path: Path) -> Document:
    """Read a saved document. Its statement is computed again from its checks: an edited one does not survive.

    Raises:
        ReportError: it is missing, or not a document of this schema.
    """
    try:
        return parsed(path.read_text(encoding="utf-8"), path)
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"{path}: cannot be read: {error}. Give the report.json of a run.") from error


def parsed(text: str, path: object) -> Document:
    """`load` of a text; `path` names it in an error.

    Raises:
        ReportError: it is not a document of this schema.
        ValueError: it is not JSON.
    """
    found = json.loads(text)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not found.get("checks"):
        raise ReportError(
            f"{path}: is not a result document of schema {SCHEMA}. Give the report.json of a run."
        )
    if wrong := fault(found):
        raise ReportError(f"{path}: {wrong}. Give the report.json of a run, unchanged.")
    grade = found.get("statement", {}).get("grade", "core")
    found["statement"] = statement(
        f"{found['product']['name']} {found['product']['version']}".strip(),
        found["checks"],
        features=found["features"],
        known_failures=found["known_failures"],
        grade="strict" if grade == "strict" else "core",
    )
    # What flowed beside the checks may have failed too: that stands in the findings, not in the checks.
    return found | {"passed": found["statement"]["holds"] and bool(found.get("passed", True))}


def derived(found: Document) -> Document:
    """Compute again, by this suite, all that follows from the names and verdicts of a document's checks.

    Checks that this suite does not know are left out.
    """
    known = {check.name: _planned(check) for check in plan()}
    checks = [one | known[one["name"]] for one in found["checks"] if one["name"] in known]
    follows = _derived(found["checks"]) | {"checks": checks}
    return {name: follows.get(name, value) for name, value in found.items()}


def as_json(found: Document) -> str:
    """Write one line for each member, requirement and check: two reports are compared by lines."""
    members = []
    for name, value in found.items():
        rows = ",\n".join(map(json.dumps, value)) if name in _ROWS else ""
        members.append(f'"{name}": ' + (f"[\n{rows}\n]" if rows else json.dumps(value)))
    return "{\n" + ",\n".join(members) + "\n}\n"


def as_junit(found: Document) -> str:
    """JUnit XML: one test case for each check, classed by lane, family and scenario, and one for the load."""
    suite = ET.Element("testsuite", name=f"{found['product']['name']} {found['product']['version']}".strip())
    counts: Counter[str] = Counter()
    for check in found["checks"]:
        case = ET.SubElement(
            suite, "testcase", classname=_class_name(check), name=check["name"], time=str(check["seconds"])
        )
        if again := check.get("again"):
            properties = ET.SubElement(case, "properties")
            for why in again:
                ET.SubElement(properties, "property", name="played again", value=_printable(why))
        kind = _JUNIT.get(check["verdict"])
        if kind is None and not holds([check["verdict"]], found["statement"]["grade"]):
            kind = "failure"
        if kind is not None:
            counts[kind] += 1
            element = ET.SubElement(case, kind, message=_printable(check["message"]), type=check["verdict"])
            element.text = _printable(_evidence(check))
    if (sound := found.get("load_sound")) is not None:
        load = ET.SubElement(suite, "testcase", classname="iamroles.load", name="traffic beside the checks")
        if not sound:
            counts["failure"] += 1
            ET.SubElement(load, "failure").text = _printable("\n".join(found["findings"]))
    suite.attrib |= {
        "tests": str(len(suite)),
        "failures": str(counts["failure"]),
        "errors": str(counts["error"]),
        "skipped": str(counts["skipped"]),
        "time": str(found["seconds"]),
        "timestamp": found["finished"],
    }
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


_JUNIT = {
    Verdict.HARNESS_ERROR.value: "error",
    Verdict.KNOWN_FAILURE.value: "skipped",
    Verdict.NOT_APPLICABLE.value: "skipped",
}


def _class_name(check: Document) -> str:
    """`iamroles.gate.expired` of the check `gate.expired.refused`, with the lane before it."""
    return ".".join(["iamroles", check["lane"], *check["name"].partition("[")[0].split(".")[:-1]])


def _evidence(check: Document) -> str:
    evidence = check.get("evidence", {})
    parts = [(name, evidence.get(name, "")) for name in ("sent", "expected", "received", "trace")]
    parts += [(f"log of {part}", text) for part, text in evidence.get("logs", {}).items()]
    return "\n\n".join(f"--- {name}\n{text}" for name, text in parts if text)


_NOT_XML = re.compile("[^\\t\\n -~\\x80-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def _printable(text: str) -> str:
    """XML 1.0 has no place for most control characters, not even escaped."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def as_html(found: Document) -> str:
    """One page that needs no other file."""
    return _page("report.html").render(report=found, red=_RED, evidence=_evidence, proofs=_proofs())


def as_markdown(found: Document) -> str:
    """A summary for CI: the statement, the classes, and what did not pass."""
    return _page("summary.md").render(report=found)


def _badge(found: Document) -> tuple[str, str, str]:
    """Return label, text and colour of a badge: the classes that the product conforms to, or how much was
    played.
    """
    stated = found["statement"]
    strict, core = stated["conforms"]["strict"], stated["conforms"]["core"]
    parts = [*(f"{name} strict" for name in strict), *(name for name in core if name not in strict)]
    if not found["passed"]:
        said, colour = "not passed", "#cf222e"
    elif parts:
        said, colour = ", ".join(parts), "#1a7f37"
    else:
        said, colour = (
            f"{stated['coverage']['played']} of {stated['coverage']['of']} checks played",
            "#57606a",
        )
    return "iam-roles", said, colour


def as_endpoint(found: Document) -> str:
    """The badge as JSON for https://shields.io/badges/endpoint-badge."""
    label, said, colour = _badge(found)
    return json.dumps({"schemaVersion": 1, "label": label, "message": said, "color": colour}) + "\n"


def as_badge(found: Document) -> str:
    """The badge as SVG."""
    label, said, colour = _badge(found)
    left, right = (round(len(text) * _PER_LETTER) + 12 for text in (label, said))
    return _page("badge.svg").render(label=label, said=said, colour=colour, left=left, right=right)


_PER_LETTER = 6.6
"""Pixels of a letter of the badge's font, on average; `textLength` then makes it so."""


def _page(name: str) -> Template:
    return template("iamroles_conformance.reports", name)


def _proofs() -> Callable[[Iterable[str]], list[str]]:
    """Name what broken agents do that the checks of some requirements were seen to find."""
    from iamroles_conformance.selftest.registry import mutants  # noqa: PLC0415 - imports the agent

    found: dict[str, list[str]] = {}
    for one in mutants().values():
        for name in one.kills:
            found.setdefault(name, []).append(one.title)
    return lambda names: list(dict.fromkeys(title for name in names for title in found.get(name, ())))


def prepared(directory: Path) -> None:
    """Make the directory of a report, before a long run.

    Raises:
        ReportError: it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"{directory}: no report can be written there: {error.strerror}.") from error


def remove(directory: Path) -> None:
    """Remove the files of an earlier report."""
    for name in _FORMS:
        (directory / name).unlink(missing_ok=True)


@contextmanager
def of_this_run(directory: Path | None) -> Iterator[None]:
    """Remove the files of an earlier report; if nothing can be judged, say so in junit.xml and summary.md."""
    if directory:
        remove(directory)
    try:
        yield
    except (StageError, SelectionError) as error:
        if directory:
            said = _printable(without_secrets(str(error)))
            suite = ET.Element("testsuite", name="iamroles", tests="1", errors="1")
            case = ET.SubElement(
                suite, "testcase", classname="iamroles", name="the stage and the agent can be used"
            )
            ET.SubElement(case, "error", message=said.partition("\n")[0]).text = said
            (directory / "junit.xml").write_text(ET.tostring(suite, "unicode", xml_declaration=True), "utf-8")
            (directory / "summary.md").write_text(f"## Nothing was judged\n```\n{said}\n```\n", "utf-8")
        raise


def write(found: Document, directory: Path) -> list[Path]:
    """Write the document and its forms into a directory: JSON, HTML, JUnit, Markdown, badges."""
    prepared(directory)
    written = []
    for name, text in forms(found).items():
        written.append(directory / name)
        written[-1].write_text(text, encoding="utf-8")
    return written


def forms(found: Document) -> dict[str, str]:
    """Every form that is published, by its file's name."""
    return {name: form(found) for name, form in _FORMS.items()}


_FORMS = {
    "report.json": as_json,
    "report.html": as_html,
    "junit.xml": as_junit,
    "summary.md": as_markdown,
    "badge.svg": as_badge,
    "badge.json": as_endpoint,
}
