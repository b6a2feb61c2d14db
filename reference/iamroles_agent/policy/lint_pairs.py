"""Pairs of roles that are harmless apart: one reads what only the other may change.

A token that carries both does both, which neither role's owner decided. Under `multi_role = "union"` it does
so without asking; under `"deny"` by choosing in one request after another, so there it is a note.

The search is exact: for a pair it subtracts, grant by grant, what is denied to a token with both and what the
other role may do as well, and looks for a resource (path, host, source) at which a safe method is left of one
and an unsafe method of the other. It ends at the first, because one witness convinces.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

from iamroles_agent.config import Config
from iamroles_agent.policy.atoms import Box, bits, less_all
from iamroles_agent.policy.lint import Finding, Kind
from iamroles_agent.policy.model import Model, Placed
from iamroles_agent.policy.witness import SAFE_METHODS


def escalations(config: Config, model: Model) -> Iterator[Finding]:
    """One finding for each pair of roles of which one reads what only the other may change."""
    search = _Search(model)
    told: set[frozenset[int]] = set()
    for reader, writer in search.pairs():
        pair = frozenset({reader, writer})
        if pair in told or (found := search.together(reader, writer)) is None:
            continue
        told.add(pair)
        read, write, box = found
        names = model.universe.roles
        yield Finding(
            Kind.ESCALATION,
            write.key,
            write.id,
            f"the role {names[writer]!r} may change what the role {names[reader]!r} may only read "
            f"({read.id}): a token with both does both",
            "Check that no one should hold both, or give one role both rights",
            names[writer],
            model.universe.witness(box),
            {read.id: read.key},
            note=config.multi_role == "deny",
        )


class _Search:
    """Grants by role, their boxes without roles, split into safe and unsafe methods."""

    def __init__(self, model: Model) -> None:
        self._model = model
        universe = model.universe
        safe = sum(1 << bit for bit, method in enumerate(universe.methods) if method in SAFE_METHODS)
        self._whole: dict[int, list[Box]] = {}
        self._reads: dict[int, list[tuple[Placed, Box]]] = {}
        self._writes: dict[int, list[tuple[Placed, Box]]] = {}
        for grant in model.grants:
            box = universe.anyone(grant.box)
            for role in bits(grant.box.roles):
                self._whole.setdefault(role, []).append(box)
                if box.methods & safe:
                    read = box._replace(methods=box.methods & safe)
                    self._reads.setdefault(role, []).append((grant, read))
                if box.methods & ~safe:
                    write = box._replace(methods=box.methods & ~safe)
                    self._writes.setdefault(role, []).append((grant, write))

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Reader and writer, for each two roles whose grants might share a resource."""
        reading, writing = (
            {role: _hull([box for _, box in listed]) for role, listed in side.items()}
            for side in (self._reads, self._writes)
        )
        for reader, writer in permutations(sorted(self._whole), 2):
            if reader in reading and writer in writing and _share(reading[reader], writing[writer]):
                yield reader, writer

    def together(self, reader: int, writer: int) -> tuple[Placed, Placed, Box] | None:
        """The grants of a pair that escalate, and where the writer's request lies."""
        universe = self._model.universe
        held = 1 << reader | 1 << writer
        refused = [universe.anyone(deny.box) for deny in self._model.denies if deny.box.roles & held]
        not_reads = refused + self._whole[writer]
        not_writes = refused + self._whole[reader]
        left: dict[int, list[Box]] = {}
        for read, safe in self._reads[reader]:
            near = [(i, w) for i, (_, w) in enumerate(self._writes[writer]) if _share(safe, w)]
            if not near or not (only_read := less_all([safe], not_reads)):
                continue
            for index, unsafe in near:
                if index not in left:
                    left[index] = less_all([unsafe], not_writes)
                for write in left[index]:
                    for box in only_read:
                        if (where := box._replace(methods=write.methods).meet(write)) is not None:
                            return read, self._writes[writer][index][0], where
        return None


def _share(one: Box, two: Box) -> bool:
    """Whether two boxes share a resource, methods aside."""
    return bool(one.paths & two.paths and one.hosts & two.hosts and one.sources & two.sources)


def _hull(boxes: list[Box]) -> Box:
    """The smallest product that holds all."""
    hull = boxes[0]
    for box in boxes[1:]:
        hull = Box._make(a | b for a, b in zip(hull, box, strict=True))
    return hull
