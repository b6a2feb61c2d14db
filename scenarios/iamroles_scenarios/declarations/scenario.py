"""The scenario model: a world, tokens as recipes, steps on a timeline, and what must be seen.

A scenario file is TOML and says nothing twice. `[checks.<name>]` declares a check: what it proves. A step's
`expect.<name>` is evidence for that check; several steps may bear on one check, and all must hold. What is
expected is said in the words of SPEC.md section 3, so that the same file is played through HAProxy (status,
challenge, the backend that answered and the headers it saw, HAProxy's log line) and straight over SPOP (the
variables). docs/writing-scenarios.md is the guide.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from iamroles_scenarios.base.errors import DocumentError
from iamroles_scenarios.declarations.catalogue import Grade, catalogue
from iamroles_scenarios.declarations.documents import Duration, Json, Model, read_all
from iamroles_scenarios.declarations.results import Check
from iamroles_scenarios.declarations.timeline import Traffic, WindowSpec, check_timeline

Lane = Literal["gate", "gate-spop"]
LANES: tuple[Lane, ...] = ("gate", "gate-spop")
"""How a scenario can be played: through HAProxy, and straight over SPOP."""
PROXY_LANES = ("gate", "proxy")
"""Lanes that need HAProxy; "proxy" has checks of HAProxy's own workings, in Python alone."""
ALL_LANES: tuple[str, ...] = ("wire", *LANES, "proxy")
"""All lanes. The subject of a check is its family, not its lane."""
SITES: dict[str, str] = {"gate": "haproxy", "gate-spop": "spop"}
"""The text in brackets after the id of a check that is played in several lanes."""


class OneOf(Model):
    """Any of these is right: the standards leave a choice."""

    one_of: list[str] = Field(min_length=2)


Text = str | OneOf


def choices(value: Text) -> tuple[str, ...]:
    """Return the acceptable values."""
    return (value,) if isinstance(value, str) else tuple(value.one_of)


class WorldSpec(Model):
    """The policy a scenario needs. Scenarios with the same policy share one running agent and HAProxy."""

    policy: str
    """Name of a file in `data/worlds/`."""
    override: dict[str, Any] = Field(default_factory=dict)
    """Merged over it: tables by key, lists of tables by their `name` or `id`; other values replace."""
    own: bool = False
    """True for a scenario that disturbs its world (kills the agent, reloads): it shares with no other."""
    agents: Literal[1, 2] = 1
    """Agents behind HAProxy; two have the same policy."""
    settings: dict[str, str] = Field(default_factory=dict)
    """HAProxy's settings by environment variable, e.g. IAM_TIMEOUT_PROCESSING."""
    changes: bool = False
    """True if the policy, keys, sessions or revocations change while it is asked, or a process dies. Then an
    agent with the feature `workers` gets two, and both are asked. A scenario's steps say it."""


class RequestSpec(Model):
    """One HTTP request, or the SPOP arguments that HAProxy would make of it."""

    method: str = "GET"
    path: str = "/orders/1"
    """Request target, byte for byte; `\\u0000`-style escapes stand for bytes up to 0xFF, `{token}` for
    `token`'s text."""
    host: str = "api.example.com"
    token: str = ""
    """Name in `[tokens]`; "" for none."""
    role: str = ""
    """Requested role; "" for none. A name in the policy, or an ARN."""
    authorization: list[str] = Field(default_factory=list)
    """Authorization headers as they stand, `{token}` for `token`'s text; instead of `Bearer {token}`."""
    headers: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(default_factory=list)
    """Pairs of name and value, as they stand."""
    connection: str = ""
    """Requests of one name share a keep-alive connection; "" opens a new one for each."""


