"""A refresh storm, 10,000 random kids against the running agent: `python -m benchmarks.storm`.

One connection sends them at a steady rate, two others ask with good tokens meanwhile: with a token that the
agent knows, and with new tokens, each of them once. The issuer is a real local HTTP server that counts.
Three kinds of spell alternate, so that all see the same machine: quiet, storm, and as many forged tokens of a
known kid, which cost the agent work but no fetch, so that the refresh's share can be separated from load.

What must hold (JWKS-STORM-001): at most one fetch in each cooldown, and a p99 of good tokens within
twice its quiet value. The second is only worth something where the agent and this program have a core each
for themselves.
"""

import asyncio
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from running_agent import good_token, question
from spop_client import Client
from tokens_support import AUDIENCE, OTHER_EC_KEY, ROLE, Server, mint

from benchmarks.agent import frames, running

STORM, SPELLS = 10_000, 5
RATE = 1_000
"""Storm tokens a second."""
PAUSE = 0.004
"""Seconds between two good tokens of a connection."""
COOLDOWN = 2.0
TARGET = 2.0
ALLOWED = 0x11
"""The last byte of an ACK that allows: `allow`, a BOOL that is true."""


def bad(issuer: str, kid: str) -> bytes:
    """A token that is well formed, and signed by a key that the issuer never had."""
    claims = {"iss": issuer, "aud": AUDIENCE, "sub": "x", "exp": int(time.time()) + 600, "roles": [ROLE]}
    return frames(question(mint(claims, OTHER_EC_KEY, kid=kid)), 1)


def fresh(issuer: str, number: int) -> bytes:
    """A good token that the agent has not seen."""
    now = int(time.time())
    claims = {"iss": issuer, "aud": AUDIENCE, "sub": "u", "jti": f"n-{number}", "iat": now, "exp": now + 3000}
    return frames(question(mint(claims | {"roles": [ROLE]})), 1)


async def ask(client: Client, frame: bytes, *, allowed: bool) -> float:
    """Seconds until the answer, which must be the right one."""
    start = time.perf_counter()
    client.send(frame)
    body = await client.frame()
    elapsed = time.perf_counter() - start
    assert (body[-1] == ALLOWED) is allowed, "a wrong verdict"
    return elapsed


async def good(client: Client, batch: list[bytes]) -> list[float]:
    """Latencies of good tokens, one after the other."""
    latencies = []
    for frame in batch:
        latencies.append(await ask(client, frame, allowed=True))
        await asyncio.sleep(PAUSE)
    return latencies


async def storm(client: Client, batch: list[bytes]) -> None:
    """Send at `RATE`, whatever comes back; then all must have been refused."""

    async def read() -> None:
        for _ in batch:
            assert (await client.frame())[-1] != ALLOWED, "a storm token was let in"

    reader = asyncio.ensure_future(read())
    start = time.perf_counter()
    for number, frame in enumerate(batch):
        ahead = start + number / RATE - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        client.send(frame)
    await reader


async def run(address: str, server: Server) -> int:
    """Print what was seen; 1 if a target is missed."""
    issuer = server.url
    clients = [await Client.connect(address) for _ in range(3)]
    known = frames(question(good_token(issuer)), 1)
    while not await _serves(clients[0], known):  # noqa: ASYNC110 - the agent has no event to tell of its keys
        await asyncio.sleep(0.05)
    each = int(STORM / SPELLS / RATE / PAUSE)
    minted = [fresh(issuer, number) for number in range(each * 3 * (SPELLS + 1))]
    floods = {
        "forged": [bad(issuer, "k1") for _ in range(STORM)],
        "storm": [bad(issuer, secrets.token_hex(8)) for _ in range(STORM)],
    }
    seen: dict[tuple[str, str], list[float]] = {}
    fetched, began = server.counts["/jwks"], time.perf_counter()
    for spell in range(-1, SPELLS):  # the first one warms up
        for weather in ("quiet", "forged", "storm"):
            news, minted = minted[:each], minted[each:]
            tasks = [good(clients[0], [known] * each), good(clients[1], news)]
            if weather in floods and spell >= 0:
                share = STORM // SPELLS
                tasks.append(storm(clients[2], floods[weather][spell * share : (spell + 1) * share]))
            cached, uncached, *_ = await asyncio.gather(*tasks)
            if spell >= 0:
                seen.setdefault((weather, "cached"), []).extend(cached)
                seen.setdefault((weather, "uncached"), []).extend(uncached)
    fetched = server.counts["/jwks"] - fetched
    elapsed = time.perf_counter() - began
    allowance = int(elapsed / COOLDOWN) + 1
    sys.stdout.write(f"{STORM} random kids, {elapsed:.0f} s: {fetched} fetches, at most {allowance}\n")
    worst = 0.0
    for kind in ("cached", "uncached"):
        quiet, forged, rough = (p99(seen[weather, kind]) for weather in ("quiet", "forged", "storm"))
        worst = max(worst, rough / quiet)
        sys.stdout.write(
            f"{kind:<9} p99 quiet {quiet * 1e6:.0f} µs; in the storm {rough / quiet:.2f} times that "
            f"(target {TARGET:g}), under forged tokens {forged / quiet:.2f} times\n"
        )
    return int(fetched > allowance or worst > TARGET)


async def _serves(client: Client, frame: bytes) -> bool:
    client.send(frame)
    return (await client.frame())[-1] == ALLOWED


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def main() -> int:
    """Run the agent, its issuer and the storm."""
    os.environ.pop("IAMROLES_POLICY", None)
    keys = {"cooldown": f"{COOLDOWN:g}s"}
    with tempfile.TemporaryDirectory() as name, running(Path(name), keys=keys) as (ready, issuer):
        return uvloop.run(run(ready["address"], issuer))


if __name__ == "__main__":
    sys.exit(main())
