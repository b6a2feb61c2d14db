"""One audit record: its fields, its bytes, its place in the chain.

A record is one line of ASCII JSON. Its last two members are always `prev`, the hash of the line before, and
`hash`, the SHA-256 of every byte of the line up to the comma before `"hash"`. The bytes are hashed as they
stand, so there is no canonical form to argue about: what is on disk is what was hashed.

A cached verdict repeats everything but the time, the sequence number, the request id, the client's port and
the stream. So a record is built in two steps: `prepare` once for each verdict, `Chain.link` for each request,
which formats five values and hashes one line.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from iamroles_agent import __version__
from iamroles_agent.audit.redaction import redacted, shown
from iamroles_agent.identity import Decision

FORMAT = 1
"""Version of the record format, in each chain's `start` record."""
GENESIS = "0" * 64
"""The `prev` of the first record of a chain that follows no other."""
HASH_MARK = b',"hash":"'
_sha256 = hashlib.sha256
_NAME, _HOST, _PATH = 256, 320, 1536
"""Bytes that a client's method or role, its host, and its path take in a record, at most."""

_SECOND = "%Y-%m-%dT%H:%M:%S"


@dataclass(frozen=True, slots=True)
class PreparedRecord:
    """All of a record that does not change from one request with the same verdict to the next."""

    body: str
    """JSON members, each with a comma before it."""


def members(fields: dict[str, Any]) -> str:
    """JSON members `,"key":value` in the order given; None is left out, strings are redacted."""
    return "".join(f",{quoted(key)}:{_value(value)}" for key, value in fields.items() if value is not None)


def _value(value: Any) -> str:  # noqa: ANN401 - a JSON value
    if isinstance(value, str):
        return quoted(redacted(value))
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(_value, value)) + "]"
    return json.dumps(value)


def prepare(
    decision: Decision,
    *,
    src: str,
    method: str,
    host: str,
    path: str,
    requested_role: str | None,
    policy_version: str,
    generation: int,
    enforced: bool = True,
) -> PreparedRecord:
    """Everything of a decision's record that its next use may share.

    Args:
        decision: the verdict.
        src: the client's address.
        method: of the request.
        host: the Host header, "" if absent.
        path: as judged, without query.
        requested_role: the value of `X-IAM-Role`.
        policy_version: `Policy.version`.
        generation: `Authenticator.generation`, the key sets' version.
        enforced: False where a whole policy is evaluated in shadow (O12).
    """
    return PreparedRecord(
        members(
            {
                "kind": "decision",
                "verdict": "allow" if decision.allow else "deny",
                "status": decision.status,
                "reason": None if decision.reason is None else str(decision.reason),
                "detail": decision.detail or None,
                "principal": decision.principal or None,
                "session": decision.session or None,
                "issuer": decision.issuer or None,
                "role": decision.role or None,
                "requested_role": None if requested_role is None else shown(requested_role, _NAME),
                "roles": decision.roles or None,
                "unmapped": decision.unmapped or None,
                "rule": decision.rule or None,
                "shadow": decision.shadow or None,
                "enforced": None if enforced else False,
                "src": src,
                "method": shown(method, _NAME),
                "host": shown(host, _HOST),
                "path": shown(path, _PATH),
                "backend": decision.backend or None,
                "credential": decision.credential or None,
                "expires": decision.expires,
                "policy": policy_version,
                "keys": generation,
            }
        )
    )


def timestamp(epoch: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    second, millisecond = divmod(int(epoch * 1000), 1000)
    return f"{_second(second)}.{millisecond:03d}Z"


@lru_cache(maxsize=4)
def _second(epoch: int) -> str:
    return time.strftime(_SECOND, time.gmtime(epoch))


class Chain:
    """The hash chain of one file: who comes next, and after whom. Not thread-safe.

    Args:
        worker: the number of the worker process, in each record.
        clock: epoch seconds.
        seq: sequence number of the last record.
        head: hash of the last record.
    """

    def __init__(self, *, worker: int, clock: Callable[[], float], seq: int = 0, head: str = GENESIS) -> None:
        self.seq = seq
        self.head = head
        self._clock = clock
        self._tail = f',"worker":{worker},"agent":"{__version__}","prev":"'
        self._millisecond = -1
        self._prefix = ""

    def link(
        self,
        buffer: bytearray,
        body: str,
        request_id: str | None = None,
        src_port: int | None = None,
        stream: int | None = None,
    ) -> None:
        """Append the next line of the chain to a buffer."""
        now = self._clock()
        millisecond = int(now * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._prefix = f'{{"time":"{timestamp(now)}","seq":'
        self.seq = seq = self.seq + 1
        request = "" if request_id is None else f',"request":{_request(request_id)}'
        port = "" if src_port is None else f',"port":{src_port}'
        last = "" if stream is None else f',"stream":{stream}'
        line = f'{self._prefix}{seq}{request}{port}{last}{body}{self._tail}{self.head}"'.encode()
        self.head = head = _sha256(line).hexdigest()
        buffer += line
        buffer += f',"hash":"{head}"}}\n'.encode()


def _request(request_id: str) -> str:
    # HAProxy makes the id, so it is short; a long one is a client's and gets the full treatment.
    return quoted(request_id if len(request_id) <= 64 else redacted(request_id))


def termination(
    *, principal: str, session: str, role: str, src: str, backend: str, cause: str, expires: int | None
) -> PreparedRecord:
    """A `termination` record: a live connection that was cut, and why."""
    return PreparedRecord(
        members(
            {
                "kind": "termination",
                "principal": principal or None,
                "session": session or None,
                "role": role or None,
                "src": src,
                "backend": backend or None,
                "cause": cause,
                "expires": expires,
            }
        )
    )
