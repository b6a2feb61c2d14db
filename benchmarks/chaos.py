"""Kills, freezes and starves an agent, under traffic and reloads: `python -m benchmarks.chaos`.

Each reload puts another policy in force; the rule that a verdict names says which. So each answer can be held
against the versions that may have been in force between its question and its arrival: from the last version
that
the agent said all had confirmed, to the last version that it got. Faults are those of a bad day:
members die by SIGKILL, stop by SIGSTOP, stutter, are starved by other work; the file is garbage; the key
server fails; now and then the whole agent is killed and started again, with garbage for a configuration.

An agent that refuses for want of anything better (`internal_error`), or whose connection breaks, gives no
verdict: that is counted, and printed. Exit status: 0, or 1 for a wrong verdict or a run too small to count.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from running_agent import good_token, question
from spop_client import Client
from spop_transcript import cut, hello, notify
from tokens_support import EC_KEY, Server, public_jwk, serving

from benchmarks.agent import world as world_of
from iamroles_agent.policy import load_text
from iamroles_agent.policy.compiled import version_of
from iamroles_agent.spop import actions
from iamroles_agent.spop.frames import FrameType
from iamroles_scenarios.base.family import children_of

PATHS = 8
PATIENCE = 5.0
"""Seconds for an answer, before the asker takes another connection."""
FAULTS = ("kill", "freeze", "stutter", "starve", "keys", "massacre", "agent")
WEIGHTS = (30, 25, 15, 8, 10, 7, 5)


@dataclass(slots=True)
class Attempt:
    """A reload that was asked for."""

    mark: int
    sent: float
    ended: float | None = None
    ok: bool = False


@dataclass(slots=True)
class Ledger:
    """The policies that may have been in force, and the wrong answers."""

    seed: int
    attempts: list[Attempt] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def opens(self, mark: int, path: int) -> bool:
        """Return whether the policy of this mark grants that path."""
        return random.Random(f"{self.seed} {mark} {path}").random() < 0.5

    def possible(self, start: float, end: float) -> set[int]:
        """Marks that may have been in force in a span of time."""
        confirmed = [a.mark for a in self.attempts if a.ok and a.ended is not None and a.ended <= start]
        low = confirmed[-1]
        return {
            a.mark
            for a in self.attempts
            if a.mark == low
            or (a.mark > low and a.sent <= end and (a.ok or a.ended is None or a.ended > start))
        }

    def judge(self, path: int, start: float, said: dict[str, Any]) -> None:
        """Hold one answer against what may have been in force."""
        self.counts["questions"] += 1
        reason = said.get("reason", b"").decode() if said.get("reason") else ""
        if reason == "internal_error":
            self.counts["internal_error"] += 1
            return
        possible = self.possible(start, time.monotonic())
        if said.get("allow"):
            mark = int(said["rule"].decode().removeprefix("V").partition("-")[0])
            good = mark in possible and self.opens(mark, path)
        else:
            mark = -1
            good = reason == "no_grant" and any(not self.opens(one, path) for one in possible)
        self.counts["allowed" if mark >= 0 else "refused"] += 1
        if not good:
            self.wrong.append(f"path {path}: {reason or f'allowed by {mark}'}, possible were {possible}")


class World:
    """An agent, its files, its key server."""

    def __init__(self, server: Server, directory: Path, seed: int, workers: int) -> None:
        self.server, self.directory, self.workers = server, directory, workers
        self.ledger = Ledger(seed)
        self.chance = random.Random(seed)
        self.path = directory / "world.json"
        self.address = ""
        self.marks: dict[str, int] = {}
        self.mark = 0
        self.process: asyncio.subprocess.Process | None = None
        self.log = (directory / "log").open("ab")

    def text(self, mark: int) -> str:
        """The policy of a mark."""
        grants = [
            {"id": f"V{mark}-{path}", "roles": ["reader"], "methods": ["GET"], "path": f"/p{path}",
             "backend": "orders-ro"}
            for path in range(PATHS)
            if self.ledger.opens(mark, path)
        ]  # fmt: skip
        listen = self.address or "127.0.0.1:0"
        own = {
            "agent": {"listen": listen, "workers": self.workers, "drain_timeout": "1s", "state_dir": "state"},
            "audit": {"path": str(self.directory / "audit.jsonl"), "sync": "1s"},
            "keys": {"refresh": "1s", "cooldown": "1s", "timeout": "500ms"},
            "grants": grants,
        }
        text = json.dumps(world_of(self.server.url, self.directory) | own)
        self.marks[version_of(load_text(text, "json"))] = mark
        return text

    async def start(self, *, text: str | None) -> None:
        """Run the agent; its ready line says which policy is in force."""
        self.path.write_text("garbage" if text is None else text)
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "iamroles_agent", "agent", "run", "--config", str(self.path)),
            *("--state-dir", str(self.directory / "state")),
            stdout=asyncio.subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        ready = await self.line()
        self.address = str(ready["address"])
        mark, now = self.marks[str(ready["policy"])], time.monotonic()
        attempts = self.ledger.attempts
        if attempts:
            unknown = {a.mark for a in attempts if a.ended is None}
            confirmed = [a.mark for a in attempts if a.ok][-1]
            if mark != confirmed and mark not in unknown:
                self.ledger.wrong.append(f"started with {mark}, confirmed was {confirmed}")
        for attempt in attempts:
            attempt.ended = attempt.ended or now
        attempts.append(Attempt(mark, now, now, ok=True))

    async def line(self) -> dict[str, Any]:
        """The next line of the launch contract."""
        async with asyncio.timeout(60):
            return dict(json.loads(await self.process.stdout.readline()))

    async def reload(self) -> None:
        """Another policy, or garbage, and what the agent says of it."""
        if self.chance.random() < 0.1:
            self.path.write_text("garbage")
            self.process.send_signal(signal.SIGHUP)
            if (await self.line())["reloaded"] is not False:
                self.ledger.wrong.append("garbage was taken up")
            return
        self.mark += 1
        self.path.write_text(self.text(self.mark))
        attempt = Attempt(self.mark, time.monotonic())
        self.ledger.attempts.append(attempt)
        self.process.send_signal(signal.SIGHUP)
        if self.chance.random() < 0.3:  # the file changes while it is read: one of the two, and never a mix
            await asyncio.sleep(self.chance.random() * 0.05)
            self.path.write_text(self.text(self.mark))
        line = await self.line()
        attempt.ok, attempt.ended = line["reloaded"] is True, time.monotonic()
        if attempt.ok and self.marks[line["policy"]] != self.mark:
            self.ledger.wrong.append(f"confirmed {line['policy']}, the file had {self.mark}")
        self.ledger.counts["reloads" if attempt.ok else "reloads refused"] += 1
        if attempt.ok and line["confirmed"] < self.workers:
            self.ledger.counts["reloads confirmed by some"] += 1

    async def fault(self, what: str) -> None:
        """One fault, bounded in time."""
        self.ledger.counts["faults"] += 1
        self.ledger.counts[f"fault {what}"] += 1
        if not (victims := children_of(self.process.pid)):
            return  # all are dead just now; a signal to process 0 would reach the whole group of the tests
        victim = self.chance.choice(victims)
        with contextlib.suppress(ProcessLookupError):
            match what:
                case "kill":
                    os.kill(victim, signal.SIGKILL)
                case "freeze":
                    os.kill(victim, signal.SIGSTOP)
                case "stutter":
                    for _ in range(10):
                        os.kill(victim, signal.SIGSTOP)
                        await asyncio.sleep(0.1)
                        os.kill(victim, signal.SIGCONT)
                        await asyncio.sleep(0.02)
                case "massacre":
                    for one in victims:
                        os.kill(one, signal.SIGKILL)
                case "starve":
                    await self._starve()
                case "keys":
                    good = self.server.replies["/jwks"]
                    self.server.replies["/jwks"] = lambda _: (500, {}, b"")
                    await asyncio.sleep(1.5)
                    self.server.replies["/jwks"] = good
                case _:
                    await self._kill_agent()

    async def _starve(self) -> None:
        hogs = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", "import time\nend = time.time() + 2\nwhile time.time() < end: pass"
            )
            for _ in range(4)
        ]
        for hog in hogs:
            await hog.wait()

    async def _kill_agent(self) -> None:
        """The whole agent dies; a file that is garbage must not matter."""
        self.process.kill()
        await self.process.wait()
        await asyncio.sleep(1.2)  # its members find that they have no parent, and end
        for _ in range(50):
            try:
                await self.start(text=None)
            except (json.JSONDecodeError, ValueError):
                await asyncio.sleep(0.2)  # the port or a file is still a member's
            else:
                return
        raise RuntimeError("the agent did not start again; see its log")


class Caller:
    """One connection that asks, and takes another one when it breaks."""

    def __init__(self, world: World, tokens: list[str]) -> None:
        self.world, self.tokens = world, tokens
        self.chance = random.Random(world.chance.random())

    async def run(self) -> None:
        while True:
            try:
                await self._ask()
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                self.world.ledger.counts["connections lost"] += 1
                await asyncio.sleep(0.02)

    async def _ask(self) -> None:
        client = await Client.connect(self.world.address, greet=False)
        try:
            async with asyncio.timeout(PATIENCE):
                client.send(hello())
                await client.frame()
            for _ in range(self.chance.randint(20, 400)):
                path = self.chance.randrange(PATHS)
                check = question(self.chance.choice(self.tokens), f"/p{path}/x")
                start = time.monotonic()
                async with asyncio.timeout(PATIENCE):
                    client.send(notify(check))
                    (raw,) = cut(await client.frame())
                if raw.type != FrameType.ACK:
                    return  # it said goodbye
                variables = actions.decode(raw.data[raw.start : raw.end])
                said = {action.name: action.value for action in variables if action.kind is not None}
                self.world.ledger.judge(path, start, said)
                await asyncio.sleep(0.005)
        finally:
            await client.close()


async def play(world: World, options: argparse.Namespace) -> None:
    """Start, ask, reload and break things until there was enough of all."""
    counts = world.ledger.counts
    await world.start(text=world.text(0))
    tokens = [good_token(world.server.url) for _ in range(options.tokens)]
    askers = [asyncio.create_task(Caller(world, tokens).run()) for _ in range(options.askers)]
    end, turn = time.monotonic() + 60 * options.minutes, asyncio.Lock()

    def enough() -> bool:
        sizes = ("questions", options.questions), ("reloads", options.reloads), ("faults", options.faults)
        done = all(counts[name] >= wanted for name, wanted in sizes)
        return time.monotonic() > end or (options.stop_early and done)

    async def reloads() -> None:
        while not enough():
            async with turn:  # not while the agent is being started again
                await world.reload()
            await asyncio.sleep(options.pause * world.chance.random())

    async def faults() -> None:
        while not enough():
            await asyncio.sleep(2 * options.pause * world.chance.random())
            what = world.chance.choices(FAULTS, WEIGHTS)[0]
            # Half of the faults may strike in the middle of a reload; the whole agent dies only between two.
            between = what == "agent" or world.chance.random() < 0.5
            async with turn if between else contextlib.nullcontext():
                await world.fault(what)

    await asyncio.gather(reloads(), faults())
    for asker in askers:
        asker.cancel()
    await asyncio.gather(*askers, return_exceptions=True)
    with contextlib.suppress(ProcessLookupError):
        world.process.terminate()
    async with asyncio.timeout(30):
        await world.process.wait()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--askers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument(
        "--pause", type=float, default=2.0, help="the longest pause between two reloads, seconds"
    )
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--reloads", type=int, default=50)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--stop-early", action="store_true", help="end when there was enough of all")
    options = parser.parse_args(argv)
    sys.stdout.write(f"seed {options.seed}, {options.workers} workers\n")
    with tempfile.TemporaryDirectory() as name, serving() as server:
        server.json("/jwks", {"keys": [public_jwk(EC_KEY, "k1")]})
        world = World(server, Path(name), options.seed, options.workers)
        try:
            asyncio.run(play(world, options))
        except BaseException:
            sys.stdout.write((Path(name) / "log").read_text()[-4000:])
            raise
        finally:
            if world.process is not None and world.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    world.process.kill()
            world.log.close()
    counts = world.ledger.counts
    sys.stdout.write("".join(f"{name}: {count}\n" for name, count in sorted(counts.items())))
    small = [name for name in ("questions", "reloads", "faults") if counts[name] < getattr(options, name)]
    for name in small:
        sys.stdout.write(f"too few {name}: this run does not count\n")
    for sentence in world.ledger.wrong[:20]:
        sys.stdout.write(f"WRONG {sentence}\n")
    sys.stdout.write(f"{len(world.ledger.wrong)} wrong verdicts\n")
    return int(bool(world.ledger.wrong or small))


if __name__ == "__main__":
    sys.exit(main())
