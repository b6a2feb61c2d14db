"""An agent as haproxyspoa's README builds one.

`IAMROLES_ADAPTER_OWN_ACTIONS=1` writes the actions with code of our own: the library's `unset_var` and its
booleans are malformed, which would hide everything else that the wire lane has to say about it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from haproxyspoa.payloads.ack import AckPayload, ActionVarScope
from haproxyspoa.spoa_data_types import write_string, write_typed_autodetect
from haproxyspoa.spoa_server import SpoaServer
from judgement import judge, listen, say_ready

_OWN = os.environ.get("IAMROLES_ADAPTER_OWN_ACTIONS") == "1"
server = SpoaServer()


class _Action:
    """One action, well formed."""

    def __init__(self, name: str, value: object) -> None:
        self._name, self._value = name, value

    def to_bytes(self) -> bytes:
        """Encode it."""
        name = bytes(write_string(self._name))
        match self._value:
            case None:
                return b"\x02\x02\x02" + name
            case bool():
                return b"\x01\x03\x02" + name + (b"\x11" if self._value else b"\x01")
        return b"\x01\x03\x02" + name + bytes(write_typed_autodetect(self._value))


@server.handler("iam-check")
async def check(**arguments: Any) -> Any:  # noqa: ANN401 - the library has no types
    """Answer one question."""
    answer = AckPayload()
    for name, value in judge(arguments):
        if _OWN:
            answer.actions.append(_Action(name, value))
        elif value is None:
            answer.unset_var(ActionVarScope.TRANSACTION, name)
        else:
            answer.set_txn_var(name, value)
    return answer


async def main() -> None:
    """Serve; `SpoaServer.run` would not tell its port."""
    host, port = listen()
    listener = await asyncio.start_server(server.handle_connection, host, port)
    say_ready(host, listener.sockets[0].getsockname()[1])
    await listener.serve_forever()


asyncio.run(main())
