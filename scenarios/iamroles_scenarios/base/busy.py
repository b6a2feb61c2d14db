"""Other programs that keep this host busy while something is measured; none outlives its block."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iamroles_scenarios.base.errors import SuiteError

_LOOP = "while True: pass"
_COPY = """\
import os, sys
block = os.urandom(1 << 20)
while True:
    for name in "ab":
        with open(os.path.join(sys.argv[1], name), "wb") as file:
            for _ in range(256):
                file.write(block)
            os.fsync(file.fileno())
"""
"""Writes 256 MiB again and again, all the way to the disk."""
WAYS = {"nothing": (0, False), "loops": (4, False), "disk": (4, True)}
"""What a run may have beside it: endless loops, and whether files are copied."""


@contextmanager
def beside(way: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep this host busy by these programs while the block runs.

    Args:
        way: a key of `WAYS`.

    Raises:
        SuiteError: one of the programs ended before the block did.
    """
    loops, copies = WAYS[way]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # often on a disk, where /tmp is in memory
        words = [["-c", _LOOP]] * loops + [["-c", _COPY, folder]] * copies
        programs = [subprocess.Popen([sys.executable, "-S", *one]) for one in words]  # noqa: S603 - our own
        try:
            yield programs
            ended = [program.args for program in programs if program.poll() is not None]
        finally:
            for program in programs:
                program.kill()
                program.wait()
    if ended:
        raise SuiteError(f"a program that was to keep this host busy ended: {ended[0]!r}")
