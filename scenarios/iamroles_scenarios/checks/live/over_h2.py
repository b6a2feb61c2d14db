"""Streams over HTTP/2: each ends alone, and the others of its connection go on."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

from iamroles_scenarios.base.errors import Untestable
from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.checks.live.fixture import AFTER, EVERY, HALF, WITHIN, LiveBench, live_bench
from iamroles_scenarios.checks.live.multiplexed import H2Client, Multiplexed
from iamroles_scenarios.checks.live.stream import KINDS, StreamShape
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine.target import Target

_SECOND_HEAD = "ProtocolError: Trailers"
_TIMES = 4


def offered(line: H2Client, shapes: Iterable[StreamShape]) -> list[StreamShape]:
    """Return the shapes that the proxy takes over HTTP/2."""
    if not (found := line.offered(shapes)):
        raise Untestable(f"the proxy does not speak HTTP/2 with prior knowledge: {line.fault}")
    return found


def begun(here: LiveBench, line: H2Client, shape: StreamShape, token: str, path: str) -> Multiplexed:
    """Open a stream, which must begin."""
    stream = line.stream(shape, path, token)
    here.must_begin(stream)
    return stream


def must_go_on(here: LiveBench, line: H2Client, streams: list[Multiplexed], what: str) -> None:
    """Hold the connection and all these streams to be open, and to move if they are busy."""
    if line.over.is_set():
        raise here.failed(f"the connection ended at {what}: {line.fault}")
    here.must_last(streams, what, after=0.0)


@check("live.h2.expires", "LIVE-H2-001", "LIVE-EXPIRY-001", "LIVE-IDLE-001", features={"live"})
def expiry(target: Target) -> None:
    """Over HTTP/2 a stream ends with its token, and the other streams of its connection go on.

    All kinds, busy and idle, of a token that ends and of another that lasts, on one connection.
    """
    with live_bench(target, "live.h2.expiry") as here, closing(H2Client(here)) as line:
        lasts, each = here.token(exp="+15m"), offered(line, map(StreamShape, KINDS))
        lasting = [begun(here, line, shape, lasts, "/live/reader") for shape in each]
        token = here.token(exp=here.end())
        short = [line.stream(shape, "/live/reader", token) for shape in offered(line, (*EVERY, *HALF))]
        for stream in short:
            here.must_begin(stream)
        here.must_expire(short)
        must_go_on(here, line, lasting, "the end of another's token on its connection")


@check("live.h2.revoked", "LIVE-H2-001", "LIVE-REVOKE-001", "LIVE-KEEP-001", features={"live"})
def revoked(target: Target) -> None:
    """Over HTTP/2 a revocation ends the streams of its principal, and no others of the connection.

    Two people share one connection, as they do behind a proxy of their own.

    HAProxy 3.2 was seen to send a second head on a stream that its CLI shut down. The client's library then
    gives up the whole connection, which says nothing of the others: it is played again.
    """
    with live_bench(target, "live.h2.revoked", revoking=True) as here:
        every = (*map(StreamShape, KINDS), *HALF)
        for count in (1, len(every)):  # an agent may look for few streams of a connection otherwise
            for _ in range(_TIMES):
                with closing(H2Client(here)) as line:
                    if _one_goes(here, line, offered(line, every)[:count]):
                        break
            else:
                raise here.failed(f"the proxy broke the connection each of {_TIMES} times: {line.fault}")


def _one_goes(here: LiveBench, line: H2Client, shapes: Iterable[StreamShape]) -> bool:
    """Play it on one connection; False: the proxy sent a second head there."""
    alice = here.token(exp="+15m", sub="alice")
    bob = here.token(exp="+15m", sub="bob", roles=["writer"])
    here.revoke()
    here.expect("nothing is revoked", alice, Expectation(backend="plain"), within=WITHIN, path="/plain/a")
    going, staying = [], []
    for shape in shapes:
        staying.append(begun(here, line, shape, bob, "/live/writer"))
        going.append(begun(here, line, shape, alice, "/live/reader"))
    here.revoke(principals=["alice"])
    here.must_end(going, "its revocation")
    rest(here.stretched(AFTER))  # what cuts too much has had its time
    if line.fault.startswith(_SECOND_HEAD):
        return False
    must_go_on(here, line, staying, "the revocation of another on its connection")
    return True