class Expectation(Model):
    """The answer that must be seen. Fields left out are not looked at."""

    status: int | list[int] | None = None
    allow: bool | None = None
    """Over SPOP the `allow` variable; through HAProxy, whether a backend was reached."""
    reason: Text | None = None
    error: Text | None = None
    """RFC 6750 code; "" for a bare challenge, or none."""
    challenge: bool | None = None
    """Through HAProxy: whether `WWW-Authenticate: Bearer` is there."""
    backend: Text | None = None
    """The backend's `name`; "" for none reached."""
    role: Text | None = None
    principal: Text | None = None
    session: Text | None = None
    issuer: Text | None = None
    rule: Text | None = None
    expires: str | None = None
    """Name of the token whose `exp` it must be."""
    headers: dict[str, list[str]] = Field(default_factory=dict)
    """Headers as the backend got them, by lower-case name: every value, in order."""
    absent: list[str] = Field(default_factory=list)
    """Headers (lower-case) that the backend must not have got, in any spelling."""
    only: list[str] = Field(default_factory=list)
    """The identity headers (`x-iam-*`, lower-case) that the backend may have got, each at most once."""
    path: str | None = None
    """The path as the backend got it."""
    within: Duration | None = None
    """Time in which the question is repeated until it holds (key removal, an agent coming back)."""

    @model_validator(mode="after")
    def _says_something(self) -> Expectation:
        if not self.model_fields_set - {"within"}:
            raise ValueError("an expectation must name at least one thing to look at")
        return self

    @property
    def proxy_only(self) -> bool:
        """True if it looks at something that does not exist over SPOP."""
        return bool(
            self.headers or self.absent or self.only or self.path is not None or self.challenge is not None
        )


class FlowSpec(Model):
    """A question that the traffic asks again and again, and its right answer."""

    request: RequestSpec
    expect: Expectation
    """From the begin of the traffic; steps change it by `then`. Nothing that needs HAProxy's log."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of the rate, beside the others'."""
    from_: str = Field(default="", alias="from")
    """Name of a step: asked only after it; its token is minted then."""
    until: str = ""
    """Name of a step: asked only before it."""
    renew: Duration = 0.0
    """Time after which its next token is minted, times the time scale. Earlier ones are asked with until they
    have been dead for a second, and must be refused then."""


class KeysStep(Model):
    """A change of an issuer's keys."""

    issuer: str
    do: Literal["rotate", "announce", "adopt", "retire", "replace", "slow", "mend"]
    """rotate: a new key is published beside the old and signs from now on; announce: it is published, and
    does not sign; adopt: the announced one signs; retire: the old are withdrawn; replace: an emergency, the
    old are withdrawn and a new one signs at once; slow: the key set is answered late; mend: at once again."""
    seconds: Duration = 5.0
    """How late, for `slow`; times the run's time scale."""


class CertificateStep(Model):
    """HAProxy gets another certificate, and shows it on every new connection before the step ends."""

    by: Literal["runtime", "reload"]
    """runtime: a command of its Runtime API; reload: the file, and a reload."""
    check: str
    """The check that this is evidence for."""


class WaitStep(Model):
    """A wait for the clock or a counter, with a deadline; never for a guess of time."""

    expired: str = ""
    """Name of a token: until its `exp` has passed."""
    fetched: str = ""
    """Name of an issuer: until its JWKS has been fetched once more than when the last `keys` step ended."""
    signer: Literal["", "next"] = ""
    """Until another key signs the identities than when the step began."""

    @model_validator(mode="after")
    def _one(self) -> WaitStep:
        if [self.expired, self.fetched, self.signer].count("") != 2:
            raise ValueError("wait for exactly one of `expired`, `fetched`, `signer`")
        return self


class ReloadError(Model):
    """The text that the answer to a refused reload must have."""

    names: str = Field(min_length=1)
    """A text that its `error` must hold: the key at fault."""
    check: str
    """The check that this is evidence for."""


class ReloadStep(Model):
    """The world file changes, and the agent gets the signal to reload."""

    override: dict[str, Any] = Field(default_factory=dict)
    """Merged over the world's policy as it stands (see `WorldSpec.override`)."""
    without: dict[str, list[str]] = Field(default_factory=dict)
    """Entries that go, by `name` or `id`, of each table."""
    accepted: bool = True
    """True if the agent must put it in force. If not, the old policy must stay in force."""
    check: str = ""
    """The check that this is evidence for; without one, another outcome ends the scenario as a failure."""
    error: ReloadError | None = None
    """The error that a policy that is not `accepted` must get."""


