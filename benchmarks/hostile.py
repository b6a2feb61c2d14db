"""The request that costs the agent most, searched for: `python -m benchmarks.hostile`.

The law (SPEC.md section 2): a request of at most 16 kB without a valid credential costs the event loop less
than 1 ms beyond the one signature check that it may ask for, and any log less than 4 kB, and a byte costs the
same however many there are. Nobody can think of the worst request, so this climbs to it
(`tests/support/hostile_requests.py`), and prints what it finds with its cost for each byte. The seed and the
time are given; a search ends when its time does. Requests with a good credential, which come from no
stranger, are searched and reported separately.

`--with slow-redaction` or `--with slow-paths` puts an old fault back (a redaction pattern and a path index
that cost the square), and `--with no-limits` takes the length limits away: what the search then finds shows
that it can find.
"""

import argparse
import logging
import sys

from hostile_requests import (
    LOG_BYTES,
    MEMORY_BYTES,
    MILLISECONDS,
    Attack,
    Gene,
    Target,
    fault,
    growth,
    retained,
    search,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="of processor time, for each search")
    names = ["slow-redaction", "slow-paths", "no-limits"]
    parser.add_argument("--with", dest="faults", action="append", default=[], choices=names)
    options = parser.parse_args()
    target = Target()
    logging.getLogger().addHandler(target.lines)
    logging.getLogger().setLevel(logging.INFO)
    usual = target.cost(Attack("jwt", Gene((('{"iss":"x"}', 1),)), Gene((("/orders", 1),))), times=200)
    microseconds = usual.seconds * 1e6
    lines = [f"a usual refusal: {usual.size} bytes, {microseconds:.0f} us, {usual.log} bytes of log"]
    good = True
    with fault(*options.faults):
        for who, strangers, worth in (
            ("processor, strangers", True, lambda cost: cost.seconds),
            ("log, strangers", True, lambda cost: float(cost.log)),
            ("processor, a good credential", False, lambda cost: cost.seconds),
        ):
            attack, tried = search(
                target, options.seed, strangers=strangers, worth=worth, seconds=options.seconds
            )
            cost = target.cost(attack, times=25)
            lines.append(
                f"{who}: {tried} requests tried; the worst is {str(attack)[:300]}\n"
                f"    {cost.size} bytes, {cost.seconds * 1e3:.3f} ms (bound {MILLISECONDS:g}), "
                f"{cost.each:.1f} ns a byte, {growth(target, attack):.2f} times that of a quarter; "
                f"{cost.log} bytes of log (bound {LOG_BYTES})"
            )
            good = good and cost.seconds * 1e3 < MILLISECONDS and cost.log < LOG_BYTES
        left = retained(target, options.seed)
    lines += [f"seed {options.seed}; memory: 400 requests more leave {left} bytes (bound {MEMORY_BYTES})"]
    good = good and left < MEMORY_BYTES
    lines.append("the law holds" if good else "THE LAW IS BROKEN")
    sys.stdout.write("\n".join(lines) + "\n")
    return not good


if __name__ == "__main__":
    sys.exit(main())
