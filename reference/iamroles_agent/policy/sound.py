"""The part of a configuration that can be checked while another part has the wrong shape."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from iamroles_agent.base import config
from iamroles_agent.base.config import Config

_M = TypeVar("_M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Sound:
    """The items of a file that have the right shape, each with its key; and the names of all others."""

    union: bool
    whole: Config | None
    """None if some part has the wrong shape."""
    tables: Config
    """The single tables, such as `dpop`, that have the right shape."""
    issuers: list[tuple[str, config.Issuer]]
    sts: list[tuple[str, config.Sts]]
    roles: list[tuple[str, config.Role]]
    groups: list[tuple[str, config.Group]]
    backends: list[tuple[str, config.Backend]]
    grants: list[tuple[str, config.Grant]]
    denies: list[tuple[str, config.Deny]]
    scopes: list[tuple[str, config.Scope]]
    resources: list[tuple[str, config.Resource]]
    role_names: frozenset[str]
    backend_names: frozenset[str]
    stand_ins: frozenset[str] = frozenset()
    """Keys whose values are not the file's."""

    @property
    def rules(self) -> list[tuple[str, config.Grant | config.Deny]]:
        return [*self.grants, *self.denies]

    @classmethod
    def of_config(cls, whole: Config) -> Sound:
        """Take all items of a configuration with the right shape."""
        union = whole.multi_role == "union"
        return cls._of(lambda table, _: list(getattr(whole, table)), union, whole, whole)

    @classmethod
    def of_data(cls, data: dict[str, Any], wrong: set[tuple[int | str, ...]]) -> Sound:
        """Take the sound items of a file whose shape is partly wrong.

        An item keeps its sound fields; a wrong field gets a stand-in, and faults of stand-ins are not
        reported. `wrong` has the locations of the parts with the wrong shape.
        """
        fields = {(loc[0], loc[1], loc[2]) for loc in wrong if len(loc) > 2}

        def items(table: str, model: type[_M]) -> list[_M | None]:
            raw = data.get(table)
            listed = raw if isinstance(raw, list) else []
            names = [{str(f[2]) for f in fields if f[:2] == (table, index)} for index in range(len(listed))]
            return [_mended(table, model, item, bad) for item, bad in zip(listed, names, strict=True)]

        faulty = {loc[0] for loc in wrong if loc}
        tables = {name: item for name, item in data.items() if isinstance(item, dict) and name not in faulty}
        shaped = Config.model_validate({"version": 1, **tables})
        sound = cls._of(items, data.get("multi_role") == "union", None, shaped)
        return replace(
            sound,
            role_names=_raw_names(data.get("roles")),
            backend_names=_raw_names(data.get("backends")),
            stand_ins=frozenset(f"{table}[{index}].{name}" for table, index, name in fields),
        )

    @classmethod
    def _of(
        cls, items: Callable[[str, Any], list[Any]], union: bool, whole: Config | None, tables: Config
    ) -> Sound:
        def keyed(table: str, model: type[_M]) -> list[tuple[str, _M]]:
            found = items(table, model)
            return [(f"{table}[{index}]", item) for index, item in enumerate(found) if item is not None]

        roles, backends = keyed("roles", config.Role), keyed("backends", config.Backend)
        return cls(
            union=union,
            whole=whole,
            tables=tables,
            issuers=keyed("issuers", config.Issuer),
            sts=keyed("sts", config.Sts),
            roles=roles,
            groups=keyed("groups", config.Group),
            backends=backends,
            grants=keyed("grants", config.Grant),
            denies=keyed("denies", config.Deny),
            scopes=keyed("scopes", config.Scope),
            resources=keyed("resources", config.Resource),
            role_names=frozenset(role.name for _, role in roles),
            backend_names=frozenset(backend.name for _, backend in backends),
        )


def _mended(table: str, model: type[_M], item: object, wrong: set[str]) -> _M | None:
    """Return an item with stand-ins for its wrong fields; None if it is wrong even then."""
    if not isinstance(item, dict):
        return None
    mended = {name: value for name, value in item.items() if name in model.model_fields and name not in wrong}
    for name, about in model.model_fields.items():
        if name not in mended and about.is_required():
            mended[name] = "/" if about.annotation is str else []
    with suppress(ValidationError):  # by the whole's validator: each model's own takes time to build
        found: list[_M] = getattr(Config.model_validate({"version": 1, table: [mended]}), table)
        return found[0]
    return None


def _raw_names(raw: object) -> frozenset[str]:
    items = raw if isinstance(raw, list) else []
    names = (item.get("name") for item in items if isinstance(item, dict))
    return frozenset(name for name in names if isinstance(name, str))
