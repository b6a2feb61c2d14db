"""The corpus of path tricks (`data/corpus/policy-paths.toml`), and how a careless server reads a path."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal
from urllib.parse import unquote_to_bytes

Kind = Literal["refused", "served", "closed"]


@dataclass(frozen=True, slots=True)
class Trick:
    """One path of the corpus."""

    name: str
    """The name of its group."""
    kind: Kind
    path: str
    """As it is sent; characters up to U+00FF stand for bytes."""
    forwarded: str = ""
    """For `served`: the path that the backend must get."""
    proxy: bool = False
    """Only HAProxy can send it."""


@cache
def tricks() -> tuple[Trick, ...]:
    """Read all tricks, in the file's order.

    Raises:
        ValueError, KeyError: the file is malformed; the package's own fault.
    """
    text = (files("iamroles_scenarios") / "data" / "corpus" / "policy-paths.toml").read_text(encoding="utf-8")
    return tuple(_tricks(tomllib.loads(text)["trick"]))


def _tricks(groups: list[dict[str, object]]) -> Iterator[Trick]:
    for group in groups:
        name, kind, proxy = str(group["name"]), group["class"], bool(group.get("proxy"))
        if kind not in ("refused", "served", "closed"):
            raise ValueError(f"corpus: {name}: unknown class {kind!r}; say refused, served or closed")
        if kind == "served":
            pairs = group["pairs"]
            assert isinstance(pairs, list)  # noqa: S101 - a malformed file, shown by its test
            yield from (Trick(name, "served", sent, forwarded, proxy) for sent, forwarded in pairs)
        else:
            paths = group["paths"]
            assert isinstance(paths, list)  # noqa: S101
            yield from (
                Trick(name, "refused" if kind == "refused" else "closed", path, "", proxy) for path in paths
            )


def careless(path: str) -> str:
    """Resolve a path as the most careless of servers would.

    Such a server decodes twice, takes a backslash for a slash, forgets path parameters and what follows a
    NUL, collapses slashes and resolves dot segments: each of these is what some server does.
    """
    text = unquote_to_bytes(unquote_to_bytes(path.partition("?")[0])).decode("latin-1")
    text = text.partition("\0")[0].replace("\\", "/")
    parts: list[str] = []
    for part in text.split("/"):
        name = part.partition(";")[0].strip()
        if name == "..":
            parts = parts[:-1]
        elif name not in ("", "."):
            parts.append(name)
    return "/" + "/".join(parts)
