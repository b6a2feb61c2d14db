"""The contents of an answer: SPEC.md section 3 as a table, and section 4 for its refusals."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.declarations.tables import table
from iamroles_scenarios.wire.codec import DataType, Typed
from iamroles_scenarios.wire.frames import Action, Scope

_SCOPE = "insufficient_scope"
_ERRORS = {400: {"invalid_request"}, 401: {"invalid_token"}, 403: {"", _SCOPE}, 503: {""}}
_PROOF = {"invalid_dpop_proof"}
_OWN_ERRORS = {
    "no_credentials": {""},
    "scope_insufficient": {_SCOPE},
    "proof_invalid": _PROOF,
    "proof_replayed": _PROOF,
    "nonce_required": {"use_dpop_nonce"},
}
ROWS: dict[str, dict[str, Any]] = {
    reason: row | {"status": int(status)}
    for status, rows in table("reasons").items()
    for reason, row in rows.items()
}
"""The rows of data/derived/reasons.toml by reason."""
REASONS: dict[str, tuple[int, frozenset[str]]] = {
    reason: (row["status"], frozenset(_OWN_ERRORS.get(reason, _ERRORS[row["status"]])))
    for reason, row in ROWS.items()
}
"""Status and possible RFC 6750 codes of each reason (section 4); "" for a challenge without a code."""
UNVERIFIED = frozenset(reason for reason, row in ROWS.items() if not row.get("verified", True))
"""Reasons that an agent gives before it knows the caller: a name in such a refusal is the client's own
word."""
_ARN = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[^/]+", re.ASCII)
TICKET = re.compile(r"[A-Za-z0-9_.-]{1,2400}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
"""The name of a proof that counts once."""
_WHOLE = (DataType.INT32, DataType.UINT32, DataType.INT64, DataType.UINT64)
_LONG = (DataType.INT64, DataType.UINT64)
_TEXT = (DataType.STRING,)
Answer = Mapping[str, object]
Expected = Mapping[str, object]
"""Variables of an answer, as `observation.differences` takes them; an unset one is ""."""
_MCP = ("resource", "scope", "document", "origin")
_WORDS_OF_ANSWERS = "reason error rule backend role principal session issuer proof nonce actor actor_issuer"
UNSET: Expected = dict.fromkeys((*_WORDS_OF_ANSWERS.split(), *_MCP), "")
ALLOW: Expected = {"allow": True}
REFUSE: Expected = {"allow": False}
"""Refused for any reason, because the standards do not say for which."""
OPEN: Expected = {}
"""The contract leaves it open; the answer must only be whole."""
_WORDS = {"allow": ALLOW, "refuse": REFUSE, "open": OPEN}


def refusal(*reasons: str, **more: object) -> Expected:
    """Return a refusal, for any of these reasons."""
    return {"allow": False, "reason": set(reasons), **more}


def expected(said: str | Mapping[str, Any]) -> Expected:
    """Read an answer in a table: `allow`, `refuse`, `open`, reasons joined by ` or `; else variables by
    name, of a list any value."""
    if isinstance(said, str):
        return _WORDS[said] if said in _WORDS else refusal(*said.split(" or "))
    variables = {name: set(value) if isinstance(value, list) else value for name, value in said.items()}
    return {"allow": "reason" not in said, **variables}


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable: its types on the wire, and its values beside an allow and a refusal. None stands for
    unset."""

    types: tuple[DataType, ...]
    allowed: Callable[[object, Answer], bool]
    refused: Callable[[object, Answer], bool]


def _set(value: object, _answer: Answer) -> bool:
    return value not in (None, "")


def _unset(value: object, _answer: Answer) -> bool:
    return value is None


def _any(_value: object, _answer: Answer) -> bool:
    return True


def _verified(value: object, answer: Answer) -> bool:
    return value is None or answer.get("reason") not in UNVERIFIED


def _role(value: object, _answer: Answer) -> bool:
    return isinstance(value, str) and _ARN.fullmatch(value) is not None


def _ticket(value: object, _answer: Answer) -> bool:
    return value is None or (isinstance(value, str) and TICKET.fullmatch(value) is not None)


