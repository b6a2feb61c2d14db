"""A program for `test_server_supervisor.py`: `python supervised_agent.py <listen> <workers> <state file>`.

Each worker's gate tells its pid and what it last read from the state file. The file's content says how to
behave: `refuse` at the start of a worker, `bad` or `crash` at a reload, `stuck` when drained.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from iamroles_agent import supervisor
from iamroles_agent.config import AgentSettings
from iamroles_agent.errors import StartError
from iamroles_agent.identity import Decision
from iamroles_agent.reasons import Reason
from iamroles_agent.server import ConnectionStats
from iamroles_agent.spop.actions import encode_verdict
from iamroles_agent.spop.messages import Check, Context


class TellingApp:
    """App and gate in one."""

    def __init__(self, state: Path, index: int) -> None:
        self._file = state
        self._index = index

    @property
    def gate(self) -> TellingApp:
        return self

    async def start(self, connections: ConnectionStats) -> None:
        self._state = self._file.read_text()
        if self._state == "refuse" and self._index == 1:
            raise StartError("worker 1 will not")
        if self._state == "die" and self._index == 1:
            os._exit(7)

    async def reload(self) -> dict[str, object]:
        state = self._file.read_text()
        if state == "bad" or (state == "bad for one" and self._index == 1):
            return {"reloaded": False, "error": "the file is bad"}
        if state == "crash":
            raise RuntimeError("the reload crashed")
        self._state = state
        return {"reloaded": True, "policy": state}

    async def close(self) -> None:
        if self._state == "stuck":
            await asyncio.Event().wait()

    def recall(self, key: bytes, context: Context, /) -> bytes | None:
        return None

    async def judge(self, check: Check, context: Context, key: bytes | None, /) -> bytes:
        return encode_verdict(
            Decision(allow=True, principal=str(os.getpid()), session=self._state, issuer=str(self._index))
        )

    def failed(self, context: Context, detail: str, /) -> bytes:
        return encode_verdict(Decision(allow=False, reason=Reason.INTERNAL_ERROR))


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level="INFO", format="%(message)s")
    listen, workers, state = sys.argv[1:]
    settings = AgentSettings.model_validate(
        {"listen": listen, "workers": int(workers), "drain_timeout": "1s"}
    )
    try:
        sys.exit(supervisor.serve(settings, lambda index: TellingApp(Path(state), index)))
    except StartError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(3)