class CloudStep(Model):
    """A call to the mock cloud; the answer is saved for token recipes."""

    do: Literal["create_role", "assume_role", "web_identity", "expire"]
    role: str = ""
    """Role name; created by `assume_role` too, if need be."""
    account: str = "111111111111"
    session: str = "scenario"
    audience: str = ""
    with_: str = Field(default="", alias="with")
    """Name of a saved assume_role whose credentials make the call; "" for the account's own."""
    save: str
    """Name under which `{save.arn}` (create_role, assume_role) or the token (web_identity) is kept; for
    expire, the name of the saved assume_role whose session ends."""


KINDS = ("request", "agent", "haproxy", "certificate", "keys", "wait", "reload", "cloud", "mint")
"""The kinds of a step: a request, or an event of `engine.events`."""


class Step(Model):
    """One step: a request with its expectations, or one event."""

    note: str = ""
    name: str = ""
    """For windows and flows."""
    at: Duration | None = None
    """From the begin of the traffic, times the time scale; None: straight after the step before it."""
    settles: Duration = 0.0
    """Grace period after the step, times the time scale, in which a flow's previous outcome still passes."""
    then: dict[str, Expectation] = Field(default_factory=dict)
    """The right answers of these flows from this step on."""
    request: RequestSpec | None = None
    each: list[dict[str, Any]] = Field(default_factory=list)
    """The request, once for each of these, merged over it: a corpus under one expectation."""
    repeat: int = Field(default=1, ge=1, le=100)
    """How often it is sent; each answer must hold (cached verdicts included)."""
    expect: dict[str, Expectation] = Field(default_factory=dict)
    agent: Literal["kill", "pause", "resume", "start", "stop", "kill-child"] | None = None
    """stop: SIGTERM, and wait for its end; kill-child: SIGKILL for the oldest of its child processes."""
    nth: Literal[1, 2] = 1
    """The number of the agent, for `agent`."""
    haproxy: Literal["reload"] | None = None
    certificate: CertificateStep | None = None
    keys: KeysStep | None = None
    wait: WaitStep | None = None
    reload: ReloadStep | None = None
    cloud: CloudStep | None = None
    mint: list[str] | None = None
    """Tokens to mint now, though they are sent later: under a key that is about to change, say."""
    lanes: list[Lane] = Field(default_factory=lambda: list(LANES))

    @model_validator(mode="after")
    def _one_thing(self) -> Step:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"a step is exactly one of {', '.join(KINDS)}")
        if self.each and self.request is None:
            raise ValueError("`each` belongs to a request")
        if self.expect and self.request is None:
            raise ValueError("`expect` belongs to a request")
        return self

    @property
    def changes(self) -> bool:
        """True if each worker must learn of it, or if a process dies."""
        return (
            self.reload is not None
            or self.agent in ("kill", "kill-child")
            or (self.keys is not None and self.keys.do not in ("slow", "mend"))
            or (self.cloud is not None and self.cloud.do == "expire")
            or (self.wait is not None and bool(self.wait.signer))
        )

    @property
    def bears_on(self) -> set[str]:
        """Names of the checks that it is evidence for."""
        found = set(self.expect)
        found |= {self.certificate.check} if self.certificate else set()
        if self.reload is not None:
            found |= {self.reload.check, self.reload.error.check if self.reload.error else ""} - {""}
        return found

    def requests(self) -> list[RequestSpec]:
        """Return the requests of this step, in order."""
        if self.request is None:
            return []
        base = self.request.model_dump(exclude_unset=True)
        variants = [RequestSpec.model_validate(base | variant) for variant in self.each or [{}]]
        return [request for request in variants for _ in range(self.repeat)]


class CheckSpec(Model):
    """One check of a scenario: what it proves."""

    title: str = Field(min_length=5)
    requirements: list[str] = Field(min_length=1)
    lanes: list[Lane] = Field(default_factory=lambda: list(LANES), min_length=1)


