"""Every shape of a request, with every kind of credential (SPEC.md 1.20).

The other checks send GET over HTTP/1.1 with a token. A rule of a proxy's configuration may be written for GET
alone, so data/derived/shapes.toml has a row for each shape, kind of credential, and forged header; each shape
is asked with each credential.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.base.errors import HttpFault
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.declarations.tables import table
from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.engine.http import Answer, HttpConnection, exchange_h2
from iamroles_scenarios.engine.observation import TAGS, Observation, mismatches
from iamroles_scenarios.engine.players import observed
from iamroles_scenarios.engine.target import Target

_WITHIN = 10.0
_HOST, _PATH, _QUERY = "api.example.com", "/deep/1", "?q=%zz"
_BACKEND = "x-echo-backend"
"""In each answer of the suite's backends."""
Headers = list[tuple[str, str]]
SHAPES: Mapping[str, Mapping[str, Any]] = table("shapes")["shapes"]
CREDENTIALS: Mapping[str, Mapping[str, Any]] = table("shapes")["credentials"]
_FORGED: Mapping[str, str] = table("shapes")["forged"]
_ONCE = [f"x-iam-{name}" for name in (*TAGS, "request-id")]
_ALLOWED = Expectation(
    backend="orders-ro",
    principal="alice",
    path=_PATH + _QUERY,
    absent=["authorization"],
    only=[*_ONCE, "x-iam-identity"],
)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, and its answer."""

    what: str
    shape: Mapping[str, Any]
    status: int
    seen: Observation
    answer: Answer


def _credential(here: Bench, row: Mapping[str, Any]) -> Headers:
    if "authorization" in row:
        return [("Authorization", text) for text in row["authorization"]]
    recipe = {name: value for name, value in row.items() if name not in ("status", "path", "scheme")}
    return [("Authorization", f"{row.get('scheme', 'Bearer')} {here.token(**recipe)}")]


def _body(shape: Mapping[str, Any]) -> tuple[Headers, bytes]:
    """Return a shape's body as HTTP/1 has it, and the headers that say its length."""
    body = str(shape.get("body", ""))
    if shape.get("chunked"):
        trailers = "".join(f"{name}: {value}\r\n" for name, value in shape.get("trailers", ()))
        text = f"{len(body):x}\r\n{body}\r\n0\r\n{trailers}\r\n"
        return [("Transfer-Encoding", "chunked")], text.encode()
    return [("Content-Length", str(len(body)))] if body else [], body.encode()


def _ask(
    here: Bench, version: str, shape: Mapping[str, Any], path: str, headers: Headers
) -> tuple[Answer, bytes]:
    """Send a request on a connection of its own; return the answer and what was sent."""
    address = here.world.proxy.host, here.world.proxy.port
    method, (lengths, body) = shape.get("method", "GET"), _body(shape)
    headers = [*headers, *lengths, *((name, value) for name, value in shape.get("headers", ()))]
    if version == "2":
        pseudo = {":method": method, ":scheme": "http", ":authority": _HOST, ":path": path}
        fields = [*pseudo.items(), *((name.lower(), value) for name, value in headers)]
        sent = "\n".join(f"{name}: {value}" for name, value in fields).encode()
        return exchange_h2(address, here.seconds(_WITHIN), fields, body), sent
    lines = [f"{method} {shape.get('target', '')}{path} HTTP/{version}", f"Host: {_HOST}"]
    raw = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers), "", ""]).encode() + body
    with closing(HttpConnection(address, here.seconds(_WITHIN))) as line:
        return line.exchange(method, raw), raw


def _played(here: Bench, *, good: bool) -> Iterator[_Asked]:
    """Ask in each shape and version with the credentials that are allowed, or with all that are refused."""
    forged = list(_FORGED.items())
    for kind, row in CREDENTIALS.items():
        if (row["status"] == 200) != good:
            continue
        credential, path = _credential(here, row), row.get("path", _PATH) + _QUERY
        for name, shape in SHAPES.items():
            for version in shape["http"]:
                what = f"{name} over HTTP/{version}, credential: {kind}"
                try:
                    answer, raw = _ask(here, version, shape, path, [*credential, *forged])
                except HttpFault as error:
                    raise here.failed(f"{what}: {error}") from error
                seen = observed(answer, raw[:2000], [text.partition(" ")[2] for _, text in credential])
                yield _Asked(what, shape, row["status"], seen, answer)


@check("proxy.shapes.allowed", "PROXY-SHAPE-001", lane="gate")
def allowed(target: Target) -> str:
    """A request of any shape that is allowed reaches the backend as it was sent, with the proxy's tags alone.

    Method, query and body stay; each tag is there once, and nothing of the client's own identity.
    """
    count = 0
    with bench(target, "policy") as here:
        for asked in _played(here, good=True):
            count += 1
            if wrong := _forwarded(asked):
                raise here.failed(f"{asked.what}: {wrong}", asked.seen, "the backend, with the proxy's tags")
    return f"{count} requests"


def _forwarded(asked: _Asked) -> str:
    """Return what is wrong with an allowed request, or ""."""
    shape, answer, seen = asked.shape, asked.answer, asked.seen
    if answer.status in shape.get("also", ()):
        return ""
    if answer.all(_BACKEND) != ["orders-ro"]:
        return f"status {answer.status}, backends {answer.all(_BACKEND)}"
    if shape.get("blind"):
        return ""
    found = mismatches(_ALLOWED, seen, {})
    found += [f"no {name}" for name in _ONCE if name not in dict(seen.headers)]
    found += [f"{name} as the client wrote it" for name, value in seen.headers if "forged" in value]
    echo = json.loads(answer.body)
    said = echo["method"], echo["body"]
    if said != (shape.get("method", "GET"), len(shape.get("body", ""))):
        found.append(f"another method or body reached the backend: {said}")
    return "; ".join(found)


@check("proxy.shapes.refused", "PROXY-SHAPE-002", lane="gate")
def refused(target: Target) -> str:
    """A request of any shape that is refused reaches no backend, and the answer does not say why.

    Bodies of the same status are alike for all shapes and all kinds of credentials.
    """
    bodies: dict[int, tuple[bytes, str]] = {}
    count = 0
    with bench(target, "policy") as here:
        for asked in _played(here, good=False):
            count += 1
            answer = asked.answer
            statuses = (asked.status, *(code for code in asked.shape.get("also", ()) if code in (400, 501)))
            if answer.status not in statuses or answer.all(_BACKEND):
                raise here.failed(
                    f"{asked.what}: {answer.status}, backends {answer.all(_BACKEND)}",
                    asked.seen,
                    str(statuses),
                )
            if answer.status != asked.status or asked.shape.get("method") == "HEAD":
                continue
            body, first = bodies.setdefault(answer.status, (answer.body, asked.what))
            if answer.body != body:
                raise here.failed(
                    f"{asked.what}: another body than for {first}", asked.seen, body.decode("latin-1")
                )
            if answer.status in (400, 401, 403) and not asked.seen.challenge:
                raise here.failed(f"{asked.what}: {answer.status} without a challenge", asked.seen)
    return f"{count} requests"
