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
    """Make the JSON Schema (2020-12) of the policy file; only `policy.load` checks across tables."""
    body = Config.model_json_schema(mode="validation")
    _describe(body)
    _write_durations(body)
    # Tables of vendors have free names (SPEC.md section 6).
    body["patternProperties"] = {"^x-": {}}
    body["properties"]["$schema"] = {"type": "string", "description": "Where editors find this schema."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **body}


def _describe(body: dict[str, Any]) -> None:
    """Take each key's description from its field's docstring; the agent itself does not load them."""
    words: dict[tuple[str, str], str] = {}
    tables = [node for node in ast.parse(inspect.getsource(config)).body if isinstance(node, ast.ClassDef)]
    for table in tables:
        for pair in pairwise(table.body):
            match pair:
                case ast.AnnAssign(target=ast.Name(key)), ast.Expr(ast.Constant(str(text))):
                    words[table.name, key.rstrip("_")] = inspect.cleandoc(text)
    for name, shape in {**body["$defs"], Config.__name__: body}.items():
        for base in getattr(config, name).__mro__:
            for key, known in shape["properties"].items():
                if (base.__name__, key) in words:
                    known.setdefault("description", words[base.__name__, key])


def _write_durations(node: object) -> None:
    """Write defaults of durations as strings with a unit: the model holds seconds."""
    if isinstance(node, list):
        for item in node:
            _write_durations(item)
    if isinstance(node, dict):
        node.pop("ge", None)  # a bound of seconds or bytes, which pydantic leaves beside the string
        default = node.get("default")
        if isinstance(default, float):
            node["default"] = f"{default:g}s"
        elif isinstance(default, dict):
            del node["default"]  # a table's own keys have the defaults
        for item in node.values():
            _write_durations(item)


def schema_text() -> str:
    """Make the published file, byte for byte."""
    return json.dumps(schema(), indent=2) + "\n"
