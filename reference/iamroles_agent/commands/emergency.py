"""The part of a configuration that the commands of an emergency read.

The policy in the same file may be wrong at that moment, and must not prevent a revocation.
"""

from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from iamroles_agent.base import files
from iamroles_agent.base.config import Issuer
from iamroles_agent.base.errors import ConfigError, Problem
from iamroles_agent.live.revocations import STS_LIFETIME
from iamroles_agent.processes.agent import SOCKET

_MAX_BYTES = 64 << 20
_MOST_LEEWAY = 60.0
"""The most that a policy may say, seconds."""


class Settings:
    """An unchecked configuration.

    Raises:
        ConfigError: it cannot be read, or is neither TOML nor JSON.
    """

    def __init__(self, path: Path) -> None:
        try:
            text = files.read(path, _MAX_BYTES).decode("utf-8")
            found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            remedy = "Correct it; `revoke --file` and `agent status --socket` do not need it"
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigError([Problem(str(path), "", f"cannot be read: {why}", remedy)]) from error
        self._path = path
        self._tables = found if isinstance(found, dict) else {}

    def text(self, table: str, key: str) -> str | None:
        """Return a text of the file; None if it is absent, empty or another type."""
        members = self._tables.get(table)
        value = members.get(key) if isinstance(members, dict) else None
        return value if isinstance(value, str) and value else None

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Return the rows of a table, as far as they are readable."""
        found = self._tables.get(table)
        return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []

    def names(self, table: str) -> set[str]:
        return {row["name"] for row in self.rows(table) if isinstance(row.get("name"), str)}

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
    def state_dir(self) -> Path | None:
        name = self.text("agent", "state_dir")
        return None if name is None else self._path.parent / name

    def socket(self, state_dir: Path | None = None) -> Path | None:
        """Return the local socket of the agent with this configuration; None if it has no socket.

        Args:
            state_dir: of its command line.
        """
        if (name := self.text("agent", "control_socket")) is not None:
            return self._path.parent / name
        state_dir = state_dir or self.state_dir
        return None if state_dir is None else state_dir / SOCKET


class Known:
    """A policy's words about credentials; for an unreadable policy (None) the worst is assumed."""

    def __init__(self, settings: Settings | None) -> None:
        self.roles: set[str] = set() if settings is None else settings.names("roles")
        sts = set() if settings is None else settings.names("sts")
        self.names: set[str] = sts if settings is None else sts | settings.names("issuers")
        """Names of issuers and STS endpoints."""
        self.lifetimes: dict[str, float] = {}
        """The longest life of a credential by the issuer's name, with leeway; empty: unknown."""
        self._leeways: dict[str, float] = {}
        self._sts = None if settings is None else sts
        if settings is None:
            return
        with suppress(ValidationError):
            issuers = [Issuer.model_validate(row) for row in settings.rows("issuers")]
            self._leeways = {one.name: one.leeway for one in issuers}
            lifetimes = {one.name: one.max_lifetime + one.leeway for one in issuers}
            self.lifetimes = lifetimes | dict.fromkeys(sts, STS_LIFETIME)

    def leeway(self, issuers: list[str]) -> float:
        """Return the greatest leeway of these issuers, or of all: the most that is permitted, if unknown."""
        if not self.names or not self.lifetimes:
            return _MOST_LEEWAY
        return max((self._leeways.get(name, 0.0) for name in issuers or self.names), default=0.0)

    def may_be_sts(self, issuers: list[str]) -> bool:
        """Tell whether a revocation for these issuers, or all, may be about STS credentials."""
        return self._sts is None or bool(self._sts if not issuers else self._sts & set(issuers))
