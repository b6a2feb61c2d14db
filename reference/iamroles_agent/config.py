"""The one file: how the agent runs and what the policy says (SPEC.md section 6).

The models here give shape and types; `policy.load` reads TOML or JSON into them, adds the checks that span
tables, and reports every problem at once with its file, line, key and remedy.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: object) -> float:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", value)):
        return float(match[1]) * _UNITS[match[2]]
    raise ValueError('a duration is a string such as "500ms", "90s", "15m", "1h"')


Duration = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=str)]
"""Seconds, written as a string with a unit."""
ClaimPath = str | list[str]
"""A claim's name, or the names on the way into nested objects."""


class Model(BaseModel):
    """Strict: unknown keys are errors, nothing is coerced, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AgentSettings(Model):
    """How the process runs; not part of the policy."""

    listen: str = "127.0.0.1:9901"
    """`host:port` (port 0: ephemeral) or `unix:/path`."""
    workers: int = Field(default=1, ge=1, le=256)
    max_frame_size: int = Field(default=16380, ge=256, le=1 << 20)
    max_connections: int = Field(default=4096, ge=1)
    handshake_timeout: Duration = 5.0
    drain_timeout: Duration = 10.0
    decision_timeout: Duration = 10.0
    """A decision that takes longer is answered `internal_error`."""


class AuditSettings(Model):
    """Where decisions are recorded."""

    path: str = "stderr"
    """A file, `stderr`, or `none`."""
    on_error: Literal["deny", "allow"] = "deny"
    """What a decision becomes when it cannot be recorded (full disk): fail closed or open."""
    sync: Duration = 1.0
    """The declared window: a kill -9 may lose at most the last so many seconds (0s: fsync each batch)."""
    required: bool = False


class MetricsSettings(Model):
    """Prometheus endpoint."""

    listen: str = ""
    """`host:port`, port 0: ephemeral; "" for none."""


class KeySettings(Model):
    """Timing of JWKS caching."""

    refresh: Duration = 300.0
    cooldown: Duration = 10.0
    max_stale: Duration = 3600.0
    timeout: Duration = 5.0


class Issuer(Model):
    """An OIDC issuer that may assert roles."""

    name: str
    issuer: str
    jwks_uri: str | None = None
    insecure_http: bool = False
    audiences: list[str] = Field(default_factory=list)
    client_ids: list[str] = Field(default_factory=list)
    algorithms: list[str]
    types: list[str] = Field(default_factory=lambda: ["JWT", "at+jwt"])
    profile: Literal["generic", "rfc9068", "cognito", "aws"] = "generic"
    roles_claim: ClaimPath = "roles"
    preferred_role_claim: ClaimPath | None = None
    scope_claim: ClaimPath | None = None
    scope_required: bool = True
    session_claim: ClaimPath | None = None
    principal_claim: ClaimPath = "sub"
    accounts: list[str] = Field(default_factory=list)
    max_lifetime: Duration = 3600.0
    leeway: Duration = Field(default=0.0, le=60.0)


class Sts(Model):
    """An AWS STS endpoint whose pre-signed GetCallerIdentity proves a role."""

    name: str
    endpoint: str
    hosts: list[str]
    binding_header: str = "x-iam-edge"
    binding_value: str
    accounts: list[str] = Field(default_factory=list)
    insecure_http: bool = False
    timeout: Duration = 10.0
    replay_cache: bool = False


class Limits(Model):
    """Bounds that hold for every issuer."""

    max_lifetime: Duration | None = None
    max_token_bytes: int = Field(default=8192, ge=256, le=65536)


class Role(Model):
    """A name for one or more role ARNs."""

    name: str
    arn: str | None = None
    arns: list[str] = Field(default_factory=list)
    max_lifetime: Duration | None = None


class Backend(Model):
    """A destination that grants may name."""

    name: str
    servers: list[str] = Field(default_factory=list)


class Region(Model):
    """Which requests a rule is about."""

    methods: list[str] = Field(default_factory=lambda: ["*"])
    path: str
    match: Literal["prefix", "exact"] = "prefix"
    hosts: list[str] = Field(default_factory=list)
    sources: list[str] = Field(default_factory=list)


class Grant(Region):
    """Opens a region to roles and names the backend behind it."""

    id: str
    roles: list[str]
    methods: list[str]
    backend: str
    shadow: bool = False


class Deny(Region):
    """Closes a region to tokens that hold any of the roles, whatever else they hold."""

    id: str
    roles: list[str]
    shadow: bool = False


class Scope(Model):
    """What a scope value in a token opens, at most."""

    name: str
    methods: list[str] = Field(default_factory=lambda: ["*"])
    path: str
    match: Literal["prefix", "exact"] = "prefix"
    hosts: list[str] = Field(default_factory=list)


class Config(Model):
    """The whole file."""

    version: Literal[1]
    multi_role: Literal["deny", "union"] = "deny"
    agent: AgentSettings = AgentSettings()
    audit: AuditSettings = AuditSettings()
    metrics: MetricsSettings = MetricsSettings()
    keys: KeySettings = KeySettings()
    limits: Limits = Limits()
    issuers: list[Issuer] = Field(default_factory=list)
    sts: list[Sts] = Field(default_factory=list)
    roles: list[Role] = Field(default_factory=list)
    backends: list[Backend] = Field(default_factory=list)
    grants: list[Grant] = Field(default_factory=list)
    denies: list[Deny] = Field(default_factory=list)
    scopes: list[Scope] = Field(default_factory=list)
