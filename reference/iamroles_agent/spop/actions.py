"""The agent's answer: the variables of SPEC.md section 3 as SPOP actions (SPOE.txt section 3.4).

HAProxy stops at the first action that it cannot read, keeps the actions before it, and reports nothing. So
every action is checked before it is sent, and the verdict `allow` is the last: an answer that is cut short
denies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from iamroles_agent.base.identity import Decision
from iamroles_agent.base.reasons import Reason
from iamroles_agent.spop import values
from iamroles_agent.spop.errors import LocalProtocolError, RemoteProtocolError, invalid
from iamroles_agent.spop.values import DataType, Value

PREFIX = "iam"
"""`option var-prefix` of the engine: HAProxy's name of a variable is `<scope>.iam.<name>`."""
TAGS = (
    *("document", "scope", "origin", "nonce", "ticket", "identity", "session", "principal", "issuer", "rule"),
    *("role", "expires", "backend", "proof", "actor_issuer", "actor", "resource"),
)
"""The tags that may be dropped if a frame is too small, in this order; `status`, `reason`, `error` and
`allow` stay. The proxy refuses an allowed request without a backend, so too small a frame fails closed: also
a proof is not counted, or an actor or resource not named, only if the request is refused."""
_OPTIONAL = ("ticket", "proof", "nonce", "resource", "scope", "origin", "document")
_SET_VAR, _UNSET_VAR = 1, 2
_NAME = re.compile(r"[A-Za-z0-9._]+")
_MAX_FULL_NAME = 63
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class VariableScope(IntEnum):
    """The lifetime of a variable."""

    PROCESS = 0
    SESSION = 1
    TRANSACTION = 2
    REQUEST = 3
    RESPONSE = 4

    @property
    def keyword(self) -> str:
        """The word for the scope in HAProxy's configuration."""
        return ("proc", "sess", "txn", "req", "res")[self]


class Action(NamedTuple):
    """One action, read back."""

    scope: VariableScope
    name: str
    kind: DataType | None
    """None: the variable is unset."""
    value: Value


def set_var(scope: VariableScope, name: str, kind: DataType, value: Value) -> bytes:
    """Encode a SET-VAR action.

    Raises:
        LocalProtocolError: HAProxy would not accept the name, or the value does not belong to the type.
    """
    return bytes((_SET_VAR, 3, scope)) + _encode_name(scope, name) + values.encode(kind, value)


def unset_var(scope: VariableScope, name: str) -> bytes:
    """Encode an UNSET-VAR action; raises as `set_var` does."""
    return bytes((_UNSET_VAR, 2, scope)) + _encode_name(scope, name)


def encode_verdict(decision: Decision, identity: str = "") -> bytes:
    """Set or unset every variable of SPEC.md section 3, so that nothing leaks from the request before.

    `identity` is the signed identity for the backend, "" if the agent does not sign.
    """
    if decision.allow + (decision.reason is not None) + bool(decision.answer) != 1:
        raise LocalProtocolError("a decision has a reason if and only if it refuses")
    names = ("reason", "error", "role", "principal", "session", "issuer", "rule", "backend")
    actor = decision.actor if decision.allow else None
    return b"".join(
        (
            set_var(VariableScope.TRANSACTION, "status", DataType.INT32, decision.status),
            *(_known_tag(name, getattr(decision, name) or "") for name in names),
            unset_var(VariableScope.TRANSACTION, "expires")
            if decision.expires is None
            else set_var(VariableScope.TRANSACTION, "expires", DataType.INT64, decision.expires),
            _tag("identity", identity) if identity else b"",
            _tag("actor", actor.sub) if actor else b"",
            _tag("actor_issuer", actor.issuer) if actor and actor.foreign else b"",
            *(_tag(name, text) for name in _OPTIONAL if (text := getattr(decision, name))),
            set_var(VariableScope.TRANSACTION, "allow", DataType.BOOL, decision.allow),
        )
    )


def shorten(actions: bytes, limit: int) -> bytes:
    """Shorten an action list to at most `limit` bytes by unsetting tags, never the verdict.

    Raises:
        LocalProtocolError: it is too long without any tag, or not an action list; cannot happen with actions
            from `encode_verdict` and a `limit` of 231 or more, which the smallest frame of the protocol
            leaves.
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
        if head[:2] not in (b"\x01\x03", b"\x02\x02") or len(head) < 3 or head[2] > VariableScope.RESPONSE:
            raise invalid("not an action")
        name, pos = values.read_string(actions, pos + 3, end)
        kind: DataType | None = None
        value: Value = None
        if head[0] == _SET_VAR:
            kind, value, pos = values.read(actions, pos, end)
        yield Action(VariableScope(head[2]), name.decode("ascii", "replace"), kind, value)


def _encode(action: Action) -> bytes:
    if action.kind is None:
        return unset_var(action.scope, action.name)
    return set_var(action.scope, action.name, action.kind, action.value)


def _tag(name: str, text: str) -> bytes:
    """Set a STRING variable, or unset it if the text is empty.

    Tags become header lines to the backend, and HAProxy does not escape a variable: a line break in a
    principal would forge headers, so control bytes are percent-encoded.
    """
    if not text:
        return unset_var(VariableScope.TRANSACTION, name)
    raw = _CONTROL.sub(lambda match: b"%%%02X" % match[0][0], text.encode("utf-8", "backslashreplace"))
    return set_var(VariableScope.TRANSACTION, name, DataType.STRING, raw)


_known_tag = lru_cache(maxsize=256)(_tag)  # of verdicts: few differ in more than principal and session


@lru_cache(maxsize=64)
def _encode_name(scope: VariableScope, name: str) -> bytes:
    if _NAME.fullmatch(name) is None or len(f"{scope.keyword}.{PREFIX}.{name}") > _MAX_FULL_NAME:
        raise LocalProtocolError(f"HAProxy accepts no variable of the name {name!r}")
    return values.encode_string(name.encode())


LAST_RESORT = encode_verdict(Decision(allow=False, reason=Reason.INTERNAL_ERROR))
"""The answer if even the gate's own answer to a failure fails."""
