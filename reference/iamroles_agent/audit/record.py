"""One audit record: its fields, their order, and the room that each may take.

A record is one line of ASCII JSON. The decision comes first, the client's text after it, and every text has a
bound of its own, in bytes as they stand on disk. So whatever a client sends, a line with its seal is shorter
than 4,000 bytes, no cut removes a decision's fields, and one write puts it whole into a pipe.

A remembered verdict is used many times. The members that its uses share are prepared once (`prepare`) and
written once in each file; a later use is one short line that names the first by its number, `"use":4200`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from iamroles_agent.audit.redaction import shown
from iamroles_agent.base.identity import Actor, Decision

FORMAT = 2
"""Version of the record format, in each `start` record."""

_SECOND = "%Y-%m-%dT%H:%M:%S"
_ROOM = {
    "principal": 256, "session": 128, "issuer": 64, "role": 128, "rule": 128, "backend": 128,
    "credential": 64, "policy": 96, "src": 64, "method": 64, "host": 256,
    "actor": 256, "actor_issuer": 128,
    "keys_held": 192, "requested_role": 128, "roles": 384, "unmapped": 192, "shadow": 192, "detail": 192,
    "cause": 64, "mcp_method": 64, "mcp_name": 128,
}  # fmt: skip
"""Bytes that a text, or all texts of a list, may take on disk."""
_USUAL = 192
_CALL = ("mcp_method", "mcp_name")
_TAGS = ("rule", "backend", "role", "principal", "session", "issuer")
_REPEATED = frozenset((*_TAGS, "kind", "verdict", "reason", "policy"))
"""Texts that stand in one record after the other, and that no stranger chooses."""
_DECISION = 3540
"""Bytes for all members of a decision; former actors and the path get what the others leave."""
_PATH, _LONG_PATH = 440, 1536
"""Least and most bytes of the path."""
_CHAIN = 1024
"""Most bytes of former actors."""
_EVENT = 2400
"""Bytes for all fields of an event."""
_REQUEST = 96
_LEAST = 64
"""The least bytes that `shown` can cut to."""

Value = str | int | float | bool | Sequence[str] | None
"""The value of a field; None leaves the field out."""


@dataclass(slots=True)
class PreparedRecord:
    """The members of a record that all requests with the same verdict share."""

    body: str
    """JSON members, each with a comma before it."""
    file: object = None
    """The file that holds it already: a token of `log.Audit`."""
    use: str = ""
    """The member that names it there."""


def members(fields: Mapping[str, Any]) -> str:
    """Make JSON members `,"key":value` in the order given, without None; redact and cut texts."""
    return "".join(
        _known(key, value) if key in _REPEATED and type(value) is str else _member(key, value)
        for key, value in fields.items()
        if value is not None
    )


def _member(key: str, value: Any) -> str:  # noqa: ANN401 - a JSON value
    room = _ROOM.get(key, _USUAL)
    if isinstance(value, str):
        return f",{quoted(key)}:{quoted(shown(value, room))}"
    text = _list(value, room) if isinstance(value, tuple | list) else json.dumps(value)
    return f",{quoted(key)}:{text}"


_known = lru_cache(maxsize=256)(_member)


def _list(values: Sequence[str], room: int) -> str:
    """Make a list of as many values as there is room for, then the number of values left out."""
    kept: list[str] = []
    room -= _LEAST
    for number, value in enumerate(values):
        text = quoted(shown(value, max(room, _LEAST)))
        room -= len(text) + 1
        if room < 0:
            kept.append(f'"\\u2026[+{len(values) - number}]"')
            break
        kept.append(text)
    return "[" + ",".join(kept) + "]"


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
    """Make the members of a decision's record that its next use may share.

    `generation` is the version of the key sets (`Authenticator.generation`). `enforced` is False if a whole
    policy is evaluated in shadow (SHADOW-RECORD-001).
    """
    actor = decision.actor
    decided = members(
        {
            "kind": "decision",
            "verdict": "allow" if decision.allow else "answer" if decision.answer else "deny",
            "status": decision.status,
            "reason": None if decision.reason is None else str(decision.reason),
            **{name: getattr(decision, name) or None for name in _TAGS},
            "actor": actor and actor.sub,
            "actor_issuer": actor and actor.issuer,
            "expires": decision.expires,
            "credential": decision.credential or None,
            "keys_held": decision.keys or None,
            "policy": policy_version,
            "keys": generation,
            "enforced": None if enforced else False,
            "shadow": decision.shadow or None,
            "src": src,
            "method": method,
            "host": host,
        }
    )
    beside = members(
        {
            **{name: text for name, text in zip(_CALL, decision.call or (), strict=False) if text},
            "requested_role": requested_role,
            "detail": decision.detail or None,
            "roles": decision.roles or None,
            "unmapped": decision.unmapped or None,
        }
    )
    if actor is not None:
        beside += _actor_chain(actor, min(_CHAIN, _DECISION - _PATH - len(decided) - len(beside)))
    room = max(_PATH, min(_LONG_PATH, _DECISION - len(decided) - len(beside)))
    return PreparedRecord(f'{decided},"path":{quoted(shown(path, room))}{beside}')


def _actor_chain(actor: Actor, room: int) -> str:
    """Write the former actors for which there is room."""
    room -= len(',"actor_chain":[]')
    kept: list[str] = []
    for sub, issuer in actor.chain:
        texts = members({"sub": sub or None, "iss": issuer or None})
        room -= len(texts) + 2
        if room < 0:
            break
        kept.append(f"{{{texts[1:]}}}")
    return f',"actor_chain":[{",".join(kept)}]' if kept else ""


def event_members(name: str, fields: Mapping[str, Value]) -> str:
    """Make the members of an `event` record.

    Fields keep their order and nest under `about`, so that they may have any name. `cut` names the fields for
    which no room is left.
    """
    room, kept, cut = _EVENT, "", []
    for key, value in fields.items():
        member = members({key[:_LEAST]: value})
        if len(member) > room:
            cut.append(key)
            continue
        room -= len(member)
        kept += member
    return (
        members({"kind": "event", "event": name}) + f',"about":{{{kept[1:]}}}' + members({"cut": cut or None})
    )


def request_member(request_id: str) -> str:
    """Write the id as JSON. HAProxy makes short ids; a long id is a client's and is cut."""
    text = quoted(request_id)
    return text if len(text) <= _REQUEST else quoted(shown(request_id, _REQUEST))


def timestamp(epoch: float) -> str:
    """Write a time as RFC 3339 in UTC with milliseconds."""
    second, millisecond = divmod(int(epoch * 1000), 1000)
    return f"{_second(second)}.{millisecond:03d}Z"


@lru_cache(maxsize=4)
def _second(epoch: int) -> str:
    return time.strftime(_SECOND, time.gmtime(epoch))
