"""Requests that no HTTP library would send, and their effect on the host, the query and the record.

Requests here are bytes. The checks judge the request that a server behind the gate would get, and the record
that an operator would read. A proxy may refuse in its own way, so its 400 for bad HTTP counts as well as the
gate's.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from iamroles_scenarios.base.errors import CheckFailed, Evidence
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.engine.http import Answer, HttpConnection, exchange_h2
from iamroles_scenarios.engine.target import Target

_WITHIN = 10.0
_HOST, _PATH = "api.example.com", "/orders/1?q=%zz"
_NO_ONE_HOST = (
    ("GET /orders/1 HTTP/1.0",),
    ("GET /orders/1 HTTP/1.1",),
    ("GET /orders/1 HTTP/1.1", "Host:"),
    ("GET /orders/1 HTTP/1.0", "Host: "),
    ("GET /orders/1 HTTP/1.1", f"Host: {_HOST}", "Host: other.example.com"),
    ("GET http://admin.example.com/orders/1 HTTP/1.0",),
    ("GET http://admin.example.com/orders/1 HTTP/1.1",),
    ("GET http://admin.example.com/orders/1 HTTP/1.1", "Host:"),
    ("GET http://admin.example.com/orders/1 HTTP/1.0", f"Host: {_HOST}"),
    ("GET http://admin.example.com/orders/1 HTTP/1.1", f"Host: {_HOST}"),
    (f"GET http://admin.example.com@{_HOST}/orders/1 HTTP/1.1", f"Host: {_HOST}"),
    ("GET http:///orders/1 HTTP/1.1", f"Host: {_HOST}"),
)
_QUERIES = ("", "?", "?x=%zz%%32%65", "?%61=%2e%7e&b=%c3%a9", "?a?b", "?next=//%2e%2e/x;y", "?'<>`{}|^")
_LONG = 8500
"""Bytes: with the rest of the request it still fits HAProxy's buffer."""
_SHORT = 24
"""Characters of each run of a credential in a short path."""


def _send(here: Bench, token: str, *lines: str) -> Answer:
    head = [*lines, f"Authorization: Bearer {token}", "Connection: close", "", ""]
    address = (here.world.proxy.host, here.world.proxy.port)
    with closing(HttpConnection(address, here.seconds(_WITHIN))) as connection:
        return connection.exchange(lines[0].partition(" ")[0], "\r\n".join(head).encode("latin-1"))


def _echo(answer: Answer) -> dict[str, Any]:
    """Read what the backend echoes; empty if the request reached none."""
    try:
        found = json.loads(answer.body)
    except ValueError:
        return {}
    return found if answer.status == 200 and isinstance(found, dict) else {}


def _fault(message: str, expected: str, answer: Answer, *lines: str) -> CheckFailed:
    return CheckFailed(message, Evidence(sent="\n".join(lines), expected=expected, received=str(answer)))


@check("proxy.host.one", "PROXY-HOST-001", lane="gate")
def one_host(target: Target) -> str:
    """A request without exactly one host reaches no backend.

    HTTP/1.0 and 1.1; no Host, an empty one, two, an absolute target of another host or of none.
    """
    with bench(target, "policy") as here:
        token = here.token()
        for lines in _NO_ONE_HOST:
            answer = _send(here, token, *lines)
            if answer.status != 400 or _echo(answer):
                raise _fault(f"{' | '.join(lines)}: {answer.status}", "400, no backend", answer, *lines)
    return f"{len(_NO_ONE_HOST)} requests"


@check("proxy.host.absolute", "PROXY-HOST-002", lane="gate")
def absolute(target: Target) -> None:
    """An absolute target of the right host is refused, or the backend gets its path, that host and no other.

    Proxies differ in whether they take absolute targets; none may pass on two hosts.
    """
    with bench(target, "policy") as here:
        token = here.token()
        for version in ("1.0", "1.1"):
            lines = (f"GET http://{_HOST}{_PATH} HTTP/{version}", f"Host: {_HOST}")
            answer = _send(here, token, *lines)
            seen = _echo(answer)
            if not seen and answer.status == 400:
                continue
            hosts = [value for name, value in seen.get("headers", ()) if name == "host"]
            if hosts != [_HOST] or seen.get("path") != _PATH:
                raise _fault("the backend got another host or path", f"{_PATH}, {_HOST}", answer, *lines)


@check("proxy.options.server", "PROXY-ASTERISK-001", lane="gate")
def asterisk(target: Target) -> None:
    """OPTIONS * is refused, because it has no path to judge.

    Also if a caller may reach the path `/`; in HTTP/1.1 and HTTP/2.
    """
    with bench(target, "policy") as here:
        lines = ("OPTIONS * HTTP/1.1", f"Host: {_HOST}")
        fields = [(":method", "OPTIONS"), (":scheme", "http"), (":authority", _HOST), (":path", "*")]
        fields.append(("authorization", f"Bearer {here.token()}"))
        address = (here.world.proxy.host, here.world.proxy.port)
        over_h2 = exchange_h2(address, here.seconds(_WITHIN), fields, b"")
        for answer in (_send(here, here.token(), *lines), over_h2):
            if answer.status != 400 or _echo(answer):
                raise _fault(f"OPTIONS *: {answer.status}", "400, no backend", answer, *lines)


