"""How a change of each setting weakens the gate: each key of the tables that hold no rules has a row.

A row of two words lists the values from strong to weak. The other rows: `more` and `less` say which
direction weakens (no value means no limit), `lost` that to drop the value does, `socket` that to listen on
TCP too does. `either`: a reviewer must look at the change, whatever its direction. `never`: no change
makes a difference to what the gate protects.
"""

from __future__ import annotations

import json
import re

_KEYS = {
    "more": "agent.max_connections agent.handshake_timeout agent.idle_timeout audit.sync "
    "identity_header.lifetime identity_header.rotate keys.refresh keys.max_stale keys.timeout "
    "limits.max_lifetime limits.max_token_bytes dpop.max_age dpop.leeway dpop.nonce_lifetime",
    "less": "audit.keep keys.cooldown",
    "lost": "agent.tls agent.state_dir audit.path identity_header.issuer live.master_socket live.revocations",
    "socket": "agent.listen",
    "true false": "audit.required dpop.nonce",
    '"proxy" "none"': "dpop.replay",
    '"required" "refused" "accepted"': "issuers[].bound",
    '"deny" "allow"': "audit.on_error",
    "either": "agent.listen_group agent.control_socket live.gate metrics.listen dpop.origins "
    "dpop.algorithms dpop.nonce_key identity_header.secrets client_certificate.from client_certificate.form",
    "never": "agent.workers agent.max_frame_size agent.max_connection_age agent.drain_timeout "
    "agent.decision_timeout agent.shadow_policy",
}
WEAKENS = {key: row for row, keys in _KEYS.items() for key in keys.split()}
ABSENT = "(absent)"
_NOTHING = {ABSENT, "null", "[]", '""', '"none"'}


def weakens(key: str, old: str, new: str) -> bool | None:
    """Return whether a change weakens the gate; None if the change makes no difference to it.

    `old` and `new` are written as JSON, durations as `90s`. A key of another table needs no row: a
    reviewer must look at it.
    """
    key = re.sub(r"\[.*\]", "[]", key)
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
    if ABSENT in (old, new):
        return False
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
