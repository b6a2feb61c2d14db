"""The self-test: mutants are declared rightly and caught for the right reason."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from invoking import finished, said

from iamroles_conformance.commands import selftest as command
from iamroles_conformance.commands.selftest import line, uncovered
from iamroles_conformance.selftest import record, registry
from iamroles_conformance.selftest.mutants import override
from iamroles_conformance.selftest.mutants.override import around
from iamroles_conformance.selftest.registry import Mutant, mutants, permitted
from iamroles_conformance.selftest.runner import ALIVE, BREAK_MOST, MutantResult, Selftest
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.declarations.results import CheckResult, Verdict


def test_every_id_is_in_the_catalogue():
    unknown = {name for found in mutants().values() for name in found.kills} - set(catalogue())

    assert unknown == set()


def test_each_mutant_is_recorded_and_each_recorded_check_is_there():
    recorded = record.load(Path(__file__).with_name("mutants.json"))

    assert set(recorded) == set(mutants())
    assert {name.rstrip("?") for reds in recorded.values() for name in reds} <= {check.id for check in plan()}


@pytest.mark.parametrize("family", ["wire", "gate", "identity", "policy"])
def test_every_must_that_a_check_proves_has_a_mutant(family):
    assert uncovered((family,), list(mutants((family,)).values())) == []


_LISTING = """
import importlib, pkgutil, sys, types

def state():
    found = {}
    for name, module in sorted(sys.modules.items()):
        if name.startswith("iamroles_agent"):
            owners = [(name, vars(module))]
            owners += [(f"{name}.{k}", vars(v)) for k, v in vars(module).items() if isinstance(v, type)]
            for where, names in owners:
                found |= {(where, k): id(v) for k, v in names.items() if k[:2] != "__" or k == "__init__"}
                found |= {(where, k, i): id(w) for k, v in names.items() if isinstance(v, dict)
                          for i, w in v.items()}
    return found

import iamroles_agent
for module in pkgutil.walk_packages(iamroles_agent.__path__, "iamroles_agent."):
    importlib.import_module(module.name)
