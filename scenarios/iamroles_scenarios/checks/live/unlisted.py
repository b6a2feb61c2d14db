"""Streams that are hard to find: of clients behind a load balancer, and requests that wait for an answer."""

from __future__ import annotations

import struct

from iamroles_scenarios.checks.live import fixture
from iamroles_scenarios.checks.live.crowd import V2, preamble
from iamroles_scenarios.checks.live.fixture import AFTER, IDLE_SOCKET, SOCKET, WITHIN, live_bench
from iamroles_scenarios.checks.live.stream import Stream, StreamShape
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

_DOWNLOAD, _INTERIM = StreamShape("download"), StreamShape("interim")
PREAMBLES = {
    "IPv4": b"PROXY TCP4 192.0.2.9 192.0.2.1 40001 443\r\n",
    "IPv6": b"PROXY TCP6 2001:db8::9 2001:db8::1 40002 443\r\n",
    "IPv4 in IPv6": b"PROXY TCP6 ::ffff:192.0.2.9 ::1 40003 443\r\n",
    "no port": b"PROXY TCP4 192.0.2.9 192.0.2.1 0 443\r\n",
    "no address": b"PROXY UNKNOWN\r\n",
    "IPv4, version 2": preamble("192.0.2.9", 40004),
    "IPv6, version 2": preamble("2001:db8::9", 40005),
    "local, version 2": V2 + struct.pack("!BBH", 0x20, 0, 0),
}
"""What a load balancer says of a client before its request."""


@check("live.address.ends", "LIVE-ADDRESS-001", "LIVE-KEEP-001", features={"live", "reload"})
def proxied(target: Target) -> None:
    """Behind a load balancer that speaks the PROXY protocol streams end as everywhere.

    Clients by every form of an address. Of each one stream is revoked, one loses its grant, one expires in a
    backend without streams, and one lives on.
    """
    with live_bench(target, "live.address", revoking=True, settings={"IAM_BIND": "accept-proxy"}) as here:

        def opened(sub: str, role: str) -> list[Stream]:
            token = here.token(exp="+15m", sub=sub, roles=[role])
            return [here.open(IDLE_SOCKET, token, f"/live/{role}", said) for said in PREAMBLES.values()]

        lasting, revoked, policy = opened("ann", "reader"), opened("eve", "reader"), opened("bob", "writer")
        here.revoke(principals=["eve"])
        here.must_end(revoked, "its revocation")
        here.take_grant("L2", policy)
        token = here.token(exp=here.end())
        here.must_expire([here.open(_DOWNLOAD, token, "/plain/a", said) for said in PREAMBLES.values()])
        here.must_last(lasting, "what ended others' streams")


@check("live.wait.ends", "LIVE-WAIT-001", "LIVE-KEEP-001", features={"live", "reload"})
def waiting(target: Target) -> None:
    """A request that waits for its answer ends as a stream does, though interim responses come all the time.

    The server sends 103 again and again, and no answer: in a backend with streams, and in one without. A
    stream that lives on has a usual path, and a token for many audiences. The first long stream begins after
    the revocation.
    """
    with live_bench(target, "live.wait", revoking=True) as here:
        paths = {"reader": ("/live/reader", "/plain/a"), "writer": ("/live/writer",)}

        def opened(sub: str, role: str, exp: int | str = "+15m") -> list[Stream]:
            token = here.token(exp=exp, sub=sub, roles=[role])
            return [here.open(_INTERIM, token, path) for path in paths[role]]

        lasting, revoked, policy = opened("ann", "reader"), opened("eve", "reader"), opened("bob", "writer")
        many = here.token(exp="+15m", aud=fixture.AUDIENCES)
        lasting.append(here.open(_INTERIM, many, f"/live/reader/{'x' * fixture.USUAL}"))
        here.must_expire(opened("sue", "reader", here.end()))
        here.revoke(principals=["eve"])
        here.must_end(revoked, "its revocation")
        lasting.append(here.open(SOCKET, lasting[0].token))  # the first long stream
        here.must_last(lasting, "the revocation of another", AFTER + WITHIN)
        here.take_grant("L2", policy)
        here.must_last(lasting, "the reload that took another's grant away")
