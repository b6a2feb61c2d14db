"""SPEC.md and the documents that failures cite, of the checkout if this is one, else as packaged."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from iamroles_scenarios.base.errors import PageError

_CLAUSE = re.compile(r'<a id="c-(\d+)-(\d+)"></a>')


def spec() -> str:
    """The contract, Markdown."""
    return _read("SPEC.md")


def document(name: str) -> str:
    """A document of `docs/` by its name, e.g. `docs/stage.md` or `stage`.

    Raises:
        PageError: it does not exist; names those that do.
    """
    short = name.removeprefix("docs/").removesuffix(".md")
    known = sorted(path.stem for path in _docs().glob("*.md"))
    if short not in known:
        raise PageError(f"{name}: unknown document; there are {', '.join(known)}.")
    return (_docs() / f"{short}.md").read_text(encoding="utf-8")


def clause(number: str) -> str:
    """The text of a clause of SPEC.md (6.12), or of a whole section (8), without anchors.

    Raises:
        PageError: SPEC.md has none of this number.
    """
    for section in re.split(r"^(?=## )", spec(), flags=re.MULTILINE):
        if section.startswith(f'## <a id="c-{number}"></a>'):
            return re.sub(r'<a id="[^"]*"></a>', "", section).rstrip() + "\n"
    pieces = _CLAUSE.split(spec())
    for section, own, body in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        if f"{section}.{own}" == number:
            return re.split(r"\n#", body)[0].replace("**", "", 2).strip() + "\n"
    raise PageError(f"SPEC.md has no clause {number}; `iamroles conformance spec` prints all.")


def _package() -> Path:
    return Path(str(files("iamroles_conformance")))


def _read(name: str) -> str:
    beside = _package().parent / name
    return (beside if beside.is_file() else _package() / name).read_text(encoding="utf-8")


def _docs() -> Path:
    checkout = _package().parents[1] / "docs"
    return checkout if (_package().parent / "SPEC.md").is_file() else _package() / "docs"
