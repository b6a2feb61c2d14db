"""Find pairs of roles that are harmless apart: one role reads what only the other may change.

A token with both roles can do both, which neither role's owner decided. Under `multi_role = "union"` each
request has both rights; under `"deny"` the client chooses a role for each request, so there the finding is a
note.

The search is exact. In each zone, for each two classes of roles, it removes what is denied to a token with
both and what the other class may do too. An escalation is a source from which a safe method of the first
class and an unsafe method of the second are left. Pairs with the same two grants are one finding with one
witness.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import permutations

from iamroles_agent.base.config import Config
from iamroles_agent.base.identity import Request
from iamroles_agent.policy.witness import SAFE_METHODS
from iamroles_tools.policy.findings import Finding, Kind
from iamroles_tools.policy.zones import LabelledRule, Labels, Zone, bits


def escalations(config: Config, zones: Sequence[Zone], labels: Labels) -> Iterator[Finding]:
    """Yield pairs of roles of which one reads what only the other may change, each pair in one finding."""
    done: dict[int, int] = defaultdict(int)
    by_grants: dict[tuple[LabelledRule, LabelledRule], tuple[Request, Zone, list[tuple[str, str]]]] = {}
    for zone in zones:
        for readers, writers, read, write, cells in _together(zone, labels.everyone):
            for one in bits(readers):
                for two in bits(writers & ~done[one] & ~(1 << one)):
                    done[one] |= 1 << two
                    done[two] |= 1 << one
                    _, _, pairs = by_grants.setdefault((read, write), (zone.witness(cells), zone, []))
                    pairs.append((labels.listed(1 << one)[0], labels.listed(1 << two)[0]))
    for (read, write), (witness, zone, pairs) in by_grants.items():
        reader, writer = pairs[0]
        more = f"; so for {len(pairs) - 1} more pairs of roles" if len(pairs) > 1 else ""
        yield Finding(
            Kind.ESCALATION,
            write.key,
            write.id,
            f"the role {writer!r} may change here what the role {reader!r} may read and not change "
            f"({read.id}): a token with both does both{more}",
            "Check that no one should hold both, or give one role both rights",
            writer,
            witness,
            {read.id: read.key},
            note=config.multi_role == "deny",
            pairs=tuple(pairs),
            actor=zone.actor,
        )


def _together(zone: Zone, everyone: int) -> Iterator[tuple[int, int, LabelledRule, LabelledRule, int]]:
    """Yield reader and writer classes of a zone, their grants, and cells of the writer."""
    if len({grant.roles for grant in zone.grants}) < 2:
        return
    safe = zone.grid.with_methods(SAFE_METHODS)
    able = {roles: rules for roles in zone.classes(everyone) if (rules := zone.naming(roles, zone.grants))}
    whole = {roles: zone.named(roles, zone.grants) for roles in able}
    for reader, writer in permutations(able, 2):
        refused = zone.named(reader | writer, zone.denies)
        reads = whole[reader] & safe & ~refused & ~whole[writer]
        if not reads:
            continue
        writes = whole[writer] & ~safe & ~refused & ~whole[reader] & zone.grid.any_method(reads)
        if writes:
            read = next(p for p, cells in able[reader] if cells & reads & zone.grid.any_method(writes))
            write = next(p for p, cells in able[writer] if cells & writes)
            yield reader, writer, read, write, zone.cells[write] & writes
