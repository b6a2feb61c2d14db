"""The statement claims nothing that was not played, and blames nothing that the standards permit."""

from dataclasses import replace
from pathlib import Path

import pytest

from iamroles_conformance.reports.report import _check
from iamroles_conformance.reports.statement import holds, statement
from iamroles_scenarios.base.errors import Evidence
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.catalogue import CLASSES, catalogue
from iamroles_scenarios.declarations.results import CheckResult, Verdict
from iamroles_scenarios.engine.verdicts import reported
from iamroles_scenarios.stage import AgentSpec

ALL = plan()
CLASS_NAMES = [name for name in CLASSES if any(name in check.classes for check in ALL)]
OPTIONAL = (
    *("limits", "age", "live", "renew", "workers", "pair", "identity", "proof"),
    *("certificate", "dpop", "actor", "mcp"),
)
FEATURES = dict.fromkeys(("oidc", "sts", "reload", *OPTIONAL), True)


def _told(verdict=lambda check: Verdict.PASS, **options):
    """The statement on a run with these verdicts; None for a check that was not selected."""
    verdicts = [(check.name, verdict(check)) for check in ALL]
    checks = [{"name": name, "verdict": value.value} for name, value in verdicts if value]
    return statement("mine 1", checks, **({"features": FEATURES, "known_failures": {}} | options))


def _one(picked, verdict):
    return lambda check: verdict if check is picked else Verdict.PASS


def _first(name, *, must=True, grade="core"):
    wanted = ({name}, must, grade)
    return next(check for check in ALL if (check.classes, check.must, check.grade) == wanted)


def test_whoever_passes_everything_conforms_to_everything():
    told = _told()

    assert told["conforms"] == {"strict": CLASS_NAMES, "core": CLASS_NAMES}
    assert told["coverage"] == {"played": len(ALL), "of": len(ALL)}
    assert told["sentence"].startswith("mine 1 conforms to wire, ")
    assert told["sentence"].endswith("(strict).")
    assert told["beside"] == []


@pytest.mark.parametrize("name", CLASS_NAMES)
@pytest.mark.parametrize("verdict", [*(one for one in Verdict if one is not Verdict.PASS), None])
def test_one_must_that_was_not_passed_costs_its_class_and_no_other(name, verdict):
    told = _told(_one(_first(name), verdict))

    assert name not in told["conforms"]["core"]
    assert name not in told["conforms"]["strict"]
    assert told["conforms"]["core"] == [one for one in CLASS_NAMES if one != name]


@pytest.mark.parametrize("few", [2, 1])
def test_a_few_checks_are_no_conformance(few):
    told = _told(lambda check: Verdict.PASS if check in ALL[:few] else None)

    counts = f"{few} of {len(ALL)} checks played: {few} passed, 0 failed."
    assert told["sentence"] == f"{counts} That is no statement of conformance."
    assert told["conforms"] == {"strict": [], "core": []}
    assert told["holds"] is True


def test_a_class_that_was_played_alone_is_told_alone():
    told = _told(lambda check: Verdict.PASS if "wire" in check.classes else None)

    assert told["conforms"]["strict"] == ["wire"]
    assert told["sentence"].startswith("mine 1 conforms to wire (strict). No statement on gate: 0 of ")


def test_an_absent_feature_is_no_pass_and_is_named():
    told = _told(
        lambda check: Verdict.NOT_APPLICABLE if "sts" in check.features else Verdict.PASS,
        features=FEATURES | {"sts": False},
    )

    assert "sts" not in told["conforms"]["core"]
    assert "No statement on sts: 0 of " in told["sentence"]
    assert told["beside"] == ["absent features: sts"]


def test_a_known_failure_is_a_failure_and_is_named_with_its_reason():
    check = _first("oidc")
    told = _told(_one(check, Verdict.KNOWN_FAILURE), known_failures={check.id: "our issue 17"})

    musts = told["classes"][2]["core"]["of"]
    assert f"It does not conform to oidc: 1 of {musts} MUST checks" in told["sentence"]
    assert told["beside"] == [f"known failures: {check.name} (our issue 17)"]
    assert told["holds"] is True


@pytest.mark.parametrize("name", sorted({one for c in ALL if not c.must for one in c.classes}))
def test_a_should_that_fails_is_a_warning_beside_a_class_that_holds(name):
    check = next(one for one in ALL if one.classes == {name} and not one.must)
    told = _told(_one(check, Verdict.WARNING))

    assert name in told["conforms"]["strict"]
    assert told["beside"] == [f"warnings (SHOULD): {check.name}"]
    assert holds([Verdict.PASS, Verdict.WARNING], "strict")


