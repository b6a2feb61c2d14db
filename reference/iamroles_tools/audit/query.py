"""Answer questions from the audit log: who did what, when, with which role."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from heapq import merge
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

from iamroles_tools.audit.proxy import ProxyLog
from iamroles_tools.audit.reading import in_order, readings

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
COLUMNS = (
    "time", "verdict", "principal", "role", "method", "host", "path", "backend", "rule", "reason", "src",
    "actor", "mcp_method", "mcp_name", "cause",
)  # fmt: skip
"""Fields of a CSV row, in this order."""


@dataclass(frozen=True, slots=True)
class Query:
    """The conditions on a record; None or empty: any."""

    who: str = ""
    """A pattern (`*`, `?`) for the principal, its actor, the session or the credential's hash."""
    since: datetime | None = None
    until: datetime | None = None
    """Exclusive."""
    role: str = ""
    """A role's ARN or its last part, as the granting role or any role of the credential; `*` as in `who`."""
    verdict: str = ""
    """`allow`, `deny` or `answer`."""
    reason: str = ""
    cause: str = ""
    """Why HAProxy refused by itself (`proxy.CAUSES`), or why a stream was cut."""
    path: str = ""
    """A pattern for the path."""
    request: str = ""
    kinds: frozenset[str] = frozenset({"decision", "termination"})

    def matches(self, record: dict[str, Any]) -> bool:
        """Return whether a record meets all conditions; a cut stream is found like a decision."""
        kind, record = record.get("kind"), flat(record)
        return (
            not self.kinds.isdisjoint((kind, record.get("kind")))
            and (not self.verdict or record.get("verdict") == self.verdict)
            and (not self.reason or record.get("reason") == self.reason)
            and (not self.cause or self.cause in (record.get("cause"), record.get("proxy", {}).get("cause")))
            and (not self.request or record.get("request") == self.request)
            and (not self.path or fnmatchcase(record.get("path", ""), self.path))
            and (not self.who or self._is_who(record))
            and (not self.role or self._has_role(record))
            and self._in_time(record["time"])
        )

    def _is_who(self, record: dict[str, Any]) -> bool:
        names = ("principal", "actor", "session", "credential")
        return any(fnmatchcase(record.get(name, ""), self.who) for name in names)

    def _has_role(self, record: dict[str, Any]) -> bool:
        roles = [record.get("role", ""), *record.get("roles", ())]
        return any(
            fnmatchcase(arn, self.role) or fnmatchcase(arn.rpartition("/")[2], self.role) for arn in roles
        )

    def _in_time(self, text: str) -> bool:
        if self.since is None and self.until is None:
            return True
        try:
            time = datetime.fromisoformat(text if text.endswith("Z") else "")
        except ValueError:
            return False
        return (self.since is None or time >= self.since) and (self.until is None or time < self.until)


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a cut stream as one of kind `termination`, its facts as fields of a decision."""
    if record.get("event") != "cut":
        return record
    return {**record.get("about", {}), **record, "kind": "termination", "verdict": "cut"}


def moment(text: str, now: datetime | None = None) -> datetime:
    """Read a point in time: RFC 3339, a date (midnight UTC), or a time ago (`15m`, `2h`, `7d`).

    Raises:
        ValueError, OverflowError: the text has another form, or is a time before the year 1.
    """
    if match := re.fullmatch(r"(\d+)([smhdw])", text):
        return (now or datetime.now(UTC)) - timedelta(**{_UNITS[match[2]]: int(match[1])})
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def search(
    paths: Iterable[Path],
    query: Query,
    *,
    proxy: ProxyLog | None = None,
    asides: list[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the records that meet the query, by time; each use of a verdict with all fields of the verdict.

    Other lines are skipped: `audit verify` is the command that judges the log.

    Args:
        paths: files of the log, in any order.
        query: the conditions.
        proxy: HAProxy's log, whose own refusals are joined in.
        asides: gets notes on the answer, once it is complete.

    Raises:
        OSError: a file cannot be read.
    """
    logs = in_order(paths)
    if asides is not None:
        asides += [f"{log.path}: holds no record of an audit" for log in logs if not log.first]
    chains = readings(logs)
    sources: list[Iterable[dict[str, Any]]] = [*chains]
    if proxy is not None:
        proxy.join(logs)
        sources.append(proxy.alone())
    for record in merge(*sources, key=itemgetter("time")):
        joined = record if proxy is None else proxy.beside(record)
        if query.matches(joined):
            yield joined
    unresolved = sum(reading.unresolved for reading in chains)
    if unresolved and asides is not None:
        asides.append(
            f"{unresolved} uses name a verdict that stands in a file that was not given: "
            "they were compared without its fields"
        )
    if proxy is not None and asides is not None:
        asides.append(
            f"HAProxy's log: {proxy.lines} requests; {len(proxy.refused)} refused without the agent's "
            f"answer, {len(proxy.recorded)} of them in the audit too; {proxy.bad} lines could not be read, "
            f"{proxy.others} others passed over"
        )


