"""Losses under open streams: the agent, one of two agents, the proxy for a while, a worker of the proxy."""

from __future__ import annotations

import signal
import time

from iamroles_scenarios.checks.live.fixture import EVERY, FEW, IDLE_DOWNLOAD, SOCKET, live_bench
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

LIFE = 6.0
HALT = 1.5
"""Seconds for which the proxy is frozen."""


@check("live.expiry.no-agent", "LIVE-ALONE-001", features={"live"})
def alone(target: Target) -> None:
    """Streams end with their token even if no agent lives, and a stream whose token lasts goes on.

    The agent is killed while they are open.
    """
    with live_bench(target, "live.alone", own=True) as here:
        lasting = here.open(SOCKET, here.token(exp="+15m"))
        short = here.open_short(EVERY, LIFE)
        here.world.agent.kill()
        here.must_expire(short, "its token's end, without an agent")
        here.must_last([lasting], "the loss of the agent")


@check("live.expiry.halted", "LIVE-CLOCK-001", features={"live"})
def halted(target: Target) -> None:
    """Streams end with their token even if the host halted the proxy for a while before.

    Its worker is frozen, as by a host that is short of CPU or is moved.
    """
    with live_bench(target, "live.halted", own=True) as here:
        lasting = here.open(SOCKET, here.token(exp="+15m"))
        short = here.open_short(EVERY, LIFE)
        worker = here.world.haproxy.worker
        here.in_time(min(stream.expires for stream in short) - HALT, "the halt of the proxy")
        here.world.haproxy.send_to(worker, signal.SIGSTOP)
        time.sleep(HALT)
        here.world.haproxy.send_to(worker, signal.SIGCONT)
        here.must_expire(short)
        here.must_last([lasting], "the end of others")


@check("live.agents.lost", "LIVE-AGENTS-001", "LIVE-KEEP-001", features={"live"})
def agents(target: Target) -> None:
    """After the loss of one of two agents, the other cuts the streams that the lost agent let in.

    A second agent shares the proxy's master CLI; then a revocation, and an expiry.
    """
    with live_bench(target, "live.agents", revoking=True) as here:
        neighbour = here.world.neighbour()
        here.revoke(neighbour)
        going, staying = here.two_people(FEW)
        short = here.open(IDLE_DOWNLOAD, here.token(exp=here.end(LIFE)), "/plain/a")
        here.world.agent.kill()
        here.must_expire([short], "its token's end, its agent lost")
        here.revoke(principals=["alice"])
        here.revoke(neighbour, principals=["alice"])
        here.must_end(going, "the revocation, its agent lost")
        here.must_last(staying, "the revocation of another")


@check("live.reload.frozen", "LIVE-RELOAD-002", "LIVE-KEEP-001", features={"live"})
def frozen(target: Target) -> None:
    """A frozen worker from before a reload delays no cut in the new one, and is cut when it goes on.

    Two people's streams in the old worker and in the new one; a revocation while the old one stands.
    """
    with live_bench(target, "live.frozen", revoking=True) as here:
        old_going, old_staying = here.two_people(FEW)
        haproxy = here.world.haproxy
        old = haproxy.worker
        haproxy.reload()
        going, staying = here.two_people(FEW)
        haproxy.send_to(old, signal.SIGSTOP)
        try:
            here.revoke(principals=["alice"])
            here.must_end(going, "the revocation, an old worker frozen")
            here.must_last(staying, "the revocation of another, an old worker frozen")
        finally:
            haproxy.send_to(old, signal.SIGCONT)
        here.must_end(old_going, "its worker went on")
        here.must_last(old_staying, "the revocation of another")


@check("live.reload.dead", "LIVE-RELOAD-002", "LIVE-KEEP-001", features={"live"})
def dead(target: Target) -> None:
    """A killed worker from before a reload delays no cut in the new one.

    The old worker is killed with its streams, then one person of the new one is revoked.
    """
    with live_bench(target, "live.dead", revoking=True) as here:
        lost, _ = here.two_people(FEW)
        haproxy = here.world.haproxy
        old = haproxy.worker
        haproxy.reload()
        going, staying = here.two_people(FEW)
        haproxy.send_to(old, signal.SIGKILL)
        here.must_end(lost, "its worker was killed")
        here.must_last([*going, *staying], "the death of the old worker")
        here.revoke(principals=["alice"])
        here.must_end(going, "the revocation, an old worker dead")
        here.must_last(staying, "the revocation of another, an old worker dead")
