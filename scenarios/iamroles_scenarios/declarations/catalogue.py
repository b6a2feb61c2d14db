"""The requirement catalogue: `data/requirements/*.toml`, one entry for each thing an agent must do.

An id is given once and never reused, so that a report of last year still means what it said. A check names
the requirements it proves; a requirement names its source, and the bug or attack it stands for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from iamroles_scenarios.base.errors import DocumentError
from iamroles_scenarios.declarations.documents import Model, lines_of, read_all

_ID = re.compile(r"[A-Z][A-Z0-9]*(?:-[A-Z0-9]+)+-[0-9]{3}")


Grade = Literal["core", "strict"]
"""`core` accepts whatever the standards permit; `strict` is what SPEC.md asks beyond them."""
CLASSES = {
    "wire": "frames, connections and answers of SPOP",
    "gate": "what clients and backends of the proxy see",
    "oidc": "tokens of identity providers, AWS's own included",
    "sts": "pre-signed GetCallerIdentity",
    "policy": "from roles to routes",
    "live": "access that ends while it is used",
    "bound": "tokens that need a proof: DPoP and client certificates",
    "delegation": "who acts for whom",
    "mcp": "MCP servers: metadata, challenges, calls",
}
"""The conformance classes, in the order of reports, and what each is about."""


class Requirement(Model):
    """One thing an agent must, or should, do."""

    id: str
    level: Literal["MUST", "SHOULD"]
    class_: Literal[
        "wire", "gate", "oidc", "sts", "policy", "live", "bound", "delegation", "mcp", "inside"
    ] = Field(alias="class")
    """The conformance class that it belongs to; `inside` if only an agent's own tests can see it."""
    grade: Grade = "core"
    source: str = ""
    """The section of the standard that demands it, e.g. `SPOE.txt 3.2.4` or `RFC 7519 section 4.1.4`."""
    clauses: list[str] = Field(default_factory=list)
    """The clauses of SPEC.md that demand it, e.g. `6.12`; none where the source alone demands it."""
    may_allow: bool = False
    """The standards, or a SHOULD, let an agent allow what this refuses: no false allow in `core`."""
    text: str = Field(min_length=10)
    attack: str = Field(min_length=5)

    @field_validator("id")
    @classmethod
    def _well_formed(cls, value: str) -> str:
        if not _ID.fullmatch(value):
            raise ValueError("an id is FAMILY-TOPIC-NNN: capitals, then three digits")
        return value

    @model_validator(mode="after")
    def _demanded(self) -> Requirement:
        if not self.source and not self.clauses:
            raise ValueError("nothing demands it: name the section of a standard, or clauses of SPEC.md")
        if self.may_allow and (self.level, self.grade) == ("MUST", "core"):
            raise ValueError("may_allow: a MUST of core lets nobody in")
        if (self.class_ == "inside") is not ("Seen only from within: " in self.text + self.attack):
            raise ValueError(
                "class `inside` is for what is seen only from within, and names the test that sees it"
            )
        return self

    @property
    def cited(self) -> str:
        """Everything that demands it: `SPEC.md 6.12; RFC 7519 section 4.1.4`."""
        own = f"SPEC.md {', '.join(self.clauses)}" if self.clauses else ""
        return "; ".join(part for part in (own, self.source) if part)


class _File(Model):
    requirement: list[Requirement] = Field(min_length=1)


class Catalogue(Mapping[str, Requirement]):
    """All requirements by id, in the order of the files."""

    def __init__(self, requirements: Iterable[Requirement]) -> None:
        self._by_id = {item.id: item for item in requirements}

    def __getitem__(self, key: str) -> Requirement:
        return self._by_id[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def quote(self, key: str) -> str:
        """Return the requirement as a failed check prints it: id, level, source, text."""
        item = self._by_id.get(key)
        if item is None:
            return f"{key}: not in the catalogue"
        grade = ", strict" if item.grade == "strict" else ""
        return f"{item.id} ({item.level}{grade}, {item.cited}): {item.text}"


def load(directory: Path) -> Catalogue:
    """Read every `*.toml` of a directory.

    Raises:
        DocumentError: a malformed file, or an id given twice; all problems at once.
    """
    read_files, problems = read_all(directory, _File)
    found: dict[str, tuple[Requirement, str]] = {}
    for path, file in read_files:
        lines = lines_of(path.read_text(encoding="utf-8"))
        for index, item in enumerate(file.requirement):
            where = f"{path.name}:{lines.get(('requirement', index, 'id'), 1)}"
            if item.id in found:
                problems.append(
                    f"{where}: requirement[{index}].id: {item.id} is already in {found[item.id][1]}. "
                    "Ids are never reused: take the next free number."
                )
            else:
                found[item.id] = (item, where)
    if problems:
        raise DocumentError(problems)
    if not found:
        raise DocumentError([f"{directory.name}: no requirement in it. The package's data is incomplete."])
    return Catalogue(item for item, _ in found.values())


@cache
def catalogue() -> Catalogue:
    """Return the catalogue that ships with the package."""
    return load(Path(str(files("iamroles_scenarios") / "data" / "requirements")))
