"""Revocation and sessions as an operator meets them: commands, HAProxy, an agent of a worker or more."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from gate_bench import gate_bench
from invoking import ran, said

from iamroles_agent.processes import local_socket
from iamroles_scenarios.checks.live.stream import Stream, StreamShape
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine.bench import refused

PATIENCE = 30.0
IN_FORCE = "in force for open streams"


class Gate:
    """A gate with an operator: streams of people, and what commands say."""

    def __init__(self, here, directory, stack):
        self.here, self.directory, self._stack = here, directory, stack
        self.config = Path(here.world.agent._place._world)
        self.file = directory / "revocations.toml"

    def stream(self, sub, role="reader", kind="websocket", **recipe):
        token = self.here.token(sub=sub, roles=[role], **{"exp": "+15m", **recipe})
        found = self._stack.enter_context(
            closing(Stream(self.here, StreamShape(kind, busy=False), f"/live/{role}", token))
        )
        assert found.opened(PATIENCE), found.status
        found.token = token
        return found

    def revoke(self, words, *more, code=0):
        """Return the lines of `iamroles revoke`."""
        return said(f"revoke {words} --config", self.config, *more, code=code).splitlines()

    def connected(self, principal):
        """Return what `iamroles sessions` tells of somebody."""
        done = ran("sessions --json --config", self.config, code=(0, 3))
        # 3: a busy host, and HAProxy does not answer in time.
        told = map(json.loads, [] if done.exit_code else done.output.splitlines())
        return [about for about in told if about["principal"] == principal]

    def in_force(self):
        """Ids that all workers have in force; one more while the file is not taken up."""
        told = local_socket.ask(self.directory / "state" / "agent.sock", {"command": "revocations"})
        return told["in_force"] + ["?"] * (not told["settled"])

    def metrics(self):
        """Each worker's."""
        urls = set(re.findall(r"metrics on (http://\S+)", "\n".join(self.here.world.agent.lines())))
        texts = [urllib.request.urlopen(url, timeout=PATIENCE).read().decode() for url in urls]
        return [dict(re.findall(r"^([^#\s].*) (\S+)$", text, re.MULTILINE)) for text in texts]

    def asks(self, token, expected, within=0.0):
        self.here.expect("a request", token, expected, within=within, path="/plain/a")

    def records(self, *words):
        logs = [path for path in self.directory.glob("audit.jsonl*") if path.suffix != ".head"]
        return [json.loads(line) for line in said("audit query --format json", *words, *logs).splitlines()]

    def cuts(self, *words, count=1):
        """Records of cuts, once there are so many."""
        return until(lambda: [found for found in self.records(*words) if found.get("event") == "cut"], count)


def until(look, count=1):
    """Return what a look shows, once it is so much; or at the deadline."""
    deadline = time.monotonic() + PATIENCE
    while len(found := look()) != count and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module", params=[1, 3], ids=["one worker", "three workers"])
def gate(request, stage, tmp_path_factory):
    directory = tmp_path_factory.mktemp("gate")
    override = {
        "agent": {"workers": request.param, "state_dir": str(directory / "state")},
        "live": {"revocations": str(directory / "revocations.toml")},
        "audit": {"path": str(directory / "audit.jsonl"), "sync": "0s"},
        "metrics": {"listen": "127.0.0.1:0"},
    }
    with gate_bench(stage, f"e2e{request.param}", **override) as here, ExitStack() as stack:
        yield Gate(here, directory, stack)


@pytest.fixture(autouse=True)
def _nothing_revoked(gate):
    yield
    gate.file.write_text("# nothing\n")
    assert until(gate.in_force, 0) == []


# --- who is connected


