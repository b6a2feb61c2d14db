"""Verify the `Authorization` header and return an identity.

The order of the checks is the contract's (SPEC.md section 4): form, issuer, algorithm, type, key, signature,
claims. A signature is checked once: `recall` answers from the cache without parsing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from iamroles_agent.base.clocks import Clock
from iamroles_agent.base.config import Config, Issuer, KeySettings, Sts
from iamroles_agent.base.identity import Identity
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens.cache import IdentityCache
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_agent.tokens.grounds import key_ground
from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.jws import Jws, parse
from iamroles_agent.tokens.keyring import Keyring, source_of
from iamroles_agent.tokens.keys import ALGORITHMS, Key
from iamroles_agent.tokens.proof import by_dpop
from iamroles_agent.tokens.sts import PREFIX, StsVerifier
from iamroles_agent.tokens.transport import Transport

MAX_IDENTITIES = 100_000
MAX_IDENTITY_BYTES = 128 << 20
_STEP = 1.0
"""Seconds by which the clock may go back without being set, as NTP slews it."""


class Prover(Protocol):
    """Asks STS about credentials."""

    counts: dict[str, int]
    """Calls by outcome, for metrics."""

    async def verify(self, token: bytes, digest: bytes, source: str = "") -> tuple[Identity, bool]:
        """Verify a credential as `sts.StsVerifier.verify` does."""

    async def close(self) -> None:
        """End the calls in flight."""


Signal = Callable[[], None]


class Outside(Protocol):
    """Fetches keys and calls STS: this process itself, or the fetcher on behalf of a worker."""

    def keyring(self, issuer: Issuer, keys: KeySettings, on_loss: Signal, monotonic: Clock) -> Keyring:
        """Return the keys of an issuer."""

    def prover(self, endpoints: list[Sts], former: Prover | None) -> Prover:
        """Return the prover for these STS endpoints, in place of the former one."""

    def close(self) -> None:
        """Close connections."""


class _Itself:
    """Lets this process itself fetch keys and call STS: for the command line and tests."""

    def __init__(self, clock: Clock, monotonic: Clock) -> None:
        self._clock, self._monotonic = clock, monotonic
        self._transport = Transport()

    def keyring(self, issuer: Issuer, keys: KeySettings, on_loss: Signal, monotonic: Clock) -> KeySource:
        return KeySource(issuer, keys, self._transport, on_loss=on_loss, monotonic=monotonic)

    def prover(self, endpoints: list[Sts], former: Prover | None) -> StsVerifier:
        prover = StsVerifier(endpoints, self._transport, clock=self._clock, monotonic=self._monotonic)
        if isinstance(former, StsVerifier):
            prover.succeed(former)
        return prover

    def close(self) -> None:
        self._transport.close()


@dataclass(slots=True)
class Once:
    """The proof that a question got by a credential that counts once, in case it is judged again."""

    identity: Identity | None = None
    entries: list[Sts] | None = None
    """The STS endpoints by which it was proved."""


class _Issuer(NamedTuple):
    """Rules and keys of an issuer."""

    rules: ClaimRules
    keys: Keyring


Rules = dict[str, ClaimRules]
"""By `iss`."""


def rules_of(config: Config) -> Rules:
    """Compile the rules for the tokens of each issuer."""
    return {issuer.issuer: ClaimRules(issuer, config.limits) for issuer in config.issuers}


class Authenticator:
    """Verifies credentials of the configured issuers and STS endpoints.

    Args:
        config: the whole file.
        outside: fetches keys and calls STS; this process itself if absent.
        clock: epoch seconds.
        monotonic: for the ages of key sets.
        max_identities: entries of the identity cache.
        max_identity_bytes: bytes of the identity cache, about.
    """

    def __init__(
        self,
        config: Config,
        outside: Outside | None = None,
        *,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
        max_identities: int = MAX_IDENTITIES,
        max_identity_bytes: int = MAX_IDENTITY_BYTES,
    ) -> None:
        self.generation = 0
        """Grows when a key is lost or changed, when the first keys of an issuer come, when the
        configuration changes, and when the clock was set back."""
        self.on_change: list[Callable[[], None]] = []
        """Called on the event loop after `generation` grew."""
        self._clock, self._monotonic = clock, monotonic
        self._outside: Outside = outside or _Itself(clock, monotonic)
        self._offset = clock() - monotonic()
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
                keys = self._outside.keyring(claim_rules.issuer, config.keys, self._changed, self._monotonic)
                if self._started:
                    keys.start()
            else:
                keys.configure(claim_rules.issuer, config.keys)
            issuers[url] = _Issuer(claim_rules, keys)
        self._issuers = issuers
        self._former += held.values()
        self._max_bytes = config.limits.max_token_bytes
        self._dpop = config.dpop is not None and config.binds
        self._sts, self._entries = self._outside.prover(config.sts, self._sts), config.sts
        self._epoch += 1

    @property
    def sources(self) -> dict[str, Keyring]:
        """Key sources by the issuer's `name`, for metrics and the audit: ages, failures and kids."""
        return {issuer.rules.name: issuer.keys for issuer in self._issuers.values()}

    @property
    def sts(self) -> Prover:
        """The prover; its counters are for metrics."""
        assert self._sts is not None  # noqa: S101 - configured once at least
        return self._sts

    @property
    def cached(self) -> tuple[int, int]:
        """Identities in the cache, and their bytes by estimate."""
        return len(self._cache), self._cache.bytes

    async def start(self) -> None:
        """Begin to fetch keys, without waiting: a dead issuer delays nothing else."""
        self._started = True
        for issuer in self._issuers.values():
            issuer.keys.start()

    async def close(self) -> None:
        """Stop fetching; refuse the credentials that wait."""
        self._started = False
        await self.sts.close()
        for issuer in self._issuers.values():
            await issuer.keys.close()
        await self._close_former()
        self._outside.close()

    def adopt(self, config: Config, rules: Rules) -> None:
        """Put a new configuration in force; `rules` are `rules_of(config)`.

        Cached identities are judged again, unchanged issuers keep their keys.
        """
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

    def watch_clock(self) -> None:
        """Forget what is remembered if the clock was set back, because its end would come too late."""
        offset = self._clock() - self._monotonic()
        if offset < self._offset - _STEP:
            self._offset = offset
            self._epoch += 1
            self._cache.clear()
            self._changed()
        self._offset = max(self._offset, offset)

    def _changed(self) -> None:
        self.generation += 1
        for call in self.on_change:
            call()

    def recall(self, authorization: str) -> Identity | None:
        """Return the identity of a credential that was verified before and is still valid; never waits.

        Returns:
            None if the credential is unknown or expired, or if its key is gone. A verdict may be cached only
            for a credential that this method knows: it never knows a credential that may be used only once.
        """
        token = self._token(authorization)
        return self._cache.get(hashlib.sha256(token).digest()) if token else None

    async def prove(self, authorization: str, source: str, once: Once) -> Identity:
        """Verify as `authenticate` does, for a question that may ask again: what it proved stays proved."""
        known = once.identity if once.entries == self._entries else None
        if known is not None and self._clock() < known.believed_until:
            return known
        identity = await self.authenticate(authorization, source)
        if (self._token(authorization) or b"").startswith(PREFIX) and self.recall(authorization) is None:
            once.identity, once.entries = identity, self._entries
        return identity

    async def authenticate(self, authorization: str, source: str = "") -> Identity:
        """Verify a credential.

        Args:
            authorization: the whole header value; the caller checks that there is only one.
            source: the client, as `admission.client_network` names it.

        Raises:
            Refusal: with the first reason in the order of SPEC.md section 4.
        """
        token = self._token(authorization)
        if token is None:
            raise Refusal(Reason.NO_CREDENTIALS, "no Bearer credential")
        digest = hashlib.sha256(token).digest()
        if identity := self._cache.get(digest):
            return identity
        epoch, entries = self._epoch, self._entries
        try:
            identity, key, reusable = await self._verify(token, digest, source)
        except Refusal:
            if epoch == self._epoch:
                raise
        else:
            # What counts once was used by this question: STS would not be asked about it again.
            if epoch == self._epoch or not (reusable or entries != self._entries):
                if reusable:
                    self._cache.put(digest, identity, key)
                return identity
        # A new configuration came while this credential waited for keys or STS: judge by the new one.
        return await self.authenticate(authorization, source)

    async def _verify(self, token: bytes, digest: bytes, source: str) -> tuple[Identity, Key | None, bool]:
        """Return the identity, the issuer's key that proved it, and whether the credential may be reused."""
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
        # As `credential_hash`: of an ECDSA signature its holder can make another.
        name = "sha256:" + hashlib.sha256(jws.signing_input).hexdigest()[:16]
        proof = (key_ground(key), f"size:{len(token)}")
        return issuer.rules.identity(jws.payload, jws.header, self._clock(), name, proof), key, True

    def _token(self, authorization: str) -> bytes | None:
        token = bearer(authorization)
        return by_dpop(authorization) if token is None and self._dpop else token

    def _issuer_of(self, jws: Jws) -> _Issuer:
        iss = jws.payload.get("iss")
        issuer = self._issuers.get(iss) if isinstance(iss, str) else None
        if issuer is None:
            raise Refusal(Reason.ISSUER_UNTRUSTED, "iss is not exactly a configured issuer")
        return issuer


