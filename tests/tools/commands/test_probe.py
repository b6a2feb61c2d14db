"""`iamroles agent probe` at good agents, at agents that are not ready, and at strangers."""

import asyncio
import json
import os
import signal
import socket
import time
from functools import partial

import pytest
from listening import listening, nowhere
from programs import iamroles, running, world
from spop_client import DictatedGate, serving
from spop_transcript import ALLOW, frame

from iamroles_agent.base.config import AgentTls
from iamroles_agent.base.identity import Decision
from iamroles_agent.base.reasons import Reason
from iamroles_agent.serving.tls import Tls
from iamroles_agent.spop import actions, frames
from iamroles_agent.spop.frames import FrameType
from iamroles_agent.spop.values import DataType
from iamroles_scenarios.engine.certificates import Authority
from iamroles_tools.commands.probe import Probe

READY, ABSENT, WRONG, UNREADY = 0, 1, 2, 4
GREETING = frame(FrameType.AGENT_HELLO, frames.encode_pairs({"version": (DataType.STRING, b"2.0")}))
BOUND = "0.5"


def probed(*words):
    """Return the exit status and the one line, whichever stream has it; it came in time."""
    began = time.monotonic()
    done = iamroles("agent", "probe", *words)
    took = time.monotonic() - began
    line = (done.stdout + done.stderr).strip()
    assert took < 15, "a health check waits for no agent"
    assert "Traceback" not in line
    assert line.count("\n") == 0 or done.returncode == WRONG
    return done.returncode, line


def at(serve, *words, why=""):
    with listening(serve) as address:
        return probed(address, "--timeout", BOUND if "waited" in why else "30", *words)


def says(octets):
    """Read what came, so that closing destroys nothing, and answer."""
    return lambda sock: sock.recv(1 << 16) and sock.sendall(octets)


def acknowledges(payload, ids=(1, 1)):
    return says(frame(FrameType.ACK, payload, ids=ids))


def greets_then(rest):
    """Answer the HELLO of each connection, and unless it is a health check go on with `rest`."""

    def serve(connection):
        asked = connection.recv(1 << 16)
        connection.sendall(GREETING)
        if b"healthcheck" not in asked:
            rest(connection)

    return serve


def test_an_agent_is_ready_and_its_audit_says_who_asked(tmp_path):
    listen = [f"unix:{tmp_path}/agent.sock", "127.0.0.1:0"]
    policy = world(agent={"listen": listen}, audit={"path": str(tmp_path / "audit"), "sync": "0s"})
    with running(tmp_path, policy):
        status, line = probed(listen[0])
        assert (status, line.partition(": ready: ")[0]) == (READY, listen[0])
        assert "401 no_credentials" in line
        assert "broke the protocol" not in (tmp_path / "log").read_text()
        assert '"request":"iamroles-probe"' in (tmp_path / "audit").read_text()
        written = (tmp_path / "audit").read_text()
        assert probed(listen[0], "--for", "liveness")[0] == READY
        assert (tmp_path / "audit").read_text() == written, "liveness asks nothing"
        assert probed(listen[0], nowhere())[0] == ABSENT


def test_a_frozen_agent_is_absent_in_time(tmp_path):
    with running(tmp_path, world()) as agent:
        pids = {agent.process.pid, *agent.children()}
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            status, line = probed(agent.ready["address"], "--timeout", BOUND)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
    assert (status, "it waited 0.5 s for HELLO" in line) == (ABSENT, True)


@pytest.mark.parametrize("broken", ["", "\n[[grants]]\nid = \n"])
def test_the_configuration_says_where_to_ask_even_half_broken(tmp_path, broken):
    path = tmp_path / "policy.toml"
    with listening(greets_then(lambda sock: None)) as address:
        path.write_text(f'version = 1\n[agent]\nlisten = ["{address}"]\n{broken}')
        assert probed("--config", path, "--for", "startup") == (READY, f"{address}: alive: it said HELLO")


@pytest.mark.parametrize(
    "text", [None, "[agent]\nlisten = 7", "agent = 1", "[agent]\nlisten = [", "[agent.tls]\nca = 'x'", "\xff"]
)
def test_a_configuration_that_says_no_address_is_wrong(tmp_path, text):
    path = tmp_path / "policy.toml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    status, line = probed("--config", path)

    assert (status, "name the agent by ADDRESS" in line) == (WRONG, True)


