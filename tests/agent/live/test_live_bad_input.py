"""A master socket that is invalid, another's, or does not answer: said once, and expiry is unharmed."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import ExitStack, closing, nullcontext, suppress
from types import SimpleNamespace

import pytest
from strangers import STRANGER, let_in, played_by
from waiting import until

from iamroles_agent.live.console import Console, ConsoleError, workers
from iamroles_scenarios.checks.live.stream import Stream, StreamShape
from iamroles_scenarios.declarations.scenario import WorldSpec, policy_of
from iamroles_scenarios.jose import mint_for
from iamroles_scenarios.stage import haproxies, open_stage
from iamroles_scenarios.stage.reference import reference_agent

PATIENCE = 30.0
READER = "arn:aws:iam::111111111111:role/reader"
ALONE = "Streams are not cut there; HAProxy alone ends them at their expiry, but no busy body "
ALONE += "of a backend without streams = true"


@pytest.fixture(scope="module")
def stage():
    """Worlds, and their issuer: made once, because making it again gives it new keys."""
    with open_stage("processes") as found:
        yield SimpleNamespace(world=found.world, issuer=found.idp.issuer("corp"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A HAProxy that knows nothing of us: its directory, with `m` of its master and `s` of its worker."""
    place = tmp_path_factory.mktemp("o")
    (place / "h.cfg").write_text(f"global\n stats socket {place}/s\ndefaults\n timeout client 1s\n")
    command = [haproxies.find(), "-W", "-db", "-S", f"{place}/m", "-f", f"{place}/h.cfg"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        there = [place / "m", place / "s"]
        until(lambda: all(path.exists() for path in there), PATIENCE, "the other HAProxy does not start")
        yield place
        process.terminate()


def world_of(stage, **live):
    extra = {"live": live, "metrics": {"listen": "127.0.0.1:0"}, "audit": {"path": "none"}}
    return stage.world(reference_agent(), policy_of(WorldSpec(policy="live", override=extra)))


def stream_of(stage, world, stack, life):
    recipe = {"roles": [READER], "issuer": "corp", "signer": "corp", "exp": life}
    token = mint_for(recipe, {"corp": stage.issuer}, time.time())
    here = SimpleNamespace(world=world)
    stream = stack.enter_context(closing(Stream(here, StreamShape("websocket"), "/live/reader", token)))
    assert stream.opened(PATIENCE), stream.status
    return stream


def metric(world, name):
    [url] = re.findall(r"metrics on (http://\S+)", world.agent.logs())
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    return float(re.search(rf"^{name} (\S+)", text, re.MULTILINE)[1])


def unreachable(world):
    return metric(world, "iamroles_live_unreachable")


def listed(master):
    """Return the workers of a HAProxy; None if its master does not answer in time."""
    with suppress(ConsoleError):
        return workers(asyncio.run(Console(master).ask("show proc")))


def deaf(place):
    """A socket whose owner accepts, and never answers."""
    found = socket.socket(socket.AF_UNIX)
    found.bind(str(place / "deaf"))
    found.listen()
    return found


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nothing", "No such file or directory"),
        ("refused", "Connection refused"),
        ("deaf", "no answer within 2 s"),
        ("s", "it is not a master CLI: HAProxy needs -W and -S"),
        ("m", "it has no table iam-live: it does not run the configuration of `iamroles policy render`"),
    ],
)
def test_a_socket_that_is_of_no_use_is_said_once_and_streams_expire(stage, other, tmp_path, kind, said):
    path = (other if len(kind) == 1 else tmp_path) / kind
    with ExitStack() as stack:
        if kind == "refused":
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(str(path))
        if kind == "deaf":
            stack.enter_context(deaf(tmp_path))
        world = stack.enter_context(world_of(stage, master_socket=str(path)))
        line = world.agent.wait_line(lambda line: said in line and ALONE in line, PATIENCE)
        assert line, world.agent.logs()
        until(lambda: unreachable(world), PATIENCE)
        stream = stream_of(stage, world, stack, "+4s")

        assert stream.until(stream.expires + PATIENCE)
        assert stream.ended < stream.expires + 1
        assert sum(ALONE in line for line in world.agent.lines()) == 1


def test_a_socket_of_another_gate_is_said_once_and_its_streams_are_left_alone(stage):
    with ExitStack() as stack:
        ours = stack.enter_context(world_of(stage, gate="ours"))
        stream = stream_of(stage, ours, stack, "+15m")
        theirs = stack.enter_context(
            world_of(stage, gate="theirs", master_socket=ours.haproxy.master, revocations="r.toml")
        )
        assert theirs.agent.wait_line(lambda line: "another gate" in line, PATIENCE), theirs.agent.logs()
        until(lambda: unreachable(theirs), PATIENCE)
        ours.haproxy.reload()
        mark = time.time()
        theirs.agent.put("r.toml", '[[revocations]]\nid = "a"\nroles = ["reader"]\n')
        assert theirs.agent.wait_line(lambda line: "revocations of" in line, PATIENCE), theirs.agent.logs()

        assert not stream.until(mark + 6)
        assert sum("another gate" in line for line in theirs.agent.lines()) == 1


