"""Revocations: credentials that are refused, and whose streams are cut, before they expire.

`[[revocations]]` stand in a file of their own, so that nothing else can block an emergency: a policy that
cannot be loaded, a review that takes a day. Each revocation names credentials in IAM's words: `roles`,
`principals`, `actors` (who acts for them), `sessions`, `credentials` (the hash that the audit shows),
`issuers`, `keys` (of bound tokens). All that it names must fit: `roles` and `principals` together mean these
principals in these roles.
`issued_before` spares tokens that were issued since; a token that does not say when it was issued counts as
issued before. So does each STS credential: its date is what the caller signed, and a thief of AWS keys signs
again. A credential that *holds* a revoked role is revoked as a whole, whichever role it uses: the credential
is no longer believed.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from iamroles_agent.base import files
from iamroles_agent.base.config import Model
from iamroles_agent.base.errors import ConfigError, Problem, line_of_digits
from iamroles_agent.base.identity import Decision, Identity, RoleArn
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.control.document import REVOCATIONS, Document, Part
from iamroles_agent.policy.lines import line_of, toml_lines

MAX_BYTES = 4 << 20
MAX_ROWS = 10_000
STS_LIFETIME = 36 * 3600.0
"""Seconds after which no session of AWS from before a moment lives: AWS issues none for longer."""
_YEAR_10000 = 253_402_300_800
_ROWS = 200
_SHOWN = 20
"""Problems of a file that are reported."""
_AT_LINE = re.compile(r"\(at line (\d+),")


def _moment(value: object) -> float:
    if isinstance(value, str):
        text = value.upper()  # RFC 3339 section 5.6: `t` and `z` too
        leap = text[16:19] == ":60"  # section 5.7
        try:
            value = datetime.fromisoformat(text[:16] + ":59" + text[19:] if leap else text)
            value += timedelta(seconds=leap)
        except (ValueError, OverflowError):
            raise ValueError(
                'a moment is RFC 3339 such as "2026-01-31T12:00:00Z", or epoch seconds'
            ) from None
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < _YEAR_10000:
            raise ValueError("it is not between the years 1970 and 9999: epoch seconds, not milliseconds")
        return float(value)
    raise ValueError('a moment is RFC 3339 such as "2026-01-31T12:00:00Z", or epoch seconds')


Moment = Annotated[float, BeforeValidator(_moment, json_schema_input_type=str)]
"""Epoch seconds."""


def _role(text: str) -> str:
    if text.startswith("arn:"):
        try:
            RoleArn.parse(text)
        except Refusal as refusal:
            raise ValueError(refusal.detail) from None
    return text


class Revocation(Model):
    """One `[[revocations]]`."""

    id: str = Field(min_length=1)
    """Names it in the audit log, and for `iamroles revoke undo`."""
    roles: list[Annotated[str, AfterValidator(_role)]] = Field(default_factory=list)
    """Names in the policy, or role ARNs: credentials that hold any of them."""
    principals: list[str] = Field(default_factory=list)
    """Principals as the audit names them."""
    actors: list[str] = Field(default_factory=list)
    """Actors as the audit names them: credentials with which any of them acts for a principal."""
    sessions: list[str] = Field(default_factory=list)
    """Session labels as the audit names them."""
    credentials: list[str] = Field(default_factory=list)
    """Hashes as the audit shows them, `sha256:` and 16 hex digits."""
    issuers: list[str] = Field(default_factory=list)
    """Names of issuers or STS endpoints in the policy: credentials of any of them."""
    keys: list[Annotated[str, Field(pattern="^[A-Za-z0-9_-]{43}$")]] = Field(default_factory=list)
    """Thumbprints, as `jkt` or `x5t#S256` has them: credentials that are bound to any of these keys."""
    issued_before: Moment | None = None
    """Spare tokens that were issued at this moment or later; no STS credential is spared."""
    added: Moment | None = None
    """When `iamroles revoke` added it, for readers."""
    reason: str = ""
    """A note for readers of the audit."""

    @model_validator(mode="after")
    def _names_somebody(self) -> Revocation:
        if not any(getattr(self, kind) for kind in _NARROWEST):
            raise ValueError("names nobody: give credential, key, session, principal, actor, role or issuer")
        return self

    def fits(self, identity: Identity, name_of: Callable[[RoleArn], str | None]) -> bool:
        """Look whether it is about this credential."""
        if self.roles:
            held = {str(arn) for arn in identity.roles}
            held |= {name for arn in identity.roles if (name := name_of(arn)) is not None}
            wanted = {str(RoleArn.parse(role)) if role.startswith("arn:") else role for role in self.roles}
            if held.isdisjoint(wanted):
                return False
        if self.keys and set(self.keys).isdisjoint(identity.binding or ()):
            return False
        for names, value in (
            (self.principals, identity.principal),
            (self.actors, identity.actor and identity.actor.sub),
            (self.sessions, identity.session),
            (self.credentials, identity.credential),
            (self.issuers, identity.issuer),
        ):
            if names and value not in names:
                return False
        if self.issued_before is None or identity.issued_at is None or identity.dated_by_caller:
            return True
        return identity.issued_at < self.issued_before

    def over(self, lifetimes: Mapping[str, float], now: float) -> bool:
        """Tell whether each credential that it can be about has run out.

        Args:
            lifetimes: the longest life of a credential by the issuer's name, with its leeway.
            now: epoch seconds.
        """
        since, names = self.issued_before, self.issuers or lifetimes
        if since is None or not names or not lifetimes.keys() >= set(names):
            return False
        return now >= since + max(lifetimes[name] for name in names)


class _File(Model):
    revocations: list[Revocation] = Field(default_factory=list)


_NARROWEST = ("credentials", "keys", "sessions", "principals", "actors", "roles", "issuers")


@dataclass(frozen=True, slots=True)
class Revocations:
    """The revocations in force.

    Each is found by the narrowest thing that it names, so that a question costs the same with ten of them as
    with ten thousand.
    """

    rows: tuple[Revocation, ...] = ()
    _by: dict[tuple[str, str], list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Indices of `rows` by kind and name."""

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            kind = next(kind for kind in _NARROWEST if getattr(row, kind))
            for name in set(getattr(row, kind)):
                key = str(RoleArn.parse(name)) if kind == "roles" and name.startswith("arn:") else name
                self._by.setdefault((kind, key), []).append(index)

    def match(self, identity: Identity, name_of: Callable[[RoleArn], str | None]) -> Revocation | None:
        """The first revocation that is about a credential; None if it is not revoked."""
        if not self.rows:
            return None
        keys = [
            ("credentials", identity.credential),
            ("sessions", identity.session),
            ("principals", identity.principal),
            ("issuers", identity.issuer),
            *(("keys", key) for key in identity.binding or ()),
            *(("actors", actor) for actor in (identity.actor or ())[:1]),
            *(("roles", name) for arn in identity.roles for name in (str(arn), name_of(arn)) if name),
        ]
        found = sorted({index for key in keys for index in self._by.get(key, ())})
        return next((self.rows[index] for index in found if self.rows[index].fits(identity, name_of)), None)


