"""The keys of one issuer as they are believed: which are in force, how old, and when they die.

Where they come from is a subclass's business: `jwks.KeySource` fetches them, a worker's `remote.RemoteKeys`
is told them by the parent. What is in force here dies of three things: the issuer's set lost a key or changed
it, nobody could renew the set until it was `max_stale` old, or the policy names another source.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable

from iamroles_agent.base.config import Issuer, KeySettings
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens.keys import Key, KeySet

_log = logging.getLogger(__name__)


def source_of(issuer: Issuer) -> str:
    """Names where an issuer's keys come from: as long as this stays the same, so do good keys."""
    identity = json.dumps([issuer.issuer, issuer.jwks_uri, issuer.insecure_http])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


class Keyring:
    """The keys of one issuer.

    Args:
        issuer: where they are published.
        settings: `[keys]` of the policy.
        on_loss: called on the event loop after a key was removed, changed, or grew too stale, and after keys
            came where none were known.
        monotonic: seconds on a clock that never jumps, and that all processes of this host share.
    """

    def __init__(
        self,
        issuer: Issuer,
        settings: KeySettings,
        *,
        on_loss: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self.settings = settings
        self.fetches = 0
        """Downloads begun."""
        self.failures = 0
        """Downloads failed in a row."""
        self._on_loss = on_loss
        self._monotonic = monotonic
        self._keys: KeySet | None = None
        self._fetched_at = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def age(self) -> float | None:
        """Seconds since the set in force was fetched; None without a set."""
        return None if self._keys is None else self._monotonic() - self._fetched_at

    @property
    def kids(self) -> tuple[str, ...]:
        return tuple(sorted(key.kid or "" for key in self._keys or ()))

    @property
    def keys(self) -> KeySet | None:
        return self._keys

    def start(self) -> None:
        """Begin to get keys; returns at once."""

    async def close(self) -> None:
        """Stop; tokens that wait get `keys_unavailable`."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()

    def configure(self, issuer: Issuer, settings: KeySettings) -> None:
        """The policy changed; the source of the keys did not, so the keys live on."""
        self.issuer, self.settings = issuer, settings
        if self._keys is not None:
            self._await_death()

    def lookup(self, kid: str | None, alg: str) -> Key | None:
        """The key for a header, from the set in force; never waits."""
        keys = self._keys
        if keys is None or self._monotonic() - self._fetched_at >= self.settings.max_stale:
            return None
        return keys.find(kid, alg)

    async def obtain(self, kid: str | None, alg: str) -> Key:
        """The key for a header, fetched if need be.

        Raises:
            Refusal: `keys_unavailable`, `key_unknown`.
        """
        if key := self.lookup(kid, alg):
            return key
        if self._closed:
            raise Refusal(Reason.KEYS_UNAVAILABLE, f"issuer {self.issuer.name} was closed")
        if not self.stale():
            if kid is not None and self.known(kid):
                raise Refusal(Reason.KEY_UNKNOWN, f"the key of that kid is not for {alg}")
            if kid is None:
                raise Refusal(Reason.KEY_UNKNOWN, f"no kid, and not exactly one key fits {alg}")
        await self.want(kid)
        if key := self.lookup(kid, alg):
            return key
        if self.stale():
            raise Refusal(Reason.KEYS_UNAVAILABLE, f"no keys of {self.issuer.name} within max_stale")
        raise Refusal(Reason.KEY_UNKNOWN, f"no key of that kid for {alg}")

    async def want(self, kid: str | None) -> None:
        """Get what can be got for a `kid` that is not known, or for any where there is no set."""
        raise NotImplementedError

    def known(self, kid: str) -> bool:
        """Whether the set in force has that `kid`."""
        return self._keys is not None and kid in self._keys

    def stale(self) -> bool:
        """Whether there is no set that may be believed."""
        return self._keys is None or self._monotonic() - self._fetched_at >= self.settings.max_stale

    def put(self, keys: KeySet, fetched_at: float) -> bool:
        """Put a set in force; whether it brought or lost a key."""
        old = self._keys
        now_in = set(keys)
        lost = [key for key in old or () if key not in now_in]
        changed = bool(lost) or len(keys) != len(old or ())
        self._keys, self._fetched_at = keys, fetched_at
        if changed:
            _log.info("issuer %s: %d keys in force", self.issuer.name, len(keys))
        self._await_death()
        self._kill(lost)
        if old is None:
            self._on_loss()  # an open stream may rest on a key that left while no set was known
        return changed

    def drop(self) -> None:
        """The set in force is withdrawn."""
        keys, self._keys = self._keys, None
        if self._expiry is not None:
            self._expiry.cancel()
        self._kill(list(keys or ()))

    def confirm(self, fetched_at: float) -> None:
        """The set in force was found to be good at a later time."""
        if self._keys is not None and fetched_at > self._fetched_at:
            self._fetched_at = fetched_at
            self._await_death()

    def _await_death(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        left = self.settings.max_stale - (self._monotonic() - self._fetched_at)
        self._expiry = asyncio.get_running_loop().call_later(max(left, 0.0), self._expire)

    def _expire(self) -> None:
        """The set grew `max_stale` old: what it proved is proved no more."""
        keys, self._keys = self._keys, None
        _log.error("issuer %s: no fresh keys for %.0f s", self.issuer.name, self.settings.max_stale)
        self._kill(list(keys or ()))

    def _kill(self, keys: list[Key]) -> None:
        for key in keys:
            key.live = False
        if keys:
            self._on_loss()
