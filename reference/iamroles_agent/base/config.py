"""The models of the configuration file: the agent's settings and the policy (SPEC.md section 6).

The models define shape and types; `policy.load` reads TOML or JSON into them, adds the checks that span
tables, and reports every problem at once with its file, line, key and remedy.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

_SIZES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


CHECKED = {"checked": True}
"""Validation context for a configuration that the agent itself stored: durations are numbers of seconds."""


def _seconds(value: object, info: ValidationInfo) -> float:
    if info.context is CHECKED and isinstance(value, float):
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,300}(?:\.[0-9]+)?)(ms|s|m|h|d)", value)):
        return float(match[1]) * _UNITS[match[2]]
    raise ValueError('a duration is a string such as "500ms", "90s", "15m", "1h"')


Duration = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=str)]
"""Seconds, written as a string with a unit."""


def _bytes(value: object, info: ValidationInfo) -> int:
    if info.context is CHECKED and type(value) is int:
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,6})(KB|MB|GB|TB)", value)):
        return int(match[1]) * _SIZES[match[2]]
    raise ValueError('a size is a string such as "500MB", "20GB"; 1MB is 1,000,000 bytes')


Size = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=str)]
"""Bytes, written as a string with a unit."""
ClaimPath = str | list[str]
"""A claim's name, or the names on the way into nested objects."""


def _none() -> list[Any]:
    """Return an empty list; pydantic would parse the signature of `list` for each field."""
    return []


class Model(BaseModel):
    """Strict: unknown keys are errors, nothing is coerced, nothing changes after loading.

    A field's docstring is its description in the published JSON Schema (`policy.schema`): editors show it.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        defer_build=True,  # only the whole file is read, never a table by itself
    )


LISTEN = ("unix:/var/lib/haproxy/iamroles/agent.sock", "127.0.0.1:9901")
"""Addresses that hold if `agent.listen` is left out. Debian's HAProxy sees the first from its chroot."""


class AgentTls(Model):
    """Mutual TLS on the TCP addresses of `listen`: HAProxy and the agent prove to each other who they are."""

    certificate: str
    """PEM file with the agent's certificate, its chain and key, relative to this file. Read again when it
    changes."""
    ca: str
    """PEM file of the authorities that must have issued HAProxy's certificate, relative to this file. Read
    again when it changes."""
    names: list[str] = Field(default_factory=_none)
    """DNS names of which HAProxy's certificate must carry one; none listed: any."""


class AgentSettings(Model):
    """How the process runs; not part of the policy."""

    listen: str | list[str] | None = None
    """`unix:/path`, `host:port` (port 0: ephemeral), or a list of them. Left out:
    `unix:/var/lib/haproxy/iamroles/agent.sock` and, as in former releases, 127.0.0.1:9901, as far as they can
    be used."""
    listen_group: str | None = None
    """The group, by name or number, whose members may connect to the Unix sockets: HAProxy's. Left out: the
    agent's own user alone."""
    tls: AgentTls | None = None
    """Mutual TLS on TCP addresses; left out: plain TCP, which proves nothing."""
    workers: int = Field(default=1, ge=1, le=256)
    """Processes that share the port."""
    max_frame_size: int = Field(default=16380, ge=256, le=1 << 20)
    """The largest SPOP frame that is agreed on, in bytes."""
    max_connections: int = Field(default=4096, ge=1)
    """SPOP connections of a worker at a time. Another takes the place of the longest idle, or is closed at
    once if none is idle."""
    handshake_timeout: Duration = Field(default=5.0, gt=0.0)
    """How long a connection may take until its HELLO."""
    idle_timeout: Duration = Field(default=600.0, gt=0.0)
    """A connection on which nothing was asked for this long is ended. Longer than HAProxy's own `timeout
    idle` and `timeout server`."""
    max_connection_age: Duration | None = Field(default=None, ge=1.0)
    """Each connection is ended between two questions when it is three quarters to the whole of this old, `1s`
    at least: HAProxy then connects again, to a new agent too. Left out: never."""
    drain_timeout: Duration = 10.0
    """How long SIGTERM waits for answers in flight."""
    state_dir: str | None = None
    """A directory of this user alone that keeps the accepted policy, key sets and revocations, so that they
    survive the agent; made if missing. Relative to this file."""
    control_socket: str | None = None
    """Path of the local socket that `iamroles agent status` asks; left out: `agent.sock` in `state_dir`.
    Relative to this file."""
    decision_timeout: Duration = Field(default=10.0, gt=0.0)
    """A decision that takes longer is answered `internal_error`."""
    shadow_policy: str | None = None
    """Another policy file, relative to this one: its different decisions are recorded, never enforced."""

    @property
    def addresses(self) -> list[str]:
        """The addresses of `listen`, or `LISTEN`."""
        listen = LISTEN if self.listen is None else self.listen
        return [listen] if isinstance(listen, str) else list(listen)


