"""How late streams are cut, and what waiting for it costs: the figures of docs/live.md.

    python tests/agent/bench_live.py --busy 1000 --idle 4000

One HAProxy of this host, one agent, one echo backend, all on loopback. Busy WebSockets send a frame each
250 ms and expire together; idle ones only wait. `late` is the client's clock at the end of the stream,
minus the token's `exp`.
"""

# ruff: noqa: ASYNC110, PLR0917, T201 - a script that prints

import argparse
import asyncio
import base64
import os
import resource
import time
import tomllib
from pathlib import Path

from iamroles_scenarios.jose import mint_for
from iamroles_scenarios.stage import open_stage
from iamroles_scenarios.stage.spec import AgentSpec

ROOT = Path(__file__).parents[2]
FRAME = b"\x81\x82\0\0\0\0hi"


def percentiles(values):
    values = sorted(values)
    return "  ".join(
        f"p{p:g} {1000 * values[min(len(values) - 1, int(len(values) * p / 100))]:.1f} ms"
        for p in (50, 90, 99, 100)
    )


async def tunnel(proxy, token, busy, path, ready, gate):
    """Open a WebSocket; returns (last byte, end), epoch seconds."""
    async with gate:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head, head
    ready()
    last = time.time()
    feed = asyncio.create_task(feeding(writer)) if busy else None
    try:
        while await reader.read(4096):
            last = time.time()
    except OSError:
        pass
    if feed:
        feed.cancel()
    writer.close()
    return last, time.time()


async def feeding(writer):
    while True:
        writer.write(FRAME)
        await asyncio.sleep(0.25)


def cpu(pids):
    """CPU seconds of processes and their children."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0.0
    for pid in pids:
        for task in Path("/proc").glob("[0-9]*/stat"):
            try:
                words = task.read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            if int(task.parent.name) == pid or int(words[1]) == pid:
                total += (int(words[11]) + int(words[12])) / ticks
    return total


async def measure(options, stage, world):
    issuer = stage.idp.issuer("corp") if hasattr(stage.idp, "issuer") else stage.idp.create("corp")
    proxy = world.proxy

    def token(role, life, **more):
        recipe = {"roles": [f"arn:aws:iam::111111111111:role/{role}"], "issuer": "corp", "signer": "corp"}
        return mint_for({**recipe, "exp": f"+{life}s", **more}, {"corp": issuer}, time.time())

    gate, opened = asyncio.Semaphore(64), 0

    def ready():
        nonlocal opened
        opened += 1

    async def group(count, tok, busy, path):
        nonlocal opened
        opened = 0
        tasks = [asyncio.create_task(tunnel(proxy, tok, busy, path, ready, gate)) for _ in range(count)]
        while opened < count:
            await asyncio.sleep(0.05)
        return tasks

    exp = lambda tok: __import__("json").loads(base64.urlsafe_b64decode(tok.split(".")[1] + "=="))["exp"]  # noqa: E731
    for name, count, busy, life in (("busy", options.busy, True, 15), ("idle", options.busy, False, 15)):
        tok = token("reader", life)
        tasks = await group(count, tok, busy, "/live/reader")
        done = await asyncio.gather(*tasks)
        late = [end - exp(tok) for _, end in done]
        print(f"{count} {name} streams that expire together, late: {percentiles(late)}", flush=True)

    agent, haproxy = world.agent.pid, world.haproxy._runs[-1].part.pid
    idle = await group(options.idle, token("reader", 600), False, "/live/reader")
    few = await group(100, token("writer", 600), False, "/live/writer")
    world.agent.put("r.toml", "")
    await asyncio.sleep(70)  # what a start or a change costs is over
    before, began = (cpu([agent]), cpu([haproxy])), time.monotonic()
    await asyncio.sleep(20)
    took = time.monotonic() - began
    print(
        f"{options.idle} idle tunnels: agent {100 * (cpu([agent]) - before[0]) / took:.2f} % of a core, "
        f"HAProxy {100 * (cpu([haproxy]) - before[1]) / took:.2f} %",
        flush=True,
    )
    at = time.time()
    world.agent.put("r.toml", '[[revocations]]\nid = "a"\nroles = ["writer"]\n')
    ends = await asyncio.wait_for(asyncio.gather(*few), 30)
    print(
        f"100 streams of one role revoked among {options.idle}, after the file changed: "
        f"{percentiles([end - at for _, end in ends])}; "
        f"still open: {sum(not task.done() for task in idle)} of {options.idle}"
    )
    for task in idle:
        task.cancel()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--busy", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=4000)
    parser.add_argument("--haproxy", default=None)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    policy = tomllib.loads((ROOT / "scenarios/iamroles_scenarios/data/worlds/live.toml").read_text())
    policy |= {"live": {"revocations": "r.toml"}, "audit": {"path": "none"}}
    spec = AgentSpec.load(ROOT / "conformance/agent.toml")
    with open_stage("processes", haproxy=options.haproxy) as stage:
        if not hasattr(stage.idp, "issuer"):
            stage.idp.create("corp")
        with stage.world(spec, policy) as world:
            print(f"HAProxy {world.haproxy.version}", flush=True)
            asyncio.run(measure(options, stage, world))


if __name__ == "__main__":
    main()
