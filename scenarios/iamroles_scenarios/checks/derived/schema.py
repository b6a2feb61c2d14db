"""The keys of the policy as SPEC.md section 6 describes them, and where each is played.

`tests/scenarios/test_derived.py` holds this table against SPEC.md and against the published schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.checks.derived import issuer_rows, rules

WRONG: Mapping[str, Any] = {
    "text": 7,
    "texts": {"a": "table"},
    "path": 7,
    "boolean": [],
    "integer": "many",
    "duration": 7,
    "choice": "another",
    "table": "a text",
    "tables": "a text",
}
"""For each type, a value of another one."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its type, whether it must be there, and values beyond its range."""

    type: str
    required: bool = False
    beyond: tuple[Any, ...] = ()


def _keys(**types: str | tuple[Any, ...]) -> dict[str, Key]:
    """Keys by name: a type, `!` before it where the key is required, and values that are refused."""
    found = {}
    for name, said in types.items():
        word, *beyond = (said,) if isinstance(said, str) else said
        found[name] = Key(word.removeprefix("!"), word.startswith("!"), tuple(beyond))
    return found


_REGION: dict[str, str | tuple[Any, ...]] = {
    "path": ("!text", "no-slash", "/a/../b", "/a//b", "/a/*"),
    "match": "choice",
    "hosts": ("texts", ["http://x"]),
}
_SOURCES: dict[str, str | tuple[Any, ...]] = {"sources": ("texts", ["10.0.0.0/33"])}
_METHODS: dict[str, str | tuple[Any, ...]] = {"methods": ("texts", ["get"], ["GET", "Delete"])}
KEYS: Mapping[str, Mapping[str, Key]] = {
    "top": _keys(
        version=("!integer", 2),
        multi_role="choice",
        agent="table",
        audit="table",
        metrics="table",
        live="table",
        identity_header="table",
        keys="table",
        limits="table",
        issuers="tables",
        sts="tables",
        roles="tables",
        groups="tables",
        backends="tables",
        grants="tables",
        denies="tables",
        scopes="tables",
    ),
    "issuers": _keys(
        name="!text",
        issuer="!text",
        jwks_uri="text",
        insecure_http="boolean",
        audiences="texts",
        client_ids="texts",
        algorithms=("!texts", ["none"], ["HS256"], ["ES256", "HS512"]),
        types="texts",
        profile="choice",
        roles_claim="path",
        preferred_role_claim="path",
        scope_claim="path",
        scope_required="boolean",
        session_claim="path",
        principal_claim="path",
        accounts="texts",
        max_lifetime="duration",
        leeway=("duration", "61s", "2m"),
    ),
    "keys": _keys(refresh="duration", cooldown="duration", max_stale="duration", timeout="duration"),
    "sts": _keys(
        name="!text",
        endpoint="!text",
        hosts="!texts",
        binding_header="text",
        binding_value="!text",
        accounts="texts",
        insecure_http="boolean",
        timeout="duration",
        recheck="duration",
        replay_cache="boolean",
    ),
    "limits": _keys(max_lifetime="duration", max_token_bytes=("integer", 255, 65537)),
    "roles": _keys(
        name="!text",
        arn=(
            "text",
            "arn:aws:iam::111111111111:role/team/x",
            "arn:aws:sts::111111111111:assumed-role/x/s",
            "x",
            "arn:aws:iam::11111111111:role/x",
            "arn:other:iam::111111111111:role/x",
        ),
        arns=(
            "texts",
            ["arn:aws:iam::111111111111:role/team/x"],
            ["arn:aws:iam::111111111111:role/y", "arn:aws:sts::111111111111:assumed-role/x/s"],
        ),
        max_lifetime="duration",
    ),
    "groups": _keys(name="!text", roles=("!texts", ["nobody"], ["team"])),
    "backends": _keys(name="!text", servers="texts", tls="table", streams="boolean", renew="boolean"),
    "backends.tls": _keys(ca="!text", certificate="text", name="text"),
    "grants": _keys(
        id="!text",
        roles=("!texts", ["nobody"], ["*"]),
        methods=("!texts", ["get"]),
        **_REGION,
        **_SOURCES,
        backend=("!text", "nowhere"),
        shadow="boolean",
    ),
    "denies": _keys(
        id="!text", roles=("!texts", ["nobody"]), **_METHODS, **_REGION, **_SOURCES, shadow="boolean"
    ),
    "scopes": _keys(name="!text", **_METHODS, **_REGION),
}
"""What section 6 says of the tables that an agent reads to decide."""
ONE_OF = {"issuers": ("audiences", "client_ids"), "roles": ("arn", "arns")}
"""Keys of which one must be there."""
PROCESS = {
    "agent": "optional for vendors (6.1); connections and handshake are played by wire.life.*",
    "audit": "optional for vendors (6.1); docs/audit.md and tests/agent/audit/test_audit_*.py",
    "metrics": "optional for vendors (6.1); tests/agent/serving/test_metrics.py",
    "live": "of agents that declare `live`; played by live.*",
    "identity_header": "optional for vendors (6.1); tests/scenarios/test_signed_identity.py",
}
"""Tables of an agent's own process, and where they are held."""
EXEMPT = {
    "version": "any other value is refused: policy.derived.refused",
    "issuers.insecure_http": "played by identity.policy.plain-http",
    "sts.insecure_http": "the mock cloud speaks http alone: without this key no STS check passes",
    "sts.timeout": "played by identity.derived.sts-waits",
    "sts.recheck": "played by identity.caller.ended",
    "sts.replay_cache": "a SHOULD; played by identity.sts-form.*",
    "keys.refresh": "played by identity.keys.*",
    "keys.cooldown": "played by identity.kids.*",
    "keys.max_stale": "played by identity.keys.stale",
    "keys.timeout": "played by identity.derived.waits",
    "backends.servers": "played by every check through HAProxy: the stage writes them",
    "backends.tls": "the proxy's; tests/scenarios/test_stage_backends.py",
    "backends.streams": "the proxy's; played by live.refused.*",
    "backends.renew": "the proxy's; played by live.renew.*",
    "backends.tls.ca": "the proxy's; tests/scenarios/test_stage_backends.py",
    "backends.tls.certificate": "the proxy's; tests/scenarios/test_stage_backends.py",
    "backends.tls.name": "the proxy's; tests/scenarios/test_stage_backends.py",
}
"""Keys whose edge needs time, the network or the proxy, and where it is played."""


def played() -> set[str]:
    """Keys that have an edge of their own."""
    found = {edge.key for edge in rules.edges()}
    for table, rows in issuer_rows.TABLES.items():
        found |= {f"{table}.{key}" for key in rows}
    return found


def known() -> Iterator[str]:
    """Every key by its name in a policy; of the top, those that are no table."""
    for table, keys in KEYS.items():
        for name, key in keys.items():
            if table != "top":
                yield f"{table}.{name}"
            elif not key.type.startswith("table"):
                yield name
