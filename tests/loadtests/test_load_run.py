"""Whole runs, a few seconds each: a good gate passes; wrong verdicts, missed objectives and lag do not."""

import json

import jsonschema
import pytest
from invoking import agent_toml, ran, said
from truth import truth

from iamroles_loadtests.commands.timeline import _Meter
from iamroles_loadtests.measuring.conductor import Conductor
from iamroles_loadtests.measuring.histogram import Histogram
from iamroles_loadtests.results.result import SCHEMA
from iamroles_scenarios.engine.judged_traffic import JudgedTraffic, StepTimes
from iamroles_scenarios.engine.ledger import Entry
from iamroles_scenarios.traffic.polling import NANO

ANY = "load run --duration 1.5 --warmup 0.3 --rate 200"
RUN = f"{ANY} --stage processes"
BRIEF = "load run --stage processes --duration 1 --warmup 0.2 --pairs 0"
TIMELINE = "load timeline --stage processes"
LENIENT = """
[generator]
share = 1.0
stall = "60s"
[levels.200]
answered = 0.5
[levels.200.sent]
p90 = "10s"
"""
MISLED = """
import dataclasses
from iamroles_agent.serving import gate
from iamroles_agent.main import main

real = gate.Gate._decide
CHANGES = [
    {"principal": "mallory"},
    {"backend": "export"},
    {"allow": False, "reason": gate.Reason.NO_GRANT},
]

async def mislead(self, *asked):
    decision, last = await real(self, *asked)
    name, _, number = decision.principal.partition("-")
    if decision.allow and name == "caller" and int(number) < 15:
        decision = dataclasses.replace(decision, **CHANGES[int(number) % 3])
    return decision, last

gate.Gate._decide = mislead
main(["agent", "run"])
"""


def printed(words, *more, code=0):
    return json.loads(ran(f"{words} --json", *more, code=code).stdout)


def measured(words, *more, code=0):
    result = printed(words, *more, code=code)
    jsonschema.validate(result, json.loads(SCHEMA.read_text()))
    return result


@pytest.fixture
def lenient(tmp_path):
    path = tmp_path / "slo.toml"
    path.write_text(LENIENT)
    return path


def test_a_good_gate(tmp_path, lenient):
    result = measured(f"{RUN} --pairs 2", "--slo", lenient, "--report", tmp_path / "out")

    assert result["met"]
    assert (result["wrong"], result["faults"], result["stray"]) == (0, 0, 0)
    [phase] = result["phases"]
    assert (phase["name"], phase["rate"]) == ("200", 200.0)
    assert phase["stamped"]
    assert {name for name, case in phase["cases"].items() if case["samples"]} > {"expired", "allowed-read"}
    assert phase["sent"]["p50"] <= phase["due"]["p50"]
    assert phase["sent"]["p50"] < phase["noticed"]["p50"]
    assert Histogram.decoded(phase["sent"]["histogram"]).count == phase["samples"] == phase["sent"]["count"]
    assert all(0 < phase["cpu"][part] < 100_000 for part in ("haproxy", "agent", "generator"))
    assert "eyJ" not in (tmp_path / "out" / "result.json").read_text()
    assert "SLO met" in (tmp_path / "out" / "summary.txt").read_text()

    lanes = result["pairs"]["lanes"]
    assert all(lane["sent"]["count"] > 100 for lane in lanes.values())
    # Asking takes longer than not asking, and a signature longer than a memory: in one run, on any machine.
    assert result["pairs"]["differences"]["new"]["p50"]["value"] > 0
    new, remembered, unasked = (lanes[name]["cpu"]["agent"] for name in ("new", "remembered", "unasked"))
    assert new > remembered > unasked
    assert lanes["unasked"]["told"]["max"] <= lanes["remembered"]["told"]["p50"]

    assert "SLO met" in said("load report", tmp_path / "out")


def test_by_default_it_finds_the_knee_and_measures_at_shares_of_it(lenient):
    result = measured(f"{BRIEF} --shape hostile --shape fresh", "--slo", lenient, code=(0, 4))

    assert result["wrong"] == result["faults"] == 0, result["examples"]
    knee = result["knee"]
    assert 0 < knee["rate"] <= knee["capacity"] * 1.05
    assert knee["steps"]
    rates = {phase["name"]: phase["rate"] for phase in result["phases"]}
    assert rates["low"] == pytest.approx(knee["rate"] * 0.1, rel=0.01)
    assert rates["high"] == pytest.approx(knee["rate"] * 0.9, rel=0.01)
    hostile = next(phase for phase in result["phases"] if phase["name"] == "hostile")
    assert hostile["cases"]["forged"]["samples"] > 0


