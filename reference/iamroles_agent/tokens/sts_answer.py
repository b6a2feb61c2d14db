"""Read STS's answer to GetCallerIdentity: a caller, a rejection, or a failure.

A caller is accepted only if the answer has exactly STS's shape, in JSON or XML. In Vault's CVE-2020-16250 a
parser looked for an element anywhere in the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from iamroles_agent.base.encoding import decode_object
from iamroles_agent.tokens.transport import Answer

_NAMESPACE = "{https://sts.amazonaws.com/doc/2011-06-15/}"
_FIELDS = ("Arn", "UserId", "Account")
_ACCOUNT = re.compile(r"[0-9]{12}", re.ASCII)
_ARN = re.compile(r"arn:aws[a-z-]*:(?:iam|sts)::[0-9]{12}:[\x21-\x7e]{1,512}", re.ASCII)
_USER_ID = re.compile(r"[A-Za-z0-9:+=,.@_-]{1,256}", re.ASCII)
_CODE = re.compile(r"[A-Za-z0-9.]{1,64}", re.ASCII)
_THROTTLING = frozenset(
    ("Throttling", "ThrottlingException", "ThrottledException", "RequestLimitExceeded", "RequestThrottled",
     "RequestThrottledException", "TooManyRequestsException", "SlowDown", "BandwidthLimitExceeded",
     "PriorRequestNotComplete", "EC2ThrottledException")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Caller:
    """The signer, as STS names it."""

    arn: str
    account: str
    user_id: str

    @property
    def session(self) -> str:
        return self.arn.rpartition("/")[2] if ":assumed-role/" in self.arn else ""


class Rejected(Exception):  # noqa: N818 - a verdict
    """STS refused, or the answer has another shape; `final`: the same question gets the same answer."""

    def __init__(self, detail: str, *, final: bool) -> None:
        super().__init__(detail)
        self.final = final


class Unavailable(Exception):  # noqa: N818 - a state
    """STS gave no verdict: it throttles, or fails."""

    def __init__(self, detail: str, *, throttled: bool = False) -> None:
        super().__init__(detail)
        self.throttled = throttled


def read_answer(answer: Answer) -> Caller:
    """Read an answer.

    Raises:
        Rejected: STS refused the signature or credentials, or a 200 has another shape than STS's.
        Unavailable: throttling (AWS may send it as a 400), a failure, a redirect, a refusal of a proxy's.
    """
    if answer.status == 200:
        return _read_caller(answer)
    code = _error_code(answer)
    if answer.status == 429 or code in _THROTTLING:
        raise Unavailable("STS throttles", throttled=True)
    if answer.status in (400, 401, 403) and code:  # without STS's code it is a proxy's
        raise Rejected(f"STS answered {answer.status} {code}", final=True)
    raise Unavailable(f"STS answered {answer.status} {code or 'without a code'}")


def _read_caller(answer: Answer) -> Caller:
    try:
        if answer.content_type == "application/json":
            fields = _from_json(answer.body)
        elif answer.content_type in ("text/xml", "application/xml"):
            fields = _from_xml(answer.body)
        else:
            raise ValueError("its content type is neither JSON nor XML")
    except (ValueError, RecursionError, ET.ParseError):
        raise Rejected("STS answered 200 with something that is not its answer", final=False) from None
    arn, user_id, account = fields
    caller = Caller(arn, account, user_id)
    # No part is trusted alone. The unique id of a role is "<role id>:<session>".
    good = _ARN.fullmatch(arn) and _USER_ID.fullmatch(user_id) and _ACCOUNT.fullmatch(account)
    agree = good and arn.split(":")[4] == account and caller.session in ("", user_id.partition(":")[2])
    if not agree:
        raise Rejected("STS's answer has parts that are malformed or disagree", final=False)
    return caller


def _from_json(body: bytes) -> tuple[str, str, str]:
    outer = _only_object(decode_object(body), "GetCallerIdentityResponse")
    result = _only_object(outer, "GetCallerIdentityResult", also="ResponseMetadata")
    if set(result) != set(_FIELDS) or not all(isinstance(value, str) for value in result.values()):
        raise ValueError("not the result's members")
    return result["Arn"], result["UserId"], result["Account"]


def _only_object(members: dict[str, Any], name: str, also: str | None = None) -> dict[str, Any]:
    if not members.keys() <= {name, also} or not isinstance(members.get(name), dict):
        raise ValueError("not STS's members")
    found: dict[str, Any] = members[name]
    return found


def _parse_xml(body: bytes) -> ET.Element:
    """Parse a size-capped body; refuse a document type, because entities can explode or read files."""
    if b"<!" in body.replace(b"<![CDATA[", b"") or b"\0" in body:
        raise ValueError("a document type, a comment, or not UTF-8")
    return ET.fromstring(body.decode("utf-8"))  # noqa: S314 - no DTD gets here


def _from_xml(body: bytes) -> tuple[str, str, str]:
    root = _parse_xml(body)
    children = list(root)
    if root.tag != f"{_NAMESPACE}GetCallerIdentityResponse" or not children:
        raise ValueError("not STS's root element")
    results = [child for child in children if child.tag == f"{_NAMESPACE}GetCallerIdentityResult"]
    others = {child.tag for child in children} - {results[0].tag if results else ""}
    if len(results) != 1 or others - {f"{_NAMESPACE}ResponseMetadata"}:
        raise ValueError("not STS's elements")
    found = {child.tag: child.text or "" for child in results[0] if not len(child)}
    if len(results[0]) != len(_FIELDS) or set(found) != {_NAMESPACE + name for name in _FIELDS}:
        raise ValueError("not the result's elements")
    arn, user_id, account = (found[_NAMESPACE + name] for name in _FIELDS)
    return arn, user_id, account


def _error_code(answer: Answer) -> str:
    """Return the `Code` of an error answer, "" if it has no valid code."""
    try:
        if "json" in answer.content_type:
            members = decode_object(answer.body)
            inner = members.get("Error", members)
            code = inner.get("Code", members.get("__type", "")) if isinstance(inner, dict) else ""
        else:
            element = _parse_xml(answer.body).find(".//{*}Code")
            code = "" if element is None else element.text
    except (ValueError, RecursionError, ET.ParseError):
        return ""
    return code if isinstance(code, str) and _CODE.fullmatch(code) else ""
