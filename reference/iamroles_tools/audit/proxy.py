"""Requests that HAProxy refused by itself, from HAProxy's own log: an audit of decisions cannot hold them.

HAProxy's record (`haproxy.cfg`, `log-format`) is one JSON object a line, and its `request_id` is the audit's
`request`. Most of its lines are decisions that the agent recorded. This module reads the others, by cause:

| cause | HAProxy's line |
|---|---|
| `refused_by_proxy` | no verdict, but a reason: refused before HAProxy asked the agent |
| `not_judged` | neither: no rule was reached (not HTTP, too long, the client gave up) |
| `agent_timeout` | verdict 503, fault 1: the agent did not answer in time |
| `agent_fault` | verdict 503, another fault: SPOE's error, or a connection that broke |
| `agent_away` | verdict 503, no fault and no answer: there was no agent |
| `agent_refused` | verdict 503 by the agent, which the audit does not hold: it could not be recorded |

A log may hold any text: lines of another form are counted, and never stop the reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iamroles_tools.audit.reading import Log, Record, lines_of, opened

CAUSES = (
    "refused_by_proxy",
    "not_judged",
    "agent_timeout",
    "agent_fault",
    "agent_away",
    "agent_refused",
)
_LONGEST = 1 << 16
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_REQUEST = re.compile(rb'"request":"([^"\\]{1,256})"')
_TEXTS = ("reason", "method", "host", "path", "fault", "ended")


@dataclass(slots=True)
class ProxyLog:
    """The contents of HAProxy's log."""

    lines: int = 0
    """Records of requests."""
    bad: int = 0
    """Lines that look like a record and are invalid: torn, cut off, of another format."""
    others: int = 0
    """Lines of other kinds, HAProxy's notices among them."""
    refused: dict[str, Record] = field(default_factory=dict)
    """By request: the requests that HAProxy refused by itself, or without an answer."""
    recorded: set[str] = field(default_factory=set)
    """Those of them that the audit holds too."""

    def join(self, logs: Iterable[Log]) -> None:
        """Find out which of these requests the audit holds.

        Raises:
            OSError: a file cannot be read.
        """
        for _, line in lines_of(logs):
            found = _REQUEST.search(line)
            if found is not None and (request := found[1].decode("ascii", "replace")) in self.refused:
                self.recorded.add(request)

    def alone(self) -> list[Record]:
        """Return the requests that only HAProxy's log holds, by time."""
        return sorted(
            (record for request, record in self.refused.items() if request not in self.recorded),
            key=lambda record: str(record["time"]),
        )

    def beside(self, record: Record) -> Record:
        """Return a record of the audit, with HAProxy's own answer if HAProxy did not get the agent's."""
        line = self.refused.get(record.get("request", ""))
        if line is None or line is record or line["cause"] == "agent_refused":
            return record
        return record | {"proxy": {name: line[name] for name in ("status", "cause", "fault") if name in line}}


def read(paths: Iterable[Path]) -> ProxyLog:
    """Read HAProxy's log, rotated and compressed files too, with or without a prefix of syslog's.

    Raises:
        OSError: a file cannot be read.
    """
    log = ProxyLog()
    for path in paths:
        with opened(path) as stream:
            while line := stream.readline(_LONGEST):
                begin = line.find(b"{")
                if begin < 0:
                    log.others += 1
                    continue
                fields = _fields(line[begin:])
                if fields is None:
                    log.bad += 1
                    continue
                log.lines += 1
                if (cause := _cause(fields)) is not None:
                    log.refused[str(fields["request_id"])] = _record(fields, cause)
    return log


def _fields(text: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    if (
        isinstance(fields, dict)
        and isinstance(fields.get("time"), str)
        and _TIME.fullmatch(fields["time"])
        and isinstance(fields.get("request_id"), str)
        and "verdict" in fields
    ):
        return fields
    return None


def _text(fields: dict[str, Any], name: str) -> str:
    """Return a field's text; "" if HAProxy has no value, which it writes as `-`."""
    value = fields.get(name)
    return value if isinstance(value, str) and value != "-" else ""


def _cause(fields: dict[str, Any]) -> str | None:
    """Return why HAProxy refused; None if it followed the agent."""
    verdict, reason, fault = (_text(fields, name) for name in ("verdict", "reason", "fault"))
    if not verdict:
        return "refused_by_proxy" if reason else "not_judged"
    if verdict != "503":
        return None
    if fault:
        return "agent_timeout" if fault == "1" else "agent_fault"
    return "agent_refused" if reason else "agent_away"


def _record(fields: dict[str, Any], cause: str) -> Record:
    port, status = fields.get("client_port"), fields.get("status")
    record: Record = {
        "time": fields["time"],
        "request": fields["request_id"],
        "kind": "proxy",
        "verdict": "deny",
        "status": status if type(status) is int else None,
        "cause": cause,
        "src": _text(fields, "client"),
        "port": port if type(port) is int else None,
    }
    record |= {name: _text(fields, name)[:512] for name in _TEXTS}
    return {name: value for name, value in record.items() if value not in (None, "")}
