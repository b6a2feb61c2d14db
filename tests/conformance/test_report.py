"""The result document and its forms."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoking import said

from iamroles_conformance.reports import report
from iamroles_conformance.subject import Subject
from iamroles_scenarios.base.errors import Evidence
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.planning import selected_by
from iamroles_scenarios.declarations.results import CheckResult, Verdict
from iamroles_scenarios.engine.run import Run
from iamroles_scenarios.stage import AgentSpec


def _document(verdicts, message="why"):
    planned = plan(["gate-spop"], selected_by(["gate.expired"]))
    command = ("x", "-c", "a script that is longer than a file's name can be; " * 8)
    spec = AgentSpec(name="mine <b>", version="7", directory=Path(), command=command, features={"oidc": True})
    run = Run(spec, planned)
    pairs = []
    for check in planned:
        verdict = verdicts.get(check.id.rpartition(".")[2], Verdict.PASS)
        evidence = Evidence(sent="GET <script>", trace=">> NOTIFY", logs={"agent": "\x1b[31mred\x00"})
        result = CheckResult(
            check.id, check.requirements, verdict, message, evidence, 0.5, check.lane, check.title
        )
        pairs.append((check, result))
    return report.document(Subject(agent="agent.toml", lanes=("gate-spop",)), run, pairs)


def test_a_document_says_who_what_and_how_to_reproduce():
    found = _document({})

    assert found["product"] == {"name": "mine <b>", "version": "7"}
    assert found["totals"] == {"pass": 3}
    assert found["passed"] is True
    assert found["reproduce"].endswith(" run --agent=agent.toml --lane=gate-spop --check=gate.expired")
    verdicts = {item["id"]: item["verdict"] for item in found["requirements"]}
    assert verdicts == dict.fromkeys(("TOKEN-TIME-001", "TOKEN-REASON-001", "TOKEN-ERROR-001"), "pass")


@pytest.mark.parametrize(
    ("verdict", "passed"),
    [
        *((Verdict.FAIL, False), (Verdict.UNTESTABLE, False), (Verdict.HARNESS_ERROR, False)),
        *((Verdict.KNOWN_FAILURE, True), (Verdict.NOT_APPLICABLE, True)),
    ],
)
def test_what_lets_a_run_pass(verdict, passed):
    found = _document({"reason": verdict})

    assert found["passed"] is passed
    verdicts = {item["id"]: item["verdict"] for item in found["requirements"]}
    assert verdicts["TOKEN-REASON-001"] == verdict.value


def test_evidence_is_kept_for_what_did_not_pass():
    checks = {check["check"]: check for check in _document({"refused": Verdict.FAIL})["checks"]}

    assert checks["gate.expired.refused"]["evidence"]["trace"] == ">> NOTIFY"
    assert "evidence" not in checks["gate.expired.reason"]


@given(st.text())
def test_junit_is_xml_whatever_an_agent_wrote(message):
    evidence = {"sent": message, "logs": {"agent": message}}
    check = {"lane": "gate", "name": "gate.x.y[haproxy]", "seconds": 0.1, "verdict": "fail"}
    found = {"product": {"name": "n", "version": "1"}, "seconds": 1, "finished": "now"}
    found["checks"] = [check | {"message": message, "evidence": evidence}]
    found |= {"statement": {"grade": "core"}, "load_sound": False, "findings": [message]}
    suite = ET.fromstring(report.as_junit(found))[0]

    assert (suite.attrib["failures"], suite[0].attrib["name"]) == ("2", "gate.x.y[haproxy]")


def test_junit_counts_by_kind():
    names = {"refused": Verdict.FAIL, "reason": Verdict.HARNESS_ERROR, "challenge": Verdict.KNOWN_FAILURE}
    found = _document(names)
    suite = ET.fromstring(report.as_junit(found))[0]

    assert suite.attrib.items() >= {"tests": "3", "failures": "1", "errors": "1", "skipped": "1"}.items()


def test_the_page_has_the_statement_first_what_the_checks_catch_and_escapes_what_it_shows():
    page = report.as_html(_document({"refused": Verdict.FAIL}))
    order = ["<h1>", "That is no statement", "Not passed: MUST", "Requirements: MUST", "Checks: MUST"]

    assert [page.index(one) for one in order] == sorted(page.index(one) for one in order)
    assert "catches an agent that" in page
    assert "broken agent" in page
    assert "<details><summary><code>gate.expired.refused" in page
    assert "That is no statement of conformance." in page
    assert ">conforms<" not in page
    assert "mine &lt;b&gt;" in page
    assert "GET &lt;script&gt;" in page
    assert "<script>" not in page


def test_forms_are_made_from_a_saved_run(tmp_path):
    saved, page = tmp_path / "out" / "report.json", tmp_path / "page.html"
    report.write(_document({"refused": Verdict.FAIL}), tmp_path / "out")
    said("conformance report", saved, "--html", page)

    forms = {path.name for path in (tmp_path / "out").iterdir()}
    assert forms == {"report.json", "report.html", "junit.xml", "summary.md", "badge.svg", "badge.json"}
    assert "gate.expired.refused" in page.read_text(encoding="utf-8")
    assert "fail           gate.expired.refused[spop]: why" in said("conformance report", saved)


@pytest.mark.parametrize(
    "text", ["", "[]", json.dumps({"schema": 1}), json.dumps({"schema": 2, "checks": [1]})]
)
def test_what_is_no_report_is_said_to_be_none(tmp_path, text):
    saved = tmp_path / "report.json"
    saved.write_text(text, encoding="utf-8")

    assert "report.json of a run" in said("conformance report", saved, code=2)


def test_a_statement_that_was_written_into_a_saved_run_does_not_survive(tmp_path):
    found = _document({"refused": Verdict.FAIL})
    truth = found["statement"]
    lie = truth | {"sentence": "mine conforms to everything (strict).", "holds": True}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(found | {"statement": lie, "passed": True}), encoding="utf-8")

    read = report.load(path)

    assert read["statement"] == truth
    assert read["passed"] is False


def test_a_document_names_the_digests_of_all_that_took_part():
    found = _document({})

    assert set(found["digests"]) >= {"suite", "scenarios", "SPEC.md"}
    assert all(len(text) == len("sha256:") + 64 for text in found["digests"].values())
    assert found["environment"]["python"]


def test_junit_gives_each_failure_its_type_and_a_class_name():
    suite = ET.fromstring(report.as_junit(_document({"reason": Verdict.UNTESTABLE})))[0]

    case = next(one for one in suite if one.get("name", "").startswith("gate.expired.reason"))
    assert case.get("classname") == "iamroles.gate-spop.gate.expired"
    assert case[0].get("type") == "untestable"


def test_the_short_forms_say_no_more_than_the_statement():
    good, bad = _document({}), _document({"reason": Verdict.FAIL}, "a | b <c>")

    assert good["statement"]["sentence"] in report.as_markdown(good)
    assert "a \\| b &lt;c&gt;" in report.as_markdown(bad)
    assert "3 of " in ET.fromstring(report.as_badge(good))[0].text
    assert "not passed" in report.as_badge(bad)


def test_a_summary_names_classes_and_says_what_a_run_says_at_its_end():
    found = _document({}) | {"findings": ["it ended"], "not_played": ["a.b"], "not_produced": ["a slow disk"]}
    told = report.as_markdown(found)

    assert "| wire: " in told
    assert "- it ended\n" in told
    assert "- 1 checks that were asked for were not played\n- a slow disk\n" in told
    assert "a slow disk" in report.as_html(found)