class Scenario(Model):
    """One scenario file."""

    id: str = Field(pattern=r"^[a-z]+(\.[a-z0-9-]+)+$")
    title: str = Field(min_length=5)
    level: Literal["MUST", "SHOULD"] = "MUST"
    features: list[str] = Field(default_factory=list)
    """Features of `agent.toml` without which it is not-applicable."""
    why: str = Field(min_length=20)
    world: WorldSpec
    tokens: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Recipes for `iamroles_scenarios.jose`, minted when first sent and kept for the rest of the scenario.
    `lives = "3s"` stands for an `exp` so far ahead, times the run's time scale; `issuer` names the mock
    issuer (the first path segment of its URL; default `corp`); strings may hold `{name.part}` of saved
    answers. `{ sts = {…}, with = "session" }` is a pre-signed GetCallerIdentity instead: a recipe of
    `mock.presign`, signed by a saved `assume_role`, for the first `[[sts]]` of the world."""
    checks: dict[str, CheckSpec] = Field(min_length=1)
    steps: list[Step] = Field(min_length=1)
    traffic: Traffic | None = None
    """Makes it a timeline (`declarations.timeline`), played through HAProxy alone."""
    flows: dict[str, FlowSpec] = Field(default_factory=dict)
    windows: list[WindowSpec] = Field(default_factory=list)

    @model_validator(mode="after")
    def _changes(self) -> Scenario:
        changes = any(step.changes for step in self.steps)
        self.__dict__["world"] = self.world.model_copy(update={"changes": changes})
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        check_timeline(self.traffic, self.flows, self.windows, self.steps)
        expected = {name for step in self.steps for name in step.bears_on}
        expected |= {window.check for window in self.windows}
        if unknown := expected - self.checks.keys():
            raise ValueError(f"steps expect {sorted(unknown)}, which `checks` does not declare")
        if idle := self.checks.keys() - expected:
            raise ValueError(f"no step bears on the checks {sorted(idle)}: they could never fail")
        minted = {name for step in self.steps for name in step.mint or ()}
        if missing := minted - self.tokens.keys():
            raise ValueError(f"steps mint the tokens {sorted(missing)}, which `tokens` does not declare")
        used = {request.token for step in self.steps for request in step.requests() if request.token}
        used |= {flow.request.token for flow in self.flows.values() if flow.request.token}
        saved = {step.cloud.save for step in self.steps if step.cloud and step.cloud.do == "web_identity"}
        if missing := used - self.tokens.keys() - saved:
            raise ValueError(f"steps send the tokens {sorted(missing)}, which `tokens` does not declare")
        for step in self.steps:
            for name, expectation in step.expect.items():
                if expectation.proxy_only and self.checks[name].lanes != ["gate"]:
                    raise ValueError(f'checks.{name} looks at headers: give it lanes = ["gate"]')
        for name, check in self.checks.items():
            if self.traffic is not None and check.lanes != ["gate"]:
                raise ValueError(f'checks.{name}: traffic flows through HAProxy: give it lanes = ["gate"]')
            if idle_in := [lane for lane in check.lanes if not self._bears(name, lane)]:
                raise ValueError(f"no step bears on checks.{name} in lane {idle_in[0]}: give it its lanes")
        return self

    def _bears(self, name: str, lane: Lane) -> bool:
        """Return whether a step that is played in a lane is evidence for a check."""
        return any(name in step.bears_on for step in self.steps if lane in step.lanes) or (
            lane == "gate" and any(window.check == name for window in self.windows)
        )

    @cached_property
    def needs(self) -> frozenset[str]:
        """Its features, `oidc` if a token of an issuer is sent, and `identity` if identities are signed."""
        sent = {request.token for step in self.steps for request in step.requests()}
        sent |= {flow.request.token for flow in self.flows.values()}
        by_issuers = any("sts" not in self.tokens.get(name, {}) for name in sent if name)
        signed = self.traffic is not None and self.traffic.signed
        own = {"oidc"} if by_issuers else set()
        return frozenset(self.features) | own | ({"identity"} if signed else set())

    @property
    def lanes(self) -> list[Lane]:
        """The lanes in which at least one of its checks is played."""
        return [lane for lane in LANES if any(lane in spec.lanes for spec in self.checks.values())]

    def planned(self, lane: str) -> list[PlannedCheck]:
        """Return the checks played in a lane, in the file's order."""
        return [
            PlannedCheck(f"{self.id}.{name}", lane, spec.title, tuple(spec.requirements), self)
            for name, spec in self.checks.items()
            if lane in spec.lanes
        ]


