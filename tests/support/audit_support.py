"""Decisions put on record without a gate."""

from iamroles_agent.audit.log import Audit
from iamroles_agent.audit.record import prepare
from iamroles_agent.base.identity import Decision


def decided(
    log: Audit,
    decision: Decision,
    *,
    request_id: str,
    src: str = "192.0.2.7",
    src_port: int | None = None,
    stream: int | None = None,
    method: str = "GET",
    host: str = "h",
    path: str = "/orders",
    requested_role: str | None = None,
    policy_version: str = "v",
    generation: int = 1,
    enforced: bool = True,
) -> bool:
    """Prepare and record in one go; returns as `Audit.record` does."""
    prepared = prepare(
        decision,
        src=src,
        method=method,
        host=host,
        path=path,
        requested_role=requested_role,
        policy_version=policy_version,
        generation=generation,
        enforced=enforced,
    )
    return log.record(prepared, request_id, src_port, stream)
