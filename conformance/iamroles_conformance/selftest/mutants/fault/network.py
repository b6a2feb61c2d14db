"""Mutants of broken networks: an agent, or its proxy, that takes what is broken for the end of the world."""

from __future__ import annotations

from functools import partial
from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.spop.frames import FrameBuffer
from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.sts import StsVerifier
from iamroles_conformance.selftest.mutants.gate.proxy import text
from iamroles_conformance.selftest.mutants.override import around
from iamroles_conformance.selftest.registry import mutant

mutant("fault.half-frame", "FAULT-NET-001", "throws away a frame that does not come in one piece")(
    around(FrameBuffer, "_keep")(lambda _sound, _self, _data, _pos: None)
)


async def _never(sound: Any, self: KeySource, kid: str | None) -> None:
    if not self.failures:
        await sound(self, kid)


def _gives_up(_sound: Any, self: KeySource, _why: str) -> None:
    self.failures += 1


mutant("fault.gives-issuer-up", "FAULT-NET-002", "asks an issuer no more that has failed once")(
    around(KeySource, "_failed")(_gives_up), around(KeySource, "want")(_never)
)


async def _never_begun(sound: Any, self: KeySource, kid: str | None) -> None:
    if self.keys is not None or not self.failures:
        await sound(self, kid)


def _begins_once(sound: Any, self: KeySource, why: str) -> None:
    (sound if self.keys is not None else partial(_gives_up, sound))(self, why)


mutant("fault.begins-once", "FAULT-NET-002", "asks an issuer no more that was down at its start")(
    around(KeySource, "_failed")(_begins_once), around(KeySource, "want")(_never_begun)
)


async def _last_answer(sound: Any, self: Any, question: Any, state: Any, **how: Any) -> Any:
    try:
        self.last_answer = await sound(self, question, state, **how)
    except Refusal as refusal:
        if refusal.reason is not Reason.STS_UNAVAILABLE or not hasattr(self, "last_answer"):
            raise
    return self.last_answer


mutant("fault.sts-cut", "FAULT-NET-003", "takes the last answer of STS where none comes")(
    around(StsVerifier, "_call")(_last_answer),
    around(StsVerifier, "_pausing")(lambda _sound, _self, _state, **_how: None),
)


async def _long_pause(sound: Any, self: Any, question: Any, state: Any, **how: Any) -> Any:
    before = self.counts["throttled"]
    try:
        return await sound(self, question, state, **how)
    finally:
        if self.counts["throttled"] > before:
            for strain in state.strains.values():
                strain.resume_at += 3600


mutant("fault.sts-throttled", "FAULT-NET-003", "asks STS no more for an hour that has throttled it")(
    around(StsVerifier, "_call")(_long_pause)
)
mutant(
    "fault.one-at-a-time",
    "FAULT-NET-004",
    "serves one request at a time, so that one backend holds up all",
    proxy=True,
)(text(lambda text: text.replace('maxconn "${IAM_MAXCONN}"', "maxconn 1")))
mutant("fault.impatient", "FAULT-NET-005", "gives a client no time to send its request", proxy=True)(
    text(lambda text: text.replace("timeout http-request     10s", "timeout http-request     20ms"))
)
