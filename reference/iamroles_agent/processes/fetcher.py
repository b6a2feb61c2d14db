"""The fetcher: the only process of the agent that goes out, on behalf of all.

It fetches each key set once for all workers, calls STS within one budget, saves what is in force, and answers
on the local socket. It does not decide what is in force: it proposes parts, and the parent puts them in force
everywhere. When it dies, the next one begins with what the parent has, and the parent asks it what the dead
one had not answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from iamroles_agent.base.config import Config
from iamroles_agent.control import policy_part
from iamroles_agent.control.channel import message
from iamroles_agent.control.document import KEYS, POLICY, Document, Edits, Part, Parts
from iamroles_agent.control.member import Kinds, Step
from iamroles_agent.control.store import Store
from iamroles_agent.processes import handover, in_force
from iamroles_agent.processes.link import Body, Link, LinkLost, Startup
from iamroles_agent.processes.local_socket import LocalSocket
from iamroles_agent.processes.remote import KEYS as KEYS_TOPIC
from iamroles_agent.processes.remote import STS, answer_sts
from iamroles_agent.processes.watch import Watch
from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.keyring import source_of
from iamroles_agent.tokens.keys import KeySetError
from iamroles_agent.tokens.sts import StsVerifier
from iamroles_agent.tokens.transport import Transport

_PARENT = 3.0
"""Seconds for the parent to answer."""
_DISK = 2.0
"""Seconds after which what is in force counts as not saved; the parent reports it after 3 s."""
_AGAIN = 5.0
"""Seconds after which saving, or a set that could not be put in force, is tried again."""
_COMING = "another agent is about to take over"

log = logging.getLogger("iamroles.fetcher")


class Fetcher:
    """Runs in the fetcher's process.

    Args:
        config: of the start.
        startup: the state that it starts with.
        store: where to save the document in force.
    """

    def __init__(self, config: Config, startup: Startup, store: Store | None = None) -> None:
        self.config, self.startup, self._store = config, startup, store
        self.link = Link(startup.channel, startup.document, self._stats)
        self.link.on_note = self._noted
        self.sources: dict[str, KeySource] = {}
        """By `source_of`."""
        self.sts: StsVerifier | None = None
        self.kinds: Kinds = {POLICY: self._build_policy}
        self.beside: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """Further tasks that run as long as the fetcher."""
        self.local_socket: LocalSocket | None = None
        """For questions of this host's user."""
        self.watch: Watch | None = None
        """On the file of revocations."""
        self.about: Body = {}
        """The fetcher's own part of the answer to `status`."""
        self._transport = Transport()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._proposed: dict[str, Part] = {}
        """Key sets that are in force, or are to be, by `source_of`."""
        self._unsaved = asyncio.Event()
        self._saving = asyncio.Lock()
        self._leaving = self._handed = False
        self._save_error = ""
        """Why the document in force is not saved; "" if it is saved, or about to be."""

    async def run(self) -> None:
        """Live until the parent says to drain, or is gone.

        Raises:
            ConfigError: what is in force cannot be built.
        """
        self.link.on_ask[KEYS_TOPIC] = self._want_keys
        self.link.on_ask[STS] = self._ask_sts
        await self.link.open()
        try:
            await self.link.member.build(self.kinds)
            self.link.up()
            self.link.member.on_switch = self._switched
            self.link.member.on_stamp = lambda _name, _at: self._unsaved.set()
            self._switched(self.link.document)
            if self.local_socket is not None:
                self.local_socket.commands["status"] = self._status
                if self._store is not None:
                    self.local_socket.conversations[handover.COMMAND] = self._hand_over
                self.local_socket.commands["revocations"] = self._revocations
                await self.local_socket.open()
            if self._store is not None:
                self.spawn(self._keep_saved(self._store))
            if self.watch is not None:
                self.spawn(self._lasting(self.watch.run))
            for work in self.beside:
                self.spawn(self._lasting(work))
            await self.link.drained.wait()
            if self._handed:  # stopped meanwhile: what the next agent has is left to it
                self.link.send(message("leave"))
        finally:
            await self._close()

    async def _close(self) -> None:
        if self.local_socket is not None:
            self.local_socket.close()
        for task in self._tasks:
            task.cancel()
        if self.sts is not None:
            await self.sts.close()
        for source in self.sources.values():
            await source.close()
        self._transport.close()
        self.link.close()

    def spawn(self, work: Any) -> None:  # noqa: ANN401 - a coroutine
        """Run something beside all else, until the fetcher ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _lasting(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin again, after a while, what ended with an error, such as a lack of memory."""
        while True:
            try:
                return await work()
            except Exception:
                log.exception("a task of the fetcher failed")
            await asyncio.sleep(_AGAIN)

    def _stats(self) -> Body:
        keys = {
            source.issuer.name: {
                "age": None if source.age is None else round(source.age, 3),
                "kids": len(source.kids),
                "fetches": source.fetches,
                "failures": source.failures,
            }
            for source in self.sources.values()
        }
        sts = {} if self.sts is None else dict(self.sts.counts)
        return {"keys": keys, "sts": sts, "revocations": "" if self.watch is None else self.watch.problem}

    async def _status(self, question: Body) -> Body:
        del question
        now = self.startup.clocks.epoch()
        error = self._save_error
        if not error and self._store is not None and (gone := self._store.missing()):
            error = f"{gone} is gone; it is saved again"
            self._unsaved.set()
        return {**self.about, "save_error": error, **await self.link.status(), "now": now}

    async def _revocations(self, question: Body) -> Body:
        """Report which revocations are in force, and for what; with an `id` in the question, of this one."""
        if (watch := self.watch) is None:
            return {"error": "this agent was started without `live.revocations`: restart it"}
        listed = await watch.answer(question)
        try:
            async with asyncio.timeout(_PARENT):
                status = await self.link.status()
        except TimeoutError:
            return {"error": "the agent's parent process does not answer"}
        problem = watch.problem or _COMING * self._leaving  # perhaps that agent began before the revocation
        found = in_force.of({**status, "fetcher": {"revocations": problem}})
        return listed | {"workers": status["workers"], "enforced": asdict(found)}

    def _noted(self, note: Body) -> None:
        """Hold no listening socket while the workers drain, so that a new connection is refused at once."""
        while note.get("event") == "stopping" and self.startup.listeners:
            self.startup.listeners.pop().close()

    async def _hand_over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand over to the next agent, which asks for it; see `handover`."""
        assert self._store is not None  # noqa: S101 - only offered with one
        assert self.local_socket is not None  # noqa: S101 - it came through it
        if self._leaving:
            writer.write(json.dumps({"error": _COMING}).encode())
            return
        if not self.startup.listeners:
            return  # it is stopping
        self._leaving = True  # from here on nothing is saved here, unless the next agent fails
        gone = False
        try:
            async with self._saving:
                try:
                    await asyncio.to_thread(self._store.write, self.link.document)
                except OSError as error:
                    why = f"what is in force cannot be saved: {error.strerror or error}"
                    log.error("nothing is handed over: %s", why)
                    writer.write(json.dumps({"error": why}).encode())
                    return
                log.info("handing over to another agent")
                sockets = self.startup.listeners, self.local_socket.sock, self._store.descriptor
                self._handed = True
                gone = await handover.give(reader, writer, *sockets)
                if gone:
                    self.link.send(message("leave"))
                    writer.write(handover.LEAVES)
                    self.local_socket.close()
                    await self.link.drained.wait()
        finally:
            if not (gone or self.link.drained.is_set()):
                self._leaving = self._handed = False
                self._unsaved.set()
                log.warning("the agent that was to take over did not get ready")

    async def _keep_saved(self, store: Store) -> None:
        """Save what is in force whenever it changed, and report it; try again after a while if it failed."""
        while True:
            await self._unsaved.wait()
            self._unsaved.clear()
            if self._leaving:  # until that agent is ready, or has failed
                self._report_saved(self.link.document.version, _COMING)
                continue
            error = kept = ""
            async with self._saving:
                document = self.link.document
                writing = asyncio.ensure_future(asyncio.to_thread(store.write, document))
                try:
                    done, _ = await asyncio.wait((writing,), timeout=_DISK)
                    if not done:
                        self._save_error = "the disk has not answered yet"
                    try:
                        if not done or writing.exception() is not None:
                            kept = await asyncio.to_thread(store.disown, document)
                    finally:
                        await writing
                except Exception as failed:  # noqa: BLE001 - also a lack of memory, or of threads
                    error = (getattr(failed, "strerror", "") or str(failed) or type(failed).__name__) + kept
                    log.error("what is in force cannot be saved: %s", error)
                    asyncio.get_running_loop().call_later(_AGAIN, self._unsaved.set)
            self._report_saved(document.version, error)

    def _report_saved(self, version: int, error: str) -> None:
        self._save_error = error
        self.link.send(message("saved", version=version, error=error))

    # Keys

    def _build_policy(self, _edits: Edits, coming: Parts) -> Step:
        """Take from a policy only its issuers and STS endpoints."""
        config = policy_part.decode_base(coming[POLICY])
        return lambda: self.configure(config)

    def configure(self, config: Config) -> None:
        """Fetch the keys of these issuers alone, and call these STS endpoints alone."""
        clocks = self.startup.clocks
        wanted = {source_of(issuer): issuer for issuer in config.issuers}
        for name in [name for name in self.sources if name not in wanted]:
            self.spawn(self.sources.pop(name).close())
            self._proposed.pop(name, None)
        for name, issuer in wanted.items():
            if name in self.sources:
                self.sources[name].configure(issuer, config.keys)
                continue
            source = KeySource(
                issuer,
                config.keys,
                self._transport,
                on_loss=lambda: None,
                on_taken=partial(self._taken, name),
                monotonic=clocks.monotonic,
            )
            self.sources[name] = source
            self._restore(name, source)
            source.start()
        former, clock, monotonic = self.sts, clocks.epoch, clocks.monotonic
        known = self.startup.callers
        self.sts = StsVerifier(config.sts, self._transport, clock=clock, monotonic=monotonic, callers=known)
        if former is not None:
            self.sts.succeed(former)
        else:
            self.sts.remember(self.startup.used)
            self.sts.on_used = lambda what, until: self.link.send(message("used", what=what, until=until))

    def _restore(self, name: str, source: KeySource) -> None:
        part = self.link.document.parts.get(KEYS + name)
        if part is None:
            return
        try:
            source.restore(json.loads(part.pieces[0]), part.stamp)
        except (ValueError, KeySetError) as error:
            log.warning("issuer %s: its key set is fetched again: %s", source.issuer.name, error)
        else:
            self._proposed[name] = part

    def _switched(self, document: Document) -> None:
        """Save the version that is in force now, and make it hold the key sets of this fetcher alone.

        A reload may want a source again whose removal is on its way, or may drop a source whose keys are on
        their way.
        """
        self._unsaved.set()
        held = {KEYS + name: part for name, part in self._proposed.items()}
        edits: dict[str, Part | None] = {
            name: held.get(name)
            for name in held.keys() ^ {name for name in document.parts if name.startswith(KEYS)}
            if name in held or name.removeprefix(KEYS) not in self.sources
        }
        if edits:
            self._propose(edits)

    def _taken(self, name: str, document: dict[str, Any], fetched_at: float) -> None:
        if name not in self.sources:
            return  # it came in the moment in which the policy dropped its source
        text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(text).hexdigest()[:16]
        part = Part.of((text,), digest=f"sha256:{digest}", stamp=fetched_at)
        before = self._proposed.get(name)
        self._proposed[name] = part
        enforced = self.link.document.parts.get(KEYS + name)
        if before is not None and enforced is not None and before.digest == enforced.digest == part.digest:
            self.link.send(message("stamp", name=KEYS + name, at=fetched_at))
        else:
            self._propose({KEYS + name: part})

    def _propose(self, edits: Edits) -> None:
        # At once, not in a task: a worker that asks for these keys now is answered when they are in force.
        with suppress(LinkLost):
            self.spawn(self._proposal(edits, self.link.propose(edits)))

    async def _proposal(self, edits: Edits, coming: asyncio.Future[Body]) -> None:
        try:
            outcome = await coming
        except LinkLost:
            return
        if not outcome["done"]:
            # Perhaps a worker had no memory. The next fetch may be an hour away: `want` finds the key here.
            log.error("%s could not be put in force: %s", ", ".join(edits), outcome["error"])
            await asyncio.sleep(_AGAIN)
            held = {KEYS + name: part for name, part in self._proposed.items()}
            if again := {name: part for name, part in edits.items() if held.get(name) is part}:
                self._propose(again)

    async def _want_keys(self, body: Body) -> Body:
        source = self.sources.get(str(body["source"]))
        if source is None:
            return {"pause": 0.0}
        await source.want(body["kid"])
        return {"pause": source.pause, "after": True}

    async def _ask_sts(self, body: Body) -> Body:
        assert self.sts is not None  # noqa: S101 - configured before the fetcher is up
        version = self.link.document.version
        return await answer_sts(self.sts, body) | {"version": version}