class LiveSettings(Model):
    """How open streams are cut and credentials revoked (docs/live.md)."""

    master_socket: str | None = None
    """HAProxy's master CLI, `haproxy -W -S <path>`, or its `host:port`. Left out: streams still end at their
    expiry, but a revocation, a policy change or a lost key does not end open streams. Relative to this
    file."""
    revocations: str | None = None
    """The file of `[[revocations]]`; agents that share it share them. Relative to this file."""
    gate: str = Field(default="iam", pattern="^[A-Za-z0-9._-]{1,40}$")
    """The same for all agents of an HAProxy; each HAProxy has its own."""


class AuditSettings(Model):
    """Where decisions are recorded."""

    path: str = "stderr"
    """A file, `stderr`, or `none`."""
    on_error: Literal["deny", "allow"] = "deny"
    """What a decision becomes when it cannot be recorded (full disk): fail closed or open."""
    sync: Duration = 1.0
    """The declared window: a kill -9 loses at most the decisions of this time (0s: fsync each batch)."""
    keep: Size | None = Field(default=None, ge=1_000_000)
    """Disk that each worker's log may take, "1MB" at least: the agent rotates it and removes the oldest of
    its files, on record. Left out: the agent removes nothing."""
    required: bool = False
    """Refuse to start if the path is `none`."""


class MetricsSettings(Model):
    """Prometheus endpoint."""

    listen: str = ""
    """`host:port`, port 0: ephemeral; "" for none."""


class IdentityHeader(Model):
    """The signed identity header `X-IAM-Identity`, which servers can verify by themselves."""

    issuer: str
    """`iss` of the tokens: this gate's own name."""
    lifetime: Duration = 60.0
    """How long a token is good, 2s to 60s."""
    rotate: Duration = 86400.0
    """How long a key signs; the next is published an hour before."""
    secrets: str | None = None
    """A file of this user alone with a secret of 43 to 512 characters in each line, the same for all agents
    of a gate: each derives the same keys from it. The first secret signs, the keys of all are published.
    Relative to this file. Left out: each agent has keys of its own."""


class KeySettings(Model):
    """Timing of JWKS caching."""

    refresh: Duration = 300.0
    """How often a key set is renewed; a removed key is refused within this and the fetch."""
    cooldown: Duration = 10.0
    """How soon an unknown key id may cause another fetch."""
    max_stale: Duration = 3600.0
    """How long the last good set serves through an outage."""
    timeout: Duration = 5.0
    """How long one fetch may take."""


