"""A command of `iamroles`, and all that it starts: found by a mark in their environment."""

import os
import subprocess
import sys
import uuid
from pathlib import Path


class Marked(subprocess.Popen):
    """A running `iamroles`, its output by pipes. Even as a shell's background job, Ctrl-C is not ignored."""

    def __init__(self, *arguments):
        self.mark = f"IAMROLES_TEST_MARK={uuid.uuid4()}"
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
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark in (process / "environ").read_text(errors="replace"):
                    found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
            except OSError:
                pass
        return found
