"""The keys of an issuer that are in force: which keys, how old, and when they die.

A subclass gets them: `jwks.KeySource` fetches them, the parent sends them to a worker's `remote.RemoteKeys`.
A key in force dies for one of three reasons: the issuer's set lost or changed it, the set could not be
renewed until it was `max_stale` old, or the policy names another source.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable

from iamroles_agent.base.clocks import Clock
from iamroles_agent.base.config import Issuer, KeySettings
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens.keys import Key, KeySet

_log = logging.getLogger(__name__)


def source_of(issuer: Issuer) -> str:
    """Name the source of an issuer's keys: while it stays the same, good keys stay in force."""
    identity = json.dumps([issuer.issuer, issuer.jwks_uri, issuer.insecure_http])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


class Keyring:
    """The keys of an issuer.

    `on_loss` is called on the event loop after a key was removed, changed, or grew too stale, and after the
    first keys came. All processes of the host share the clock `monotonic`.
    """

    def __init__(
        self,
        issuer: Issuer,
        settings: KeySettings,
        *,
        on_loss: Callable[[], None],
        monotonic: Clock = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self.settings = settings
        self.fetches = 0
        """Downloads begun."""
        self.failures = 0
        """Failed downloads in a row."""
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
        """Begin to get keys; return at once."""

    async def close(self) -> None:
        """Stop; refuse the tokens that wait with `keys_unavailable`."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()

    def configure(self, issuer: Issuer, settings: KeySettings) -> None:
        """Take the settings of a new policy with the same source; the keys stay in force."""
        self.issuer, self.settings = issuer, settings
        if self._keys is not None:
            self._await_death()

    def lookup(self, kid: str | None, alg: str) -> Key | None:
        """Return the key for a header from the set in force; never waits."""
        keys = self._keys
        if keys is None or self._monotonic() - self._fetched_at >= self.settings.max_stale:
            return None
        return keys.find(kid, alg)

    async def obtain(self, kid: str | None, alg: str) -> Key:
        """Return the key for a header; fetch it if necessary.

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
        """Try to get the set that has an unknown `kid`, or any set if the ring is empty."""
        raise NotImplementedError

    def known(self, kid: str) -> bool:
        """Return whether the set in force has that `kid`."""
        return self._keys is not None and kid in self._keys

    def stale(self) -> bool:
        """Return whether the ring has no set, or only an old set."""
        return self._keys is None or self._monotonic() - self._fetched_at >= self.settings.max_stale

    def put(self, keys: KeySet, fetched_at: float) -> bool:
        """Put a set in force; return whether it added or removed a key."""
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
            self._on_loss()  # an open stream may rest on a key that was removed before the first set came
        return changed

    def drop(self) -> None:
        """Withdraw the set in force."""
        keys, self._keys = self._keys, None
        if self._expiry is not None:
            self._expiry.cancel()
        self._kill(list(keys or ()))

    def confirm(self, fetched_at: float) -> None:
        """Note that the set in force was still valid at a later time."""
        if self._keys is not None and fetched_at > self._fetched_at:
            self._fetched_at = fetched_at
            self._await_death()

    def _await_death(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        left = self.settings.max_stale - (self._monotonic() - self._fetched_at)
        self._expiry = asyncio.get_running_loop().call_later(max(left, 0.0), self._expire)

    def _expire(self) -> None:
        """Withdraw a set that is `max_stale` old: it proves nothing now."""
        _log.error("issuer %s: no fresh keys for %.0f s", self.issuer.name, self.settings.max_stale)
        self.drop()

    def _kill(self, keys: list[Key]) -> None:
        for key in keys:
            key.live = False
        if keys:
            self._on_loss()
