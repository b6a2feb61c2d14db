"""Policies in a few words: rules by row, and tables of the roles and backends that these rules name."""

import json

ISSUER = {"name": "idp", "issuer": "https://idp.test", "audiences": ["api"], "algorithms": ["RS256"]}


def arn(role, account="111111111111"):
    return f"arn:aws:iam::{account}:role/{role}"


def role(name, **more):
    return {"name": name, "arn": arn(name), **more}


def grant(name, whom, methods, path, backend="b", **more):
    """A grant; `whom` and `methods` are words."""
    table = {"id": name, "roles": whom.split(), "methods": methods.split(), "path": path, "backend": backend}
    return table | more


def deny(name, whom, path, **more):
    return {"id": name, "roles": whom.split(), "path": path, **more}


def document(*rules, **tables):
    """A policy of these rules; `tables` stand in place of those that follow from the rules."""
    grants = [rule for rule in rules if "backend" in rule]
    named = dict.fromkeys(name for rule in rules for name in rule["roles"] if name != "*")
    return {
        "version": 1,
        "issuers": [ISSUER],
        "roles": [role(name) for name in named],
        "backends": [{"name": name} for name in dict.fromkeys(rule["backend"] for rule in grants)],
        "grants": grants,
        "denies": [rule for rule in rules if "backend" not in rule],
    } | tables


def text(*rules, **tables):
    """The same as JSON, a member a line."""
    return json.dumps(document(*rules, **tables), indent=1)
