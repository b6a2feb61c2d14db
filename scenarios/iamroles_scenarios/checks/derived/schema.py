"""The keys of the policy as `policy.schema.json` describes them, and where each is played.

What the schema cannot say is in data/derived/keys.toml: values that are refused though their type is right,
and where the keys that have no edge here are played. `tests/scenarios/test_derived.py` holds both against
SPEC.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.checks.derived import issuers, rules
from iamroles_scenarios.declarations.tables import policy_schema, table

_KEYS = table("keys")
PROCESS: Mapping[str, str] = _KEYS["process"]
EXEMPT: Mapping[str, str] = _KEYS["exempt"]
BOUNDS: Mapping[str, str] = _KEYS["bounds"]
"""Durations and numbers that `EXEMPT` does not have, and where their ends are played."""
ONE_OF: Mapping[str, list[str]] = _KEYS["one_of"]
DECLARED: Mapping[str, Mapping[str, list[dict[str, Any]]]] = _KEYS["declared"]
SOUND: dict[str, Any] = _KEYS["sound"]
UNKNOWN: list[str] = _KEYS["unknown"]["keys"]
GRANTS: list[dict[str, Any]] = _KEYS["conflicts"]["grants"]
CONFLICTS = [order for pair in _KEYS["conflicts"]["pairs"] for order in (pair, pair[::-1])]
SHARED = [(*row, _KEYS["shared"]["apart"].get(row[1], {})) for row in _KEYS["shared"]["tables"]]


@dataclass(frozen=True, slots=True)
class Key:
    """One key: whether it must be there, values of other types, and values beyond its range."""

    required: bool
    wrong: tuple[Any, ...]
    beyond: tuple[Any, ...]
    table: str = ""
    """The schema's name of the tables that the key holds, if any."""


def keys(schema: Mapping[str, Any]) -> dict[str, dict[str, Key]]:
    """Read the keys of each table out of a schema; `top` has the tables themselves."""
    found = {"top": _keys("top", schema)}
    for name, key in found["top"].items():
        if key.table and name not in PROCESS:
            found[name] = _keys(name, schema["$defs"][key.table])
    return found | {"backends.tls": _keys("backends.tls", schema["$defs"]["BackendTls"])}


def _keys(name: str, described: Mapping[str, Any]) -> dict[str, Key]:
    prefix = "" if name == "top" else f"{name}."
    return {
        key: Key(
            key in described.get("required", ()),
            _wrong(how),
            tuple(_KEYS["beyond"].get(prefix + key, ())),
            _table(how),
        )
        for key, said in described["properties"].items()
        if key != "$schema"
        for how in said.get("anyOf", [said])[:1]
    }


def _table(described: Mapping[str, Any]) -> str:
    return str(described.get("items", described).get("$ref", "")).rpartition("/")[2]


def _wrong(described: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return values of other types than the key's."""
    if _table(described):
        return ("a text",)
    if "enum" in described:
        return ("another",)
    return tuple(_KEYS["wrong"][described["type"]])


KEYS = keys(policy_schema())


def played() -> set[str]:
    """List the keys that have an edge of their own."""
    found = {edge.key for edge in rules.edges()}
    return found | {f"{name}.{key}" for name, rows in issuers.TABLES.items() for key in rows}


def unplayed(known: Mapping[str, Mapping[str, Key]]) -> set[str]:
    """List the keys that have neither an edge nor an exemption."""
    names = {
        key if name == "top" else f"{name}.{key}"
        for name, described in known.items()
        for key, how in described.items()
        if not (name == "top" and (how.table or key in PROCESS))
    }
    return names - played() - set(EXEMPT)
