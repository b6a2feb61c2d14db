"""Checks written in Python, one folder for each family; scenario files hold the rest."""

from __future__ import annotations

from importlib import import_module
from pkgutil import walk_packages

from iamroles_scenarios.declarations.results import Check, declared


def all_checks() -> list[Check]:
    """Every check of this package, by id; importing a module declares its checks."""
    for module in walk_packages(__path__, f"{__name__}."):
        import_module(module.name)
    return sorted(declared().values(), key=lambda check: check.id)
