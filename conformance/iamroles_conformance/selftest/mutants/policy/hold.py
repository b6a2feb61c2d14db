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
from iamroles_conformance.selftest.mutants.override import around, both, setting
from iamroles_conformance.selftest.registry import Apply, mutant


@mutant(
    "policy.first-world-again",
    kills=["RELOAD-RESTART-001"],
    title="goes back to the world of its first start when it is started again",
)
def first_world_again() -> None:
    world = Path(os.environ["IAMROLES_POLICY"])
    first = world.with_name(f"first-{world.name}")
    if first.is_file():
        os.environ["IAMROLES_POLICY"] = str(first)
    else:
        shutil.copyfile(world, first)


@around(Gate, "judge")
async def _by_the_old(_sound: Any, self: Any, check: Any, context: Any, _key: Any) -> bytes:
    state = self._current()
    decision, _ = await self._decide(state, check)
    await self._put_down(self._prepared(check, decision, state), context)
    return encode_verdict(decision)


mutant(
    "policy.in-flight-by-old",
    kills=["RELOAD-INFLIGHT-001"],
    title="answers a question that waits by the policy in force when it was asked",
    apply=both(_by_the_old, setting(Policy, "discard", lambda _self: None)),
)


def _limits(change: Any) -> Apply:
    return setting(messages, "LIMITS", {name: change(limit) for name, limit in messages.LIMITS.items()})


mutant(
    "policy.texts-of-any-length",
    kills=["TEXT-LIMIT-001"],
    title="judges texts of any length",
    apply=_limits(lambda _: 1 << 20),
)
mutant(
    "policy.texts-cut-short",
    kills=["TEXT-LIMIT-001"],
    title="refuses texts of the longest permitted length",
    apply=_limits(lambda limit: limit - 1),
)


@around(gate, "canonical")
def _slow_on_escapes(sound: Any, path: str) -> str:
    if len(path) > 2000:
        time.sleep(0.5)
    return str(sound(path))


mutant(
    "policy.slow-on-long-paths",
    kills=["TEXT-LIMIT-002"],
    title="keeps everybody waiting while it looks at a long path",
    apply=_slow_on_escapes,
)
