"""Measure the speed of the generator itself: `python -m benchmarks.loop`.

Four figures. A closed loop in a single process against HAProxy that answers by itself, beside `wrk` (a C
client, one thread) in the same minutes, taking turns. Questions a second straight to the reference agent,
pipelined, and the CPU time of both ends. What recording costs for each of the three latencies of an answer.
And p50 at 2,000 a second against a server that writes down the truth.
"""

import re
import shutil
import statistics
import subprocess
import sys
import time

from truth import Compared

from iamroles_loadtests.asking import targets
from iamroles_loadtests.bench.agent import NOOP, opened_bench
from iamroles_loadtests.measuring.conductor import Conductor, RunOptions
from iamroles_loadtests.measuring.generator import Generator
from iamroles_loadtests.measuring.measurement import Measurement
from iamroles_scenarios.stage.reference import reference_agent
from iamroles_scenarios.traffic import Case, Records

ROUNDS, SECONDS = 5, 2.0


def plain():
    """HAProxy against this process's loop and wrk, in turn; a median of each, requests a second."""
    ours, theirs = [], []
    with opened_bench("processes", None) as bench:
        where = f"http://{bench.through(NOOP, '--plain').address}/"
        target = targets.url(where)
        with Generator(target.pools) as generator:
            conductor = Conductor(target, generator, RunOptions(warmup=0.3))
            for _ in range(ROUNDS):
                ours.append(conductor.play(conductor.phase("c", 0.0, SECONDS)).answered)
                if shutil.which("wrk"):
                    theirs.append(wrk(where))
    return statistics.median(ours), statistics.median(theirs or [0.0])


def wrk(where):
    said = subprocess.run(
        ["wrk", "-t1", "-c64", f"-d{SECONDS:g}", where],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(re.search(r"Requests/sec:\s+([\d.]+)", said.stdout)[1])


def spop():
    """Questions a second straight to the agent, 4 connections with 16 under way; CPU µs of both ends."""
    wanted = targets.Wanted(seconds=60.0)
    with (
        targets.gate(reference_agent(), wanted, kind="processes", straight_on=True) as target,
        Generator(target.pools) as generator,
    ):
        conductor = Conductor(target, generator, RunOptions(warmup=0.3, connections=4, in_flight=16))
        found = [conductor.play(conductor.phase("c", 0.0, SECONDS)) for _ in range(ROUNDS)]
    return [
        statistics.median(values)
        for values in (
            [one.answered for one in found],
            [one.cpu["agent"] for one in found],
            [one.cpu["generator"] for one in found],
        )
    ]


def recording(count=400_000):
    """Nanoseconds for each latency, of three an answer: packing, and folding afterwards."""
    records, at = Records(), time.time_ns()
    begun = time.perf_counter()
    for number in range(count):
        records.add(0, at, at + 5, at + number, at + number + 9, 3, -1)
    packed = time.perf_counter() - begun
    begun = time.perf_counter()
    Measurement(begin=at).record(records.take(), [Case("x")])
    folded = time.perf_counter() - begun
    return packed / count / 3 * 1e9, folded / count / 3 * 1e9


def main():
    ours, theirs = plain()
    ratio = f", {ours / theirs:.2f} of wrk's {theirs:,.0f}" if theirs else "; wrk is not installed"
    sys.stdout.write(f"HTTP, closed loop, plain HAProxy: {ours:,.0f} requests/s{ratio}\n")
    rate, agent, own = spop()
    sys.stdout.write(
        f"SPOP, 4 x 16, the agent: {rate:,.0f} questions/s; CPU for each: {agent:.1f} µs of the agent, "
        f"{own:.1f} µs of the generator\n"
    )
    packed, folded = recording()
    sys.stdout.write(f"recording a latency: {packed:.0f} ns, and {folded:.0f} ns to fold it afterwards\n")
    found = Compared("quick", 2_000, 5.0)
    got, true = found.figures[50]
    sys.stdout.write(f"p50 at 2,000/s: {got:.1f} µs, the server's own record {true:.1f} µs\n")


if __name__ == "__main__":
    main()
