"""`--version`, with a warning if `iamroles` starts another project's command: PyPI has one of that name."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from iamroles_agent import __version__

_CLAIM = re.compile(rb"^\[console_scripts\][^\[]*^iamroles\s*=(?!\s*iamroles_)", re.MULTILINE)


def text(program: str) -> str:
    """Return the version, then who else has the command `iamroles`, on PATH or beside this program."""
    said = f"{program}, version {__version__}"
    here = str(Path(sys.argv[0]).parent)  # an environment may be in use and not on PATH
    found = shutil.which("iamroles", path=os.pathsep.join([os.environ.get("PATH", os.defpath), here]))
    if not found:
        return said
    script = Path(found).resolve()
    others = _others(script.parent.parent)
    if b"iamroles_agent" not in _start(script):
        owner = f" of {others}" if others else ""
        return f"{said}\n`iamroles` is {found}{owner}, not this program: use `haproxy-iam-roles`."
    if others:
        said += f"\n{others} has a command `iamroles` in this environment too. The last one installed wrote"
        said += " it, and uninstalling either removes it: use `haproxy-iam-roles`."
    return said


def _others(prefix: Path) -> str:
    """Return the other distributions in an environment that install a command `iamroles`."""
    claims = prefix.glob("lib/python3*/*-packages/*.dist-info/entry_points.txt")
    names = [file.parent.stem.replace("-", " ") for file in claims if _CLAIM.search(_start(file))]
    return ", ".join(sorted(names))


def _start(file: Path) -> bytes:
    """Return a file's start, where a script imports its program; nothing if it cannot be read."""
    try:
        if file.is_file():  # a FIFO would wait for a writer
            with file.open("rb") as opened:
                return opened.read(65536)
    except OSError:
        pass
    return b""
