"""A tunnel whose client has closed its side: HAProxy's `shutdown session` does nothing to it."""

import re
import socket
import time
from contextlib import ExitStack, closing, suppress
from threading import Thread

import pytest
from gate_bench import gate_bench
from wsproto.utilities import generate_accept_token

from iamroles_scenarios.checks.live.stream import Stream, StreamShape
from iamroles_scenarios.stage import haproxies, open_stage

PATIENCE = 30.0
WITHIN = 10.0
"""Less than the filter's own look at a silent stream takes."""
ACCEPT = "HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: "


def serve(connection):
    """Open a tunnel, and send on whatever the client closes, if the path says so."""
    with connection, suppress(OSError):
        asked = connection.recv(1 << 16).decode()
        key = re.search(r"(?i)sec-websocket-key: (\S+)", asked)[1]
        connection.sendall(f"{ACCEPT}{generate_accept_token(key.encode()).decode()}\r\n\r\n".encode())
        while True:
            connection.sendall(b"\x89\x00" * ("/busy" in asked))
            time.sleep(0.05)


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def run():
            with suppress(OSError):
                while True:
                    Thread(target=serve, args=(sock.accept()[0],), daemon=True).start()

        Thread(target=run, daemon=True).start()
        yield "{}:{}".format(*sock.getsockname())


@pytest.mark.parametrize("release", haproxies.here())
def test_it_ends_by_a_revocation(release, server):
    backends = [{"name": "live", "servers": [server], "streams": True}, {"name": "plain"}]
    with (
        open_stage("processes", haproxy=release) as stage,
        gate_bench(stage, "half", revoking=True, backends=backends) as here,
        ExitStack() as stack,
    ):
        tunnels = {}
        for sub in ("busy", "idle", "other"):
            token = here.token(sub=sub, exp="+15m", claims={"jti": "1"})
            one = Stream(here, StreamShape("websocket", busy=False), f"/live/reader/{sub}", token)
            tunnels[sub] = stack.enter_context(closing(one))
            assert one.opened(PATIENCE), one.status
            one._sock.shutdown(socket.SHUT_WR)
        here.revoke(principals=["busy", "idle"])

        assert [sub for sub in ("busy", "idle") if not tunnels[sub].until(time.time() + WITHIN)] == []
        assert tunnels["other"].lives()
