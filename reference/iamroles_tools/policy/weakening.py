"""How a change of each setting weakens the gate: one row for each key of the tables that hold no rules.

A row of two words lists the values from strong to weak. The other rows: `more` and `less` say which
direction weakens (no value means no limit), `lost` that to drop the value does, `socket` that to listen on
TCP too does. `either`: a reviewer must look at the change, whatever its direction. `never`: no change
makes a difference to what the gate protects.
"""

from __future__ import annotations

import json
import re

WEAKENS = {
    "agent.listen": "socket",
    "agent.listen_group": "either",
    "agent.tls": "lost",
    "agent.workers": "never",
    "agent.max_frame_size": "never",
    "agent.max_connections": "more",
    "agent.handshake_timeout": "more",
    "agent.idle_timeout": "more",
    "agent.drain_timeout": "never",
    "agent.state_dir": "lost",
    "agent.control_socket": "either",
    "agent.decision_timeout": "never",
    "agent.shadow_policy": "never",
    "audit.path": "lost",
    "audit.on_error": '"deny" "allow"',
    "audit.sync": "more",
    "audit.keep": "less",
    "audit.required": "true false",
    "identity_header.issuer": "lost",
    "identity_header.lifetime": "more",
    "identity_header.rotate": "more",
    "keys.refresh": "more",
    "keys.cooldown": "less",
    "keys.max_stale": "more",
    "keys.timeout": "more",
    "limits.max_lifetime": "more",
    "limits.max_token_bytes": "more",
    "live.master_socket": "lost",
    "live.revocations": "lost",
    "live.gate": "either",
    "metrics.listen": "either",
}
ABSENT = "(absent)"
_NOTHING = {ABSENT, "null", "[]", '""', '"none"'}


def weakens(key: str, old: str, new: str) -> bool | None:
    """Return whether a change weakens the gate; None if the change makes no difference to it.

    `old` and `new` are written as JSON, durations as `90s`. A key of another table needs no row: a
    reviewer must look at it.
    """
    row = WEAKENS.get(key) or WEAKENS.get(key.rpartition(".")[0], "either")
    match row:
        case "never":
            return None
        case "either":
            return False
        case "lost":
            return new in _NOTHING and old not in _NOTHING
        case "socket":
            return _on_tcp(new) and not _on_tcp(old)
        case "more" | "less":
            if ABSENT in (old, new):
                return False
            before, after = _number(old), _number(new)
            return after > before if row == "more" else after < before
    order = row.split()
    return order.index(new) > order.index(old)


def _on_tcp(listen: str) -> bool:
    addresses = None if listen == ABSENT else json.loads(listen)
    if isinstance(addresses, str):
        addresses = [addresses]
    return addresses is None or any(not address.startswith("unix:") for address in addresses)


def _number(text: str) -> float:
    found = re.match(r"[\d.e+-]+", text)
    return float(found[0]) if found else float("inf")
