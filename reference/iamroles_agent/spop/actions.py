"""What the agent answers: the variables of SPEC.md section 3 as SPOP actions (SPOE.txt section 3.4).

HAProxy stops at the first action it cannot read, keeps those before it, and reports nothing. So every
action here is checked before it is sent, and the verdict `allow` is the last: cut short, the answer denies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from iamroles_agent.base.identity import Decision
from iamroles_agent.base.reasons import Reason
from iamroles_agent.spop import values
from iamroles_agent.spop.errors import LocalProtocolError, RemoteProtocolError, invalid
from iamroles_agent.spop.values import DataType, Value

PREFIX = "iam"
"""`option var-prefix` of the engine: HAProxy's name of a variable is `<scope>.iam.<name>`."""
TAGS = ("ticket", "identity", "session", "principal", "issuer", "rule", "role", "expires", "backend")
"""What may be dropped where a frame is too small, in this order: never `status`, `reason`, `error`, `allow`.
Without its backend an allowed request is refused by the proxy: too small a frame fails closed."""
_SET_VAR, _UNSET_VAR = 1, 2
_NAME = re.compile(r"[A-Za-z0-9._]+")
_MAX_FULL_NAME = 63
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class Scope(IntEnum):
    """How long a variable lives."""

    PROCESS = 0
    SESSION = 1
    TRANSACTION = 2
    REQUEST = 3
    RESPONSE = 4

    @property
    def keyword(self) -> str:
        """The scope as HAProxy's configuration writes it."""
        return ("proc", "sess", "txn", "req", "res")[self]


class Action(NamedTuple):
    """One action, read back."""

    scope: Scope
    name: str
    kind: DataType | None
    """None: the variable is unset."""
    value: Value


def set_var(scope: Scope, name: str, kind: DataType, value: Value) -> bytes:
    """A SET-VAR action.

    Raises:
        LocalProtocolError: HAProxy would not accept the name, or the value does not belong to the type.
    """
    return bytes((_SET_VAR, 3, scope)) + _encode_name(scope, name) + values.encode(kind, value)


def unset_var(scope: Scope, name: str) -> bytes:
    """An UNSET-VAR action.

    Raises:
        LocalProtocolError: HAProxy would not accept the name.
    """
    return bytes((_UNSET_VAR, 2, scope)) + _encode_name(scope, name)


def encode_verdict(decision: Decision, identity: str = "") -> bytes:
    """Every variable of SPEC.md section 3, set or unset, so that nothing leaks from the request before.

    Args:
        decision: what was decided.
        identity: the signed identity for the backend, "" where the agent makes none.
    """
    if decision.allow == (decision.reason is not None):
        raise LocalProtocolError("a decision has a reason if and only if it refuses")
    return b"".join(
        (
            set_var(Scope.TRANSACTION, "status", DataType.INT32, decision.status),
            _tag("reason", decision.reason or ""),
            _tag("error", decision.error),
            _tag("role", decision.role),
            _tag("principal", decision.principal),
            _tag("session", decision.session),
            _tag("issuer", decision.issuer),
            _tag("rule", decision.rule),
            _tag("backend", decision.backend),
            unset_var(Scope.TRANSACTION, "expires")
            if decision.expires is None
            else set_var(Scope.TRANSACTION, "expires", DataType.INT64, decision.expires),
            _tag("identity", identity) if identity else b"",
            _tag("ticket", decision.ticket) if decision.ticket else b"",
            set_var(Scope.TRANSACTION, "allow", DataType.BOOL, decision.allow),
        )
    )


def fit(actions: bytes, limit: int) -> bytes:
    """Make an action list at most `limit` bytes long by unsetting tags, never the verdict.

    Raises:
        LocalProtocolError: it is too long without any tag, or no action list; cannot happen with `limit` of
            231 or more, which the smallest frame of the protocol leaves, and actions from `encode_verdict`.
    """
    if len(actions) <= limit:
        return actions
    try:
        kept = list(decode(actions))
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"these actions cannot be read back: {error.message}") from None
    for tag in TAGS:
        kept = [action._replace(kind=None) if action.name == tag else action for action in kept]
        shorter = b"".join(map(_encode, kept))
        if len(shorter) <= limit:
            return shorter
    raise LocalProtocolError(f"the verdict alone does not fit into {limit} bytes")


def decode(actions: bytes) -> Iterator[Action]:
    """Read an action list as strictly as HAProxy does.

    Raises:
        RemoteProtocolError: status 4.
    """
    pos, end = 0, len(actions)
    while pos < end:
        head = actions[pos : pos + 3]
        if head[:2] not in (b"\x01\x03", b"\x02\x02") or len(head) < 3 or head[2] > Scope.RESPONSE:
            raise invalid("not an action")
        name, pos = values.read_string(actions, pos + 3, end)
        kind: DataType | None = None
        value: Value = None
        if head[0] == _SET_VAR:
            kind, value, pos = values.read(actions, pos, end)
        yield Action(Scope(head[2]), name.decode("ascii", "replace"), kind, value)


def _encode(action: Action) -> bytes:
    if action.kind is None:
        return unset_var(action.scope, action.name)
    return set_var(action.scope, action.name, action.kind, action.value)


def _tag(name: str, text: str) -> bytes:
    """A STRING variable, unset if empty.

    Tags become header lines to the backend, and HAProxy writes a variable as it is: a line break in a
    principal would forge headers, so control bytes are percent-encoded.
    """
    if not text:
        return unset_var(Scope.TRANSACTION, name)
    raw = _CONTROL.sub(lambda match: b"%%%02X" % match[0][0], text.encode("utf-8", "backslashreplace"))
    return set_var(Scope.TRANSACTION, name, DataType.STRING, raw)


def _encode_name(scope: Scope, name: str) -> bytes:
    if _NAME.fullmatch(name) is None or len(f"{scope.keyword}.{PREFIX}.{name}") > _MAX_FULL_NAME:
        raise LocalProtocolError(f"HAProxy accepts no variable of the name {name!r}")
    return values.encode_string(name.encode())


LAST_RESORT = encode_verdict(Decision(allow=False, reason=Reason.INTERNAL_ERROR))
"""The answer when even the gate's own way to fail has failed."""
