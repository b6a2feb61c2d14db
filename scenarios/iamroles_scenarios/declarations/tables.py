"""The tables of `data/derived/`, from which checks are derived, and the published schema of the policy.

A text of a table may hold markers: `{arn}` is the first part of a role's ARN, `{aws}` the namespace of AWS's
claims, `{null}` stands for null, `{300 letters}` for a text of this length, `{300 é}` for one of two bytes a
letter. The module that reads a table fills in others, such as `{n}`, the number of a row.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

ARN = "arn:aws:iam::111111111111:role/"
AWS = "https://sts.amazonaws.com/"
_ALWAYS = {"arn": ARN, "aws": AWS, "null": None}
_LETTERS = re.compile(r"\{(\d+) (letters|é)\}")


def filled(value: Any, markers: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    """Replace the markers of a value. A text that is nothing but a marker becomes the marker's meaning."""
    if isinstance(value, str):
        if value.startswith("{") and value.endswith("}") and value[1:-1] in markers:
            return markers[value[1:-1]]
        if "{" not in value:
            return value
        for name, meant in markers.items():
            value = value.replace(f"{{{name}}}", str(meant))
        return _LETTERS.sub(lambda found: ("é" if found[2] == "é" else "x") * int(found[1]), value)
    if isinstance(value, list):
        return [filled(item, markers) for item in value]
    if isinstance(value, Mapping):
        return {filled(key, markers): filled(item, markers) for key, item in value.items()}
    return value


@cache
def table(name: str) -> dict[str, Any]:
    """Read a file of `data/derived/`, and replace the markers that mean the same in all of them."""
    path = files("iamroles_scenarios") / "data" / "derived" / f"{name}.toml"
    found: dict[str, Any] = filled(tomllib.loads(path.read_text(encoding="utf-8")), _ALWAYS)
    return found


@cache
def policy_schema() -> dict[str, Any]:
    """Read `policy.schema.json`, of the checkout if this is one, else as packaged."""
    package = Path(str(files("iamroles_scenarios")))
    beside = package.parents[1] / "reference" / "policy.schema.json"
    path = beside if beside.is_file() else package / "data" / "policy.schema.json"
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema
