"""Mutants of key sets: JWT-RSA, JWKS."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from types import SimpleNamespace
from typing import Any

from iamroles_agent.policy import checks
from iamroles_agent.reasons import Reason, Refusal
from iamroles_agent.tokens import keys
from iamroles_agent.tokens.keys import KeySetError
from iamroles_conformance.selftest.mutants.identity.header import _override
from iamroles_conformance.selftest.mutants.override import override
from iamroles_conformance.selftest.registry import mutant

_SOURCE = "jwks.KeySource"


# --- single keys ------------------------------------------------------------------------------------------


@mutant("identity.weak-rsa", kills=["JWT-RSA-001"], title="accepts RSA keys of 1024 bits")
def weak_rsa() -> None:
    _override("keys", "MIN_RSA_BITS", lambda sound: 512)


def _entries(edit: Any) -> None:
    """Change a set's entries before they are read."""

    def make(sound: Any) -> Any:
        def parse(document: Any, previous: Any = None) -> Any:
            return sound(document | {"keys": edit(document["keys"])}, previous)

        return staticmethod(parse)

    _override("keys.KeySet", "parse", make)


def _strict(broken: Any) -> None:
    def edit(entries: Any) -> Any:
        if any(broken(entry) for entry in entries):
            raise KeySetError("a key that cannot be used")
        return entries

    _entries(edit)


@mutant("identity.unknown-kty", kills=["JWKS-KEY-001"], title="refuses a set with an unknown kind of key")
def unknown_kty() -> None:
    _strict(lambda entry: entry.get("kty") not in ("RSA", "EC", "OKP"))


@mutant("identity.one-bad-key", kills=["JWKS-KEY-005"], title="refuses a set with one malformed key")
def one_bad_key() -> None:
    def broken(entry: Any) -> bool:
        try:
            keys.parse_key(entry)
        except ValueError:
            return True
        return False

    _strict(broken)


def _overlooks(*names: str) -> None:
    """Judge keys without these members."""

    def make(sound: Any) -> Any:
        return lambda jwk: sound({name: value for name, value in jwk.items() if name not in names})

    _override("keys", "_problem", make)


@mutant("identity.any-use", kills=["JWKS-KEY-002"], title="verifies with keys for encryption")
def any_use() -> None:
    _overlooks("use")


@mutant("identity.any-operation", kills=["JWKS-KEY-003"], title="ignores key_ops")
def any_operation() -> None:
    _overlooks("key_ops")


@mutant("identity.private-key", kills=["JWKS-KEY-004"], title="verifies with published private keys")
def private_key() -> None:
    _overlooks("d", "p", "q")


# --- whole sets -------------------------------------------------------------------------------------------


@mutant("identity.kid-twice", kills=["JWKS-SET-001"], title="takes the last of two keys of one kid")
def kid_twice() -> None:
    _entries(lambda entries: list({entry.get("kid"): entry for entry in entries}.values()))


@mutant("identity.mixed-set", kills=["JWKS-SET-002"], title="passes over symmetric keys and takes the others")
def mixed_set() -> None:
    _entries(lambda entries: [entry for entry in entries if entry.get("kty") != "oct"])


@mutant("identity.many-keys", kills=["JWKS-SET-003"], title="accepts any number of keys")
def many_keys() -> None:
    _override("keys", "MAX_KEYS", lambda sound: 1 << 20)


@mutant("identity.large-set", kills=["JWKS-SET-003"], title="accepts key sets of any size")
def large_set() -> None:
    _override("jwks", "MAX_DOCUMENT", lambda sound: 1 << 30)


@mutant(
    "identity.failure-drops-keys",
    kills=["JWKS-SET-004", "JWKS-OUTAGE-001"],
    title="drops its keys when they cannot be renewed",
)
def failure_drops_keys() -> None:
    def make(sound: Any) -> Any:
        def failed(self: Any, why: str) -> None:
            sound(self, why)
            self._expire()

        return failed

    _override(_SOURCE, "_failed", make)


@mutant("identity.failure-is-a-set", kills=["JWKS-SET-004"], title="takes any answer for an empty key set")
def failure_is_a_set() -> None:
    def make(sound: Any) -> Any:
        def parse(document: Any, previous: Any = None) -> Any:
            keys = document.get("keys")
            return sound({"keys": keys if isinstance(keys, list) else []}, previous)

        return staticmethod(parse)

    _override("keys.KeySet", "parse", make)


