"""Decisions put on record without a gate."""

import json
from pathlib import Path
from typing import Any

from iamroles_agent.audit.log import Audit
from iamroles_agent.audit.record import prepare
from iamroles_agent.base.config import AuditSettings
from iamroles_agent.base.identity import Decision

ALICE = Decision(allow=True, principal="alice")
ASKED: dict[str, Any] = {
    "src": "192.0.2.7", "method": "GET", "host": "h", "path": "/orders", "requested_role": None,
    "policy_version": "v", "generation": 1,
}  # fmt: skip
"""The request that a decision is about."""


def decided(
    log: Audit,
    decision: Decision = ALICE,
    *,
    request_id: str,
    src_port: int | None = None,
    stream: int | None = None,
    **about: Any,
) -> bool:
    """Prepare and record in one go; returns as `Audit.record` does. `about` overrides `ASKED`."""
    return log.record(prepare(decision, **(ASKED | about)), request_id, src_port, stream)


def opened(path: Path, **settings: Any) -> Audit:
    """A log that writes every 40 ms, unless the test says otherwise."""
    return Audit(AuditSettings.model_validate({"path": str(path), "sync": "40ms"} | settings))


def records(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def requests(*paths: Path) -> list[str]:
    """The requests on record, in order."""
    return [found["request"] for found in records(*paths) if "request" in found]
