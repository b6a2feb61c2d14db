"""The JSON Schema of the policy file, published as `reference/policy.schema.json`."""

from __future__ import annotations

import json
from typing import Any

from iamroles_agent.config import Config

SCHEMA_ID = "urn:haproxy-iam-roles:policy:1"


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of what may be written; the checks across tables are `policy.load`'s alone."""
    body = Config.model_json_schema(mode="validation")
    _write_durations(body)
    # Tables of vendors are theirs (SPEC.md section 6): the only names that are open.
    body["patternProperties"] = {"^x-": {}}
    body["properties"]["$schema"] = {"type": "string", "description": "Where editors find this schema."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **body}


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