def test_two_agents_of_a_haproxy_that_reloads_often_leave_its_master_room(stage):
    """A master takes ten connections: a worker that is frozen, or old, must not take them all."""
    with ExitStack() as stack:
        ours = stack.enter_context(world_of(stage, gate="ours", revocations="r.toml"))
        master = ours.haproxy.master
        theirs = stack.enter_context(world_of(stage, gate="ours", master_socket=master))
        streams = [stream_of(stage, ours, stack, "+15m")]
        for _ in range(4):
            ours.haproxy.reload()
            streams.append(stream_of(stage, ours, stack, "+15m"))
        for world in (ours, theirs):
            until(lambda world=world: metric(world, "iamroles_long_streams") == len(streams), PATIENCE)
        *_, old = until(lambda: listed(master), PATIENCE)
        os.kill(old, signal.SIGSTOP)

        async def frozen():
            console = Console(master, old)
            for question in (console.ask, console.read) * 6:
                with pytest.raises(ConsoleError, match="no answer"):
                    await question("show info")

        try:
            asyncio.run(frozen())
            assert len(until(lambda: listed(master), PATIENCE)) == len(streams)
        finally:
            os.kill(old, signal.SIGCONT)
        ours.agent.put("r.toml", '[[revocations]]\nid = "a"\nroles = ["reader"]\n')
        mark = time.time()
        assert all(stream.until(mark + PATIENCE) for stream in streams)


def test_a_console_needs_one_connection_of_a_master_whose_others_are_taken(other):
    async def found():
        [worker] = workers(await Console(master).ask("show proc"))
        taken = [Console(master) for _ in range(9)]
        for one in taken:
            await one.ask("show proc")
        console = Console(master, worker)
        answers = [await question("show info") for question in (console.ask, console.read) * 2]
        for one in (console, *taken):
            one.close()
        return answers

    master = str(other / "m")
    assert all("Name: HAProxy" in answer for answer in asyncio.run(found()))


@pytest.mark.parametrize("end", ["kept open", "forgotten", "broken off"])
def test_a_long_list_ends_with_an_empty_line(tmp_path, end):
    """HAProxy 3.0.11 can forget what comes last if a list fills the socket of a slow reader."""
    asked, over, answer = [], asyncio.Event(), b"# table: iam-live\n" + b"0x1: key=a\n" * 50_000 + b"\n"

    async def worker(reader, writer):
        asked.append(await reader.readline())
        writer.write(answer if end == "kept open" else answer[:-1])
        if end == "broken off":
            writer.close()
        else:
            asked.append(await reader.read())
            writer.write(answer[-1:])
        over.set()

    async def found():
        async with await asyncio.start_unix_server(worker, str(tmp_path / "m")):
            try:
                return await Console(str(tmp_path / "m"), 7).read("show table iam-live")
            finally:
                await over.wait()

    with pytest.raises(ConsoleError, match="it closed") if end == "broken off" else nullcontext():
        assert asyncio.run(found()).encode() == answer
    assert asked == [b"@!7 show table iam-live\n", b""][: 1 + (end != "broken off")]


def test_a_late_end_completes_its_list(tmp_path, monkeypatch):
    """HAProxy froze within the list, and leaves the connection open."""
    monkeypatch.setattr("iamroles_agent.live.console._WITHIN", 0.5)
    goes_on, lists = asyncio.Event(), []

    async def worker(reader, writer):
        async for line in reader:
            if b"show table" not in line:
                writer.write(b"\n> ")
                continue
            lists.append(line)
            writer.write(b"# table: iam-live\n")
            await goes_on.wait()
            writer.write(b"\n")

    async def found():
        async with await asyncio.start_unix_server(worker, str(tmp_path / "m")):
            console = Console(str(tmp_path / "m"), 7)
            with pytest.raises(ConsoleError, match="no answer within"):
                await console.read("show table iam-live")
            goes_on.set()
            return await console.read("show table iam-live")

    assert asyncio.run(found()) == "# table: iam-live\n\n"
    assert len(lists) == 2


def test_a_socket_without_permission_is_said_so(tmp_path):
    """As another user: who is root may everything."""
    let_in(tmp_path)
    other = nullcontext() if os.geteuid() else played_by(STRANGER)
    with deaf(tmp_path):
        (tmp_path / "deaf").chmod(0)
        with other, pytest.raises(ConsoleError, match="Permission denied"):
            asyncio.run(Console(str(tmp_path / "deaf")).ask("show proc"))
