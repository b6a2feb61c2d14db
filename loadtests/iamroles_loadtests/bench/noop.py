"""An SPOE agent that decides nothing: `python -m iamroles_loadtests.bench.noop`, where IAMROLES_POLICY says.

Each NOTIFY gets the same ACK, the contract's whole answer for one caller, with its own two ids spliced in.
It checks nothing, remembers nothing and records nothing: what another agent costs beyond it is its own work.
Never put it before anything that matters.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import cast

import uvloop

from iamroles_loadtests.asking.questions import role
from iamroles_scenarios.wire.codec import Typed, Value, string
from iamroles_scenarios.wire.frames import Frame, FrameType, Scope, as_hello, encode_kv, read_kv

_SET_VAR = b"\x01\x03"
_ANSWER: dict[str, Value] = {
    "status": 200,
    "role": role("reader"),
    "principal": "known",
    "session": "none",
    "issuer": "corp",
    "rule": "R1",
    "backend": "orders-ro",
    "expires": 4102444800,
    "allow": True,
}
ACTIONS = b"".join(
    _SET_VAR + bytes((Scope.txn,)) + string(name) + Typed.of(value).encode()
    for name, value in _ANSWER.items()
)
_HEAD = b"\x67\x00\x00\x00\x01"
"""An ACK with FIN."""
_NOTIFY = 3


class Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer each whole frame, all of a read in one write."""
        data = self._rest + data
        at, answers = 0, list[bytes]()
        while len(data) - at >= 4 and (end := at + 4 + int.from_bytes(data[at : at + 4], "big")) <= len(data):
            if data[at + 4] == _NOTIFY:
                start = after = at + 9
                for _ in range(2):  # both ids; a first byte from 240 on has more behind it (SPOE.txt 3.1)
                    if data[after] >= 240:
                        after += 1
                        while data[after] >= 128:
                            after += 1
                    after += 1
                ids = data[start:after]
                answers += ((5 + len(ids) + len(ACTIONS)).to_bytes(4, "big"), _HEAD, ids, ACTIONS)
            else:
                answers.append(self._other(Frame.decode(data[at + 4 : end])))
            at = end
        self._rest = data[at:]
        self._transport.write(b"".join(answers))

    def _other(self, frame: Frame) -> bytes:
        """HELLO for HELLO; a DISCONNECT, or a health check's HELLO, is the end."""
        said = {name: typed.value for name, typed in read_kv(frame)}
        if frame.type != FrameType.HAPROXY_HELLO or said.get("healthcheck"):
            asyncio.get_running_loop().call_soon(self._transport.close)
        if frame.type != FrameType.HAPROXY_HELLO:
            return b""
        settings = {"version": "2.0", "max-frame-size": said["max-frame-size"], "capabilities": "pipelining"}
        return Frame(FrameType.AGENT_HELLO, payload=encode_kv(as_hello(settings))).encode()


async def serve(host: str, port: str) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(Peer, host, int(port))
    address = f"{host}:{listener.sockets[0].getsockname()[1]}"
    sys.stdout.write(json.dumps({"ready": True, "address": address}) + "\n")
    sys.stdout.flush()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    await over.wait()


if __name__ == "__main__":
    world = json.loads(Path(os.environ["IAMROLES_POLICY"]).read_text(encoding="utf-8"))
    listen_host, _, listen_port = str(world["agent"]["listen"]).rpartition(":")
    uvloop.run(serve(listen_host, listen_port))
