"""The cost of a stranger's request for agent and HAProxy together: `python -m benchmarks.strangers`.

One HAProxy, one agent and one STS, on loopback. For each kind of request a search of `--seconds` looks for
the text that costs most CPU. The worst then takes turns with a request without a token, and the table has the
ratio. No bound on one request helps if STS must be asked, so the second table says how long callers whose
first credential is sound wait beside `--flood` connections that send forged ones all the time.
"""

import argparse
import asyncio
import random
import socket
import statistics
import sys

from stranger_requests import FLOODER, FORGED, FakeSts, cost, flooded, kinds, worst
from sts_support import HOST

from benchmarks.live import percentiles, standing
from iamroles_loadtests.measuring.conductor import in_turn
from iamroles_scenarios.engine.bench import EDGE, own_bench

EACH, SOUND, TARGET = 160, 40, 10.0
ELSEWHERE = "127.0.0.3"


async def run(here, options, listener):
    await asyncio.get_running_loop().create_server(FakeSts, sock=listener)
    chance, made, missed = random.Random(options.seed), kinds(here), 0
    await cost(here, made["none"], "", EACH)
    for name, make in made.items():
        text = await worst(here, make, options.seconds, chance)
        took = {"none": [], name: []}
        for _, one in in_turn(list(took), options.rounds):
            took[one].append(await cost(here, made[one], text, EACH))
        plain, mine = (statistics.median(took[one]) for one in ("none", name))
        missed += mine > TARGET * plain and name != FORGED
        sys.stdout.write(f"{name:20} {mine:7.0f} us {mine / plain:5.1f} times {text[:24]!r} x {len(text)}\n")
    for name in ("none", "signature ES256", FORGED):
        for source in (ELSEWHERE, FLOODER):
            count = 0 if name == "none" else options.flood
            waits, took = await flooded(here, made[name], count, source, callers=SOUND, pause=options.pause)
            served = f"{len(waits)} of {SOUND} served, {percentiles(waits)}"
            sys.stdout.write(f"{count} x {name}, {source}: {served}; {took:.0f} us a request\n")
    sys.stdout.write(f"STS was asked {FakeSts.asked} times\n")
    return missed


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each search")
    parser.add_argument("--rounds", type=int, default=7, help="of the two that take turns")
    parser.add_argument("--flood", type=int, default=400, help="connections")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two requests of each")
    options = parser.parse_args()

    listener = socket.create_server(("127.0.0.1", 0))
    endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
    sts = {
        "name": "fake",
        "endpoint": endpoint,
        "hosts": [HOST],
        "binding_value": EDGE,
        "insecure_http": True,
    }
    override = {"sts": [sts], "audit": {"path": "none"}}
    with standing() as target, own_bench(target, "orders", override=override) as here:
        here.world.haproxy  # noqa: B018 - started
        return int(asyncio.run(run(here, options, listener)) > 0)


if __name__ == "__main__":
    sys.exit(main())
