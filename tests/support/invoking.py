"""Commands of `iamroles` in this process, an `agent.toml` to give them, and programs to their end."""

import json
import os
import subprocess
from importlib import import_module
from pathlib import Path

from click.testing import CliRunner

from iamroles_agent.main import _GROUPS

AGENTS = Path(__file__).parent / "agents"
"""Programs for `agent_toml`."""


def ran(words, *more, code=0, **options):
    """Run `load run --json`, say, with more words that may hold blanks; it must end with this code."""
    name, *first = words.split()
    module = import_module(f"iamroles_{_GROUPS[name][0]}.commands.{name}")
    line = [*first, *map(str, more)]
    done = CliRunner().invoke(getattr(module, name), line, catch_exceptions=False, **options)
    assert done.exit_code in (code if isinstance(code, tuple) else (code,)), done.output
    return done


def said(words, *more, **options):
    """Return what a command prints; else as `ran`."""
    return ran(words, *more, **options).output


def finished(*words, env=(), **options):
    """Run a program to its end; `env` is set beside this process's variables."""
    how = {"capture_output": True, "text": True, "env": os.environ | dict(env), "check": False} | options
    return subprocess.run([str(word) for word in words], **how)  # noqa: PLW1510 - `how` has it


def agent_toml(directory, command, *, name="vendor", version="1", more="", preload=(), **features):
    """Write the file of an agent that a command starts, and more tables; return its path."""
    path = directory / "agent.toml"
    launch = f"[launch]\npreload = {[*preload]}\ncommand = {json.dumps([str(word) for word in command])}"
    declared = "\n".join(f"{key} = {json.dumps(value)}" for key, value in features.items())
    path.write_text(
        f'spec = 1\nname = "{name}"\nversion = "{version}"\n{launch}\n[features]\n{declared}\n{more}'
    )
    return str(path)