def _named(value: object, _answer: Answer) -> bool:
    return value is None or (isinstance(value, str) and _NAME.fullmatch(value) is not None)


def _given(answer: Answer) -> bool:
    """Tell whether an agent answers in a server's place (SPEC.md 14.2, 14.7), without a reason."""
    return "reason" not in answer and (answer.get("status"), "document" in answer) in (
        (200, True),
        (204, False),
    )


def _by_reason(value: object, answer: Answer, index: int) -> bool:
    if _given(answer):
        return not index or value is None
    status, codes = REASONS.get(str(answer.get("reason")), (None, frozenset()))
    return (value or "") in codes if index else value == status


VARIABLES: dict[str, Variable] = {
    "status": Variable(_WHOLE, lambda value, _: value == 200, lambda value, got: _by_reason(value, got, 0)),
    "reason": Variable(_TEXT, _unset, lambda value, got: value in REASONS or _given(got)),
    "error": Variable(_TEXT, _unset, lambda value, got: _by_reason(value, got, 1)),
    "role": Variable(
        _TEXT, _role, lambda value, got: _verified(value, got) and (value is None or _role(value, got))
    ),
    "principal": Variable(_TEXT, _set, _verified),
    "session": Variable(_TEXT, _any, _verified),
    "issuer": Variable(_TEXT, _set, _verified),
    "rule": Variable(
        _TEXT, _set, lambda value, got: (value is not None) == (got.get("reason") == "denied_by_rule")
    ),
    "backend": Variable(_TEXT, _set, _unset),
    "expires": Variable(_LONG, lambda value, _: isinstance(value, int) and value > 0, _verified),
    "ticket": Variable(_TEXT, _ticket, _unset),
    "identity": Variable(_TEXT, _any, _unset),
    "proof": Variable(_TEXT, _named, _unset),
    "nonce": Variable(
        _TEXT, _any, lambda value, got: (value is None) == (got.get("reason") != "nonce_required")
    ),
    "actor": Variable(_TEXT, _any, _unset),
    "actor_issuer": Variable(_TEXT, lambda value, got: value is None or "actor" in got, _unset),
    "resource": Variable(_TEXT, _any, _any),
    "scope": Variable(
        _TEXT,
        _unset,
        lambda value, got: value is None or got.get("status") == 401 or got.get("error") == _SCOPE,
    ),
    "document": Variable(_TEXT, _unset, lambda value, got: value is None or _given(got)),
    "origin": Variable(_TEXT, _any, _any),
    "allow": Variable((DataType.BOOL,), lambda value, _: value is True, lambda value, _: value is False),
}
"""Each variable of the table in section 3."""
ALWAYS = frozenset(VARIABLES) - {"ticket", "identity", "proof", "nonce", "actor", "actor_issuer", *_MCP}
"""Variables that every answer sets or unsets."""


def typed(actions: Sequence[Action]) -> dict[str, Typed]:
    """Read the variables that actions leave set, with their types on the wire."""
    found: dict[str, Typed] = {}
    for action in actions:
        if action.scope is Scope.txn:
            found.pop(action.name, None)
            if action.value is not None and action.value.value is not None:
                found[action.name] = action.value
    return found


def read(actions: Sequence[Action]) -> dict[str, object]:
    """Read the variables' values without empty texts, which count as unset."""
    return {name: value.value for name, value in typed(actions).items() if value.value != ""}


def faults(actions: Sequence[Action]) -> list[str]:
    """List how an answer departs from the table, in a sentence each."""
    found, answer = typed(actions), read(actions)
    allow = answer.get("allow") is True
    wrong = []
    for name, variable in VARIABLES.items():
        if name in found and found[name].type not in variable.types:
            wrong.append(f"{name} is a {found[name].type.name} on the wire")
        holds = variable.allowed if allow else variable.refused
        if not holds(answer.get(name), answer):
            shown = f"is {answer[name]!r}" if name in answer else "is unset"
            wrong.append(
                f"{name} {shown} beside {'an allow' if allow else answer.get('reason', 'no reason')}"
            )
    return wrong
