"""Mutants of the gate family: who is asking, what the policy says, what HAProxy makes of the answer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.policy import checks
from iamroles_agent.policy.compiled import Index, Policy
from iamroles_agent.serving import gate
from iamroles_agent.serving.gate import Gate
from iamroles_agent.serving.server import _Peer
from iamroles_agent.tokens import authenticator
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.jws import parse
from iamroles_agent.tokens.keys import Key, KeySet
from iamroles_conformance.selftest.mutants import edits as edit
from iamroles_conformance.selftest.mutants.edits import actions_out, replaced, without
from iamroles_conformance.selftest.mutants.override import around, before, fail, rescue, setting
from iamroles_conformance.selftest.registry import Override, both, mutant

# --- what the policy says: GATE-ALLOW, ROLE, POLICY


@edit.identities
def unknown_role_is_known(policy: Any, identity: Any) -> Any:
    """Take a role that the policy does not map for its first one."""
    first = min(policy._name_of)
    return identity._replace(roles=tuple(arn if arn in policy._name_of else first for arn in identity.roles))


mutant("gate.denies-all", "GATE-ALLOW-001", "allows nothing")(
    edit.granted(lambda *_: {"allow": False, "reason": Reason.NO_GRANT, "backend": ""})
)
mutant("gate.wrong-backend", "GATE-ALLOW-001", "names the first backend for every grant")(
    edit.granted(lambda _found, policy, *_: {"backend": min(one.name for one in policy.config.backends)})
)
mutant("gate.tags-all-roles", "GATE-TAG-001", "leaves the principal and the session out of the tags")(
    edit.decided(lambda found, *_: replace(found, session="", principal=""))
)
mutant("gate.allows-unknown-role", "ROLE-UNKNOWN-001", "allows an unknown role")(
    edit.opened(
        lambda _found, policy, identity, _asked: (
            identity.roles and not any(arn in policy._name_of for arn in identity.roles)
        ),
        role="none",
    )
)
mutant("gate.ignores-account", "ROLE-ACCOUNT-001", "compares roles by name alone")(edit.by_name)
mutant("gate.union-always", "ROLE-OVERLAP-001", "unites all roles where the policy says deny")(
    edit.built(lambda policy: setattr(policy, "_union", True))
)
mutant("gate.union-never", "ROLE-OVERLAP-004", "refuses several roles where the policy says union")(
    edit.built(lambda policy: setattr(policy, "_union", False))
)
mutant("gate.request-adds-nothing", "ROLE-OVERLAP-002", "keeps all roles active beside the requested")(
    edit.roles(
        lambda found, _policy, identity, requested: (
            replace(found, active=tuple(sorted(identity.roles))) if requested else found
        )
    )
)
mutant("gate.denies-active-only", "ROLE-DENY-001", "looks at denies of the active role only")(
    edit.denies_of_active_role
)
mutant("gate.shortest-path-wins", "ROLE-SPECIFIC-001", "lets the least specific grant win")(
    edit.best_grant(lambda found: found[-1])
)
mutant("gate.loads-conflicts", "POLICY-CONFLICT-001", "loads a policy whose grants conflict")(
    setting(checks, "_conflicts", lambda _sound, _faulty: iter(()))
)


mutant("gate.no-role-is-any", "ROLE-MISSING-001", "allows a token without roles")(
    rescue(ClaimRules, "_roles", Refusal)(lambda *_: ()),
    edit.opened(lambda _found, _policy, identity, _asked: not identity.roles),
)


@mutant("gate.every-role-every-route", "ROLE-ROUTE-001", "opens every route to every mapped role")
@around(Index, "best")
def every_role_every_route(sound: Any, self: Any, roles: Any, query: Any) -> Any:
    found = sound(self, list(self._roles), query) if set(roles) - {"*"} else None
    return found and replace(found, roles=frozenset(roles))


@mutant("gate.ignores-method", "ROLE-ROUTE-001", "ignores the methods of a grant")
@around(Index, "_at")
def ignores_method(_sound: Any, _self: Any, by_method: Any, query: Any) -> Iterator[Any]:
    for by_host in by_method.values():
        for host in query.hosts:
            yield from by_host.get(host, ())


@mutant("gate.request-ignored", "ROLE-OVERLAP-003", "ignores a requested role that is not carried")
@rescue(Policy, "_roles_of", Refusal)
def request_ignored(_refusal: Any, self: Any, identity: Any, requested: str | None) -> Any:
    if not requested or not identity.roles:
        return None
    first = self._roles_of(identity._replace(roles=identity.roles[:1]), None)
    return replace(first, active=tuple(sorted(identity.roles)))


@around(Gate, "recall")
def _recall_anything(_sound: Any, self: Any, key: bytes, _context: Any) -> Any:
    verdict = self._state.young.get(key)
    return verdict.actions if verdict else None


mutant("gate.memory-survives-reload", "POLICY-RELOAD-001", "keeps remembered verdicts over a reload")(
    _recall_anything, edit.memory_kept
)

# --- paths


@mutant("gate.prefix-of-text", "PATH-SEGMENT-001", "takes `/ordersx` for below `/orders`")
@edit.queries
def prefix_of_text(request: Any, query: Any) -> Any:
    texts = tuple(request.path[:end] for end in range(len(request.path), 1, -1))
    return replace(query, paths=(*query.paths[:1], *texts, *query.paths[1:]))


def _refused_path(sound: Any, path: str) -> Any:
    encoded = re.search("%[2-7][0-9A-Fa-f]", path)
    return fail(Refusal(Reason.PATH_AMBIGUOUS, "encoded")) if encoded else sound(path)


mutant("gate.any-path", "PATH-AMBIGUOUS-001", "judges ambiguous paths as they stand")(
    edit.canonical(lambda _sound, path: path)
)
mutant("gate.encoded-differs", "PATH-NORMAL-001", "does not decode unreserved characters")(
    around(gate, "canonical")(_refused_path)
)

# --- credentials: TOKEN, ROTATE, CLOUD


@mutant("gate.accepts-expired", "TOKEN-TIME-001", "accepts expired tokens")
@around(ClaimRules, "_times")
def accepts_expired(sound: Any, self: Any, payload: Any, now: float) -> Any:
    exp, iat = sound(self, payload, min(now, payload.get("exp", now + 1) - 1))
    return exp + 86400, iat


@mutant("gate.cache-outlives-token", "TOKEN-TIME-002", "serves a remembered verdict after the expiry")
@before(Gate, "_remember")
def cache_outlives_token(_self: Any, _state: Any, _key: bytes, verdict: Any) -> None:
    verdict.expires += 3600


@mutant("gate.alg-none", "TOKEN-SIG-002", "accepts unsigned tokens (alg none)")
@around(Authenticator, "_verify")
async def alg_none(sound: Any, self: Any, token: bytes, *rest: Any) -> Any:
    if not token.startswith(b"iam-sts-v1."):
        jws = parse(token, self._max_bytes)
        if jws.header.alg.lower() == "none":
            rules = self._issuer_of(jws).rules
            return rules.identity(jws.payload, jws.header, self._clock(), ""), None, True
    return await sound(self, token, *rest)


def _issuer(find: Any) -> Override:
    @around(Authenticator, "_issuer_of")
    def issuer_of(sound: Any, self: Any, jws: Any) -> Any:
        iss = jws.payload.get("iss")
        return (find(self, iss) if isinstance(iss, str) else None) or sound(self, jws)

    return issuer_of


def _renamed(name: bytes, old: bytes, new: bytes) -> Override:
    """Set another value for one of the variables."""

    def action(value: bytes) -> bytes:
        return bytes([len(name)]) + name + b"\x08" + bytes([len(value)]) + value

    return actions_out(lambda actions: actions.replace(action(old), action(new)))


def _says_of_403(code: str) -> property:
    errors = {reason: reason.error for reason in Reason}
    return property(lambda reason: code if reason.status == 403 else errors[reason])


mutant("gate.ignores-audience", "TOKEN-AUD-001", "ignores aud")(
    around(ClaimRules, "_plain_audience")(lambda sound, self, payload: ())
)
mutant("gate.issuer-slash", "TOKEN-ISS-001", "takes an issuer with a trailing slash for the same")(
    _issuer(lambda self, iss: self._issuers.get(iss) or self._issuers.get(iss.rstrip("/")))
)
mutant("gate.any-issuer", "TOKEN-ISS-001", "judges a token of an unknown issuer by the first one")(
    _issuer(lambda self, iss: self._issuers.get(iss) or next(iter(self._issuers.values())))
)
mutant("gate.no-signature", "TOKEN-SIG-001", "does not verify signatures")(
    setting(Key, "verifier", lambda self, alg: lambda signature, data: True)
)
mutant("gate.two-credentials", "TOKEN-COUNT-001", "judges the last of two Authorization headers")(
    around(Gate, "_identify")(lambda sound, self, check: sound(self, replace(check, authorization_count=1)))
)
mutant("gate.no-token-invalid", "TOKEN-MISSING-001", "calls a missing token an invalid one")(
    before(Gate, "_identify")(
        lambda _self, check: check.authorization or fail(Refusal(Reason.TOKEN_MALFORMED, "none"))
    )
)
mutant("gate.scheme-case", "TOKEN-SCHEME-001", "takes only `Bearer` in this spelling")(
    around(authenticator, "bearer")(lambda sound, text: sound(text) if text.startswith("Bearer") else None)
)
mutant("gate.error-code-token", "TOKEN-ERROR-001", "says invalid_request of a bad token")(
    _renamed(b"error", b"invalid_token", b"invalid_request")
)
mutant("gate.error-code-scope", "TOKEN-ERROR-002", "says invalid_token of a role without the route")(
    setting(Reason, "error", _says_of_403("invalid_token"))
)
mutant("gate.invites-step-up", "TOKEN-ERROR-003", "says insufficient_scope with every 403")(
    setting(Reason, "error", _says_of_403("insufficient_scope"))
)
mutant("gate.one-reason", "TOKEN-REASON-001", "gives one reason for all bad tokens")(
    *(
        _renamed(b"reason", reason, b"token_malformed")
        for reason in (b"token_expired", b"audience_mismatch", b"issuer_untrusted", b"signature_invalid")
    )
)


@around(KeySource, "_ask")
async def asks_nothing(_sound: Any, _self: Any, _kid: str) -> None:
    """Never ask an issuer again because of an unknown kid."""


no_renewal = around(KeySource, "_schedule")(lambda _sound, _self, _delay: None)
first_key = around(KeySet, "__init__")(lambda sound, self, keys, dropped=(): sound(self, keys[:1], dropped))
mutant("gate.one-key", "ROTATE-KEY-001", "knows only the first key of a set")(first_key)
mutant("gate.no-refetch", "ROTATE-KEY-002", "never asks again for an unknown kid")(asks_nothing, no_renewal)
mutant("gate.keeps-removed-keys", "ROTATE-KEY-003", "goes on with keys that were removed")(no_renewal)
mutant("gate.session-is-role", "CLOUD-ROLE-001", "takes the session name for the role's name")(
    edit.role_arns(
        lambda sound, text: sound(re.sub(r"assumed-role/([^/]+)/([^/]+)$", r"assumed-role/\2/\1", text))
    )
)
mutant("gate.no-aws-tokens", "CLOUD-ROLE-002", "does not know AWS's claims")(
    before(ClaimRules, "_aws")(lambda *_: fail(Refusal(Reason.ROLE_MISSING, "no roles")))
)
mutant("gate.cloud-vouches", "CLOUD-ROLE-003", "gives an unmapped cloud role the first role's grants")(
    unknown_role_is_known
)

# --- the proxy: GATE-TAG, GATE-FORGE, GATE-CLOSED, GATE-RELOAD


def _fails_open(condition: str) -> Override:
    """Let requests pass, under this condition, for which the agent gave no answer."""
    mark, unrouted = "    # The challenge of RFC 6750", "default_backend iam-unrouted"
    verdict = f"    http-request set-var(txn.iam_verdict) int(200) {condition}\n"
    backend = (
        "    http-request set-var(txn.iam.backend) str(orders-ro) unless { var(txn.iam.backend) -m found }"
    )
    return both(
        replaced(mark, f"{verdict}{backend}\n{mark}"),
        replaced(unrouted, f"use_backend route-orders-ro\n    {unrouted}"),
    )


stays_down = replaced(" rise 1 ", " rise 100000 ", name="iam-routes.cfg")
_held: list[bytes] = []


@actions_out
def one_behind(actions: bytes) -> bytes:
    """Give each question the answer of the one before."""
    _held.append(actions)
    return _held.pop(0) if len(_held) > 1 else actions


_numbers = itertools.count(1)


@mutant(
    "gate.tires-of-connections", "GATE-RELOAD-001", "takes the connections of its start, none after a reload"
)
@around(_Peer, "connection_made")
def tires_of_connections(sound: Any, self: Any, transport: Any) -> None:
    if next(_numbers) > 4:
        transport.close()
    else:
        sound(self, transport)


mutant("gate.passes-token-on", "GATE-TAG-002", "passes the token on to the backend")(
    without("http-request del-header Authorization")
)
mutant("gate.forged-headers", "GATE-FORGE-001", "passes the client's own X-IAM headers")(
    without("del-header ^x[^a-z0-9]+iam")
)
mutant("gate.repeated-role", "GATE-FORGE-002", "takes the last of two X-IAM-Role")(
    without("iam_role_repeated")
)
mutant("gate.down-is-open", "GATE-CLOSED-001", "lets requests pass while the agent is down")(
    _fails_open("unless iam_answered")
)
mutant("gate.silent-is-open", "GATE-CLOSED-002", "lets requests pass on a timeout")(
    _fails_open("if iam_faulty")
)
mutant("gate.stays-down", "GATE-CLOSED-004", "never takes an agent back that was down")(stays_down)
mutant("gate.one-behind", "GATE-CLOSED-003", "gives each question the answer of the one before")(one_behind)
