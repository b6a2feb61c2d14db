"""IAM through the front: moto does the work, the front decides who may ask and learns what was issued."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import urlencode
from xml.etree import ElementTree as ET

from aiohttp import web

from iamroles_scenarios.mock import answers, sigv4
from iamroles_scenarios.mock.credentials import AwsError, Credential, Registry
from iamroles_scenarios.mock.moto_store import MotoStore, texts
from iamroles_scenarios.mock.outbound import Outbound

ADMINISTRATOR = "administrator"


class Iam:
    """IAM actions."""

    def __init__(self, registry: Registry, store: MotoStore, outbound: Outbound) -> None:
        self._registry = registry
        self._store = store
        self._outbound = outbound
        self._administrators: dict[str, str] = {}
        self._making = asyncio.Lock()

    async def administrator(self, account: str) -> Credential:
        """The account's first user and key; made when first asked for."""
        async with self._making:
            if account not in self._administrators:
                await self._store.call("iam", "CreateUser", {"UserName": ADMINISTRATOR}, account)
                key = await self._store.call("iam", "CreateAccessKey", {"UserName": ADMINISTRATOR}, account)
                credential = await self._learn_key(texts(key), account)
                self._administrators[account] = credential.access_key_id
        return self._registry[self._administrators[account]]

    async def perform(
        self,
        request: web.Request,
        caller: Credential,
        action: str,
        parameters: Mapping[str, str],
        received: sigv4.Received,
    ) -> web.Response:
        """One action of a user.

        Raises:
            AwsError: the caller is a session: role sessions hold no policy here, and AWS lets sessions of
                GetSessionToken call IAM only with MFA.
        """
        if caller.session:
            raise AwsError(
                403, "AccessDenied", f"User: {caller.arn} is not authorized to perform: iam:{action}"
            )
        if action.endswith(("OutboundWebIdentityFederation", "OutboundWebIdentityFederationInfo")):
            return await self._federation(request, caller.account, action)
        body = received.body or urlencode(list(received.parameters())).encode()
        leaving = await self._leaving(action, parameters, caller.account)
        status, answer, kind = await self._store.raw("iam", body, caller.account, caller.moto_key)
        if status == 200:
            await self._learn(action, parameters, answer, caller)
            self._registry.drop(leaving)
        return web.Response(body=answer, status=status, content_type=kind)

    async def _federation(self, request: web.Request, account: str, action: str) -> web.Response:
        if action != "GetOutboundWebIdentityFederationInfo":
            self._outbound.enable(account, action.startswith("Enable"))
        issuer = await self._outbound.issuer(account)
        result: dict[str, str] | None = {"IssuerIdentifier": issuer.url}
        if action.startswith("Get"):
            result = {
                "IssuerIdentifier": issuer.url,
                "JwtVendingEnabled": str(self._outbound.enabled(account)).lower(),
            }
        elif action.startswith("Disable"):
            result = None
        return answers.success(request, "iam", action, result)

    async def _leaving(self, action: str, parameters: Mapping[str, str], account: str) -> list[str]:
        """Keys that end when this action succeeds."""
        if action == "DeleteRole":
            document = await self._existing("GetRole", {"RoleName": parameters.get("RoleName", "")}, account)
            return self._registry.of_principal(role_arn=document.get("Arn", ""))
        if action == "DeleteUser":
            document = await self._existing("GetUser", {"UserName": parameters.get("UserName", "")}, account)
            return self._registry.of_principal(arn=document.get("Arn", ""))
        return [parameters.get("AccessKeyId", "")] if action == "DeleteAccessKey" else []

    async def _existing(self, action: str, parameters: Mapping[str, str], account: str) -> dict[str, str]:
        try:
            return texts(await self._store.call("iam", action, parameters, account))
        except AwsError:
            return {}

    async def _learn(
        self, action: str, parameters: Mapping[str, str], answer: bytes, caller: Credential
    ) -> None:
        if action == "CreateAccessKey":
            await self._learn_key(texts(ET.fromstring(answer)), caller.account)  # noqa: S314 - moto's answer
        elif action == "UpdateAccessKey" and (held := self._registry.get(parameters.get("AccessKeyId", ""))):
            held.active = parameters.get("Status") == "Active"

    async def _learn_key(self, fields: Mapping[str, str], account: str) -> Credential:
        user = texts(await self._store.call("iam", "GetUser", {"UserName": fields["UserName"]}, account))
        key_id = fields["AccessKeyId"]
        return self._registry.add(
            Credential(
                key_id, fields["SecretAccessKey"], account, user["Arn"], user["UserId"], moto_key=key_id
            )
        )
