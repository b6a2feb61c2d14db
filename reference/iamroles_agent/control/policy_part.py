"""The part `policy`: a checked configuration, cut in pieces of JSON.

The loader checks the file and cuts; members validate each piece's shape again and compile. A piece holds at
most `_ROWS` entries of a table, so decoding it keeps the event loop waiting for less than a millisecond. The
first piece of each configuration holds what is not in the long tables: all that the fetcher needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from iamroles_agent.base.config import CHECKED, Backend, Config, Deny, Grant, Group, Role, Scope
from iamroles_agent.control.document import Part
from iamroles_agent.policy.compiled import Policy, version_of

_ROWS = 100
_MAIN, _SHADOW, _NONCE_KEY = "policy", "shadow", "nonce-key"
_TABLES: dict[str, TypeAdapter[list[Any]]] = {
    "roles": TypeAdapter(list[Role]),
    "groups": TypeAdapter(list[Group]),
    "backends": TypeAdapter(list[Backend]),
    "grants": TypeAdapter(list[Grant]),
    "denies": TypeAdapter(list[Deny]),
    "scopes": TypeAdapter(list[Scope]),
}


def encode(config: Config, shadow: Config | None = None, nonce_key: bytes = b"") -> Part:
    """Make the part of a checked configuration, of its shadow and of the key of its nonces."""
    pieces = list(_cut(config, _MAIN))
    if nonce_key:
        pieces.append(_piece(_NONCE_KEY, "", nonce_key.hex()))
    if shadow is not None:
        pieces += _cut(shadow, _SHADOW)
    return Part.of(pieces, digest=version_of(config))


def _cut(config: Config, which: str) -> Iterator[bytes]:
    # What was not written stays unwritten: the profile `cognito` has other defaults (`claims.ClaimRules`).
    base = config.model_dump(mode="json", by_alias=True, exclude=set(_TABLES), exclude_unset=True)
    yield _piece(which, "", base)
    for table, rows in config.model_dump(mode="json", include=set(_TABLES)).items():
        for start in range(0, len(rows), _ROWS):
            yield _piece(which, table, rows[start : start + _ROWS])


def _piece(which: str, table: str, content: object) -> bytes:
    return json.dumps([which, table, content], separators=(",", ":")).encode()


def decode(part: Part) -> Policy:
    """Compile the policy of a part, in small steps.

    Raises:
        ValueError: it is not such a part.
    """
    bases: dict[str, Config] = {}
    rows: dict[str, dict[str, list[Any]]] = {}
    nonce_key = b""
    for piece in part.pieces:
        which, table, content = json.loads(piece)
        if which == _NONCE_KEY:
            nonce_key = bytes.fromhex(content)
        elif table == "":
            bases[which] = Config.model_validate(content, context=CHECKED)
            rows[which] = {name: [] for name in _TABLES}
        else:
            rows[which][table] += _TABLES[table].validate_python(content, context=CHECKED)
    if _MAIN not in bases:
        raise ValueError("a policy part without its first piece")
    shadow = None
    if _SHADOW in bases:
        shadow = Policy(bases[_SHADOW].model_copy(update=rows[_SHADOW]))
    main = bases[_MAIN].model_copy(update=rows[_MAIN])
    return Policy(main, shadow, version=part.digest, nonce_key=nonce_key)


def decode_base(part: Part) -> Config:
    """Read the configuration without its long tables: issuers, STS, keys, limits.

    Raises:
        ValueError: it is not such a part.
    """
    which, table, content = json.loads(part.pieces[0])
    if which != _MAIN or table != "":
        raise ValueError("a policy part without its first piece")
    return Config.model_validate(content, context=CHECKED)
