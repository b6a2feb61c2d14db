"""Mutants of deaths and restarts under traffic: of a process, an agent of two, the proxy's old worker."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from iamroles_agent.control.document import POLICY
from iamroles_agent.processes.supervisor import Supervisor
from iamroles_agent.serving.gate import Gate
from iamroles_agent.serving.server import Server
from iamroles_conformance.selftest.mutants.gate.proxy import text, without
from iamroles_conformance.selftest.mutants.override import around
from iamroles_conformance.selftest.registry import mutant

_forked: set[int] = set()


@mutant("fire.no-replacement", "FIRE-WORKER-001", "replaces no process that died")
@around(Supervisor, "_fork")
def no_replacement(sound: Any, self: Any, effect: Any) -> None:
    if effect.place < 0 or effect.place not in _forked:
        _forked.add(effect.place)
        sound(self, effect)


_first: list[Any] = []


@around(Supervisor, "_fork")
def _remembers(sound: Any, self: Any, effect: Any) -> None:
    if not _first:
        _first.append(self.plane.document.parts[POLICY])
    sound(self, effect)


@mutant(
    "fire.born-old",
    "FIRE-WORKER-002",
    "gives a worker that replaces another the policy of the agent's start",
    _remembers,
)
@around(Supervisor, "_live")
def _born_old(sound: Any, self: Any, effect: Any, channel: Any) -> int:
    if effect.why:
        now = self.plane.document
        self.plane.document = replace(now, parts={**now.parts, POLICY: _first[0]})
    return int(sound(self, effect, channel))


mutant("fire.one-agent", "FIRE-PAIR-001", "asks one agent of two", proxy=True)(
    without("server agent-2 ", name="iam-routes.cfg")
)
_leaving: list[bool] = []


@around(Server, "drain")
async def _lingers(sound: Any, self: Any, **how: Any) -> None:
    _leaving.append(True)
    await asyncio.sleep(1.0)
    await sound(self, **how)


@around(Gate, "recall")
def _forgets(sound: Any, self: Any, key: bytes, context: Any) -> Any:
    return None if _leaving else sound(self, key, context)


@mutant(
    "fire.turns-away",
    "FIRE-PAIR-002",
    "refuses what it is asked after SIGTERM, and goes on to accept connections for a second",
    _lingers,
    _forgets,
)
@around(Gate, "judge")
async def _turns_away(sound: Any, self: Any, check: Any, context: Any, key: Any) -> Any:
    return self.failed(context, "it is leaving") if _leaving else await sound(self, check, context, key)


mutant(
    "fire.old-worker-killed",
    "FIRE-PROXY-001 FIRE-CERTIFICATE-001",
    "has the proxy end its old worker at once when it is reloaded",
    proxy=True,
)(text(lambda cfg: cfg.replace("hard-stop-after 1h", "hard-stop-after 1ms")))
