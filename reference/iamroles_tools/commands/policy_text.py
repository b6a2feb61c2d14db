"""Text for people: findings, explanations and differences of `iamroles policy`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from iamroles_agent.base.identity import Actor
from iamroles_agent.policy.load import PolicyFile
from iamroles_agent.policy.witness import describe
from iamroles_tools.policy.diff import Change, Difference
from iamroles_tools.policy.explain import Considered
from iamroles_tools.policy.findings import Finding


def location(document: PolicyFile, key: str) -> str:
    """Return `file:line`, or `file` and the key without a line."""
    line = document.line(key)
    return f"{document.name}:{line}" if line is not None else f"{document.name} {key}"


def finding_lines(document: PolicyFile, finding: Finding) -> Iterator[str]:
    """Yield a finding, its witness, and the positions of the other rules."""
    level = "note" if finding.note else "warning"
    yield f"{location(document, finding.key)}: {level}: {finding.kind}: {finding.subject} {finding.message}"
    if finding.witness is not None:
        who = f"{finding.role}: " if finding.role else ""
        yield f"    witness: {who}{describe(finding.witness)}{_by(finding.actor)}"
    for name, key in list(finding.others.items())[:8]:
        yield f"    see: {name} at {location(document, key)}"
    yield f"    remedy: {finding.remedy}"


def considered_line(document: PolicyFile, item: Considered) -> str:
    """Return a rule and why it matches, or is close."""
    where = f"{item.effect} {item.id} ({location(document, item.key)})"
    to = f" to {item.backend}" if item.backend else ""
    return f"{where}{to}" if not item.misses else f"{where}{to}: {'; '.join(item.misses)}"


_MOST_ENTRIES, _MOST_NAMES = 20, 8
"""Entries shown of each heading, and names of each list of roles, without `--all`."""


def change_lines(difference: Difference, *, everything: bool = False) -> Iterator[str]:
    """Yield all differences, first what is opened: a reviewer must see it.

    Unless `everything` is wanted, long lists are cut, with a note.
    """
    headings = (
        ("+", "Newly reachable", difference.opened),
        ("+", "Newly opened by scope", difference.scopes_opened),
        ("-", "No longer reachable", difference.closed),
        ("-", "No longer opened by scope", difference.scopes_closed),
        ("~", "Led to another backend", difference.moved),
        ("~", "Granted by other roles of the token", difference.regranted),
    )
    for sign, heading, changes in headings:
        yield from _heading(sign, heading, changes, everything=everything)
    weaker = [setting for setting in difference.settings if setting.weaker]
    others = [setting for setting in difference.settings if not setting.weaker]
    running = "How the agent runs (no difference in access)"
    for sign, heading, settings in (
        ("!", "Weaker than before", weaker),
        ("~", "Trust, names, limits and servers", others),
        (" ", running, difference.running),
    ):
        yield from [f"{heading}:"] * bool(settings)
        for setting in settings:
            yield f"  {sign} {setting.key}: {setting.old} -> {setting.new}"
    note = "Same reach under another grant's id, which backends see in X-IAM-Rule (no difference in access)"
    yield from _heading(" ", note, difference.renamed, everything=everything)


def _heading(sign: str, heading: str, changes: Sequence[Change], *, everything: bool) -> Iterator[str]:
    if not changes:
        return
    causes = len({change.cause for change in changes})
    yield f"{heading}: {_count(changes, 'change')}, {causes} cause{'s' if causes != 1 else ''}"
    shown = changes if everything else changes[:_MOST_ENTRIES]
    for change in shown:
        yield from _change(sign, change, everything=everything)
    if len(shown) < len(changes):
        rest = _count(changes[len(shown) :], "more change")
        yield f"  {sign} and {rest}: --all prints them, the digest covers them"


def _change(sign: str, change: Change, *, everything: bool) -> Iterator[str]:
    def names(listed: Sequence[str]) -> str:
        if everything or len(listed) <= _MOST_NAMES:
            return ", ".join(listed)
        return f"{', '.join(listed[:_MOST_NAMES])} and {len(listed) - _MOST_NAMES} more (--all)"

    to = f" -> {change.backend}" if change.backend else ""
    if change.was:
        to += f", before {change.was}" if not change.now else f", before by {change.was}, now by {change.now}"
    yield f"  {sign} by {change.cause}: {names(change.roles)}{to}"
    if change.companions:
        yield f"      in a token that also carries {names(change.companions)}"
    if change.rules and change.rules != (change.cause.removeprefix("grant "),):
        yield f"      through {names(change.rules)}"
    lines = change.region if everything else change.region[:_MOST_ENTRIES]
    for line in lines:
        yield f"      {line}"
    if len(lines) < len(change.region):
        yield f"      and {len(change.region) - len(lines)} more lines (--all)"
    yield f"      witness: {describe(change.witness)}{_by(change.actor)}"


def _by(actor: Actor | None) -> str:
    return "" if actor is None else f" with actor {actor.sub} of {actor.issuer}"


def _count(items: Sequence[object], what: str) -> str:
    return f"{len(items)} {what}{'s' if len(items) != 1 else ''}"
