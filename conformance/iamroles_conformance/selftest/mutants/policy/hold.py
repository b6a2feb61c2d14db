"""Mutants of what must hold: after a crash, across a reload, beside strangers."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from iamroles_agent.policy.compiled import Policy
from iamroles_agent.serving import gate
from iamroles_agent.serving.gate import Gate
from iamroles_agent.spop import messages
from iamroles_agent.spop.actions import encode_verdict
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.registry import Override, mutant


@mutant(
    "policy.first-world-again",
    "RELOAD-RESTART-001",
    "goes back to the world of its first start when it is started again",
)
def first_world_again() -> None:
    world = Path(os.environ["IAMROLES_POLICY"])
    first = world.with_name(f"first-{world.name}")
    if first.is_file():
        os.environ["IAMROLES_POLICY"] = str(first)
    else:
        shutil.copyfile(world, first)


@mutant(
    "policy.in-flight-by-old",
    "RELOAD-INFLIGHT-001",
    "answers a question that waits by the policy in force when it was asked",
    setting(Policy, "release", lambda _self: None),
)
@around(Gate, "judge")
async def _by_the_old(_sound: Any, self: Any, check: Any, context: Any, _key: Any) -> bytes:
    state = self._current()
    decision, _ = await self._decide(state, check)
    await self._put_down(self._prepared(check, decision, state), context)
    return encode_verdict(decision)


def _limits(change: Any) -> Override:
    return setting(messages, "LIMITS", {name: change(limit) for name, limit in messages.LIMITS.items()})


mutant("policy.texts-of-any-length", "TEXT-LIMIT-001", "judges texts of any length")(
    _limits(lambda _: 1 << 20)
)
mutant("policy.texts-cut-short", "TEXT-LIMIT-001", "refuses texts of the longest permitted length")(
    _limits(lambda limit: limit - 1)
)


@mutant(
    "policy.slow-on-long-paths", "TEXT-LIMIT-002", "keeps everybody waiting while it looks at a long path"
)
@around(gate, "canonical")
def _slow_on_escapes(sound: Any, path: str) -> str:
    if len(path) > 2000:
        time.sleep(0.5)
    return str(sound(path))