class Issuer(Model):
    """An OIDC issuer that may assert roles."""

    name: str
    """Names it in the audit log and the tags."""
    issuer: str
    """Exactly the `iss` of its tokens; a trailing slash differs."""
    jwks_uri: str | None = None
    """Where its keys are; left out: its discovery document says."""
    insecure_http: bool = False
    """Permit http, for tests."""
    audiences: list[str] = Field(default_factory=_none)
    """Accepted `aud` values."""
    client_ids: list[str] = Field(default_factory=_none)
    """Accepted `client_id` values, where these stand for `aud` (Cognito access tokens)."""
    algorithms: list[str]
    """Its signature algorithms; never none, never HS*."""
    types: list[str] = ["JWT", "at+jwt"]
    """Accepted `typ`, case-insensitive, without `application/`; an absent one counts as JWT."""
    profile: Literal["generic", "rfc9068", "cognito", "aws"] = "generic"
    """The claim layout and rules that its tokens follow."""
    roles_claim: ClaimPath = "roles"
    """The claim with the role ARNs."""
    preferred_role_claim: ClaimPath | None = None
    """The claim with the role that is active if the request asks for none."""
    scope_claim: ClaimPath | None = None
    """The claim with the scopes, which limit what the roles open."""
    scope_required: bool = True
    """Whether a token without scopes opens nothing."""
    session_claim: ClaimPath | None = None
    """The claim with the session label."""
    principal_claim: ClaimPath = "sub"
    """The claim with the principal."""
    accounts: list[str] = Field(default_factory=_none)
    """AWS accounts whose roles it may assert; none listed: any."""
    max_lifetime: Duration = 3600.0
    """The longest time from `iat` to `exp` that is accepted."""
    leeway: Duration = Field(default=0.0, le=60.0)
    """Tolerated difference of clocks, at most 60s."""
    bound: Literal["refused", "accepted", "required"] = "refused"
    """Whether tokens that are bound to a key (`cnf`: DPoP, client certificate) pass with its proof, or alone
    pass."""


class Dpop(Model):
    """How proofs of tokens that are bound to a DPoP key are judged (RFC 9449)."""

    origins: list[str]
    """The origins that clients write into `htu`: `https://host` or `https://host:port`, lower-case."""
    algorithms: list[str] = ["ES256"]
    """Accepted signature algorithms of proofs; never none, never HS*."""
    max_age: Duration = Field(default=60.0, gt=0.0, le=300.0)
    """How old the `iat` of a proof may be, at most 5m."""
    leeway: Duration = Field(default=5.0, ge=0.0, le=60.0)
    """How far ahead the `iat` of a proof may be, at most 60s."""
    nonce: bool = False
    """Whether each proof must hold a fresh nonce of this gate."""
    nonce_lifetime: Duration = Field(default=300.0, ge=1.0)
    """How long a nonce is given out; it is accepted for as long again."""
    nonce_key: str | None = None
    """A file of this user alone with 32 random octets or more, the same for all agents of a gate, relative to
    this file. Left out: each agent has a key of its own."""
    replay: Literal["proxy", "none"] = "proxy"
    """Who counts the use of a proof: the proxy, or a server behind it that gets the `DPoP` field too."""


class ClientCertificate(Model):
    """Where a TLS load balancer in front of HAProxy names the client's certificate."""

    from_: list[str] = Field(alias="from")
    """Networks of the load balancers; only their requests may name a certificate."""
    form: Literal["rfc9440"] = "rfc9440"
    """`rfc9440`: one `Client-Cert` field, base64 of the DER between colons."""


class Sts(Model):
    """An AWS STS endpoint whose pre-signed GetCallerIdentity proves a role."""

    name: str
    """Names it in the audit log and the tags."""
    endpoint: str
    """The URL that the agent calls."""
    hosts: list[str]
    """Hosts accepted in a pre-signed URL."""
    binding_header: str = "x-iam-edge"
    """The signed header that binds a credential to this proxy."""
    binding_value: str
    """This proxy's own name, the header's value."""
    accounts: list[str] = Field(default_factory=_none)
    """AWS accounts whose roles are accepted; none listed: any."""
    insecure_http: bool = False
    """Permit http, for tests."""
    timeout: Duration = Field(default=10.0, gt=0.0)
    """How long one call may take."""
    recheck: Duration = Field(default=60.0, gt=0.0)
    """How long an answer is believed before STS is asked again: STS does not say when the caller's own
    credentials end, so a session that is over dies within this."""
    replay_cache: bool = False
    """Accept each credential only once."""


