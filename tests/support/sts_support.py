"""Pre-signed GetCallerIdentity requests, and an STS that checks their signature by hand."""

import hashlib
import hmac
import json
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, urlsplit

from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from tokens_support import ACCOUNT, NOW, Clock, encode_base64url, serving

from iamroles_agent.base.config import Config
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.tokens import Authenticator

KEY_ID, SECRET, TOKEN = "ASIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG", "FwoGZXIvYXdzEBY+/=="
HOST = "sts.eu-west-1.amazonaws.com"
EDGE = "edge-a.example.com"
ARN = f"arn:aws:sts::{ACCOUNT}:assumed-role/Reader/me"


def presign(now=NOW, edge=EDGE, secret=SECRET, expires=60, **changes):
    """The URL that a caller signs with botocore; `changes` add signed headers."""
    url = f"https://{HOST}/?Action=GetCallerIdentity&Version=2011-06-15"
    request = AWSRequest("GET", url, headers={"x-iam-edge": edge} | changes)
    signer = SigV4QueryAuth(Credentials(KEY_ID, secret, TOKEN), "sts", "eu-west-1", expires=expires)
    moment = datetime.fromtimestamp(now, UTC)
    request.context["timestamp"] = moment.strftime("%Y%m%dT%H%M%SZ")
    signer._modify_request_before_signing(request)
    to_sign = signer.string_to_sign(request, signer.canonical_request(request))
    signer._inject_signature_to_request(request, signer.signature(to_sign, request))
    return str(request.url)


def credential(url):
    return "Bearer iam-sts-v1." + encode_base64url(url.encode())


def signature_holds(path, headers, secret=SECRET):
    """SigV4 by hand, from what arrived: the judge shares no code with signer or agent."""
    query = parse_qsl(urlsplit(path).query, keep_blank_values=True)
    values = dict(query)
    given = values.pop("X-Amz-Signature")
    canonical_query = "&".join(sorted(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in values.items()))
    names = values["X-Amz-SignedHeaders"].split(";")
    canonical = "\n".join(
        ["GET", "/", canonical_query, *(f"{n}:{headers[n]}" for n in names), "", ";".join(names),
         hashlib.sha256(b"").hexdigest()]
    )  # fmt: skip
    scope = values["X-Amz-Credential"].partition("/")[2]
    to_sign = "\n".join(
        ["AWS4-HMAC-SHA256", values["X-Amz-Date"], scope, hashlib.sha256(canonical.encode()).hexdigest()]
    )
    key = ("AWS4" + secret).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.new(key, to_sign.encode(), "sha256").hexdigest() == given


def as_json(arn=ARN, user_id="AROAEXAMPLE:me", account=ACCOUNT):
    result = {"Arn": arn, "UserId": user_id, "Account": account}
    answer = {"GetCallerIdentityResult": result, "ResponseMetadata": {"RequestId": "r"}}
    return json.dumps({"GetCallerIdentityResponse": answer}).encode()


def as_xml(arn=ARN, user_id="AROAEXAMPLE:me", account=ACCOUNT):
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <GetCallerIdentityResult><Arn>{arn}</Arn><UserId>{user_id}</UserId><Account>{account}</Account>
  </GetCallerIdentityResult><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata>
</GetCallerIdentityResponse>""".encode()


def honest(handler):
    headers = {name.lower(): value for name, value in handler.headers.items()}
    if signature_holds(handler.path, headers):
        return 200, {"Content-Type": "application/json"}, as_json()
    return 403, {"Content-Type": "text/xml"}, error_xml("SignatureDoesNotMatch")


def error_xml(code):
    return (
        f'<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
        f"<Code>{code}</Code><Message>m</Message></Error></ErrorResponse>"
    ).encode()


@contextmanager
def playing(clock=None, monotonic=time.monotonic, **changes):
    """An honest STS and an agent that asks it; `changes` go into its entry of the policy."""
    with serving() as server:
        server.replies["/"] = honest
        entry = {
            "name": "sts", "endpoint": server.url, "hosts": [HOST], "binding_value": EDGE,
            "insecure_http": True, "timeout": "2s",
        }  # fmt: skip
        config = Config.model_validate({"version": 1, "sts": [entry | changes]})
        yield server, Authenticator(config, clock=clock or Clock(), monotonic=monotonic)


GOOD = presign()


async def outcome(verifier, header, source):
    """The reason for which a verifier of STS credentials refuses this one; "" if it does not."""
    token = header.removeprefix("Bearer ").encode()
    try:
        await verifier.verify(token, hashlib.sha256(token).digest(), source)
    except Refusal as refusal:
        return str(refusal.reason)
    return ""
