"""Streams over HTTP/2: each ends by itself, and leaves the others of its connection alone."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing

from iamroles_scenarios.checks.live.expiry import AFTER, OPEN, SHAPES, end, ended
from iamroles_scenarios.checks.live.multiplexed import H2Client, Multiplexed
from iamroles_scenarios.checks.live.revoking import WITHIN, revoke
from iamroles_scenarios.checks.live.stream import KINDS, StreamShape
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.engine.target import Target

_SECOND_HEAD = "ProtocolError: Trailers"
_TIMES = 4


def connected(here: Bench, stack: ExitStack) -> H2Client:
    """A connection whose proxy speaks HTTP/2 and takes WebSockets there."""
    found = stack.enter_context(closing(H2Client(here)))
    if not found.webs:
        raise here.failed("the proxy does not offer WebSockets over HTTP/2 (RFC 8441), or no HTTP/2")
    return found


def under_way(here: Bench, stream: Multiplexed) -> None:
    """It must have begun."""
    if not stream.opened(here.seconds(OPEN)):
        here.in_time(stream.expires, f"the begin of {stream.shape}")
        raise here.failed(f"{stream.shape} over HTTP/2 did not begin: status {stream.status or 'none'}")


def opened(here: Bench, line: H2Client, shape: StreamShape, token: str, path: str) -> Multiplexed:
    """A stream that is under way."""
    stream = line.stream(shape, path, token)
    under_way(here, stream)
    return stream


def going_on(here: Bench, line: H2Client, streams: list[Multiplexed], what: str) -> None:
    """The connection and all these streams must be open, and move where they are busy."""
    if line.over.is_set():
        raise here.failed(f"the connection ended at {what}: {line.fault}")
    for stream in streams:
        if not stream.lives():
            raise here.failed(f"{stream.shape} over HTTP/2, still permitted, ended at {what}")
        if stream.shape.busy and not stream.moves(here.seconds(WITHIN)):
            raise here.failed(f"{stream.shape} over HTTP/2, still permitted, stands still after {what}")


@check("live.h2.expires", "LIVE-H2-001", "LIVE-EXPIRY-001", "LIVE-IDLE-001", features={"live"})
def expiry(target: Target) -> None:
    """Over HTTP/2 a stream ends with its token, and the other streams of its connection go on.

    All kinds, busy and idle, of one token that ends and of one that lasts, on one connection.
    """
    with bench(target, "live", "live.h2.expiry") as here, ExitStack() as stack:
        line = connected(here, stack)
        lasts = here.token(exp="+15m")
        lasting = [opened(here, line, StreamShape(kind), lasts, "/live/reader") for kind in KINDS]
        token = here.token(exp=end(here))
        short = [line.stream(shape, "/live/reader", token) for shape in SHAPES]
        for stream in short:
            under_way(here, stream)
        for stream in short:
            ended(here, stream, stream.expires, "its token's end, over HTTP/2")
        going_on(here, line, lasting, "the end of another's token on its connection")


@check("live.h2.revoked", "LIVE-H2-001", "LIVE-REVOKE-001", "LIVE-KEEP-001", features={"live"})
def revoked(target: Target) -> None:
    """Over HTTP/2 a revocation ends the streams of its principal, and no others of the connection.

    Two people share one connection, as they do behind a proxy of their own.

    HAProxy 3.2 was seen to send a second head on a stream that its CLI shut down. The client's library then
    gives up the whole connection, which says nothing of the others: it is played again.
    """
    live = {"revocations": "revocations.toml"}
    with bench(target, "live", "live.h2.revoked", own=True, live=live) as here:
        for _ in range(_TIMES):
            with ExitStack() as stack:
                line = connected(here, stack)
                if _one_goes(here, line):
                    return
        raise here.failed(f"the proxy broke the connection in each of {_TIMES} turns: {line.fault}")


def _one_goes(here: Bench, line: H2Client) -> bool:
    """Play it on one connection; False: the proxy sent a second head there."""
    alice = here.token(exp="+15m", sub="alice")
    bob = here.token(exp="+15m", sub="bob", roles=["writer"])
    revoke(here)
    here.expect("nobody is revoked", alice, Expectation(backend="plain"), within=WITHIN, path="/plain/a")
    going, staying = [], []
    for kind in KINDS:
        going.append(opened(here, line, StreamShape(kind), alice, "/live/reader"))
        staying.append(opened(here, line, StreamShape(kind), bob, "/live/writer"))
    revoke(here, principals=["alice"])
    due = time.time() + here.seconds(WITHIN)
    for stream in going:
        if not stream.until(due):
            raise here.failed(f"{stream.shape} over HTTP/2: still open {WITHIN:g} s after its revocation")
    time.sleep(AFTER)  # what cuts too much has had its time
    if line.fault.startswith(_SECOND_HEAD):
        return False
    going_on(here, line, staying, "the revocation of another on its connection")
    return True
