"""The keys of one issuer: fetched, renewed, believed only so long (JWKS-SET to JWKS-REDIRECT).

How the set stays right. Four forces pull at it:

- *Renewal*. A timer fetches the set at about 0.8 of `keys.refresh`, so that no set in use is older than
  `refresh` while the issuer answers: a key the issuer removed dies within `refresh` plus the fetch. A failed
  renewal is tried again after 0.5 s, 1 s, 2 s, … at most `cooldown`.
- *Outage*. A set that cannot be renewed, or whose successor is poisoned, serves on until it is `max_stale`
  old. Then its keys die, and the answer is `keys_unavailable`.
- *Rotation*. A token whose `kid` is unknown may be the first of a new key, so it asks for one fetch, at once,
  whenever the last fetch was. Anything that starts a cooldown at a *successful* fetch, renewal included,
  would refuse a key that was rotated just after it.
- *Flood*. Anyone can write a random `kid`. So an ask that changed nothing starts the cooldown: until it ends
  unknown kids fetch nothing. One fetch is then made at its end if a kid was turned away meanwhile, so a
  rotation inside the cooldown is seen when it ends at the latest; a token that comes in its last second waits
  for that. An ask that did change the set starts no cooldown: a stranger cannot bring that about. A kid that
  was asked for in vain is remembered, in a bounded table, and asks ever more rarely.

All fetches of an issuer share one flight, and whoever needs the outcome awaits that. Nothing here is shared
between issuers: a slow one delays its own tokens only. Everything but the download runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from iamroles_agent.config import Issuer, KeySettings
from iamroles_agent.reasons import Reason, Refusal
from iamroles_agent.tokens.encoding import decode_object
from iamroles_agent.tokens.keys import Key, KeySet, KeySetError
from iamroles_agent.tokens.transport import Answer, Transport, TransportError, check_url, in_thread

_log = logging.getLogger(__name__)

MAX_DOCUMENT = 256 * 1024
"""Bytes of a key set or discovery document."""
MAX_HOLD = 1.0
"""Seconds that a token with an unknown kid may wait for the end of the cooldown."""
_MAX_HELD = 256
_MAX_ASKED = 1024
_FIRST_RETRY = 0.5


class KeySource:
    """The keys of one issuer.

    Args:
        issuer: where they are published.
        settings: `[keys]` of the policy.
        transport: how they are fetched.
        on_loss: called on the event loop after a key was removed, changed, or grew too stale.
        monotonic: seconds on a clock that never jumps.
    """

    def __init__(
        self,
        issuer: Issuer,
        settings: KeySettings,
        transport: Transport,
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
        self._transport = transport
        self._on_loss = on_loss
        self._monotonic = monotonic
        self._keys: KeySet | None = None
        self._fetched_at = 0.0
        self._jwks_uri = issuer.jwks_uri
        self._discovered_at = 0.0
        self._flight: asyncio.Task[None] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._trailing: asyncio.TimerHandle | None = None
        self._cooldown_end = 0.0
        self._retry_at = 0.0
        self._held: list[asyncio.Future[None]] = []
        self._asked: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._asking = False
        self._changed = False
        self._closed = False

    @property
    def age(self) -> float | None:
        """Seconds since the set in force was fetched; None without a set."""
        return None if self._keys is None else self._monotonic() - self._fetched_at

    @property
    def kids(self) -> tuple[str, ...]:
        """The `kid`s in force, sorted."""
        return tuple(sorted(key.kid or "" for key in self._keys or ()))

    def start(self) -> None:
        """Begin to fetch; returns at once."""
        self._launch()

    async def close(self) -> None:
        """Stop timers and the flight; tokens that wait get `keys_unavailable`."""
        self._closed = True
        for timer in (self._renewal, self._expiry, self._trailing):
            if timer is not None:
                timer.cancel()
        self._release()
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.gather(self._flight, return_exceptions=True)

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
        if self._stale():
            await self._first_set()
        elif kid is not None and self._known(kid):
            raise Refusal(Reason.KEY_UNKNOWN, f"the key of that kid is not for {alg}")
        elif kid is None:
            raise Refusal(Reason.KEY_UNKNOWN, f"no kid, and not exactly one key fits {alg}")
        else:
            await self._ask(kid)
        if key := self.lookup(kid, alg):
            return key
        if self._stale():
            raise Refusal(Reason.KEYS_UNAVAILABLE, f"no keys of {self.issuer.name} within max_stale")
        raise Refusal(Reason.KEY_UNKNOWN, f"no key of that kid for {alg}")

    def _known(self, kid: str) -> bool:
        return self._keys is not None and kid in self._keys

    def _stale(self) -> bool:
        return self._keys is None or self._monotonic() - self._fetched_at >= self.settings.max_stale

    async def _first_set(self) -> None:
        if self._flight is None and self._monotonic() < self._retry_at:
            return  # it failed a moment ago: do not hammer it for every token
        await self._shared()

    async def _ask(self, kid: str) -> None:
        """An unknown kid asks for a fetch; see the essay above for who may."""
        if self._flight is not None:
            await self._shared()  # it may bring the kid already
            if self._known(kid):
                return
        now = self._monotonic()
        misses, until = self._asked.get(kid, (0, 0.0))
        if now < until:
            return
        if now < self._cooldown_end:
            await self._hold(self._cooldown_end - now)
            return
        await self._shared(asking=True)
        if self._known(kid):
            return
        pause = min(self.settings.cooldown * 2**misses, max(self.settings.refresh, self.settings.cooldown))
        self._asked[kid] = (min(misses + 1, 16), now + pause)
        self._asked.move_to_end(kid)
        if len(self._asked) > _MAX_ASKED:
            self._asked.popitem(last=False)

    async def _hold(self, remaining: float) -> None:
        if self._trailing is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._trailing = loop.call_later(remaining, self._trail)
        if remaining <= MAX_HOLD and len(self._held) < _MAX_HELD and not self._closed:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._held.append(future)
            await future

    def _trail(self) -> None:
        """The cooldown is over and a kid was turned away in it: fetch once on their behalf."""
        self._trailing = None
        self._launch(asking=True).add_done_callback(lambda _flight: self._release())

    def _release(self) -> None:
        held, self._held = self._held, []
        for future in held:
            if not future.done():
                future.set_result(None)

    async def _shared(self, *, asking: bool = False) -> None:
        # Shielded: a client that goes away must not end the fetch for the others.
        flight = self._launch(asking=asking)
        try:
            await asyncio.shield(flight)
        except asyncio.CancelledError:
            if not flight.cancelled():
                raise  # this caller was cancelled, not the flight

    def _launch(self, *, asking: bool = False) -> asyncio.Task[None]:
        """The flight, begun now if there is none; `asking`: on behalf of an unknown kid."""
        if self._flight is None:
            self._asking = asking
            if self._renewal is not None:
                self._renewal.cancel()
            self._flight = asyncio.get_running_loop().create_task(self._fetch())
        return self._flight

    async def _fetch(self) -> None:
        self.fetches += 1
        self._changed = False
        began = self._monotonic()
        try:
            document = await in_thread(self._download)
            self._take(KeySet.parse(document, self._keys), began)
        except (TransportError, KeySetError) as error:
            self._failed(str(error))
        except Exception as error:  # noqa: BLE001 - the source must live on, whatever an issuer sends
            self._failed(type(error).__name__)
        finally:
            self._flight = None
            if self._asking and not self._changed:
                self._cooldown_end = began + self.settings.cooldown

    def _take(self, keys: KeySet, fetched_at: float) -> None:
        old = self._keys
        now_in = set(keys)
        lost = [key for key in old or () if key not in now_in]
        self._changed = bool(lost) or len(keys) != len(old or ())
        self._keys, self._fetched_at = keys, fetched_at
        self.failures, self._retry_at = 0, 0.0
        for sentence in keys.dropped:
            _log.warning("issuer %s: %s", self.issuer.name, sentence)
        if self._changed:
            self._asked.clear()
            _log.info("issuer %s: %d keys in force", self.issuer.name, len(keys))
        # 0.8 and a little chance: many agents that started together must not ask together.
        self._schedule(self.settings.refresh * random.uniform(0.7, 0.8))  # noqa: S311 - no secret
        if self._expiry is not None:
            self._expiry.cancel()
        left = self.settings.max_stale - (self._monotonic() - fetched_at)
        self._expiry = asyncio.get_running_loop().call_later(max(left, 0.0), self._expire)
        self._kill(lost)

    def _failed(self, why: str) -> None:
        self.failures += 1
        delay = min(_FIRST_RETRY * 2 ** min(self.failures - 1, 16), max(self.settings.cooldown, _FIRST_RETRY))
        delay = min(delay, max(self.settings.refresh, 0.1))
        self._retry_at = self._monotonic() + delay / 2
        _log.warning("issuer %s: keys not renewed (%s), again in %.1f s", self.issuer.name, why, delay)
        self._schedule(delay)

    def _schedule(self, delay: float) -> None:
        if not self._closed:
            self._renewal = asyncio.get_running_loop().call_later(max(delay, 0.05), self._launch)

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

    # In a thread from here on.

    def _download(self) -> dict[str, Any]:
        uri = self._jwks_uri
        now = self._monotonic()
        if self.issuer.jwks_uri is None and (
            uri is None or self.failures or now - self._discovered_at >= self.settings.refresh
        ):
            uri = self._discover()
            self._jwks_uri, self._discovered_at = uri, now
        assert uri is not None  # noqa: S101 - configured or discovered
        return self._get(uri)

    def _discover(self) -> str:
        """OpenID Connect Discovery 1.0 section 4: the document must name this very issuer."""
        document = self._get(self.issuer.issuer.rstrip("/") + "/.well-known/openid-configuration")
        if document.get("issuer") != self.issuer.issuer:
            raise TransportError("the discovery document is of another issuer")
        uri = document.get("jwks_uri")
        if not isinstance(uri, str):
            raise TransportError("the discovery document has no jwks_uri")
        return uri

    def _get(self, url: str) -> dict[str, Any]:
        check_url(url, insecure_http=self.issuer.insecure_http)
        fetch = partial(
            self._transport.get,
            url,
            timeout=self.settings.timeout,
            max_bytes=MAX_DOCUMENT,
            headers={"Accept": "application/json"},
        )
        answer: Answer = fetch()
        if answer.status != 200:
            raise TransportError(f"status {answer.status}")
        try:
            return decode_object(answer.body)
        except (ValueError, RecursionError):
            raise TransportError("not one strict JSON object") from None
