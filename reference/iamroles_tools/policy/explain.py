"""Explain why a request is allowed or refused: the decision, the rules that match, and close rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from iamroles_agent.base.config import Config
from iamroles_agent.base.identity import Decision, Identity, Request, RoleArn
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.policy.compiled import Policy, Query, Rule
from iamroles_agent.policy.regions import call_names
from iamroles_agent.tokens.authenticator import rules_of as rules_of_issuers
from iamroles_agent.tokens.jws import Header
from iamroles_tools.policy.describe import actor_words, call_words
from iamroles_tools.policy.zones import rules_of


@dataclass(frozen=True, slots=True)
class Considered:
    """One rule, and those of its conditions that the request does not meet."""

    id: str
    key: str
    effect: str
    """`grant`, `deny`, `shadow grant` or `shadow deny`."""
    misses: tuple[str, ...]
    """In words; empty: the rule matches."""
    backend: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision and the rules that were considered."""

    decision: Decision
    matching: tuple[Considered, ...]
    close: tuple[Considered, ...]
    """Rules that fail by one condition only, those on the longest path first."""


def explain(config: Config, identity: Identity, request: Request, now: float | None = None) -> Explanation:
    """Decide, and explain why; without `now`, time limits are ignored."""
    policy = Policy(config)
    try:
        found = policy.resources.find(request)
        if identity.grounds:  # of a token
            found.admit(identity)
        call = found.call(request)
        names = None if call is None else call_names(*call)
        query = Query.from_request(request, None, identity.actor, names)
    except Refusal as refusal:  # no rule was asked
        decision = Decision(allow=False, reason=refusal.reason, detail=refusal.detail)
        return Explanation(decision, (), ())
    decision = policy.decide(identity, request, now, found)
    considered = list(_consider(config, policy, identity, request, query))
    matching = tuple(item for item, _ in considered if not item.misses)
    near = [(depth, item) for item, depth in considered if len(item.misses) == 1]
    near.sort(key=lambda entry: (-entry[0], entry[1].id))
    return Explanation(decision, matching, tuple(item for _, item in near[:8]))


def _consider(
    config: Config, policy: Policy, identity: Identity, request: Request, query: Query
) -> Iterator[tuple[Considered, int]]:
    every = {name for arn in identity.roles if (name := policy.name_of(arn)) is not None}
    active = {name for arn in policy.active(identity, request) if (name := policy.name_of(arn)) is not None}
    for shadow, deny in ((False, True), (False, False), (True, True), (True, False)):
        effect = ("shadow " if shadow else "") + ("deny" if deny else "grant")
        for key, rule in rules_of(config, "denies" if deny else "grants", shadow=shadow):
            misses = tuple(_misses(rule, query, every if deny else active, deny=deny, held=every))
            yield Considered(rule.id, key, effect, misses, rule.backend), rule.region.specificity[1]


def _misses(rule: Rule, query: Query, roles: set[str], *, deny: bool, held: set[str]) -> Iterator[str]:
    region = rule.region
    if region.actors is not None and region.actors.isdisjoint(query.actor):
        yield f"is for callers{actor_words(region)}"
    if region.mcp is not None and (not deny if query.call is None else region.mcp.isdisjoint(query.call)):
        yield f"is for requests{call_words(region)}" + "; the call is not known" * (query.call is None)
    if "*" not in rule.roles and rule.roles.isdisjoint(roles):
        wanted = " or ".join(sorted(rule.roles))
        if rule.roles & held:
            yield f"the role {wanted} is in the token, but not active"
        else:
            yield f"is for the role {wanted}"
    if region.methods is not None and query.method not in region.methods:
        yield f"the method is {query.method}, not {' or '.join(sorted(region.methods))}"
    path = query.paths[1]
    if not region.has_path(path):
        yield f"the path {path} is not {'exactly' if region.exact else 'below'} {region.path}"
    if region.hosts is not None and region.hosts.isdisjoint(query.hosts):
        unreadable = query.hosts[0] == "\0"
        if not (deny and unreadable):  # DENY-ERROR-001
            shown = "unreadable" if unreadable else query.hosts[0] if len(query.hosts) > 1 else "absent"
            yield f"the host is {shown}, not {' or '.join(sorted(region.hosts))}"
    if not region.has_source(query.src):
        yield f"the source {query.src} is not in {' or '.join(map(str, region.sources or ()))}"


def identity_of(
    policy: Policy, roles: list[str], preferred: str | None, scopes: frozenset[str] | None
) -> Identity:
    """Make an identity with these roles, given by ARN or by name in the policy: then the first of its ARNs.

    Raises:
        Refusal: `role_malformed`; its detail names the text.
    """
    arns = [_arn(policy, text) for text in roles]
    chosen = _arn(policy, preferred) if preferred else None
    return Identity("", "", "", tuple(dict.fromkeys(arns)), 1 << 40, 0, chosen, scopes)


def _arn(policy: Policy, text: str) -> RoleArn:
    if named := policy.arns_named(text):
        return min(named)
    try:
        return RoleArn.parse(text)
    except Refusal as refusal:
        detail = f"{text!r} is neither a role's name in the policy nor a role's ARN"
        raise Refusal(Reason.ROLE_MALFORMED, detail) from refusal


def identity_of_claims(
    config: Config, claims: dict[str, Any], issuer_name: str, now: float
) -> tuple[Identity, list[str]]:
    """Return the identity that claims would prove, by the agent's own rules, without a signature.

    Without an issuer's name, the claims' `iss` names the issuer.

    Returns:
        The identity, and the names of claims that were absent and assumed to fit: `exp`, `aud`, the
        principal,
        `client_id` and `jti` do not change a route, so a question may leave them out.

    Raises:
        ValueError: no such issuer.
        Refusal: as the agent would refuse the token.
    """
    field, wanted = ("name", issuer_name) if issuer_name else ("issuer", claims.get("iss"))
    issuer = next((one for one in config.issuers if getattr(one, field) == wanted), None)
    if issuer is None:
        raise ValueError("no issuer of the policy has this name or `iss`: give --issuer NAME")
    fitting: dict[str, Any] = {"exp": int(now) + 1}
    if issuer.audiences and issuer.profile != "cognito":
        fitting["aud"] = issuer.audiences
    if isinstance(issuer.principal_claim, str) and issuer.profile != "aws":
        fitting[issuer.principal_claim] = "someone"
    if issuer.profile == "rfc9068":
        fitting |= {"client_id": "some-client", "jti": "some-id"}
    assumed = [name for name in fitting if name not in claims]
    rules = rules_of_issuers(config)[issuer.issuer]
    identity = rules.identity(fitting | claims, Header("", None, "jwt"), now, "")
    return identity, [*assumed, *needed_proofs(config, identity)]


def needed_proofs(config: Config, identity: Identity) -> list[str]:
    """Name what must be proven with each request of a token.

    Raises:
        Refusal: `token_unbound`, `token_bound`: nothing helps.
    """
    required = [issuer.name for issuer in config.issuers if issuer.bound == "required"]
    if identity.binding is None and identity.issuer in required:
        raise Refusal(Reason.TOKEN_UNBOUND, "this issuer's tokens must be bound: `cnf` with jkt or x5t#S256")
    jkt, x5t = identity.binding or ("", "")
    if jkt and config.dpop is None:
        raise Refusal(Reason.TOKEN_BOUND, "a token with jkt, and the policy has no [dpop]")
    return ["the DPoP proof of jkt"] * bool(jkt) + ["the client certificate of x5t#S256"] * bool(x5t)
