"""HTTP to issuers and STS: one bounded GET, off the event loop.

urllib3 blocks, so each call has a thread of its own. A pool would let a few dead issuers occupy every worker
and starve the living; single flight per issuer already bounds the number of threads, and STS has its own
limit. The threads are daemons: a server that never answers must not keep the agent from ending.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import urllib3

_T = TypeVar("_T")
_CHUNK = 65536


class TransportError(Exception):
    """No usable answer: refused, timed out, cut, too large, not permitted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, read whole."""

    status: int
    content_type: str
    """Lower-case, without parameters."""
    body: bytes


def check_url(url: str, *, insecure_http: bool) -> str:
    """The URL, if the agent may call it (JWKS-DISCOVERY-002): https, or http where the policy says so.

    Raises:
        TransportError: another scheme, credentials inside, no host.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise TransportError("not a URL") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and insecure_http):
        raise TransportError(
            f"{parts.scheme or 'no scheme'}: only https is called, unless insecure_http is set"
        )
    if not host or parts.username is not None or parts.password is not None:
        raise TransportError("a URL without a host, or with credentials in it")
    return url


class Transport:
    """A connection pool: TLS by the system's authorities, no redirect followed, nothing retried."""

    def __init__(self) -> None:
        self._pool = urllib3.PoolManager(num_pools=64, maxsize=16, retries=False)

    def get(
        self, url: str, *, timeout: float, max_bytes: int, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """GET, blocking for at most `timeout` seconds plus one read.

        Args:
            url: passed by `check_url`.
            timeout: seconds for the whole exchange.
            max_bytes: a longer body is an error, and is not read.
            headers: sent beside `Accept-Encoding: identity`.

        Raises:
            TransportError: no complete answer.
        """
        deadline = time.monotonic() + timeout
        try:
            response = self._pool.request(
                "GET",
                url,
                headers={"Accept-Encoding": "identity", "User-Agent": "iamroles-agent", **(headers or {})},
                timeout=urllib3.Timeout(total=timeout),
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise TransportError(_cause(error)) from None
        finished = False
        try:
            body = self._read(response, deadline, max_bytes)
            finished = True
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise TransportError(_cause(error)) from None
        finally:
            if finished:
                response.release_conn()
            else:
                response.close()
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        return Answer(response.status, kind, body)

    @staticmethod
    def _read(response: urllib3.BaseHTTPResponse, deadline: float, max_bytes: int) -> bytes:
        # read1 returns what one recv gave: a server that trickles bytes meets the deadline, not a longer one.
        body = bytearray()
        while chunk := response.read1(_CHUNK):
            body += chunk
            if len(body) > max_bytes:
                raise TransportError(f"an answer above {max_bytes} bytes")
            if time.monotonic() > deadline:
                raise TransportError("the answer took too long")
        return bytes(body)

    def close(self) -> None:
        """Drop idle connections."""
        self._pool.clear()


def _cause(error: Exception) -> str:
    """A sentence without the URL, which may hold a credential."""
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "timed out"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "cannot connect"
    return type(error).__name__


async def in_thread(work: Callable[[], _T]) -> _T:
    """Run blocking work in a daemon thread and await its result."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # a result where there is no error

    def run() -> None:
        result: _T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - carried to whoever awaits
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:
            return  # the loop ended first: nobody awaits

    threading.Thread(target=run, name="iamroles-http", daemon=True).start()
    return await future
