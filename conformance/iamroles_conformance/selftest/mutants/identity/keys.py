"""Mutants of key sets: JWT-RSA, JWKS."""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.request
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.policy import checks
from iamroles_agent.processes.remote import RemoteKeys
from iamroles_agent.tokens import jwks, keys, transport
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.keyring import Keyring
from iamroles_agent.tokens.keys import KeySet, KeySetError
from iamroles_agent.tokens.transport import Transport
from iamroles_conformance.selftest.mutants.gate import asks_nothing
from iamroles_conformance.selftest.mutants.override import after, around, before, fail, rescue, setting
from iamroles_conformance.selftest.registry import Override, mutant

# --- single keys and whole sets


def _entries(edit: Any) -> Override:
    """Change a set's entries before they are read."""

    @around(KeySet, "parse")
    def parse(sound: Any, document: Any, previous: Any = None) -> Any:
        entries = document.get("keys") if isinstance(document, dict) else None
        return sound(document | {"keys": edit(entries)} if isinstance(entries, list) else document, previous)

    return parse


def _strict(broken: Any) -> Override:
    """Refuse a set if one of its entries is broken."""
    return _entries(
        lambda entries: fail(KeySetError("a broken key")) if any(map(broken, entries)) else entries
    )


def _malformed(entry: Any) -> bool:
    try:
        keys.parse_key(entry)
    except ValueError:
        return True
    return False


def _overlooks(*names: str) -> Override:
    return around(keys, "problem_of")(
        lambda sound, jwk: sound({name: value for name, value in jwk.items() if name not in names})
    )


@mutant("identity.failure-is-a-set", "JWKS-SET-004", "takes any answer for an empty key set")
@around(KeySet, "parse")
def failure_is_a_set(sound: Any, document: Any, previous: Any = None) -> Any:
    keys = document.get("keys")
    return sound({"keys": keys if isinstance(keys, list) else []}, previous)


mutant("identity.weak-rsa", "JWT-RSA-001", "accepts RSA keys of 1024 bits")(
    setting(keys, "MIN_RSA_BITS", 512)
)
mutant("identity.unknown-kty", "JWKS-KEY-001", "refuses a set with an unknown kind of key")(
    _strict(lambda entry: entry.get("kty") not in ("RSA", "EC", "OKP"))
)
mutant("identity.one-bad-key", "JWKS-KEY-005", "refuses a set with one malformed key")(_strict(_malformed))
mutant("identity.any-use", "JWKS-KEY-002", "verifies with keys for encryption")(_overlooks("use"))
mutant("identity.any-operation", "JWKS-KEY-003", "ignores key_ops")(_overlooks("key_ops"))
mutant("identity.private-key", "JWKS-KEY-004", "verifies with published private keys")(
    _overlooks("d", "p", "q")
)
mutant("identity.kid-twice", "JWKS-SET-001", "takes the last of two keys with the same kid")(
    _entries(
        lambda entries: list({(one.get("kid", id(one)), one.get("kty")): one for one in entries}.values())
    )
)
mutant("identity.kid-once", "DERIVED-KEYS-001", "refuses a set in which keys of two types share a kid")(
    _entries(lambda found: found * (1 + (len({one.get("kid", id(one)) for one in found}) < len(found))))
)
mutant("identity.mixed-set", "JWKS-SET-002", "passes over symmetric keys and takes the others")(
    _entries(lambda entries: [entry for entry in entries if entry.get("kty") != "oct"])
)
mutant("identity.many-keys", "JWKS-SET-003", "accepts any number of keys")(setting(keys, "MAX_KEYS", 1 << 20))
mutant("identity.large-set", "JWKS-SET-003", "accepts key sets of any size")(
    setting(jwks, "MAX_DOCUMENT", 1 << 30)
)
mutant("identity.failure-drops-keys", "JWKS-SET-004 JWKS-OUTAGE-001", "drops keys that cannot be renewed")(
    after(KeySource, "_failed")(lambda self, _why: self._on_taken({"keys": []}, self._monotonic()))
)
mutant("identity.restored-is-new", "ROTATE-KEY-004", "takes a restored key set for a new one")(
    before(KeySource, "start")(lambda self: setattr(self, "_fetched_at", self._monotonic()))
)

# --- fetching


@mutant("identity.cooldown-after-fetch", "JWKS-FETCH-001", "begins a cooldown at each fetch")
@around(KeySource, "_ask")
async def cooldown_after_fetch(sound: Any, self: Any, kid: str) -> None:
    if self._monotonic() - self._fetched_at >= 10 * self.settings.cooldown:
        await sound(self, kid)


_one = asyncio.Lock()


@mutant("identity.one-at-a-time", "JWKS-STORM-002 JWKS-ISOLATION-001", "verifies one token at a time")
@around(Authenticator, "_verify")
async def one_at_a_time(sound: Any, self: Any, *rest: Any) -> Any:
    async with _one:
        return await sound(self, *rest)


