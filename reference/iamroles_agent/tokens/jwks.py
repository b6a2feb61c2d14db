"""The keys of an issuer: fetched, renewed, trusted for a limited time (JWKS-SET to JWKS-REDIRECT).

Four conditions decide when the set is fetched:

- *Renewal*. A timer fetches the set at about 0.8 of `keys.refresh`, so that no set in use is older than
  `refresh` while the issuer answers: a key that the issuer removed dies within `refresh` plus the fetch. A
  failed renewal is repeated after 0.5 s, 1 s, 2 s, … at most `cooldown`.
- *Outage*. A set that cannot be renewed, or whose successor is poisoned, stays in use until it is `max_stale`
  old. Then its keys die, and the answer is `keys_unavailable`.
- *Rotation*. A token with an unknown `kid` may be the first of a new key, so it causes one fetch, at once,
  whenever the last fetch was. If a *successful* fetch, such as a renewal, started a cooldown, a key that was
  rotated just after it would be refused.
- *Flood*. Anyone can write a random `kid`. So a fetch that does not bring its kid starts the cooldown, even
  if it changed the set: where two servers of an issuer disagree, each fetch changes it. Until the cooldown
  ends unknown kids fetch nothing. If a kid was refused meanwhile, one fetch follows at its end, so a rotation
  inside the cooldown is seen then at the latest; a token that comes in its last second waits for that. A kid
  that was fetched in vain is remembered, in a bounded table, and its fetches become ever rarer.

All fetches of an issuer share one flight, and every token that needs the outcome awaits it. Issuers share
nothing here: a slow issuer delays only its own tokens.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from iamroles_agent.base.clocks import Clock
from iamroles_agent.base.config import Issuer, KeySettings
from iamroles_agent.base.encoding import decode_object
from iamroles_agent.tokens.keyring import Keyring
from iamroles_agent.tokens.keys import KeySet, KeySetError
from iamroles_agent.tokens.transport import Transport, TransportError, check_url

_log = logging.getLogger(__name__)

MAX_DOCUMENT = 256 * 1024
"""Bytes of a key set or discovery document."""
MAX_HOLD = 1.0
"""Seconds that a token with an unknown kid may wait for the end of the cooldown."""
_MAX_HELD = 256
_MAX_ASKED = 1024
_FIRST_RETRY = 0.5


class KeySource(Keyring):
    """The keys of an issuer, fetched by this process.

    `on_taken` is called on the event loop with each document that was fetched and put in force, and the time
    at which the fetch began.
    """

    def __init__(
        self,
        issuer: Issuer,
        settings: KeySettings,
        transport: Transport,
        *,
        on_loss: Callable[[], None],
        on_taken: Callable[[dict[str, Any], float], None] = lambda _document, _at: None,
        monotonic: Clock = time.monotonic,
    ) -> None:
        super().__init__(issuer, settings, on_loss=on_loss, monotonic=monotonic)
        self._transport = transport
        self._on_taken = on_taken
        self._jwks_uri = issuer.jwks_uri
        self._discovered_at = 0.0
        self._flight: asyncio.Task[None] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._trailing: asyncio.TimerHandle | None = None
        self._cooldown_end = 0.0
        self._retry_at = 0.0
        self._held: list[asyncio.Future[None]] = []
        self._asked: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._asking = False
        self._changed = False

    def start(self) -> None:
        """Begin to fetch, or to renew a restored set in time; return at once."""
        if self._keys is None:
            self._launch()
        else:
            self._schedule(self._lifetime() - (self._monotonic() - self._fetched_at))

    def restore(self, document: dict[str, Any], fetched_at: float) -> None:
        """Put in force a set that was fetched earlier, by this process or another; call it before `start`.

        Raises:
            KeySetError: the set is invalid.
        """
        keys = KeySet.parse(document)
        if self._monotonic() - fetched_at < self.settings.max_stale:
            self.put(keys, fetched_at)

    def configure(self, issuer: Issuer, settings: KeySettings) -> None:
        """Configure as inherited; no wait goes on for longer than the new settings permit."""
        former = self.settings
        super().configure(issuer, settings)
        if settings == former:
            return
        now = self._monotonic()
        self._asked.clear()
        self._cooldown_end = min(self._cooldown_end, now + settings.cooldown)
        if self._trailing is not None:
            self._trailing.cancel()
            self._trailing = asyncio.get_running_loop().call_later(self._cooldown_end - now, self._trail)
        if self._flight is None and self._renewal is not None:
            self._renewal.cancel()
            self._schedule(0.0 if self.failures else self._lifetime() - (now - self._fetched_at))

    async def close(self) -> None:
        await super().close()
        for timer in (self._renewal, self._trailing):
            if timer is not None:
                timer.cancel()
        self._release()
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.gather(self._flight, return_exceptions=True)

    async def want(self, kid: str | None) -> None:
        """Fetch, if that is due for an unknown `kid` or for a set that is too old."""
        if self.stale():
            await self._first_set()
        elif kid is not None and not self.known(kid):
            await self._ask(kid)

    @property
    def pause(self) -> float:
        """Seconds in which no other unknown `kid` can cause or await a fetch."""
        if self._trailing is None:
            return 0.0
        return max(0.0, self._cooldown_end - self._monotonic() - MAX_HOLD)

    async def _first_set(self) -> None:
        if self._flight is None and self._monotonic() < self._retry_at:
            return  # it has just failed: do not repeat it for every token
        await self._shared()

    async def _ask(self, kid: str) -> None:
        """Fetch for an unknown kid, if the rules above permit it."""
        if self._flight is not None:
            await self._shared()  # it may bring the kid
            if self.known(kid):
                return
        now = self._monotonic()
        misses, until = self._asked.get(kid, (0, 0.0))
        if now < until:
            return
        if now < self._cooldown_end:
            await self._hold(self._cooldown_end - now)
            return
        await self._shared(asking=True)
        if self.known(kid):
            return
        self._cooldown_end = max(self._cooldown_end, now + self.settings.cooldown)
        pause = min(self.settings.cooldown * 2**misses, max(self.settings.refresh, self.settings.cooldown))
        self._asked[kid] = (min(misses + 1, 16), now + pause)
        self._asked.move_to_end(kid)
        if len(self._asked) > _MAX_ASKED:
            self._asked.popitem(last=False)

    async def _hold(self, remaining: float) -> None:
        if self._trailing is None and not self._closed:
            self._trailing = asyncio.get_running_loop().call_later(remaining, self._trail)
        if remaining <= MAX_HOLD and len(self._held) < _MAX_HELD and not self._closed:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._held.append(future)
            await future

    def _trail(self) -> None:
        """Fetch once after a cooldown in which a kid was refused; begin the next one, whatever it brings."""
        self._trailing = None
        self._cooldown_end = self._monotonic() + self.settings.cooldown
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
                raise  # the caller was cancelled, not the flight

    def _launch(self, *, asking: bool = False) -> asyncio.Task[None]:
        """Return the flight, a new one if necessary; `asking`: on behalf of an unknown kid."""
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
            document = await self._download()
            self._take(document, KeySet.parse(document, self._keys), began)
        except (TransportError, KeySetError) as error:
            self._failed(str(error))
        except Exception as error:  # noqa: BLE001 - the source must survive whatever an issuer sends
            self._failed(type(error).__name__)
        finally:
            self._flight = None
            if self._asking and not self._changed:
                self._cooldown_end = began + self.settings.cooldown

    def _take(self, document: dict[str, Any], keys: KeySet, fetched_at: float) -> None:
        self._changed = self.put(keys, fetched_at)
        self.failures, self._retry_at = 0, 0.0
        for sentence in keys.dropped:
            _log.warning("issuer %s: %s", self.issuer.name, sentence)
        if self._changed:
            self._asked.clear()
        self._schedule(self._lifetime())
        self._on_taken(document, fetched_at)

    def _lifetime(self) -> float:
        # At random, because many agents that started together must not fetch together.
        return self.settings.refresh * random.uniform(0.7, 0.8)  # noqa: S311 - no secret

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

    async def _download(self) -> dict[str, Any]:
        uri = self._jwks_uri
        now = self._monotonic()
        if self.issuer.jwks_uri is None and (  # a fifth, so that no document in use is older than `refresh`
            uri is None or self.failures or now - self._discovered_at >= self.settings.refresh / 5
        ):
            uri = await self._discover()
            self._jwks_uri, self._discovered_at = uri, now
        assert uri is not None  # noqa: S101 - configured or discovered
        return await self._get(uri)

    async def _discover(self) -> str:
        """Discover the set's URL (OpenID Connect Discovery 1.0 section 4); the document names this issuer."""
        document = await self._get(self.issuer.issuer.rstrip("/") + "/.well-known/openid-configuration")
        if document.get("issuer") != self.issuer.issuer:
            raise TransportError("the discovery document is of another issuer")
        uri = document.get("jwks_uri")
        if not isinstance(uri, str):
            raise TransportError("the discovery document has no jwks_uri")
        if self.issuer.issuer.startswith("https:"):  # which `insecure_http` does not weaken on the way
            check_url(uri, insecure_http=False)
        return uri

    async def _get(self, url: str) -> dict[str, Any]:
        check_url(url, insecure_http=self.issuer.insecure_http)
        headers = {"Accept": "application/json"}
        answer = await self._transport.get(
            url, seconds=self.settings.timeout, max_bytes=MAX_DOCUMENT, headers=headers
        )
        if answer.status != 200:
            raise TransportError(f"status {answer.status}")
        try:
            return decode_object(answer.body)
        except (ValueError, RecursionError):
            raise TransportError("not one strict JSON object") from None
