"""A process and its descendants, and what they use together, from /proc (proc(5))."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


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
            for entry in (_PROC / str(member) / "fd").iterdir():
                with suppress(FileNotFoundError):  # it was closed meanwhile
                    held[str(entry.readlink())] = member
    found: dict[int, int] = {}
    for name in ("tcp", "tcp6"):  # the kernel takes milliseconds for each
        with suppress(OSError):
            rows = (_PROC / str(pid) / "net" / name).read_text().splitlines()
            for row in (row.split() for row in rows if " 01 " in row):
                if row[3] == "01" and (holder := held.get(f"socket:[{row[9]}]")):
                    found[int(row[2].rpartition(":")[2], 16)] = holder
        if found.keys() >= set(ports):
            break
    return found


def _all() -> dict[int, tuple[int, int]]:
    """Return the parent of each process, and when it was started, by process id."""
    found = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        try:  # the second field is the name, in brackets, and may hold anything
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(entry.parent.name)] = int(fields[1]), int(fields[19])
    return found
