"""100,000 identities, their memory and their pauses: `python -m benchmarks.identities`.

Each is a token of its own, verified as any other. Memory is what the process grew by, for each of them, and
what the cache itself believes. A pause is the longest that one call kept the event loop, in CPU time of its
thread, so that a busy host does not count: while they come, the collector's runs among them, and while all
are let go.
"""

import asyncio
import gc
import os
import sys
import time

from tokens_support import ED_KEY, NOW, ROLE, Clock, authenticator_with, claims, mint, public_jwk

from iamroles_scenarios.base.family import resident

COUNT = 100_000
KILOBYTES, PAUSE = 1.6, 5.0
"""Targets: of an identity; milliseconds."""


async def measure() -> tuple[float, float, float, float]:
    """Kilobytes of an identity, measured and believed; the longest pause as they come and as they go."""
    authenticator = authenticator_with([public_jwk(ED_KEY, "k1", "EdDSA")], Clock(), algorithms=["EdDSA"])
    gc.collect()
    gc.freeze()  # as the agent does once it has loaded
    before, longest, spent = resident(os.getpid()), 0.0, time.thread_time
    for number in range(COUNT):
        token = mint(
            claims(sub=f"user-{number}@example.com", jti=f"id-{number:032d}", exp=NOW + 600, roles=[ROLE]),
            ED_KEY,
            "EdDSA",
        )
        start = spent()
        await authenticator.authenticate(f"Bearer {token}")
        longest = max(longest, spent() - start)
    held, believed = authenticator.cached
    assert held == COUNT, "not all of them are held"
    grown = resident(os.getpid()) - before
    going, start = 0.0, spent()
    authenticator._cache.clear()
    over = time.monotonic() + 1.0
    while time.monotonic() < over:
        await asyncio.sleep(0)
        now = spent()
        going, start = max(going, now - start), now
    return grown / COUNT / 1000, believed / COUNT / 1000, longest * 1000, going * 1000


def main() -> int:
    """Print all; 1 if a target is missed."""
    size, believed, coming, going = asyncio.run(measure())
    sys.stdout.write(
        f"an identity of {COUNT:,}: {size:.2f} kB, {believed:.2f} by the cache (target {KILOBYTES:g})\n"
        f"longest pause: {coming:.1f} ms as they come, {going:.1f} ms as they go (target {PAUSE:g})\n"
    )
    return int(size > KILOBYTES or max(coming, going) > PAUSE)


if __name__ == "__main__":
    sys.exit(main())
