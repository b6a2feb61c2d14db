"""A command of `iamroles`, and all that it starts: found by a mark in their environment."""

import contextlib
import os
import subprocess
import sys
import uuid
from pathlib import Path


class Marked(subprocess.Popen):
    """A running `iamroles`, its output by pipes. Even as a shell's background job, Ctrl-C is not ignored."""

    def __init__(self, *arguments):
        self.mark, self._others = f"IAMROLES_TEST_MARK={uuid.uuid4()}", set(Path("/proc").iterdir())
        super().__init__(
            ["env", "--default-signal=INT", sys.executable, "-m", "iamroles_agent", *arguments],
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict([self.mark.split("=")]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def family(self):
        """Command lines of all that it started, itself too, by their process ids."""
        found = {}
        for process in set(Path("/proc").iterdir()) - self._others:
            with contextlib.suppress(OSError):
                environ = (process / "environ").read_bytes()
                if self.mark.encode() in environ:
                    found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
                elif environ:  # empty while a program is put in place
                    self._others.add(process)
        return found
