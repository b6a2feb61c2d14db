"""Show who reaches what: every role against every route, as a table and as an HTML page."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from string import Template
from typing import Literal

from iamroles_agent.base.config import Config
from iamroles_agent.policy.compiled import arns_of
from iamroles_tools.policy.describe import describe_region
from iamroles_tools.policy.zones import LabelledRule, Labels, Zone, labelled, rules_of, split, walk

Reach = Literal["all", "part", "none"]


@dataclass(frozen=True, slots=True)
class Cell:
    """The part of a route that a role reaches."""

    reach: Reach
    because: tuple[str, ...] = ()
    """For `part` and `none`: ids of the denies, and of the winning grants, that take the rest."""


@dataclass(frozen=True, slots=True)
class Route:
    """One grant, and each role's cell; roles that the grant does not name have none."""

    id: str
    where: str
    backend: str
    cells: dict[str, Cell]


@dataclass(frozen=True, slots=True)
class Matrix:
    """All roles and routes of a policy, by path."""

    roles: dict[str, tuple[str, ...]]
    """Name to ARNs."""
    routes: tuple[Route, ...]


@dataclass(slots=True)
class _Reached:
    """The part of a grant that a role has reached so far."""

    some: bool = False
    lost: bool = False
    takers: set[LabelledRule] = field(default_factory=set)


def matrix(config: Config) -> Matrix:
    """Tell, for tokens with one role, which part of each grant's region leads to this grant's backend."""
    labels = Labels(role.name for role in config.roles)
    grants = labelled(rules_of(config, "grants"), labels)
    denies = labelled(rules_of(config, "denies"), labels, deny=True)
    reached: dict[LabelledRule, dict[int, _Reached]] = {grant: {} for grant in grants}
    for zone in walk([*grants, *denies], [config]):
        for roles in zone.classes(labels.everyone):
            _add(zone, roles, reached)
    names = {role.name: tuple(arns_of(role)) for role in config.roles}
    grants.sort(key=lambda one: (one.rule.region.path, not one.rule.region.exact, one.id))
    return Matrix(names, tuple(_route(grant, labels, reached[grant]) for grant in grants))


def _add(zone: Zone, roles: int, reached: dict[LabelledRule, dict[int, _Reached]]) -> None:
    """Add the part of each grant that these roles reach in one zone."""
    grants, denies = zone.naming(roles, zone.grants), zone.naming(roles, zone.denies)
    for index, (grant, cells) in enumerate(grants):
        rivals = [pair for pair in grants[:index] if pair[0].rule.backend != grant.rule.backend]
        takers = [one for one, theirs in (*denies, *rivals) if theirs & cells]
        left = cells & ~zone.union(takers)
        found = reached[grant].setdefault(roles & grant.roles, _Reached())
        found.some |= bool(left)
        found.lost |= left != cells
        found.takers.update(takers)


def _route(grant: LabelledRule, labels: Labels, reached: dict[int, _Reached]) -> Route:
    """Make one row; roles that no zone tells apart share a cell."""
    cells: dict[str, Cell] = {}
    for roles in split([grant.roles], reached):
        parts = [found for mask, found in reached.items() if mask & roles]
        takers = {taker for found in parts for taker in found.takers}
        lost, some = any(found.lost for found in parts), any(found.some for found in parts)
        because = tuple(one.id for one in sorted(takers, key=lambda one: (not one.deny, one.order)))
        cell = Cell("none" if not some else "part" if lost else "all", because)
        cells |= dict.fromkeys(labels.listed(roles), cell)
    where = describe_region(grant.rule.region)
    return Route(grant.id, where, grant.rule.backend, dict(sorted(cells.items())))


_SAID = {
    "all": "\N{BLACK CIRCLE} all",
    "part": "\N{CIRCLE WITH LEFT HALF BLACK} part",
    "none": "\N{WHITE CIRCLE} none",
}


def to_html(table: Matrix, title: str, version: str) -> str:
    """Make a page without scripts, fonts or requests; it shows reach in words, not by colour alone."""
    roles = sorted(table.roles)
    head = "".join(
        f'<th scope="col">{escape(role)}<small>{"<br>".join(map(escape, table.roles[role]))}</small></th>'
        for role in roles
    )
    page = Template(files("iamroles_tools.policy").joinpath("matrix.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=escape(title),
        version=escape(version),
        roles=len(table.roles),
        grants=len(table.routes),
        head=head,
        rows="\n".join(_row(route, roles) for route in table.routes),
    )


def _row(route: Route, roles: list[str]) -> str:
    cells = []
    for role in roles:
        cell = route.cells.get(role)
        if cell is None:
            cells.append("<td></td>")
            continue
        because = f"<small>less {escape(', '.join(cell.because))}</small>" if cell.because else ""
        cells.append(f'<td class="{cell.reach}">{_SAID[cell.reach]}{because}</td>')
    where = f"<code>{escape(route.where)}</code><small>{escape(route.id)}</small>"
    return f'<tr><th scope="row">{where}</th><td>{escape(route.backend)}</td>{"".join(cells)}</tr>'


def to_text(table: Matrix) -> str:
    """Make the text for a terminal: one block per role."""
    blocks = []
    for role in sorted(table.roles):
        lines = [f"{role}  ({', '.join(table.roles[role])})"]
        for route in table.routes:
            cell = route.cells.get(role)
            if cell is not None:
                less = f", less {', '.join(cell.because)}" if cell.because else ""
                lines.append(f"  {cell.reach:<4}  {route.where}  ->  {route.backend}  [{route.id}{less}]")
        blocks.append("\n".join(lines if len(lines) > 1 else [*lines, "  reaches nothing"]))
    return "\n\n".join(blocks)