def test_injected_wrong_verdicts_fail_the_run(tmp_path, lenient):
    """Some callers get another's name, some the wrong backend, some a refusal: each kind is seen."""
    program = tmp_path / "misled.py"
    program.write_text(MISLED)
    agent = agent_toml(tmp_path, ["python", program])

    result = measured(f"{RUN} --pairs 0", "--slo", lenient, "--agent", agent, code=1)

    assert result["wrong"] > 0
    assert result["faults"] == 0
    told = " ".join(result["examples"])
    assert "principal=mallory" in told
    assert "backend=export" in told
    assert "status 403 where 200" in told
    missed = [objective["name"] for objective in result["objectives"] if not objective["met"]]
    assert missed == ["wrong verdicts"]


def test_tls_and_a_handshake_for_each_request(lenient, monkeypatch):
    play, handshakes = Conductor.play, {}

    def counted(conductor, phase, *role):
        before = shaken(conductor)
        played = play(conductor, phase, *role)
        handshakes[phase.name] = shaken(conductor) - before
        return played

    def shaken(conductor):
        lines = conductor._target.world.haproxy.runtime("show info").splitlines()
        return int(next(line for line in lines if line.startswith("CumSslConns:")).split()[1])

    monkeypatch.setattr(Conductor, "play", counted)
    result = measured(f"{BRIEF} --tls --shape fresh --shape streams", "--slo", lenient, code=(0, 4))

    assert result["wrong"] == result["faults"] == 0, result["examples"]
    phases = {phase["name"]: phase for phase in result["phases"]}
    assert handshakes["fresh"] >= phases["fresh"]["samples"] > 0
    assert handshakes["high"] <= 2 * 64  # one a connection, another if a busy host was late
    assert phases["streams"]["held"] == 200


def test_a_timeline_at_a_rate_of_its_own():
    result = printed(f"{TIMELINE} fire.emergency --rate 300")

    assert [phase["from"] for phase in result["phases"]] == ["begin", "replaced"]
    assert all(phase["answers"] and phase["p50"] <= phase["max"] for phase in result["phases"])
    assert (result["rate"], result["connections"]) == (300, 12)
    answered = sum(phase["answers"] for phase in result["phases"])
    assert result["reached"] == (answered >= 270 * sum(phase["seconds"] for phase in result["phases"]))
    assert {one["check"] for one in result["results"]} == {"fire.emergency.stolen", "fire.emergency.callers"}


def test_a_question_without_an_answer_is_no_answer():
    traffic, meter = JudgedTraffic(("127.0.0.1", 9), rate=1, connections=1), _Meter()
    traffic.steps = {name: StepTimes(name, at, at) for name, at in (("begin", 0), ("end", NANO))}
    for status in (200, 0):
        traffic.ledger.add(Entry(None, 5, 9, status, b""))
    meter.asked(traffic)

    assert [(phase["answers"], phase["rate"]) for phase in meter.phases()] == [(1, 1.0)]


@pytest.mark.parametrize("scenario", ["fire.certificate", "fire.identity"])
def test_what_the_proxy_and_the_agent_hold_rotates_at_a_rate_of_its_own(scenario):
    assert all(phase["answers"] for phase in printed(f"{TIMELINE} {scenario} --rate 80")["phases"])


def test_a_timeline_that_goes_wrong(tmp_path):
    command = ["python", "-m", "iamroles_conformance.selftest.mutants", "fire.first-keys", "agent", "run"]
    agent = agent_toml(tmp_path, command, oidc=True)
    told = said(f"{TIMELINE} fire.emergency --agent", agent, code=1)

    assert "pass  fire.emergency.stolen: " not in told
    assert "fail  fire.emergency.callers: replaced to end: " in told
    lacking = said(f"{TIMELINE} fire.policy --agent", agent, code=3).splitlines()
    assert all(line.startswith("not-applicable  ") and "declares no reload" in line for line in lacking)


def test_what_is_no_timeline_is_named_with_those_that_are():
    told = said("load timeline gate.audience", code=2)

    assert "is not a timeline: take one of fire.certificate, " in told


