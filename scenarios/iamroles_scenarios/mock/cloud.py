"""The mock cloud: an honest front before a real moto server.

    python -m iamroles_scenarios.mock.cloud --listen 127.0.0.1:0 [--public-url http://cloud:8080]

prints `{"ready": true, "address": "127.0.0.1:40001", "url": "http://127.0.0.1:40001"}`. boto3 works
unchanged with `endpoint_url` set to it, for `sts` and `iam`. Differences from AWS: docs/mock-cloud.md.

===========================================  ===============================================================
`POST /`, `GET /`                            AWS's query protocol, signed in the header or pre-signed
`GET  /<uuid>/.well-known/...`               an account's outbound federation issuer
`PUT  /_control/accounts/111111111111`       an administrator's access key in the account; its issuer
`POST /_control/fault`                       `action` (or `*`) and a fault (also `throttle`, `forge`)
`POST /_control/lifetime`                    `seconds` that new sessions live; null: as asked
`POST /_control/expire`                      `access_key_id`: its session ends now
`GET  /_control/counters`, `/_control/wait`  counts by action, `<action>-done`, `<action>-refused`
`GET  /_control/last?action=`                the last request of an action as it arrived, secrets blanked
`/_control/issuers/<uuid>/...`               as in `mock.idp`, for the outbound issuers
===========================================  ===============================================================

Faults, counts and `last` also go by `<action>@<Host>`: who signs for a host of its own has them to itself.
`throttle` answers 400 `Throttling` (`status`, `body` as code); `forge` answers a GetCallerIdentity 200 with
`members` Arn, Account, UserId, for any caller, however badly signed.
"""

from __future__ import annotations

import logging
import re
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from iamroles_scenarios.base import process
from iamroles_scenarios.base.errors import CommandError
from iamroles_scenarios.mock import answers, control, faults, sigv4
from iamroles_scenarios.mock.counters import Counters
from iamroles_scenarios.mock.credentials import AwsError, Credential, Registry
from iamroles_scenarios.mock.iam import Iam
from iamroles_scenarios.mock.idp import Idp
from iamroles_scenarios.mock.moto_store import MotoStore
from iamroles_scenarios.mock.outbound import Outbound
from iamroles_scenarios.mock.sts import Sts

_log = logging.getLogger("iamroles.mock.cloud")
_KINDS = faults.KINDS | {"throttle", "forge"}
_SERVICES = {"2011-06-15": "sts", "2010-05-08": "iam"}
_SECRET = re.compile(r"(?i)(X-Amz-(?:Signature|Security-Token)=|Signature=)[^&,\s]+")


