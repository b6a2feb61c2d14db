"""Expiry: a stream that was allowed ends with its credential, of whatever kind it is, busy or idle.

It ends also after losses: of the agent, a process of it, one of two agents, the proxy, or its worker.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterable
from contextlib import closing

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.checks.live import fixture
from iamroles_scenarios.checks.live.fixture import EVENTS, EVERY, FEW, OPEN, SOCKET, LiveBench, live_bench
from iamroles_scenarios.checks.live.multiplexed import H2Client
from iamroles_scenarios.checks.live.stream import Stream
from iamroles_scenarios.checks.policy.workers import deaths
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

LIFE = 6.0
_Pair = tuple[list[Stream], list[Stream]]
_FROZEN = 7.0
"""Seconds that a worker stands after a change: an agent may look at what is new for some seconds only."""
_KNOWN = 0.7
"""Seconds, times the scale, after a reload of the proxy in which an agent has found both workers."""
HALT, _SOON = 2.0, 0.5
"""Seconds, times the scale: of the proxy's halt, more than `AFTER`, and from it to another stream's end."""
_MOMENTS, _LATE = range(5), 2 / 3
"""Seconds at which streams end, and the part of them that may be late by the host alone (9.17)."""
_LAST, _CUT = 3.0, 10.0
"""Seconds, times the scale: of the credential that ends after a death, and in which a revocation cuts."""


@check("live.expiry.ends", "LIVE-EXPIRY-001", "LIVE-IDLE-001", features={"live"})
def expiry(target: Target) -> None:
    """WebSockets, event streams, downloads and uploads end when their token expires, busy or idle.

    So do a download that answers a body which has ended, and a WebSocket whose client has closed its side.
    All at once, next to one whose token lasts: that one goes on.
    """
    with live_bench(target, "live.expiry") as here:
        lasting = here.open(SOCKET, here.token(exp="+15m"))
        here.must_expire(here.open_short((*EVERY, *fixture.HALF, fixture.REPLY)))
        if not lasting.moves(here.seconds(OPEN)):
            raise here.failed("a WebSocket whose token lasts was ended as well")


@check("live.expiry.late-answer", "LIVE-EXPIRY-002", features={"live"})
def late(target: Target) -> None:
    """A stream that was idle for long passes nothing after its token's end.

    A WebSocket is busy, falls silent, and its silence is younger than any timeout when the token ends.
    """
    with live_bench(target, "live.late") as here:
        [stream] = here.open_short([fixture.IDLE_SOCKET])
        stream.until(stream.expires - here.seconds(1.0))
        if not stream.moves(here.seconds(0.5), stream.say):
            here.in_time(stream.expires, "an echo before its token's end")
            raise here.failed("a WebSocket does not echo before its token's end")
        here.must_expire([stream])


@check("live.refused.elsewhere", "LIVE-REFUSE-001", features={"live"})
def elsewhere(target: Target) -> None:
    """A backend without streams refuses an upgrade and an event stream.

    Both are refused, also over HTTP/2, with whatever status; each of two long downloads ends with its token.
    """
    with live_bench(target, "live.elsewhere") as here:
        token = here.token(exp="+15m")
        for shape in (SOCKET, EVENTS):
            with closing(Stream(here, shape, "/plain/a", token)) as stream, closing(H2Client(here)) as line:
                for one in (stream, *(line.stream(shape, "/plain/a", token) for _ in line.offered([shape]))):
                    if (status := one.answered(here.seconds(OPEN))) < 400:
                        raise here.failed(f"{one} to a backend without streams: status {status}, no refusal")
        tokens = [here.token(exp=here.end(turn * fixture.LIFE)) for turn in (1, 2)]  # a rare look misses one
        here.must_expire([here.open(fixture.DOWNLOAD, token, "/plain/a") for token in tokens])


@check("live.expiry.no-agent", "LIVE-ALONE-001", features={"live"})
def alone(target: Target) -> None:
    """Streams end with their token even if no agent lives, and a stream whose token lasts goes on.

    The agent is killed while they are open.
    """
    with live_bench(target, "live.alone", own=True) as here:
        lasting = here.open(SOCKET, here.token(exp="+15m"))
        short = here.open_short((*EVERY, fixture.REPLY), LIFE)
        here.world.agent.kill()
        here.in_time(min(stream.expires for stream in short), "the kill of the agent")
        here.must_expire(short, "its token's end, without an agent")
        here.must_last([lasting], "the loss of the agent")


@check("live.expiry.halted", "LIVE-CLOCK-001", features={"live"})
def halted(target: Target) -> None:
    """Streams end with their token even if the host halted the proxy for a while before.

    Its worker is frozen, as by a host that is short of CPU or is moved: once with an agent, and once without,
    when another stream is about to end. A timer that is due bounds what the proxy takes for its clock's step.
    """
    with live_bench(target, "live.halted", own=True) as here:
        lasting = here.open(SOCKET, here.token(exp="+15m"))
        halt = here.seconds(HALT)  # more than the stretched time in which streams must be over

        def frozen_before(due: float, ends: Iterable[Stream]) -> None:
            here.world.haproxy.send_to(worker, signal.SIGSTOP)
            stood = time.time()
            rest(halt)
            here.world.haproxy.send_to(worker, signal.SIGCONT)
            here.in_time(due, "the halt of the proxy", stood)
            here.must_expire(ends)

        worker, short = here.world.haproxy.worker, here.open_short(EVERY, LIFE)
        frozen_before(min(stream.expires for stream in short) - halt, short)
        [first] = here.open_short([SOCKET])
        later = [
            here.open(shape, here.token(exp=first.expires + math.ceil(2 * halt)))
            for shape in (SOCKET, EVENTS)
        ]
        here.world.agent.kill()
        first.until(first.expires - here.stretched(_SOON))
        frozen_before(first.expires, later)
        here.must_last([lasting], "the end of others")


@check("live.expiry.punctual", "LIVE-EXPIRY-003", features={"live"})
def punctual(target: Target) -> str:
    """Streams that end at different seconds pass no byte from their token's end on, but for a part of them.

    The host makes some late, and then the check is played again; an agent that ends them late does it to all.
    """
    with live_bench(target, "live.expiry") as here:
        end = here.end()
        tokens = [here.token(exp=end + moment) for moment in _MOMENTS]
        streams = [here.open(SOCKET, token) for token in tokens for _ in range(2)]
        recording.timed()
        here.must_expire(streams)
        late = sorted(stream.last - stream.expires for stream in streams if stream.last >= stream.expires)
        said = f"{len(late)} of {len(streams)} streams passed a byte after their token's end"
        if len(late) > _LATE * len(streams):
            raise here.failed(f"{said}: {late[0] * 1000:.0f} to {late[-1] * 1000:.0f} ms after it (9.17)")
        return said


@check("live.agents.lost", "LIVE-AGENTS-001", "LIVE-KEEP-001", features={"live"})
def agents(target: Target) -> None:
    """After the loss of one of two agents, the other cuts the streams that the lost agent let in.

    A second agent shares the proxy's master CLI; then a revocation, and an expiry.
    """
    with live_bench(target, "live.agents", revoking=True) as here:
        neighbour = here.world.neighbour()
        here.revoke(neighbour)
        going, staying = here.two_people(FEW)
        short = here.open(fixture.IDLE_DOWNLOAD, here.token(exp=here.end(LIFE)), "/plain/a")
        here.world.agent.kill()
        here.in_time(short.expires, "the kill of the agent")
        here.must_expire([short], "its token's end, its agent lost")
        here.revoke(principals=["alice"])
        here.revoke(neighbour, principals=["alice"])
        here.must_end(going, "the revocation, its agent lost")
        here.must_last(staying, "the revocation of another")


def _two_workers(here: LiveBench) -> tuple[_Pair, int, _Pair]:
    """Open two people's streams, reload the proxy, and open more; return the old worker between them."""
    before, old = here.two_people(FEW), here.world.haproxy.worker
    here.world.haproxy.reload()
    return before, old, here.two_people(FEW)


