"""Mutants for the checks that are derived from tables: what an agent forgets, joins, or keeps."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

from iamroles_agent.base import config
from iamroles_agent.policy import checks, compiled, groups
from iamroles_agent.policy.compiled import Index, Policy
from iamroles_agent.serving.gate import Gate
from iamroles_agent.spop import messages
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.sts import StsVerifier
from iamroles_conformance.selftest.mutants import edits as edit
from iamroles_conformance.selftest.mutants.override import after, around, setting
from iamroles_conformance.selftest.registry import Override, both, mutant

# --- the memory of verdicts (kind 1 of docs/derived-checks.md)


def _remembered_by(of: Callable[[Any], object]) -> Override:
    """Remember verdicts by a part of the question, instead of its bytes."""

    def key_of(key: bytes | None) -> bytes | None:
        found = messages.parse(key, 0, len(key)).check if key is not None else None
        return key if found is None else repr(of(found)).encode()

    return both(
        around(Gate, "recall")(lambda sound, self, key, context: sound(self, key_of(key), context)),
        around(Gate, "judge")(
            lambda sound, self, check, context, key: sound(self, check, context, key_of(key))
        ),
    )


def _loosely(pattern: str, text: str) -> re.Match[str] | None:
    return re.fullmatch(pattern, text) or re.fullmatch(pattern, text.lower().replace(" ", ""))


def _port_trusted(sound: Any, self: Any, check: Any, context: Any, key: Any) -> Any:
    here = replace(check, src=ip_address("198.51.100.1")) if context.src_port == 1 else check
    return sound(self, here, context, key)


mutant("policy.derived-memory-without-address", "DERIVED-ARGUMENT-001", "remembers verdicts without address")(
    _remembered_by(lambda check: replace(check, src=None))
)
mutant("policy.derived-memory-without-count", "DERIVED-ARGUMENT-001", "remembers verdicts without the count")(
    _remembered_by(lambda check: replace(check, authorization_count=1))
)
mutant("policy.derived-count-unsigned", "DERIVED-ARGUMENT-001", "reads -1 as one Authorization header")(
    around(messages, "_check")(
        lambda sound, of: sound({k: (v[0], abs(v[1])) if type(v[1]) is int else v for k, v in of.items()})
    )
)
mutant("policy.derived-durations-loose", "DERIVED-KEY-004", "reads durations with blanks and capitals")(
    setting(config, "re", SimpleNamespace(fullmatch=_loosely))
)
mutant(
    "policy.derived-memory-joined", "DERIVED-ARGUMENT-001", "remembers host and path joined without a mark"
)(_remembered_by(lambda check: replace(check, host=None, path=f"{check.host}{check.path}")))
mutant("policy.derived-port-trusted", "DERIVED-ARGUMENT-002", "takes port 1 for another proxy's")(
    around(Gate, "judge")(_port_trusted)
)

# --- keys of rules (kind 3)


@mutant("policy.derived-one-group", "DERIVED-KEY-001", "holds a role in the first of its groups alone")
@around(groups, "members_of")
def _one_group(sound: Any, given: Any) -> Any:
    taken: set[str] = set()
    found = {}
    for name, roles in sound(given).items():
        found[name] = [role for role in roles if role not in taken]
        taken.update(roles)
    return found


@mutant("policy.derived-one-scope", "DERIVED-KEY-001", "holds only the last of several scopes of a name")
@around(Policy, "__init__")
def _one_scope(sound: Any, self: Any, whole: Any, *rest: Any, **more: Any) -> None:
    last = list({scope.name: scope for scope in whole.scopes}.values())
    sound(self, whole.model_copy(update={"scopes": last}), *rest, **more)


@mutant("policy.derived-joined-scopes", "DERIVED-KEY-001", "joins the methods of scopes that share a name")
@around(Policy, "__init__")
def _joined_scopes(sound: Any, self: Any, whole: Any, *rest: Any, **more: Any) -> None:
    joined: dict[str, list[str]] = {}
    for scope in whole.scopes:
        joined.setdefault(scope.name, []).extend(scope.methods)
    scopes = [scope.model_copy(update={"methods": joined[scope.name]}) for scope in whole.scopes]
    sound(self, whole.model_copy(update={"scopes": scopes}), *rest, **more)


@mutant("policy.derived-unknown-in-scopes", "DERIVED-KEY-004", "passes over unknown keys in a scope")
@Override
def _unknown_in_scopes() -> None:
    config.Scope.model_config = {**config.Scope.model_config, "extra": "ignore"}
    for model in (config.Scope, config.Config):
        model.model_rebuild(force=True)


def _overlooks(part: str) -> Override:
    """Overlook a fault of a policy, known by a part of its key and message."""
    return around(checks, "_check")(
        lambda sound, found: (one for one in sound(found) if part not in f"{one.key}: {one.message}")
    )


def _keeps(sign: str) -> Override:
    """Read the top-level keys that begin with this sign, which the agent passes over."""

    def parse(sound: Any, *text: Any) -> Any:
        data, *rest = sound(*text)
        return {key.removeprefix(sign): value for key, value in data.items()}, *rest

    return around(import_module("iamroles_agent.policy.load"), "_parse")(parse)


mutant("policy.derived-mapped-is-six", "DERIVED-KEY-001", "takes an IPv4-mapped address for an IPv6 address")(
    around(compiled, "plain_address")(lambda _sound, address: address)
)
mutant(
    "policy.derived-zero-is-any", "DERIVED-KEY-001", "takes a /0 network for all addresses of both families"
)(edit.regions(lambda rule: any(network.endswith("/0") for network in rule.sources), sources=None))
mutant("policy.derived-user-dropped", "DERIVED-KEY-001", "takes `user@host` for the host")(
    around(compiled, "canonical_host")(lambda sound, text: sound(text.rpartition("@")[2]))
)
mutant("policy.derived-greatest-deny", "DERIVED-KEY-001", "names the greatest id of several denies")(
    around(Index, "first")(
        lambda _sound, self, roles, query: max(
            self.matches(roles, query), key=lambda rule: rule.id, default=None
        )
    )
)
mutant("policy.derived-lower-case", "DERIVED-KEY-004", "takes a method in lower case, which no request has")(
    _overlooks("methods are case-sensitive")
)
mutant("policy.derived-two-names", "DERIVED-KEY-004", "takes one ARN under two names")(
    _overlooks("is already the role")
)
mutant("policy.derived-no-audience", "DERIVED-KEY-004", "takes an issuer of which any audience would do")(
    _overlooks(".audiences: ")
)
mutant("policy.derived-nested-groups", "DERIVED-KEY-004", "takes a group within a group")(
    _overlooks("groups hold no groups")
)
mutant("policy.derived-no-schema", "DERIVED-KEY-004", "refuses a policy that names its $schema")(_keeps("$"))
mutant("policy.derived-no-neighbour", "DERIVED-KEY-004", "refuses a policy with another vendor's table")(
    _keeps("x-")
)

# --- reloads (kind 4)


@mutant("policy.derived-issuers-stay", "DERIVED-RELOAD-001", "still trusts an issuer that a reload removed")
@around(Authenticator, "_configure")
def _issuers_stay(sound: Any, self: Any, whole: Any, rules: Any) -> None:
    former = {url: issuer.rules for url, issuer in self._issuers.items()}
    sound(self, whole, {**former, **rules})


@mutant("policy.derived-limits-stay", "DERIVED-RELOAD-001", "keeps the first policy's `max_token_bytes`")
@around(Authenticator, "_configure")
def _limits_stay(sound: Any, self: Any, whole: Any, rules: Any) -> None:
    former = getattr(self, "_max_bytes", None)
    sound(self, whole, rules)
    self._max_bytes = former or self._max_bytes


@mutant("policy.derived-verdicts-stay", "DERIVED-RELOAD-001", "keeps its memory if a reload changes no rule")
@around(Gate, "replace")
def _verdicts_stay(sound: Any, self: Any, policy: Any) -> None:
    former, young = self._state.policy, dict(self._state.young)
    same = (former.config.grants, former.config.denies) == (policy.config.grants, policy.config.denies)
    sound(self, policy)
    if same:
        self._state.young.update(young)


@mutant("policy.derived-keys-go", "DERIVED-RELOAD-002", "forgets the keys that it holds at every reload")
@after(Authenticator, "_configure")
def _keys_go(self: Any, _whole: Any, _rules: Any) -> None:
    for issuer in self._issuers.values():
        issuer.keys._keys = None


@mutant("policy.derived-trouble-stays", "DERIVED-KEY-003", "blames an STS for the one whose name it took")
@after(StsVerifier, "succeed")
def _trouble_stays(self: Any, former: Any) -> None:
    self._state |= {name: state for name, state in former._state.items() if name in self._state}