class Cloud:
    """The front: authenticates, dispatches, and misbehaves on command."""

    def __init__(self, store: MotoStore) -> None:
        self.idp = Idp()
        self.registry = Registry()
        self.outbound = Outbound(self.idp)
        self.sts = Sts(self.registry, store, self.outbound)
        self.iam = Iam(self.registry, store, self.outbound)
        self._faults = faults.Faults()
        self._counters = Counters()
        self._last: dict[str, dict[str, Any]] = {}

    def routes(self) -> list[web.RouteDef]:
        """Control and AWS first; what is left belongs to the outbound issuers."""
        return [
            web.get("/_control/counters", self._show_counters),
            web.get("/_control/wait", self._wait),
            web.get("/_control/last", self._show_last),
            web.put("/_control/accounts/{account}", self._account),
            web.post("/_control/fault", self._fault),
            web.post("/_control/lifetime", self._lifetime),
            web.post("/_control/expire", self._expire),
            web.post("/", self._aws),
            web.get("/", self._aws),
            *self.idp.routes(own_wait=False),
        ]

    # AWS

    async def _aws(self, request: web.Request) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers]
        received = sigv4.Received(request.method, path, query, headers, await request.read())
        parameters = dict(received.parameters()) | _form(received)
        action = parameters.get("Action", "none")
        here = f"{action}@{received.header('host') or ''}"
        for name in (here, action):
            self._note(name, received)
            self._counters.add(name)
        fault = self._faults.take(here, action)
        if fault is not None and fault.kind in ("throttle", "forge"):
            response: web.StreamResponse = _misbehave(fault, request)
        else:
            response = await faults.answer(
                fault, request, lambda: self._answer(request, received, action, parameters)
            )
        self._counters.add(f"{action}-{'done' if response.status == 200 else 'refused'}")
        return response

    async def _answer(
        self, request: web.Request, received: sigv4.Received, action: str, parameters: dict[str, str]
    ) -> web.Response:
        service = _SERVICES.get(parameters.get("Version", ""), "sts")
        try:
            if parameters.get("Version", "") not in _SERVICES:
                raise AwsError(400, "InvalidAction", f"Could not find operation {action} for this version")
            return await self._perform(request, received, service, action, parameters)
        except AwsError as error:
            _log.info("%s refused: %s", action, error)
            return answers.failure(request, service, error)

    async def _perform(
        self,
        request: web.Request,
        received: sigv4.Received,
        service: str,
        action: str,
        parameters: dict[str, str],
    ) -> web.Response:
        if service == "sts" and action == "AssumeRoleWithWebIdentity":
            return answers.success(
                request, service, action, await self.sts.assume_role_with_web_identity(parameters)
            )
        caller = self.registry.authenticate(received, service)
        if service == "iam":
            return await self.iam.perform(request, caller, action, parameters, received)
        perform = {
            "GetCallerIdentity": self.sts.get_caller_identity,
            "GetAccessKeyInfo": self.sts.get_access_key_info,
            "AssumeRole": self.sts.assume_role,
            "GetSessionToken": self.sts.get_session_token,
            "GetFederationToken": self.sts.get_federation_token,
            "GetWebIdentityToken": self.sts.get_web_identity_token,
        }.get(action)
        if perform is None:
            raise AwsError(400, "InvalidAction", f"Could not find operation {action} in this mock")
        return answers.success(request, service, action, await perform(caller, parameters))

    def _note(self, action: str, received: sigv4.Received) -> None:
        """Keep the request for `/_control/last`, without signatures and tokens."""
        self._last[action] = {
            "method": received.method,
            "path": received.path,
            "query": _SECRET.sub(r"\1...", received.query),
            "headers": [
                [name, "..." if name.lower() == "x-amz-security-token" else _SECRET.sub(r"\1...", value)]
                for name, value in received.headers
            ],
        }

    # control

    async def _account(self, request: web.Request) -> web.Response:
        account = request.match_info["account"]
        if not re.fullmatch(r"\d{12}", account):
            raise CommandError(f"account {account!r} is not 12 digits")
        administrator: Credential = await self.iam.administrator(account)
        issuer = await self.outbound.issuer(account)
        return web.json_response(
            {
                "account": account,
                "arn": administrator.arn,
                "access_key_id": administrator.access_key_id,
                "secret_access_key": administrator.secret,
                "issuer": issuer.name,
            }
        )

    async def _fault(self, request: web.Request) -> web.Response:
        table = await control.table(request)
        action = table.pop("action", "*")
        if table.pop("clear", False):
            self._faults.clear(None if action == "*" else action)
        else:
            self._faults.set(action, faults.Fault.of(table, _KINDS))
        return web.json_response({})

    async def _lifetime(self, request: web.Request) -> web.Response:
        table = await control.table(request, {"seconds"})
        seconds = table.get("seconds")
        self.sts.lifetime = None if seconds is None else float(seconds)
        return web.json_response({})

    async def _expire(self, request: web.Request) -> web.Response:
        table = await control.table(request, {"access_key_id"})
        credential = self.registry.get(table.get("access_key_id", ""))
        if credential is None or credential.expires is None:
            raise CommandError("no session with this access_key_id", status=404)
        credential.expires = 0.0
        return web.json_response({})

    async def _show_counters(self, _request: web.Request) -> web.Response:
        return web.json_response(self._counters.snapshot())

    async def _wait(self, request: web.Request) -> web.Response:
        if "issuer" in request.query:
            return await self.idp.wait(request)
        return await control.wait(request, self._counters)

    async def _show_last(self, request: web.Request) -> web.Response:
        action = request.query.get("action", "GetCallerIdentity")
        if action not in self._last:
            raise CommandError(f"no {action} yet", status=404)
        return web.json_response(self._last[action])


def _form(received: sigv4.Received) -> dict[str, str]:
    kind = received.header("content-type") or ""
    if not kind.startswith("application/x-www-form-urlencoded"):
        return {}
    return dict(parse_qsl(received.body.decode("utf-8", "replace"), keep_blank_values=True))


def _misbehave(fault: faults.Fault, request: web.Request) -> web.Response:
    if fault.kind == "forge":
        return answers.success(request, "sts", "GetCallerIdentity", fault.members)
    code = fault.body if fault.body.isalpha() else "Throttling"
    return answers.failure(request, "sts", AwsError(fault.status or 400, code, "Rate exceeded"))


async def serve(options: process.MockOptions) -> None:
    """Run until stopped."""
    async with MotoStore.started() as store:
        cloud = Cloud(store)
        async with control.serving(cloud.routes(), options) as address:
            cloud.idp.url = options.public_url or f"http://{address}"
            await process.until_stopped(options, address=address, url=cloud.idp.url)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the process."""
    parser = process.parser("iamroles_scenarios.mock.cloud", "Mock AWS: STS and IAM.")
    process.run(serve(process.options(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
