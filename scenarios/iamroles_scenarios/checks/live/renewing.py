"""Renewal: a fresh credential prolongs streams where the policy says so, and not one second more."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from iamroles_scenarios.base.errors import CheckFailed
from iamroles_scenarios.checks.live.expiry import AFTER, SHAPES, end, ended, opened, stretched
from iamroles_scenarios.checks.live.revoking import WITHIN, revoke
from iamroles_scenarios.checks.live.stream import Stream, StreamShape, expiry_of
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.engine.target import Target

FEATURES = {"live", "renew"}
WORLD = "live-renew"
RENEWING, ENDING = "/renewing", "/ending"
_LIFE = 5.0
"""Seconds, times the scale."""
_AHEAD = 1.0
"""Seconds before a stream's end by which what prolongs it must have been seen (9.8)."""
FEW = (
    StreamShape("websocket"),
    StreamShape("websocket", busy=False),
    StreamShape("events"),
    StreamShape("upload"),
)


def token(here: Bench, sub: str, **recipe: Any) -> str:  # noqa: ANN401 - a token's recipe
    """A credential of a person's one session."""
    claims = {"sid": f"session of {sub}", **recipe.pop("claims", {})}
    return here.token(sub=sub, claims=claims, **recipe)


def ask(here: Bench, streams: Iterable[Stream], fresh: str, path: str = RENEWING) -> None:
    """Ask with a fresh credential, which must be allowed, in time for these streams."""
    what = "a question with a fresh credential"
    try:
        here.expect(what, fresh, Expectation(backend=path[1:]), path=path)
    except CheckFailed:
        here.in_time(expiry_of(fresh), what)
        raise
    for stream in streams:
        here.in_time(stream.expires - _AHEAD, what)


def begun(
    here: Bench,
    stack: ExitStack,
    sub: str,
    shapes: Iterable[StreamShape],
    **recipe: Any,  # noqa: ANN401 - a token's recipe
) -> list[Stream]:
    """Streams of a person whose credentials end together: one that ends later would prolong the others."""
    ends = end(here, _LIFE)
    return [opened(here, stack, shape, token(here, sub, exp=ends, **recipe), RENEWING) for shape in shapes]


def outlives(here: Bench, stream: Stream, until: float, what: str) -> None:
    """It must be open, and move where it is busy, a while after its first credential's end.

    The judge must look before the end of the credential that prolonged it.
    """
    if stream.until(stream.expires + here.seconds(AFTER)):
        here.in_time(until, f"{stream.shape} after its first credential's end")
        raise here.failed(
            f"{stream.shape}: ended {stream.ended - stream.expires:+.2f} s from its first credential's end "
            f"although {what}"
        )
    if stream.shape.busy and not stream.moves(here.seconds(AFTER)):
        here.in_time(until, f"what moves on {stream.shape} after its first credential's end")
        raise here.failed(f"{stream.shape}: open, but nothing passes although {what}")


@check("live.renew.prolongs", "LIVE-RENEW-001", "LIVE-RENEW-005", features=FEATURES)
def prolongs(target: Target) -> None:
    """A fresh credential prolongs streams up to its own expiry; a shorter one changes nothing.

    One question each with a longer and with a shorter credential.
    """
    with bench(target, WORLD, "live.renew") as here, ExitStack() as stack:
        until = end(here, 9)
        longer = begun(here, stack, "ann", SHAPES)
        same = begun(here, stack, "ben", FEW)
        ask(here, same, token(here, "ben", exp=end(here, 1)))
        ask(here, longer, token(here, "ann", exp=until))
        for stream in same:
            ended(here, stream, stream.expires, "its token's end, with a shorter one seen since")
        for stream in longer:
            outlives(here, stream, until, "a fresh credential was seen in time")
        for stream in longer:
            ended(here, stream, until, "the end of the credential that prolonged it")


@check("live.renew.elsewhere", "LIVE-RENEW-002", features=FEATURES)
def elsewhere(target: Target) -> None:
    """A backend that does not renew ends its streams with the credential that opened them.

    Fresh credentials are seen there, and in the backend that renews.
    """
    with bench(target, WORLD, "live.renew") as here, ExitStack() as stack:
        streams = [
            opened(here, stack, shape, token(here, "cat", exp=end(here, _LIFE)), ENDING) for shape in SHAPES
        ]
        for path in (ENDING, RENEWING):
            ask(here, streams, token(here, "cat", exp="+15m"), path)
        for stream in streams:
            ended(here, stream, stream.expires, "its token's end, where nothing is renewed")


