"""Mutants with two workers: one of them, or a process that takes a dead one's place, is deaf to a change."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iamroles_agent.base.reasons import Reason
from iamroles_agent.control.slots import FETCHER
from iamroles_agent.processes import fetcher
from iamroles_agent.processes.remote import RemoteProver
from iamroles_agent.processes.supervisor import Supervisor
from iamroles_agent.processes.watch import Watch
from iamroles_agent.processes.worker import Worker
from iamroles_agent.tokens.jwks import KeySource
from iamroles_conformance.selftest.mutants.override import after, around, before
from iamroles_conformance.selftest.registry import Override, mutant

THIS: dict[str, Any] = {}
"""This process: its slot, why it was made, and whether an agent lived here before."""


@before(Supervisor, "_live")
def born(_supervisor: Any, effect: Any, _channel: Any) -> None:
    THIS.update(slot=effect.slot, why=effect.why)


@before(Supervisor, "run")
def _began(_supervisor: Any) -> None:
    lived = Path(os.environ["IAMROLES_POLICY"] + ".lived")
    THIS["again"] = lived.exists()
    lived.touch()


def _builds(name: str, ready: Callable[[Any], Any]) -> Callable[[Callable[[], Any]], Override]:
    """Put nothing in force where a worker that is ready builds such a change, and is deaf."""
    return lambda deaf: around(Worker, name)(
        lambda sound, self, edits, coming: (
            (lambda: None) if ready(self) and deaf() else sound(self, edits, coming)
        )
    )


def _sessions(deaf: Callable[[], Any]) -> Override:
    @around(RemoteProver, "verify")
    async def verify(sound: Any, self: Any, token: Any, digest: Any, source: Any = "") -> Any:
        identity, reusable = await sound(self, token, digest, source)
        return identity._replace(check_again=None) if deaf() else identity, reusable

    return verify


_KINDS = {
    "reload": _builds("_build_policy", lambda self: self.gate),
    "keys": _builds("_build_keys", lambda self: self.remote._sets),
    "revocation": _builds("_build_revocations", lambda _: True),
    "sessions": _sessions,
}
_WHO: dict[str, tuple[str, str, Callable[[], Any]]] = {
    "second": ("its second worker", "WORKERS-CHANGE-001", lambda: THIS["slot"] == 1),
    "replacement": ("a worker that replaced another", "WORKERS-DEATH-001", lambda: THIS["why"]),
    "restarted": ("an agent that was killed and started", "WORKERS-DEATH-001", lambda: THIS["again"]),
}
for _who, (_words, _kills, _deaf) in _WHO.items():
    for _kind, _make in _KINDS.items():
        mutant(f"policy.{_who}-{_kind}", _kills, f"{_words} takes up no {_kind}")(_make(_deaf), born, _began)


def _reborn() -> bool:
    """Tell if this is a fetcher that replaced another."""
    return THIS["slot"] == FETCHER and bool(THIS["why"])


_LAUNCH = around(KeySource, "_launch")(
    lambda sound, self, *, asking=False: None if _reborn() else sound(self, asking=asking)
)
_WATCH = around(Watch, "run")(
    lambda sound, self: asyncio.Event().wait() if _reborn() else sound(self),
)


@around(fetcher, "answer_sts")
async def _answer(sound: Any, prover: Any, body: Any) -> Any:
    return {"reason": Reason.STS_UNAVAILABLE.value} if _reborn() else await sound(prover, body)


for _kind, _words, _edit in (
    ("keys", "renews no key set", _LAUNCH),
    ("revocation", "reads no revocations", _WATCH),
    ("sessions", "asks no STS", _answer),
):
    mutant(f"policy.fetcher-{_kind}", "WORKERS-DEATH-001", f"{_words} once its fetcher was replaced")(
        _edit, born
    )


mutant("policy.fetcher-outage", "WORKERS-DEATH-001", "begins a fetcher without keys if their issuer is down")(
    after(KeySource, "_failed")(lambda self, _why: _reborn() and self._on_taken({"keys": []}, 0.0)),
    around(KeySource, "restore")(lambda sound, self, *kept: None if _reborn() else sound(self, *kept)),
    born,
)


@mutant("policy.no-fetcher", "WORKERS-DEATH-001", "replaces no fetcher that died")
@around(Supervisor, "_fork")
def no_fetcher(sound: Any, self: Any, effect: Any) -> None:
    if effect.slot != FETCHER or not effect.why:
        sound(self, effect)


@mutant("policy.dies-with-fetcher", "WORKERS-DEATH-001", "dies with its fetcher")
@before(Supervisor, "_died")
def dies_with_fetcher(_supervisor: Any, process: Any, code: int) -> None:
    if process.index == FETCHER and code:
        os._exit(1)