def table(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for people for each record: time, verdict, principal, role, request, backend, reason."""
    for record in map(flat, records):
        kind = record.get("kind", "")
        by = f" by {record['actor']}" if record.get("actor") else ""
        if kind == "termination":
            what, verdict = f"connection cut: {record.get('cause', '')}", "CUT"
        elif kind == "event":
            about = record.get("about", {})
            what = " ".join((record.get("event", ""), *(f"{name}={value}" for name, value in about.items())))
            verdict = "EVENT"
        else:
            what = f"{record.get('method', '')} {record.get('host', '')}{record.get('path', '')}"
            what += "".join(f" {record[name]}" for name in ("mcp_method", "mcp_name") if name in record)
            verdict = "PROXY" if kind == "proxy" else record.get("verdict", kind).upper()
        if beside := record.get("proxy"):
            what += f" (HAProxy answered {beside.get('status')}: {beside['cause']})"
        role = record.get("role", "").rpartition("/")[2] or "-"
        why = record.get("reason") or record.get("rule") or ""
        if kind == "proxy":
            why = f"{record['cause']} {why}".rstrip()
        detail = f" ({record['detail']})" if record.get("detail") else ""
        to = f" -> {record['backend']}" if record.get("backend") else ""
        yield visible(
            f"{record['time']}  {verdict:5}  {record.get('principal') or '-'}{by} as {role} "
            f"from {record.get('src', '-')}  {what}{to}  {why}{detail}"
        )


def rows(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield CSV with a header line."""
    cells = (
        [_harmless(visible(str(record.get(name, "")))) for name in COLUMNS] for record in map(flat, records)
    )
    for row in chain([COLUMNS], cells):
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="").writerow(row)
        yield buffer.getvalue()


def _harmless(cell: str) -> str:
    # A spreadsheet runs a cell that begins like a formula; the client chooses the path and the principal.
    return "'" + cell if cell.startswith(("=", "+", "-", "@")) else cell


def summary(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield who used which role for what, how often, first and last; the most frequent first."""
    groups: dict[tuple[str, ...], list[Any]] = {}
    for record in map(flat, records):
        key = (
            record.get("principal") or "-",
            record.get("role", "").rpartition("/")[2] or "-",
            record.get("verdict") or record.get("kind", ""),
            record.get("reason") or record.get("cause") or record.get("rule") or record.get("event") or "",
            record.get("backend") or "-",
        )
        group = groups.setdefault(key, [0, record["time"], record["time"]])
        group[0] += 1
        group[1], group[2] = min(group[1], record["time"]), max(group[2], record["time"])
    for (who, role, verdict, why, backend), (count, first, last) in sorted(
        groups.items(), key=lambda item: (-item[1][0], item[0])
    ):
        yield visible(f"{count:>8}  {verdict:5}  {who} as {role}  {why} -> {backend}  {first} to {last}")


def visible(line: str) -> str:
    """Return the line without control characters: a refused path may hold escape sequences."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", line)
