"""The part of a configuration that the commands of an emergency read.

The policy in the same file may be wrong at that moment, and must not prevent a revocation.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from iamroles_agent.base.errors import ConfigError, Problem
from iamroles_agent.processes.agent import SOCKET


class Settings:
    """An unchecked configuration.

    Raises:
        ConfigError: it cannot be read, or is neither TOML nor JSON.
    """

    def __init__(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            remedy = "Correct it; with `--file`, `iamroles revoke` does not need it"
            raise ConfigError([Problem(str(path), "", f"cannot be read: {error}", remedy)]) from error
        self._path = path
        self._tables = found if isinstance(found, dict) else {}

    def text(self, table: str, key: str) -> str | None:
        """Return a text of the file; None if it is absent, empty or another type."""
        members = self._tables.get(table)
        value = members.get(key) if isinstance(members, dict) else None
        return value if isinstance(value, str) and value else None

    @property
    def roles(self) -> set[str]:
        """The names of its roles, as far as they are readable."""
        rows = self._tables.get("roles")
        names = (row.get("name") for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()
        return {name for name in names if isinstance(name, str)}

    def file(self, table: str, key: str, example: str) -> Path:
        """Return the path of a file that it names, relative to itself.

        Raises:
            ConfigError: the key is not set.
        """
        if (name := self.text(table, key)) is None:
            remedy = f'Add `[{table}]` with `{key} = "{example}"`, and restart the agent'
            raise ConfigError([Problem(str(self._path), f"{table}.{key}", "is not set", remedy)])
        return self._path.parent / name

    @property
    def socket(self) -> Path | None:
        """The local socket of the agent with this configuration; None if it has no socket."""
        if (name := self.text("agent", "control_socket")) is not None:
            return self._path.parent / name
        name = self.text("agent", "state_dir")
        return None if name is None else self._path.parent / name / SOCKET
