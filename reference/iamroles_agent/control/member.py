"""A member's side of the control plane, without its socket: what the parent says, and what is to be done.

A member holds the document that it was born with. Pieces and a `prepare` make the next one, which is kept
beside it under its version; `switch` puts that in force, `abort` forgets it. What building means is the
business of `Holdings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from iamroles_agent.control.channel import ChannelError, Message
from iamroles_agent.control.document import Document, Edits, Part, Parts

Step = Callable[[], None]
"""Puts what was built in force; runs on the event loop, and cannot fail."""


class Holding(Protocol):
    """What a member makes of one kind of part."""

    def prepare(self, edits: Edits, coming: Parts) -> Step:
        """Build what parts of this kind ask for, in a thread, in steps that let the event loop run.

        Args:
            edits: the parts of this kind that change.
            coming: all parts of the version to be.

        Returns:
            The step that puts it in force. Nothing has changed before it is called.

        Raises:
            ConfigError: this member cannot enforce that.
        """


class Holdings:
    """All kinds of parts that a member understands; others are held and not looked at.

    Args:
        kinds: by name, or by prefix where it ends in `/`, in the order in which their steps run.
    """

    def __init__(self, kinds: Mapping[str, Holding]) -> None:
        self._kinds = dict(kinds)

    def prepare(self, edits: Edits, coming: Parts) -> Step:
        """As `Holding.prepare`, for all kinds; the step puts everything in force at once."""
        steps = []
        for kind, holding in self._kinds.items():
            mine = {name: part for name, part in edits.items() if _is(name, kind)}
            if mine:
                steps.append(holding.prepare(mine, coming))

        def switch() -> None:
            for step in steps:
                step()

        return switch


def _is(name: str, kind: str) -> bool:
    return name.startswith(kind) if kind.endswith("/") else name == kind


@dataclass(frozen=True, slots=True)
class Prepare:
    """Build these edits, keep the step under the document's version, answer `prepared` or `refused`."""

    document: Document
    edits: Edits


@dataclass(frozen=True, slots=True)
class Switch:
    """Run the step of that version, answer `switched`."""

    version: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Forget that version."""

    version: int


@dataclass(slots=True)
class Member:
    """See the module."""

    document: Document
    _coming: dict[int, Document] = field(default_factory=dict)
    _pieces: dict[tuple[int, str], list[bytes]] = field(default_factory=dict)

    def wants(self, version: int) -> bool:
        """Whether a version that was to be built is still to come: it was neither switched to nor aborted."""
        return version in self._coming

    def heard(self, said: Message) -> Prepare | Switch | Abort | None:
        """Take a message about the document.

        Raises:
            ChannelError: it makes no sense.
        """
        match said.say:
            case "piece":
                key = said.number("version"), said.text("name")
                self._pieces.setdefault(key, []).append(said.body)
                return None
            case "prepare":
                return self._prepare(said.number("version"), said.table("parts"))
            case "switch":
                return self._switch(said.number("version"))
            case "abort":
                version = said.number("version")
                self._coming.pop(version, None)
                return Abort(version)
            case "stamp":
                at = said.head.get("at")
                if type(at) is not float:
                    raise ChannelError("a stamp without a time")
                self._stamp(said.text("name"), at)
                return None
            case other:
                raise ChannelError(f"{other!r} is not a message to a member")

    def _prepare(self, version: int, parts: dict[str, Any]) -> Prepare:
        edits: dict[str, Part | None] = {}
        for name, about in parts.items():
            held = tuple(self._pieces.pop((version, name), ()))
            if about is None:
                edits[name] = None
                continue
            if len(held) != about["pieces"]:
                raise ChannelError(f"{len(held)} pieces of {name}, not {about['pieces']}")
            edits[name] = Part.of(held, digest=about["digest"], stamp=about["stamp"])
        document = self._coming[version] = self.document.edited(edits, version)
        return Prepare(document, edits)

    def _switch(self, version: int) -> Switch:
        if version not in self._coming:
            raise ChannelError(f"a switch to version {version}, which was not prepared")
        self.document = self._coming.pop(version)
        return Switch(version)

    def _stamp(self, name: str, at: float) -> None:
        self.document = self.document.stamped(name, at)
        for version, document in self._coming.items():
            self._coming[version] = document.stamped(name, at)
