"""Revocations: credentials that are refused, and whose streams are cut, before they expire.

`[[revocations]]` stand in a file of their own, so that nothing else can block an emergency: a policy that
cannot be loaded, a review that takes a day. Each one names whom it is about, in IAM's words: `roles`,
`principals`, `sessions`, `credentials` (the hash that the audit shows). What it names must all fit: `roles`
and `principals` together mean these principals in these roles. `issued_before` spares credentials that were
issued since; one that does not say when it was issued counts as issued before. A credential that *holds* a
revoked role is revoked as a whole, whichever role it uses: it is the credential that is no longer believed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from iamroles_agent.config import Model
from iamroles_agent.control.document import Document, Edits, Part, Parts
from iamroles_agent.control.member import Step
from iamroles_agent.errors import ConfigError, Problem
from iamroles_agent.identity import Decision, Identity, RoleArn
from iamroles_agent.reasons import Reason

REVOCATIONS = "revocations"
"""Name of the part of what is in force."""
MAX_BYTES = 4 << 20
MAX_ROWS = 10_000
_ROWS = 200


def _moment(value: object) -> float:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                'a moment is RFC 3339 such as "2026-01-31T12:00:00Z", or epoch seconds'
            ) from None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError('a moment is RFC 3339 such as "2026-01-31T12:00:00Z", or epoch seconds')


Moment = Annotated[float, BeforeValidator(_moment, json_schema_input_type=str)]
"""Epoch seconds."""


class Revocation(Model):
    """One `[[revocations]]`."""

    id: str = Field(min_length=1, max_length=100)
    """Names it in the audit log, and for `iamroles revoke undo`."""
    roles: list[str] = Field(default_factory=list)
    """Names in the policy, or role ARNs: credentials that hold any of them."""
    principals: list[str] = Field(default_factory=list)
    """Principals as the audit names them."""
    sessions: list[str] = Field(default_factory=list)
    """Session labels as the audit names them."""
    credentials: list[str] = Field(default_factory=list)
    """Hashes as the audit shows them, `sha256:` and 16 hex digits."""
    issued_before: Moment | None = None
    """Spare what was issued at this moment or later."""
    reason: str = Field(default="", max_length=500)
    """For those who read the audit."""

    @model_validator(mode="after")
    def _names_somebody(self) -> Revocation:
        if not (self.roles or self.principals or self.sessions or self.credentials):
            raise ValueError("it names nobody: give roles, principals, sessions or credentials")
        for role in self.roles:
            if role.startswith("arn:"):
                RoleArn.parse(role)
        return self

    def fits(self, identity: Identity, name_of: Callable[[RoleArn], str | None]) -> bool:
        """Whether it is about this credential."""
        if self.roles:
            held = {str(arn) for arn in identity.roles}
            held |= {name for arn in identity.roles if (name := name_of(arn)) is not None}
            wanted = {str(RoleArn.parse(role)) if role.startswith("arn:") else role for role in self.roles}
            if held.isdisjoint(wanted):
                return False
        for names, value in (
            (self.principals, identity.principal),
            (self.sessions, identity.session),
            (self.credentials, identity.credential),
        ):
            if names and value not in names:
                return False
        if self.issued_before is None or identity.issued_at is None:
            return True
        return identity.issued_at < self.issued_before


class _File(Model):
    revocations: list[Revocation] = Field(default_factory=list, max_length=MAX_ROWS)


@dataclass(frozen=True, slots=True)
class Revocations:
    """Those in force."""

    rows: tuple[Revocation, ...] = ()

    def match(self, identity: Identity, name_of: Callable[[RoleArn], str | None]) -> Revocation | None:
        """The first revocation that is about a credential, None if there is none."""
        return next((row for row in self.rows if row.fits(identity, name_of)), None)


NONE = Revocations()


def revoked(identity: Identity, revocation: Revocation) -> Decision:
    """The refusal of a revoked credential."""
    why = f": {revocation.reason}" if revocation.reason else ""
    return Decision(
        allow=False,
        reason=Reason.CREDENTIAL_REVOKED,
        detail=f"revocation {revocation.id}{why}",
        principal=identity.principal,
        session=identity.session,
        issuer=identity.issuer,
        credential=identity.credential,
        roles=tuple(map(str, identity.roles)),
    )


def read(path: Path) -> Revocations:
    """Read the file; one that does not exist revokes nothing.

    Raises:
        ConfigError: with every problem of the file.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return NONE
    except OSError as error:
        raise _wrong(path, "", f"cannot be read: {error.strerror}", "Let the agent's user read it") from error
    if len(raw) > MAX_BYTES:
        raise _wrong(path, "", f"is larger than {MAX_BYTES >> 20} MiB", "Remove what has expired")
    try:
        found = _File.model_validate(tomllib.loads(raw.decode("utf-8")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _wrong(path, "", f"is not TOML in UTF-8: {error}", "Mend the syntax") from error
    except ValidationError as error:
        raise ConfigError(
            [
                Problem(str(path), _key(item["loc"]), item["msg"], "Mend it, or use `iamroles revoke`")
                for item in error.errors(include_url=False)
            ]
        ) from error
    ids = [row.id for row in found.revocations]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise _wrong(path, "revocations", f"id {twice[0]!r} stands twice", "Give each its own id")
    return Revocations(tuple(found.revocations))


def write(path: Path, revocations: Revocations) -> None:
    """Write the file whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    blocks = ["# Kept by `iamroles revoke`; see docs/live.md. Agents take up a change within a second.\n"]
    for row in revocations.rows:
        members = row.model_dump(mode="json", exclude_defaults=True)
        if row.issued_before is not None:
            members["issued_before"] = datetime.fromtimestamp(row.issued_before, UTC).isoformat()
        # JSON's strings and lists of strings are TOML's too.
        lines = [f"{key} = {json.dumps(value, ensure_ascii=True)}" for key, value in members.items()]
        blocks.append("[[revocations]]\n" + "\n".join(lines) + "\n")
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text("\n".join(blocks), encoding="utf-8")
    fresh.replace(path)


def part(revocations: Revocations) -> Part:
    """The part of what is in force."""
    rows = [row.model_dump(mode="json") for row in revocations.rows]
    pieces = [
        json.dumps(rows[start : start + _ROWS], separators=(",", ":")).encode()
        for start in range(0, max(len(rows), 1), _ROWS)
    ]
    return Part.of(pieces)


def of(found: Part | None) -> Revocations:
    """Read a part back."""
    if found is None:
        return NONE
    return Revocations(
        tuple(Revocation.model_validate(row) for piece in found.pieces for row in json.loads(piece))
    )


def at_start(path: Path | None, document: Document) -> Document:
    """What is in force at the start, with the revocations of the file; of the agent before where there is no
    file.

    Raises:
        ConfigError: the file is wrong: an agent that cannot know what is revoked must not start.
    """
    if path is None or not path.exists():
        return document
    return document.edited({REVOCATIONS: part(read(path))}, document.version)


class Holding:
    """Kind `revocations` of a worker: see `control.member.Holding`.

    Args:
        use: puts them in force.
    """

    def __init__(self, use: Callable[[Revocations], None]) -> None:
        self._use = use

    def prepare(self, edits: Edits, coming: Parts) -> Step:
        """Read them; in a thread."""
        del edits
        revocations = of(coming.get(REVOCATIONS))
        return lambda: self._use(revocations)


def _key(location: Iterable[Any]) -> str:
    key = ""
    for word in location:
        key += f"[{word}]" if isinstance(word, int) else f".{word}" if key else str(word)
    return key


def _wrong(path: Path, key: str, message: str, remedy: str) -> ConfigError:
    return ConfigError([Problem(str(path), key, message, remedy)])
