"""Faults on command: what a mock does instead of, or to, its sound answer.

==============  ========================================================================================
kind            effect (parameters)
==============  ========================================================================================
``slow``        the sound answer after `seconds`, or once the fault is cleared
``stall``       no answer until the fault is cleared, then the sound one, or with `status` that of ``status``
``drip``        the head of an answer, one byte each `seconds`, and never its end: no read ever times out
``hang``        the sound head and half of the body, and then nothing until the fault is cleared
``trickle``     the same, and then one blank each `seconds`
``endless``     the same, and then blanks without end, as fast as they are read
``cut``         the connection is reset without an answer; a server that is down, seen from a client
``truncated``   the sound answer cut in the middle of its body, Content-Length telling more
``status``      `status` (503) with `body` (or `xml`) and `headers`
``redirect``    `status` (302) to `location`
``malformed``   status 200 with `body` (``{"keys": [``) as JSON, or `xml` where JSON is not accepted
``content-type``  the sound body as `content_type` (text/html)
``oversized``   the sound object with one more member, another each time, `size` bytes in all (2 MiB)
``ended``       the sound body with blanks, `size` bytes in all, without a length: its connection ends
``early``       the sound answer after two interim ones
``chunked``     the sound answer in chunks of 1, 2, 3 … letters, the sizes in each form, with extensions,
                and a trailer
``repeated``    the sound answer a hundred times in one piece, on a connection that stays
``patch``       the sound object with `members` set (a discovery document's issuer, for example)
==============  ========================================================================================

`times` limits a fault to so many requests; without it, it stays until cleared.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any

from aiohttp import web

KINDS = frozenset(
    {
        *("slow", "stall", "drip", "cut", "truncated", "status", "redirect", "malformed", "content-type"),
        *("oversized", "ended", "repeated", "early", "chunked", "patch", "hang", "trickle", "endless"),
    }
)
ENDLESS = frozenset({"stall", "drip", "hang", "trickle", "endless"})
"""Those of which no answer ever comes whole, and no end of it."""
_PIECE = 1 << 16
"""Bytes that `endless` writes at a time."""
_EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </keys>; rel=preload\r\n\r\n"
_COPIES = 100
"""Answers of `repeated`: more than a client asks for while a check lasts."""
_TYPES: dict[str, Any] = dict.fromkeys(("times", "status", "size"), int)
_TYPES |= {"seconds": (int, float), "headers": dict, "members": dict}
"""Types of parameters; all others are texts."""
Sound = Callable[[], Awaitable[web.Response]]


@dataclass
class Fault:
    """One fault; see the table above."""

    kind: str
    times: int | None = None
    seconds: float = 1.0
    status: int | None = None
    body: str = '{"keys": ['
    xml: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    location: str = ""
    content_type: str = "text/html"
    size: int = 2 << 20
    members: dict[str, Any] = field(default_factory=dict)
    cleared: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(cls, table: Mapping[str, Any], kinds: frozenset[str] = KINDS) -> Fault:
        """Read a control request.

        Raises:
            ValueError: an unknown kind or parameter, or a value of a wrong type.
        """
        known = {each.name for each in fields(cls)} - {"cleared"}
        if unknown := set(table) - known:
            raise ValueError(f"unknown fault parameters {sorted(unknown)}; known are {sorted(known)}")
        if table.get("kind") not in kinds:
            raise ValueError(f"unknown fault kind {table.get('kind')!r}; known are {sorted(kinds)}")
        if wrong := [name for name, value in table.items() if not isinstance(value, _TYPES.get(name, str))]:
            raise ValueError(f"fault parameters {wrong} have values of a wrong type")
        return cls(**table)


class Faults:
    """The faults in force, by endpoint; `*` is for every endpoint without its own."""

    def __init__(self) -> None:
        self._by_endpoint: dict[str, Fault] = {}
        self._spent: list[tuple[str, Fault]] = []
        """Those without end that no further request meets, while those that met them still wait."""

    def set(self, endpoint: str, fault: Fault) -> None:
        """Put a fault in force instead of any other on this endpoint."""
        self.clear(endpoint)
        self._by_endpoint[endpoint] = fault

    def clear(self, endpoint: str | None = None) -> None:
        """End the fault on one endpoint, or all."""
        for name in [endpoint] if endpoint else list(self._by_endpoint):
            if fault := self._by_endpoint.pop(name, None):
                fault.cleared.set()
        for name, fault in self._spent:
            if endpoint in (None, name):
                fault.cleared.set()
        self._spent = [each for each in self._spent if not each[1].cleared.is_set()]

    def take(self, *endpoints: str) -> Fault | None:
        """The fault this request meets, by the first of its names that has one; counted down."""
        for name in (*endpoints, "*"):
            fault = self._by_endpoint.get(name)
            if fault is None:
                continue
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    del self._by_endpoint[name]
                    if fault.kind in ENDLESS:
                        self._spent.append((name, fault))
            return fault
        return None


async def answer(fault: Fault | None, request: web.Request, sound: Sound) -> web.StreamResponse:
    """The sound answer, or what the fault makes of it."""
    if fault is None:
        return await sound()
    if fault.kind == "slow":
        with suppress(TimeoutError):
            await asyncio.wait_for(fault.cleared.wait(), fault.seconds)
        return await sound()
    if fault.kind == "stall":
        await fault.cleared.wait()
        if not fault.status:
            return await sound()
    if fault.kind == "drip":
        return await _drip(fault, request)
    if fault.kind == "cut":
        return cut(request)
    if fault.kind in ("status", "stall"):
        return web.Response(
            status=fault.status or 503, text=_form(fault, request)[0], headers=_headers(fault, request)
        )
    if fault.kind == "redirect":
        return web.Response(status=fault.status or 302, headers={"Location": fault.location})
    if fault.kind == "malformed":
        text, content_type = _form(fault, request)
        return web.Response(text=text, content_type=content_type)
    if fault.kind in ("hang", "trickle", "endless"):
        return await _unending(fault, request, await sound())
    return await _altered(fault, request, await sound())


def _form(fault: Fault, request: web.Request) -> tuple[str, str]:
    """Body and content type, in the form that the caller accepts."""
    if fault.xml and "application/json" not in request.headers.get("Accept", ""):
        return fault.xml, "text/xml"
    return fault.body, "application/json"


def _headers(fault: Fault, request: web.Request) -> dict[str, str]:
    """The fault's own headers; of a JSON type that the body does not have, the right one."""
    _, content_type = _form(fault, request)
    given = fault.headers
    if given.get("Content-Type") == "application/json":
        given = given | {"Content-Type": content_type}
    return given


