"""Commands of `iamroles` in this process, and an `agent.toml` to give them."""

import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from iamroles_agent.main import _GROUPS

AGENTS = Path(__file__).parent / "agents"
"""Programs for `agent_toml`."""


def ran(words: str, *more: object, code: int | tuple[int, ...] = 0, **options: Any) -> Result:
    """Run `load run --json`, say, with more words that may hold blanks; it must end with this code."""
    name, *first = words.split()
    module = import_module(f"iamroles_{_GROUPS[name][0]}.commands.{name}")
    line = [*first, *map(str, more)]
    done = CliRunner().invoke(getattr(module, name), line, catch_exceptions=False, **options)
    assert done.exit_code in (code if isinstance(code, tuple) else (code,)), done.output
    return done


def said(words: str, *more: object, **options: Any) -> str:
    """Return what a command prints; else as `ran`."""
    return ran(words, *more, **options).output


def agent_toml(
    directory: Path,
    command: Iterable[object],
    *,
    name: str = "vendor",
    version: str = "1",
    more: str = "",
    **features: Any,
) -> str:
    """Write the file of an agent that a command starts, and more tables; return its path."""
    path = directory / "agent.toml"
    launch = f"[launch]\ncommand = {json.dumps([str(word) for word in command])}"
    declared = "\n".join(f"{key} = {json.dumps(value)}" for key, value in features.items())
    path.write_text(
        f'spec = 1\nname = "{name}"\nversion = "{version}"\n{launch}\n[features]\n{declared}\n{more}'
    )
    return str(path)
