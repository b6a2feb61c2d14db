"""The mock OIDC issuer: many issuers in one process, each under the first segment of the path.

    python -m iamroles_scenarios.mock.idp --listen 127.0.0.1:0 [--public-url http://idp:8080]

prints `{"ready": true, "address": "127.0.0.1:40001", "url": "http://127.0.0.1:40001"}`. Issuer `corp` is
then `http://127.0.0.1:40001/corp`:

===================================================  =======================================================
`GET  /corp/.well-known/openid-configuration`        discovery
`GET  /corp/.well-known/oauth-authorization-server`  RFC 8414; also under the root, with the name inserted
`GET  /corp/jwks`                                    keys
`POST /corp/token`                                   client_credentials, for the demo and for people with curl
`GET  /corp/moved/<endpoint>`                        the sound answer: a place for redirects to lead to
===================================================  =======================================================

Control, JSON in and out (`mock.clients.IdpClient` speaks it):

==============================================  ============================================================
`PUT    /_control/issuers/corp`                 create or replace: `shape`, `keys` (algorithms), `clients`
`GET    /_control/issuers/corp`                 url, shape, private keys, published entries
`DELETE /_control/issuers/corp`                 forget it
`POST   /_control/issuers/corp/keys`            `algorithm`, `kid`, `bits`, `curve`, `publish`, `sign`
`POST   /_control/issuers/corp/rotate`          `algorithm`, `overlap`
`POST   /_control/issuers/corp/remove`          `kid`
`POST   /_control/issuers/corp/publish`         `entries`, `replace`: raw JWKS entries
`POST   /_control/issuers/corp/poison`          `kind`: `issuer.POISONS`
`POST   /_control/issuers/corp/fault`           `endpoint` and a fault (`faults`); `{"clear": true}` ends
`GET    /_control/issuers/corp/counters`        counts by endpoint; `<endpoint>-done` after the answer
`GET    /_control/wait`                         `?issuer=&counter=&at-least=&timeout=`; 504 at the deadline
==============================================  ============================================================
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from iamroles_scenarios.base import process
from iamroles_scenarios.base.errors import CommandError
from iamroles_scenarios.jose import SHAPES, SigningKey
from iamroles_scenarios.mock import control, faults
from iamroles_scenarios.mock.issuer import DEFAULT_ALGORITHMS, ENDPOINTS, POISONS, Issuer, OauthClient

_log = logging.getLogger("iamroles.mock.idp")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Idp:
    """All issuers, and the two faces: public and control."""

    def __init__(self) -> None:
        self.url = ""
        self._issuers: dict[str, Issuer] = {}

    def find(self, name: str) -> Issuer | None:
        return self._issuers.get(name)

    def put(self, issuer: Issuer) -> None:
        self._issuers[issuer.name] = issuer

    def routes(self, *, own_wait: bool = True) -> list[web.RouteDef]:
        """Control first: no issuer's name begins with an underscore.

        Args:
            own_wait: False: the caller serves `/_control/wait` and passes on to `wait`.
        """
        one = "/_control/issuers/{issuer}"
        posts = {"keys": self._keys, "rotate": self._rotate, "remove": self._remove, "publish": self._publish}
        posts |= {"poison": self._poison, "fault": self._fault}
        well_known = "/{issuer}/.well-known"
        return [
            web.get("/_control/health", control.health),
            web.put(one, self._create),
            web.get(one, self._show),
            web.delete(one, self._delete),
            web.get(one + "/counters", self._counters),
            *([web.get("/_control/wait", self.wait)] if own_wait else []),
            *(web.post(f"{one}/{name}", handler) for name, handler in posts.items()),
            web.get(well_known + "/openid-configuration", self._public("discovery")),
            web.get(well_known + "/oauth-authorization-server", self._public("metadata")),
            web.get("/.well-known/oauth-authorization-server/{issuer}", self._public("metadata")),
            web.get("/{issuer}/jwks", self._public("jwks")),
            web.get(well_known + "/jwks.json", self._public("jwks")),
            web.post("/{issuer}/token", self._public("token")),
            web.get("/{issuer}/moved/{endpoint}", self._moved),
        ]

    # public face

    def _public(self, endpoint: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            issuer = self._issuers.get(request.match_info["issuer"])
            if issuer is None:
                raise web.HTTPNotFound(text="no such issuer")
            issuer.counters.add(endpoint)
            response = await faults.answer(
                issuer.faults.take(endpoint), request, lambda: self._sound(issuer, endpoint, request)
            )
            issuer.counters.add(f"{endpoint}-done")
            return response

        return handle

    async def _sound(self, issuer: Issuer, endpoint: str, request: web.Request) -> web.Response:
        if endpoint == "token":
            return await _token(issuer, request)
        document = {"discovery": issuer.discovery, "metadata": issuer.metadata, "jwks": issuer.jwks}[endpoint]
        return web.json_response(document(), headers={"Cache-Control": "public, max-age=300"})

    async def _moved(self, request: web.Request) -> web.StreamResponse:
        issuer, endpoint = self._issuer(request), request.match_info["endpoint"]
        if endpoint not in ENDPOINTS or endpoint == "token":
            raise web.HTTPNotFound(text="no such endpoint")
        issuer.counters.add(f"{endpoint}-moved")
        return await self._sound(issuer, endpoint, request)

    # control

    def _issuer(self, request: web.Request) -> Issuer:
        name = request.match_info.get("issuer") or request.query.get("issuer", "")
        if name not in self._issuers:
            raise CommandError(f"no issuer {name!r}; there are {sorted(self._issuers)}", status=404)
        return self._issuers[name]

    async def _create(self, request: web.Request) -> web.Response:
        name, table = request.match_info["issuer"], await control.table(request, {"shape", "keys", "clients"})
        if not _NAME.fullmatch(name):
            raise CommandError(f"issuer name {name!r} is not {_NAME.pattern}")
        shape = table.get("shape", "generic")
        if shape not in SHAPES:
            raise CommandError(f"unknown shape {shape!r}; known are {sorted(SHAPES)}")
        issuer = Issuer(name, f"{self.url}/{name}", shape)
        issuer.clients = {key: OauthClient(**client) for key, client in table.get("clients", {}).items()}
        for algorithm in reversed(table.get("keys", DEFAULT_ALGORITHMS)):
            issuer.add(await asyncio.to_thread(issuer.new_key, algorithm))
        self._issuers[name] = issuer
        _log.info("issuer %s: shape %s, keys %s", name, shape, [key.kid for key in issuer.signing])
        return web.json_response(issuer.report())

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._issuer(request).report())

    async def _delete(self, request: web.Request) -> web.Response:
        issuer = self._issuer(request)
        issuer.faults.clear()
        del self._issuers[issuer.name]
        return web.json_response({})

    async def _keys(self, request: web.Request) -> web.Response:
        issuer = self._issuer(request)
        table = await control.table(request, {"algorithm", "kid", "bits", "curve", "publish", "sign"})
        publish, sign = table.pop("publish", True), table.pop("sign", True)
        algorithm = table.pop("algorithm", "RS256")
        key = await asyncio.to_thread(lambda: issuer.new_key(algorithm, **table))
        issuer.add(key, publish=publish, sign=sign)
        return _with_key(issuer, key)

    async def _rotate(self, request: web.Request) -> web.Response:
        issuer, table = self._issuer(request), await control.table(request, {"algorithm", "overlap"})
        key = await asyncio.to_thread(issuer.rotate, table.get("algorithm"), table.get("overlap", True))
        _log.info("issuer %s: rotated to %s", issuer.name, key.kid)
        return _with_key(issuer, key)

    async def _remove(self, request: web.Request) -> web.Response:
        issuer, table = self._issuer(request), await control.table(request, {"kid"})
        if not issuer.remove(table.get("kid", "")):
            raise CommandError(f"issuer {issuer.name} has no key {table.get('kid')!r}", status=404)
        return web.json_response(issuer.report())

    async def _publish(self, request: web.Request) -> web.Response:
        issuer, table = self._issuer(request), await control.table(request, {"entries", "replace"})
        old = [] if table.get("replace") else issuer.published
        issuer.published = [*old, *table.get("entries", [])]
        return web.json_response(issuer.report())

    async def _poison(self, request: web.Request) -> web.Response:
        issuer, table = self._issuer(request), await control.table(request, {"kind"})
        poison = POISONS.get(table.get("kind", ""))
        if poison is None:
            raise CommandError(f"unknown poison {table.get('kind')!r}; known are {sorted(POISONS)}")
        if not issuer.signing:
            raise CommandError(f"{issuer.name} has no key that signs: add one before you poison its set")
        entries, key = await asyncio.to_thread(poison, issuer)
        issuer.published = [*issuer.published, *entries]
        return _with_key(issuer, key)

    async def _fault(self, request: web.Request) -> web.Response:
        issuer, table = self._issuer(request), await control.table(request)
        endpoint = table.pop("endpoint", "jwks")
        if endpoint not in (*ENDPOINTS, "*"):
            raise CommandError(f"unknown endpoint {endpoint!r}; known are {[*ENDPOINTS, '*']}")
        if table.pop("clear", False):
            issuer.faults.clear(None if endpoint == "*" else endpoint)
        else:
            fault = faults.Fault.of(table)
            fault.location = fault.location or f"{issuer.url}/moved/{endpoint}"
            issuer.faults.set(endpoint, fault)
        return web.json_response({})

    async def _counters(self, request: web.Request) -> web.Response:
        return web.json_response(self._issuer(request).counters.snapshot())

    async def wait(self, request: web.Request) -> web.Response:
        """Answer when an issuer's count is reached."""
        return await control.wait(request, self._issuer(request).counters)


