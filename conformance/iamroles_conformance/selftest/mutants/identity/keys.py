"""Mutants of key sets: JWT-RSA, JWKS."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from types import SimpleNamespace
from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.policy import checks
from iamroles_agent.tokens import jwks, keys
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.keyring import Keyring
from iamroles_agent.tokens.keys import KeySet, KeySetError
from iamroles_conformance.selftest.mutants.override import around, both, setting
from iamroles_conformance.selftest.registry import Apply, mutant

# --- single keys ------------------------------------------------------------------------------------------


mutant(
    "identity.weak-rsa",
    kills=["JWT-RSA-001"],
    title="accepts RSA keys of 1024 bits",
    apply=setting(keys, "MIN_RSA_BITS", 512),
)


def _entries(edit: Any) -> Apply:
    """Change a set's entries before they are read."""

    @around(KeySet, "parse")
    def parse(sound: Any, document: Any, previous: Any = None) -> Any:
        entries = document.get("keys") if isinstance(document, dict) else None
        return sound(document | {"keys": edit(entries)} if isinstance(entries, list) else document, previous)

    return parse


def _strict(broken: Any) -> Apply:
    def edit(entries: Any) -> Any:
        if any(broken(entry) for entry in entries):
            raise KeySetError("a key that cannot be used")
        return entries

    return _entries(edit)


mutant(
    "identity.unknown-kty",
    kills=["JWKS-KEY-001"],
    title="refuses a set with an unknown kind of key",
    apply=_strict(lambda entry: entry.get("kty") not in ("RSA", "EC", "OKP")),
)


@mutant("identity.one-bad-key", kills=["JWKS-KEY-005"], title="refuses a set with one malformed key")
@_strict
def one_bad_key(entry: Any) -> bool:
    try:
        keys.parse_key(entry)
    except ValueError:
        return True
    return False


def _overlooks(*names: str) -> Apply:
    return around(keys, "_problem")(
        lambda sound, jwk: sound({name: value for name, value in jwk.items() if name not in names})
    )


mutant(
    "identity.any-use",
    kills=["JWKS-KEY-002"],
    title="verifies with keys for encryption",
    apply=_overlooks("use"),
)


mutant("identity.any-operation", kills=["JWKS-KEY-003"], title="ignores key_ops", apply=_overlooks("key_ops"))


mutant(
    "identity.private-key",
    kills=["JWKS-KEY-004"],
    title="verifies with published private keys",
    apply=_overlooks("d", "p", "q"),
)


# --- whole sets -------------------------------------------------------------------------------------------


mutant(
    "identity.kid-twice",
    kills=["JWKS-SET-001"],
    title="takes the last of two keys of one kid",
    apply=_entries(
        lambda entries: list({(one.get("kid", id(one)), one.get("kty")): one for one in entries}.values())
    ),
)


mutant(
    "identity.mixed-set",
    kills=["JWKS-SET-002"],
    title="passes over symmetric keys and takes the others",
    apply=_entries(lambda entries: [entry for entry in entries if entry.get("kty") != "oct"]),
)


mutant(
    "identity.many-keys",
    kills=["JWKS-SET-003"],
    title="accepts any number of keys",
    apply=setting(keys, "MAX_KEYS", 1 << 20),
)


mutant(
    "identity.large-set",
    kills=["JWKS-SET-003"],
    title="accepts key sets of any size",
    apply=setting(jwks, "MAX_DOCUMENT", 1 << 30),
)


@mutant(
    "identity.failure-drops-keys",
    kills=["JWKS-SET-004", "JWKS-OUTAGE-001"],
    title="drops its keys when they cannot be renewed",
)
@around(KeySource, "_failed")
def failure_drops_keys(sound: Any, self: Any, why: str) -> None:
    sound(self, why)
    self._on_taken({"keys": []}, self._monotonic())


@mutant("identity.failure-is-a-set", kills=["JWKS-SET-004"], title="takes any answer for an empty key set")
@around(KeySet, "parse")
def failure_is_a_set(sound: Any, document: Any, previous: Any = None) -> Any:
    keys = document.get("keys")
    return sound({"keys": keys if isinstance(keys, list) else []}, previous)


# --- fetching ---------------------------------------------------------------------------------------------


@mutant("identity.never-asks", kills=["JWKS-FETCH-001"], title="waits for the renewal where a kid is unknown")
@around(KeySource, "_ask")
async def never_asks(_sound: Any, _self: Any, _kid: str) -> None:
    return None


@mutant("identity.cooldown-after-fetch", kills=["JWKS-FETCH-001"], title="begins a cooldown at each fetch")
@around(KeySource, "_ask")
async def cooldown_after_fetch(sound: Any, self: Any, kid: str) -> None:
    if self._monotonic() - self._fetched_at >= 10 * self.settings.cooldown:
        await sound(self, kid)


@mutant("identity.herd", kills=["JWKS-FETCH-002"], title="fetches once for each token that waits")
@around(KeySource, "_shared")
async def herd(_sound: Any, self: Any, **_how: Any) -> None:
    await self._fetch()


@mutant("identity.storm", kills=["JWKS-STORM-001"], title="fetches for each unknown kid")
@around(KeySource, "_ask")
async def storm(_sound: Any, self: Any, _kid: str) -> None:
    await self._shared(asking=True)


_turn = asyncio.Lock()


@mutant(
    "identity.one-at-a-time",
    kills=["JWKS-STORM-002", "JWKS-ISOLATION-001"],
    title="verifies one token at a time",
)
@around(Authenticator, "_verify")
async def one_at_a_time(sound: Any, self: Any, *rest: Any) -> Any:
    async with _turn:
        return await sound(self, *rest)


@mutant("identity.keys-for-ever", kills=["JWKS-OUTAGE-002"], title="serves its last keys for ever")
@around(Keyring, "__init__")
def keys_for_ever(sound: Any, self: Any, issuer: Any, settings: Any, **kwargs: Any) -> None:
    sound(self, issuer, settings, **kwargs)
    self.settings = SimpleNamespace(**{**settings.model_dump(), "max_stale": 1e6})


@mutant("identity.no-keys-is-401", kills=["JWKS-OUTAGE-003"], title="blames the token where it has no keys")
@around(Keyring, "obtain")
async def no_keys_is_401(sound: Any, self: Any, kid: Any, alg: str) -> Any:
    try:
        return await sound(self, kid, alg)
    except Refusal as refusal:
        raise Refusal(Reason.KEY_UNKNOWN, refusal.detail) from None


@mutant("identity.any-discovery", kills=["JWKS-DISCOVERY-001"], title="uses any discovery document")
@around(KeySource, "_discover")
def any_discovery(_sound: Any, self: Any) -> Any:
    return self._get(self.issuer.issuer + "/.well-known/openid-configuration")["jwks_uri"]


mutant(
    "identity.plain-http",
    kills=["JWKS-DISCOVERY-002"],
    title="calls issuers of plain http",
    apply=both(
        around(checks, "_url")(lambda sound, key, text, _insecure, **how: sound(key, text, True, **how)),
        around(jwks, "check_url")(lambda sound, url, *, insecure_http: sound(url, insecure_http=True)),
    ),
)


@mutant("identity.follows-redirects", kills=["JWKS-REDIRECT-001"], title="follows redirects to other hosts")
@around(KeySource, "_get")
def follows_redirects(sound: Any, self: Any, url: str) -> Any:
    try:
        return sound(self, url)
    except Exception as error:
        if "status 302" not in str(error):
            raise
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - a mutant's purpose
            return json.load(answer)
