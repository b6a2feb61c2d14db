"""HTML pages that need no other file: templates that extend `base.html`, whose style knows light and dark."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from iamroles_scenarios.base.durations import duration


def template(package: str, name: str) -> Template:
    """Load a template of a package."""
    loaders = [PackageLoader(package, ""), PackageLoader("iamroles_scenarios.pages", "")]
    environment = Environment(loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined)
    environment.filters["duration"] = duration
    return environment.get_template(name)


def markup(svg: str) -> Markup:
    """Let a chart stand as it is: charts escape what they are given."""
    return Markup(svg)  # noqa: S704 - see above
