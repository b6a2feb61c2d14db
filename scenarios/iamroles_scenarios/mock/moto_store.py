"""The real moto server behind the front: it keeps accounts, users, roles, providers and role sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlencode
from xml.etree import ElementTree as ET

import aiohttp
from moto.iam.utils import generate_access_key_id_from_account_id
from moto.server import ThreadedMotoServer

from iamroles_scenarios.mock.credentials import AwsError

_VERSIONS = {"iam": "2010-05-08", "sts": "2011-06-15"}


def new_key_id(account: str) -> str:
    """An access key id of an account; moto, like AWS, tells the account from it."""
    return str(generate_access_key_id_from_account_id(account, prefix="ASIA", total_length=20))


def texts(element: ET.Element) -> dict[str, str]:
    """Leaf elements by name, without namespaces; of equal names the first."""
    found: dict[str, str] = {}
    for each in element.iter():
        if not len(each):
            found.setdefault(each.tag.rpartition("}")[2], (each.text or "").strip())
    return found


class MotoStore:
    """A moto server of this process, on loopback and a port of its own.

    It checks nothing: only the front may reach it. It lives on a daemon thread and ends with the process;
    stopping it takes its server another second that nobody needs.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    @classmethod
    @asynccontextmanager
    async def started(cls) -> AsyncIterator[MotoStore]:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        await asyncio.to_thread(server.start)
        host, port = server.get_host_and_port()
        async with aiohttp.ClientSession() as session:
            yield cls(session, f"http://{host}:{port}/")

    async def raw(
        self, service: str, body: bytes, account: str, key_id: str | None = None
    ) -> tuple[int, bytes, str]:
        """Pass a query-protocol body on, as the holder of `key_id`: status, body, content type."""
        scope = f"{key_id or new_key_id(account)}/20260101/us-east-1/{service}/aws4_request"
        headers = {
            "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature={'0' * 64}",
            "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
            "Host": f"{service}.amazonaws.com",
            "x-moto-account-id": account,
        }
        async with self._session.post(self._url, data=body, headers=headers) as answer:
            return answer.status, await answer.read(), answer.content_type

    async def call(
        self, service: str, action: str, parameters: Mapping[str, Any], account: str
    ) -> ET.Element:
        """One action on behalf of the account.

        Raises:
            AwsError: moto's error.
        """
        form = {"Action": action, "Version": _VERSIONS[service], **parameters}
        status, body, _ = await self.raw(service, urlencode(form).encode(), account)
        document = ET.fromstring(body)  # noqa: S314 - moto's answer
        if status != 200:
            fields = texts(document)
            raise AwsError(status, fields.get("Code", "InternalFailure"), fields.get("Message", ""))
        return document

    async def role(self, arn: str) -> dict[str, Any] | None:
        """RoleName, Arn, RoleId, MaxSessionDuration, policy (`trust`) and `tags`; None: no such role."""
        name, account = arn.rpartition("/")[2], arn.split(":")[4]
        try:
            document = await self.call("iam", "GetRole", {"RoleName": name}, account)
            tags = await self.call("iam", "ListRoleTags", {"RoleName": name}, account)
        except AwsError as fault:
            if fault.code == "NoSuchEntity":
                return None
            raise
        fields: dict[str, Any] = texts(document)
        if fields["Arn"] != arn:
            return None
        fields["trust"] = _policy(fields["AssumeRolePolicyDocument"])
        fields["tags"] = tags_of(tags)
        return fields

    async def provider(self, arn: str) -> list[str] | None:
        """Client ids of an OIDC provider; None: no such provider."""
        try:
            document = await self.call(
                "iam", "GetOpenIDConnectProvider", {"OpenIDConnectProviderArn": arn}, arn.split(":")[4]
            )
        except AwsError as fault:
            if fault.code == "NoSuchEntity":
                return None
            raise
        return [
            (member.text or "").strip()
            for each in document.iter()
            if each.tag.endswith("ClientIDList")
            for member in each
        ]


def tags_of(document: ET.Element) -> dict[str, str]:
    """Key and Value of each tag."""
    found = {}
    for each in document.iter():
        fields = {child.tag.rpartition("}")[2]: child.text or "" for child in each}
        if set(fields) == {"Key", "Value"}:
            found[fields["Key"]] = fields["Value"]
    return found


def _policy(text: str) -> Any:  # noqa: ANN401 - any JSON
    return json.loads(text if text.lstrip().startswith("{") else unquote(text))