@dataclass(frozen=True, slots=True)
class PlannedCheck:
    """A check in a lane."""

    id: str
    lane: str
    title: str
    requirements: tuple[str, ...]
    scenario: Scenario | None = None
    function: Check | None = None

    @property
    def name(self) -> str:
        """The id, and in brackets what it is asked of: `gate.expired.refused[haproxy]`."""
        return f"{self.id}[{SITES[self.lane]}]" if self.lane in SITES else self.id

    @property
    def family(self) -> str:
        """The id's first part."""
        return self.id.partition(".")[0]

    @property
    def must(self) -> bool:
        """True if it proves a MUST."""
        return any(catalogue()[name].level == "MUST" for name in self.requirements)

    @property
    def grade(self) -> Grade:
        """`strict` if nothing that it proves is asked of `core`."""
        return "core" if any(catalogue()[name].grade == "core" for name in self.requirements) else "strict"

    @property
    def classes(self) -> frozenset[str]:
        """The conformance classes that it bears on.

        Class `gate` is seen from outside, through a proxy, so that a gate without SPOE can be judged by it. A
        check of it straight over SPOP counts for the class of its question, policies or tokens. What tokens
        and STS credentials have in common is `oidc` in the catalogue; a check that needs STS proves it of
        STS.
        """
        found = {catalogue()[name].class_ for name in self.requirements}
        if "gate" in found and self.lane not in PROXY_LANES:
            found = found - {"gate"} | {"policy" if self.family == "policy" else "oidc"}
        if "sts" in self.features:
            found = {"sts" if name == "oidc" else name for name in found}
        return frozenset(found)

    @property
    def features(self) -> frozenset[str]:
        """Features without which it is not-applicable.

        A question with an issuer's tokens needs `oidc`, whatever it is about. Checks in Python without `sts`
        have such questions, and scenarios by their recipes. The wire lane takes what the agent has.
        """
        if self.scenario is not None:
            return self.scenario.needs
        own = self.function.features if self.function else frozenset[str]()
        return own if self.lane == "wire" or "sts" in own else own | {"oidc"}


def load(directory: Path) -> dict[str, Scenario]:
    """Read every `*.toml` of a directory (not of those below), by id.

    Raises:
        DocumentError: all problems of all files at once.
    """
    read_files, problems = read_all(directory, Scenario)
    found: dict[str, Scenario] = {}
    for path, scenario in read_files:
        if scenario.id in found:
            problems.append(f"{path.name}: id: {scenario.id} is taken. Give the scenario a name of its own.")
        found[scenario.id] = scenario
    if problems:
        raise DocumentError(problems)
    return found


@cache
def scenarios() -> dict[str, Scenario]:
    """Return the scenarios that ship with the package."""
    return load(Path(str(files("iamroles_scenarios") / "data" / "scenarios")))


@cache
def _world(name: str) -> dict[str, Any]:
    path = Path(str(files("iamroles_scenarios") / "data" / "worlds" / f"{name}.toml"))
    if not path.is_file():
        raise DocumentError([f"worlds/{name}.toml: this world does not exist. Fix `world.policy`."])
    document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return document


def policy_of(world: WorldSpec) -> dict[str, Any]:
    """Return the world's policy document, overrides merged, placeholders such as `{idp}` still in it."""
    document: dict[str, Any] = merged(_world(world.policy), world.override)
    return document


def merged(base: Json, over: Json) -> Json:
    """Merge an override: tables by key, lists of tables by their `name` or `id`; other values replace."""
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: merged(base.get(key), value) for key, value in over.items()}
    if isinstance(base, list) and isinstance(over, list) and _named(base) and _named(over):
        result = {_name(entry): entry for entry in base}
        for entry in over:
            result[_name(entry)] = merged(result.get(_name(entry)), entry)
        return list(result.values())
    return over


def stripped(policy: dict[str, Any], gone: dict[str, list[str]]) -> dict[str, Any]:
    """Return a policy without the entries of these names, by table."""
    kept = {table: [one for one in policy[table] if _name(one) not in names] for table, names in gone.items()}
    return policy | kept


def _named(entries: list[Any]) -> bool:
    return all(isinstance(entry, dict) and _name(entry) for entry in entries)


def _name(entry: dict[str, Any]) -> str:
    return str(entry.get("name") or entry.get("id") or "")
