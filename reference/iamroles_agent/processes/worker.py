"""One worker: policy, credentials, audit, metrics and gate, put together and kept as the parent says.

A worker reads no file of the operator's. What is in force comes from the parent (`link`), first by the fork,
later by changes. The worker builds each change in a thread, in small steps, and puts it in force in one step
of the event loop: policy, keys and memory together.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from iamroles_agent.audit.log import Audit
from iamroles_agent.base.config import Config
from iamroles_agent.base.errors import ENDING, StartError
from iamroles_agent.control import policy_part
from iamroles_agent.control.channel import message
from iamroles_agent.control.document import KEYS, POLICY, REVOCATIONS, Edits, Parts
from iamroles_agent.control.member import Kinds, Step
from iamroles_agent.identity_header import Signer
from iamroles_agent.live import revocations
from iamroles_agent.live.cutter import Cutter
from iamroles_agent.processes import in_force
from iamroles_agent.processes.cutting import cutting, name_of
from iamroles_agent.processes.identity_keys import IDENTITY_KEYS, signing
from iamroles_agent.processes.link import Body, Link, Startup
from iamroles_agent.processes.remote import Remote
from iamroles_agent.serving.gate import Gate
from iamroles_agent.serving.metrics import ConnectionStats, Metrics
from iamroles_agent.serving.server import Server
from iamroles_agent.serving.tls import Tls
from iamroles_agent.tokens.authenticator import Authenticator, rules_of
from iamroles_agent.tokens.keys import KeySet

_PAUSE = 0.2
"""Seconds between two tries to open the metrics port."""
_DRAINS = 5.0
"""Seconds beyond `drain_timeout` in which the agent before ends."""

_log = logging.getLogger("iamroles.agent")


class Worker:
    """Runs in a worker's process.

    Args:
        config: of the start; `[agent]`, `[audit]` and `[metrics]` hold until a restart.
        startup: what it starts with.
        takes_over: whether a worker of another agent may still hold this one's audit file and metrics port.
        master: HAProxy's master CLI; None: the agent cuts no streams.
        tls: of the TCP sockets.
    """

    def __init__(
        self,
        config: Config,
        startup: Startup,
        *,
        takes_over: bool = False,
        master: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._master, self._tls = master, tls
        self._cutter: Cutter | None = None
        self.index, self.config, self.startup = startup.index, config, startup
        self._takes_over = takes_over
        self.connections = ConnectionStats()
        self.link = Link(startup.channel, startup.document, self._stats)
        self.gate: Gate | None = None
        self.authenticator: Authenticator | None = None
        self.kinds: Kinds = {
            POLICY: self._build_policy,
            KEYS: self._build_keys,
            IDENTITY_KEYS: signing(config.identity_header, self._sign_with),
            REVOCATIONS: self._build_revocations,
        }

    async def run(self) -> None:
        """Live until the parent says to drain, or is gone.

        Raises:
            StartError, ConfigError: it cannot start; see their text.
        """
        await self.link.open()
        self.remote = Remote(self.link, self.startup.clocks.epoch, self.startup.callers)
        self.link.member.on_stamp = self._stamped
        notes: list[Body] = []
        self.link.on_note = notes.append  # until the audit is open
        # The worker that it replaces may be stuck in a write and still hold the file.
        takeover = bool(self.startup.why) or self._takes_over
        self.audit = audit = await asyncio.to_thread(
            Audit, self.config.audit, worker=self.index, takeover=takeover
        )
        self.metrics = metrics = Metrics(self.config.metrics, worker=self.index)
        try:
            metrics.connections, metrics.audit = self.connections, audit.state
            await self.link.member.build(self.kinds)
            for note in notes:
                self._noted(note)
            self.link.on_note = self._noted
            if self.startup.why:
                audit.event(
                    "replaced", {"why": self.startup.why[:500], "version": self.link.document.version}
                )
            metrics.health = self.health
            await self._show_metrics()
            assert self.authenticator is not None  # noqa: S101 - the policy was built
            await self.authenticator.start()
            self.link.up()
            assert self.gate is not None  # noqa: S101 - as above
            with nullcontext() if self.index else cutting(self.gate, audit, metrics, self._master) as cutter:
                self._cutter = cutter
                await self._serve()
        finally:
            await self._close()

    async def _show_metrics(self, tries: int = 0) -> None:
        try:
            address = await self.metrics.serve()
        except StartError as error:
            if not (self._takes_over or self.startup.why):
                if tries * _PAUSE > ENDING:
                    raise
                await self._show_metrics_again(tries + 1)
                return
            # The agent before keeps the port while it drains. A stranger may keep it for ever.
            patience = self.config.agent.drain_timeout + _DRAINS if self._takes_over else 0.0
            if tries == int(patience / _PAUSE):
                _log.error("%s. Worker %d serves without metrics until then", error, self.index)
            self._later = asyncio.get_running_loop().create_task(self._show_metrics_again(tries + 1))
            return
        if address:
            _log.info("worker %d: metrics on http://%s/metrics", self.index, address)
            if self.metrics.identity_keys is not None:
                _log.info("worker %d: identity keys on http://%s/identity/jwks", self.index, address)

    async def _show_metrics_again(self, tries: int) -> None:
        """Try until the port is free."""
        await asyncio.sleep(_PAUSE)
        await self._show_metrics(tries)

    async def _serve(self) -> None:
        may, end = (asyncio.ensure_future(event.wait()) for event in (self.link.serve, self.link.drained))
        await asyncio.wait((may, end), return_when=asyncio.FIRST_COMPLETED)
        may.cancel()
        if not self.link.serve.is_set():
            end.cancel()
            return
        assert self.gate is not None  # noqa: S101 - the policy was built
        server = Server(
            self.gate,
            self.config.agent,
            socks=self.startup.listeners,
            stats=self.connections,
            counts=self.startup.counts,
            slot=self.index,
            tls=self._tls,
        )
        await server.start()
        self.link.send(message("serving"))
        await end
        await server.drain(gently=self.link.gently)

    async def _close(self) -> None:
        if self.authenticator is not None:
            await self.authenticator.close()
        await self.metrics.close()
        await asyncio.to_thread(self.audit.close)
        self.link.close()

    def health(self) -> tuple[bool, Mapping[str, Any]]:
        """Report whether this worker can decide, and what it knows of the agent."""
        gate = self.gate
        problem = "not ready" if gate is None else gate.unhealthy()
        summary = self.link.summary
        about = {
            "healthy": not problem,
            **({"problem": problem} if problem else {}),
            "worker": self.index,
            "version": self.link.document.version,
            "policy": self.link.document.policy,
            "workers": summary.get("workers"),
            "confirmed": summary.get("confirmed"),
            "in_force": summary.get("version"),
            **in_force.of(summary).said(),
        }
        return not problem, about

    def _stats(self) -> Body:
        stats: Body = {"connections": self.connections.open, "pending": self.connections.pending}
        if self.gate is None:
            return stats
        if self.authenticator is not None:  # four times a second is often enough
            self.authenticator.watch_clock()
        numbers, audit = self.metrics, self.audit.state()
        if self.index == 0:  # the fetcher's numbers must count once when Prometheus sums all workers
            self.remote.learn(self.link.summary.get("fetcher", {}))
            if self._cutter is not None and self.link.summary.get("behind"):
                self._cutter.keep_reading()
            stats["live"] = in_force.of_cutter(self._cutter, self.link.document.version)
        return stats | {
            "accepted": self.connections.accepted,
            "questions": self.connections.notifies,
            "allowed": numbers.allowed,
            "refused": sum(numbers.refused.values()),
            "problem": self.gate.unhealthy(),
            "audit": {
                "records": audit.records,
                "lost": audit.lost,
                "failing": audit.failing,
                "buffered": audit.buffered,
            },
        }

    def _stamped(self, name: str, at: float) -> None:
        if name.startswith(KEYS):
            self.remote.confirm(name.removeprefix(KEYS), at)

    def _sign_with(self, signer: Signer) -> None:
        assert self.gate is not None  # noqa: S101 - the policy's step has run
        self.gate.sign_with(signer)
        self.metrics.identity_keys = lambda: signer.ring.jwks(time.time())

    # What this worker builds of each kind of part

    def _build_policy(self, _edits: Edits, coming: Parts) -> Step:
        self.audit.reopen()
        with _exclusive(self.startup.build_lock):
            policy = policy_part.decode(coming[POLICY])
            rules = rules_of(policy.config)
        clocks = self.startup.clocks

        def switch() -> None:
            if self.authenticator is None:
                self.authenticator = Authenticator(
                    policy.config, self.remote, clock=clocks.epoch, monotonic=clocks.monotonic
                )
                self.metrics.authenticator = self.authenticator
                self.gate = Gate(policy, self.authenticator, self.audit, self.metrics, clock=clocks.epoch)
                self.gate.name = name_of(self.config)
            else:
                assert self.gate is not None  # noqa: S101 - made with the authenticator
                self.authenticator.adopt(policy.config, rules)
                former = self.gate.policy
                self.gate.replace(policy)
                former.release()
            self.metrics.policy(policy.version)
            self.audit.policy(policy.version, accepted=True)

        return switch

    def _build_keys(self, edits: Edits, _coming: Parts) -> Step:
        sets: dict[str, KeySet | None] = {}
        for name, part in edits.items():
            held = self.remote.held(name.removeprefix(KEYS))
            sets[name] = None if part is None else KeySet.parse(json.loads(part.pieces[0]), held)

        def switch() -> None:
            for name, keys in sets.items():
                # The present stamp: the set may have been found good again since this was prepared.
                stamp = 0.0 if keys is None else self.link.document.parts[name].stamp
                self.remote.put(name.removeprefix(KEYS), keys, stamp)

        return switch

    def _build_revocations(self, _edits: Edits, coming: Parts) -> Step:
        listed = revocations.from_part(coming.get(REVOCATIONS))

        def switch() -> None:
            assert self.gate is not None  # noqa: S101 - the policy's step has run
            self.gate.revoke(listed)
            self.metrics.revocations = len(listed.rows)
            self.audit.event("revocations", {"in_force": [row.id for row in listed.rows]})

        return switch

    def _noted(self, note: Body) -> None:
        """Record that a reload was refused, or that the fetcher was replaced."""
        if note.get("event") == "replaced":
            self.audit.event("replaced", {"member": "fetcher", "why": str(note.get("detail", ""))[:500]})
            return
        self.audit.reopen()
        self.metrics.policy_rejected()
        self.audit.policy(self.link.document.policy, accepted=False, detail=str(note.get("detail", "")))


@contextmanager
def _exclusive(lock: int) -> Iterator[None]:
    """Build while no other worker does, and without the collector.

    A full collection holds the interpreter for long while a large policy is built. What is built here lives
    as long as the policy, so the collector need never look at it again.
    """
    fcntl.lockf(lock, fcntl.LOCK_EX)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        fcntl.lockf(lock, fcntl.LOCK_UN)
