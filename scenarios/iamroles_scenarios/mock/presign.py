"""The suite's own `iam-sts-v1` credentials: a pre-signed GetCallerIdentity, sound or broken on purpose.

A recipe is a plain table as in `iamroles_scenarios.jose`; an unknown key is an error. Without any key it is a
sound credential signed now.

===================  =====================================================================================
``date``             `X-Amz-Date`, a duration relative to now: ``"-20m"``, ``"+1h"``
``expires``          `X-Amz-Expires` (60); any text
``binding_value``    the value signed for the binding header; ``binding_header`` another header's name,
                     "" for none
``host``             the URL's host and the signed Host; ``url_host`` the URL's alone: user info, a port,
                     a trailing dot, a look-alike
``scheme``, ``path`` ``https``, ``/``; ``fragment`` text after ``#``
``action``, ``version``, ``region``, ``service``
``extra``            pairs added to the query, signed: ``[["Action", "AssumeRole"], ["X-Evil", "1"]]``
``unsigned``         pairs added after signing
``headers``          more signed headers, name to value: ``{accept = "application/json"}``
``signed_headers``   the text of `X-Amz-SignedHeaders` instead of the true list
``drop``             parameters left out of the finished URL, by name
``order``            ``reversed``; ``case`` ``lower`` or ``upper``: spelling of the parameters' names;
                     ``kelvin``, ``long s``: with U+212A in place of k, U+017F in place of s
``secret``           ``wrong``: signs with another secret; ``key_id`` claims another access key
``token``            ``drop``, ``wrong``, ``malformed``: the security token, as one run of letters and a mark
``signature``        ``flipped``, ``truncated``, ``upper``, ``empty``
``encoding``         ``padded``, ``standard``, ``whitespace``, ``hex`` instead of unpadded base64url
``prefix``           ``iam-sts-v1.``; ``size`` pads the URL with one signed parameter to so many bytes
``url``              the whole URL, verbatim
===================  =====================================================================================
"""

from __future__ import annotations

import base64
import datetime as dt
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from iamroles_scenarios.base.durations import seconds
from iamroles_scenarios.base.errors import RecipeError
from iamroles_scenarios.base.sent import note
from iamroles_scenarios.mock import sigv4