@pytest.mark.parametrize("words", [[], ["nowhere"], ["h:0"], ["h:70000"], [":1"], ["h:1", "--ca", "/absent"]])
def test_a_wrong_option_is_no_state_of_an_agent(words):
    assert probed(*words)[0] == WRONG


def silent(connection):
    time.sleep(3)


def drip(connection):
    for octet in GREETING:
        connection.sendall(bytes([octet]))
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("serve", "why"),
    [
        (silent, "it waited 0.5 s for HELLO"),
        (drip, "it waited 0.5 s for HELLO"),
        (says(b""), "it closed the connection without an answer"),
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "it does not speak SPOP: a frame of"),
        (says(b"\xff\xff\xff\xff" + b"x" * 70000), "a frame of 4294967295 bytes exceeds"),
        (says(b"\0\0\0\1" + b"x" * 9), "it does not speak SPOP: a frame of 1 bytes"),
        (acknowledges(b""), "its first frame has the type 103"),
    ],
)
def test_what_is_no_agent_is_absent(serve, why):
    status, line = at(serve, why=why)

    assert (status, why in line) == (ABSENT, True), line


REFUSED = Decision(allow=False, reason=Reason.INTERNAL_ERROR)


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        (silent, "it waited 0.5 s for a verdict"),
        (acknowledges(b""), "its answer holds no verdict"),
        (acknowledges(b"\1\7?"), "not an action"),
        (acknowledges(ALLOW, ids=(2, 1)), "is not the answer to the question"),
        (acknowledges(actions.encode_verdict(REFUSED)), "refused, 503 internal_error"),
    ],
)
def test_who_says_hello_and_judges_nothing_is_alive_alone(rest, why):
    status, line = at(greets_then(rest), why=why)

    assert (status, why in line, "alive, but not ready" in line) == (UNREADY, True, True), line
    assert at(greets_then(rest), "--for", "liveness", why=why)[0] == READY


def test_a_refused_health_check_is_told_in_one_line():
    pairs = {"status-code": (DataType.UINT32, 13), "message": (DataType.STRING, b"no\ndisk\x1b[2J")}
    goodbye = frame(FrameType.AGENT_DISCONNECT, frames.encode_pairs(pairs))
    status, line = at(says(goodbye))

    assert (status, line.endswith("it disconnects: no?disk?[2J")) == (UNREADY, True)
    assert at(says(goodbye), "--for", "startup")[0] == READY
    assert at(says(goodbye), nowhere())[0] == ABSENT
    assert at(says(goodbye), nowhere(), "--for", "startup")[0] == ABSENT


def test_places_without_a_listener_are_named(tmp_path):
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left"))
    found = {name: probed(f"unix:{tmp_path}/{name}") for name in ("file", "left", "none", "n" * 200)}

    assert {status for status, _ in found.values()} == {ABSENT}
    ends = {"file": "a file is there, not a socket", "left": "refused", "none": "No such file or directory"}
    assert [name for name, end in ends.items() if not found[name][1].endswith(end)] == []


def test_another_user_is_said_to_lack_permission(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    own = os.geteuid()
    try:
        os.seteuid(own or 65532)
        status, line = Probe().look(f"unix:{tmp_path}/closed/socket", ask=True)
    finally:
        os.seteuid(own)

    assert (status, "permission denied" in line) == (ABSENT, True), line


async def test_mutual_tls_by_options_and_by_the_configuration(tmp_path):
    authority = Authority()
    (tmp_path / "agent.pem").write_text(authority.issue("agent.test"))
    (tmp_path / "ca.pem").write_text(authority.public)
    tls = Tls(AgentTls(certificate="agent.pem", ca="ca.pem"), tmp_path)
    async with serving(DictatedGate(), tls=tls) as server:
        ask = partial(asyncio.to_thread, probed)
        known = ["--ca", tmp_path / "ca.pem"]
        table = {"listen": server.address, "tls": {"certificate": "agent.pem", "ca": "ca.pem"}}
        (tmp_path / "policy.json").write_text(json.dumps({"agent": table}))
        assert (await ask(server.address, *known, "--certificate", tmp_path / "agent.pem"))[0] == READY
        assert (await ask("--config", tmp_path / "policy.json"))[0] == READY
        assert (await ask(server.address, *known))[0] == ABSENT
        assert (await ask(server.address))[0] == ABSENT
        (tmp_path / "ca.pem").write_text(Authority().public)
        assert "CERTIFICATE_VERIFY_FAILED" in (await ask(server.address, *known))[1]
