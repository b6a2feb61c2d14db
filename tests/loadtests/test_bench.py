"""`iamroles bench`: variants of the gate are what they say, and both benches run to their end."""

import json
from collections import Counter

import pytest
from invoking import finished, ran, said

from iamroles_loadtests.asking import gate_config
from iamroles_loadtests.asking.gate_config import GateConfigError, shipped_files
from iamroles_loadtests.asking.plan import Phase
from iamroles_loadtests.bench import agent, docs, gate, variants
from iamroles_loadtests.bench.rounds import _figures, ratio
from iamroles_loadtests.measuring.measurement import CaseMeasurement, Measurement, Played
from iamroles_scenarios.base.errors import PageError
from iamroles_scenarios.stage.haproxies import find


@pytest.fixture(scope="module")
def rendered():
    """The shipped configuration for the bench's policy."""
    return shipped_files(agent.policy())


@pytest.fixture(scope="module")
def text(rendered):
    return rendered["haproxy.cfg"]


def sound(rendered, tmp_path, text):
    """Return what HAProxy says of a changed haproxy.cfg; "" if it takes it."""
    for name, shipped in (rendered | {"haproxy.cfg": text}).items():
        (tmp_path / name).write_text(shipped)
    settings = {"IAM_BIND": "127.0.0.1:8080", "IAM_STATS_SOCKET": str(tmp_path / "sock")}
    words = "-c", "-f", "haproxy.cfg", "-f", "iam-routes.cfg"
    done = finished(find(), *words, cwd=tmp_path, env=settings)
    return "" if done.returncode == 0 else done.stderr


def test_each_step_can_be_left_out(rendered, text, tmp_path):
    unasked = variants.by_hand(text)
    names = variants.steps(text)

    assert {"0", "1", "2", "3", "4", "5", "6", "record", "live"} == set(names)
    for name in names:
        assert len(variants.without(unasked, {name})) < len(unasked), name
        assert sound(rendered, tmp_path, variants.without(unasked, {name})) == "", name


@pytest.mark.parametrize(
    "change",
    [
        *(variants.plain, lambda text: variants.plain(text, recorded=True)),
        *(variants.by_hand, lambda text: variants.native(text, "key.pem")),
    ],
)
def test_each_variant_is_a_configuration(rendered, text, tmp_path, change):
    (tmp_path / "key.pem").write_text(KEY)

    assert sound(rendered, tmp_path, change(text)) == ""


def evaluations(text, expression):
    """How often an allowed request evaluates an expression: a named ACL is evaluated in each rule."""
    rules = [line.split() for line in text.splitlines() if not line.strip().startswith("#")]
    named = Counter(words[1] for words in rules if words[:1] == ["acl"] and expression in " ".join(words))
    others = [words for words in rules if words[:1] != ["acl"]]
    inline = sum(" ".join(words).count(expression) for words in others)
    return inline + sum(named[word.removeprefix("!")] for words in others for word in words)


def test_each_contender_does_its_work_once(text):
    """The rival verified the same signature ten times a request, and was then said to be slow."""
    native, by_hand = variants.native(text, "key.pem"), variants.by_hand(text)
    assert evaluations(native, "jwt_verify(") == evaluations(native, "jwt_payload_query(") == 1
    assert evaluations(native, "send-spoe-group") == evaluations(by_hand, "send-spoe-group") == 0
    assert evaluations(gate_config.gate(text), "req.hdr(meter-unasked)") == 1
    assert evaluations(text, "send-spoe-group") == 2  # the second only if the first was lost

    ten = "acl good jwt_verify(x) -m int 1\n" + "http-request set-var(txn.a) int(1) if good !good\n" * 5
    assert evaluations(ten, "jwt_verify(") == 10


def test_plain_makes_no_log_line_or_the_gates(text):
    bare, recorded = variants.plain(text), variants.plain(text, recorded=True)

    assert ("log global" in bare, "log-format" in bare) == (False, False)
    assert ("log global" in recorded, "log-format" in recorded) == (True, True)


def test_a_step_that_there_is_not(text):
    with pytest.raises(GateConfigError, match="no step 9"):
        variants.without(text, {"9"})


