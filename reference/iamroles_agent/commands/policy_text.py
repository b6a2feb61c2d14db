"""How `iamroles policy` says things to people."""

from __future__ import annotations

from collections.abc import Iterator

from iamroles_agent.policy.diff import Change, Difference
from iamroles_agent.policy.explain import Considered
from iamroles_agent.policy.lint import Finding
from iamroles_agent.policy.load import Document
from iamroles_agent.policy.witness import describe


def place(document: Document, key: str) -> str:
    """`file:line`, or `file` and the key where there is no line."""
    line = document.line(key)
    return f"{document.name}:{line}" if line is not None else f"{document.name} {key}"


def finding_lines(document: Document, finding: Finding) -> Iterator[str]:
    """A finding, its witness, and where the other rules stand."""
    level = "note" if finding.note else "warning"
    yield f"{place(document, finding.key)}: {level}: {finding.kind}: {finding.subject} {finding.message}"
    if finding.witness is not None:
        who = f"{finding.role}: " if finding.role else ""
        yield f"    witness: {who}{describe(finding.witness)}"
    for name, key in list(finding.others.items())[:8]:
        yield f"    see: {name} at {place(document, key)}"
    yield f"    remedy: {finding.remedy}"


def considered_line(document: Document, item: Considered) -> str:
    """A rule and why it did, or nearly did, match."""
    where = f"{item.effect} {item.id} ({place(document, item.key)})"
    to = f" to {item.backend}" if item.backend else ""
    return f"{where}{to}" if not item.misses else f"{where}{to}: {'; '.join(item.misses)}"


def change_lines(difference: Difference) -> Iterator[str]:
    """All differences, what is opened first: that is what a reviewer must see."""
    headings = (
        ("+", "Newly reachable", difference.opened),
        ("+", "Newly opened by scope", difference.scopes_opened),
        ("-", "No longer reachable", difference.closed),
        ("-", "No longer opened by scope", difference.scopes_closed),
        ("~", "Led to another backend", difference.moved),
    )
    for sign, heading, changes in headings:
        if changes:
            yield f"{heading}:"
        for change in changes:
            yield f"  {sign} {_change(change)}"
    if difference.settings:
        yield "Trust and limits:"
    for setting in difference.settings:
        yield f"  ~ {setting.key}: {setting.old} -> {setting.new}"


def _change(change: Change) -> str:
    companion = f" (in a token that also carries {change.companion})" if change.companion else ""
    to = f" -> {change.backend}" if change.backend else ""
    was = f", before {change.was}" if change.was else ""
    return f"{change.role}{companion}: {describe(change.witness)}{to}{was}  [{change.rule}]"
