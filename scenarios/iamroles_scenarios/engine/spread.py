"""Connections to one agent that reach each of its workers, so that a question can be put to all of them.

A black box chooses which of its processes takes a connection. If its processes can be seen, connections are
opened until each worker holds one; if a worker never took any, the check is untestable. More are kept only if
the agent does not pipeline. Otherwise, as behind a Unix socket, `UNSEEN` are kept: if the kernel spreads
them, one of two workers is missed once in 128 times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from iamroles_scenarios.base.errors import Untestable
from iamroles_scenarios.base.family import holders
from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.wire.asker import Asker, opened

if TYPE_CHECKING:
    from iamroles_scenarios.stage.agent_handle import AgentHandle

UNSEEN, _AT_ONCE, _BURST, _LOOKS = 8, 4, 16, 4
"""Connections where no process is seen; those opened before each look, and if a worker got none; looks."""


class Spread:
    """See the module.

    Args:
        agent: which.
        workers: how many of its processes answer.
        timeout: seconds for each answer.
    """

    def __init__(self, agent: AgentHandle, workers: int, timeout: float) -> None:
        self._agent, self._workers, self._timeout = agent, workers, timeout
        self._askers: list[Asker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def askers(self) -> list[Asker]:
        """Return the connections, opened again if one broke: then a process may have died."""
        if not self._askers or (self._workers > 1 and not all(one.connected for one in self._askers)):
            self.close()
            self._open()
        return self._askers

    def _open(self) -> None:
        address, pid = self._agent.spop_address, self._agent.host_pid
        if self._workers == 1:
            self._askers = [Asker(address, timeout=self._timeout)]
            return
        by_holder: dict[int, list[Asker]] = {}
        for look in range(_LOOKS):
            rest(self._timeout / 4 * (look > 1))  # a worker may still start
            many = _BURST if by_holder else _AT_ONCE
            self._askers += [Asker(address, timeout=self._timeout, most=1) for _ in range(many)]
            ports = opened(self._askers)  # at once: of connections in turn the same process may take each
            held = holders(pid, ports) if pid and any(ports) else {}
            by_holder = {}
            for port, asker in ports.items():
                by_holder.setdefault(held.get(port, 0), []).append(asker)
            unheld = by_holder.pop(0, [])
            self._agent.spread |= (whole := len(by_holder) >= self._workers)
            if whole or (look and (self._agent.spread or not by_holder)):
                break
        else:
            self.close()
            raise Untestable(f"{len(by_holder)} of {self._workers} workers took a connection")
        if by_holder:
            self._askers = [first for first, *_ in by_holder.values()]
            for first, *others in by_holder.values():
                first.join(others)
            for one in unheld:
                one.close()

    def close(self) -> None:
        for asker in self._askers:
            asker.close()
        self._askers = []