@check("proxy.query.exact", "PROXY-QUERY-001", lane="gate")
def query(target: Target) -> str:
    """The query reaches the backend byte for byte, whatever happens to the path.

    Under a plain path, and under two that the gate has to rewrite.
    """
    with bench(target, "policy") as here:
        token, count = here.token(), 0
        for path, forwarded in (("/orders/1", "/orders/1"), ("/%6frders/%c3%a9", "/orders/%C3%A9")):
            for text in _QUERIES:
                lines = (f"GET {path}{text} HTTP/1.1", f"Host: {_HOST}")
                answer = _send(here, token, *lines)
                if _echo(answer).get("path") != forwarded + text:
                    raise _fault(f"the query {text!r} was changed", forwarded + text, answer, *lines)
                count += 1
    return f"{count} queries"


def _swollen() -> Iterator[tuple[str, ...]]:
    quotes = '"' * _LONG
    yield "GET /orders/1 HTTP/1.1", "Host: " + "h." * (_LONG // 2)  # a long run might be struck as a secret
    for marks in (quotes, quotes[:2000], f"x{quotes[:2000]}"):  # a cut within an escape leaves half of it
        yield f"GET /orders/{marks} HTTP/1.1", f"Host: {_HOST}"
    yield f"GET /orders/{'p' * _LONG} HTTP/1.1", f"Host: {_HOST}"  # one byte each, also in JSON
    yield f"{'M' * _LONG} /orders/1 HTTP/1.1", f"Host: {_HOST}"
    yield "GET /orders/1 HTTP/1.1", f"Host: {_HOST}", f"X-IAM-Role: {quotes}"


@check("proxy.record.whole", "PROXY-RECORD-001", lane="gate")
def record(target: Target) -> None:
    """Whatever a client sends, HAProxy's record of it is whole and has the verdict.

    8.5 kB of host, path, method and requested role, each alone.
    """
    with bench(target, "policy") as here:
        token = here.token()
        for lines in _swollen():
            answer = _send(here, token, *lines)
            if _line(here, answer.port) is None:
                short = tuple(f"{line[:60]}… ({len(line)} bytes)" for line in lines)
                raise _fault("no whole record of the request", "one line of JSON", answer, *short)


def _line(here: Bench, port: int) -> dict[str, Any] | None:
    """Find the record of the request from a client's port; None if it does not say how that ended."""
    line = here.world.haproxy.wait_log(
        lambda line: line.get("client_port") == port, within=here.seconds(_WITHIN)
    )
    return line if line and {"status", "reason", "role", "rule", "expires"} <= line.keys() else None


@check("proxy.record.token", "PROXY-RECORD-002", lane="gate")
def token_in_target(target: Target) -> None:
    """A token that a client put into the path or the query is not in HAProxy's record.

    More people read a log than should see a token. A long one, and in a short path a short one.
    """
    with bench(target, "policy") as here:
        token = here.token()
        head, payload, signature = token.split(".")
        short = [part[:_SHORT] for part in (head, payload, signature)]
        _must_not_record(
            here,
            (payload, signature),
            f"/orders/{token}",
            f"/orders/{head}%2E{payload}%2e{signature}",
            f"/orders/1?access_token={token}",
            f"/orders//{token}",
        )
        _must_not_record(here, tuple(short[1:]), f"/orders/{'.'.join(short)}")


@check("proxy.record.presigned", "PROXY-RECORD-003", lane="gate", features={"sts"})
def presigned_in_path(target: Target) -> None:
    """A pre-signed request that a client put into the path is not in HAProxy's record.

    A short one and one with a long session token, which a record cuts; its dot and its letters encoded.
    And a beginning, in a short path.
    """
    with bench(target, "policy") as here:
        for more in ("", "&X-Amz-Security-Token=" + "FwoGZXIv" * 160):
            request = f"https://sts.eu-west-1.amazonaws.com/?X-Amz-Signature={'5e' * 32}{more}".encode()
            secret = urlsafe_b64encode(request).decode().rstrip("=")
            begins = ("iam-sts-v1.", "iam-sts-v1%2E", "iam-sts-v1%2e", "%69am%2Dsts-v1.")
            targets = [f"/orders/{begin}{secret}" for begin in begins]
            _must_not_record(here, (secret[60:100],), *targets, f"/orders/a-{begins[0]}{secret}?x={secret}")
        _must_not_record(here, (secret[:_SHORT],), f"/orders/{begins[0]}{secret[:_SHORT]}")


def _must_not_record(here: Bench, secrets: tuple[str, ...], *targets: str) -> None:
    token = here.token()
    for one in targets:
        line = _line(here, _send(here, token, f"GET {one} HTTP/1.1", f"Host: {_HOST}").port)
        if line is None:
            raise here.failed(f"HAProxy has no record of the request to {one[:12]}…")
        if any(secret in json.dumps(line) for secret in secrets):
            raise CheckFailed("a credential from a request's target stands in HAProxy's record")
