"""The soak: what it counts, what it prints, when it fails."""

import json
import os
import xml.etree.ElementTree as ET
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from invoking import said

from iamroles_conformance.reports import soak_page
from iamroles_scenarios.base import lateness
from iamroles_scenarios.base.errors import AgentFault, TooSlow
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec, Step
from iamroles_scenarios.declarations.timeline import BEGIN
from iamroles_scenarios.declarations.walk import walk
from iamroles_scenarios.engine.ledger import Flow, FlowQuestion, Kind, Ledger, Outcomes
from iamroles_scenarios.engine.soak import Sample, SoakEvent, SoakResult, _judge, _Soak, used
from iamroles_scenarios.engine.worlds import Loan
from iamroles_scenarios.traffic import Case, Right
from iamroles_scenarios.traffic.polling import NANO

DOWN = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
REFUSED = b"HTTP/1.1 403 Forbidden\r\n\r\n"


@pytest.fixture
def asked():
    """An account, and a question that must be refused with 403."""
    ledger = Ledger()
    flow = Flow("closed", RequestSpec(), Expectation(status=403))
    return Outcomes(ledger, 0), FlowQuestion(Case("x"), b"GET / HTTP/1.1", Right(), flow=flow, ledger=ledger)


@pytest.fixture
def soaked(asked):
    """A soak of ten minutes in which all was well."""
    outcomes, question = asked
    for number in range(1200):
        question.judge(403, REFUSED, number * NANO // 2, number * NANO // 2 + 1000)
    outcomes.judge(1 << 62)
    events = [SoakEvent(float(10 * number), "the policy <changes>", number % 2 == 1) for number in range(25)]
    samples = {"agent 1": [Sample(float(at), 100 << 20, 50) for at in range(600)]}
    return SoakResult(7, 600.0, outcomes, events, samples)


def test_a_quiet_soak_has_no_problem(soaked):
    _judge(soaked)

    assert soaked.problems == []


def test_a_fault_excuses_what_is_missing_and_nothing_else(asked):
    outcomes, question = asked
    outcomes.excuses.append((4 * NANO, 6 * NANO))
    question.judge(503, DOWN, 5 * NANO, 5 * NANO + 1)
    question.judge(503, DOWN, 7 * NANO, 7 * NANO + 1)
    allowed = b'HTTP/1.1 200 OK\r\n\r\n{"backend": "orders", "headers": []}'
    question.judge(200, allowed, 5 * NANO, 5 * NANO + 1)
    outcomes.judge(1 << 62)

    assert outcomes.excused == {Kind.FAULT: 1}
    assert outcomes.bad == {Kind.FAULT: 1, Kind.FALSE_ALLOW: 1}


def test_what_is_younger_is_judged_later(asked):
    outcomes, question = asked
    question.judge(403, REFUSED, 1 * NANO, 1 * NANO + 1)
    question.judge(403, REFUSED, 9 * NANO, 9 * NANO + 1)
    outcomes.judge(5 * NANO)
    assert (outcomes.answers, list(outcomes.seconds)) == (1, [1])

    outcomes.judge(1 << 62)
    assert (outcomes.answers, list(outcomes.seconds)) == (2, [1, 9])


def test_what_a_back_end_cannot_verify_is_no_answer(asked):
    outcomes, question = asked
    question.ledger.verify = lambda entry: "its key is not published" if entry.sent < 4 * NANO else ""
    outcomes.excuses.append((2 * NANO, 3 * NANO))
    for second in (1, 2, 4):
        question.judge(403, REFUSED, second * NANO, second * NANO + 1)
    outcomes.judge(1 << 62)

    assert (outcomes.bad, outcomes.excused) == ({Kind.UNVERIFIED: 1}, {Kind.UNVERIFIED: 1})
    assert [why for *_, why in outcomes.examples] == ["its key is not published"]


def _grows(soaked):
    for sample in soaked.samples["agent 1"][450:]:
        sample.memory = 400 << 20


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda soaked: setattr(soaked.outcomes, "answers", 999), "999 answers, fewer than 1000: nothing"),
        (lambda soaked: soaked.events.__delitem__(slice(19, None)), "19 events, fewer than 20: nothing was"),
        (lambda soaked: soaked.outcomes.bad.update({Kind.FALSE_ALLOW: 1}), "1 answers: false allow"),
        (_grows, "memory of agent 1 grew from 104857600 to 419430400"),
        (lambda soaked: soaked.unseen.add("haproxy"), "memory and descriptors of haproxy cannot be read"),
    ],
)  # fmt: skip
def test_why_a_soak_fails(soaked, change, problem):
    change(soaked)
    _judge(soaked)

    assert [told for told in soaked.problems if told.startswith(problem)]


