"""Lets pages link to files of the project beside docs/: such files become files of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add what pages link to outside docs/; a link to nothing stays broken, and the build says so."""
    docs = Path(config.docs_dir)
    for page in list(files.documentation_pages()):
        for target in _OUTSIDE.findall(page.content_string):
            source = docs.parent / target
            if source.is_file() and files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Point links at the added files; `../` from a page in docs/ is the site's root."""
    if "/" in page.file.src_uri:
        return markdown
    return _OUTSIDE.sub(r"](\1", markdown)