def check_header(jws: Jws, rules: ClaimRules) -> str:
    """Return the algorithm, if it and the type are the issuer's (JWT-ALG-003, JWT-TYP-001, JWT-EVENTS-001).

    Raises:
        Refusal: `algorithm_not_allowed`, `type_not_allowed`.
    """
    alg = jws.header.alg
    if alg not in rules.algorithms or alg not in ALGORITHMS:
        raise Refusal(Reason.ALGORITHM_NOT_ALLOWED, "alg is not one of this issuer's")
    if jws.header.typ not in rules.types:
        raise Refusal(Reason.TYPE_NOT_ALLOWED, "typ is not one of this issuer's")
    if "events" in jws.payload:
        raise Refusal(Reason.TYPE_NOT_ALLOWED, "events: a logout token or another event (RFC 8417)")
    return alg


def bearer(authorization: str) -> bytes | None:
    """Return the credential of a Bearer header (RFC 6750 section 2.1, RFC 9110 section 11.4), as bytes.

    Returns:
        None for another scheme or no scheme. Bytes beyond ASCII stay in the credential, so that its form is
        judged and refused.
    """
    token = authorization[7:]
    if authorization[:7] == "Bearer " and token.isascii() and " " not in token:
        return token.encode()
    scheme, _, rest = authorization.strip(" \t").partition(" ")
    if scheme.lower() != "bearer":
        return None
    return rest.lstrip(" ").encode("utf-8", "replace")
