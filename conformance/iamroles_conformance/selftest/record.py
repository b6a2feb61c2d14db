"""The record of what each mutant turns red: JSON of `{mutant: {check: message}}`, one mutant a line.

Two plays of a mutant agree but for numbers, tokens and the like, which `normalised` replaces. If they do
not, the record keeps what holds for both: `check?` turned red in one of them only, and a message that
differed is null.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from iamroles_conformance.selftest.runner import MutantResult

Reds = dict[str, str | None]
"""Why checks turned red, normalised; None for a message that varies, `check?` for a check that does."""
_VARYING = re.compile(
    r"eyJ[\w.-]+|\b(?=[a-f]*\d)[0-9a-f]{8,}\b|\d{4,}(?:\.\d+)?"
    r"|(?<!expected )(?<!got )(?<!step )(?<!\d)\d{1,3}(?!\d)(?:\.\d+)?"
)
"""Tokens, hexadecimal and numbers, but no step and no status that was expected or came."""
_LONGEST = 160


def normalised(message: str) -> str:
    """Return the beginning of the first line, without what differs from play to play."""
    return _VARYING.sub("#", message.partition("\n")[0])[:_LONGEST]


def load(path: Path) -> dict[str, Reds]:
    """Read a record. A missing file is an empty record."""
    recorded: dict[str, Reds] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return recorded


def add(path: Path, outcome: MutantResult) -> None:
    """Add one mutant's outcome. If the record has one already, keep what holds for both."""
    recorded, name = load(path), outcome.mutant.id
    now = _reds(outcome)
    recorded[name] = _common(recorded[name], now) if name in recorded else now
    lines = (
        f"{json.dumps(key)}: {json.dumps(reds, sort_keys=True)}" for key, reds in sorted(recorded.items())
    )
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def differences(recorded: Reds, outcome: MutantResult) -> list[str]:
    """List the differences between an outcome and the record, one sentence each."""
    now = _reds(outcome)
    known = {name.rstrip("?"): message for name, message in recorded.items()}
    return [
        *(f"{name} no longer turns red" for name in recorded if not name.endswith("?") and name not in now),
        *(f"{name} turns red too: {now[name]}" for name in now if name not in known),
        *(
            f"{name} turns red with {now[name]!r} instead of {known[name]!r}"
            for name in now
            if known.get(name) not in (None, now[name])
        ),
    ]


def _reds(outcome: MutantResult) -> Reds:
    return {check: normalised(message) for check, message in outcome.red.items()}


def _common(before: Reds, now: Reds) -> Reds:
    known = {name.rstrip("?"): message for name, message in before.items()}
    common: Reds = {}
    for name in known | now:
        stable = name in before and name in now
        messages = {found[name] for found in (known, now) if name in found}
        common[name if stable else f"{name}?"] = messages.pop() if len(messages) == 1 else None
    return common
