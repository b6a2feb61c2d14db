"""An agent in one process: the real parent's plane, fetcher, workers, gates and connections; no socket, no
thread, no fork, no clock. The caller decides what happens next, and what is wrong is written down.

What stands in for the world is small: the shell of the parent (`Agent.perform`, as `processes.supervisor`),
a loader, a disk, an issuer, an operator's two files, and HAProxy's side of connections (`Connection`).

What must hold is looked at in two parts. At each answer: the verdict is what the version in force in
that worker gives at that moment, and no version below a confirmed one. And at the end (`finish`), when
all faults are over: everybody agrees, nobody waits, nothing is left over, and the good are served.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

from tokens_support import Clock

from benchmarks.schedules.loop import START, Ear
from benchmarks.schedules.parts import Disk, File, Issuer, Process
from benchmarks.schedules.world import (
    PRINCIPALS,
    Asked,
    config,
    faults,
    keys_of,
    marks,
    max_stale,
    part,
    source,
)
from iamroles_agent.base.clocks import Clocks
from iamroles_agent.control.channel import ChannelError, Frames, message, with_parts
from iamroles_agent.control.document import KEYS as KEYS_PART
from iamroles_agent.control.document import POLICY, REVOCATIONS, Document
from iamroles_agent.control.plane import Plane
from iamroles_agent.control.slots import FETCHER, LOADER, Fail, Fork, Kill, Life, Print, Send
from iamroles_agent.live import revocations
from iamroles_agent.processes.agent import _at_start
from iamroles_agent.processes.fetcher import Fetcher
from iamroles_agent.processes.link import Startup
from iamroles_agent.processes.watch import Watch
from iamroles_agent.processes.worker import Worker
from iamroles_agent.serving.accepting import shared_counts
from iamroles_agent.tokens.admission import Callers

ALL = frozenset(f"u{one}" for one in range(PRINCIPALS))
PATIENCE = 5.0
"""Seconds after which a question may be answered `internal_error`: the policy's `decision_timeout`."""


def revoked_by(document: Document) -> frozenset[str]:
    """Principals that a document revokes."""
    found = document.parts.get(REVOCATIONS)
    return frozenset() if found is None else _listed(found.pieces)


@functools.lru_cache(64)
def _listed(pieces: tuple[bytes, ...]) -> frozenset[str]:
    return frozenset(row["principals"][0] for piece in pieces for row in json.loads(piece))