class Limits(Model):
    """Bounds that hold for every issuer."""

    max_lifetime: Duration | None = None
    """The longest lifetime of a token of any issuer."""
    max_token_bytes: int = Field(default=8192, ge=256, le=65536)
    """A longer credential is refused without reading it."""


class Role(Model):
    """A name for one or more role ARNs."""

    name: str
    """Its name in grants, denies and `X-IAM-Role`."""
    arn: str | None = None
    """`arn:aws:iam::<account>:role/<name>`, without a role path."""
    arns: list[str] = Field(default_factory=_none)
    """Several ARNs under one name."""
    max_lifetime: Duration | None = None
    """Access ends this time after the token was issued, if it does not end before."""


class Group(Model):
    """A name for several roles, so that an intent is written once."""

    name: str
    """Its name in grants and denies."""
    roles: list[str]
    """Names of roles; a group holds no groups."""


class BackendTls(Model):
    """How HAProxy speaks TLS to a backend's servers, and proves to them that it is the gate."""

    ca: str
    """PEM file of the authorities that must have issued a server's certificate, a full path."""
    certificate: str | None = None
    """PEM file with the gate's own certificate and key, a full path: servers can ask for it (mutual TLS)."""
    name: str | None = None
    """The DNS name in the servers' certificate; left out: each server's own host name."""


class Backend(Model):
    """A destination that grants may name."""

    name: str
    """Its name in grants."""
    servers: list[str] = Field(default_factory=_none)
    """`host:port` each."""
    tls: BackendTls | None = None
    """Speak TLS to the servers; left out: plain HTTP."""
    streams: bool = False
    """Whether upgrades (WebSocket) and event streams are allowed here. They then pay for the filter that ends
    them at the credential's expiry; elsewhere they are refused."""
    renew: bool = False
    """Whether a fresh credential of the same client, issuer, principal, session and role prolongs open
    streams here, up to its own expiry. Needs `streams`."""


class ActorEntry(Model):
    """An actor that a rule names (RFC 8693 section 4.1); an empty table names every actor."""

    sub: str | None = None
    """Exactly the `sub` of the actor; left out: any."""
    issuer: str | None = None
    """Exactly the `iss` of the actor. Left out: beside `sub` the issuer of the token itself, else any."""


class McpEntry(Model):
    """Calls of MCP that a rule names; an empty table names every call whose method is known."""

    method: str | None = None
    """Exactly the method, as `tools/call`; left out: any."""
    name: str | None = None
    """Exactly the tool, resource or prompt (`Mcp-Name`, decoded); left out: any, or none."""


class RegionTable(Model):
    """The requests that a rule is about."""

    methods: list[str] = ["*"]
    """Case-sensitive; `["*"]` for all."""
    path: str
    """Canonical, without query or wildcard."""
    match: Literal["prefix", "exact"] = "prefix"
    """`prefix` opens whole segments below the path too."""
    hosts: list[str] = Field(default_factory=_none)
    """Host names, or `*.` and a name for any below it; none: any."""
    sources: list[str] = Field(default_factory=_none)
    """Networks of the client's address; none: any."""
    actors: list[ActorEntry] = Field(default_factory=_none)
    """Actors for whom the rule holds, by `sub` and `issuer`; `{}` is every actor. Empty: it asks for none."""
    mcp: list[McpEntry] = Field(default_factory=_none)
    """Calls of MCP for which it holds, by `method`, `name`; `{}` is every known call. Empty: all requests."""


class Grant(RegionTable):
    """Opens a region to roles and names the backend behind it."""

    id: str
    """Names it in the audit log and the tags; of two equal winners the smaller id wins."""
    roles: list[str]
    """Names of the roles it opens to."""
    methods: list[str]
    """Case-sensitive; `["*"]` for all."""
    backend: str
    """Name of the backend it leads to."""
    shadow: bool = False
    """Evaluate and record, do not enforce."""


