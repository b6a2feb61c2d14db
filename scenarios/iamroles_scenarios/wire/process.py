"""Memory and descriptors of an agent's process and its workers, from /proc."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")


def family(pid: int) -> list[int]:
    """The process and all its descendants; empty once it is gone."""
    parents: dict[int, int] = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    found = [pid] if pid in parents else []
    for member in found:
        found.extend(child for child, parent in parents.items() if parent == member and child not in found)
    return found


def resident(pid: int) -> int | None:
    """Resident memory of the family in bytes; None once it is gone."""
    total = 0
    for member in family(pid):
        try:
            status = (_PROC / str(member) / "status").read_text()
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total or None


def descriptors(pid: int) -> int:
    """Open descriptors of the family."""
    total = 0
    for member in family(pid):
        try:
            total += len(list((_PROC / str(member) / "fd").iterdir()))
        except OSError:
            continue
    return total