async def _drip(fault: Fault, request: web.Request) -> web.Response:
    """Send a header that does not end until the client leaves or the fault is cleared."""
    transport = request.transport
    if transport is not None:
        transport.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
    while transport is not None and not transport.is_closing() and not fault.cleared.is_set():
        transport.write(b"x")
        await asyncio.sleep(fault.seconds)
    return cut(request)


async def _unending(fault: Fault, request: web.Request, response: web.Response) -> web.StreamResponse:
    """Begin the sound answer, and go on as the fault has it, until the client leaves or it is cleared."""
    text = (response.text or "").encode()
    half = web.StreamResponse(headers={"Content-Type": response.content_type})
    await half.prepare(request)
    await half.write(text[: len(text) // 2])
    with suppress(ConnectionError):
        while request.transport is not None and not request.transport.is_closing():
            if fault.kind == "endless":
                await half.write(b" " * _PIECE)
            elif fault.kind == "trickle":
                await half.write(b" ")
            with suppress(TimeoutError):
                await asyncio.wait_for(fault.cleared.wait(), 0 if fault.kind == "endless" else fault.seconds)
                break
    return cut(request)


class _Written(web.Response):
    """An answer that stands on its connection already, where the next request may follow."""

    keep_alive = True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write no head."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Write no body."""


async def _altered(fault: Fault, request: web.Request, response: web.Response) -> web.StreamResponse:
    text = response.text or ""
    if fault.kind == "content-type":
        return web.Response(text=text, content_type=fault.content_type)
    if fault.kind == "truncated":
        half = web.StreamResponse(headers={"Content-Type": response.content_type})
        half.content_length = len(text.encode())
        await half.prepare(request)
        await half.write(text.encode()[: len(text) // 2])
        if request.transport is not None:
            request.transport.close()
        return half
    if fault.kind == "ended" and request.transport is not None:
        head = f"HTTP/1.1 {response.status} X\r\nContent-Type: {response.content_type}\r\n\r\n"
        request.transport.write((head + text.ljust(fault.size)).encode())
        request.transport.close()
        return response
    if fault.kind in ("early", "chunked") and request.version < (1, 1):
        return response  # such a client knows neither
    if fault.kind == "early" and request.transport is not None:
        request.transport.write(_EARLY * 2)
        return response
    if fault.kind == "chunked" and request.transport is not None:
        head = f"HTTP/1.1 {response.status} X\r\nContent-Type: {response.content_type}\r\n"
        pieces = [text[n * (n - 1) // 2 : n * (n + 1) // 2] for n in range(1, len(text) + 1)]
        sizes = [format(len(piece), "03X" if len(piece) % 2 else "x") for piece in pieces if piece]
        chunks = "".join(f"{size};of=set\r\n{piece}\r\n" for size, piece in zip(sizes, pieces, strict=False))
        end = f"{chunks}0;last\r\nX-Trailer: 1\r\n\r\n"
        request.transport.write(f"{head}Transfer-Encoding: chunked\r\n\r\n{end}".encode())
        return _Written()
    if fault.kind == "repeated" and request.transport is not None:
        head = f"HTTP/1.1 {response.status} X\r\nContent-Type: {response.content_type}\r\n"
        whole = f"{head}Content-Length: {len(text.encode())}\r\n\r\n{text}"
        request.transport.write(whole.encode() * _COPIES)
        return _Written()
    if not text.startswith("{"):  # XML of the cloud: white space may follow the document
        return web.Response(
            text=text.ljust(fault.size), content_type=response.content_type, status=response.status
        )
    table = json.loads(text)
    if fault.kind == "patch":
        table.update(fault.members)
    else:
        more = max(0, fault.size - len(text))
        table["padding"] = secrets.token_urlsafe(more)[:more]
    return web.json_response(table, status=response.status)


def cut(request: web.Request) -> web.Response:
    """Reset the connection."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
