"""Programs that keep this host busy while something is measured; none outlives the process that started them.

`python -m iamroles_scenarios.base.busy COMMAND...` runs a command beside four endless loops.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from iamroles_scenarios.base.errors import SuiteError

LOOP = """\
import os, sys
while os.getppid() == int(sys.argv[1]): pass
"""
"""Ends with its parent, whose number is its argument."""
_COPY = """\
import os, sys
block = os.urandom(1 << 20)
while os.getppid() == int(sys.argv[1]):
    for name in "ab":
        with open(os.path.join(sys.argv[2], name), "wb") as file:
            for _ in range(256):
                file.write(block)
            os.fsync(file.fileno())
"""
"""Writes 256 MiB again and again, all the way to the disk."""
WAYS = {"nothing": (0, 0), "loops": (4, 0), "disk": (4, 1)}
"""By name: endless loops beside a run, and programs that copy files."""


@contextmanager
def beside(way: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep this host busy by these programs while the block runs.

    Args:
        way: a key of `WAYS`.

    Raises:
        SuiteError: one of the programs ended before the block did.
    """
    loops, copies = WAYS[way]
    with tempfile.TemporaryDirectory(dir="." if copies else None) as folder:  # /tmp may be in memory
        own = str(os.getpid())
        words = [["-c", LOOP, own]] * loops + [["-c", _COPY, own, folder]] * copies
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


if __name__ == "__main__":
    with beside("loops"):
        code = subprocess.run(sys.argv[1:], check=False).returncode  # noqa: S603 - as the caller says
    sys.exit(code)
