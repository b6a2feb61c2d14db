"""From the `Authorization` header to a verified identity.

The order of judgement is the contract's (SPEC.md section 4): form, issuer, algorithm, type, key, signature,
claims. Signatures are checked once: `recall` answers from the cache without parsing anything.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from iamroles_agent.config import Config
from iamroles_agent.identity import Identity
from iamroles_agent.reasons import Reason, Refusal
from iamroles_agent.tokens.cache import IdentityCache
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.jws import Jws, parse
from iamroles_agent.tokens.keys import ALGORITHMS, Key
from iamroles_agent.tokens.sts import PREFIX, StsVerifier
from iamroles_agent.tokens.transport import Transport

MAX_IDENTITIES = 100_000
MAX_IDENTITY_BYTES = 128 << 20


class _Issuer:
    """Rules and keys of one issuer, side by side."""

    def __init__(self, rules: ClaimRules, keys: KeySource) -> None:
        self.rules, self.keys = rules, keys


class Authenticator:
    """Verifies credentials of the configured issuers and STS endpoints.

    Args:
        config: the whole file.
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
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        max_identities: int = MAX_IDENTITIES,
        max_identity_bytes: int = MAX_IDENTITY_BYTES,
    ) -> None:
        self.generation = 0
        """Grows when a key is lost or changed, and when the configuration changes."""
        self.on_change: list[Callable[[], None]] = []
        """Called on the event loop after `generation` grew."""
        self._clock, self._monotonic = clock, monotonic
        self._transport = Transport()
        self._cache = IdentityCache(clock, max_identities, max_identity_bytes)
        self._started = False
        self._epoch = 0
        self._issuers: dict[str, _Issuer] = {}
        self._configure(config)

    def _configure(self, config: Config) -> None:
        # All rules first: a ConfigError must leave what is in force untouched.
        rules = {issuer.issuer: ClaimRules(issuer, config.limits) for issuer in config.issuers}
        issuers = {}
        for url, claim_rules in rules.items():
            held = self._issuers.get(url)
            same = held is not None and (
                held.keys.settings == config.keys
                and held.keys.issuer.name == claim_rules.name
                and held.keys.issuer.jwks_uri == claim_rules.issuer.jwks_uri
                and held.keys.issuer.insecure_http == claim_rules.issuer.insecure_http
            )
            keys = (
                held.keys
                if same and held is not None
                else KeySource(
                    claim_rules.issuer,
                    config.keys,
                    self._transport,
                    on_loss=self._changed,
                    monotonic=self._monotonic,
                )
            )
            issuers[url] = _Issuer(claim_rules, keys)
        self._issuers = issuers
        self._max_bytes = config.limits.max_token_bytes
        former = getattr(self, "_sts", None)
        self._sts = StsVerifier(config.sts, self._transport, clock=self._clock, monotonic=self._monotonic)
        if former is not None:
            self._sts.succeed(former)
        self._epoch += 1

    @property
    def sources(self) -> dict[str, KeySource]:
        """Key sources by the issuer's `name`: ages, failures and kids for metrics and the audit."""
        return {issuer.rules.name: issuer.keys for issuer in self._issuers.values()}

    @property
    def sts(self) -> StsVerifier:
        """The STS side: its counters are for metrics."""
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
        await self._sts.close()
        for issuer in self._issuers.values():
            await issuer.keys.close()
        self._transport.close()

    async def reconfigure(self, config: Config) -> None:
        """Put a new configuration in force: cached identities are judged anew, unchanged issuers keep keys.

        Raises:
            ConfigError: the new configuration is bad; the old one stays in force.
        """
        old = self._issuers
        self._configure(config)
        self._cache.clear()
        self._changed()
        kept = {id(issuer.keys) for issuer in self._issuers.values()}
        if self._started:
            held = {id(issuer.keys) for issuer in old.values()}
            for issuer in self._issuers.values():
                if id(issuer.keys) not in held:
                    issuer.keys.start()
        for issuer in old.values():
            if id(issuer.keys) not in kept:
                await issuer.keys.close()

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
            identity, reusable = await self._sts.verify(token, digest, source)
            return identity, None, reusable
        jws = parse(token, self._max_bytes)
        issuer = self._issuer_of(jws)
        alg = check_header(jws, issuer.rules)
        kid = jws.header.kid
        key = issuer.keys.lookup(kid, alg) or await issuer.keys.obtain(kid, alg)
        if not key.verifier(alg)(jws.signature, jws.signing_input):
            raise Refusal(Reason.SIGNATURE_INVALID, f"the {alg} signature does not verify")
        name = "sha256:" + digest[:8].hex()
        return issuer.rules.identity(jws.payload, jws.header, self._clock(), name), key, True

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