@pytest.mark.parametrize("late", [True, False])
def test_what_the_host_was_late_for_proves_nothing_but_a_false_allow_does(asked, monkeypatch, late):
    outcomes, question = asked
    monkeypatch.setattr(lateness, "delay", lambda *_: lateness.Delay(0.7 * late, 0.0))
    world = SimpleNamespace(proxy=SimpleNamespace(host="127.0.0.1", port=9), host_pids=[])
    loan = SimpleNamespace(world=world, worlds=[world], sets=None, certificates=None)
    soak = _Soak(SimpleNamespace(agent=SimpleNamespace(features={}), scale=1.0), loan, seed=1, rate=1)
    found = SoakResult(7, 600.0, outcomes)
    question.judge(503, DOWN, 1, 2)
    allowed = b'HTTP/1.1 200 OK\r\n\r\n{"backend": "orders", "headers": []}'
    question.judge(200, allowed, 1, 2)
    soak._judge(found, 1 << 62)

    assert outcomes.bad == {Kind.FALSE_ALLOW: 1} | ({} if late else {Kind.FAULT: 1})
    assert outcomes.held == ({Kind.FAULT: 1} if late else {})
    assert any("untestable" in one for one in soak_page.document(found, "", "", "")["problems"]) is late


@pytest.mark.parametrize(
    ("code", "fault", "said"),
    [
        (None, AgentFault("the agent is gone"), "untestable, "),
        (None, TooSlow("the agent is gone"), "untestable, "),
        (-11, None, ""),
    ],
)
def test_an_agent_that_is_gone_from_a_late_host_passes_nothing(asked, monkeypatch, code, fault, said):
    def gone():
        raise fault

    monkeypatch.setattr(lateness, "delay", lambda *_: lateness.Delay(0.7, 0.0))
    world = SimpleNamespace(proxy=SimpleNamespace(host="127.0.0.1", port=9), host_pids=[])
    world.agent = SimpleNamespace(start=gone, ended=lambda _: code, logs=str)
    world.haproxy_ended = lambda: None
    loan = SimpleNamespace(world=world, worlds=[world], sets=None, certificates=None)
    soak = _Soak(SimpleNamespace(agent=SimpleNamespace(features={}), scale=1.0), loan, seed=1, rate=1)
    begin = SimpleNamespace(begin=0)
    soak._traffic = SimpleNamespace(wait=lambda _: None, steps={BEGIN: begin}, ledger=asked[1].ledger)
    soak._timeline, soak._step = nullcontext(), lambda *_: None

    result = soak_page.document(soak.run(0.0, print), "", "", "")

    assert result["passed"] is False
    why = "the agent ended by signal 11" if code else "the agent is gone"
    wanted = (why, "0 answers, fewer than 1000", "0 events, fewer than 20")
    problems = zip(result["problems"], wanted, strict=True)
    assert all(one.startswith(said + why) for one, why in problems)


def test_one_agent_that_haproxy_does_not_take_back_is_waited_for_and_not_in_vain():
    world = MagicMock(proxy=SimpleNamespace(host="127.0.0.1", port=9))
    world.haproxy.wait_agent.return_value = False
    world.agent.ended.side_effect, world.haproxy_ended.return_value = (None, 1), None
    target = SimpleNamespace(agent=SimpleNamespace(features={}), scale=1.0, seconds=lambda seconds: seconds)
    soak = _Soak(target, Loan(world, {}), seed=1, rate=1)
    soak._timeline = SimpleNamespace(step=lambda _name, _step, act: act())

    with pytest.raises(TooSlow, match="for up within 10 s"):
        soak._step(Step(agent="start"), "the agent comes back")
    with pytest.raises(AgentFault, match="ended with exit code 1"):
        soak._step(Step(agent="start"), "what ended by itself is not started")