before = state()
from iamroles_conformance.selftest.registry import mutants
print(len(mutants()), len(before), [key for key, value in state().items() if before.get(key) != value])
"""


def test_listing_changes_nothing_in_the_agent():
    done = finished(sys.executable, "-c", _LISTING, check=True)
    listed, watched, changed = done.stdout.strip().split(" ", 2)

    assert (int(listed) > 300, int(watched) > 1000, changed) == (True, True, "[]")


def test_a_mutant_that_is_caught_and_exit_status():
    assert "1 mutants, 1 caught, 0 not" in said("conformance selftest --mutant wire.ack-no-fin")
    assert "--list" in said("conformance selftest --mutant wire.nothing", code=2)


@pytest.fixture
def harmless():
    """A mutant that does nothing, named as if it broke the FIN flag."""
    return Mutant("wire.harmless", "does nothing", ("SPOP-FRAG-001",), registry.Override(lambda: None))


class Fake(Selftest):
    """Gives prepared verdicts in place of playing."""

    def __init__(self, verdicts):
        super().__init__(None, None)
        self._verdicts = verdicts

    def _mutated(self, chosen):
        return None

    def _whole(self, spec, checks, *_):
        return [
            CheckResult(check.id, check.requirements, self._verdicts.get(check.id, Verdict.PASS))
            for check in checks
        ]

    _run = _whole


@pytest.mark.parametrize(
    ("red", "verdict", "told"),
    [
        ([], Verdict.FAIL, "not caught by SPOP-FRAG-001"),
        (["wire.ack.exactly-one"], Verdict.FAIL, "; only by wire.ack.exactly-one, which name other ids"),
        (["wire.fragment.refused"], Verdict.HARNESS_ERROR, "harness-error"),
        (["wire.fragment.refused", *ALIVE], Verdict.FAIL, "it breaks too much, also gate.allow.route"),
    ],
    ids=["by-none", "by-others-only", "by-harness-errors", "by-everything"],
)
def test_a_mutant_that_is_not_caught(harmless, red, verdict, told):
    outcome = Fake(dict.fromkeys(red, verdict)).judge(harmless)

    assert not outcome.caught
    assert line(outcome).startswith("SURVIVED ")
    assert told in line(outcome)


def test_a_check_that_fails_on_the_sound_agent_kills_nothing(harmless):
    run = Fake({"wire.fragment.refused": Verdict.FAIL})
    assert [result.check for result in run.baseline([harmless])] == ["wire.fragment.refused"]

    assert not run.judge(harmless).caught


def test_caught_by_each_id(harmless):
    both = replace(harmless, kills=("SPOP-FRAG-001", "SPOP-ACK-001"))
    one = Fake({"wire.fragment.refused": Verdict.FAIL}).judge(both)
    two = Fake({"wire.fragment.refused": Verdict.FAIL, "wire.ack.exactly-one": Verdict.FAIL}).judge(both)

    assert one.survived == ["SPOP-ACK-001"]
    assert two.caught


def test_who_breaks_most_is_a_mutant():
    assert set(mutants()) >= BREAK_MOST


def test_a_record_keeps_what_is_stable(tmp_path, harmless):
    path = tmp_path / "record.json"
    for red in (
        {"a": "step 1: got 503 at 17:20", "b": "x"},
        {"a": "step 1: got 503 at 9:1", "b": "y", "c": "z"},
    ):
        record.add(path, MutantResult(harmless, {}, red=red))

    assert record.load(path) == {harmless.id: {"a": "step 1: got 503 at #:#", "b": None, "c?": "z"}}


def test_what_differs_from_the_record(harmless):
    recorded = {"a": "step 1", "b": None, "c?": "z", "d": "w"}
    fine = MutantResult(harmless, {}, red={"a": "step 1", "b": "y", "d": "w"})
    other = MutantResult(harmless, {}, red={"a": "step 2", "b": "y", "c": "z", "e": "v"})

    assert record.differences(recorded, fine) == []
    assert record.differences(recorded, other) == [
        "d no longer turns red",
        "e turns red too: v",
        "a turns red with 'step 2' instead of 'step 1'",
    ]


def test_declaring():
    strange = registry.mutant("nothing.x", "A", "")
    again = registry.mutant(next(iter(mutants())), "SPOP-ACK-001", "again")

    with pytest.raises(ValueError, match="begin with one of"):
        strange(registry.Override(print))
    with pytest.raises(ValueError, match="twice"):
        again(registry.Override(print))


@pytest.mark.parametrize(
    ("outcome", "bare", "told"),
    [
        ({"killed": {"X": []}}, [], "1 mutants, 0 caught, 1 not"),
        ({"killed": {}, "red": {"a": "x"}}, [], "DIFFERS    wire.harmless: a turns red too: x"),
        (None, ["SPOP-ACK-001"], "NO MUTANT  SPOP-ACK-001"),
    ],
    ids=["a-survivor", "other-than-recorded", "a-must-without-a-mutant"],
)
def test_what_fails_the_command(capsys, harmless, outcome, bare, told):
    outcomes = [MutantResult(harmless, **outcome)] if outcome else []
    run = SimpleNamespace(baseline=lambda _: [], run=lambda *_, **__: outcomes)
    empty = Path("/nowhere/record.json")

    assert command._judge(run, [harmless], 1, bare=bare, record_in=None, against=empty) == 1
    assert told in capsys.readouterr().out


def test_a_mutant_that_does_not_render_is_not_caught(harmless):
    class Unrendered(Fake):
        def _run(self, spec, checks, *_):
            message = "Rendering failed: python -m iamroles_conformance.selftest.mutants wire.harmless"
            return [CheckResult(one.id, one.requirements, Verdict.FAIL, message) for one in checks]

    proxy = replace(harmless, apply=registry.Override(print, proxy=True))

    assert Unrendered({}).judge(proxy).trouble.startswith("Rendering failed")


# --- the tolerant twin -------------------------------------------------------------------------------------


def test_every_strict_clause_is_a_switch_of_the_twin():
    switches = {name for one in permitted().values() for name in one.kills}
    proven = {name for check in plan() for name in check.requirements}
    strict = {item.id for item in catalogue().values() if item.grade == "strict"} & proven
    strict -= {name for name in strict if name.startswith(("FIRE-", "FAULT-"))}  # see `Mutant.permitted`
    # The twin is an agent: what HAProxy is given cannot be one of its switches.
    strict -= {name for one in mutants().values() if one.apply.proxy for name in one.kills}

    assert strict <= switches
    assert all(one.permitted for one in permitted().values())


def test_the_twin_is_accused_by_musts_of_core_alone():
    behaviour = next(one for one in permitted().values() if one.id == "identity.stray-bits")
    core = Fake({"identity.header.crit": Verdict.FAIL}).tolerant([behaviour])
    strict = Fake({"identity.encoding.canonical": Verdict.FAIL}).tolerant([behaviour])
    should = Fake({"wire.health.closes": Verdict.FAIL}).tolerant([behaviour])

    assert [one.check for one in core] == ["identity.header.crit"]
    assert strict == should == []


def test_what_cannot_be_judged_is_an_accusation_too():
    behaviour = next(iter(permitted().values()))

    assert Fake({"identity.header.crit": Verdict.UNTESTABLE}).tolerant([behaviour])


def test_behaviours_are_listed():
    told = said("conformance selftest --tolerant --list --mutant tolerant")

    assert len(told.splitlines()) >= 6
    assert "tolerant.same-twice" in told


def test_an_override_that_would_die_of_its_arguments_is_no_mutant():
    class Sound:
        def judge(self, payload, now):
            return bool(payload) and now > 0

    around(Sound, "judge")(lambda sound, self, payload, now: not sound(self, payload, now))
    with pytest.raises(TypeError, match="too many positional arguments"):
        around(Sound, "judge")(lambda sound, self, payload: not sound(self, payload, 0.0))


@pytest.mark.parametrize(
    ("declare", "error"),
    [
        (lambda: override.around(Mutant, "gone")(print), AttributeError),
        (lambda: override.setting(Mutant, "gone", None), AttributeError),
        (lambda: override.transition("no state", "no kind")(print), KeyError),
    ],
)
def test_an_override_whose_target_is_gone_is_an_error_when_it_is_declared(declare, error):
    with pytest.raises(error, match=r"gone|no kind"):
        declare()
