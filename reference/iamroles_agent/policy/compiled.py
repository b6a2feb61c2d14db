"""A policy ready to decide: an index by role, path, method and host (SPEC.md section 6).

Deny over all roles
-------------------
A token may carry several roles, and the caller may choose one of them. If denies counted for the chosen role
only, `X-IAM-Role` would circumvent them: a contractor who is also a reader would ask to be a reader. So
grants count for the *active* roles, and denies for *all* roles of the token, known to the policy or not. The
order of rules and roles does not matter: the allowed set is the active grants less the denies.

The cost of a decision
----------------------
A rule is found by dictionary, never by a walk over the rules: role, then each prefix of the request's path,
then method, then each suffix of its host. Only the source networks of rules that agree in all of these are
tested one by one. So the cost grows with the roles of the token and the depth of the path, not with the
policy: 10,000 grants among 1,000 roles cost as much as 10.

A client chooses the path, and the prefixes of a deep path together grow with the square of its depth. So
prefixes are built only as deep as the deepest path of a rule, and only suffixes of the host that some rule
names are looked up: `Reach` holds both bounds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from iamroles_agent.base import config
from iamroles_agent.base.identity import Actor, Decision, Identity, Request, RoleArn
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.base.release import release
from iamroles_agent.policy.paths import canonical, segments
from iamroles_agent.policy.regions import (
    MALFORMED_HOST,
    Address,
    Entries,
    Region,
    call_names,
    canonical_host,
    host_patterns_of,
    plain_address,
)
from iamroles_agent.policy.resources import Found, Resources

_ANY = "*"
_NOBODY: Entries = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """A grant or a deny, compiled."""

    id: str
    roles: frozenset[str]
    """Names, or `*` alone: every token."""
    region: Region
    backend: str = ""
    """"" for a deny."""

    @property
    def rank(self) -> tuple[bool, int, str]:
        """The order of grants, the winner first: the most specific path, then the smaller id."""
        exact, depth = self.region.specificity
        return not exact, -depth, self.id


def compile_rule(rule: config.Grant | config.Deny) -> Rule:
    """Compile one rule of a checked configuration."""
    backend = rule.backend if isinstance(rule, config.Grant) else ""
    return Rule(rule.id, frozenset(rule.roles), Region.from_rule(rule), backend)


@dataclass(frozen=True, slots=True)
class Reach:
    """The bounds of the rules of a policy: nothing beyond them can match a rule."""

    depth: int
    """Segments of the deepest path."""
    hosts: frozenset[str]
    """Host patterns."""

    @classmethod
    def over(cls, regions: Iterable[Region]) -> Reach:
        regions = list(regions)
        depth = max((region.specificity[1] for region in regions), default=0)
        return cls(depth, frozenset().union(*(region.hosts or () for region in regions)))


@dataclass(frozen=True, slots=True)
class Query:
    """A request as the keys of the index."""

    method: str
    paths: tuple[str, ...]
    """Keys of the paths that match, the most specific first: `=` and the path, then each prefix."""
    hosts: tuple[str, ...]
    """Patterns that match, `MALFORMED_HOST` for an absent or invalid host; `*` for rules without hosts."""
    src: Address
    actor: Entries = _NOBODY
    """`Actor.names`; empty if nobody acts for the caller."""
    call: Entries | None = None
    """`call_names`; None if it is not known."""

    @classmethod
    def from_request(
        cls,
        request: Request,
        reach: Reach | None = None,
        actor: Actor | None = None,
        call: Entries | None = None,
    ) -> Query:
        """Canonicalise a request.

        Args:
            request: as the proxy will forward it.
            reach: of the rules. None: keys for any rule, at a cost that grows with the square of the depth.
            actor: who acts for the caller; `call`: see `Query.call`.

        Raises:
            Refusal: `path_ambiguous`.
        """
        parts = segments(canonical(request.path))
        deepest = len(parts) if reach is None else min(len(parts), reach.depth)
        prefixes = ["/" + "/".join(parts[:depth]) for depth in range(deepest, -1, -1)]
        paths = (f"=/{'/'.join(parts)}", *prefixes)
        hosts = list(host_patterns_of(canonical_host(request.host) or MALFORMED_HOST))
        if reach is not None:
            hosts = [host for host in hosts if host in reach.hosts or host == MALFORMED_HOST]
        names = _NOBODY if actor is None else actor.names
        return cls(request.method, paths, (*hosts, _ANY), plain_address(request.src), names, call)


_ByHost = dict[str, list[Rule]]
_ByMethod = dict[str, _ByHost]
_ByPath = dict[str, _ByMethod]


class Index:
    """Either grants or denies, by role."""

    def __init__(self, rules: Iterable[Rule], *, deny: bool) -> None:
        self._roles: dict[str, _ByPath] = {}
        self._deny = deny
        for rule in rules:
            for role in rule.roles:
                self._add(self._roles.setdefault(role, {}), rule)

    def _add(self, by_path: _ByPath, rule: Rule) -> None:
        region = rule.region
        hosts: set[str] = set(region.hosts or {_ANY})
        if self._deny and region.hosts:
            # DENY-ERROR-001: an absent or malformed Host cannot be compared, so every deny matches it.
            hosts.add(MALFORMED_HOST)
        by_method = by_path.setdefault(f"={region.path}" if region.exact else region.path, {})
        for method in region.methods or {_ANY}:
            by_host = by_method.setdefault(method, {})
            for host in hosts:
                by_host.setdefault(host, []).append(rule)

    def __bool__(self) -> bool:
        return bool(self._roles)

    def release(self) -> None:
        """Release all rules in slices, once the index is out of use."""
        release([self._roles])

    def matches(self, roles: Iterable[str], query: Query) -> Iterator[Rule]:
        """Yield rules of any of the roles that match, the most specific path first, else in no order."""
        indexes = [by_path for role in roles if (by_path := self._roles.get(role)) is not None]
        if not indexes:
            return
        for path in query.paths:
            for by_path in indexes:
                if (by_method := by_path.get(path)) is not None:
                    yield from self._at(by_method, query)

    def _at(self, by_method: _ByMethod, query: Query) -> Iterator[Rule]:
        for method in (query.method, _ANY):
            if (by_host := by_method.get(method)) is None:
                continue
            for host in query.hosts:
                for rule in by_host.get(host, ()):
                    region = rule.region
                    if region.bare or self._fits(region, query):
                        yield rule

    def _fits(self, region: Region, query: Query) -> bool:
        """Test actor, call, source; if that fails, a deny matches and a grant does not (DENY-ERROR-001)."""
        if not region.has_entries(query.actor, query.call, unknown=self._deny):
            return False
        try:
            return region.has_source(query.src)
        except Exception:  # noqa: BLE001 - after any error take the safe side
            return self._deny

    def best(self, roles: Iterable[str], query: Query) -> Rule | None:
        """Return the winning grant: the most specific path, then the smaller id."""
        winner: Rule | None = None
        for rule in self.matches(roles, query):
            if winner is None:
                winner = rule
            elif rule.region.specificity != winner.region.specificity:
                break  # the most specific rules come first
            elif rule.id < winner.id:
                winner = rule
        return winner

    def first(self, roles: Iterable[str], query: Query) -> Rule | None:
        """Return the matching rule with the smallest id: the named deny must not depend on order."""
        return min(self.matches(roles, query), key=lambda rule: rule.id, default=None)


@dataclass(frozen=True, slots=True)
class _Roles:
    """The roles of a token as the policy knows them."""

    active: tuple[RoleArn, ...]
    all_names: frozenset[str]


class Policy:
    """A checked configuration (`policy.load`), compiled. Immutable; share it freely.

    Args:
        config: checked.
        version: the result of `version_of`, if the caller has it.
        shadow: a whole policy to try: it judges each request too, and if its verdict or backend differs the
            decision's `shadow` notes it (`policy:no_grant`, `policy:allow:<grant>`); never enforced.
        nonce_key: what the file of `dpop.nonce_key` says, b"" without a file.

    Attributes:
        version: `sha256:` and 16 hex digits over everything that can change a verdict, except for the order
            of tables and of list entries.
    """

    def __init__(
        self,
        config: config.Config,
        shadow: Policy | None = None,
        *,
        version: str | None = None,
        nonce_key: bytes = b"",
    ) -> None:
        self.config, self.nonce_key = config, nonce_key
        self._shadow_policy = shadow
        self.version = version_of(config) if version is None else version
        self._union = config.multi_role == "union"
        self._name_of: dict[RoleArn, str] = {}
        self._arns_of: dict[str, frozenset[RoleArn]] = {}
        self._lifetime: dict[str, float] = {}
        for role in config.roles:
            arns = frozenset(RoleArn.parse(text) for text in arns_of(role))
            self._arns_of[role.name] = arns
            self._name_of.update(dict.fromkeys(arns, role.name))
            if role.max_lifetime is not None:
                self._lifetime[role.name] = role.max_lifetime
        grants = [compile_rule(g) for g in config.grants if not g.shadow]
        denies = [compile_rule(d) for d in config.denies if not d.shadow]
        shadow_grants = [compile_rule(g) for g in config.grants if g.shadow]
        shadow_denies = [compile_rule(d) for d in config.denies if d.shadow]
        scopes = [Rule(s.name, frozenset({s.name}), Region.from_rule(s)) for s in config.scopes]
        self._grants, self._denies = Index(grants, deny=False), Index(denies, deny=True)
        self._shadow_grants = Index(shadow_grants, deny=False)
        self._shadow_denies = Index(shadow_denies, deny=True)
        self._scopes = Index(scopes, deny=False)
        rules = (*grants, *denies, *shadow_grants, *shadow_denies, *scopes)
        self._reach = Reach.over(rule.region for rule in rules)
        self.resources = Resources(config)
        paths = *(rule.region.path for rule in rules), *(one.metadata for one in self.resources.targets)
        self.longest_path = max(map(len, paths), default=0)

    def release(self) -> None:
        """Release a replaced policy in slices: it decides nothing after that."""
        for index in (self._grants, self._denies, self._shadow_grants, self._shadow_denies, self._scopes):
            index.release()
        release([self.config.grants, self.config.denies, self.config.roles])
        if self._shadow_policy is not None:
            self._shadow_policy.release()

    def name_of(self, arn: RoleArn) -> str | None:
        """Return the policy's name for a role, or None."""
        return self._name_of.get(arn)

    def active(self, identity: Identity, request: Request) -> tuple[RoleArn, ...]:
        """Return the roles whose grants count for a request; () if the choice itself is refused."""
        try:
            return self._roles_of(identity, request.requested_role).active
        except Refusal:
            return ()

    def decide(
        self, identity: Identity, request: Request, now: float | None = None, found: Found | None = None
    ) -> Decision:
        """Judge one request of a verified identity; pure, and independent of the order of rules and roles.

        Args:
            identity: from a credential that was verified.
            request: as the proxy will forward it.
            now: epoch seconds; if given, access is refused `token_expired` at its `expires` (a role's own
                `max_lifetime` may end before the token does).
            found: what the request is for, if the caller has looked it up among the policy's resources.

        Returns:
            The decision; never raises a `Refusal`.
        """
        decision = self._decide(identity, request, now, found or self.resources.find(request))
        if self._shadow_policy is None:
            return decision
        other = self._shadow_policy.decide(identity, request, now)
        if (other.allow, other.backend) == (decision.allow, decision.backend):
            return decision
        note = f"policy:allow:{other.rule}" if other.allow else f"policy:{other.reason}"
        return replace(decision, shadow=(*decision.shadow, note))

    def named(self, found: Found, request: Request, decision: Decision) -> Decision:
        """Add to the answer to a request for a resource what a client needs to know of the resource."""
        if (target := found.target) is None or decision.answer:
            return decision
        helps = decision.status == 401 or decision.reason is Reason.SCOPE_INSUFFICIENT
        scope = self._narrowest(found, target.scopes, request) if helps else ""
        origin = request.mcp.origin if request.mcp.origin in target.origins else None
        return replace(decision, resource=target.metadata, scope=scope, origin=origin or "")

    def _narrowest(self, found: Found, scopes: Iterable[str], request: Request) -> str:
        """Return the scope value that opens least around a request; "" if none opens it."""
        try:
            call = found.call(request)
        except Refusal:
            call = None
        names = None if call is None else call_names(*call)
        opening = self._scopes.matches(scopes, Query.from_request(request, self._reach, None, names))
        return min(((rule.region.width(names), rule.id) for rule in opening), default=("", ""))[1]

    def _decide(self, identity: Identity, request: Request, now: float | None, found: Found) -> Decision:
        base = Decision(
            allow=False,
            principal=identity.principal,
            session=identity.session,
            issuer=identity.issuer,
            actor=identity.actor,
            expires=identity.not_after,
            credential=identity.credential,
            roles=tuple(map(str, identity.roles)),
            unmapped=tuple(str(arn) for arn in identity.roles if arn not in self._name_of),
        )
        try:
            names = None
            if (call := found.call(request)) is not None:
                base.call, names = call, call_names(*call)
            query = Query.from_request(request, self._reach, identity.actor, names)
            roles = self._roles_of(identity, request.requested_role)
        except Refusal as refusal:
            return replace(base, reason=refusal.reason, detail=refusal.detail)
        if len(roles.active) == 1:
            base.role = str(roles.active[0])
        verdict = self._judge(base, identity, roles, query)
        if now is not None and verdict.allow and verdict.expires is not None and now >= verdict.expires:
            why = "the role's max_lifetime has passed"
            return replace(base, reason=Reason.TOKEN_EXPIRED, detail=why, expires=verdict.expires)
        return verdict

    def _roles_of(self, identity: Identity, requested: str | None) -> _Roles:
        """Return the active roles, and the names of all roles, for the denies (DENY-ALL-001).

        Raises:
            Refusal: `role_missing`, `role_not_in_token`, `ambiguous_role`.
        """
        held = frozenset(identity.roles)
        if not held:
            raise Refusal(Reason.ROLE_MISSING, "the credential carries no role")
        names = frozenset(name for arn in held if (name := self._name_of.get(arn)) is not None)
        if requested is not None:
            active = held & self.arns_named(requested)
            if not active:
                raise Refusal(Reason.ROLE_NOT_IN_TOKEN, "the requested role is not in the credential")
        elif identity.preferred in held:
            active = frozenset({identity.preferred})
        elif len(held) == 1 or self._union:
            active = held
        else:
            raise Refusal(
                Reason.AMBIGUOUS_ROLE, f"the credential carries {len(held)} roles and none was chosen"
            )
        return _Roles(tuple(sorted(active, key=str)), names)

    def arns_named(self, requested: str) -> frozenset[RoleArn]:
        """Return the roles that `X-IAM-Role` asks for: an ARN, or all ARNs of a name in the policy."""
        if not requested.startswith("arn:"):
            return self._arns_of.get(requested, frozenset())
        try:
            return frozenset({RoleArn.parse(requested)})
        except Refusal:
            return frozenset()

    def _judge(self, base: Decision, identity: Identity, roles: _Roles, query: Query) -> Decision:
        """Judge by denies, grants and scopes, in this order of reasons; only note shadow rules."""
        able = self._able(identity, roles.active)
        every = (*roles.all_names, _ANY)
        deny = self._denies.first(every, query)
        grant = self._grants.best(able, query)
        scoped = identity.scopes is None or any(self._scopes.matches(identity.scopes, query))
        if deny is not None:
            decision = replace(base, reason=Reason.DENIED_BY_RULE, rule=deny.id)
        elif grant is None:
            decision = replace(base, reason=Reason.NO_GRANT, detail=self._why_no_grant(roles, able))
        elif not scoped:
            decision = replace(
                base, reason=Reason.SCOPE_INSUFFICIENT, detail="no scope of the token opens it"
            )
        else:
            decision = self._allowed(
                base, identity, [arn for arn in roles.active if self._name_of.get(arn) in able], grant
            )
        if self._shadow_grants or self._shadow_denies:
            shadow = self._shadow_rules(decision, grant, every, able, query, scoped=scoped)
            decision = replace(decision, shadow=shadow)
        return decision

    def _able(self, identity: Identity, active: tuple[RoleArn, ...]) -> list[str]:
        """Return the names of the active roles whose grants count.

        A role with a `max_lifetime` grants nothing to a credential without a time of issue, because the limit
        could not be applied (DENY-ERROR-001).
        """
        names = {name for arn in active if (name := self._name_of.get(arn)) is not None}
        if identity.issued_at is None and self._lifetime:
            names -= self._lifetime.keys()
        return list(names)

    def _why_no_grant(self, roles: _Roles, able: list[str]) -> str:
        if any(self._name_of.get(arn) not in able for arn in roles.active if arn in self._name_of):
            return "the role has a max_lifetime and the credential no time of issue"
        return "" if able else "the policy has no mapping for the role"

    def _allowed(self, base: Decision, identity: Identity, able: list[RoleArn], grant: Rule) -> Decision:
        granting = [arn for arn in able if self._name_of[arn] in grant.roles]
        expires = identity.not_after
        if identity.issued_at is not None:
            lifetimes = [self._lifetime.get(self._name_of[arn]) for arn in granting]
            bounded = [lifetime for lifetime in lifetimes if lifetime is not None]
            if bounded:
                # Whole seconds, like `exp`, rounded down: access may end early, never late.
                expires = min(expires, int(identity.issued_at + min(bounded)))
        role, rule, backend = str(granting[0]), grant.id, grant.backend
        return replace(base, allow=True, role=role, rule=rule, backend=backend, expires=expires)

    def _shadow_rules(
        self,
        decision: Decision,
        grant: Rule | None,
        every: Iterable[str],
        able: list[str],
        query: Query,
        *,
        scoped: bool,
    ) -> tuple[str, ...]:
        """Return the ids of shadow rules that would each change verdict or backend if enforced."""
        noted: set[str] = set()
        if decision.allow:
            noted.update(rule.id for rule in self._shadow_denies.matches(every, query))
        if decision.reason is Reason.DENIED_BY_RULE or not scoped:
            return tuple(sorted(noted))
        for rule in self._shadow_grants.matches(able, query):
            if grant is None or (rule.rank < grant.rank and rule.backend != grant.backend):
                noted.add(rule.id)
        return tuple(sorted(noted))


def arns_of(role: config.Role) -> list[str]:
    """Return all ARNs of a role as written: `arn`, then `arns`."""
    return ([role.arn] if role.arn is not None else []) + role.arns


def version_of(config: config.Config) -> str:
    """Hash everything that can change a verdict, sorted (ORACLE-ORDER-001: order never matters)."""
    content = config.model_dump(mode="json", exclude={"agent", "audit", "metrics"})
    text = json.dumps(_sorted(content), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _sorted(value: object, key: str = "") -> object:
    if isinstance(value, dict):
        return {name: _sorted(item, name) for name, item in value.items()}
    if isinstance(value, list) and not key.endswith("_claim"):  # only a claim's path is ordered
        return sorted((_sorted(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    return value
