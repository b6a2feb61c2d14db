"""A million schedules of an agent: `python -m benchmarks.schedules --count 1000000`.

A schedule is a list of choices: a frame arrives, a thread ends, a reload, a revocation, a death. It is drawn
from a seed, and played on a virtual time in one process (`benchmarks.schedules.agent`), so it can be played
again. `--seed N` shrinks a failing schedule to the choices that matter, and prints what happens. `--mutants`
plants each ordering bug in turn, and `--twice` plays each schedule twice: exit status 1 if a bug is not
found, or a seed does not play the same schedule again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import itertools
import logging
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.schedules.agent import Agent
from benchmarks.schedules.checks import finish
from benchmarks.schedules.events import EVENTS, FAULTS, Choice, deliver, pass_time
from benchmarks.schedules.mutants import MUTANTS, planted
from iamroles_agent.base.errors import ConfigError
from iamroles_agent.control import policy_part
from iamroles_agent.control.channel import Frames, Message
from iamroles_agent.control.document import Part
from iamroles_agent.policy.compiled import Policy
from iamroles_agent.processes import fetcher, worker
from iamroles_agent.serving import gate
from iamroles_agent.tokens import authenticator, keys

LENGTH = 60
"""Choices of a schedule."""


def draw(seed: int) -> tuple[int, list[Choice]]:
    """The number of workers and the choices of a seed.

    Half of the schedules leave some kinds of faults out, so that what is left is met in deeper water.
    """
    chance = random.Random(seed)
    weights = {name: weight for name, (_, weight) in EVENTS.items()}
    if seed % 2:
        for name in chance.sample(FAULTS, 6):
            weights[name] = 0
    names = chance.choices(list(weights), weights.values(), k=LENGTH)  # type: ignore[arg-type]
    numbers = chance.randbytes(4 * LENGTH)
    return chance.choice((1, 2, 2, 3)), [
        (name, numbers[4 * at] << 8 | numbers[4 * at + 1], numbers[4 * at + 2] << 8 | numbers[4 * at + 3])
        for at, name in enumerate(names)
    ]


@dataclass
class Result:
    numbers: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[int, str]] = field(default_factory=list)
    """Seeds, and what was wrong."""

    def add(self, other: Result) -> None:
        self.numbers += other.numbers
        self.failed += other.failed

    def text(self) -> str:
        said = (
            "{schedules:,} schedules, {events:,} events, {answers:,} answers ({allowed:,} allowed), "
            "{reloads:,} reloads, {deaths:,} deaths of the agent"
        )
        return f"{said.format_map(self.numbers)}, {len(self.failed)} wrong"


_COUNTED = ("answers", "allowed", "reloads", "deaths")
"""Counts of an agent."""


def play(
    seed: int, workers: int, choices: list[Choice], trace: Callable[[str], None] | None = None
) -> tuple[Agent, int]:
    """Play a schedule; the agent, and how many events happened."""
    if next(_plays) % _BETWEEN == 0:
        gc.collect()  # never while one is played: see `virtual`
    random.seed(seed)
    agent, events = Agent(workers, trace), 0
    for name, x, y in choices:
        if agent.faults:
            return agent, events
        if EVENTS[name][0](agent, x, y) is False and not deliver(agent, x, y):
            pass_time(agent, x, y)
        events += 1
    if not agent.faults:
        finish(agent)
    return agent, events


_plays = itertools.count(1)
_BETWEEN = 16
"""Schedules between two looks for dead processes, which are cycles."""


def shrink(seed: int, workers: int, choices: list[Choice]) -> list[Choice]:
    """Choices that still go wrong, of which none can be left out."""
    size = max(len(choices) // 2, 1)
    while True:
        at, before = 0, len(choices)
        while at < len(choices):
            fewer = choices[:at] + choices[at + size :]
            if play(seed, workers, fewer)[0].faults:
                choices = fewer
            else:
                at += size
        if size == 1 and len(choices) == before:
            return choices
        size = max(size // 2, 1)


class _Wire(bytes):
    """A message that travels as it is: how it is cut in bytes does not concern a schedule."""

    said: Message


def _wire(said: Message) -> _Wire:
    wire = _Wire(b" ")
    wire.said = said
    return wire


@contextlib.contextmanager
def virtual() -> Iterator[None]:
    """Put virtual parts in place of what would wait, and share what is costly to build and never changes.

    The collector is off. A coroutine of a dead process ends where it is collected: what it then starts would
    be started in the loop that happens to run, and a seed would not play the same schedule again.
    """

    def once(make: Callable[..., Any], name: Callable[..., Any]) -> Callable[..., Any]:
        """Make it once for each name."""
        made: dict[Any, Any] = {}

        def get(*args: Any, **about: Any) -> Any:
            key = name(*args)
            if key not in made:
                made[key] = make(*args, **about)
            return made[key]

        return get

    decode = once(policy_part.decode, lambda part: part.digest)

    def build(part: Part) -> Policy:
        if Agent.ill:
            Agent.ill -= 1
            raise ConfigError([])
        return decode(part)

    keep, fields = functools.lru_cache(1 << 14), lambda it: tuple(getattr(it, at) for at in it.__slots__)
    rules = once(authenticator.rules_of, id)
    read_key = once(keys.parse_key, lambda jwk: (jwk["kid"], jwk["n"]))
    verifier = keys.Key.verifier
    verifies = once(lambda key, alg: keep(verifier(key, alg)), lambda key, _alg: key.material)

    patches: list[tuple[Any, str, Any]] = [
        (worker, "_exclusive", lambda _lock: contextlib.nullcontext()),
        (fetcher, "Transport", lambda: None),
        (policy_part, "decode", build),
        (policy_part, "decode_base", once(policy_part.decode_base, lambda part: part.digest)),
        (worker, "rules_of", rules),
        (authenticator, "rules_of", rules),
        (authenticator, "parse", keep(authenticator.parse)),
        (keys, "parse_key", lambda jwk: dataclasses.replace(read_key(jwk))),
        (keys.Key, "verifier", verifies),
        (gate, "prepare", once(gate.prepare, lambda said: (said.allow, said.reason, said.rule))),
        (gate, "ticket", once(gate.ticket, lambda *said: (*said[:-1], *fields(said[-1])))),
        (gate, "encode_verdict", once(gate.encode_verdict, lambda said, *more: (*fields(said), *more))),
        (Policy, "release", lambda self: None),
        (Message, "encode", _wire),
        (Frames, "receive", lambda self, data: iter((data.said,))),
        (sys, "unraisablehook", lambda _about: None),  # a coroutine of a process that died
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for owner, name, new in patches:
        setattr(owner, name, new)
    logging.disable(logging.CRITICAL)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()  # what is left of processes that died must not outlive the hook
        logging.disable(logging.NOTSET)
        for owner, name, old in before:
            setattr(owner, name, old)


def run(seeds: Iterable[int], *, until_failure: bool = False) -> Result:
    """Play the schedules of some seeds."""
    total = Result()
    for seed in seeds:
        agent, events = play(seed, *draw(seed))
        numbers = Counter({name: getattr(agent, name) for name in _COUNTED}, schedules=1, events=events)
        total.add(Result(numbers, [(seed, agent.faults[0])] if agent.faults else []))
        if total.failed and until_failure:
            break
    return total


def explain(seed: int) -> list[str]:
    """The shrunk schedule of a seed that fails, as it is read; empty if it does not fail."""
    workers, choices = draw(seed)
    if not play(seed, workers, choices)[0].faults:
        return []
    lines: list[str] = []
    choices = shrink(seed, workers, choices)
    play(seed, workers, choices, lines.append)
    head = f"seed {seed}: {len(choices)} of {LENGTH} choices matter, {workers} workers"
    return [head, *(f"  {choice}" for choice in choices), *lines]


def _start(mutant: str) -> None:
    """Prepare a process that plays: it goes on for all its life."""
    _whole.enter_context(virtual())
    _whole.enter_context(planted(mutant))
    run(range(20))
    _settle()


def _settle() -> None:
    """Keep what was made by now: parsed policies and tokens, which the collector need not look at again."""
    gc.unfreeze()  # the agents that still lived then have died
    gc.collect()
    gc.freeze()


def _portion(seeds: range) -> Result:
    result = run(seeds)
    _settle()
    return result


_whole = contextlib.ExitStack()
_PORTION = 500
_tell = functools.partial(print, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="how many schedules")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--seed", type=int, nargs="+", help="seeds whose schedules are explained")
    parser.add_argument("--mutant", default="", choices=("", *MUTANTS), metavar="NAME", help="a planted bug")
    parser.add_argument("--mutants", action="store_true", help="all bugs in turn: each must be found")
    parser.add_argument("--twice", action="store_true", help="each schedule twice: both must be the same")
    options = parser.parse_args()
    seeds = range(options.start, options.start + options.count)
    if options.seed or options.mutants or options.twice:
        with virtual(), planted(options.mutant):
            if options.seed:
                for seed in options.seed:
                    _tell("\n".join(explain(seed)) or f"seed {seed}: nothing is wrong")
                return 0
            return _all_found(seeds) if options.mutants else _same_again(seeds)
    total, began, reported = Result(), time.monotonic(), 0
    portions = [seeds[at : at + _PORTION] for at in range(0, options.count, _PORTION)]
    with multiprocessing.get_context("spawn").Pool(options.jobs, _start, (options.mutant,)) as pool:
        for result in pool.imap_unordered(_portion, portions):
            total.add(result)
            played = total.numbers["schedules"]
            if total.failed or played - reported >= 10_000 or played == options.count:
                reported = played
                rate = reported / (time.monotonic() - began)
                _tell(f"from seed {options.start}: {total.text()}; {rate:.0f} a second")
            if total.failed:
                pool.terminate()
                break
    for seed, what in sorted(total.failed)[:3]:
        _tell(
            f"seed {seed}: {what}\n`python -m benchmarks.schedules --seed {seed}` shows how it comes to that"
        )
    return 1 if total.failed else 0


def _all_found(seeds: range) -> int:
    """Plant each bug in turn; 1 if one is not found."""
    missed = 0
    for name in MUTANTS:
        with planted(name):
            failed = run((MUTANTS[name][-1], *seeds), until_failure=True).failed
        _tell(f"{name}: {'found by seed {}: {}'.format(*failed[0]) if failed else 'NOT FOUND'}")
        missed += not failed
    return int(missed > 0)


def _same_again(seeds: range) -> int:
    """Play all schedules, then all again after them, whose dead processes are collected some time."""
    lines: tuple[list[str], list[str]] = [], []
    for happened in lines:
        for seed in seeds:
            play(seed, *draw(seed), happened.append)
    same = lines[0] == lines[1]
    _tell(f"{len(lines[0])} lines, {'the same' if same else 'OTHERS'} the second time")
    return int(not same or len(lines[0]) < len(seeds) * LENGTH)
