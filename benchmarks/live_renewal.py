"""Measure renewal: streams that end together, those renewed in time, and the agent's cost (docs/live.md).

    python -m benchmarks.live_renewal --streams 3000 --life 120

One HAProxy of this host, one agent, one echo backend, all on loopback. Each idle WebSocket has a session of
its own; all end in one second, and each session asks once with a fresh credential. Opening and asking must be
over before `--life` is.
"""

import argparse
import asyncio
import time

from benchmarks.agent import cpu_of
from benchmarks.live import SOCKET, asked, standing
from iamroles_scenarios.engine.bench import own_bench

AROUND = 12.0
"""Seconds before the common end from which on the agent's CPU is read, and half as many after it."""


async def measure(here, count, life):
    gate, proxy = asyncio.Semaphore(32), here.world.proxy

    def token(number, exp):
        return here.token(sub=f"u{number}", claims={"sid": f"s{number}"}, exp=exp)

    def fresh(number):
        return (
            f"GET /renewing HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token(number, '+10m')}\r\n"
            "Connection: close\r\n\r\n"
        ).encode()

    ends = int(time.time()) + life
    heads = [SOCKET.head("/renewing", token(number, ends)) for number in range(count)]
    streams = await asyncio.gather(*(asked(proxy, gate, head, b" 101 ") for head in heads))
    watched = [asyncio.create_task(reader.read()) for reader, _ in streams]
    renewals = (asked(proxy, gate, fresh(number), b" 200 ") for number in range(count))
    for _, writer in await asyncio.gather(*renewals):
        writer.close()
    left = ends - time.time() - AROUND
    assert left > 0, f"opening and asking took too long: {left:.1f} s"
    await asyncio.sleep(left)
    before = cpu_of(here.world.agent.pid)
    await asyncio.sleep(ends - time.time() + AROUND / 2)
    print(
        f"{count} streams that end together: {sum(not task.done() for task in watched)} renewed in time; "
        f"the agent's CPU for it: {cpu_of(here.world.agent.pid) - before:.2f} s"
    )
    for task in watched:
        task.cancel()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--life", type=int, default=40, help="seconds that the first credentials live")
    options = parser.parse_args()
    with (
        standing() as target,
        own_bench(target, "live-renew", override={"audit": {"path": "none"}}) as here,
    ):
        asyncio.run(measure(here, options.streams, options.life))


if __name__ == "__main__":
    main()