def test_the_agent_alone(lenient):
    [phase] = measured(f"{RUN} --straight --in-flight 8", "--slo", lenient)["phases"]

    assert not phase["stamped"]  # pipelined: the stamps are this process's own
    assert phase["cases"]["remembered"]["samples"] > 200


def test_any_server(tmp_path, lenient):
    with truth("quick") as server:
        url = f"{ANY} --seed 0 --url http://user:secret-of-mine@{server.address}/?token=secret-of-mine"
        result = measured(url, "--slo", lenient, "--header", "Authorization: Bearer secret-of-mine")
        for option in (f"--url 'http://{server.address}/?...'", "--header 'Authorization: ...'", "--seed 0"):
            assert option in result["reproduce"]
        assert result["target"]["kind"] == "url"
        assert result["pairs"] is None
        assert "secret-of-mine" not in str(result)
        assert "status 200 where 404" in said(f"{url} --json --status 404", "--slo", lenient, code=1)


@pytest.mark.usefixtures("engine")
def test_haproxy_3_2_loses_no_answer_when_64_come_at_once(lenient):
    stage = "--stage containers --haproxy 3.2 --shape closed"

    result = measured(f"{ANY} {stage} --duration 0.5 --pairs 0", "--slo", lenient)

    assert (result["wrong"], result["faults"], result["stray"]) == (0, 0, 0)


def test_a_missed_objective_fails_the_run(tmp_path):
    slo = tmp_path / "slo.toml"
    slo.write_text(
        LENIENT + '[[ratios]]\nof = "200.sent.p50"\nover = "200.sent.max"\nat_most = 0.000001\n'
        '[levels.300.sent]\np50 = "1us"\n'
    )

    told = said(f"{RUN} --rate 300 --pairs 0", "--slo", slo, code=1)

    assert "NOT met  300: from sent p50" in told
    assert "NOT met  200.sent.p50 over" in told
    assert "SLO NOT met" in told


def test_a_late_generator_makes_the_run_invalid(tmp_path):
    """No generator is on time to the microsecond."""
    slo = tmp_path / "slo.toml"
    slo.write_text('[generator]\nfloor = "0us"\nshare = 0.000000001\nstall = "60s"\n')
    with truth("quick") as server:
        told = said(f"{ANY} --url http://{server.address}/", "--slo", slo, code=4)

    assert "the generator's own lag" in told.replace("\n", " ")


def test_nobody_there_is_faults():
    assert "refused" in said(f"{ANY} --url http://127.0.0.1:9/", code=1)


def test_an_agent_that_does_not_start_is_a_fault_of_the_stage(tmp_path):
    agent = agent_toml(tmp_path, ["python", "-c", "raise SystemExit(4)"])

    assert "exit code 4" in said(RUN, "--agent", agent, code=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[levels.low.sent]\np50 = "fast"\n', "slo.toml:2: levels.low.sent.p50"),
        ("[levels.low.due]\np50 = 5\n", "slo.toml:2: levels.low.due.p50"),
        ("[check]\nat_most = 1.0\n", "slo.toml:2: check.at_most"),
        ("[latency\n", "not TOML"),
    ],
)
def test_bad_objectives_start_nothing(tmp_path, text, words):
    slo = tmp_path / "slo.toml"
    slo.write_text(text)

    assert words in said("load run --slo", slo, code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--slo", "absent.toml"), ("--url", "ftp://a/"), ("--url", "http://a:b/")),
        ("--url", "http://127.0.0.1/", "--agent-address", "127.0.0.1:1"),
        ("--url", "http://127.0.0.1/", "--shape", "hostile"),
        ("--url", "http://127.0.0.1/", "--header", "none"),
        ("--url", "http://127.0.0.1/", "--header", "A: b\r\nC: d"),
        ("--url", "http://127.0.0.1/", "--pid", "x=y"),
        *(("--url", "http://[/"), ("--url", "http://127.0.0.1/", "--tls"), ("--straight", "--tls")),
        ("--agent-address", "127.0.0.1:1", "--shape", "fresh"),
    ],
)
def test_bad_arguments(arguments):
    assert said("load run", *arguments, code=2)


@pytest.mark.parametrize("words", ["run --duration 1200", "run --pairs 200 --warmup 60", "locust -- -t 1h"])
def test_a_run_that_outlasts_its_tokens_starts_nothing(words):
    assert "its tokens live 3,500 s" in said(f"load {words}", code=2)


def test_what_is_no_result():
    assert said("load report", __file__, code=2)
