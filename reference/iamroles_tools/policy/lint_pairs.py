"""Pairs of roles that are harmless apart: one reads what only the other may change.

A token that carries both does both, which neither role's owner decided. Under `multi_role = "union"` it does
so without asking; under `"deny"` by choosing in one request after another, so there it is a note.

The search is exact. At each place, for each two classes of roles, it takes away what is denied to a token
with both and what the other class may do as well. An escalation is a source from which a safe method is left
of one and an unsafe method of the other. Pairs with the same two grants are one finding: one witness
convinces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations

from iamroles_agent.base.config import Config
from iamroles_agent.base.identity import Request
from iamroles_agent.policy.witness import SAFE_METHODS
from iamroles_tools.policy.findings import Finding, Kind
from iamroles_tools.policy.places import Labels, Place, Placed, bits


@dataclass(slots=True)
class _Pairs:
    """Pairs of roles that escalate by the same two grants."""

    witness: Request
    found: list[tuple[str, str]] = field(default_factory=list)


def escalations(config: Config, places: Sequence[Place], labels: Labels) -> Iterator[Finding]:
    """Pairs of roles of which one reads what only the other may change, each pair in one finding.

    Args:
        config: checked.
        places: of a walk over its enforced rules.
        labels: the roles' names.
    """
    told: dict[int, int] = {}
    by_grants: dict[tuple[Placed, Placed], _Pairs] = {}
    for place in places:
        for reader, writer, read, write, cells in _together(place, labels.everyone):
            for one in bits(reader):
                fresh = writer & ~told.get(one, 0) & ~(1 << one)
                for two in bits(fresh):
                    told[one] = told.get(one, 0) | 1 << two
                    told[two] = told.get(two, 0) | 1 << one
                    pairs = by_grants.setdefault((read, write), _Pairs(place.witness(cells)))
                    pairs.found.append((labels.of(1 << one)[0], labels.of(1 << two)[0]))
    for (read, write), pairs in by_grants.items():
        yield _finding(read, write, pairs, note=config.multi_role == "deny")


def _together(place: Place, everyone: int) -> Iterator[tuple[int, int, Placed, Placed, int]]:
    """Reader and writer classes of one place, the grants, and cells of the writer."""
    grants = [p for p in place.rules if not p.deny]
    if len({p.roles for p in grants}) < 2:
        return
    denies = [p for p in place.rules if p.deny]
    safe = place.grid.with_methods(SAFE_METHODS)
    able = {roles: rules for roles in place.classes(everyone) if (rules := place.naming(roles, grants))}
    whole = {roles: place.named(roles, grants) for roles in able}
    for reader, writer in permutations(able, 2):
        refused = place.named(reader | writer, denies)
        reads = whole[reader] & safe & ~refused & ~whole[writer]
        if not reads:
            continue
        writes = whole[writer] & ~safe & ~refused & ~whole[reader] & place.grid.any_method(reads)
        if writes:
            read = next(p for p, cells in able[reader] if cells & reads & place.grid.any_method(writes))
            write = next(p for p, cells in able[writer] if cells & writes)
            yield reader, writer, read, write, place.cells[write] & writes


def _finding(read: Placed, write: Placed, pairs: _Pairs, *, note: bool) -> Finding:
    reader, writer = pairs.found[0]
    more = f"; so for {len(pairs.found) - 1} more pairs of roles" if len(pairs.found) > 1 else ""
    return Finding(
        Kind.ESCALATION,
        write.key,
        write.id,
        f"the role {writer!r} may change here what the role {reader!r} may read and not change ({read.id}): "
        f"a token with both does both{more}",
        "Check that no one should hold both, or give one role both rights",
        writer,
        pairs.witness,
        {read.id: read.key},
        note=note,
        pairs=tuple(pairs.found),
    )
