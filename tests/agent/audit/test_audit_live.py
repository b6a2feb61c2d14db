"""The audit of a running agent behind HAProxy: what happened is on record, whole, and holds no token."""

import json
import re
import urllib.request
from pathlib import Path

import pytest
from invoking import ran
from waiting import until

from iamroles_scenarios.declarations.scenario import RequestSpec, WorldSpec, policy_of
from iamroles_scenarios.engine.players import ProxyPlayer
from iamroles_scenarios.stage.reference import reference_agent
from iamroles_tools.audit.verify import verify

ASKED = [
    ("reader", RequestSpec(path="/orders/1?secret=in-the-query"), 200, None),
    ("reader", RequestSpec(path="/orders/1", role="reader"), 200, None),
    ("both", RequestSpec(method="POST", path="/orders"), 403, "ambiguous_role"),
    ("both", RequestSpec(method="POST", path="/orders", role="writer"), 200, None),
    ("expired", RequestSpec(path="/orders/1"), 401, "token_expired"),
    ("forged", RequestSpec(path="/orders/1"), 401, "signature_invalid"),
    ("", RequestSpec(path="/orders/1"), 401, "no_credentials"),
]
"""Token, request and answer of each case."""
# A busy host makes each answer late, above all with `sync = "0s"`: the gate and the client wait for it.
PATIENT = {"IAM_TIMEOUT_PROCESSING": "20s"}
PATIENCE = 30.0


@pytest.fixture(scope="module")
def happened(tmp_path_factory, stage):
    """Questions asked twice over, the log rotated in between; returns what a test looks at."""
    directory = tmp_path_factory.mktemp("live")
    path, old = directory / "audit.jsonl", directory / "audit.jsonl.1"
    log = {"path": str(path), "sync": "0s", "required": True}
    extra = {"audit": log, "metrics": {"listen": "127.0.0.1:0"}}
    issuer = stage.idp.issuer("corp")
    tokens = {
        "reader": issuer.mint({"roles": ["reader"]}),
        "both": issuer.mint({"roles": ["reader", "writer"]}),
        "expired": issuer.mint({"roles": ["reader"], "exp": "-5s"}),
        "forged": issuer.mint({"roles": ["reader"], "signature": "flipped"}),
        "": "",
    }
    policy = policy_of(WorldSpec(policy="orders", override=extra))
    with stage.world(reference_agent(), policy, settings=PATIENT) as world:
        player = ProxyPlayer(world, PATIENCE)
        seen = [player.ask(request, tokens[name], with_reason=True) for name, request, *_ in ASKED]
        path.rename(old)
        assert world.agent.reload(policy)["reloaded"] is True
        seen += [player.ask(request, tokens[name], with_reason=True) for name, request, *_ in ASKED]
        ambiguous = player.ask(RequestSpec(path="/orders//1"), tokens["reader"], with_reason=False)
        [url] = re.findall(r"metrics on (http://\S+)", world.agent.logs())
        metrics = urllib.request.urlopen(url, timeout=10).read().decode()
        assert world.agent.stop(within=PATIENCE) == 0
        away = player.ask(RequestSpec(path="/orders/1"), tokens["reader"], with_reason=False)
        assert (ambiguous.status, away.status) == (400, 503)
        player.close()
        log = world.agent.logs()
        full = 2 * len(ASKED) + 2
        until(lambda: len(world.haproxy.log_lines()) >= full, PATIENCE, "HAProxy's log is not complete")
        lines = world.haproxy.log_lines()
    return {
        "paths": [old, path],
        "seen": seen,
        "tokens": tokens,
        "log": log,
        "metrics": metrics,
        "haproxy": lines,
        "records": [json.loads(line) for found in (old, path) for line in found.read_text().splitlines()],
    }


def decisions(happened):
    return [found for found in happened["records"] if found["kind"] == "decision"]


def test_every_decision_is_on_record_in_order(happened):
    expected = [(status, reason) for _, _, status, reason in ASKED] * 2
    assert [(found["status"], found.get("reason")) for found in decisions(happened)] == expected
    assert [seen.status for seen in happened["seen"]] == [status for status, _ in expected]


def test_the_chain_is_whole_over_rotation_and_end(happened):
    proof = verify(happened["paths"], complete=True)

    assert proof.whole, proof.findings
    assert not proof.notes
    kinds = [found["kind"] for found in happened["records"] if found["kind"] != "decision"]
    # The second policy is the last record of the old file, or the first of the new one.
    assert kinds in (
        ["start", "policy", "end", "start", "policy", "end"],
        ["start", "policy", "policy", "end", "start", "end"],
    )


def test_records_join_with_haproxys_log_by_request_id(happened):
    asked = {line["request_id"]: line for line in happened["haproxy"]}

    for found in decisions(happened):
        line = asked[found["request"]]
        assert (line["client"], line["client_port"]) == (found["src"], found["port"])
        assert line["status"] == found["status"]
        assert line["path"] == found["path"]


def test_what_haproxy_refused_by_itself_is_joined_in_with_its_cause(happened, tmp_path):
    log = tmp_path / "haproxy.log"
    log.write_text("".join(f"{json.dumps(line)}\n" for line in happened["haproxy"]))

    answer = ran("audit query --kind proxy --format json --haproxy-log", log, *happened["paths"])
    found = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [one["status"] for one in found] == [400, 503]
    assert (found[0]["reason"], found[0]["cause"]) == ("path_ambiguous", "refused_by_proxy")
    # By release and moment: SPOE names a fault, none, or, where it waits for another server, a timeout.
    assert found[1]["cause"] in ("agent_away", "agent_fault", "agent_timeout")


def test_no_token_and_no_query_anywhere(happened):
    texts = {path.name: path.read_text() for path in happened["paths"]}
    texts |= {name: str(happened[name]) for name in ("log", "metrics", "haproxy")}

    for name, text in texts.items():
        assert "in-the-query" not in text, name
        for part in ".".join(filter(None, happened["tokens"].values())).split("."):
            assert part not in text, name


def test_the_metrics_say_the_same(happened):
    for sample in (
        'iamroles_decisions_total{reason="",verdict="allow"} 6.0',
        'iamroles_decisions_total{reason="token_expired",verdict="deny"} 2.0',
        'iamroles_decisions_total{reason="signature_invalid",verdict="deny"} 2.0',
        "iamroles_decision_seconds_count 14.0",
        'iamroles_policy_loads_total{outcome="accepted"} 2.0',
        "iamroles_audit_lost_total 0.0",
        'iamroles_key_set_keys{issuer="corp"} 2.0',
    ):
        assert sample in happened["metrics"]


def test_an_audit_log_that_cannot_be_written_refuses_every_request(stage):
    """The file's device is full: the agent starts, says so, and fails closed."""
    full = Path("/dev/full")
    policy = policy_of(WorldSpec(policy="orders", override={"audit": {"path": str(full), "sync": "0s"}}))
    token = stage.idp.issuer("corp").mint({"roles": ["reader"]})
    with stage.world(reference_agent(), policy, settings=PATIENT) as world:
        player = ProxyPlayer(world, PATIENCE)
        for _ in range(3):
            seen = player.ask(RequestSpec(path="/orders/1"), token, with_reason=True)
            # Its health check fails as well, so HAProxy soon stops asking it: then the reason is missing.
            assert seen.status == 503
            assert seen.reason in ("internal_error", "-")
        player.close()
        assert "No space left on device; decisions are now refused" in world.agent.logs()
