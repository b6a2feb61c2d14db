"""Map the dotted keys of a TOML or JSON file to line numbers.

The parsers of the standard library report no positions, and an error without a line costs its reader the most
time. These scanners read only enough to find tables and keys of files that have already parsed. If a line is
not known, the line of the enclosing table stands for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

Lines = dict[str, int]
"""Dotted key with list indices, e.g. `grants[2].backend` -> 1-based line."""

_HEADER = re.compile(r"\s*(\[\[?)\s*((?:[A-Za-z0-9_-]++|\"[^\"]*\"|'[^']*'|\s*\.\s*)+)\s*\]\]?\s*$")
_KEY = re.compile(
    r"\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"))*)\s*=(.*)$"
)
_PART = re.compile(r"[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'")
_STRING = r'"(?:\\.|[^"\\])*"|' + r"'[^']*'"
_SPREAD = r'"{3}(?:[^"\\]++|\\.|"{1,2}(?!"))*+"{3,5}|' + r"'{3}(?:[^']++|'{1,2}(?!'))*+'{3,5}"
_TOML_NOISE = re.compile(rf"{_SPREAD}|({_STRING})|#[^\n]*", re.DOTALL)


def line_of(lines: Lines, key: str) -> int | None:
    """Return the line of a key, or of the table or list that holds it."""
    while key:
        if found := lines.get(key) or lines.get(f"{key}[0]"):
            return found
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return None


def toml_lines(text: str) -> Lines:
    """Find tables and keys of a valid TOML document."""
    lines: Lines = {}
    counts: dict[str, int] = {}
    prefix = ""
    depth = 0
    # Comments and strings of several lines go, and their line breaks stay.
    text = _TOML_NOISE.sub(lambda noise: noise[1] or "\n" * noise[0].count("\n"), text)
    for number, line in enumerate(text.split("\n"), 1):
        if depth == 0 and (match := _HEADER.match(line)):
            prefix = _table(_names(match[2]), match[1] == "[[", counts)
            lines.setdefault(prefix, number)
            continue
        value = line
        if depth == 0 and (match := _KEY.match(line)):
            key = ".".join(_names(match[1]))
            lines.setdefault(f"{prefix}.{key}" if prefix else key, number)
            value = match[2]
        bare = re.sub(_STRING, "", value)
        depth += bare.count("[") + bare.count("{") - bare.count("]") - bare.count("}")
    return lines


def _names(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(dotted)]


def _table(names: list[str], is_array: bool, counts: dict[str, int]) -> str:
    """Return the key of a header, with the index of each array of tables on the way."""
    key = ""
    for depth, name in enumerate(names):
        key = f"{key}.{name}" if key else name
        last = depth == len(names) - 1
        if last and is_array:
            counts[key] = counts.get(key, -1) + 1
        if key in counts:
            key = f"{key}[{counts[key]}]"
    return key


_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\],:]|[^\s{}\[\],:"]+')

_OBJECT, _COMMA, _OPEN, _CLOSE, _SEPARATORS = "{", ",", "{[", "}]", ",:"


def json_lines(text: str) -> tuple[Lines, list[tuple[str, int]]]:
    """Find members and elements of a valid JSON document.

    Returns:
        The lines, and the members that are written twice in one object, with the line of the second.
    """
    lines: Lines = {}
    twice: list[tuple[str, int]] = []
    stack: list[tuple[str, int | None, set[str]]] = []  # key, index in an array (None: object), members
    name = ""
    for token, number, following in _tokens(text):
        in_object = bool(stack) and stack[-1][1] is None
        if in_object and following == ":":
            name = _child(stack[-1][0], json.loads(token))
            if name in stack[-1][2]:
                twice.append((name, number))
            stack[-1][2].add(name)
            lines.setdefault(name, number)
        elif token in _CLOSE:
            stack.pop()
        elif token == _COMMA and stack and (index := stack[-1][1]) is not None:
            stack[-1] = stack[-1][0], index + 1, set()
        elif token not in _SEPARATORS:
            if stack and stack[-1][1] is not None:
                name = f"{stack[-1][0]}[{stack[-1][1]}]"
                lines.setdefault(name, number)
            if token in _OPEN:
                stack.append((name, None if token == _OBJECT else 0, set()))
    return lines, twice


def _child(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _tokens(text: str) -> Iterator[tuple[str, int, str]]:
    """Yield each token, its line, and the token after it."""
    number, position = 1, 0
    previous: tuple[str, int] | None = None
    for match in _TOKEN.finditer(text):
        number += text.count("\n", position, match.start())
        position = match.start()
        if previous is not None:
            yield *previous, match[0]
        previous = match[0], number
    if previous is not None:
        yield *previous, ""