def test_who_is_told_twice_is_judged_by_the_worse():
    checks = [{"name": check.name, "verdict": "pass"} for check in ALL]
    named = _first("wire").name
    told = statement("m", [*checks, {"name": named, "verdict": "fail"}], features={}, known_failures={})
    back = statement("m", [{"name": named, "verdict": "fail"}, *checks], features={}, known_failures={})

    assert "wire" not in told["conforms"]["core"]
    assert told["conforms"] == back["conforms"]


@pytest.mark.parametrize(
    ("verdicts", "core", "strict"),
    [
        *(([], False, False), ([Verdict.PASS], True, True)),
        *(([Verdict.PASS, Verdict.DEPARTURE], True, False), ([Verdict.PASS, Verdict.FAIL], False, False)),
        *(([Verdict.UNTESTABLE], False, False), ([Verdict.HARNESS_ERROR], False, False)),
    ],
)
def test_how_a_run_ends(verdicts, core, strict):
    assert (holds(verdicts, "core"), holds(verdicts, "strict")) == (core, strict)


@pytest.mark.parametrize(
    ("level", "grade", "becomes"),
    [
        *(("MUST", "core", Verdict.FAIL), ("MUST", "strict", Verdict.DEPARTURE)),
        *(("SHOULD", "core", Verdict.WARNING), ("SHOULD", "strict", Verdict.WARNING)),
    ],
)
def test_a_failure_weighs_what_it_proves(level, grade, becomes):
    agent = AgentSpec(name="any", version="", directory=Path())
    for name in (one.id for one in catalogue().values() if (one.level, one.grade) == (level, grade)):
        assert reported(CheckResult("a.b", (name,), Verdict.FAIL), agent).verdict is becomes
        assert reported(CheckResult("a.b", (name,), Verdict.PASS), agent).verdict is Verdict.PASS


SOFT = [c for c in ALL if (c.grade == "strict" or not c.must) and c.classes]


@pytest.mark.parametrize("check", SOFT, ids=lambda check: check.name)
def test_a_false_allow_fails_in_every_grade_and_costs_its_class(check):
    """Also if the vendor lists it; but not if the standards permit what a strict clause refuses."""
    agent = AgentSpec(name="any", version="", directory=Path(), known_failures={check.name: "some day"})
    failed = CheckResult(check.id, check.requirements, Verdict.FAIL, "", Evidence(false_allow=True))
    permitted = any(catalogue()[name].may_allow for name in check.requirements)
    verdict = reported(failed, replace(agent, known_failures={})).verdict

    assert (verdict is Verdict.FAIL) is not permitted
    for result in (replace(failed, verdict=verdict), reported(replace(failed, lane=check.lane), agent)):
        checks = [{"name": one.name, "verdict": "pass"} for one in ALL if one is not check]
        told = statement("m", [*checks, _check(check, result)], features=FEATURES, known_failures={})
        assert (check.classes <= set(told["conforms"]["core"])) is permitted


def test_what_an_agent_does_not_declare_and_what_nobody_sees_costs_no_class():
    declared = FEATURES | dict.fromkeys(("age", "limits", "proof", "renew"), False)
    told = _told(
        lambda c: Verdict.PASS if declares_all(c, declared) else Verdict.NOT_APPLICABLE, features=declared
    )

    assert told["conforms"]["core"] == CLASS_NAMES
    assert "inside" not in CLASS_NAMES


@pytest.mark.parametrize(
    ("absent", "lost"),
    [
        (["certificate"], ""),
        (["dpop"], ""),
        (["certificate", "dpop"], "bound"),
        (["actor"], "delegation"),
        (["mcp"], "mcp"),
    ],
)
def test_bound_tokens_and_actors_cost_an_agent_nothing_that_does_not_declare_them(absent, lost):
    declared = FEATURES | dict.fromkeys(absent, False)
    told = _told(lambda c: Verdict.PASS if declares_all(c, declared) else None, features=declared)

    assert told["conforms"]["strict"] == [name for name in CLASS_NAMES if name != lost]


def declares_all(check, features):
    return all(features.get(name, name == "spop") for name in check.features)


def test_no_must_can_fail_without_costing_a_class():
    """A check that bears on no class would be an acquittal of whatever it is about."""
    assert not [check.name for check in ALL if not check.classes]
    for check in (ALL[3], *(one for one in ALL if one.lane == "gate-spop" and one.must)):
        told = _told(_one(check, Verdict.FAIL if check.grade == "core" else Verdict.DEPARTURE))
        assert set(CLASS_NAMES) - set(told["conforms"]["strict"]) == check.classes, check.name
        assert (told["conforms"]["core"] == CLASS_NAMES) is (check.grade == "strict"), check.name


def test_a_check_proves_things_of_one_level_and_grade():
    """Else its failure would accuse of a MUST for a SHOULD, or of core for strict."""
    mixed = {
        check.name: weights
        for check in ALL
        if len(weights := {(catalogue()[n].level, catalogue()[n].grade) for n in check.requirements}) > 1
    }

    assert not mixed