@check("live.renew.others", "LIVE-RENEW-003", features=FEATURES)
def others(target: Target) -> None:
    """Another principal's, session's or role's credential prolongs no stream.

    Three people's streams, and for each a credential that differs in one thing.
    """
    with bench(target, WORLD, "live.renew") as here, ExitStack() as stack:
        strangers: dict[str, dict[str, Any]] = {
            "principal": {"sub": "eve"},
            "session": {"claims": {"sid": "another"}},
            "role": {"roles": ["writer"]},
        }
        streams = []
        for what, differs in strangers.items():
            who: dict[str, Any] = {"sub": f"dan-{what}", "claims": {"sid": f"session of dan-{what}"}}
            own = begun(here, stack, f"dan-{what}", FEW[:2])
            streams += [(what, stream) for stream in own]
            ask(here, own, here.token(exp="+15m", **{**who, **differs}))
        for what, stream in streams:
            ended(here, stream, stream.expires, f"its token's end, with another {what}'s seen since")


@check("live.renew.revoked", "LIVE-RENEW-004", "LIVE-RENEW-005", features=FEATURES)
def revoked(target: Target) -> None:
    """A revocation of either credential ends a stream that was prolonged, and prevents that it is.

    One revocation spares what was issued since: of each pair of credentials it is about one alone.
    """
    live = {"revocations": "revocations.toml"}
    with bench(target, WORLD, "live.renew.revoked", own=True, live=live) as here, ExitStack() as stack:
        revoke(here)
        bound = int(time.time()) - 30
        old, new = {"iat": "-60s"}, {"iat": "-5s"}

        def pair(sub: str, first: dict[str, str], then: dict[str, str]) -> list[Stream]:
            found = begun(here, stack, sub, FEW, **first)
            ask(here, found, token(here, sub, exp="+10m", **then))
            return found

        before = pair("fay", new, old)
        revoke(here, principals=["fay"], issued_before=bound)
        reached = min(stream.expires for stream in before) - stretched(here, WITHIN - AFTER)
        here.in_time(reached, "a revocation before a stream's end")
        for stream in before:
            ended(here, stream, stream.expires, "its token's end: what was to prolong it is revoked")
        opening, prolonging, spared = pair("gus", old, new), pair("hal", new, old), pair("ida", new, new)
        for stream in (*opening, *prolonging, *spared):
            outlives(here, stream, math.inf, "a fresh credential was seen in time")
        revoke(here, principals=["gus", "hal", "ida"], issued_before=bound)
        due = time.time() + here.seconds(WITHIN)
        for which, streams in (("opened", opening), ("prolonged", prolonging)):
            for stream in streams:
                if not stream.until(due):
                    raise here.failed(
                        f"{stream.shape}: open {WITHIN:g} s after the credential that {which} it was revoked"
                    )
        for stream in spared:
            if stream.until(time.time() + AFTER):
                raise here.failed(f"{stream.shape}: ended, though neither credential is revoked")


@check("live.renew.restarts", "LIVE-RENEW-001", "LIVE-RENEW-006", features=FEATURES)
def over(target: Target) -> None:
    """Renewal reaches streams of before a reload of the proxy, and outlives the agent that did it.

    Reload the proxy, renew, kill the agent and start it anew; at last kill it for good.
    """
    with bench(target, WORLD, "live.renew.restarts", own=True) as here, ExitStack() as stack:
        until = end(here, 20)
        streams = begun(here, stack, "jon", FEW)
        here.world.haproxy.reload()
        ask(here, streams, token(here, "jon", exp=until))
        for stream in streams:
            outlives(here, stream, until, "a fresh credential was seen after the reload")
        here.world.agent.kill()
        here.world.agent.start()
        here.world.haproxy.wait_agent(up=True, within=here.seconds(15.0))
        for stream in streams:
            ended(here, stream, until, "the end of the credential that prolonged it")
        later = end(here, 12)
        [alone] = streams = begun(here, stack, "kim", FEW[:1])
        ask(here, streams, token(here, "kim", exp=later))
        here.world.agent.kill()
        # The agent may have renewed it at once.
        due = alone.expires if alone.until(alone.expires + here.seconds(AFTER)) else later
        ended(here, alone, due, "its token's end, or that of the one seen since, without an agent")
