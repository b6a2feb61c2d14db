"""The stage as its users meet it: choosing a kind, a part that fails, a crash that must leave nothing."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from invoking import AGENTS
from puppet_gate import ISSUER, PUPPET, described, puppet_spec
from waiting import until

from iamroles_scenarios.base.errors import ProxyFileError, SelectionError, StageError
from iamroles_scenarios.stage import open_stage
from iamroles_scenarios.stage.containers import Containers
from iamroles_scenarios.stage.docker import LABEL, find_engine, sweep
from iamroles_scenarios.stage.images import Images
from iamroles_scenarios.stage.images import main as images
from iamroles_scenarios.stage.processes import AgentProcess
from iamroles_scenarios.stage.reference import reference_agent

POLICY = {"version": 1, "issuers": [ISSUER], "backends": [{"name": "alpha"}]}
PLAIN = described(tables={}, command=PUPPET)
"""A puppet that declares nothing, a reload neither."""


@pytest.fixture(scope="module", params=["processes", "containers"])
def kind(request):
    if request.param == "containers":
        request.getfixturevalue("engine")
    return request.param


@pytest.fixture(scope="module")
def stage(kind):
    with open_stage(kind) as stage:
        yield stage


@pytest.fixture(scope="module")
def world(stage):
    with stage.world(puppet_spec(), POLICY, haproxy=False) as world:
        yield world


def test_an_agent_finds_its_world_file_under_both_names_of_the_variable():
    assert PLAIN.environment("w.json") == {"IAMROLES_POLICY": "w.json", "IAMROLES_WORLD": "w.json"}


@pytest.mark.parametrize(
    ("master", "written"), [("w/haproxy/m", "../haproxy/m"), ("[::1]:9998", "[::1]:9998")]
)
def test_an_agent_finds_the_master_cli_beside_its_world_file_or_by_its_address(tmp_path, master, written):
    (tmp_path / "w" / "agent").mkdir(parents=True)
    place = AgentProcess(reference_agent(), tmp_path / "w" / "agent", None, subprocess.Popen)
    place.master = str(tmp_path / master) if "/" in master else master
    place.write(POLICY)

    world = json.loads((tmp_path / "w" / "agent" / "world.json").read_text())
    assert world["live"] == {"master_socket": written}


def test_haproxy_takes_an_agent_on_a_unix_socket():
    listening = described(address="unix:/agent.sock")

    with open_stage("processes") as stage, stage.world(listening, POLICY) as world:
        assert "agent-1" in world.haproxy.runtime("show servers conn iam-agents")
        assert world.agent.inner_address == "unix@/agent.sock"
        assert world.agent.spop_address == "unix:/agent.sock"


# --- choosing ---------------------------------------------------------------------------------------------


def test_a_world_that_is_closed_leaves_no_files():
    with open_stage("processes") as stage:
        with stage.world(PLAIN, POLICY) as world:
            place = Path(world.haproxy.place.master).parent
            assert place.is_dir()

        assert not place.exists()


def test_the_addresses_of_a_world_are_given_back_once(engine):
    agent = described(command=["python3", "-c", (AGENTS / "puppet.py").read_text()], build="python")
    with open_stage("containers") as stage:
        with stage.world(agent, POLICY) as gone:
            gone.close()
            worlds = [stage.world(agent, POLICY)]
        worlds.append(stage.world(agent, POLICY))
        taken = {address for one in worlds for address in (one.agent.inner_address, one.haproxy.place.host)}
        assert len(taken) == 4


def test_auto_without_an_engine_is_processes_and_says_why(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")

    with open_stage("auto") as stage:
        assert stage.kind == "processes"
        reason = "no Docker engine answers (no socket exists at /nonexistent/docker.sock)"
        assert stage.why == f"The stage is processes: {reason}."


def test_a_refused_connection_to_an_engine_is_said_in_words(monkeypatch, tmp_path):
    stale = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(stale))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{stale}")

    assert find_engine() == (None, f"no Docker engine answers (connection refused at {stale})")


def test_a_name_that_is_no_address_is_said_in_words(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:port")

    client, why = find_engine()

    assert client is None
    assert "no Docker engine answers (at tcp://127.0.0.1:port: Port could not be cast" in why


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody whom a socket refuses")
def test_a_socket_of_others_is_said_in_words(tmp_path):
    denied = Path("/run") / f"iamroles-test-{os.getpid()}.sock"
    script = (
        "import os; from iamroles_scenarios.stage.docker import find_engine; os.setuid(65534); "
        "print(find_engine()[1])"
    )
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(denied))
            listening.listen()
            denied.chmod(0o600)
            env = {**os.environ, "DOCKER_HOST": f"unix://{denied}", "HOME": str(tmp_path)}
            told = subprocess.check_output([sys.executable, "-c", script], env=env, text=True, timeout=60)
    finally:
        denied.unlink(missing_ok=True)

    assert f"permission denied on {denied}: join the group that owns it" in told


def test_required_containers_without_an_engine_fail(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")

    with pytest.raises(StageError, match="Containers are required, but no Docker engine answers"):
        open_stage("auto", require="containers")
    with pytest.raises(StageError, match="Containers are required"):
        open_stage("containers")
    done = CliRunner().invoke(images, ["iamroles/none"])
    assert (done.exit_code, "Start a Docker engine" in done.stderr) == (3, True)
    with pytest.raises(SelectionError, match=r"not among the stage's images: choose 2\.6, "):
        Containers(None, "2.4")  # before it asks the engine


@pytest.mark.parametrize(
    ("kind_", "options", "said"),
    [
        ("processes", {"require": "containers"}, "drop one of the two"),
        ("vm", {}, "auto, containers, processes"),
        ("processes", {"haproxy": "1.8"}, r"HAProxy '1\.8' is missing \(found: .*pip install"),
        ("processes", {"haproxy": "/nonexistent/haproxy"}, "not an executable HAProxy"),
    ],
)
def test_what_cannot_be_chosen_is_one_sentence(kind_, options, said):
    with pytest.raises(StageError, match=said):
        open_stage(kind_, **options)


# --- a world ----------------------------------------------------------------------------------------------


def test_the_mocks_are_up_and_known_by_their_urls(stage):
    assert set(stage.urls) == {"idp", "sts"}
    assert all(url.startswith("http://") for url in stage.urls.values())
    assert stage.idp.healthy()


def test_a_policy_is_filled_in_and_left_as_it_was(stage):
    policy = {
        "version": 1,
        "issuers": [{**ISSUER, "issuer": "{idp}/corp"}],
        "sts": [{"endpoint": "{sts}/"}],
        "backends": [{"name": "alpha"}, {"name": "own", "servers": ["192.0.2.1:80"]}],
    }
    before = json.dumps(policy)

    with stage.world(PLAIN, policy, haproxy=False) as world:
        assert world.document["issuers"][0]["issuer"] == f"{stage.urls['idp']}/corp"
        assert world.document["sts"][0]["endpoint"] == f"{stage.urls['sts']}/"
        echo, own = world.document["backends"]
        assert (own["servers"], len(echo["servers"])) == (["192.0.2.1:80"], 1)
    assert json.dumps(policy) == before


def test_reload_waits_for_the_agents_word(world):
    assert world.agent.reload({**POLICY, "backends": []}) == {"reloaded": True, "backends": 0}
    assert world.agent.reload(POLICY) == {"reloaded": True, "backends": 1}
    assert world.agent.reload_document({})["reloaded"] is False


def test_an_agent_comes_back_where_it_was(world):
    address = world.agent.spop_address
    world.agent.kill()
    assert not world.agent.alive
    world.agent.start()

    assert world.agent.alive
    assert world.agent.spop_address == address


def test_what_an_agent_leaves_when_its_first_process_is_killed_alone_ends_with_the_world(tmp_path):
    (program := tmp_path / "agent").write_text(
        f'sleep 600 & echo $! > "$0.child"\nexec {shlex.join(PUPPET)}\n'
    )
    spec = described(tables={}, command=["sh", str(program)])

    with open_stage("processes") as stage, stage.world(spec, POLICY, haproxy=False) as world:
        child = Path("/proc", Path(f"{program}.child").read_text().strip())
        world.agent.kill_first()
        assert not world.agent.alive
        assert child.exists()
        world.agent.start()
        assert child.exists()
        world.close()

        assert until(lambda: not child.exists())


def test_a_drained_agent_says_zero(stage):
    with stage.world(PLAIN, POLICY, haproxy=False) as world:
        assert world.agent.stop() == 0
        world.agent.start()
        assert world.agent.alive


def test_reload_without_a_signal_is_a_clear_fault(stage):
    with (
        stage.world(PLAIN, POLICY, haproxy=False) as world,
        pytest.raises(StageError, match=r"declares no features\.reload"),
    ):
        world.agent.reload(POLICY)


def test_a_world_without_haproxy_says_so(world):
    with pytest.raises(StageError, match="haproxy=False"):
        _ = world.proxy


def test_worlds_start_side_by_side(stage):
    with ThreadPoolExecutor(3) as pool:
        worlds = list(pool.map(lambda _: stage.world(PLAIN, POLICY), range(3)))
    try:
        assert len({world.proxy.url for world in worlds}) == 3
        assert all(world.haproxy.agent_is_up() for world in worlds)
        assert set(worlds[0].logs()) == {"agent", "haproxy", "echo"}
    finally:
        for world in worlds:
            world.close()


# --- faults -----------------------------------------------------------------------------------------------


def test_an_agent_that_dies_at_start_is_one_sentence_and_its_log(stage):
    with pytest.raises(StageError) as caught:
        stage.world(PLAIN, {**POLICY, "x-puppet": {"dies": True}}, haproxy=False)

    assert caught.value.message.startswith("agent ended with exit code 1 before it was ready. It must serve")
    assert "puppet: told to die at start" in caught.value.logs["agent"]


def test_an_agent_that_is_missing_is_named(stage):
    with pytest.raises(StageError, match="'no-such-agent' is neither in"):
        stage.world(described(command=["no-such-agent"]), POLICY, haproxy=False)


def test_an_agent_that_never_gets_ready_is_given_up(stage):
    mute = described(command=[sys.executable, "-c", "input()"], ready_within=0.2)

    with pytest.raises(StageError, match=r"printed no line with \"ready\" on standard output within 0\.2 s"):
        stage.world(mute, POLICY, haproxy=False)


def test_a_policy_that_cannot_be_rendered_is_a_stage_error(stage):
    policy = {**POLICY, "backends": [{"name": "not a name"}]}

    with pytest.raises(StageError) as caught:
        stage.world(PLAIN, policy)

    assert "exit code 2" in caught.value.message
    assert "backends[0].name" in caught.value.logs["render"]


def test_a_configuration_that_haproxy_refuses_shows_haproxys_words(stage, tmp_path):
    render = tmp_path / "render"
    render.write_text('#!/bin/sh\necho nonsense > "$1/haproxy.cfg"\n')
    render.chmod(0o755)
    own = puppet_spec(haproxy={"render": [str(render), "{output}"]})

    with pytest.raises(StageError) as caught:
        stage.world(own, POLICY)

    assert re.search(r"HAProxy [\d.]+ refused what .* wrote: haproxy.cfg line 1: ", caught.value.message)
    assert "nonsense" in caught.value.logs["haproxy"]


def test_what_a_render_command_writes_need_not_be_utf_8(stage, tmp_path):
    render = tmp_path / "render"
    shipped = Path(sys.executable).with_name("iamroles")
    render.write_text(
        f'#!/bin/sh\n{shipped} policy render --config "$1" --output "$2" --agent 127.0.0.1:9901\n'
        'printf "# caf\\351\\n" >> "$2/haproxy.cfg"; printf "caf\\351\\n"\n'
    )
    render.chmod(0o755)
    own = puppet_spec(haproxy={"render": [str(render), "{world}", "{output}"]})

    with stage.world(own, POLICY) as world:
        assert world.haproxy.agent_is_up()
    render.write_text('#!/bin/sh\nprintf "caf\\351\\n" >&2; exit 3\n')
    with pytest.raises(ProxyFileError) as caught:
        stage.world(own, POLICY | {"backends": [{"name": "beta"}]})
    assert caught.value.logs["render"] == "caf\ufffd"


def test_a_running_agent_is_left_alone(stage):
    with stage.world(described(address="192.0.2.1:9901"), POLICY, haproxy=False) as world:
        assert world.agent.spop_address == "192.0.2.1:9901"
        with pytest.raises(StageError, match="outside the stage: it cannot be killed"):
            world.agent.kill()


def test_a_vendor_may_bring_a_dockerfile_or_an_image(tmp_path, engine):
    client = engine
    base = Images(client).python()
    (tmp_path / "puppet.py").write_text((AGENTS / "puppet.py").read_text())
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base}\nCOPY puppet.py /puppet.py\nARG WHO=nobody\nUSER $WHO\n"
        'CMD ["sh", "-c", "cat /iamroles/own.key && exec python3 /puppet.py"]\n'
    )
    before = {image.id for image in client.images.list(name="iamroles/vendor")}
    built = {"command": ["sh", "-c", "cat /iamroles/own.key && exec python3 /puppet.py"], "build": "."}
    who = {"WHO": "65532:65532"}
    client.images.build(path=str(tmp_path), tag="iamroles-test-vendor:1", rm=True, buildargs=who)
    try:
        with open_stage("containers") as stage:
            for launch in (built, built, {"image": "iamroles-test-vendor:1"}):
                with stage.world(described(tmp_path, **launch), POLICY, files={"own.key": ""}) as world:
                    (tmp_path / "Dockerfile").write_text("FROM changed:meanwhile")
                    assert world.haproxy.agent_is_up()
                    assert world.agent.reload(POLICY)["reloaded"] is True
                    assert world.agent.stop() == 0
    finally:
        client.images.remove("iamroles-test-vendor:1")
        for image in client.images.list(name="iamroles/vendor"):
            if image.id not in before:
                client.images.remove(image.tags[0])


def test_an_image_needs_containers():
    with open_stage("processes") as stage, pytest.raises(StageError, match="needs the containers stage"):
        stage.world(described(image="v:1"), POLICY)


def test_an_agent_on_loopback_is_out_of_reach_for_containers(stage):
    outside = described(address="127.0.0.1:9")

    if stage.kind == "containers":
        with pytest.raises(StageError, match=r"cannot reach 127\.0\.0\.1:9 on the host"):
            stage.world(outside, POLICY)
    else:
        with stage.world(outside, POLICY) as world:
            assert world.haproxy.wait_agent(up=False)


# --- nothing is left --------------------------------------------------------------------------------------

CRASHING = """
import sys, time
sys.path[:0] = [{here!r}, {here!r} + "/../support"]
from test_stage import PLAIN, POLICY, open_stage
stage = open_stage({kind!r})
world = stage.world(PLAIN, POLICY)
sys.stdout.write(f"{{world.agent.ready['address']}} {{world.proxy.url}}\\n")
sys.stdout.flush()
time.sleep(600)
"""


def listening(port):
    """Return whether any socket of this host listens on a port (proc(5), /proc/net/tcp: state 0A)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[3] == "0A" and row[1].endswith(f":{port:04X}") for row in rows)


def test_a_stage_that_is_killed_leaves_nothing(kind, request):
    victim = subprocess.Popen(
        [sys.executable, "-c", CRASHING.format(here=str(Path(__file__).parent), kind=kind)],
        stdout=subprocess.PIPE,
        text=True,
    )
    agent, _ = victim.stdout.readline().split()
    port = int(agent.rpartition(":")[2])
    assert listening(port)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    victim.stdout.close()

    client = request.getfixturevalue("engine") if kind == "containers" else None
    owner = f"/{victim.pid}/"

    def left():
        containers = (
            client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True) if client else []
        )
        return listening(port) or any(owner in str(one.labels) for one in containers)

    until(lambda: not left())


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_kept(engine):
    client = engine
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = os.uname().nodename
    dead, foreign = (
        client.networks.create(f"iamroles-test-{name}", labels={LABEL: "t", "iamroles.owner": owner})
        for name, owner in (("dead", f"{host}/{gone.pid}/1"), ("foreign", "elsewhere/1/1"))
    )
    try:
        sweep(client)  # or another stage that was set meanwhile
        names = {network.name for network in client.networks.list()}
        assert dead.name not in names
        assert foreign.name in names
    finally:
        foreign.remove()
