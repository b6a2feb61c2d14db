"""Parts around a simulated agent: members, HAProxy's side of connections, a disk, a file, an issuer."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from spop_transcript import disconnect, hello, notify

from benchmarks.schedules.loop import Job, Loop, Pipe
from benchmarks.schedules.world import (
    MARKS,
    Asked,
    address,
    key_set,
    notify_payload,
)
from iamroles_agent.base import files
from iamroles_agent.base.errors import ConfigError, StartError
from iamroles_agent.control.channel import Frames, message
from iamroles_agent.control.document import KEYS, POLICY, Document
from iamroles_agent.control.slots import FETCHER
from iamroles_agent.control.store import Restored, Store
from iamroles_agent.live import revocations
from iamroles_agent.spop import actions
from iamroles_agent.spop.frames import FrameBuffer, FrameType
from iamroles_agent.tokens.transport import Answer, TransportError

if TYPE_CHECKING:
    from benchmarks.schedules.agent import Agent


@functools.lru_cache(65536)
def verdict(payload: bytes) -> tuple[bool, str, str]:
    """Return whether an ACK allows, its reason, its rule."""
    found = {action.name: action.value for action in actions.decode(payload) if action.kind is not None}
    return (
        found["allow"] is True,
        bytes(found.get("reason", b"")).decode(),
        bytes(found.get("rule", b"")).decode(),
    )


@functools.lru_cache(65536)
def question(asked: Asked, number: int) -> bytes:
    """The frame of a question."""
    return notify(notify_payload(asked), ids=(number, 1))


class Disk(Store):
    """A state directory in memory, which may be full."""

    def __init__(self) -> None:
        self.kept: Restored | None = None
        self.full = False

    def write(self, document: Document, *, running: bool = True) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.kept = Restored(document, died=running)

    def disown(self, document: Document) -> str:
        if self.kept is not None and self.kept.document.policy != document.policy:
            kept = self.kept.document
            self.kept = Restored(kept.edited({POLICY: None}, kept.version), died=False)
        return ""


class File:
    """The operator's file of revocations."""

    def __init__(self) -> None:
        self.revoked: frozenset[str] | None = frozenset()
        """Principals; None: the file is gone."""
        self.edits = 0

    def write(self, revoked: frozenset[str] | None) -> None:
        self.revoked, self.edits = revoked, self.edits + 1

    def exists(self) -> bool:
        return self.revoked is not None

    def stat(self) -> Any:
        if self.revoked is None:
            raise FileNotFoundError(2, "gone")
        return SimpleNamespace(st_mtime_ns=self.edits, st_ctime_ns=self.edits, st_size=1, st_ino=1)

    def content(self) -> bytes:
        if self.revoked is None:
            raise FileNotFoundError(2, "gone")
        rows = [f'[[revocations]]\nid = "{who}"\nprincipals = ["{who}"]\n' for who in sorted(self.revoked)]
        return "\n".join(["# in memory", *rows]).encode()


def _read(path: Any, limit: int) -> bytes:
    return path.content() if isinstance(path, File) else files.read(path, limit)


revocations.files = SimpleNamespace(read=_read, write=files.write)  # type: ignore[attr-defined]


