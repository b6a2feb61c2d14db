"""Read logs on disk: which files, in which order, which lines are records."""

from __future__ import annotations

import errno
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from iamroles_agent.audit.chain import SEALED

STDIN = Path("-")

Record = dict[str, Any]
Owner = tuple[int, int]
"""The owner of a file: number of the worker, and its turn (`log.Audit`, `takeover`)."""


@dataclass(frozen=True, slots=True)
class Log:
    """A file that was given."""

    path: Path
    owner: Owner | None
    """None: it does not hold a sealed record."""
    first: int
    """Sequence number of its first record."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a log for reading: a file, a gzip-compressed file (`.gz`), or `-` for standard input.

    Raises:
        OSError: it cannot be read, or is damaged.
    """
    if path == STDIN:
        yield sys.stdin.buffer
    elif path.suffix == ".gz":
        try:
            with gzip.open(path, "rb") as stream:
                yield stream  # type: ignore[misc]  # a GzipFile reads as any binary file does
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OSError(errno.EIO, f"damaged gzip data: {error}", str(path)) from error
    else:
        with path.open("rb") as stream:
            yield stream


def parsed(line: bytes) -> Record | None:
    """Read the record in a line; None if it is not a record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if (
        isinstance(record, dict)
        and type(seq := record.get("seq")) is int
        and 0 < seq < 1 << 63
        and isinstance(record.get("time"), str)
        and line.endswith(b"}\n")
    ):
        return record
    return None


def owner_of(record: Record) -> Owner | None:
    """Return the owner of the file that a sealing record belongs to."""
    worker, turn = record.get("worker"), record.get("turn", 0)
    return (worker, turn) if type(worker) is int and type(turn) is int else None


def in_order(paths: Iterable[Path]) -> list[Log]:
    """Return the logs in the order in which they were written: by worker, then by first record.

    Head files are left out, so that `audit.jsonl*` may be given. Files without a record come last.

    Raises:
        OSError: a file cannot be read.
    """
    return sorted(
        (_log(path) for path in dict.fromkeys(paths) if path.suffix != ".head"),
        key=lambda log: (log.owner or (sys.maxsize, 0), log.first),
    )


def _log(path: Path) -> Log:
    if path == STDIN:
        return Log(path, None, 0)
    first = 0
    with opened(path) as stream:
        for line in stream:
            sealed = SEALED.search(line)
            record = parsed(line) if sealed or not first else None
            if record is None:
                continue
            first = first or record["seq"]
            if sealed and (owner := owner_of(record)):
                return Log(path, owner, first)
    return Log(path, None, first)


def lines_of(logs: Iterable[Log]) -> Iterator[tuple[Log, bytes]]:
    """Yield the lines of some logs.

    Raises:
        OSError: a file cannot be read.
    """
    for log in logs:
        with opened(log.path) as stream:
            for line in stream:
                yield log, line


_OWN = ("time", "seq", "request", "port", "stream")
"""Members of a use; all others belong to the verdict."""
_SEAL = ("writer", "agent", "prev", "hash")
"""Members that seal a batch and state nothing about the record that has them."""
_TEXTS = (
    "kind", "verdict", "reason", "detail", "principal", "actor", "session", "issuer", "credential", "role",
    "rule", "backend", "src", "method", "host", "path", "cause", "event", "request",
    "mcp_method", "mcp_name",
)  # fmt: skip
_LISTS = ("roles", "unmapped", "shadow")
_KEPT = 1 << 16
"""Full records held for later uses; an older record is looked up in its file again."""


def _well_typed(record: Record) -> bool:
    """Return whether the fields that are searched and shown have the types that the agent writes."""
    if not isinstance(about := record.get("about", {}), dict):
        return False
    record = about | record
    return (
        "proxy" not in record
        and all(isinstance(record.get(name, ""), str) for name in _TEXTS)
        and all(isinstance(text, str) for name in _LISTS for text in _listed(record.get(name, [])))
        and type(record.get("use", 0)) is int
    )


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [None]


class Reading:
    """The records of an owner's files, in order; a short line gets the fields of its verdict."""

    def __init__(self, logs: Iterable[Log]) -> None:
        self.unresolved = 0
        """Uses whose verdict stands in a file that was not given; they have only the fields of their line."""
        self._logs = list(logs)
        self._verdicts: dict[int, Record] = {}

    def __iter__(self) -> Iterator[Record]:
        for log, line in lines_of(self._logs):
            record = parsed(line)
            if record is not None and _well_typed(record):
                yield self._complete(record, log)

    def _complete(self, record: Record, log: Log) -> Record:
        if log.owner is not None and "writer" not in record:  # a stream has several writers
            record["worker"] = log.owner[0]
        for name in _SEAL:
            record.pop(name, None)
        use = record.pop("use", None)
        if use is None:
            if record.get("kind") == "decision":
                self._keep(record["seq"], record)
            return record
        verdict = self._verdicts.pop(use, None) or self._found_again(use)
        if verdict is None:
            self.unresolved += 1
            return record | {"kind": "decision", "use": use}
        self._keep(use, verdict)  # the verdict that was not used for longest goes first
        own = {name: record[name] for name in _OWN if name in record}
        return own | {name: value for name, value in verdict.items() if name not in _OWN}

    def _keep(self, seq: int, record: Record) -> None:
        self._verdicts[seq] = record
        if len(self._verdicts) > _KEPT:
            del self._verdicts[next(iter(self._verdicts))]

    def _found_again(self, seq: int) -> Record | None:
        mark = b'"seq":%d,' % seq
        logs = [log for log in self._logs if log.path != STDIN and log.first <= seq]
        for log, line in lines_of(reversed(logs)):  # the last of them holds it, unless lines were moved
            record = parsed(line) if mark in line else None
            if record and record["seq"] == seq and "use" not in record and _well_typed(record):
                return self._complete(record, log)
        return None


def readings(logs: Iterable[Log]) -> list[Reading]:
    """Return one reading for each chain in these files, which are in order (`in_order`)."""
    return [Reading(files) for _, files in groupby(logs, key=lambda log: log.owner)]