def test_a_wrong_answer_is_shown():
    cases = {"known": CaseMeasurement(wrong=1, examples=["status 403"])}
    measured = Measurement(wrong=1, stray=1, cases=cases, examples=["bytes that nobody asked for"])
    phase = Phase(name="x", address="", weights={})

    [said] = agent.wrong({"4 x 16": {"a": [_figures(Played(phase, "level", measured, {}))]}})
    assert said.endswith("a: 2 wrong answers or faults, known: status 403; bytes that nobody asked for")


def test_ratios_are_taken_within_rounds():
    fast = [{"rate": rate, "cpu": {}} for rate in (100.0, 10.0, 50.0)]
    slow = [{"rate": one["rate"] / 2, "cpu": {}} for one in fast]

    assert ratio({"a": fast, "b": slow}, "rate", "a", "b") == {"value": 2.0, "low": 2.0, "high": 2.0}


@pytest.mark.parametrize(
    ("target", "low", "high", "verdict"),
    [
        *(("at most 1.4", 1.2, 1.4, "met"), ("at most 1.4", 1.2, 1.5, "open")),
        *(("at most 1.4", 1.5, 1.6, "**missed**"), ("at least 14", 14.0, 15.0, "met")),
        *(("at least 14", 13.0, 15.0, "open"), ("at least 14", 12.0, 13.0, "**missed**")),
        ("", 1.0, 2.0, ""),
    ],
)
def test_what_an_interval_says_of_a_target(target, low, high, verdict):
    assert docs.verdict(target, {"value": (low + high) / 2, "low": low, "high": high}) == verdict


def test_a_page_names_the_haproxy_that_was_measured():
    assert ", HAProxy 2.6.12, " in docs.circumstances("iamroles bench gate", "2.6.12")


@pytest.mark.parametrize(
    "page",
    [
        *("", "<!-- a -->\n<!-- /b -->", "<!-- a -->\n<!-- /a --><!-- a -->\n<!-- /a -->"),
        *("<!-- /a -->\n<!-- a -->", "<!-- a -->\n<!-- a -->\n<!-- /a -->"),
    ],
)
def test_a_page_without_one_place_is_left_alone(tmp_path, page):
    path = tmp_path / "page.md"
    path.write_text(page)

    with pytest.raises(PageError, match=r"has no place for the table\. Put these two lines there"):
        docs.section(path, "a")
    assert path.read_text() == page


def test_the_agent_beside_its_peers():
    found = json.loads(ran("bench agent --rounds 1 --seconds 0.1 --identities 500 --json").stdout)

    assert set(found) == {shape.name for shape in (agent.PIPELINED, agent.SINGLE, agent.BUSY, agent.CALM)}
    for played in found.values():
        for name, rounds in played.items():
            assert len(rounds) == 1
            assert all(one["p50"] > 0 and one["wrong"] == 0 for one in rounds), (name, rounds)
    assert all(one["cpu"]["agent"] > 0 for one in found[agent.PIPELINED.name][agent.OURS])
    # On a busy host all answers of such a short turn may come after its end.
    sure = [seen for what, _, seen in agent.targets(found) if not what.startswith("throughput")]
    assert all(seen["value"] > 0 for seen in sure)


def test_what_each_step_costs(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench gate -->\nold\n<!-- /bench gate -->\nafter\n")
    done = ran("bench gate --step 5 --rounds 1 --seconds 0.1 --json --docs", page)

    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    assert any(line.startswith("| 5 | Tag | ") for line in lines)
    found = json.loads(done.stdout)
    assert set(found["rounds"]) == {gate.PLAIN, gate.ALL, gate.ASKED, "5"}
    assert all(one["cpu"]["haproxy"] > 0 for rounds in found["rounds"].values() for one in rounds)


KEY = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9
q9UU8I5mEovUf86QZ7kOBIjJwqnzD1omageEHWwHdBO6B+dFabmdT9POxg==
-----END PUBLIC KEY-----
"""


@pytest.mark.parametrize("words", ["agent --rounds 60", "agent --seconds 5", "gate --rounds 200 --seconds 5"])
def test_a_bench_that_outlasts_its_questions_starts_nothing(words):
    assert "give fewer --rounds or --seconds" in said(f"bench {words}", code=2)


def test_a_step_to_measure_that_there_is_not():
    assert "unknown step 'nine'; the steps are live, 0, 1" in said("bench gate --step nine", code=2)
