"""The JSON Schema of the policy file, published as `reference/policy.schema.json`."""

from __future__ import annotations

import ast
import inspect
import json
from itertools import pairwise
from typing import Any

from iamroles_agent.base import config
from iamroles_agent.base.config import Config

SCHEMA_ID = "urn:haproxy-iam-roles:policy:1"


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of what may be written; the checks across tables are `policy.load`'s alone."""
    body = Config.model_json_schema(mode="validation")
    _describe(body)
    _write_durations(body)
    # Tables of vendors are theirs (SPEC.md section 6): the only names that are open.
    body["patternProperties"] = {"^x-": {}}
    body["properties"]["$schema"] = {"type": "string", "description": "Where editors find this schema."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **body}


def _describe(body: dict[str, Any]) -> None:
    """Each key's description is its field's docstring. An agent that starts needs none."""
    words: dict[tuple[str, str], str] = {}
    tables = [node for node in ast.parse(inspect.getsource(config)).body if isinstance(node, ast.ClassDef)]
    for table in tables:
        for pair in pairwise(table.body):
            match pair:
                case ast.AnnAssign(target=ast.Name(key)), ast.Expr(ast.Constant(str(said))):
                    words[table.name, key] = inspect.cleandoc(said)
    for name, shape in {**body["$defs"], Config.__name__: body}.items():
        for base in getattr(config, name).__mro__:
            for key, known in shape["properties"].items():
                if (base.__name__, key) in words:
                    known.setdefault("description", words[base.__name__, key])


def _write_durations(node: object) -> None:
    """Defaults of durations as they are written: the model holds seconds, the file a string with a unit."""
    if isinstance(node, list):
        for item in node:
            _write_durations(item)
    if isinstance(node, dict):
        default = node.get("default")
        if isinstance(default, float):
            node["default"] = f"{default:g}s"
        elif isinstance(default, dict):
            del node["default"]  # a table's defaults stand at its own keys
        for item in node.values():
            _write_durations(item)


def schema_text() -> str:
    """The published file, byte for byte."""
    return json.dumps(schema(), indent=2) + "\n"
