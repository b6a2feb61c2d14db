"""Faults of the set-up: an agent that ends by itself, refuses a world, or does not serve what it announces.
And a proxy that ends, which is never a failure of the agent.

One such fault explains many failures. Each check that it touches fails and names the fault as its `cause`
(`verdicts.explained`), and the run reports each cause once, with the agent's log (`findings`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iamroles_scenarios.base.errors import AgentFault, StageError
from iamroles_scenarios.declarations.results import CheckResult, Verdict, tails
from iamroles_scenarios.wire.asker import reach

if TYPE_CHECKING:
    from iamroles_scenarios.stage import World

_used: ContextVar[list[World] | None] = ContextVar("worlds that a check has used", default=None)
ENDING = 0.2
"""Seconds in which an agent whose check failed has ended, if it does: it closes its connections before."""
_CONNECT = 5.0
"""Seconds in which an agent takes a connection."""
_LINES = 6
"""Lines of the agent's log in a finding."""


@dataclass(frozen=True, slots=True)
class Ending:
    """An agent or a HAProxy that ended by itself."""

    cause: str
    """A sentence, the same for all that it explains."""
    log: str
    part: str = "agent"


def uses(world: World) -> None:
    """Note that what is being judged in this context has been given a world."""
    if (worlds := _used.get()) is not None:
        worlds.append(world)


@contextmanager
def watched() -> Iterator[list[World]]:
    """Collect the worlds that are used within."""
    worlds: list[World] = []
    token = _used.set(worlds)
    try:
        yield worlds
    finally:
        _used.reset(token)


def ended(worlds: Iterable[World], patience: float) -> Ending | None:
    """Return what ended by itself in these worlds, closed ones included, or None.

    Args:
        worlds: in the order of their use.
        patience: seconds in which an agent may still end.
    """
    for world in worlds:
        if (code := world.agent.ended(patience)) is not None:
            return Ending(f"the agent ended {in_words(code)} while it was judged", world.agent.logs())
        if (code := world.haproxy_ended()) is not None:
            cause = f"HAProxy ended {in_words(code)} while it was used, so that says nothing about the agent"
            return Ending(cause, world.haproxy.logs(), "haproxy")
    return None


def in_words(code: int) -> str:
    """Return an exit code in words; a negative one is the signal that ended it."""
    return f"with exit code {code}" if code >= 0 else f"by signal {-code}"


def findings(results: Iterable[CheckResult]) -> list[str]:
    """Return each cause once, in a sentence: how many checks it touched, the first of them, the log's end."""
    touched: dict[str, list[CheckResult]] = {}
    for result in results:
        if result.cause:
            touched.setdefault(result.cause, []).append(result)
    return [_sentence(cause, results) for cause, results in touched.items()]


def _sentence(cause: str, results: list[CheckResult]) -> str:
    count, first = f"{len(results)} check{'s' * (len(results) != 1)}", results[0]
    harness = first.verdict is Verdict.HARNESS_ERROR
    came = "could not be judged" if harness else "failed by that or before it"
    text = f"{cause.removesuffix('.')}: {count} {came}, {first.check} first."
    lines = first.evidence.logs.get("haproxy" if harness else "agent", "").splitlines()[-_LINES:]
    return "\n".join([f"{text} Its log ends:", *(f"  {line}" for line in lines)]) if lines else text


def answers(address: str, logs: dict[str, str]) -> None:
    """Connect to an agent: an address at which it does not listen must be found before a check blames SPOP.

    Raises:
        StageError: no connection, or not an address; with the end of the agent's log.
    """
    began = time.monotonic()
    if (why := refuses(address)) is not None:
        error = StageError(
            f"The agent's address {address!r} cannot be connected to: {why}. It must listen there, at "
            "host:port or unix:/path, before it says so.",
            tails(logs),
            "the address that the agent announces cannot be connected to",
        )
        if time.monotonic() - began >= _CONNECT:  # nobody refused it
            error.began = began
        raise error


def refuses(address: str) -> str | None:
    """Return why an address takes no connection, or None if it takes one."""
    try:
        reach(address, timeout=_CONNECT)
    except AgentFault as error:
        return error.message
    except (ValueError, OverflowError):
        return "it is not an address"
    return None