class Issuer:
    """Answers of the addresses of key sets; a `Transport` of the fetcher."""

    def __init__(self) -> None:
        self.keys = {address(mark): frozenset({(0, 0), (1, 0)}) for mark in range(MARKS)}
        self.mood = "good"

    async def get(self, url: str, *, seconds: float, **about: Any) -> Answer:
        """Answer when the schedule says so."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.jobs.append(Job(future, lambda: self._answer(url)))  # type: ignore[attr-defined]
        try:
            async with asyncio.timeout(2 * seconds + 1.0):
                answer: Answer = await future
        except TimeoutError:
            raise TransportError("the answer took too long") from None
        return answer

    def _answer(self, url: str) -> Answer:
        if self.mood == "down":
            raise TransportError("cannot connect")
        if self.mood == "failing":
            return Answer(503, "text/plain", b"")
        return Answer(
            200, "application/json", b'{"keys": 7}' if self.mood == "lying" else key_set(self.keys[url])
        )

    def close(self) -> None:
        pass


class Process:
    """A member of the agent.

    Args:
        agent: whose.
        index: its place.
    """

    def __init__(self, agent: Agent, index: int) -> None:
        self.index, self.agent = index, agent
        self.alive, self.frozen = True, False
        self.end = ""
        """Its exit status, for the parent to find."""
        self.said: deque[bytes] = deque()
        self.frames = Frames()
        self.pipe = Pipe(self._says)
        self.loop = Loop(agent.time, self.pipe, self._wrong)
        self.connections: list[Connection] = []
        self.member: Any = None
        self._digests = {name: part.digest for name, part in agent.plane.document.parts.items()}
        """Digests of parts: what it was born with, or has proposed since."""

    def live(self, member: Any) -> None:
        self.member = member
        self.loop.inside(lambda: self.loop.create_task(member.run()).add_done_callback(self._ended))

    def _says(self, data: Any) -> None:
        self.said.append(data)
        said = data.said
        if said.say == "propose":
            self._digests |= {name: about["digest"] for name, about in said.head["parts"].items() if about}
        elif said.head.get("after"):  # not before all that it has is in force
            for name, part in self.member._proposed.items():
                if self._digests.get(KEYS + name) != part.digest:
                    self._wrong(f"it answers of the keys {part.digest} before it proposes them")

    def _ended(self, task: Any) -> None:
        if not self.alive:
            return
        error = task.exception()
        if isinstance(error, StartError | ConfigError):
            self.said.append(message("failed", error=str(error)).encode())
        elif error is not None:
            self._wrong(f"it ended with {type(error).__name__}: {error}")
        self.dies("status 3" if error else "status 0")

    def dies(self, how: str) -> None:
        """Its process ends, whatever it was about to do."""
        if self.alive:
            self.alive, self.end = False, how
            for connection in self.connections:
                connection.lost()
            self.agent.ends.append(self)

    def _wrong(self, what: str) -> None:
        if self.alive:
            self.agent.wrong(f"{self.name}: {what}")

    @property
    def runs(self) -> bool:
        """Return whether it can do anything."""
        return self.alive and not self.frozen

    @property
    def serves(self) -> bool:
        """Return whether it answers questions."""
        return self.alive and self.loop.accept is not None

    @property
    def document(self) -> Document:
        """Return what is in force in it."""
        return self.member.link.document

    @property
    def name(self) -> str:
        return "fetcher" if self.index == FETCHER else f"worker {self.index}"

    def step(self, work: Callable[[], Any]) -> Any:
        """Let something happen to it, then let it run."""
        if not self.runs:
            return None
        try:
            return self.loop.inside(work)
        except Exception as error:  # noqa: BLE001 - what asyncio would log, and end the connection for
            self._wrong(f"{type(error).__name__}: {error}")
            return None


class Connection:
    """HAProxy's side of a connection to a worker."""

    def __init__(self, agent: Agent, process: Process) -> None:
        self.agent, self.process = agent, process
        self.waiting: dict[bytes, tuple[Asked, float]] = {}
        self.over = False
        self._buffer = FrameBuffer(1 << 20)
        self._numbers = 0
        self.pipe = Pipe(self._receive)
        process.loop.ear.waiting = self.pipe
        process.connections.append(self)
        process.step(process.loop.accept)
        self.pipe.held.append(hello())

    def ask(self, asked: Asked) -> None:
        self._numbers += 1
        data = question(asked, self._numbers)
        ids = next(iter(FrameBuffer(1 << 20).split(data))).ids
        self.waiting[bytes(ids)] = asked, self.agent.time.now
        self.pipe.held.append(data)

    def say_goodbye(self) -> None:
        self.pipe.held.append(disconnect())

    def close(self) -> None:
        """HAProxy closes: nobody waits for an answer from now on."""
        self.lost()
        self.process.step(self.pipe.abort)

    def lost(self) -> None:
        self.over = True
        self.waiting.clear()

    def _receive(self, data: bytes) -> None:
        if not self.process.alive:
            return
        for frame in self._buffer.split(data):
            if frame.type == FrameType.AGENT_DISCONNECT:
                self.lost()
            elif frame.type == FrameType.ACK and not self.over:
                asked = self.waiting.pop(bytes(frame.ids), None)
                if asked is None:
                    self.agent.wrong(f"{self.process.name} answered {frame.ids.hex()}, which does not wait")
                else:
                    said = verdict(bytes(frame.data[frame.start : frame.end]))
                    self.agent.judge(self.process, asked, said)

    @property
    def unanswered(self) -> list[tuple[Asked, float]]:
        """Questions that must still be answered."""
        return [] if self.over or self.pipe.closed else list(self.waiting.values())