class Deny(RegionTable):
    """Closes a region to tokens that hold any of the roles, whatever other roles they hold."""

    id: str
    """Names it in the audit log."""
    roles: list[str]
    """Names of the roles whose tokens it refuses, or `["*"]` for every token."""
    shadow: bool = False
    """Evaluate and record, do not enforce."""


class Scope(Model):
    """The most that a scope value in a token opens."""

    name: str
    """The value in the token; several regions may share it."""
    methods: list[str] = ["*"]
    """Case-sensitive; `["*"]` for all."""
    path: str
    """Canonical, without query or wildcard."""
    match: Literal["prefix", "exact"] = "prefix"
    """`prefix` opens whole segments below the path too."""
    hosts: list[str] = Field(default_factory=_none)
    """As in a grant."""
    mcp: list[McpEntry] = Field(default_factory=_none)
    """As in a grant."""


class Resource(Model):
    """An MCP server behind the gate, a protected resource (RFC 9728)."""

    name: str
    """Names it in messages."""
    resource: str
    """Its URL, as clients write it and tokens name it in `aud`: lower-case, without a slash at the end."""
    issuers: list[str] = Field(default_factory=_none)
    """Names of the issuers whose tokens open it. Left out: each whose `audiences` hold `resource`."""
    versions: list[str] = ["2026-07-28"]
    """Revisions of MCP that it speaks. Before 2026-07-28 neither method nor tool is known."""
    origins: list[str] = Field(default_factory=_none)
    """Origins of web pages that may call it, beside its own."""
    validates_headers: bool = False
    """True if the server compares `Mcp-Method` and `Mcp-Name` to the body. Only then may rules name calls."""
    insecure_http: bool = False
    """Permit http, for tests."""


class Config(Model):
    """The whole file."""

    version: Annotated[Literal[1], BeforeValidator(lambda found: found if type(found) is int else None)]
    """Of this format."""
    multi_role: Literal["deny", "union"] = "deny"
    """What a token with several roles and no choice gets: a refusal, or all of them."""
    agent: AgentSettings = AgentSettings.model_construct()
    """How the process runs."""
    audit: AuditSettings = AuditSettings.model_construct()
    """Where decisions are recorded."""
    metrics: MetricsSettings = MetricsSettings.model_construct()
    """Where metrics are served."""
    live: LiveSettings = LiveSettings.model_construct()
    """How open streams are cut and credentials revoked."""
    identity_header: IdentityHeader | None = None
    """Sign the identity of allowed requests; left out: the plain headers alone."""
    keys: KeySettings = KeySettings.model_construct()
    """How key sets are kept."""
    limits: Limits = Limits.model_construct()
    """Bounds for every issuer."""
    dpop: Dpop | None = None
    """How DPoP proofs are judged; left out: a token that is bound to a DPoP key is refused."""
    client_certificate: ClientCertificate | None = None
    """Where a TLS load balancer names the client's certificate; left out: only HAProxy's own TLS counts."""
    issuers: list[Issuer] = Field(default_factory=_none)
    """OIDC issuers that may assert roles."""
    sts: list[Sts] = Field(default_factory=_none)
    """AWS STS endpoints that may prove roles."""
    roles: list[Role] = Field(default_factory=_none)
    """Names of role ARNs."""
    groups: list[Group] = Field(default_factory=_none)
    """Names of sets of roles."""
    backends: list[Backend] = Field(default_factory=_none)
    """The destinations that grants may name."""
    grants: list[Grant] = Field(default_factory=_none)
    """The regions that roles open."""
    denies: list[Deny] = Field(default_factory=_none)
    """The regions that are closed in spite of grants."""
    scopes: list[Scope] = Field(default_factory=_none)
    """The regions that scope values open at most."""
    resources: list[Resource] = Field(default_factory=_none)
    """MCP servers behind the gate."""

    @property
    def binds(self) -> bool:
        """True if an issuer's bound tokens may pass: the proxy must then ask for their proofs."""
        return any(issuer.bound != "refused" for issuer in self.issuers)