def test_sessions_say_who_is_connected_and_no_longer_once_they_left(gate):
    began = int(time.time())
    stream = gate.stream("sam", claims={"jti": "sam-1"})

    [about] = until(lambda: gate.connected("sam"))

    known = {"principal": "sam", "session": "sam-1", "role": "arn:aws:iam::111111111111:role/reader"}
    known |= {"route": "live", "path": "/live/reader", "until": stream.expires}
    assert {name: about[name] for name in known} == known
    assert began <= about["since"] <= time.time()
    text = said("sessions --config", gate.config)
    assert re.search(r"sam  arn:\S+/reader  live  /live/reader  since \S+Z  ends in [89]\d\d s  from ", text)
    stream.close()
    assert until(lambda: gate.connected("sam"), 0) == []


# --- who is thrown out


@pytest.mark.parametrize("kind", ["role", "principal", "session", "credential"])
def test_a_revocation_ends_what_it_names_and_its_undo_lets_in_again(gate, kind):
    who = f"thief-{kind}"
    thief = gate.stream(who, "writer" if kind == "role" else "reader", claims={"jti": f"{who}-1"})
    other = gate.stream(f"other-{kind}", claims={"jti": "other-1"})
    [about] = until(lambda: gate.connected(who))
    names = {"role": "writer", "principal": who, "session": f"{who}-1", "credential": about["credential"]}

    assert IN_FORCE in gate.revoke(f"add --{kind} {names[kind]} --id {kind} --reason stolen")
    assert thief.until(time.time() + PATIENCE)
    gate.asks(thief.token, refused("credential_revoked"))
    gate.asks(other.token, Expectation(backend="plain"))
    assert other.lives()
    assert [json.loads(line)["id"] for line in gate.revoke("list")] == [kind]
    [about] = (cut["about"] for cut in gate.cuts("--cause", "revoked", "--who", who))
    assert (about["principal"], about["detail"], about["by"]) == (who, f"revocation {kind}", "agent")
    assert IN_FORCE in gate.revoke(f"undo {kind}")
    gate.asks(thief.token, Expectation(backend="plain"))


def test_revoking_active_sessions_spares_what_was_issued_since(gate):
    before = gate.stream("pat", iat="-60s")
    undated = gate.stream("pat", kind="events", drop=["iat"])
    since = gate.stream("pat", iat="-5s")

    gate.revoke(f"add --principal pat --issued-before {int(time.time()) - 30} --id active")

    for stream in (before, undated):
        assert stream.until(time.time() + PATIENCE)
        gate.asks(stream.token, refused("credential_revoked"))
    gate.asks(since.token, Expectation(backend="plain"))
    assert len(gate.cuts("--cause", "revoked", "--who", "pat", count=2)) == 2
    assert since.lives()


