"""The cutter as a part of worker 0: one worker of an agent is enough, and its replacement goes on where it
died."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from iamroles_agent.audit.log import Audit
from iamroles_agent.audit.record import Value
from iamroles_agent.base.config import Config
from iamroles_agent.live.console import Stream
from iamroles_agent.live.cutter import Cutter
from iamroles_agent.live.judge import Ends, judge, renewing
from iamroles_agent.live.proxy_worker import Cut
from iamroles_agent.live.renewal import Renewal
from iamroles_agent.serving.gate import Gate
from iamroles_agent.serving.metrics import Metrics

log = logging.getLogger("iamroles.live")


def name_of(config: Config) -> str:
    """This agent in tickets: its gate, and a hash that tells it from the gate's other agents."""
    address = f"{socket.gethostname()} {' '.join(config.agent.addresses)}"
    return f"{config.live.gate}/{hashlib.sha256(address.encode()).hexdigest()[:8]}"


@contextmanager
def cutting(gate: Gate, audit: Audit, metrics: Metrics, master: str | None) -> Iterator[Cutter | None]:
    """Cut streams while the block runs; give the cutter to it, if there is one."""
    if master is None:
        log.warning(
            "live.master_socket is not set: HAProxy alone ends open streams at their expiry, and cannot end "
            "a busy body of a backend without streams = true; a revocation, a policy change or a lost key "
            "ends no stream"
        )
        yield None
        return

    def judged(ticket: str, expires: int, fresh: str, before: Ends | None = None) -> Ends:
        return judge(
            ticket,
            expires,
            time.time(),
            policy=gate.policy,
            sources=gate.authenticator.sources,
            revocations=gate.revocations,
            fresh=fresh,
            before=before,
        )

    def cut(done: Cut) -> None:
        metrics.cut(done.cause, done.by, done.late)
        record(audit, done)

    def renewed(done: Renewal) -> None:
        metrics.renewals += 1
        record_renewal(audit, done)

    cutter = Cutter(
        master,
        gate.name,
        judged,
        cut,
        renewed=renewed,
        renewing=lambda: renewing(gate.policy),
    )
    metrics.live = cutter.numbers
    gate.on_change.append(cutter.changed)
    gate.on_revocation.append(cutter.revoked)
    gate.authenticator.on_change.append(cutter.changed)
    task = asyncio.get_running_loop().create_task(cutter.run())
    try:
        yield cutter
    finally:
        task.cancel()


def record(audit: Audit, cut: Cut) -> None:
    """One record for a stream that was cut: who, role, which request, when due, when done, why."""
    about: dict[str, Value] = {
        "cause": cut.cause,
        "detail": cut.detail or None,
        "by": cut.by,
        **_about(cut.stream),
        "due": round(cut.due, 3),
        "done": round(cut.done, 3),
        "late": round(cut.late, 3),
    }
    _put(audit, "cut", cut.stream, about)


def record_renewal(audit: Audit, renewal: Renewal) -> None:
    """One record for a stream that was prolonged: whose, until when, by which credential."""
    fresh: dict[str, Value] = {"until": renewal.until, "by_credential": renewal.successor.identity.credential}
    _put(audit, "renewed", renewal.stream, {**_about(renewal.stream), **fresh})


def _about(stream: Stream) -> dict[str, Value]:
    ticket = stream.decoded()
    who, request = (ticket.identity, ticket.request) if ticket else (None, None)
    about: dict[str, Value] = {}
    for source, names in (
        (who, ("principal", "session", "issuer", "credential")),
        (ticket, ("role", "rule", "backend")),
        (request, ("method", "host", "path")),
    ):
        about |= {name: getattr(source, name, None) for name in names}
    if who and who.actor:
        about |= {"actor": who.actor.sub, "actor_issuer": who.actor.issuer}
    # As in the record of the decision: HAProxy spells ::ffff:192.0.2.1 otherwise than Python.
    src = stream.src if request is None else str(request.src)
    return about | {"src": src, "since": stream.since or None, "expires": stream.ends}


def _put(audit: Audit, event: str, stream: Stream, about: dict[str, Value]) -> None:
    port, request_id = stream.port or None, stream.request_id or None
    audit.event(event, about, request_id=request_id, src_port=port, stream=stream.number)