NONE = Revocations()


def revoked(identity: Identity, revocation: Revocation) -> Decision:
    """The refusal of a revoked credential; it names no caller whose key is not proven."""
    why = f": {revocation.reason[:500]}" if revocation.reason else ""
    base = Decision(
        allow=False,
        reason=Reason.CREDENTIAL_REVOKED,
        detail=f"revocation {revocation.id[:100]}{why}",
        credential=identity.credential,
    )
    if identity.binding is not None:
        return base
    return replace(
        base,
        principal=identity.principal,
        actor=identity.actor,
        session=identity.session,
        issuer=identity.issuer,
        roles=tuple(map(str, identity.roles)),
    )


def read(path: Path, most: int = MAX_ROWS) -> Revocations:
    """Read the file; `NONE` itself if it does not exist.

    Args:
        path: of the file.
        most: revocations that it may have.

    Raises:
        ConfigError: with every problem of the file.
    """
    try:
        raw = files.read(path, MAX_BYTES)
    except FileNotFoundError:
        return NONE
    except OSError as error:
        remedy = "Put a file there that the agent's user may read; `iamroles revoke` writes one"
        raise _wrong(path, f"cannot be read: {error.strerror}", remedy) from error
    if not raw:
        remedy = "If nothing is revoked, write a comment into it, as `iamroles revoke undo` does"
        raise _wrong(path, "is empty, as after a failed copy", remedy)
    problems: list[tuple[str, str, str]] = []
    try:
        text = raw.decode("utf-8")
        rows = _File.model_validate(tomllib.loads(text)).revocations
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _wrong(path, "is not UTF-8", "Write it again as UTF-8", line) from error
    except ValidationError as error:
        remedy, all_ = "Fix it, or use `iamroles revoke`", error.errors(include_url=False)
        problems = [(_key(item["loc"]), item["msg"].removeprefix("Value error, "), remedy) for item in all_]
        rows = []
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        at = _AT_LINE.search(str(error))
        line = int(at[1]) if at else line_of_digits(text) or text.count("\n") + 1  # else it ends too early
        remedy = "Fix the syntax: write a new file beside it and rename that one"
        raise _wrong(path, f"is not TOML: {error}", remedy, line) from error
    except RecursionError as error:
        raise _wrong(path, "is nested too deep", "Write `[[revocations]]` tables alone") from error
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        if first.setdefault(row.id, index) != index:
            twice = f"{row.id!r} stands twice; the first is revocations[{first[row.id]}]"
            problems.append((f"revocations[{index}].id", twice, "Give each its own id"))
    if len(rows) > most:
        raise _wrong(path, f"has {len(rows)} revocations, at most {most}", "`iamroles revoke undo` some")
    if problems:
        lines = toml_lines(text)
        raise ConfigError(
            [
                Problem(str(path), key, message, remedy, line_of(lines, key))
                for key, message, remedy in problems[:_SHOWN]
            ]
        )
    return Revocations(tuple(rows))


