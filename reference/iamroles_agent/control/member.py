"""A member's side of changes, without its socket.

A member holds the document that it was born with. Pieces and a `prepare` make the next one, which is built in
a thread and kept under its version; `switch` puts it in force, `abort` forgets it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from iamroles_agent.base.errors import ConfigError
from iamroles_agent.control.channel import ChannelError, Message, message, read_parts
from iamroles_agent.control.document import Document, Edits, Parts

log = logging.getLogger("iamroles.link")

Step = Callable[[], None]
"""Puts what was built in force; runs on the event loop, and cannot fail."""
Build = Callable[[Edits, Parts], Step]
"""Builds one kind of part, in a thread, in steps that let the event loop run: from the parts of this kind
that change, and all parts of the next version. Nothing changes before the step that it returns is called.
Raises ConfigError if this member cannot enforce that."""
Kinds = Mapping[str, Build]
"""By name, or by a prefix that ends in `/`, in the order in which their steps run. Other parts are held and
not looked at."""


def build(kinds: Kinds, edits: Edits, coming: Parts) -> Step:
    """Build all kinds; the step puts everything in force at once."""
    steps = []
    for kind, build_kind in kinds.items():
        mine = {
            name: part
            for name, part in edits.items()
            if name == kind or (kind.endswith("/") and name.startswith(kind))
        }
        if mine:
            steps.append(build_kind(mine, coming))

    def switch() -> None:
        for step in steps:
            step()

    return switch


@dataclass(slots=True)
class _Coming:
    document: Document
    step: Step | None = None


class Member:
    """See the module.

    Args:
        document: what the member was born with.
        send: sends a message to the parent.
        spawn: runs a coroutine beside all else.
    """

    def __init__(
        self,
        document: Document,
        send: Callable[[Message], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self.document = document
        self.on_stamp: Callable[[str, float], None] = lambda _name, _at: None
        self.on_switch: Callable[[Document], None] = lambda _document: None
        self._send, self._spawn = send, spawn
        self._kinds: Kinds = {}
        self._pieces: list[bytes] = []
        self._coming: dict[int, _Coming] = {}
        self._building = asyncio.Lock()

    async def build(self, kinds: Kinds) -> None:
        """Build and put in force what this member was born with, and take changes from now on.

        Raises:
            ConfigError: it cannot be built.
        """
        self._kinds = kinds
        async with self._building:
            parts = self.document.parts
            step = await asyncio.to_thread(build, kinds, parts, parts)
            step()

    def heard(self, said: Message) -> None:
        """Take a message about the document.

        Raises:
            ChannelError: it makes no sense.
        """
        match said.say:
            case "piece":
                self._pieces.append(said.body)
            case "prepare":
                self._prepare(said)
            case "switch":
                self._switch(said.number("version"))
            case "abort":
                self._abort(said.number("version"))
            case "stamp":
                self._stamp(said.text("name"), said.at())
            case other:
                raise ChannelError(f"{other!r} is not a message to a member")

    def _prepare(self, said: Message) -> None:
        version, edits = said.number("version"), read_parts(said, self._pieces)
        coming = self._coming[version] = _Coming(self.document.edited(edits, version))
        self._spawn(self._build(edits, coming))

    async def _build(self, edits: Edits, coming: _Coming) -> None:
        version = coming.document.version
        async with self._building:
            if version not in self._coming:
                return
            try:
                step = await asyncio.to_thread(build, self._kinds, edits, coming.document.parts)
            except ConfigError as error:
                self._send(message("refused", version=version, error=str(error)))
            except Exception as error:
                log.exception("version %d cannot be built", version)
                what = f"it cannot be built: {type(error).__name__}: {error}"
                self._send(message("refused", version=version, error=what))
            else:
                if version in self._coming:  # else it was given up meanwhile
                    coming.step = step
                    self._send(message("prepared", version=version))

    def _switch(self, version: int) -> None:
        coming = self._coming.pop(version, None)
        if coming is None or coming.step is None:
            raise ChannelError(f"a switch to version {version}, which was not prepared")
        self.document = coming.document
        coming.step()
        self._send(message("switched", version=version))
        self.on_switch(self.document)

    def _abort(self, version: int) -> None:
        self._coming.pop(version, None)

    def _stamp(self, name: str, at: float) -> None:
        self.document = self.document.stamped(name, at)
        for coming in self._coming.values():
            coming.document = coming.document.stamped(name, at)
        self.on_stamp(name, at)
