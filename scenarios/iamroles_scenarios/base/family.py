"""A process and its descendants, and what they use together, from /proc (proc(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_AT_ONCE = 1 << 15
"""Bytes: `/proc/stat` tells of some hundred CPUs first."""
_ESTABLISHED = re.compile(r":[\dA-F]{4} \w+:([\dA-F]{4}) 01 (?:\S+ +){5}(\d+) ")
"""The peer's port and the inode in a line of `net/tcp`."""


def text_of(path: str) -> str:
    """Read a file of the kernel's by one call, which is all there is: a look reads some hundred."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, _AT_ONCE).decode("utf-8", "replace")
    finally:
        os.close(file)


def fields_of(folder: str) -> list[str]:
    """Return a process's or thread's `stat` from the third field on: the second may hold anything."""
    return text_of(f"{folder}/stat").rpartition(")")[2].split()


def children_of(pid: int) -> list[int]:
    """Return the child processes of a process, the oldest first."""
    found = [(started, child) for child, (parent, started) in _all().items() if parent == pid]
    return [child for _, child in sorted(found)]


def family(pid: int) -> list[int]:
    """Return the process and all its descendants; [] once it is gone."""
    processes = _all()
    found = [pid] if pid in processes else []
    for member in found:
        found += [child for child, (parent, _) in processes.items() if parent == member]
    return found


def resident(pid: int) -> int | None:
    """Return the resident memory of the family in bytes; None once it is gone."""
    total = 0
    for member in family(pid):
        try:
            status = (_PROC / str(member) / "status").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    return total * 1024 or None


def cpu_time(pid: int) -> float:
    """Return the seconds of CPU that one process has used, all its threads together; 0 once it is gone."""
    total = 0
    for thread in (_PROC / str(pid) / "task").glob("*/schedstat"):
        with suppress(OSError):
            total += int(thread.read_text().split()[0])
    return total / 1e9


def descriptors(pid: int) -> int:
    """Return the number of open descriptors of the family, as far as this user may see them."""
    total = 0
    for member in family(pid):
        try:
            total += len(list((_PROC / str(member) / "fd").iterdir()))
        except OSError:
            continue
    return total


def holders(pid: int, ports: Iterable[int]) -> dict[int, int]:
    """Return which process of the family holds a TCP connection, by the peer's port; what can be seen."""
    held: dict[str, int] = {}
    for member in family(pid):
        with suppress(OSError):
            for name in os.listdir(folder := f"{_PROC}/{member}/fd"):  # noqa: PTH208 - quickly
                with suppress(FileNotFoundError):  # it was closed meanwhile
                    held[os.readlink(f"{folder}/{name}")] = member  # noqa: PTH115 - quickly
    found: dict[int, int] = {}
    for name in ("tcp", "tcp6"):  # the kernel takes milliseconds for each
        with suppress(OSError):
            for port, inode in _ESTABLISHED.findall((_PROC / str(pid) / "net" / name).read_text()):
                if holder := held.get(f"socket:[{inode}]"):
                    found[int(port, 16)] = holder
        if found.keys() >= set(ports):
            break
    return found


def _all() -> dict[int, tuple[int, int]]:
    """Return the parent of each process, and when it was started, by process id."""
    found = {}
    for name in os.listdir(_PROC):  # noqa: PTH208 - quickly
        with suppress(OSError):
            if name.isdecimal():
                fields = fields_of(f"{_PROC}/{name}")
                found[int(name)] = int(fields[1]), int(fields[19])
    return found