# --- fetching ---------------------------------------------------------------------------------------------


@mutant("identity.never-asks", kills=["JWKS-FETCH-001"], title="waits for the renewal where a kid is unknown")
def never_asks() -> None:
    def make(_sound: Any) -> Any:
        async def ask(_self: Any, _kid: str) -> None:
            return None

        return ask

    _override(_SOURCE, "_ask", make)


@mutant("identity.cooldown-after-fetch", kills=["JWKS-FETCH-001"], title="begins a cooldown at each fetch")
def cooldown_after_fetch() -> None:
    def make(sound: Any) -> Any:
        async def ask(self: Any, kid: str) -> None:
            if self._monotonic() - self._fetched_at >= 10 * self.settings.cooldown:
                await sound(self, kid)

        return ask

    _override(_SOURCE, "_ask", make)


@mutant("identity.herd", kills=["JWKS-FETCH-002"], title="fetches once for each token that waits")
def herd() -> None:
    def make(_sound: Any) -> Any:
        async def shared(self: Any, **_how: Any) -> None:
            await self._fetch()

        return shared

    _override(_SOURCE, "_shared", make)


@mutant("identity.storm", kills=["JWKS-STORM-001"], title="fetches for each unknown kid")
def storm() -> None:
    def make(_sound: Any) -> Any:
        async def ask(self: Any, _kid: str) -> None:
            await self._shared(asking=True)

        return ask

    _override(_SOURCE, "_ask", make)


@mutant(
    "identity.one-at-a-time",
    kills=["JWKS-STORM-002", "JWKS-ISOLATION-001"],
    title="verifies one token at a time",
)
def one_at_a_time() -> None:
    turn = asyncio.Lock()

    def make(sound: Any) -> Any:
        async def verify(self: Any, token: bytes, digest: bytes) -> Any:
            async with turn:
                return await sound(self, token, digest)

        return verify

    _override("authenticator.Authenticator", "_verify", make)


@mutant("identity.keys-for-ever", kills=["JWKS-OUTAGE-002"], title="serves its last keys for ever")
def keys_for_ever() -> None:
    def make(sound: Any) -> Any:
        def init(self: Any, issuer: Any, settings: Any, *args: Any, **kwargs: Any) -> None:
            sound(self, issuer, settings, *args, **kwargs)
            self.settings = SimpleNamespace(**{**settings.model_dump(), "max_stale": 1e6})

        return init

    _override(_SOURCE, "__init__", make)


@mutant("identity.no-keys-is-401", kills=["JWKS-OUTAGE-003"], title="blames the token where it has no keys")
def no_keys_is_401() -> None:
    def make(sound: Any) -> Any:
        async def obtain(self: Any, kid: Any, alg: str) -> Any:
            try:
                return await sound(self, kid, alg)
            except Refusal as refusal:
                raise Refusal(Reason.KEY_UNKNOWN, refusal.detail) from None

        return obtain

    _override(_SOURCE, "obtain", make)


@mutant("identity.any-discovery", kills=["JWKS-DISCOVERY-001"], title="uses any discovery document")
def any_discovery() -> None:
    def make(_sound: Any) -> Any:
        def discover(self: Any) -> Any:
            return self._get(self.issuer.issuer + "/.well-known/openid-configuration")["jwks_uri"]

        return discover

    _override(_SOURCE, "_discover", make)


@mutant("identity.plain-http", kills=["JWKS-DISCOVERY-002"], title="calls issuers of plain http")
def plain_http() -> None:
    override(checks, "_url", lambda sound: lambda key, text, insecure, **how: sound(key, text, True, **how))
    _override("jwks", "check_url", lambda sound: lambda url, *, insecure_http: sound(url, insecure_http=True))


@mutant("identity.follows-redirects", kills=["JWKS-REDIRECT-001"], title="follows redirects to other hosts")
def follows_redirects() -> None:
    def make(sound: Any) -> Any:
        def get(self: Any, url: str) -> Any:
            try:
                return sound(self, url)
            except Exception as error:
                if "status 302" not in str(error):
                    raise
                with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - a mutant's purpose
                    return json.load(answer)

        return get

    _override(_SOURCE, "_get", make)
