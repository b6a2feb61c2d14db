"""What a change of policy opens and closes, exactly (requirement O10).

Roles are compared by ARN, not by name, because the token carries the ARN. Two kinds of token are enough to
see every change: those with one role, and those with an active role and a companion, whose denies bear on
all (O4). For if a token with more roles newly reaches a request, then the active role is newly granted it, or
a deny of the active role has gone, and the token with that role alone shows it; or a deny of some other role
has gone, and the token with these two shows it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from iamroles_agent.config import Config
from iamroles_agent.identity import Request, RoleArn
from iamroles_agent.policy.atoms import Box, Universe, bits, less_all
from iamroles_agent.policy.compiled import arns_of
from iamroles_agent.policy.model import Model, Placed, Rules
from iamroles_agent.policy.regions import Region
from iamroles_agent.policy.witness import describe


@dataclass(frozen=True, slots=True)
class Change:
    """One (role, route) pair whose reach changed, with a request that shows it."""

    role: str
    """ARN, or the scope's name."""
    rule: str
    """The grant that opens it: of the old policy for what is closed, else of the new."""
    backend: str
    witness: Request
    companion: str = ""
    """ARN of the other role of the token whose deny changed, "" for tokens with one role."""
    was: str = ""
    """For what moved: the backend before."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A changed value that bears on who is trusted or for how long, rather than on a route."""

    key: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Difference:
    """All changes between two policies."""

    opened: tuple[Change, ...]
    closed: tuple[Change, ...]
    moved: tuple[Change, ...]
    scopes_opened: tuple[Change, ...]
    scopes_closed: tuple[Change, ...]
    settings: tuple[Setting, ...]

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)

    @property
    def digest(self) -> str:
        """Names exactly these changes, so that acknowledging them acknowledges no others."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """For machines; the witness as its parts."""

        def change(item: Change) -> dict[str, Any]:
            request = {
                "method": item.witness.method,
                "host": item.witness.host,
                "path": item.witness.path,
                "src": str(item.witness.src),
            }
            return {**asdict(item), "witness": request, "text": describe(item.witness)}

        lists = {name: getattr(self, name) for name in self.__slots__ if name != "settings"}
        return {name: [change(item) for item in items] for name, items in lists.items()} | {
            "settings": [asdict(item) for item in self.settings]
        }


def diff(old: Config, new: Config) -> Difference:
    """Compare two checked configurations. Shadow rules open and close nothing."""
    before, after = _models(old, new)
    scopes_before, scopes_after = _scope_models(old, new)
    return Difference(
        opened=tuple(_changes(before, after)),
        closed=tuple(_changes(after, before)),
        moved=tuple(_moved(before, after)),
        scopes_opened=tuple(_singles(scopes_before, scopes_after)),
        scopes_closed=tuple(_singles(scopes_after, scopes_before)),
        settings=tuple(_settings(old, new)),
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """One policy in the universe of both."""

    model: Model
    won: list[tuple[Placed, list[Box]]]
    """Where each grant decides for tokens with one role: together, all that is open to them."""

    @classmethod
    def of(cls, model: Model) -> _Side:
        return cls(model, [(grant, model.won(grant)) for grant in model.grants])

    @property
    def boxes(self) -> list[Box]:
        return [box for _, boxes in self.won for box in boxes]


def _models(old: Config, new: Config) -> tuple[_Side, _Side]:
    named = [_arns_by_name(config) for config in (old, new)]
    arns = sorted({arn for names in named for listed in names.values() for arn in listed})
    rules = [Rules.of(config) for config in (old, new)]
    universe = Universe((region for each in rules for region in each.regions), arns)
    sides = [_Side.of(Model(each, universe, names)) for each, names in zip(rules, named, strict=True)]
    return sides[0], sides[1]


def _arns_by_name(config: Config) -> dict[str, list[str]]:
    return {role.name: [str(RoleArn.parse(arn)) for arn in arns_of(role)] for role in config.roles}


def _scope_models(old: Config, new: Config) -> tuple[_Side, _Side]:
    """Scopes as roles that are granted what they open."""
    from iamroles_agent.policy.compiled import Rule  # noqa: PLC0415

    def rules(config: Config) -> Rules:
        scopes = [
            (f"scopes[{i}]", Rule(s.name, frozenset({s.name}), Region.of(s)))
            for i, s in enumerate(config.scopes)
        ]
        return Rules(scopes, [], [], [])

    both = rules(old), rules(new)
    names = sorted({scope.name for config in (old, new) for scope in config.scopes})
    universe = Universe((region for each in both for region in each.regions), names)
    return _Side.of(Model(both[0], universe)), _Side.of(Model(both[1], universe))


def _changes(before: _Side, after: _Side) -> Iterator[Change]:
    """What `after` opens that `before` does not, each (role, route) once."""
    yield from _singles(before, after)
    yield from _pairs(before, after)


def _singles(before: _Side, after: _Side) -> Iterator[Change]:
    old = before.boxes
    for grant, won in after.won:
        shown: set[int] = set()
        for box in less_all(won, old):
            for bit in bits(box.roles):
                if bit not in shown:
                    shown.add(bit)
                    yield _change(after.model.universe, grant, box, bit)


def _pairs(before: _Side, after: _Side) -> Iterator[Change]:
    """Requests that a role reached alone before, and now also in the company of a role that denied them."""
    universe = after.model.universe
    old = before.boxes
    gone = [deny for deny in before.model.denies if deny.box.roles != universe.all_roles]
    shown: set[tuple[str, int, int]] = set()
    for deny in gone:
        region = universe.anyone(deny.box)
        for grant, won in after.won:
            shared = [piece for box in won if (piece := box.meet(region)) is not None]
            shared = [piece for box in shared for other in old if (piece := box.meet(other)) is not None]
            if not shared:
                continue
            for companion in bits(deny.box.roles):
                still = (universe.anyone(d.box) for d in after.model.denies if d.box.roles >> companion & 1)
                for box in less_all(shared, still):
                    for bit in bits(box.roles & ~(1 << companion)):
                        if (grant.id, bit, companion) not in shown:
                            shown.add((grant.id, bit, companion))
                            yield _change(universe, grant, box, bit, companion)


def _change(universe: Universe, grant: Placed, box: Box, bit: int, companion: int | None = None) -> Change:
    role = universe.role_labels(1 << bit)[0]
    with_role = "" if companion is None else universe.role_labels(1 << companion)[0]
    return Change(role, grant.id, grant.rule.backend, universe.witness(box), with_role)


def _moved(before: _Side, after: _Side) -> Iterator[Change]:
    """What a role reaches in both, but at another backend."""
    universe = after.model.universe
    for grant, won in after.won:
        shown: set[int] = set()
        for old, boxes in before.won:
            if old.rule.backend == grant.rule.backend or not old.box.meets(grant.box):
                continue
            for box in (piece for one in won for two in boxes if (piece := one.meet(two)) is not None):
                for bit in bits(box.roles):
                    if bit not in shown:
                        shown.add(bit)
                        role = universe.role_labels(1 << bit)[0]
                        witness = universe.witness(box)
                        yield Change(role, grant.id, grant.rule.backend, witness, was=old.rule.backend)


_ROUTED = {"agent", "audit", "metrics", "grants", "denies", "scopes", "version"}
"""Tables that are compared by what they open, or that bear on no verdict."""


def _settings(old: Config, new: Config) -> Iterator[Setting]:
    before, after = (_flat(config.model_dump(mode="json", exclude=_ROUTED)) for config in (old, new))
    for key in sorted(before.keys() | after.keys()):
        one, two = before.get(key, "(absent)"), after.get(key, "(absent)")
        if one != two:
            yield Setting(key, one, two)


def _flat(value: Any, key: str = "") -> dict[str, str]:  # noqa: ANN401 - JSON
    """Leaves by dotted key; list items by their `name`, lists of plain values as one sorted leaf."""
    if isinstance(value, dict):
        found: dict[str, str] = {}
        for name, item in value.items():
            if key.startswith("roles[") and name in ("arn", "arns"):
                continue  # compared by what they open
            if key.startswith("backends[") and name == "servers":
                continue  # where a backend runs is the proxy's matter
            found |= _flat(item, f"{key}.{name}" if key else name)
        return found
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        found = {}
        for item in value:
            found |= _flat(item, f"{key}[{item['name']}]")
        return found
    if isinstance(value, list) and not key.endswith("_claim"):
        value = sorted(value)
    if isinstance(value, float):  # every float of the models is a duration
        return {key: f"{value:g}s"}
    return {key: json.dumps(value)}
