"""From a policy of the suite to the world file that an agent reads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from iamroles_scenarios.stage.kind import StageKind
from iamroles_scenarios.stage.part import Part


class Composer:
    """Makes a policy of the suite into a world document: placeholders replaced, servers filled in."""

    def __init__(self, kind: StageKind, urls: Mapping[str, str]) -> None:
        self._kind = kind
        self._urls = urls
        self.echo: dict[str, Part] = {}

    def document(self, policy: Mapping[str, Any]) -> dict[str, Any]:
        """A new document; the given policy stays as it is.

        `{idp}` and `{sts}` in any string become URLs as the agent sees them. Backends that name servers keep
        them; the others get an echo backend each.
        """
        document = _replaced(policy, self._urls)
        assert isinstance(document, dict)  # noqa: S101 - a mapping went in
        bare = [
            backend
            for backend in document.get("backends", [])
            if isinstance(backend, dict) and "servers" not in backend and isinstance(backend.get("name"), str)
        ]
        if bare:
            part, addresses = self._kind.echo(frozenset(backend["name"] for backend in bare))
            self.echo[part.name] = part
            for backend in bare:
                backend["servers"] = [addresses[backend["name"]]]
        return document


def _replaced(value: Any, urls: Mapping[str, str]) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, str):
        for name in urls if "{" in value else ():
            variable = "{" + name + "}"
            if variable in value:  # asking for a URL waits for its mock
                value = value.replace(variable, urls[name])
        return value
    if isinstance(value, dict | Mapping):  # a `dict` is known at once
        return {key: _replaced(item, urls) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, urls) for item in value]
    return copy.copy(value)