def test_a_policy_that_does_not_load_is_in_nobodys_way(gate):
    stream, other = gate.stream("mel"), gate.stream("max")
    sound = gate.config.read_text()
    told = gate.here.world.agent.reload_document({**json.loads(sound), "nonsense": 1}, within=PATIENCE)
    assert (told["reloaded"], "nonsense" in told["error"]) == (False, True)

    assert IN_FORCE in gate.revoke("add --principal mel --id anyway")
    assert stream.until(time.time() + PATIENCE)
    assert [about["principal"] for about in gate.connected("max")] == ["max"]

    gate.config.write_text("{ no JSON")
    assert "`revoke --file`" in str(gate.revoke("add --principal max", code=2))
    said = gate.revoke("add --principal max", "--file", gate.file)
    assert "cannot tell whether an agent" in str(said)
    assert other.until(time.time() + PATIENCE)
    gate.config.write_text(sound)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'[[revocations]]\nid = "a"\nprincipals = ["ev', ":3: is not TOML"),
        (b'[[revocations]]\nid = "a"\nprincipals = "eve"\n', ":3: revocations[0].principals:"),
        (b'[[revocations]]\nid = "a"\nroles = ["arn:aws:iam::1:role"]\n', ":3: revocations[0].roles[0]:"),
        (b'[[revocations]]\nid = "a"\nroles = ["a"]\n' * 2, ":5: revocations[1].id: 'a' stands twice"),
        (b"#" * (4 << 20) + b"#", ": cannot be read: it is larger than 4 MiB"),
        (b"", ": is empty"),
        (b"a = " + b"[" * 100_000, ": is nested too deep"),
        (b"\xff\xfe", ":1: is not UTF-8"),
        (None, " is gone"),
    ],
    ids=["half written", "type", "ARN", "twice", "huge", "empty", "deep", "binary", "gone"],
)
def test_a_file_that_is_wrong_is_said_and_what_was_revoked_stays_revoked(gate, text, said):
    stream, other = gate.stream("eve"), gate.stream("ann")
    gate.revoke("add --principal eve --id eve")
    assert stream.until(time.time() + PATIENCE)
    mark = len(gate.here.world.agent.lines())

    if text is None:
        gate.file.unlink()
    else:  # as a whole: a part of a comment alone would lift what was revoked
        gate.file.with_name("next.toml").write_bytes(text)
        gate.file.with_name("next.toml").replace(gate.file)

    wanted = f"{gate.file}{said}"
    assert until(lambda: [line for line in gate.here.world.agent.lines()[mark:] if wanted in line])
    gate.asks(stream.token, refused("credential_revoked"))
    gate.asks(other.token, Expectation(backend="plain"))
    assert other.lives()
    if text is not None:
        assert wanted in "\n".join(gate.revoke("add --principal bob", code=2))


def test_many_who_revoke_at_once_lose_nothing(gate):
    command = [Path(sys.executable).with_name("iamroles"), "revoke", "add", "--config", gate.config]
    running = [
        subprocess.Popen([*command, "--principal", f"p{n}", "--id", f"r{n}"], stderr=subprocess.PIPE)
        for n in range(8)
    ]
    said = [one.communicate(timeout=4 * PATIENCE)[1] for one in running]

    assert [one.returncode for one in running] == [0] * 8, said
    listed = [json.loads(line)["id"] for line in gate.revoke("list")]
    assert sorted(listed) == sorted(f"r{n}" for n in range(8))
    assert gate.in_force() == listed


def test_what_is_revoked_while_no_agent_runs_is_in_force_when_one_starts(gate):
    stream = gate.stream("zoe")
    agent = gate.here.world.agent
    agent.kill()

    assert "No agent answers" in str(gate.revoke("add --principal zoe --id late"))
    assert stream.lives()

    agent.start()
    assert gate.here.world.haproxy.wait_agent(up=True, within=PATIENCE)
    gate.asks(stream.token, refused("credential_revoked"))
    assert stream.until(time.time() + PATIENCE)


def test_metrics_count_revocations_and_cuts(gate):
    stream = gate.stream("cal")
    gate.revoke("add --principal cal --id one")
    assert stream.until(time.time() + PATIENCE)
    gate.cuts("--cause", "revoked", "--who", "cal")

    found = gate.metrics()

    assert {one["iamroles_revocations"] for one in found} == {"1.0"}
    assert sum(float(one.get('iamroles_cuts_total{by="agent",cause="revoked"}', 0)) for one in found) >= 1
    assert {one["iamroles_live_unreachable"] for one in found} == {"0.0"}


def test_agents_that_share_the_file_share_what_it_revokes(gate, stage, tmp_path):
    live = {"revocations": str(gate.file)}
    with gate_bench(stage, "shared", live=live) as here, ExitStack() as stack:
        there = Gate(here, tmp_path, stack)
        streams = [gate.stream("joe"), there.stream("joe")]
        others = [gate.stream("jim"), there.stream("jim")]
        gate.revoke("add --principal joe --id joe")
        for stream in streams:
            assert stream.until(time.time() + PATIENCE)
        there.asks(streams[1].token, refused("credential_revoked"))
        assert [stream.lives() for stream in others] == [True, True]
