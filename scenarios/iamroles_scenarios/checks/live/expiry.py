"""Expiry: a stream that was allowed ends with its credential, of whatever kind it is, busy or idle."""

from __future__ import annotations

from contextlib import closing

from iamroles_scenarios.checks.live.fixture import EVENTS, EVERY, IDLE_SOCKET, OPEN, SOCKET, live_bench
from iamroles_scenarios.checks.live.stream import Stream, StreamShape
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target


@check("live.expiry.ends", "LIVE-EXPIRY-001", "LIVE-IDLE-001", features={"live"})
def expiry(target: Target) -> None:
    """WebSockets, event streams, downloads and uploads end when their token expires, busy or idle.

    All at once, next to one whose token lasts: that one goes on.
    """
    with live_bench(target, "live.expiry") as here:
        lasting = here.open(SOCKET, here.token(exp="+15m"))
        here.must_expire(here.open_short(EVERY))
        if not lasting.moves(here.seconds(OPEN)):
            raise here.failed("a WebSocket whose token lasts was ended as well")


@check("live.expiry.late-answer", "LIVE-EXPIRY-002", features={"live"})
def late(target: Target) -> None:
    """A stream that was idle for long passes nothing after its token's end.

    A WebSocket is busy, falls silent, and its silence is younger than any timeout when the token ends.
    """
    with live_bench(target, "live.late") as here:
        [stream] = here.open_short([IDLE_SOCKET])
        stream.until(stream.expires - here.seconds(1.0))
        if not stream.moves(here.seconds(0.5), stream.say):
            here.in_time(stream.expires, "an echo before its token's end")
            raise here.failed("a WebSocket does not echo before its token's end")
        here.must_expire([stream])


@check("live.refused.elsewhere", "LIVE-REFUSE-001", features={"live"})
def elsewhere(target: Target) -> None:
    """A backend without streams refuses an upgrade and an event stream.

    Both are refused with 403, a plain request passes.
    """
    with live_bench(target, "live.elsewhere") as here:
        token = here.token(exp="+15m")
        for shape in (SOCKET, EVENTS):
            with closing(Stream(here, shape, "/plain/a", token)) as stream:
                if (status := stream.answered(here.seconds(OPEN))) != 403:
                    raise here.failed(
                        f"{shape.kind} to a backend without streams: status {status}, expected 403"
                    )
        here.must_expire([here.open(StreamShape("download"), here.token(exp=here.end()), "/plain/a")])
