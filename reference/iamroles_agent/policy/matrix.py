"""Who reaches what: every role against every route, as a table and as an HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Literal

from iamroles_agent.config import Config
from iamroles_agent.policy.atoms import Box, less_all
from iamroles_agent.policy.compiled import arns_of
from iamroles_agent.policy.model import Model, Placed, model_of
from iamroles_agent.policy.regions import Region

Reach = Literal["all", "part", "none"]


@dataclass(frozen=True, slots=True)
class Cell:
    """What one role reaches of one route."""

    reach: Reach
    because: tuple[str, ...] = ()
    """For `part` and `none`: ids of the denies, and of the grants that win, which take the rest."""


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


def matrix(config: Config) -> Matrix:
    """Tell, for tokens with one role, what of each grant's region is reached at this grant's backend."""
    model = model_of(config)
    denies = [deny.box for deny in model.denies]
    routes = []
    for index, grant in enumerate(model.grants):
        better = [other for other in model.grants[:index] if other.rule.backend != grant.rule.backend]
        cells = {role: _cell(model, grant, role, better, denies) for role in sorted(grant.rule.roles)}
        routes.append(
            (
                grant.rule.region,
                Route(grant.id, describe_region(grant.rule.region), grant.rule.backend, cells),
            )
        )
    routes.sort(key=lambda pair: (pair[0].path, not pair[0].exact, pair[1].id))
    names = {role.name: tuple(arns_of(role)) for role in config.roles}
    return Matrix(names, tuple(route for _, route in routes))


def _cell(model: Model, grant: Placed, role: str, better: list[Placed], denies: list[Box]) -> Cell:
    whole = grant.box._replace(roles=model.universe.role_mask([role]))
    takers = [other for other in better if other.box.meets(whole)]
    left = less_all([whole], (*denies, *(other.box for other in takers)))
    if left == [whole]:
        return Cell("all")
    because = [deny.id for deny in model.denies if deny.box.meets(whole)] + [other.id for other in takers]
    return Cell("part" if left else "none", tuple(because))


def describe_region(region: Region) -> str:
    """One line for people: methods, hosts, path, sources."""
    methods = ",".join(sorted(region.methods)) if region.methods else "any method"
    hosts = "|".join(sorted(region.hosts)) if region.hosts else ""
    below = "" if region.exact else " and below"
    sources = f" from {', '.join(map(str, region.sources))}" if region.sources else ""
    return f"{methods} {hosts}{region.path}{below}{sources}"


_STYLE = """
:root { color-scheme: light dark; --line: #8886; --all: #1a7f37; --part: #9a6700; --none: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --all: #4ac26b; --part: #d4a72c; --none: #ff7b72; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
caption { text-align: left; padding-bottom: .75rem; }
th, td { border: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top; }
thead th { position: sticky; top: 0; background: Canvas; }
code { font: .92em ui-monospace, monospace; }
.all { color: var(--all); } .part { color: var(--part); } .none { color: var(--none); }
small { display: block; color: GrayText; }
"""
_SAID = {
    "all": "\N{BLACK CIRCLE} all",
    "part": "\N{CIRCLE WITH LEFT HALF BLACK} part",
    "none": "\N{WHITE CIRCLE} none",
}


def to_html(table: Matrix, title: str, version: str) -> str:
    """A page that needs nothing else: no script, no font, no request; signs are words, not colours alone."""
    roles = sorted(table.roles)
    head = "".join(
        f'<th scope="col">{escape(role)}<small>{"<br>".join(map(escape, table.roles[role]))}</small></th>'
        for role in roles
    )
    rows = "\n".join(_row(route, roles) for route in table.routes)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Who reaches what: {escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Who reaches what</h1>
<p>Policy <code>{escape(title)}</code>, version <code>{escape(version)}</code>.
{len(table.roles)} roles, {len(table.routes)} grants.
A cell tells what a token with this role alone reaches of the route: all, part or none of it, and which denies
(or more specific grants to another backend) take the rest. An empty cell: not granted.</p>
<div class="scroll" role="region" aria-label="Roles and routes" tabindex="0">
<table>
<caption>Routes in rows, roles in columns</caption>
<thead><tr><th scope="col">Route</th><th scope="col">Backend</th>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
</main>
</body>
</html>
"""


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
    """For a terminal: one block per role."""
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
