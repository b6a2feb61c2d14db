"""Measure renewal: streams that end together, those renewed in time, and the agent's cost (docs/live.md).

    python -m benchmarks.live_renewal --streams 3000 --life 120

One HAProxy of this host, one agent, one echo backend, all on loopback. Each idle WebSocket has a session of
its own; all end in one second, and each session asks once with a fresh credential. Opening and asking must be
over before `--life` is.
"""

# ruff: noqa: T201 - a script that prints

import argparse
import asyncio
import base64
import os
import resource
import time

from benchmarks.live import upgrade, used
from iamroles_scenarios.engine.bench import bench
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage import open_stage
from iamroles_scenarios.stage.reference import reference_agent

AROUND = 12.0
"""Seconds before the common end from which on the agent's CPU is read, and half as many after it."""


async def measure(here, count, life):
    gate, proxy = asyncio.Semaphore(32), here.world.proxy

    def token(number, exp):
        return here.token(sub=f"u{number}", claims={"sid": f"s{number}"}, exp=exp)

    async def asked(head, until):
        async with gate:
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            writer.write(head)
            answer = await reader.readuntil(b"\r\n\r\n")
        assert until in answer, answer
        return reader, writer

    def fresh(number):
        return (
            f"GET /renewing HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token(number, '+10m')}\r\n"
            "Connection: close\r\n\r\n"
        ).encode()

    ends = int(time.time()) + life
    keys = [base64.b64encode(os.urandom(16)).decode() for _ in range(count)]
    heads = [upgrade("/renewing", token(number, ends), key) for number, key in enumerate(keys)]
    streams = await asyncio.gather(*(asked(head, b" 101 ") for head in heads))
    watched = [asyncio.create_task(reader.read()) for reader, _ in streams]
    for _, writer in await asyncio.gather(*(asked(fresh(number), b" 200 ") for number in range(count))):
        writer.close()
    left = ends - time.time() - AROUND
    assert left > 0, f"opening and asking took too long: {left:.1f} s"
    await asyncio.sleep(left)
    before = used(here.world.agent.pid)[0]
    await asyncio.sleep(ends - time.time() + AROUND / 2)
    print(
        f"{count} streams that end together: {sum(not task.done() for task in watched)} renewed in time; "
        f"the agent's CPU for it: {used(here.world.agent.pid)[0] - before:.2f} s"
    )
    for task in watched:
        task.cancel()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--life", type=int, default=40, help="seconds that the first credentials live")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with open_stage("processes") as stage:
        agent = reference_agent()
        worlds = Worlds(stage, agent, namespace="-renewal")
        target, audit = Target("gate", stage, agent, worlds, 5.0), {"path": "none"}
        with bench(target, "live-renew", "bench", own=True, audit=audit) as here:
            asyncio.run(measure(here, options.streams, options.life))
        worlds.close()


if __name__ == "__main__":
    main()
