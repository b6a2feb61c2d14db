"""HTML pages that need no other file: templates that extend `base.html`, whose style knows light and dark."""

from __future__ import annotations

from xml.sax.saxutils import escape as xml_escape

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from iamroles_scenarios.base.durations import duration


def template(package: str, name: str) -> Template:
    """Load a template of a package."""
    loaders = [PackageLoader(package, ""), PackageLoader("iamroles_scenarios.base.pages", "")]
    environment = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"duration": duration, "cell": cell}
    return environment.get_template(name)


def cell(text: str) -> Markup:
    """A text as the cell of a table in Markdown."""
    flat = " ".join(xml_escape(text).split())
    return Markup(flat.replace("|", "\\|").replace("`", "'"))  # noqa: S704 - it is escaped


def markup(svg: str) -> Markup:
    """Let a chart stand as it is: charts escape what they are given."""
    return Markup(svg)  # noqa: S704 - see above
