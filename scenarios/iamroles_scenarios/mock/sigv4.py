"""AWS Signature Version 4 by botocore's own signer, for both sides: the caller's and the cloud's.

The front never compares with what a client *says* it signed. It rebuilds the canonical request from the bytes
that arrived (method, path, query, the headers that SignedHeaders names, the body), signs that with the secret
it issued, and compares. So one flipped byte anywhere in the signed part is a mismatch, as on AWS.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ALGORITHM = "AWS4-HMAC-SHA256"
_SCOPE = re.compile(
    r"(?P<key>[A-Za-z0-9]{4,128})/(?P<date>\d{8})/(?P<region>[a-z0-9-]+)/(?P<service>[a-z0-9-]+)/aws4_request"
)


@dataclass(frozen=True)
class Received:
    """A request as it arrived."""

    method: str
    path: str
    """Without the query."""
    query: str
    """Raw, without `?`."""
    headers: Sequence[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The values of a header, joined by commas; None if absent."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ",".join(values) if values else None

    def parameters(self) -> list[tuple[str, str]]:
        """The query's parameters, decoded, in order."""
        return parse_qsl(self.query, keep_blank_values=True)


@dataclass(frozen=True)
class Signed:
    """The parameters of a request's signature."""

    access_key_id: str
    date: str
    """`YYYYMMDDTHHMMSSZ`."""
    scope_date: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str
    security_token: str | None
    expires: int | None = None
    """`X-Amz-Expires` of a pre-signed request."""

    @property
    def time(self) -> float:
        """`date` as epoch seconds.

        Raises:
            ValueError: not a date.
        """
        return dt.datetime.strptime(self.date, "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC).timestamp()


class Unsigned(Exception):  # noqa: N818 - a state of the request
    """No signature at all."""


class Incomplete(ValueError):  # noqa: N818 - AWS's word
    """A signature that lacks a part, or has a malformed one."""


def read(received: Received) -> Signed:
    """Find the signature of a request, in its header or its query.

    Raises:
        Unsigned: it has no signature.
        Incomplete: it is malformed, or given twice.
    """
    names = [name.lower() for name, _ in received.parameters()]
    authorization = received.header("authorization")
    if authorization is None and "x-amz-signature" not in names and "x-amz-algorithm" not in names:
        raise Unsigned
    if authorization is not None and "x-amz-signature" in names:
        raise Incomplete("signed in the header and in the query")
    if authorization is None:
        if len(set(names)) != len(names):
            raise Incomplete("a query parameter is given twice")
        return _from_query({name.lower(): value for name, value in received.parameters()})
    return _from_header(authorization, received)


def _from_query(values: Mapping[str, str]) -> Signed:
    if values.get("x-amz-algorithm") != ALGORITHM:
        raise Incomplete(f"X-Amz-Algorithm is not {ALGORITHM}")
    scope = _SCOPE.fullmatch(values.get("x-amz-credential", ""))
    expires = values.get("x-amz-expires", "")
    if scope is None or not re.fullmatch(r"\d{1,6}", expires):
        raise Incomplete("X-Amz-Credential or X-Amz-Expires is missing or malformed")
    return Signed(
        scope["key"], _date(values.get("x-amz-date")), scope["date"], scope["region"], scope["service"],
        tuple(values.get("x-amz-signedheaders", "").split(";")), values.get("x-amz-signature", ""),
        values.get("x-amz-security-token"), int(expires),
    )  # fmt: skip


def _from_header(authorization: str, received: Received) -> Signed:
    algorithm, _, rest = authorization.partition(" ")
    parts = dict(re.findall(r"(\w+)=([^,\s]+)", rest))
    scope = _SCOPE.fullmatch(parts.get("Credential", ""))
    if algorithm != ALGORITHM or scope is None or "SignedHeaders" not in parts or "Signature" not in parts:
        raise Incomplete("Authorization needs Credential, SignedHeaders and Signature")
    return Signed(
        scope["key"], _date(received.header("x-amz-date")), scope["date"], scope["region"], scope["service"],
        tuple(parts["SignedHeaders"].split(";")), parts["Signature"], received.header("x-amz-security-token"),
    )  # fmt: skip


def _date(text: str | None) -> str:
    if text is None or re.fullmatch(r"\d{8}T\d{6}Z", text) is None:
        raise Incomplete("X-Amz-Date is missing or malformed")
    return text


def expected(received: Received, signed: Signed, secret: str) -> str:
    """The signature that the holder of `secret` would have made over what arrived."""
    parameters = [(name, value) for name, value in received.parameters() if name != "X-Amz-Signature"]
    headers = {name: received.header(name) or "" for name in signed.signed_headers}
    return signature(
        received.method, received.path, parameters, headers, received.body, secret=secret,
        key_id=signed.access_key_id, date=signed.date, region=signed.region, service=signed.service,
    )  # fmt: skip


def signature(
    method: str,
    path: str,
    parameters: Sequence[tuple[str, str]],
    headers: Mapping[str, str],
    body: bytes,
    *,
    secret: str,
    key_id: str,
    date: str,
    region: str,
    service: str,
) -> str:
    """Hex signature over exactly these parts; `headers` are the signed ones, Host among them."""
    signed = {name.lower(): value for name, value in headers.items()}
    if "x-amz-content-sha256" in signed:  # the payload's hash is ours, never the header's word
        signed["x-amz-content-sha256"] = hashlib.sha256(body).hexdigest()
    query = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in parameters)
    url = f"http://{signed.get('host', '')}{path}?{query}"
    request = AWSRequest(method=method, url=url, headers=signed, data=body)
    request.context["timestamp"] = date
    signer = SigV4Auth(Credentials(key_id, secret), service, region)
    return str(signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request))
