"""Expiry: a stream that was allowed ends with its credential, whatever it is and whatever it does."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack, closing

from iamroles_scenarios.checks.live.stream import KINDS, ObservedStream, Stream, StreamShape
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import EARLY, Bench, bench
from iamroles_scenarios.engine.target import Target

LIFE = 4.0
"""Seconds, times the scale, of a credential whose end is waited for."""
_STRETCH, _LONGEST = 3.0, 27.0
"""How far lives are stretched, and their longest, seconds: HAProxy ends an idle upload after 30 s."""
AFTER = 1.0
"""Seconds, times the scale, in which a stream must be over. The distribution is measured by a benchmark."""
OPEN = 3.0
SHAPES = tuple(StreamShape(kind, busy) for kind in KINDS for busy in (True, False))


def stretched(here: Bench, seconds: float) -> float:
    """Return the seconds that a stream may live, on a slow host more."""
    return min(seconds * min(here.target.scale, _STRETCH), _LONGEST)


def end(here: Bench, seconds: float = LIFE) -> int:
    """Return a token's `exp`: epoch seconds."""
    return math.ceil(time.time() + stretched(here, seconds))


def opened(
    here: Bench, stack: ExitStack, shape: StreamShape, token: str, path: str = "/live/reader"
) -> Stream:
    """A stream that is under way."""
    stream = stack.enter_context(closing(Stream(here, shape, path, token)))
    if not stream.opened(here.seconds(OPEN)):
        here.in_time(stream.expires, f"the begin of {shape}")
        raise here.failed(f"{shape} did not begin: status {stream.status or 'none'}")
    return stream


def ended(here: Bench, stream: ObservedStream, due: float, what: str) -> None:
    """It must be over soon after a moment, and not before."""
    if not stream.until(due + here.seconds(AFTER)):
        raise here.failed(f"{stream.shape}: still open {AFTER:g} s after {what}")
    if stream.ended < due - EARLY:
        raise here.failed(f"{stream.shape}: ended {due - stream.ended:.2f} s before {what}")


@check("live.expiry.ends", "LIVE-EXPIRY-001", "LIVE-IDLE-001", features={"live"})
def expiry(target: Target) -> None:
    """WebSockets, event streams, downloads and uploads end when their token expires, busy or idle.

    All at once, next to one whose token lasts: that one goes on.
    """
    with bench(target, "live", "live.expiry") as here, ExitStack() as stack:
        lasting = opened(here, stack, StreamShape("websocket"), here.token(exp="+15m"))
        short = [opened(here, stack, shape, here.token(exp=end(here))) for shape in SHAPES]
        for stream in short:
            ended(here, stream, stream.expires, "its token's end")
        if not lasting.moves(here.seconds(OPEN)):
            raise here.failed("a WebSocket whose token lasts was ended as well")


@check("live.expiry.late-answer", "LIVE-EXPIRY-002", features={"live"})
def late(target: Target) -> None:
    """A stream that was idle for long passes nothing after its token's end.

    A WebSocket is busy, falls silent, and its silence is younger than any timeout when the token ends.
    """
    with bench(target, "live", "live.late") as here, ExitStack() as stack:
        stream = opened(here, stack, StreamShape("websocket", busy=False), here.token(exp=end(here)))
        stream.until(stream.expires - here.seconds(1.0))
        if not stream.moves(here.seconds(0.5), stream.say):
            here.in_time(stream.expires, "an echo before its token's end")
            raise here.failed("a WebSocket does not echo before its token's end")
        ended(here, stream, stream.expires, "its token's end")


@check("live.refused.elsewhere", "LIVE-REFUSE-001", features={"live"})
def elsewhere(target: Target) -> None:
    """Where streams may not live, an upgrade and an event stream are refused.

    Both are refused with 403, a plain request passes.
    """
    with bench(target, "live", "live.elsewhere") as here, ExitStack() as stack:
        token = here.token(exp="+15m")
        for kind in ("websocket", "events"):
            stream = stack.enter_context(closing(Stream(here, StreamShape(kind), "/plain/a", token)))
            if (status := stream.answered(here.seconds(OPEN))) != 403:
                raise here.failed(f"{kind} to a backend without streams: status {status}, expected 403")
        download = opened(here, stack, StreamShape("download"), here.token(exp=end(here)), "/plain/a")
        ended(here, download, download.expires, "its token's end")
