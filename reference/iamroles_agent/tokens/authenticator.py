"""From the `Authorization` header to a verified identity.

The order of judgement is the contract's (SPEC.md section 4): form, issuer, algorithm, type, key, signature,
claims. Signatures are checked once: `recall` answers from the cache without parsing anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Protocol

from iamroles_agent.base.config import Config, Issuer, KeySettings, Sts
from iamroles_agent.base.identity import Identity
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens.cache import IdentityCache
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_agent.tokens.grounds import of_key
from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.jws import Jws, parse
from iamroles_agent.tokens.keyring import Keyring, source_of
from iamroles_agent.tokens.keys import ALGORITHMS, Key
from iamroles_agent.tokens.sts import PREFIX, StsVerifier
from iamroles_agent.tokens.transport import Transport

MAX_IDENTITIES = 100_000
MAX_IDENTITY_BYTES = 128 << 20


class Prover(Protocol):
    """Who asks STS."""

    counts: dict[str, int]
    """What became of the calls, for metrics."""

    async def verify(self, token: bytes, digest: bytes, source: str = "") -> tuple[Identity, bool]:
        """As `sts.StsVerifier.verify`."""

    async def close(self) -> None:
        """Let go of what is under way."""


class Outside(Protocol):
    """Who goes out for an authenticator: this process itself, or the fetcher on behalf of a worker."""

    def keyring(
        self,
        issuer: Issuer,
        settings: KeySettings,
        *,
        on_loss: Callable[[], None],
        monotonic: Callable[[], float],
    ) -> Keyring:
        """The keys of an issuer."""

    def prover(self, endpoints: list[Sts], former: Prover | None) -> Prover:
        """For these STS endpoints, in place of the former one."""

    def close(self) -> None:
        """Let go of connections."""


class _Itself:
    """This process fetches keys and calls STS itself: the command line, and tests."""

    def __init__(self, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._clock, self._monotonic = clock, monotonic
        self._transport = Transport()

    def keyring(
        self,
        issuer: Issuer,
        settings: KeySettings,
        *,
        on_loss: Callable[[], None],
        monotonic: Callable[[], float],
    ) -> KeySource:
        return KeySource(issuer, settings, self._transport, on_loss=on_loss, monotonic=monotonic)

    def prover(self, endpoints: list[Sts], former: Prover | None) -> StsVerifier:
        prover = StsVerifier(endpoints, self._transport, clock=self._clock, monotonic=self._monotonic)
        if isinstance(former, StsVerifier):
            prover.succeed(former)
        return prover

    def close(self) -> None:
        self._transport.close()


class _Issuer:
    """Rules and keys of one issuer, side by side."""

    def __init__(self, rules: ClaimRules, keys: Keyring) -> None:
        self.rules, self.keys = rules, keys


Rules = dict[str, ClaimRules]
"""By `iss`."""


def rules_of(config: Config) -> Rules:
    """How to judge the tokens of each issuer.

    Raises:
        ConfigError: an issuer that must not be (an algorithm that is no signature, …).
    """
    return {issuer.issuer: ClaimRules(issuer, config.limits) for issuer in config.issuers}


class Authenticator:
    """Verifies credentials of the configured issuers and STS endpoints.

    Args:
        config: the whole file.
        outside: who fetches keys and calls STS; this process if absent.
        clock: epoch seconds.
        monotonic: seconds on a clock that never jumps; ages of key sets.
        max_identities: entries of the identity cache.
        max_identity_bytes: bytes of the identity cache, about.

    Raises:
        ConfigError: an issuer that must not be (an algorithm that is no signature, …).
    """

    def __init__(
        self,
        config: Config,
        outside: Outside | None = None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        max_identities: int = MAX_IDENTITIES,
        max_identity_bytes: int = MAX_IDENTITY_BYTES,
    ) -> None:
        self.generation = 0
        """Grows when a key is lost or changed, when keys come where none were known, and when the
        configuration changes."""
        self.on_change: list[Callable[[], None]] = []
        """Called on the event loop after `generation` grew."""
        self._clock, self._monotonic = clock, monotonic
        self._outside: Outside = outside or _Itself(clock, monotonic)
        self._cache = IdentityCache(clock, max_identities, max_identity_bytes)
        self._started = False
        self._epoch = 0
        self._issuers: dict[str, _Issuer] = {}
        self._former: list[Keyring] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._sts: Prover | None = None
        self._configure(config, rules_of(config))

    def _configure(self, config: Config, rules: Rules) -> None:
        held = {source_of(issuer.keys.issuer): issuer.keys for issuer in self._issuers.values()}
        issuers = {}
        for url, claim_rules in rules.items():
            keys = held.pop(source_of(claim_rules.issuer), None)
            if keys is None:
                keys = self._outside.keyring(
                    claim_rules.issuer, config.keys, on_loss=self._changed, monotonic=self._monotonic
                )
                if self._started:
                    keys.start()
            else:
                keys.configure(claim_rules.issuer, config.keys)
            issuers[url] = _Issuer(claim_rules, keys)
        self._issuers = issuers
        self._former += held.values()
        self._max_bytes = config.limits.max_token_bytes
        self._sts = self._outside.prover(config.sts, self._sts)
        self._epoch += 1

    @property
    def sources(self) -> dict[str, Keyring]:
        """Key sources by the issuer's `name`: ages, failures and kids for metrics and the audit."""
        return {issuer.rules.name: issuer.keys for issuer in self._issuers.values()}

    @property
    def sts(self) -> Prover:
        """The STS side: its counters are for metrics."""
        assert self._sts is not None  # noqa: S101 - configured once at least
        return self._sts

    @property
    def cached(self) -> tuple[int, int]:
        """Identities in the cache, and their bytes by estimate."""
        return len(self._cache), self._cache.bytes

    async def start(self) -> None:
        """Begin to fetch keys; waits for none, so a dead issuer delays nobody."""
        self._started = True
        for issuer in self._issuers.values():
            issuer.keys.start()

    async def close(self) -> None:
        """Stop fetching; what waits is refused."""
        self._started = False
        await self.sts.close()
        for issuer in self._issuers.values():
            await issuer.keys.close()
        await self._close_former()
        self._outside.close()

    async def reconfigure(self, config: Config) -> None:
        """Put a new configuration in force: cached identities are judged anew, unchanged issuers keep keys.

        Raises:
            ConfigError: the new configuration is bad; the old one stays in force.
        """
        self.adopt(config, rules_of(config))
        await self._close_former()

    def adopt(self, config: Config, rules: Rules) -> None:
        """Put a new configuration in force at once; `rules` are what `rules_of` made of it."""
        self._configure(config, rules)
        self._cache.clear()
        self._changed()
        closing = asyncio.get_running_loop().create_task(self._close_former())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close_former(self) -> None:
        former, self._former = self._former, []
        for keys in former:
            await keys.close()

    def _changed(self) -> None:
        self.generation += 1
        for call in self.on_change:
            call()

    def recall(self, authorization: str) -> Identity | None:
        """The identity of a credential that was verified before and still holds; never waits.

        Args:
            authorization: the whole header value.

        Returns:
            None for anything unknown, expired, or whose key is gone. A verdict may be cached only for a
            credential that this method knows: one that may be used once is never known.
        """
        token = bearer(authorization)
        return self._cache.get(hashlib.sha256(token).digest()) if token else None

    async def authenticate(self, authorization: str, source: str = "") -> Identity:
        """Verify a credential.

        Args:
            authorization: the whole header value; that it is the only one is the caller's to check.
            source: whence it comes, as `admission.place_of` names it.

        Raises:
            Refusal: with the first reason in the order of SPEC.md section 4.
        """
        token = bearer(authorization)
        if token is None:
            raise Refusal(Reason.NO_CREDENTIALS, "no Bearer credential")
        digest = hashlib.sha256(token).digest()
        if identity := self._cache.get(digest):
            return identity
        epoch = self._epoch
        try:
            identity, key, reusable = await self._verify(token, digest, source)
        except Refusal:
            if epoch == self._epoch:
                raise
        else:
            if epoch == self._epoch:
                if reusable:
                    self._cache.put(digest, identity, key)
                return identity
        # A new configuration came while this one waited for keys or STS: it alone may judge.
        return await self.authenticate(authorization, source)

    async def _verify(self, token: bytes, digest: bytes, source: str) -> tuple[Identity, Key | None, bool]:
        """The identity, the key that proved it if it is ours, and whether the credential may come again."""
        if token.startswith(PREFIX):
            identity, reusable = await self.sts.verify(token, digest, source)
            return identity, None, reusable
        jws = parse(token, self._max_bytes)
        issuer = self._issuer_of(jws)
        alg = check_header(jws, issuer.rules)
        kid = jws.header.kid
        key = issuer.keys.lookup(kid, alg) or await issuer.keys.obtain(kid, alg)
        if not key.verifier(alg)(jws.signature, jws.signing_input):
            raise Refusal(Reason.SIGNATURE_INVALID, f"the {alg} signature does not verify")
        name = "sha256:" + digest[:8].hex()
        return issuer.rules.identity(jws.payload, jws.header, self._clock(), name, of_key(key)), key, True

    def _issuer_of(self, jws: Jws) -> _Issuer:
        iss = jws.payload.get("iss")
        issuer = self._issuers.get(iss) if isinstance(iss, str) else None
        if issuer is None:
            raise Refusal(Reason.ISSUER_UNTRUSTED, "iss is no configured issuer, to the letter")
        return issuer


def check_header(jws: Jws, rules: ClaimRules) -> str:
    """The algorithm, if it and the type are the issuer's (JWT-ALG-003, JWT-TYP-001).

    Raises:
        Refusal: `algorithm_not_allowed`, `type_not_allowed`.
    """
    alg = jws.header.alg
    if alg not in rules.algorithms or alg not in ALGORITHMS:
        raise Refusal(Reason.ALGORITHM_NOT_ALLOWED, "alg is not one of this issuer's")
    if jws.header.typ not in rules.types:
        raise Refusal(Reason.TYPE_NOT_ALLOWED, "typ is not one of this issuer's")
    return alg


def bearer(authorization: str) -> bytes | None:
    """The credential of a Bearer header (RFC 6750 section 2.1, RFC 9110 section 11.4), as bytes.

    Returns:
        None for another scheme or none. A credential with bytes beyond ASCII keeps them, so that its form is
        judged, and refused, like any other.
    """
    token = authorization[7:]
    if authorization[:7] == "Bearer " and token.isascii() and " " not in token:
        return token.encode()
    scheme, _, rest = authorization.strip(" \t").partition(" ")
    if scheme.lower() != "bearer":
        return None
    return rest.lstrip(" ").encode("utf-8", "replace")