@mutant("identity.keys-for-ever", "JWKS-OUTAGE-002", "serves its last keys for ever")
@after(Keyring, "__init__")
def keys_for_ever(self: Any, _issuer: Any, settings: Any, **_how: Any) -> None:
    self.settings = SimpleNamespace(**{**settings.model_dump(), "max_stale": 1e6})


@mutant("identity.no-keys-is-401", "JWKS-OUTAGE-003", "blames the token where it has no keys")
@rescue(Keyring, "obtain", Refusal)
def no_keys_is_401(refusal: Any, *_asked: Any) -> None:
    raise Refusal(Reason.KEY_UNKNOWN, refusal.detail)


@mutant("identity.follows-redirects", "JWKS-REDIRECT-001 JWKS-TLS-001", "follows redirects, also to http")
@rescue(KeySource, "_get", Exception)
def follows_redirects(error: Any, _self: Any, url: str) -> Any:
    if "status 302" not in str(error):
        return None
    with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - a mutant's purpose
        return json.load(answer)


def _trusts(**settings: Any) -> Override:
    """Change what a TLS client asks of a server."""

    @around(transport, "_trusting")
    def trusting(sound: Any, *changed: Any) -> Any:
        context = sound(*changed)
        for name, value in settings.items():
            setattr(context, name, value)
        return context

    return trusting


_BOTH = "JWKS-TLS-001 STS-TLS-001"
mutant("identity.tls-any-server", _BOTH, "verifies no certificate")(
    _trusts(check_hostname=False, verify_mode=ssl.CERT_NONE)
)
mutant("identity.tls-any-name", _BOTH, "does not compare the name in a certificate")(
    _trusts(check_hostname=False)
)
mutant("identity.tls-any-time", _BOTH, "accepts certificates that have expired")(
    _trusts(verify_flags=ssl.VERIFY_X509_TRUSTED_FIRST | 0x200000)  # X509_V_FLAG_NO_CHECK_TIME
)


@mutant("identity.tls-or-plain", _BOTH, "asks without TLS if a handshake fails")
@around(Transport, "_exchange")
async def tls_or_plain(sound: Any, self: Any, scheme: str, *asked: Any) -> Any:
    try:
        return await sound(self, scheme, *asked)
    except OSError:
        return await sound(self, "http", *asked)


mutant("identity.never-asks", "JWKS-FETCH-001", "waits for the renewal where a kid is unknown")(asks_nothing)
mutant("identity.herd", "JWKS-FETCH-002", "fetches once for each token that waits")(
    around(KeySource, "_shared")(lambda _sound, self, **_how: self._fetch()),
    around(RemoteKeys, "want")(lambda _sound, self, kid: self._ask(kid)),
)
mutant("identity.storm", "JWKS-STORM-001", "fetches for each unknown kid")(
    around(KeySource, "_ask")(lambda _sound, self, _kid: self._shared(asking=True))
)


async def any_discovered(self: Any) -> Any:
    """Return the `jwks_uri` of a discovery document of any issuer."""
    document = await self._get(f"{self.issuer.issuer}/.well-known/openid-configuration")
    return document["jwks_uri"]


mutant("identity.any-discovery", "JWKS-DISCOVERY-001", "uses any discovery document")(
    around(KeySource, "_discover")(lambda _sound, self: any_discovered(self))
)


mutant("identity.plain-http", "JWKS-DISCOVERY-002 JWKS-TLS-001", "calls issuers of plain http")(
    around(checks, "_url")(lambda sound, key, text, _insecure, **how: sound(key, text, True, **how)),
    around(jwks, "check_url")(lambda sound, url, *, insecure_http: sound(url, insecure_http=True)),
)


# --- every answer of an issuer (checks/derived/key_sets.py)


@mutant("identity.derived-empty-set", "DERIVED-KEYS-001", "takes a set without keys for a failure")
@around(KeySet, "parse")
def _empty_set(sound: Any, document: Any, previous: Any = None) -> Any:
    return sound(document, previous) if document.get("keys") else fail(KeySetError("no keys"))


@mutant("identity.derived-any-status", "DERIVED-KEYS-001", "takes a key set of an answer with any status")
@around(Transport, "get")
async def _any_status(sound: Any, self: Any, url: Any, **how: Any) -> Any:
    return replace(await sound(self, url, **how), status=200)


@mutant("identity.derived-moved-issuer", "DERIVED-KEYS-001", "checks the issuer of its first discovery alone")
@around(KeySource, "_discover")
async def _moved_issuer(sound: Any, self: Any) -> Any:
    return await (sound(self) if self._jwks_uri is None else any_discovered(self))


mutant("identity.derived-discovered-once", "DERIVED-KEYS-001", "asks an issuer only once for its jwks_uri")(
    before(KeySource, "_download")(lambda self: setattr(self, "_discovered_at", self._monotonic()))
)
mutant("identity.derived-unnamed-lives", "DERIVED-KEYS-001", "remembers by withdrawn keys without a kid")(
    around(Keyring, "_kill")(lambda sound, self, keys: sound(self, [key for key in keys if key.kid]))
)
