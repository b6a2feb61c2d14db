"""TOML documents of the suite, read strictly: every problem with its file, line, key and what to do.

`tomllib` keeps no positions, so `lines_of` walks the text once more and notes where each key was written.
It is exact for the plain style of this project's files (headers, `key = value`, values over several lines);
for a key inside an inline table it answers with the line of that table, which is where a reader looks.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from iamroles_scenarios.base.durations import seconds
from iamroles_scenarios.base.errors import DocumentError

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(
    r"""^\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"]*"|[A-Za-z0-9_-]+))*)\s*="""
)
_PART = re.compile(r""""([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+)""")

_M = TypeVar("_M", bound=BaseModel)
Json = Any
"""Any value of TOML or JSON."""
KeyPath = tuple[str | int, ...]
"""The path to a value in a document: keys and list indices."""


class BadValueError(ValueError):
    """Raised by a model's validator that looks at several keys; it names the key to fix.

    Args:
        key: the key, from the model's top.
        message: what is wrong, and what to do.
    """

    def __init__(self, key: KeyPath, message: str) -> None:
        super().__init__(message)
        self.key = key


def _length(value: object) -> float:
    if (found := seconds(value)) < 0:
        raise ValueError(f"{value!r} is negative: a duration has no sign")
    return found


Duration = Annotated[float, BeforeValidator(_length, json_schema_input_type=str)]
"""Seconds from a text with a unit, for models."""
Latency = Annotated[Duration, AfterValidator(lambda value: round(value * 1e6, 3))]
"""Microseconds from a text with a unit, for models."""


class Model(BaseModel):
    """Strict: unknown keys are errors, nothing is coerced, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def read(path: Path, model: type[_M]) -> _M:
    """Read a TOML file into a model.

    Raises:
        DocumentError: the file is missing, not TOML, or not of the model's shape.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DocumentError(
            [f"{path.name}: cannot be read ({error.strerror}). Give a readable file."]
        ) from error
    except UnicodeDecodeError as error:
        raise DocumentError([f"{path.name}: not UTF-8: {error}. Save it as UTF-8."]) from error
    return parse(text, model, path.name)


def read_all(directory: Path, model: type[_M]) -> tuple[list[tuple[Path, _M]], list[str]]:
    """Read every `*.toml` of a directory (not of those below); return the files, and all their problems."""
    found: list[tuple[Path, _M]] = []
    problems: list[str] = []
    for path in sorted(directory.glob("*.toml")):
        try:
            found.append((path, read(path, model)))
        except DocumentError as error:
            problems += error.problems
    return found, problems


def parse(text: str, model: type[_M], name: str) -> _M:
    """Read a text into a model, as `read` does; `name` stands for the file in messages."""
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DocumentError([f"{name}: not TOML: {error}. Fix the line that it names."]) from error
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = lines_of(text)
        raise DocumentError([_problem(name, lines, item) for item in error.errors()]) from error


def lines_of(text: str) -> dict[KeyPath, int]:
    """Return the 1-based line of every table and key written in a TOML text."""
    lines: dict[KeyPath, int] = {}
    counts: Counter[KeyPath] = Counter()
    base: KeyPath = ()
    open_quote = ""
    for number, line in enumerate(text.splitlines(), 1):
        if open_quote:
            open_quote = "" if open_quote in line else open_quote
            continue
        if header := _HEADER.match(line):
            base = _resolve(_parts(header[2]), counts)
            if header[1] == "[[":
                counts[base] += 1
                base = (*base, counts[base] - 1)
            lines.setdefault(base, number)
        elif assignment := _ASSIGNMENT.match(line):
            key = base
            for part in _parts(assignment[1]):
                key = (*key, part)
                lines.setdefault(key, number)
            open_quote = next((q for q in ('"""', "'''") if line.count(q) % 2), "")
    return lines


def _parts(dotted: str) -> list[str]:
    return [a or b or c for a, b, c in _PART.findall(dotted)]


def _resolve(parts: list[str], counts: Counter[KeyPath]) -> KeyPath:
    """Return a header's full path: below `[[steps]]`, `[steps.expect]` speaks of the last step."""
    key: KeyPath = ()
    for index, part in enumerate(parts):
        key = (*key, part)
        if index < len(parts) - 1 and counts[key]:
            key = (*key, counts[key] - 1)
    return key


def _problem(name: str, lines: dict[KeyPath, int], item: Json) -> str:
    error = item.get("ctx", {}).get("error")
    key = (*item["loc"], *(error.key if isinstance(error, BadValueError) else ()))
    key = tuple(part for part in key if not (isinstance(part, str) and "[" in part))
    line = next((lines[key[:end]] for end in range(len(key), -1, -1) if key[:end] in lines), None)
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")
    where = name if line is None else f"{name}:{line}"
    message = item["msg"].removeprefix("Value error, ")
    remedies = {
        "extra_forbidden": "Unknown key: remove it or fix its spelling.",
        "missing": "Add it.",
    }
    return f"{where}: {shown or '(top)'}: {message}. {remedies.get(item['type'], '')}".rstrip()