def write(path: Path, revocations: Revocations) -> None:
    """Write the file whole or not at all.

    Raises:
        OSError: it cannot be written.
        ConfigError: no agent could read it, so it is not written.
    """
    if len(revocations.rows) > MAX_ROWS:
        what = f"would have more than {MAX_ROWS} revocations, the most that an agent reads"
        raise _wrong(path, what, "Undo some, or revoke a role or an issuer as a whole")
    blocks = ["# Kept by `iamroles revoke`; see docs/live.md. Agents take up a change within a second.\n"]
    for row in revocations.rows:
        members = row.model_dump(mode="json", exclude_defaults=True)
        for key in {"issued_before", "added"} & members.keys():
            members[key] = datetime.fromtimestamp(members[key], UTC).isoformat()
        lines = [f"{key} = {_toml(value)}" for key, value in members.items()]
        blocks.append("[[revocations]]\n" + "\n".join(lines) + "\n")
    try:
        content = "\n".join(blocks).encode()
    except UnicodeEncodeError as error:  # an argument of the command keeps such bytes as surrogates
        what = f"would hold {error.object[error.start]!r}, which is not UTF-8"
        raise _wrong(path, what, "Give the reason, id and names in UTF-8") from error
    if len(content) > MAX_BYTES:
        raise _wrong(path, f"would be larger than {MAX_BYTES >> 20} MiB", "Undo some; keep reasons short")
    files.write(path, content)


def _toml(value: str | list[str]) -> str:
    """Write strings and lists of them as JSON; TOML has no pairs of surrogates, and no DEL in a string."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def to_part(revocations: Revocations) -> Part:
    """Write revocations as a part of what is in force."""
    rows = [row.model_dump(mode="json") for row in revocations.rows]
    pieces = [
        json.dumps(rows[start : start + _ROWS], separators=(",", ":")).encode()
        for start in range(0, max(len(rows), 1), _ROWS)
    ]
    return Part.of(pieces)


def from_part(part: Part | None) -> Revocations:
    """Read a part that `to_part` wrote."""
    if part is None:
        return NONE
    return Revocations(
        tuple(Revocation.model_validate(row) for piece in part.pieces for row in json.loads(piece))
    )


def at_start(path: Path | None, document: Document) -> Document:
    """Put the revocations of the file in force at the start; without a file, those of the agent before stay.

    Raises:
        ConfigError: the file is wrong: an agent that cannot know what is revoked must not start.
    """
    if path is None or (found := read(path)) is NONE:
        return document
    return document.edited({REVOCATIONS: to_part(found)}, document.version)


def _key(location: Iterable[Any]) -> str:
    key = ""
    for word in location:
        key += f"[{word}]" if isinstance(word, int) else f".{word}" if key else str(word)
    return key


def _wrong(path: Path, message: str, remedy: str, line: int | None = None) -> ConfigError:
    return ConfigError([Problem(str(path), "", message, remedy, line)])