PREFIX = "iam-sts-v1."
HOST = "sts.us-east-1.amazonaws.com"
BINDING_HEADER = "x-iam-edge"
_WORDS = frozenset(
    {
        *("date", "expires", "binding_value", "binding_header"),
        *("host", "url_host", "scheme", "path", "fragment"),
        *("action", "version", "region", "service", "extra", "unsigned", "headers", "signed_headers", "drop"),
        *("order", "case", "secret", "key_id", "token", "signature", "encoding", "prefix", "size", "url"),
    }
)
_TAIL = 40
"""Letters at the end of a credential, where its signature stands."""
_SECRETS = re.compile(r"(?:Signature|Security-Token)=([^&#]*)", re.IGNORECASE)
_CASES: dict[str, Callable[[str], str]] = {
    "lower": str.lower,
    "upper": str.upper,
    "kelvin": lambda name: name.replace("k", "\u212a"),
    "long s": lambda name: name.replace("s", "\u017f"),
}
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class SessionKeys:
    """AWS credentials as a caller holds them."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None
    expiration: dt.datetime | None = None
    arn: str = ""

    def __repr__(self) -> str:
        return f"SessionKeys({self.access_key_id}, {self.arn or 'unknown principal'})"


def credential(
    recipe: Mapping[str, Any],
    keys: SessionKeys,
    now: float,
    *,
    binding_value: str,
    binding_header: str = BINDING_HEADER,
    host: str = HOST,
) -> str:
    """Make an `iam-sts-v1` credential.

    Args:
        recipe: see the module's table.
        keys: of the caller.
        now: epoch seconds.
        binding_value: this edge's own name, under the signature.
        binding_header: the header that carries it.
        host: STS's host as the policy lists it.

    Raises:
        RecipeError: an unknown key or word.
    """
    if unknown := sorted(set(recipe) - _WORDS):
        raise RecipeError(f"unknown recipe keys {', '.join(unknown)}; known are {', '.join(sorted(_WORDS))}")
    defaults = {"binding_value": binding_value, "binding_header": binding_header, "host": host}
    url = str(recipe["url"]) if "url" in recipe else _sized({**defaults, **recipe}, keys, now)
    text = str(recipe.get("prefix", PREFIX)) + _encoded(url, recipe.get("encoding", ""))
    return note("pre-signed URL", text, text[-_TAIL:], *_SECRETS.findall(url))


def _encoded(url: str, word: str) -> str:
    text = base64.urlsafe_b64encode(url.encode()).decode()
    bare = text.rstrip("=")
    if word == "padded":
        return text if text != bare else bare + "===="
    if word == "hex":
        return url.encode().hex()
    if word == "whitespace":
        return bare[:10] + " " + bare[10:]
    if word == "standard":
        return bare.replace("-", "+").replace("_", "/")
    if word:
        raise RecipeError(f"unknown encoding {word!r}; known are padded, standard, whitespace, hex")
    return bare


def _sized(recipe: dict[str, Any], keys: SessionKeys, now: float) -> str:
    url = _url(recipe, keys, now)
    size = recipe.get("size", 0)
    if len(url) >= size:
        return url
    padding = ("X-Pad", "x" * (size - len(url) - len("&X-Pad=")))
    return _url({**recipe, "extra": [*recipe.get("extra", []), padding]}, keys, now)


def _url(recipe: dict[str, Any], keys: SessionKeys, now: float) -> str:
    signed_at = dt.datetime.fromtimestamp(now + seconds(recipe.get("date", "0s")), dt.UTC)
    date = signed_at.strftime("%Y%m%dT%H%M%SZ")
    region, service = recipe.get("region", "us-east-1"), recipe.get("service", "sts")
    key_id = recipe.get("key_id", keys.access_key_id)
    headers = {"host": recipe["host"], **recipe.get("headers", {})}
    if recipe["binding_header"]:
        headers[recipe["binding_header"].lower()] = recipe["binding_value"]
    parameters: Pairs = [
        ("Action", recipe.get("action", "GetCallerIdentity")),
        ("Version", recipe.get("version", "2011-06-15")),
        ("X-Amz-Algorithm", sigv4.ALGORITHM),
        ("X-Amz-Credential", f"{key_id}/{date[:8]}/{region}/{service}/aws4_request"),
        ("X-Amz-Date", date),
        ("X-Amz-Expires", str(recipe.get("expires", 60))),
        ("X-Amz-SignedHeaders", recipe.get("signed_headers", ";".join(sorted(headers)))),
    ]
    if keys.session_token and recipe.get("token") != "drop":
        spoilt = {"wrong": keys.session_token[::-1], "malformed": re.sub(r"\W", "", keys.session_token) + "!"}
        token = spoilt.get(recipe.get("token", ""), keys.session_token)
        parameters.append(("X-Amz-Security-Token", token))
    parameters += [(str(name), str(value)) for name, value in recipe.get("extra", [])]
    secret = keys.secret_access_key[::-1] if recipe.get("secret") == "wrong" else keys.secret_access_key
    signature = sigv4.signature(
        "GET", recipe.get("path", "/"), parameters, headers, b"",
        secret=secret, key_id=key_id, date=date, region=region, service=service,
    )  # fmt: skip
    parameters.append(("X-Amz-Signature", _spoilt(signature, recipe.get("signature", ""))))
    parameters += [(str(name), str(value)) for name, value in recipe.get("unsigned", [])]
    return _written(recipe, parameters)


def _spoilt(signature: str, word: str) -> str:
    spoilt = {
        "": signature,
        "flipped": ("0" if signature[0] != "0" else "1") + signature[1:],
        "truncated": signature[:32],
        "upper": signature.upper(),
        "empty": "",
    }
    if word not in spoilt:
        raise RecipeError(f"unknown signature {word!r}; known are {', '.join(filter(None, spoilt))}")
    return spoilt[word]


def _written(recipe: Mapping[str, Any], parameters: Pairs) -> str:
    parameters = [pair for pair in parameters if pair[0] not in recipe.get("drop", [])]
    if recipe.get("order") == "reversed":
        parameters.reverse()
    change = _CASES.get(recipe.get("case", ""), str)
    query = "&".join(f"{quote(change(name))}={quote(value, safe='-_.~')}" for name, value in parameters)
    fragment = f"#{recipe['fragment']}" if "fragment" in recipe else ""
    host = recipe.get("url_host", recipe["host"])
    return f"{recipe.get('scheme', 'https')}://{host}{recipe.get('path', '/')}?{query}{fragment}"