class Agent:
    """See the module.

    Args:
        workers: how many.
        trace: told what happens, where somebody wants to read it.
    """

    ill = 0
    """The number of next policies that no process can build."""

    def __init__(self, workers: int, trace: Callable[[str], None] | None = None) -> None:
        self.time, self.workers, self._trace = Clock(START), workers, trace
        self.clocks = Clocks(self.time, self.time)
        self.disk, self.file, self.issuer = Disk(), File(), Issuer()
        self.mark: int | None = 0
        """The mark of the policy in the file; None: the file is garbage."""
        self.signalled = True
        """True if a SIGHUP came after the file was changed."""
        self.refused = False
        """True if the last reload was refused."""
        Agent.ill = 0
        self.faults: list[str] = []
        """Faults found so far."""
        self.answers = self.allowed = self.reloads = self.deaths = 0
        self.ends: list[Process] = []
        self.processes: dict[int, Process] = {}
        self.loader: list[bytes] | None = None
        self._floor = self._saved = 1
        self._revoked: frozenset[str] = frozenset()
        self.start()

    def wrong(self, what: str) -> None:
        """Write down what must not be."""
        self.tell(f"WRONG: {what}")
        self.faults.append(what)

    def tell(self, what: str) -> None:
        """For a reader who follows."""
        if self._trace is not None:
            self._trace(f"{self.time.now - 1.8e9:7.2f} {what}")

    # A start, a death, an end

    def start(self) -> None:
        """As `iamroles agent run`, until everybody serves."""
        Agent.ill = 0
        restored = self.disk.kept
        self.signalled = False
        if self.mark is None and (restored is None or not restored.died):
            self.mark = 0  # it would not start: the operator mends the file
        read = restored.document.parts["policy"] if self.mark is None else part(self.mark)
        document = revocations.at_start(self.file, _at_start(restored, read))
        if restored is not None and document.version < self._saved:
            self.wrong(f"started with version {document.version}, {self._saved} was saved")
        self._floor = self._saved = document.version
        self._revoked = frozenset()
        self.disk.full = False
        self.disk.write(document)
        self.tell(f"the agent starts with version {document.version}, {document.policy}")
        self.plane = Plane(document, self.workers, clock=self.time, saves=True)
        self.plane.start()
        self.perform()
        self.run_until(lambda: self.plane.members.served)

    def die(self) -> None:
        """The whole agent dies, with all its members."""
        self.tell("the agent dies")
        self.deaths += 1
        for process in self.processes.values():
            process.dies("signal 9")
        self._forget()
        self.start()

    def stop(self) -> None:
        """SIGTERM, and another start."""
        self.tell("the agent is stopped")
        self.plane.stop()
        self.perform()
        self.run_until(lambda: self.plane.finished)
        self.disk.full = False
        self.disk.write(self.plane.document, running=False)
        self._forget()
        self.start()

    def _forget(self) -> None:
        self.ends.clear()
        self.processes.clear()
        self.loader = None

    # The parent's shell

    def perform(self) -> None:
        """Do what the plane wants done."""
        plane = self.plane
        while effects := plane.take():
            for effect in effects:
                match effect:
                    case Send(slot, said):
                        if said.say == "outcome" and said.head["body"]["done"]:
                            self._confirmed(said.head["body"])
                        process = self.processes.get(slot)
                        if process is not None and process.alive:
                            if said.say == "serve" and process.document.version != plane.document.version:
                                self.wrong(f"{process.name} is to serve {process.document.version}")
                            process.pipe.held.append(said.encode())
                    case Fork(slot):
                        self._fork(effect)
                    case Kill(slot, why):
                        self.tell(f"{slot} is killed: {why}")
                        if "nonsense" in why:
                            self.wrong(f"{slot} is killed: {why}")
                        if slot == LOADER:
                            self.loader = [b""]
                        elif slot in self.processes:
                            self.processes[slot].dies("signal 9")
                    case Print(line):
                        self._said(line)
                    case Fail(why):
                        self.wrong(f"the agent failed to start: {why}")

    def _fork(self, effect: Fork) -> None:
        self.plane.forked(effect.slot, 1)
        if effect.slot == LOADER:
            self.loader = []
            return
        process = self.processes[effect.slot] = Process(self, effect.slot)
        startup = Startup(
            index=effect.slot,
            document=self.plane.document,
            channel=Ear(),  # type: ignore[arg-type]
            listeners=[Ear()],  # type: ignore[list-item]
            counts=shared_counts(max(effect.slot, 0) + 1),
            build_lock=0,
            callers=Callers(),
            used=self.plane.used,
            why=effect.why,
            clocks=self.clocks,
        )
        if effect.slot == FETCHER:
            fetcher = Fetcher(config(0), startup, self.disk)
            fetcher._transport = self.issuer  # type: ignore[assignment]
            self.watch = Watch(self.file, fetcher.link)  # type: ignore[arg-type]
            fetcher.beside.append(self.watch.run)
            process.live(fetcher)
        else:
            process.live(Worker(config(0), startup))

    def hear(self, process: Process) -> None:
        """The parent reads what a member said."""
        if process.said:
            try:
                for said in process.frames.receive(process.said.popleft()):
                    if self._trace is not None:
                        self.tell(
                            f"the parent hears {process.name}: {said.say} {said.head.get('version', '')}"
                        )
                    self.plane.heard(process.index, said)
            except ChannelError as error:
                self.wrong(f"{process.name} talked nonsense: {error}")
        self.look()

    def look(self) -> None:
        """The parent looks at the clock."""
        self.plane.tick()
        self.perform()

    def reap(self, process: Process) -> None:
        """The parent finds that a member has ended, and reads its last words."""
        self.ends.remove(process)
        while process.said:
            self.hear(process)
        self.tell(f"the parent finds {process.name} ended: {process.end}")
        self.plane.died(process.index, process.end)
        self.look()

    def load(self) -> None:
        self.tell("SIGHUP")
        self.signalled = True
        self.plane.load()
        self.look()

    def load_on(self) -> None:
        """The loader's next step: it reads the file, it says what it found, it ends."""
        if self.loader is None:
            return
        if not self.loader:
            if self.mark is None:
                self.loader = [message("refused", error="garbage").encode(), b""]
                return
            found = part(self.mark)
            self.loader = [*(said.encode() for said in with_parts("loaded", {POLICY: found})), b""]
            return
        data = self.loader.pop(0)
        if data:
            for said in Frames().receive(data):
                self.plane.heard(LOADER, said)
        else:
            self.loader = None
            self.plane.died(LOADER, "status 0")
        self.look()

    def _said(self, line: dict[str, Any]) -> None:
        self.tell(f"says {line}")
        self.refused = line.get("reloaded") is False
        if line.get("reloaded"):
            self.reloads += 1
            self._confirmed(line)
            for process in self.processes.values():
                if process.index >= 0 and process.serves:
                    policy = process.member.gate.policy.version
                    if (process.document.version, policy) != (line["version"], line["policy"]):
                        self.wrong(f"{process.name} has {process.document.version}, confirmed is {line}")

    def _confirmed(self, outcome: dict[str, Any]) -> None:
        version = outcome["version"]
        self._floor = max(self._floor, version)
        if outcome.get("saved"):
            self._saved = max(self._saved, version)
            kept = self.disk.kept
            if kept is None or kept.document.version < version:
                self.wrong(f"version {version} is called saved, and is not on disk")

    # The operator and the issuer

    def ask_revocations(self) -> None:
        """As `iamroles revoke` does, until all is in force."""
        fetcher = self.processes.get(FETCHER)
        if fetcher is None or not fetcher.runs or not self.file.exists():
            return
        try:
            self.watch.answer({}).send(None)
        except StopIteration as stopped:
            if stopped.value["settled"] and not stopped.value["problem"]:
                self.tell(f"revocations are settled: {stopped.value['in_force']}")
                self._revoked = self.file.revoked or frozenset()

    def revoke(self, revoked: frozenset[str] | None) -> None:
        self.tell(f"revocations: {revoked}")
        self.file.write(revoked)
        if revoked is not None:
            self._revoked &= revoked

    # What must hold

    def judge(self, process: Process, question: tuple[Asked, float], said: tuple[bool, str, str]) -> None:
        """Hold one verdict against what is in force in its worker at this moment."""
        (asked, since), (allow, reason, rule) = question, said
        self.answers += 1
        self.allowed += allow
        document, now = process.document, self.time.now
        if self._trace is not None:
            self.tell(f"{process.name} (version {document.version}) answers {asked}: {rule or reason}")
        if document.version < self._floor and reason != "internal_error":
            self.wrong(f"{process.name} answers by version {document.version}, {self._floor} was confirmed")
        mark = marks()[document.policy]
        found = document.parts.get(KEYS_PART + source(mark))
        keys = None
        if found is not None and now - found.stamp < max_stale(mark):
            keys = keys_of(found.pieces[0])
        expected = faults(asked, mark=mark, keys=keys, revoked=revoked_by(document), now=now)
        if allow:
            if f"u{asked.principal}" in self._revoked:
                self.wrong(f"{process.name} allows {asked}, whose revocation is settled")
            if expected:
                self.wrong(f"{process.name} allows {asked}, which is {sorted(expected)}")
            elif rule != f"V{mark}-{asked.path}":
                self.wrong(f"{process.name} allows {asked} by {rule}, in force is mark {mark}")
        elif reason == "internal_error":
            if now - since < PATIENCE and not process.member.link.drained.is_set():
                self.wrong(f"{process.name} fails {asked} after {now - since:.2f} s")
        elif reason not in expected:
            self.wrong(f"{process.name} refuses {asked} as {reason}, it is {sorted(expected)}")

    # Letting all be well

    def deliver_all(self) -> bool:
        """Whatever can happen without the clock happens; whether there was anything."""
        happened = False
        for process in list(self.processes.values()):
            happened |= self.relieve(process)
        while self.ends:
            self.reap(self.ends[0])
            happened = True
        while self.loader is not None:
            self.load_on()
            happened = True
        return happened

    def relieve(self, process: Process) -> bool:
        """All that waits in or for one member happens."""
        happened = False
        while process.said and process.alive:
            self.hear(process)
            happened = True
        if not process.runs:
            return happened
        process.loop.run()
        while process.runs and process.pipe.waiting:
            process.step(process.pipe.deliver)
            happened = True
        for connection in list(process.connections):
            connection.pipe.ended |= connection.over  # HAProxy closes what is over
            while process.runs and connection.pipe.waiting:
                process.step(connection.pipe.deliver)
                happened = True
            if connection.pipe.closed:
                process.connections.remove(connection)
        while process.runs and process.loop.jobs:
            job = process.loop.jobs.pop(0)
            if not job.ran:
                job.run()
            process.step(job.report)
            happened = True
        return happened

    def pass_time(self, seconds: float) -> None:
        """Time passes for all who are not frozen."""
        self.time.now += seconds
        for process in list(self.processes.values()):
            if process.runs:
                process.loop.run()
        self.look()

    def run_until(self, enough: Callable[[], bool], seconds: float = 60.0) -> None:
        """All faults are over: let everything happen until it is enough."""
        for process in self.processes.values():
            process.frozen = False
        end = self.time.now + seconds
        while not self.faults:
            while self.deliver_all():
                pass
            if enough():
                return
            if self.time.now >= end:
                self.wrong(f"after {seconds:g} s without a fault: {self.plane.status()}")
                return
            self.pass_time(0.25)

    def calm(self) -> bool:
        """Return whether the plane has nothing to do."""
        plane = self.plane
        return (
            plane.changes.confirmed == len(plane.members.workers)
            and plane.members.slots[FETCHER].life is Life.UP
            and plane.changes.phase is None
            and not plane.reloads.busy
            and not any(process.member.link.drained.is_set() for process in self.processes.values())
        )
