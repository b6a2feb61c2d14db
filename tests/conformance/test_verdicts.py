"""The engine on real processes: broken agents fail where they are broken, and only the agent is blamed."""

import threading
import time
import uuid
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
from invoking import AGENTS
from listening import nowhere

from iamroles_conformance.reports import explain
from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import Evidence, SelectionError, StageError, WireError
from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.checks.plan import named_by, plan
from iamroles_scenarios.declarations.documents import parse
from iamroles_scenarios.declarations.planning import selected_by
from iamroles_scenarios.declarations.results import Check, CheckResult, Verdict
from iamroles_scenarios.declarations.scenario import PlannedCheck, Scenario, scenarios
from iamroles_scenarios.engine import setups
from iamroles_scenarios.engine.bench import Bench
from iamroles_scenarios.engine.jobs import Job, called
from iamroles_scenarios.engine.play import play
from iamroles_scenarios.engine.run import Options, Run
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.verdicts import blamed, judged, recorded, reported
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage import AgentSpec


def _spec(mode, **features):
    return AgentSpec(
        name=f"blunt {mode}",
        version="1",
        directory=AGENTS,
        command=("python", str(AGENTS / "blunt.py"), mode),
        features={"oidc": True, **features},
    )


def _played(stage, spec, scenario, scale=1.0):
    with closing(Worlds(stage, spec, haproxy=False, namespace=f"-{uuid.uuid4()}")) as worlds:
        return play(scenario, Target("gate-spop", stage, spec, worlds, scale, replays=False))


def _play(stage, mode, name, *, scale=1.0, **features):
    results = _played(stage, _spec(mode, **features), scenarios()[name], scale)
    return {result.check: result for result in results}


@pytest.mark.parametrize(("late", "verdict"), [(0, Verdict.PASS), (3, Verdict.PASS), (4, Verdict.UNTESTABLE)])
def test_a_check_that_the_judge_was_late_for_is_played_again_with_longer_times(stage, late, verdict):
    scales: list[float] = []

    def play(target):
        scales.append(target.scale)
        Bench.in_time(time.time() + (len(scales) > late) * 60, "its question")

    name, proven = "live.renew.prolongs", ("LIVE-RENEW-001",)
    check = PlannedCheck(name, "gate", "title", proven, function=Check(name, proven, "gate", "title", play))
    spec = _spec("allow")
    result = called(check, Target("gate", stage, spec, Worlds(stage, spec, haproxy=False)))
    assert (result.verdict, scales) == (verdict, [1, 2, 4, 8][: late + 1])
    assert ("s late for its question" in result.message) == (verdict is Verdict.UNTESTABLE)


def test_an_agent_that_allows_everybody_fails_and_is_told_why(stage):
    found = _play(stage, "allow", "gate.expired")
    result = found["gate.expired.refused"]

    assert {each.verdict for each in found.values()} == {Verdict.FAIL}
    assert "status: expected 401, got 200" in result.message
    assert "allow: expected False, got True" in result.message
    assert "txn.allow=true" in result.evidence.trace
    assert "agent" in result.evidence.logs


def test_a_failure_is_printed_in_the_agreed_order(stage):
    result = _play(stage, "allow", "gate.expired")["gate.expired.refused"]
    check = next(check for check in plan(["gate-spop"]) if check.id == result.check)
    text = explain.failure(check, result, "COMMAND")
    parts = ("sent", "expected", "received", "trace", "log of agent", "run it again\nCOMMAND")
    places = [text.index("TOKEN-TIME-001 (MUST"), *(text.index(f"--- {part}") for part in parts)]

    assert places == sorted(places)
    assert "eyJ" not in text.replace("eyJhbG…", ""), "a token was printed"


def test_an_agent_that_refuses_everybody_fails_where_it_must_allow(stage):
    found = _play(stage, "deny", "gate.no-token")
    allow = _play(stage, "deny", "gate.allow")

    assert {each.verdict for each in found.values()} == {Verdict.PASS}
    assert allow["gate.allow.route"].verdict is Verdict.FAIL


@pytest.mark.parametrize(("mode", "said"), [("silent", "no ACK"), ("garbage", "malformed")])
def test_an_agent_that_does_not_answer_fails_by_its_deadline(stage, mode, said):
    found = _play(stage, mode, "gate.no-token", scale=0.1)

    assert {each.verdict for each in found.values()} == {Verdict.FAIL}
    assert all(said in each.message for each in found.values()), found


