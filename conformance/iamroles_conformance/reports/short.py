"""The short forms of a report: a Markdown summary for CI, and a badge.

Neither says more than the statement does: a badge of a run that conforms to no class names what was played.
"""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

from iamroles_scenarios.pages.markdown import table

_GOOD, _BAD, _PLAIN = "#1a7f37", "#cf222e", "#57606a"
_PER_LETTER = 6.6
"""Pixels of one letter of the badge's font, on average; `textLength` then makes it so."""


def as_markdown(found: dict[str, Any]) -> str:
    """The statement, what stands beside it, a table of the classes, and what did not pass."""
    told = found["statement"]
    lines = [f"## {_cell(told['sentence'])}", ""]
    lines += [f"- {_cell(line)}" for line in (*(found.get("findings") or ()), *told["beside"])]
    if missing := found.get("not_played"):
        lines.append(f"- {len(missing)} checks that were asked for were not played")
    lines += [f"- {_cell(line)}" for line in found.get("not_produced") or ()]
    rows = [
        [
            _cell(f"{one['class']}: {one['title']}"),
            *(
                f"{one[grade]['passed']} of {one[grade]['of']} passed"
                for grade in ("core", "strict", "should")
            ),
        ]
        for one in told["classes"]
    ]
    lines += ["", *table(("class", "MUST (core)", "MUST (core and strict)", "SHOULD"), rows)]
    bad = [one for one in found["checks"] if one["verdict"] not in ("pass", "not-applicable")]
    if bad:
        rows = [[f"`{one['name']}`", one["verdict"], _cell(one["message"])] for one in bad]
        lines += ["", *table(("check", "verdict", "why"), rows)]
    return "\n".join([*lines, "", f"Reproduce: `{found['reproduce']}`", ""])


def _cell(text: str) -> str:
    flat = " ".join(escape(text).split())
    return flat.replace("|", "\\|").replace("`", "'")


def as_badge(found: dict[str, Any]) -> str:
    """SVG: the classes that the product conforms to, or how much was played."""
    told = found["statement"]
    strict, core = told["conforms"]["strict"], told["conforms"]["core"]
    parts = [*(f"{name} strict" for name in strict), *(name for name in core if name not in strict)]
    if not found["passed"]:
        said, colour = "not passed", _BAD
    elif parts:
        said, colour = ", ".join(parts), _GOOD
    else:
        said, colour = f"{told['coverage']['played']} of {told['coverage']['of']} checks played", _PLAIN
    label = "iam-roles"
    left, right = (round(len(text) * _PER_LETTER) + 12 for text in (label, said))
    title = escape(f"{label}: {said}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img">'
        f"<title>{title}</title>"
        f'<rect width="{left}" height="20" fill="#24292f"/>'
        f'<rect x="{left}" width="{right}" height="20" fill="{colour}"/>'
        '<g fill="#fff" font-family="Verdana,sans-serif" font-size="11">'
        f'<text x="6" y="14" textLength="{left - 12}">{label}</text>'
        f'<text x="{left + 6}" y="14" textLength="{right - 12}">{escape(said)}</text></g></svg>\n'
    )
