"""The decision of the adapters, in plain Python: a token is believed, unverified, about its caller.

Good enough for the wire lane, whose questions are about frames, and for nothing else.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

Value = str | int | bool | None
_ERRORS = {400: "invalid_request", 403: "insufficient_scope"}


def listen() -> tuple[str, int]:
    """Return the address at which the world file says to listen."""
    world = json.loads(Path(os.environ["IAMROLES_POLICY"]).read_text(encoding="utf-8"))
    host, _, port = str(world["agent"]["listen"]).rpartition(":")
    return host, int(port)


def say_ready(host: str, port: int) -> None:
    """The ready line of SPEC.md section 8."""
    sys.stdout.write(json.dumps({"ready": True, "address": f"{host}:{port}"}) + "\n")
    sys.stdout.flush()


def judge(check: Mapping[str, object]) -> list[tuple[str, Value]]:
    """The variables of SPEC.md section 3 for an `iam-check`, in order; None: unset."""
    for name in ("authorization", "method", "path", "src"):
        if name not in check or (check[name] is None and name != "authorization"):
            return _refusal(503, "internal_error")
    if any(isinstance(value, list) for value in check.values()):
        return _refusal(503, "internal_error")  # the library gives both values of an argument that came twice
    authorization, path = check["authorization"], check["path"]
    if (
        not isinstance(path, str)
        or not isinstance(check["method"], str)
        or isinstance(check["src"], str | int)
    ):
        return _refusal(503, "internal_error")
    if check.get("authorization-count") not in (None, 0, 1):
        return _refusal(400, "multiple_credentials")
    if authorization is None or authorization == "":
        return _refusal(401, "no_credentials", error=None)
    if not isinstance(authorization, str) or not authorization.startswith("Bearer "):
        return _refusal(401, "no_credentials", error=None)
    claims = _claims(authorization.removeprefix("Bearer "))
    if claims is None:
        return _refusal(401, "token_malformed", error="invalid_token")
    if check["method"] != "GET" or not path.startswith(("/orders/", "/c")):
        return _refusal(403, "no_grant")
    tags: list[tuple[str, Value]] = [
        ("status", 200),
        *(("reason", None), ("error", None)),
        ("role", "arn:aws:iam::111111111111:role/reader"),
        ("principal", str(claims.get("sub", ""))),
        *(("session", None), ("issuer", "adapter"), ("rule", "adapter"), ("backend", "orders-ro")),
        ("expires", int(str(claims.get("exp", 0)))),
        ("allow", True),
    ]
    return tags


def _refusal(status: int, reason: str, error: str | None = "") -> list[tuple[str, Value]]:
    code = _ERRORS.get(status) if error == "" else error
    bare = ("role", "principal", "session", "issuer", "rule", "backend", "expires")
    return [
        *(("status", status), ("reason", reason), ("error", code)),
        *((name, None) for name in bare),
        ("allow", False),
    ]


def _claims(token: str) -> Mapping[str, object] | None:
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, IndexError):
        return None
    return claims if isinstance(claims, dict) else None
