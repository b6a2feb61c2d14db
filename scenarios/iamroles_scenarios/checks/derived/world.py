"""The world of the derived checks: its caller, its good question, and changes of its policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.engine.target import Target

POLICY = "derived"
"""The file of the policy, in data/worlds/."""
HOST, PATH, SOURCE = "kiosk.example.com", "/kiosk", "192.0.2.7"
"""The paths that the grant of the role `kiosk` opens there, for GET alone."""
Policy = Mapping[str, Any]


@contextmanager
def derived(target: Target, owner: str = "") -> Iterator[Bench]:
    """Yield a bench in this world that asks lists of questions; with an owner, in a world of its own."""
    with bench(target, POLICY, owner, own=bool(owner), flow=POLICY) as here, here.asking():
        yield here


def iam_check(token: str | None, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - arguments of iam-check
    """Write the question that the grant of the role `kiosk` answers, with this token and these changes."""
    authorization = None if token is None else f"Bearer {token}"
    good = {"authorization": authorization, "method": "GET", "host": HOST, "path": PATH, "src": SOURCE}
    return good | {name.replace("_", "-"): value for name, value in arguments.items()}


def edited(policy: Policy, edits: Policy) -> dict[str, Any]:
    """Edit a policy as a table in data/derived/ says.

    Args:
        policy: the policy before.
        edits: `set` replaces tables, `drop` takes rows out by name, `change` changes keys of rows by name,
            and `add` adds rows.
    """
    found = {**policy, **edits.get("set", {})}
    for name, gone in edits.get("drop", {}).items():
        found[name] = [row for row in found[name] if _name(row) not in gone]
    for name, changes in edits.get("change", {}).items():
        found[name] = [row | changes.get(_name(row), {}) for row in found[name]]
    for name, rows in edits.get("add", {}).items():
        found[name] = [*found.get(name, []), *rows]
    return found


def _name(row: Policy) -> str:
    return str(row.get("name", row.get("id")))