@check("live.reload.frozen", "LIVE-RELOAD-002", "LIVE-KEEP-001", features={"live"})
def frozen(target: Target) -> None:
    """A frozen worker from before a reload delays no cut in the new one, and is cut when it goes on.

    Two people's streams in the old worker and in the new one; a revocation while the old one stands.
    """
    with live_bench(target, "live.frozen", revoking=True) as here:
        (old_going, old_staying), old, (going, staying) = _two_workers(here)
        haproxy = here.world.haproxy
        rest(here.stretched(_KNOWN))
        haproxy.send_to(old, signal.SIGSTOP)
        try:
            here.revoke(principals=["alice"])
            here.must_end(going, "the revocation, an old worker frozen")
            here.must_last(staying, "the revocation of another, an old worker frozen", _FROZEN)
        finally:
            haproxy.send_to(old, signal.SIGCONT)
        here.must_end(old_going, "its worker went on", fixture.WITHIN)
        here.must_last(old_staying, "the revocation of another")


@check("live.reload.dead", "LIVE-RELOAD-002", "LIVE-KEEP-001", features={"live"})
def dead(target: Target) -> None:
    """A killed worker from before a reload delays no cut in the new one.

    The old worker is killed with its streams, then one person of the new one is revoked.
    """
    with live_bench(target, "live.dead", revoking=True) as here:
        (lost, _), old, (going, staying) = _two_workers(here)
        here.world.haproxy.send_to(old, signal.SIGKILL)
        here.must_end(lost, "its worker was killed")
        here.must_last([*going, *staying], "the death of the old worker")
        here.revoke(principals=["alice"])
        here.must_end(going, "the revocation, an old worker dead")
        here.must_last(staying, "the revocation of another, an old worker dead")


@check("live.death.ends", "LIVE-DEATH-001", "LIVE-KEEP-001", features={"live", "workers"}, long=True)
def ends(target: Target) -> str:
    """After the death of any process of the agent, streams end with their credential and by a revocation.

    Each process is killed in turn, its first process last; a stream that is still permitted goes on.
    """
    with live_bench(target, "live.death", revoking=True) as here:
        staying, number = here.open(SOCKET, here.token(exp="+15m", sub="bob")), 0
        for number, (what, end) in enumerate(deaths(here), 1):
            name = f"alice-{number}"
            going = here.open_all(FEW, here.token(exp="+15m", sub=name))
            [short] = here.open_short([fixture.IDLE_SOCKET], _LAST)
            here.in_time(short.expires, what)
            end()
            here.loan.wait_agents(here.seconds(fixture.BACK))
            here.revoke(principals=[name])
            here.must_end(going, f"a revocation after {what}", _CUT)
            here.must_expire([short], f"its token's end after {what}")
            here.must_last([staying], f"{what}, and the revocation of another", 0.0)
    return f"{number} deaths"
