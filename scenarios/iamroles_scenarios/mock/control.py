"""The HTTP control interface that the IdP and the cloud share: JSON tables, mistakes, waiting, serving."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from iamroles_scenarios.base import process
from iamroles_scenarios.base.errors import CommandError, RecipeError
from iamroles_scenarios.mock.counters import Counters

_log = logging.getLogger("iamroles.mock.control")
_MAX_BODY = 16 << 20


async def table(request: web.Request, known: set[str] | None = None) -> dict[str, Any]:
    """The JSON object of a control request; empty without a body.

    Raises:
        CommandError: not an object, or a name that is not `known`.
    """
    text = await request.text()
    try:
        value = json.loads(text) if text else {}
    except ValueError as fault:
        raise CommandError(f"not JSON: {fault}") from fault
    if not isinstance(value, dict):
        raise CommandError("not a JSON object")
    if known is not None and (unknown := set(value) - known):
        raise CommandError(f"unknown members {sorted(unknown)}; known are {sorted(known)}")
    return value


async def health(_request: web.Request) -> web.Response:
    """Answer that the process serves."""
    return web.json_response({"ready": True})


async def wait(request: web.Request, counters: Counters) -> web.Response:
    """Long poll: 200 with all counts when `counter` is at least `at-least`; 504 after `timeout` seconds."""
    try:
        name, at_least = request.query["counter"], int(request.query.get("at-least", "1"))
        deadline = min(86_400.0, float(request.query.get("timeout", "10")))  # a day also for inf and nan
    except (KeyError, ValueError) as fault:
        raise CommandError("say counter=<name>&at-least=<count>&timeout=<seconds>") from fault
    reached = await counters.wait(name, at_least, deadline)
    return web.json_response(counters.snapshot(), status=200 if reached else 504)


@web.middleware
async def _explain(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    _log.debug("%s %s", request.method, request.path)
    try:
        return await handler(request)
    except CommandError as mistake:
        return web.json_response({"error": str(mistake)}, status=mistake.status)
    except (RecipeError, ValueError, TypeError, KeyError) as fault:
        if not request.path.startswith("/_control/"):
            raise
        return web.json_response({"error": f"{type(fault).__name__}: {fault}"}, status=400)


@asynccontextmanager
async def serving(routes: Iterable[web.AbstractRouteDef], options: process.MockOptions) -> AsyncIterator[str]:
    """Serve `routes` where the options say; yields `host:port`.

    A handler is cancelled when its client leaves, so that a stalled answer holds nothing.
    """
    application = web.Application(middlewares=[_explain], client_max_size=_MAX_BODY)
    application.add_routes(routes)
    runner = web.AppRunner(
        application, access_log=None, handler_cancellation=True, shutdown_timeout=0.5, keepalive_timeout=75
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, options.host, options.port, backlog=1024)
        await site.start()
        yield process.joined(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()
