"""Answers of AWS's query protocol: XML, or JSON where the caller accepts it, as STS does."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from aiohttp import web

from iamroles_scenarios.mock.credentials import AwsError

NAMESPACES = {
    "sts": "https://sts.amazonaws.com/doc/2011-06-15/",
    "iam": "https://iam.amazonaws.com/doc/2010-05-08/",
}


def wants_json(request: web.Request) -> bool:
    """Return whether the caller asks for JSON (the fetch that Vault and aws-iam-authenticator do)."""
    return "application/json" in request.headers.get("Accept", "")


def success(
    request: web.Request, service: str, action: str, result: Mapping[str, Any] | None
) -> web.Response:
    """`<ActionResponse><ActionResult>...`; no result element where `result` is None."""
    metadata = {"RequestId": str(uuid.uuid4())}
    if wants_json(request):
        body: dict[str, Any] = {} if result is None else {f"{action}Result": dict(result)}
        return web.json_response({f"{action}Response": body | {"ResponseMetadata": metadata}})
    inner = "" if result is None else f"<{action}Result>{_xml(result)}</{action}Result>"
    text = (
        f'<{action}Response xmlns="{NAMESPACES[service]}">{inner}'
        f"<ResponseMetadata>{_xml(metadata)}</ResponseMetadata></{action}Response>"
    )
    return web.Response(text=text, content_type="text/xml")


def failure(request: web.Request, service: str, error: AwsError) -> web.Response:
    """`<ErrorResponse><Error>...`."""
    kind = "Sender" if error.status < 500 else "Receiver"
    fields = {"Type": kind, "Code": error.code, "Message": error.message}
    if wants_json(request):
        table = {"Error": fields, "RequestId": str(uuid.uuid4())}
        return web.json_response(table, status=error.status)
    text = (
        f'<ErrorResponse xmlns="{NAMESPACES[service]}"><Error>{_xml(fields)}</Error>'
        f"<RequestId>{uuid.uuid4()}</RequestId></ErrorResponse>"
    )
    return web.Response(text=text, content_type="text/xml", status=error.status)


def _xml(table: Mapping[str, Any]) -> str:
    parts = []
    for name, value in table.items():
        text = _xml(value) if isinstance(value, Mapping) else escape(str(value))
        parts.append(f"<{name}>{text}</{name}>")
    return "".join(parts)