def test_a_connection_that_the_agent_closed_is_shown_with_the_agents_log():
    agent = SimpleNamespace(ended=lambda patience: None, logs=lambda: "worker 0: no heartbeat")
    check = next(iter(plan(["gate-spop"])))

    def play():
        setups.uses(SimpleNamespace(agent=agent, haproxy_ended=lambda: None, host_pids=[]))
        raise WireError("the agent closed the connection (RST)")

    (result,) = judged([check], play)
    assert (result.verdict, result.evidence.logs) == (Verdict.FAIL, {"agent": "worker 0: no heartbeat"})


@pytest.mark.parametrize(("within", "decides"), [(0.0, True), (60.0, False)])
def test_time_decides_if_a_connection_was_waited_for_and_not_if_it_was_refused(monkeypatch, within, decides):
    monkeypatch.setattr(setups, "_CONNECT", within)
    with pytest.raises(StageError) as caught:
        setups.answers(nowhere(), {"agent": "its log"})
    with recording.recorded() as found:
        assert blamed(plan(["wire"])[0], caught.value).verdict is Verdict.FAIL
    assert found.timed is decides


def test_a_feature_declared_absent_is_not_applicable(stage):
    found = _play(stage, "allow", "gate.cloud-role", oidc=False)

    assert {each.verdict for each in found.values()} == {Verdict.NOT_APPLICABLE}
    assert all("declares no oidc" in each.message for each in found.values())


_BROKEN = """id = "gate.broken"
title = "A scenario with a mistake in it"
why = "Its author misspelt a word of a recipe."

[world]
policy = "orders"

[tokens.odd]
exxp = "-1s"

[checks.refused]
title = "something is refused"
requirements = ["TOKEN-TIME-001"]

[[steps]]
request = { token = "odd" }
expect.refused = { status = 401 }
"""


def test_a_mistake_of_the_suite_is_never_the_agents(stage):
    (result,) = _played(stage, _spec("deny"), parse(_BROKEN, Scenario, "broken.toml"))

    assert result.verdict is Verdict.HARNESS_ERROR
    assert "exxp" in result.message


def test_an_agent_that_cannot_take_a_lawful_policy_fails(stage):
    spec = replace(_spec("deny"), command=("sh", "-c", "echo no union here >&2; exit 9"))
    results = _played(stage, spec, scenarios()["gate.union"])

    assert {result.verdict for result in results} == {Verdict.FAIL}
    assert "no union here" in results[0].evidence.logs["agent"]


def test_no_world_is_started_once_a_run_is_over(stage):
    worlds = Worlds(stage, _spec("deny"), haproxy=False)
    worlds.close()

    late = worlds.borrow(scenarios()["gate.expired"].world, "late")
    with pytest.raises(StageError, match="run is over"):
        late.__enter__()


def test_a_run_shares_what_its_checks_share():
    planned = plan(["gate-spop"], selected_by(["gate.no-token", "gate.two-credentials"]))
    with Run(_spec("deny"), planned, Options(stage="processes")) as run:
        results = list(run.results())

    assert [result.check for result in results] == [check.id for check in planned]
    assert {r.check: r.verdict for r in results}["gate.no-token.refused"] is Verdict.PASS
    assert {r.check: r.verdict for r in results}["gate.two-credentials.refused"] is Verdict.FAIL


def test_a_check_that_rests_ends_with_its_run(monkeypatch):
    rests, went_on = threading.Event(), []
    monkeypatch.setattr(Job, "play", lambda *_: rests.set() or went_on.append(rest(60)) or [])
    with Run(_spec("deny"), plan(["gate-spop"])[:1], Options(stage="processes")) as run:
        run.start()
        assert rests.wait(60)

    assert went_on == [False]


def test_an_agent_that_dies_at_start_ends_the_run_with_its_log():
    spec = replace(_spec("deny"), command=("sh", "-c", "echo no such licence >&2; exit 9"))
    run = Run(spec, plan(["gate-spop"], selected_by(["gate.no-token"])), Options(stage="processes"))

    with pytest.raises(StageError, match="exit code 9") as caught:
        run.open()
    assert "no such licence" in str(caught.value)


