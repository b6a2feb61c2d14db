"""Four thousand tunnels at once: one role's are revoked among them, and the others live on."""

import resource
import select
import socket
import time
from contextlib import ExitStack

import pytest
from gate_bench import gate_bench

from iamroles_scenarios.checks.live.stream import StreamShape
from iamroles_scenarios.stage import open_stage

MANY, FEW, TOGETHER = 4_000, 100, 50
PATIENCE = 120.0


@pytest.fixture
def gate():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with open_stage("processes") as stage, gate_bench(stage, "many", revoking=True) as here:
            yield here
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def opened(here, role, count):
    """Open this many silent WebSockets of a role."""
    token = here.token(sub=role, roles=[role], exp="+30m")
    head = StreamShape("websocket", busy=False).head(f"/live/{role}", token)
    found = []
    there = here.world.proxy.host, here.world.proxy.port
    while len(found) < count:
        some = [socket.create_connection(there, PATIENCE) for _ in range(TOGETHER)]
        for sock in some:
            sock.sendall(head)
        for sock in some:
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += (piece := sock.recv(4096))
                assert piece, answer
            assert answer.startswith(b"HTTP/1.1 101 "), answer
        found += some
    return found


def test_a_role_is_revoked_among_many_tunnels(gate):
    with ExitStack() as held, select.epoll() as poller:
        many, few = opened(gate, "reader", MANY), opened(gate, "writer", FEW)
        for sock in map(held.enter_context, many + few):
            poller.register(sock, select.EPOLLIN)
        gate.revoke(roles=["writer"])
        ended, deadline = set(), time.monotonic() + PATIENCE
        while len(ended) < FEW and time.monotonic() < deadline:
            for number, _ in poller.poll(1.0):
                poller.unregister(number)
                ended.add(number)
        assert ended == {sock.fileno() for sock in few}
        assert all(sock.recv(1) == b"" for sock in few)
        # The gate goes on, and so do the others: each still carries a ping there and back.
        for sock in many:
            sock.sendall(b"\x89\x80\0\0\0\0")
        for sock in many:
            assert sock.recv(2) == b"\x8a\0"
