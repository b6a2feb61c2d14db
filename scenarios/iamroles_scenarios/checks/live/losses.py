"""What is lost on the way: the agent, one of two agents, the proxy for a while, a worker of the proxy."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from typing import Any

from iamroles_scenarios.checks.live.expiry import AFTER, SHAPES, end, ended, opened
from iamroles_scenarios.checks.live.revoking import WITHIN, revoke
from iamroles_scenarios.checks.live.stream import Stream, StreamShape
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.stage.agent_handle import AgentHandle

LIFE = 6.0
HALT = 1.5
"""Seconds for which the proxy is frozen."""
FEW = (StreamShape("websocket"), StreamShape("websocket", busy=False), StreamShape("events"))


def two(here: Bench, stack: ExitStack, **recipe: Any) -> tuple[list[Stream], list[Stream]]:  # noqa: ANN401 - a token's recipe
    """Streams of a reader, alice, and of a writer, bob."""
    alice = here.token(sub="alice", **{"exp": "+15m", **recipe})
    bob = here.token(sub="bob", roles=["writer"], exp="+15m")
    return (
        [opened(here, stack, shape, alice) for shape in FEW],
        [opened(here, stack, shape, bob, "/live/writer") for shape in FEW],
    )


def ends(here: Bench, streams: list[Stream], what: str) -> None:
    """They must end soon."""
    due = time.time() + here.seconds(WITHIN)
    for stream in streams:
        if not stream.until(due):
            raise here.failed(f"{stream.shape}: still open {WITHIN:g} s after {what}")


def lasts(here: Bench, streams: list[Stream], what: str) -> None:
    """They must be open after what cuts too much has had its time, and move where they are busy."""
    time.sleep(AFTER)
    for stream in streams:
        if not (stream.lives() and (not stream.shape.busy or stream.moves(here.seconds(WITHIN)))):
            raise here.failed(f"{stream.shape} of another, still permitted, ended at {what}")


@check("live.expiry.no-agent", "LIVE-ALONE-001", features={"live"})
def alone(target: Target) -> None:
    """Streams end with their token though no agent lives, and a stream whose token lasts goes on.

    The agent is killed while they are open.
    """
    with bench(target, "live", "live.alone", own=True) as here, ExitStack() as stack:
        lasting = [opened(here, stack, StreamShape("websocket"), here.token(exp="+15m"))]
        short = [opened(here, stack, shape, here.token(exp=end(here, LIFE))) for shape in SHAPES]
        here.world.agent.kill()
        for stream in short:
            ended(here, stream, stream.expires, "its token's end, without an agent")
        lasts(here, lasting, "the loss of the agent")


@check("live.expiry.halted", "LIVE-CLOCK-001", features={"live"})
def halted(target: Target) -> None:
    """Streams end with their token though the host halted the proxy for a while before.

    Its worker is frozen, as by a host that is short of CPU or is moved.
    """
    with bench(target, "live", "live.halted", own=True) as here, ExitStack() as stack:
        lasting = [opened(here, stack, StreamShape("websocket"), here.token(exp="+15m"))]
        short = [opened(here, stack, shape, here.token(exp=end(here, LIFE))) for shape in SHAPES]
        worker = here.world.haproxy.worker
        here.in_time(min(stream.expires for stream in short) - HALT, "the halt of the proxy")
        here.world.haproxy.send_to(worker, signal.SIGSTOP)
        time.sleep(HALT)
        here.world.haproxy.send_to(worker, signal.SIGCONT)
        for stream in short:
            ended(here, stream, stream.expires, "its token's end")
        lasts(here, lasting, "the end of others")


def _agents(here: Bench, neighbour: AgentHandle, **revocation: Any) -> None:  # noqa: ANN401 - a revocation's members
    revoke(here, **revocation)
    text = "\n".join(f"{key} = {value}".replace("'", '"') for key, value in revocation.items())
    neighbour.put("revocations.toml", f'[[revocations]]\nid = "now"\n{text}\n' if revocation else "")


@check("live.agents.lost", "LIVE-AGENTS-001", "LIVE-KEEP-001", features={"live"})
def agents(target: Target) -> None:
    """Of two agents one is lost: the other cuts the streams that the lost one let in.

    A second agent shares the proxy's master CLI; then a revocation, and an expiry.
    """
    live = {"revocations": "revocations.toml"}
    with bench(target, "live", "live.agents", own=True, live=live) as here, ExitStack() as stack:
        revoke(here)
        neighbour = here.world.neighbour()
        _agents(here, neighbour)
        going, staying = two(here, stack)
        token = here.token(exp=end(here, LIFE))
        short = opened(here, stack, StreamShape("download", busy=False), token, "/plain/a")
        here.world.agent.kill()
        ended(here, short, short.expires, "its token's end, its agent lost")
        _agents(here, neighbour, principals=["alice"])
        ends(here, going, "the revocation, its agent lost")
        lasts(here, staying, "the revocation of another")


@check("live.reload.frozen", "LIVE-RELOAD-002", "LIVE-KEEP-001", features={"live"})
def frozen(target: Target) -> None:
    """A frozen worker of before a reload holds up no cut in the new one, and is cut when it goes on.

    Two people's streams in the old worker and in the new one; a revocation while the old one stands.
    """
    live = {"revocations": "revocations.toml"}
    with bench(target, "live", "live.frozen", own=True, live=live) as here, ExitStack() as stack:
        revoke(here)
        old_going, old_staying = two(here, stack)
        haproxy = here.world.haproxy
        old = haproxy.worker
        haproxy.reload()
        going, staying = two(here, stack)
        haproxy.send_to(old, signal.SIGSTOP)
        try:
            revoke(here, principals=["alice"])
            ends(here, going, "the revocation, an old worker frozen")
            lasts(here, staying, "the revocation of another, an old worker frozen")
        finally:
            haproxy.send_to(old, signal.SIGCONT)
        ends(here, old_going, "its worker went on")
        lasts(here, old_staying, "the revocation of another")


@check("live.reload.dead", "LIVE-RELOAD-002", "LIVE-KEEP-001", features={"live"})
def dead(target: Target) -> None:
    """A worker of before a reload that was killed holds up no cut in the new one.

    The old worker is killed with its streams, then one person of the new one is revoked.
    """
    live = {"revocations": "revocations.toml"}
    with bench(target, "live", "live.dead", own=True, live=live) as here, ExitStack() as stack:
        revoke(here)
        lost, _ = two(here, stack)
        haproxy = here.world.haproxy
        old = haproxy.worker
        haproxy.reload()
        going, staying = two(here, stack)
        haproxy.send_to(old, signal.SIGKILL)
        ends(here, lost, "its worker was killed")
        lasts(here, [*going, *staying], "the death of the old worker")
        revoke(here, principals=["alice"])
        ends(here, going, "the revocation, an old worker dead")
        lasts(here, staying, "the revocation of another, an old worker dead")