def _with_key(issuer: Issuer, key: SigningKey | None) -> web.Response:
    return web.json_response(issuer.report() | {"key": key.private_jwk() if key else None})


def _oauth_error(status: int, code: str, description: str) -> web.Response:
    headers = {"WWW-Authenticate": "Basic"} if status == 401 else {}
    return web.json_response(
        {"error": code, "error_description": description}, status=status, headers=headers
    )


async def _token(issuer: Issuer, request: web.Request) -> web.Response:
    """RFC 6749 sections 2.3.1 and 4.4."""
    form = {name: str(value) for name, value in (await request.post()).items()}
    client_id, secret = form.get("client_id", ""), form.get("client_secret", "")
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(given, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return _oauth_error(401, "invalid_client", "malformed Basic credentials")
        client_id, secret = urllib.parse.unquote_plus(pair[0]), urllib.parse.unquote_plus(pair[2])
    if form.get("grant_type") != "client_credentials":
        return _oauth_error(400, "unsupported_grant_type", "only client_credentials")
    client = issuer.clients.get(client_id)
    if client is None or client.secret != secret:
        return _oauth_error(401, "invalid_client", "unknown client or wrong secret")
    document: dict[str, Any] = issuer.token(client_id, client, time.time(), form)
    return web.json_response(document, headers={"Cache-Control": "no-store"})


async def serve(options: process.MockOptions) -> None:
    """Run until stopped."""
    idp = Idp()
    async with control.serving(idp.routes(), options) as address:
        idp.url = options.public_url or f"http://{address}"
        await process.until_stopped(options, address=address, url=idp.url)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the process."""
    parser = process.parser("iamroles_scenarios.mock.idp", "Mock OIDC issuer.")
    process.run(serve(process.options(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
