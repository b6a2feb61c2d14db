"""Mutants of what breaks around the agent: a host without resources, and broken networks."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

from iamroles_agent.audit.log import Audit
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.control.slots import Members
from iamroles_agent.serving.gate import Gate
from iamroles_agent.serving.server import _Peer
from iamroles_agent.spop.connection import State
from iamroles_agent.spop.frames import FrameBuffer
from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.sts import StsVerifier
from iamroles_conformance.selftest.mutants.edits import replaced
from iamroles_conformance.selftest.mutants.gate import stays_down
from iamroles_conformance.selftest.mutants.override import around, before, setting
from iamroles_conformance.selftest.registry import Override, mutant

# --- the host

_short: list[bool] = []


@mutant("fault.no-descriptors", "FAULT-HOST-001", "accepts nothing once it ran out of descriptors")
@before(_Peer, "connection_made")
def no_descriptors(_self: Any, transport: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < min(hard, 256):
        _short.append(True)
    if _short:
        transport.abort()


@mutant("fault.no-memory", "FAULT-HOST-002", "ends as a whole when it gets no more memory")
@before(Gate, "judge")
def no_memory(_self: Any, *_asked: Any) -> None:
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        os.kill(os.getppid(), signal.SIGKILL)


@around(Members, "advance")
def _raw_time(_sound: Any, self: Any) -> float:
    now: float = self._clock()
    self.fair, self._seen = self.fair + now - self._seen, now
    return now


@mutant("fault.end-of-proxy", "FAULT-HOST-006", "takes the end of its proxy for its own")
@before(_Peer, "connection_lost")
def end_of_proxy(self: Any, _error: Exception | None) -> None:
    if self._connection.state is State.READY:
        os.kill(os.getppid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)


mutant("fault.starved", "FAULT-HOST-003", "replaces a worker that waits for the CPU as if it were stuck")(
    _raw_time, around(Members, "quiet")(lambda _sound, self, slot: self.fair - slot.heard)
)
mutant("fault.full-disk", "FAULT-HOST-004", "allows on where it cannot record")(
    around(Audit, "record")(lambda sound, self, *about: (sound(self, *about), True)[1]),
    setting(Audit, "refusing", property(lambda _self: False)),
)
mutant("fault.stays-down", "FAULT-HOST-005", "never takes an agent back that was down")(stays_down)

# --- networks


def _want(asking: Any) -> Override:
    """Ask an issuer for keys only while `asking(source)` holds."""

    @around(KeySource, "want")
    async def want(sound: Any, self: KeySource, kid: str | None) -> None:
        if asking(self):
            await sound(self, kid)

    return want


def _gives_up(_sound: Any, self: KeySource, _why: str) -> None:
    self.failures += 1


def _begins_once(sound: Any, self: KeySource, why: str) -> None:
    if self.keys is not None:
        sound(self, why)
    else:
        _gives_up(sound, self, why)


@around(StsVerifier, "_call")
async def _last_answer(sound: Any, self: Any, question: Any, state: Any, **how: Any) -> Any:
    try:
        self.last_answer = await sound(self, question, state, **how)
    except Refusal as refusal:
        if refusal.reason is not Reason.STS_UNAVAILABLE or not hasattr(self, "last_answer"):
            raise
    return self.last_answer


@mutant("fault.sts-throttled", "FAULT-NET-003", "does not ask an STS for an hour after it throttled")
@around(StsVerifier, "_call")
async def _long_pause(sound: Any, self: Any, question: Any, state: Any, **how: Any) -> Any:
    before = self.counts["throttled"]
    try:
        return await sound(self, question, state, **how)
    finally:
        if self.counts["throttled"] > before:
            for backoff in state.backoffs.values():
                backoff.resume_at += 3600


mutant("fault.half-frame", "FAULT-NET-001", "throws away a frame that does not come in one piece")(
    setting(FrameBuffer, "_keep", lambda _self, _data, _pos: None)
)
mutant("fault.gives-issuer-up", "FAULT-NET-002", "does not ask an issuer again after it failed once")(
    around(KeySource, "_failed")(_gives_up), _want(lambda source: not source.failures)
)
mutant("fault.begins-once", "FAULT-NET-002", "does not ask an issuer again that was down at its start")(
    around(KeySource, "_failed")(_begins_once),
    _want(lambda source: source.keys is not None or not source.failures),
)
mutant("fault.sts-cut", "FAULT-NET-003", "takes the last answer of STS where none comes")(
    _last_answer, around(StsVerifier, "_pausing")(lambda _sound, _self, _state, **_how: None)
)
mutant("fault.one-at-a-time", "FAULT-NET-004", "serves one request at a time: one backend holds up all")(
    replaced('maxconn "${IAM_MAXCONN}"', "maxconn 1")
)
mutant("fault.impatient", "FAULT-NET-005", "gives a client no time to send its request")(
    replaced("timeout http-request     10s", "timeout http-request     20ms")
)
