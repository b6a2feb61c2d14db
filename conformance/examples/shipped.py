"""The shipped HAProxy configuration with another question in the place of SPOE's.

What a proxy must do, no matter what decides (clean, refuse what is ambiguous, tag, route, record), is in it
already. An example replaces the question, `send-spoe-group`, by rules that set the same variables
`txn.iam.*`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_FILTER = "    filter spoe engine iam config iam.spoe.cfg\n"
_ASK = "    http-request send-spoe-group iam iam-check-group\n"
_AGAIN = "    http-request send-spoe-group iam iam-check-group if { var(txn.iam_again) -m found }\n"
_TOP = "    hard-stop-after 1h\n"


def render(world: Path, output: Path, ask: str, *, top: str = "", agents: str = "") -> None:
    """Write the configuration.

    Args:
        world: the world file.
        output: the directory to write into.
        ask: rules for the frontend `iam-gate`; they set `txn.iam.allow` last.
        top: lines for `global`.
        agents: what takes the place of the section `backend iam-agents`; "" for none.
    """
    shipped = ["policy", "render", "--config", str(world), "--output", str(output), "--agent", "127.0.0.1:1"]
    subprocess.run(  # noqa: S603 - the program beside this Python
        [Path(sys.executable).parent / "iamroles", *shipped], check=True, stdout=subprocess.DEVNULL
    )
    (output / "iam.spoe.cfg").unlink()
    _edit(output / "haproxy.cfg", {_FILTER: "", _ASK: ask, _AGAIN: "", _TOP: _TOP + top})
    routes = output / "iam-routes.cfg"
    text, count = re.subn(
        r"backend iam-agents .*?(?=\nbackend |\Z)",
        agents.strip("\n") or "#",
        routes.read_text(),
        count=1,
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit("the shipped configuration no longer has a backend iam-agents")
    routes.write_text(text)


def _edit(path: Path, changes: dict[str, str]) -> None:
    text = path.read_text()
    for old, new in changes.items():
        if text.count(old) != 1:
            raise SystemExit(f"the shipped {path.name} has no longer exactly one line {old.strip()!r}")
        text = text.replace(old, new)
    path.write_text(text)
