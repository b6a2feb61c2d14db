"""The document in force on disk, so that it outlives the death of the whole agent.

The state directory holds an index and a file for each part, named by its content. Files are made beside the
old ones, synced and renamed; the index is replaced last, so at every moment it names files that are whole.
Everything is owner-only, and is checked when it is read: owner, mode, form, and each part's hash. The agent
does not start on a directory that fails the check: it must not forget a revocation in silence.

`running` in the index tells a death from an orderly end. After a death the policy in force is the accepted
one, whatever the file says by then; after an orderly end the file is read as at a first start. Key sets
and all other parts come back in both cases. If a version or an orderly end cannot be saved, the saved
policy is removed (`disown`): it must not come back, so the file decides after a death too. Stamps are epoch
seconds on disk, because the monotonic clock does not outlive a reboot; an age below zero counts as unknown,
and such a part is stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iamroles_agent.base import files
from iamroles_agent.base.errors import ENDING, StartError
from iamroles_agent.control.document import POLICY, Document, Part

_INDEX = "in-force.json"
LOCK = "lock"
_FORMAT = 1
_MAX_INDEX = 4 << 20
_MAX_PART = 64 << 20
_FILE = re.compile(r"part-[0-9a-f]{64}")
_LENGTH = struct.Struct(">I")
_LONG_AGO = 1e9
"""Seconds of age of a part whose stamp lies in the future."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The content of a state directory."""

    document: Document
    died: bool
    """True if the previous agent did not end in an orderly way, and the policy that it accepted is here."""


class Store:
    """A state directory.

    Args:
        directory: made if it does not exist; its parent must exist.

    Raises:
        StartError: it cannot be used, or belongs to another user.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        """The directory."""
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            found = directory.lstat()
            if not stat.S_ISDIR(found.st_mode):
                raise self._unusable(f"{directory.name} is of the wrong kind")
            files.check_private(directory, found)
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from None
        self._lock: int | None = None
        self._written: set[str] = set()
        """Names of the files that were saved last."""

    def lock(self, inherited: int | None = None) -> None:
        """Be the only agent of this directory until this process has ended.

        Args:
            inherited: the lock itself, from the agent that this one replaces.

        Raises:
            StartError: another agent uses it.
        """
        if inherited is not None:
            self._lock = inherited
        else:
            self._lock = self._locked()
        for half in self.directory.glob(".*.new"):  # of a writer that died: no other process writes here now
            with contextlib.suppress(OSError):
                half.unlink()

    def _locked(self) -> int:
        path = self.directory / LOCK
        try:
            return files.lock(path, ENDING)
        except files.HeldError as error:
            raise StartError(
                f"the state directory {self.directory} cannot be used: another agent uses it "
                f"({error.strerror}). Stop that one, take over from it (--take-over), or name another "
                "directory in agent.state_dir"
            ) from None
        except OSError as error:
            raise self._unusable(f"{LOCK}: {error.strerror or error}") from None

    @property
    def descriptor(self) -> int:
        """The descriptor of the lock, for an agent that takes over."""
        assert self._lock is not None  # noqa: S101 - locked at the start
        return self._lock

    def let_go(self) -> None:
        """Close the lock, in a child: it must not outlive the parent in a child that drains."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _unusable(self, why: str) -> StartError:
        return StartError(
            f"the state directory {self.directory} cannot be used: {why}. Name a directory of this user "
            "alone (mode 0700) in agent.state_dir; or, to start from the configuration and forget what was "
            "in force, move this one away"
        )

    def read(self) -> Restored | None:
        """Read the saved document; None if the directory was never used.

        Raises:
            StartError: the directory cannot be trusted.
        """
        try:
            index = json.loads(self._read(_INDEX, _MAX_INDEX))
            document = self._document(index)
            return Restored(document, died=bool(index["running"]) and POLICY in document.parts)
        except FileNotFoundError as error:
            if str(error.filename).endswith(_INDEX):
                return None
            raise self._unusable(f"{error.filename} is missing") from None
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._unusable(f"{_INDEX} is damaged ({type(error).__name__}: {error})") from None

    def _document(self, index: dict[str, Any]) -> Document:
        if index["format"] != _FORMAT:
            raise ValueError(f"format {index['format']}, this agent reads {_FORMAT}")
        parts: dict[str, Part] = {}
        for name, about in index["parts"].items():
            try:
                parts[name] = self._part(about)
            except FileNotFoundError:
                if name != POLICY:
                    raise
        version = index["version"]
        if type(version) is not int or version < 1:
            raise ValueError(f"version {version}")
        return Document(version, parts)

    def _part(self, about: dict[str, Any]) -> Part:
        file = about["file"]
        if not _FILE.fullmatch(file):
            raise ValueError(f"the file name {file!r}")
        content = self._read(file, _MAX_PART)
        if f"part-{hashlib.sha256(content).hexdigest()}" != file:
            raise ValueError(f"{file} does not hold what its name says")
        pieces = tuple(_unpack(content))
        age = time.time() - float(about["stamp"])
        return Part.of(
            pieces, digest=str(about["digest"]), stamp=time.monotonic() - (age if age >= 0 else _LONG_AGO)
        )

    def _read(self, name: str, limit: int) -> bytes:
        return files.read(self.directory / name, limit, own=True)

    def write(self, document: Document, *, running: bool = True) -> None:
        """Save a document, durably.

        Raises:
            OSError: it is not saved; what was saved before still is.
        """
        now, mono = time.time(), time.monotonic()
        parts: dict[str, Any] = {}
        for name, part in document.parts.items():
            file, content = _packed(part)
            if not (self.directory / file).exists():
                files.write(self.directory / file, content, mode=0o600)
            parts[name] = {"file": file, "digest": part.digest, "stamp": now - (mono - part.stamp)}
        index = {"format": _FORMAT, "version": document.version, "running": running, "parts": parts}
        files.write(self.directory / _INDEX, json.dumps(index, indent=1).encode() + b"\n", mode=0o600)
        wanted = {part["file"] for part in parts.values()}
        self._written = {_INDEX, *wanted}
        self._sweep(wanted)

    def disown(self, document: Document | None) -> str:
        """Remove the saved policy, except this document's own; that takes no room on the disk.

        Returns:
            Why it may still be there; "" if it is not.
        """
        try:
            kept = self.read()
            former = None if kept is None else kept.document.parts.get(POLICY)
            own = None if document is None else document.parts[POLICY].pieces
            if former is not None and former.pieces != own:  # a digest is of less
                (self.directory / _packed(former)[0]).unlink(missing_ok=True)
                held = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(held)
                finally:
                    os.close(held)
        except (OSError, StartError) as error:
            return f"; the policy saved last may come back after a death: {error}"
        return ""

    def missing(self) -> str:
        """Return a file that was saved and is not there now; "" if all are."""
        return next((name for name in sorted(self._written) if not (self.directory / name).exists()), "")

    def _sweep(self, wanted: set[str]) -> None:
        """Remove parts that the index no longer names."""
        for path in self.directory.iterdir():
            if _FILE.fullmatch(path.name) and path.name not in wanted:
                with contextlib.suppress(OSError):
                    path.unlink()


def _packed(part: Part) -> tuple[str, bytes]:
    content = b"".join(_LENGTH.pack(len(piece)) + piece for piece in part.pieces)
    return f"part-{hashlib.sha256(content).hexdigest()}", content


def _unpack(content: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(content):
        (length,) = _LENGTH.unpack_from(content, start)
        start += _LENGTH.size
        yield content[start : start + length]
        start += length
