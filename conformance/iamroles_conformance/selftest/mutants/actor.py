"""Mutants of delegation: ACTOR, in the agent and in the gate's configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import Any

from iamroles_agent.base.identity import Actor
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.identity_header import signer
from iamroles_agent.live import judge, renewal
from iamroles_agent.live.revocations import Revocations
from iamroles_agent.serving import gate
from iamroles_agent.spop import actions
from iamroles_agent.tokens import claims
from iamroles_agent.tokens.cache import IdentityCache
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_conformance.selftest.mutants import edits as edit
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.registry import Override, both, mutant


def _reads(edit_: Callable[[Any], Any]) -> Override:
    """Read another `act` claim."""
    return around(claims, "actor_of")(lambda sound, act, url: sound(edit_(act), url))


def _payload(edit_: Callable[[dict[str, Any]], dict[str, Any]]) -> Override:
    """Judge other claims."""
    return around(ClaimRules, "identity")(lambda sound, self, said, *rest: sound(self, edit_(said), *rest))


def _named(found: Callable[[Actor], set[tuple[str, str]]]) -> Override:
    """Fit other entries of `actors`."""
    return setting(Actor, "names", property(lambda self: frozenset(found(self))))


def _said(**changes: Callable[[Any], Any]) -> Override:
    """Answer with another actor."""
    return around(gate, "encode_verdict")(
        lambda sound, decision, *rest: sound(
            replace(decision, **{name: change(getattr(decision, name)) for name, change in changes.items()}),
            *rest,
        )
    )


def _signs(edit_: Callable[[Any], Any]) -> Override:
    """Sign an identity with another actor."""
    return around(signer.Signer, "_made")(
        lambda sound, self, found, at: sound(self, replace(found, actor=edit_(found.actor)), at)
    )


def _aws(edit_: Callable[[Any, Actor], Any]) -> Override:
    """Take another actor of a token of AWS; `edit_` gets the sound one, and the role as an actor."""

    @around(ClaimRules, "identity")
    def identity(sound: Any, self: Any, payload: Any, *rest: Any) -> Any:
        found = sound(self, payload, *rest)
        if self._profile != "aws":
            return found
        return found._replace(actor=edit_(found.actor, Actor(str(found.roles[0]), self._url)))

    return identity


@around(ClaimRules, "identity")
def _act_first(sound: Any, self: Any, payload: Any, *rest: Any) -> Any:
    found = sound(self, payload, *rest)
    act = payload.get("act")
    return found if act is None else found._replace(actor=claims.actor_of(act, self._url))


def _lenient(sound: Any, act: Any, url: str) -> Any:
    try:
        return sound(act, url)
    except Refusal:
        return None


def _innermost(act: Any) -> Any:
    while isinstance(act, dict) and isinstance(act.get("act"), dict):
        act = act["act"]
    return act


def _stripped(act: Any) -> Any:
    kept = isinstance(act, dict) and isinstance(act.get("sub"), str)
    return {**act, "sub": act["sub"].strip()} if kept else act


def _nobody(_actor: Any) -> None:
    return None


def _own(actor: Any) -> Any:
    return actor and actor._replace(foreign=False)


def _revokes(edit_: Callable[[Any], Any]) -> Override:
    """Look for the revocations of another identity."""
    return around(Revocations, "match")(lambda sound, self, who, name_of: sound(self, edit_(who), name_of))


def _match(more: Callable[[Any, Any], Any]) -> Override:
    """Find more revocations."""
    return around(Revocations, "match")(
        lambda sound, self, who, name_of: more(self, who) or sound(self, who, name_of)
    )


_TAG = "if { var(txn.iam.actor) -m found }"
for _name, _kills, _title, _override in (
    ("passes-over", "ACTOR-CLAIM-001", "takes an odd `act` for none", around(claims, "actor_of")(_lenient)),
    ("text", "ACTOR-CLAIM-001", "takes a text for the actor's name",
     _reads(lambda act: {"sub": act} if isinstance(act, str) else act)),
    ("first-of-list", "ACTOR-CLAIM-001", "takes the first of a list",
     _reads(lambda act: act[0] if isinstance(act, list) and act else act)),
    ("stripped", "ACTOR-CLAIM-001", "drops blanks around a name", _reads(_stripped)),
    ("any-iss", "ACTOR-CLAIM-001", "passes over an odd `iss`", _reads(
        lambda act: {name: act[name] for name in act if name != "iss" or isinstance(act[name], str)}
        if isinstance(act, dict) else act)),
    ("innermost", "ACTOR-NEST-001", "takes the innermost actor", _reads(_innermost)),
    ("may-act", "ACTOR-NEST-001", "takes `may_act` for an actor",
     _payload(lambda said: {"act": act, **said} if isinstance(act := said.get("may_act"), dict) else said)),
    ("any-actor", "ACTOR-GRANT-001", "does not look at the actors of grants",
     edit.regions(edit.is_grant, actors=None)),
    ("any-issuer", "ACTOR-GRANT-001", "compares names alone",
     _named(lambda one: {(one.sub, one.issuer), (one.sub, ""), ("", one.issuer), ("", "")})),
    ("any-case", "ACTOR-GRANT-001", "compares names without case", _named(
        lambda one: {(one.sub.lower(), one.issuer.lower()), ("", one.issuer.lower()), ("", "")}
        | (set() if one.foreign else {(one.sub.lower(), "")}))),
    ("no-wildcard", "ACTOR-GRANT-001 ACTOR-DENY-001", "takes an empty entry for nobody", _named(
        lambda one: {(one.sub, one.issuer), ("", one.issuer)} | (set() if one.foreign else {(one.sub, "")}))),
    ("people-too", "ACTOR-GRANT-001 ACTOR-DENY-001", "takes people for actors that any entry fits",
     edit.queries(lambda _, query: replace(query, actor=query.actor or frozenset({("", "")})))),
    ("denies-all", "ACTOR-DENY-001", "closes to people too", edit.regions(edit.is_deny, actors=None)),
    ("denies-nobody", "ACTOR-DENY-001", "passes over denies of actors",
     edit.regions(lambda rule: edit.is_deny(rule) and rule.actors, actors=frozenset({("-", "-")}))),
    ("unsaid", "ACTOR-TAG-001", "says nothing of actors", _said(actor=_nobody)),
    ("issuer-unsaid", "ACTOR-TAG-001", "says nothing of foreign issuers", _said(actor=_own)),
    ("dropped", "ACTOR-TAG-001", "drops the actor of an answer that is too long", setting(
        actions, "TAGS", ("actor", "actor_issuer", *actions.TAGS))),
    ("as-principal", "ACTOR-TAG-001 ACTOR-AWS-001", "says the actor in the principal's place",
     edit.granted(lambda found, _policy, who, _asked: {"principal": who.actor.sub} if who.actor else {})),
    ("unsigned", "ACTOR-SIGNED-001", "signs no actor", _signs(_nobody)),
    ("signed-shared", "ACTOR-SIGNED-001", "shares signed identities between actors",
     setting(signer, "_CALLER", attrgetter("principal", "session", "role", "issuer", "backend", "expires"))),
    ("forgotten", "ACTOR-MEMORY-001", "forgets the actor of a remembered token", around(IdentityCache, "get")(
        lambda sound, self, *asked: (found := sound(self, *asked)) and found._replace(actor=None))),
    ("renews-any", "ACTOR-RENEW-001", "prolongs by a token of any actor",
     both(*(around(owner, "whose")(lambda sound, ticket: sound(ticket)[:-2]) for owner in (judge, renewal)))),
    ("renews-issuer", "ACTOR-RENEW-001", "prolongs by a token of another issuer's actor",
     both(*(around(owner, "whose")(lambda sound, ticket: sound(ticket)[:-1]) for owner in (judge, renewal)))),
    ("revokes-none", "ACTOR-REVOKE-001", "finds no credential by its actor",
     _revokes(lambda who: who._replace(actor=None))),
    ("revokes-people", "ACTOR-REVOKE-001", "revokes people who are named as actors",
     _revokes(lambda who: who._replace(actor=who.actor or Actor(who.principal, "")))),
    ("revokes-own", "ACTOR-REVOKE-001", "revokes no foreign actor",
     _revokes(lambda who: who._replace(actor=None) if who.actor and who.actor.foreign else who)),
    ("revokes-all", "ACTOR-REVOKE-001", "revokes an actor for all, whatever else is named", _match(
        lambda self, who: next((row for row in self.rows if (who.actor or [""])[0] in row.actors), None))),
    ("ticket-without", "ACTOR-CUT-001 ACTOR-REVOKE-001", "keeps no actor with a stream",
     around(gate, "ticket")(lambda sound, name, who, *rest: sound(name, who._replace(actor=None), *rest))),
    ("sub-as-actor", "ACTOR-AWS-001", "takes no actor of OriginIdentity", _aws(lambda *_: None)),
    ("canonical-arn", "ACTOR-AWS-001", "names the role, not what `principal_id` says",
     _aws(lambda one, role: one and one._replace(sub=role.sub))),
    ("role-acts", "ACTOR-AWS-001", "takes each role for an actor", _aws(lambda _, role: role)),
    ("caller-acts", "ACTOR-AWS-001", "takes each caller of STS for an actor", edit.identities(
        lambda _, who: who._replace(actor=Actor(who.principal, "")) if who.dated_by_caller else who)),
    ("act-first", "ACTOR-AWS-001", "prefers `act` to OriginIdentity", _act_first),
    ("scope-left-out", "ACTOR-SCOPE-001", "takes a missing scope for all", around(ClaimRules, "_scopes")(
        lambda sound, self, value: None if value is None else sound(self, value))),
    ("scope-opens", "ACTOR-SCOPE-001", "takes a scope for a grant",
     edit.opened(lambda found, _, who, *__: found.reason == Reason.NO_GRANT
        and "more" in (who.scopes or ()))),
    # the gate's configuration
    ("always-tagged", "ACTOR-TAG-001", "names an empty actor", edit.replaced(_TAG, "")),
    ("transaction-token", "ACTOR-TAG-001", "passes Txn-Token on", edit.replaced("|txn[^a-z0-9]token", "")),
    ("forged", "ACTOR-TAG-001", "removes the tags that it has known for long alone", edit.replaced(
        "^x[^a-z0-9]+iam([^a-z0-9]|$)",
        "^x[^a-z0-9]iam[^a-z0-9](role|principal|session|issuer|rule|expires|request[^a-z0-9]id|identity)$")),
):  # fmt: skip
    mutant(f"actor.{_name}", _kills, _title)(_override)
