"""Mutants of a host that gives nothing: an agent that does not come back from it, or stops asking who may."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

from iamroles_agent.audit.log import Audit
from iamroles_agent.control.slots import Members
from iamroles_agent.serving.gate import Gate
from iamroles_agent.serving.server import _Peer
from iamroles_agent.spop.connection import State
from iamroles_conformance.selftest.mutants.gate.proxy import stays_down
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.registry import mutant

_over: list[bool] = []


@mutant("fault.no-descriptors", "FAULT-HOST-001", "takes no connection any more once it ran out")
@around(_Peer, "connection_made")
def no_descriptors(sound: Any, self: Any, transport: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < min(hard, 256):
        _over.append(True)
    if _over:
        transport.abort()
    sound(self, transport)


@mutant("fault.no-memory", "FAULT-HOST-002", "ends as a whole when it gets no more memory")
@around(Gate, "judge")
async def no_memory(sound: Any, self: Any, check: Any, context: Any, key: Any) -> bytes:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        os.kill(os.getppid(), signal.SIGKILL)
    actions: bytes = await sound(self, check, context, key)
    return actions


def _raw_time(_sound: Any, self: Any) -> float:
    now: float = self._clock()
    self.fair, self._seen = self.fair + now - self._seen, now
    return now


mutant(
    "fault.starved", "FAULT-HOST-003", "replaces a worker that waits for the processor as if it were stuck"
)(
    around(Members, "advance")(_raw_time),
    around(Members, "quiet")(lambda _sound, self, slot: self.fair - slot.heard),
)


def _recorded(sound: Any, self: Any, *about: Any) -> bool:
    sound(self, *about)
    return True


mutant("fault.full-disk", "FAULT-HOST-004", "allows on where it cannot record")(
    around(Audit, "record")(_recorded), setting(Audit, "refusing", property(lambda _self: False))
)
mutant("fault.stays-down", "FAULT-HOST-005", "never takes an agent back that was down", proxy=True)(
    stays_down
)


@mutant("fault.end-of-proxy", "FAULT-HOST-006", "takes the end of its proxy for its own")
@around(_Peer, "connection_lost")
def end_of_proxy(sound: Any, self: Any, exc: Exception | None) -> None:
    if self._connection.state is State.READY:
        os.kill(os.getppid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
    sound(self, exc)