def test_a_seed_gives_the_same_walk_and_every_move_comes():
    def moves(seed):
        proxy = SimpleNamespace(host="127.0.0.1", port=9)
        loan = SimpleNamespace(world=SimpleNamespace(proxy=proxy), sets=None)
        loan.certificates = SimpleNamespace(tls=None)
        features = dict.fromkeys(("sts", "reload", "live", "workers", "pair"), True)
        target = SimpleNamespace(agent=SimpleNamespace(features=features), scale=1.0)
        soak = _Soak(target, loan, seed=seed, rate=1)
        return [soak.choose()[1].name for _ in range(400)]

    assert moves(3) == moves(3) != moves(4)
    assert set(moves(3)) == {move.name for cycle in walk().cycles for move in cycle.moves}


def test_recovery_is_the_time_to_the_last_answer_that_was_not_right(soaked):
    soaked.outcomes.late += [11.5, 12.0, 25.0]
    _judge(soaked)

    assert [one.recovered for one in soaked.events[:4]] == [0.0, 2.0, 5.0, 0.0]


def test_the_page_is_whole_and_needs_nobody(soaked):
    _judge(soaked)
    page = soak_page.html(soak_page.document(soaked, "agent <1>", "processes", "iamroles conformance soak"))

    assert "agent &lt;1&gt;" in page
    assert "the policy &lt;changes&gt;" in page
    assert not Counter(word for word in ("<script", "http://", "https://", " src=") if word in page)
    for chart in page.split("<svg")[1:]:
        ET.fromstring(f"<svg{chart.split('</svg>')[0]}</svg>")


def test_what_this_process_uses_is_counted_with_its_children():
    memory, descriptors = used(os.getpid())

    assert memory > 1 << 20
    assert descriptors > 2


def test_what_another_user_hides_is_not_counted_as_nothing(monkeypatch):
    def hidden(self):
        raise PermissionError(self)

    monkeypatch.setattr(Path, "iterdir", hidden)
    with pytest.raises(PermissionError):
        used(os.getpid())


@pytest.mark.parametrize(
    ("launch", "oidc", "why"),
    [
        ('address = "127.0.0.1:1"', "true", "needs an agent that the stage starts"),
        ('command = ["iamroles"]', "false", "asks with an issuer's tokens"),
    ],
)
def test_whoever_takes_no_tokens_is_not_accused_of_it(tmp_path, launch, oidc, why):
    agent = tmp_path / "agent.toml"
    agent.write_text(f"spec = 1\n[launch]\n{launch}\n[features]\noidc = {oidc}\n", encoding="utf-8")
    for words, what in (
        ("soak --stage processes", "a soak"),
        ("run --under-load 5 --stage processes", "--under-load"),
        ("oracle", "the oracle"),
    ):
        assert f"{what} {why}" in said(f"conformance {words} --agent", agent, code=2)


def test_bad_arguments_end_with_2():
    for words in ("--for 10", "--for 0s", "--rate 0", "--seed x"):
        assert said(f"conformance soak {words}", code=2)


def test_a_short_soak_counts_as_failed_and_writes_its_result(tmp_path):
    data, page = tmp_path / "soak.json", tmp_path / "soak.html"
    words = "conformance soak --stage processes --for 3s --seed 5"
    said(words, "--json", data, "--page", page, code=1)
    result = json.loads(data.read_text(encoding="utf-8"))

    assert result["bad"] == {}
    assert result["identity_keys"] in (1, 2), (
        "two agents, which share their keys: a second one if a period ends"
    )
    assert any("fewer than 20: nothing was shown" in problem for problem in result["problems"])
    assert "--seed=5" in result["reproduce"]
    assert result["reproduce"] in page.read_text(encoding="utf-8")
