"""Lets pages link to files of the project beside docs/, and puts the project's own pages into the site.

A page of docs/ stands one level deeper in the project than in the site. The site's root holds the content of
docs/ and, added here, files of the project under their own paths. So a link out of docs/ loses one `../`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_OUT = re.compile(r"\]\((?P<up>(?:\.\./)+)(?P<target>[^)#\s]+)")
_IN = re.compile(r"\]\(docs/(?P<target>[^)\s]+)")
_PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "conformance/SPEC.md")


def _leaves(uri: str, up: str) -> bool:
    """Return whether this many `../` lead from a page of docs/ out of docs/."""
    return up.count("../") == uri.count("/") + 1


def on_files(files: Files, *, config: Any) -> Files:
    """Add the project's pages and what pages link to outside docs/; a link to nothing stays broken."""
    root = Path(config.docs_dir).parent
    wanted = set(_PAGES)
    for page in list(files.documentation_pages()):
        found = _OUT.findall(page.content_string)
        wanted |= {target for up, target in found if _leaves(page.src_uri, up)}
    for target in sorted(wanted):
        if (root / target).is_file() and files.get_file_from_path(target) is None:
            files.append(File.generated(config, target, abs_src_path=str(root / target)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Point links out of docs/ at the added files, and links of the added pages into docs/ at its content."""
    uri = page.file.src_uri
    if uri in _PAGES:
        up = "../" * uri.count("/")
        return _IN.sub(lambda m: f"]({up}{m['target']}", markdown.replace("](../docs/", "](../"))

    def shorter(match: re.Match[str]) -> str:
        up = match["up"][3:] if _leaves(uri, match["up"]) else match["up"]
        return f"]({up}{match['target']}"

    return _OUT.sub(shorter, markdown)