# --- without a stage ---------------------------------------------------------------------------------------


def test_zero_checks_are_an_error():
    with pytest.raises(SelectionError, match="zero checks"):
        Run(_spec("deny"), plan(["gate"], selected_by(["nonsense"])))


def test_a_running_agent_cannot_be_given_policies():
    spec = replace(_spec("deny"), command=(), address="127.0.0.1:1")
    with pytest.raises(SelectionError, match="already runs"):
        Run(spec, plan(["gate"]))


def test_a_known_failure_needs_a_reason_and_a_check():
    planned = plan(["gate"], selected_by(["gate.expired"]))
    with pytest.raises(SelectionError, match="needs a reason"):
        Run(replace(_spec("deny"), known_failures={"gate.expired.reason": " "}), planned)
    with pytest.raises(SelectionError, match="no such check"):
        Run(replace(_spec("deny"), known_failures={"gate.expired.reazon": "ticket 7"}), planned)


@pytest.mark.parametrize(
    ("listed", "came", "becomes"),
    [
        ("gate.x.y", Verdict.FAIL, Verdict.KNOWN_FAILURE),
        ("gate.x.y[spop]", Verdict.FAIL, Verdict.KNOWN_FAILURE),
        *(("gate.x.y[haproxy]", Verdict.FAIL, Verdict.FAIL), ("gate.x.y", Verdict.PASS, Verdict.FAIL)),
        ("gate.x.y", Verdict.HARNESS_ERROR, Verdict.HARNESS_ERROR),
        *(("gate.x.y", Verdict.UNTESTABLE, Verdict.UNTESTABLE), ("gate.x.z", Verdict.PASS, Verdict.PASS)),
    ],
)
def test_known_failures(listed, came, becomes):
    result = CheckResult("gate.x.y", ("A-B-001",), came, "as it was", lane="gate-spop")
    found = reported(result, replace(_spec("deny"), known_failures={listed: "ticket 7"}))

    assert found.verdict is becomes
    assert ("ticket 7" in found.message) == (found.verdict is not came)
    assert ("or list gate.x.y[haproxy]" in found.message) == ((listed, came) == ("gate.x.y", Verdict.PASS))


@pytest.mark.parametrize(("late", "becomes"), [("", Verdict.NOT_APPLICABLE), ("9 s", Verdict.UNTESTABLE)])
def test_what_the_host_was_late_for_is_not_inapplicable_to_a_running_agent(late, becomes):
    result = CheckResult("wire.x.y", ("A-B-001",), Verdict.UNTESTABLE, late=late)

    assert reported(result, replace(_spec("deny"), address="127.0.0.1:1")).verdict is becomes


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        *(("gate.expired", True), ("gate.expired.refused", True), ("gate.expired.refused[spop]", True)),
        *(("gate.expired.refused[haproxy]", False), ("TOKEN-TIME-001", True), ("TOKEN-TIME", True)),
        *(("TOKEN-TI", False), ("gate.exp", False)),
    ],
)
def test_selection(pattern, chosen):
    check = PlannedCheck("gate.expired.refused", "gate-spop", "title", ("TOKEN-TIME-001",))

    assert selected_by([pattern])(check) is chosen


def test_a_failure_without_a_trace_shows_the_end_of_what_was_sent_and_seen():
    bare = CheckResult("a.b", (), Verdict.FAIL, "still open")
    told = replace(bare, evidence=Evidence(trace="its own"))

    with recording.recorded(keeps=True) as found:
        recording.note("sent", "seen")
    traces = [recorded(one, found, 1.0, transcripts=False).evidence.trace for one in (bare, told)]

    assert traces[0].endswith("sent\n\nseen")
    assert traces[1] == "its own"


def test_a_renamed_check_is_found_by_its_old_name(caplog):
    (check,) = plan(select=named_by(["fault.host.processor"]))
    spec = replace(_spec("deny"), known_failures={"live.renew.over[haproxy]": "ticket 7"})
    run = Run(spec, [check])

    assert check.id == "fault.host.cpu"
    assert "fault.host.processor is now called fault.host.cpu." in caplog.messages
    assert run.agent.known_failures == {"live.renew.restarts[haproxy]": "ticket 7"}
