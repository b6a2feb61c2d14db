"""The two ways to put a scenario's request to an agent: through HAProxy, and straight over SPOP.

Both give an `Observation` in the words of SPEC.md section 3. Through HAProxy that is what a client, a backend
and the operator's log see; over SPOP it is the variables, with the arguments that HAProxy would have sent.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import HarnessFault, HttpFault
from iamroles_scenarios.base.polling import polls
from iamroles_scenarios.base.sent import held
from iamroles_scenarios.declarations.scenario import Lane, RequestSpec
from iamroles_scenarios.engine.http import Answer, HttpConnection, redacted, request_bytes
from iamroles_scenarios.engine.observation import TAGS, Observation
from iamroles_scenarios.engine.spread import Spread
from iamroles_scenarios.stage.spec import PROCESSING

if TYPE_CHECKING:
    from iamroles_scenarios.stage import World

_ANSWER_WITHIN = 10.0
"""Seconds, times the scale: above the proxy's own deadline for a verdict."""
_LOG_WITHIN = 3.0
"""Seconds, times the scale, until HAProxy's log line of an answered request is there."""


_SILENT = frozenset({"realm", "error", "scope", "resource_metadata", ""})
"""Parameters of a challenge that do not say why a token was refused (RFC 6750 section 3)."""


_METHODS = b"GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH".split()
"""Methods that a proxy knows (RFC 9110 section 9.3, RFC 5789)."""


class Player(Protocol):
    """A client that asks one request at a time, and keeps named connections."""

    def ask(self, request: RequestSpec, token: str, *, with_reason: bool) -> Observation:
        """Send a request and observe the answer; `with_reason` also waits for HAProxy's log line."""

    def close(self) -> None:
        """End all connections."""


def player_for(lane: Lane, world: World, scale: float, workers: int = 1) -> Player:
    """Return the player of a lane. Over SPOP each of the agent's workers is asked."""
    if lane == "gate":
        return ProxyPlayer(world, scale)
    return SpopPlayer(world, scale, workers)


def _credentials(request: RequestSpec, token: str) -> list[str]:
    if request.authorization:
        return [value.replace("{token}", token) for value in request.authorization]
    return [f"Bearer {token}"] if token else []


def check_of(request: RequestSpec, token: str) -> dict[str, Any]:
    """Return the arguments of `iam-check` that HAProxy makes of a request."""
    credentials = _credentials(request, token)
    return {
        "authorization": credentials[-1] if credentials else None,
        "authorization-count": len(credentials),
        "role": request.role or None,
        "method": request.method,
        "host": request.host,
        "path": request.path.partition("?")[0],
        "src": "127.0.0.1",
    }


def raw_request(request: RequestSpec, token: str, *, keep: bool) -> bytes:
    """Return the request as a client of HAProxy sends it; `keep`: on a connection that is kept."""
    headers = [("Host", request.host), ("User-Agent", "iamroles-conformance")]
    headers += [("Authorization", value) for value in _credentials(request, token)]
    if request.role:
        headers.append(("X-IAM-Role", request.role))
    headers += [(name, value) for name, value in request.headers]
    if not keep:
        headers.append(("Connection", "close"))
    return request_bytes(request.method, request.path.replace("{token}", token), headers)


def observed(
    answer: Answer, raw: bytes, secrets: Sequence[str], line: Mapping[str, Any] | None = None
) -> Observation:
    """Read what an answer through HAProxy shows.

    Args:
        answer: HAProxy's.
        raw: the request.
        secrets: texts that no report may hold.
        line: HAProxy's log line.
    """
    echo = _echo(answer)
    given = challenges(answer)
    challenge = given.get("Bearer", {})
    headers = tuple((str(name).lower(), str(value)) for name, value in echo.get("headers", []))
    return Observation(
        status=answer.status,
        allow=bool(echo),
        error=challenge.get("error", ""),
        backend=str(echo.get("backend", "")),
        reason=None if line is None else str(line.get("reason", "")),
        challenge="Bearer" in given,
        talkative=tuple(sorted(challenge.keys() - _SILENT)),
        tags={name: value for name in TAGS for key, value in headers if key == f"x-iam-{name}"},
        headers=headers,
        path=str(echo.get("path", "")),
        sent=redacted(raw.decode("latin-1").replace("\r\n", "\n").strip(), secrets),
        received=redacted(str(answer), secrets) + _logged(line),
        leaked=() if answer.status < 400 else tuple(sorted(held(f"{answer.headers}".encode() + answer.body))),
        at=answer.at,
        record=line,
        unknown=answer.status == 501 and raw.partition(b" ")[0] not in _METHODS,
    )


def asked_for(ask: Callable[[], Observation], seconds: float) -> Iterator[tuple[Observation, float]]:
    """Ask again and again for some seconds, and once more.

    Yield each answer with the time of its question: seconds from the begin, cut to `seconds`. The change that
    is waited for may end a request without an answer, because a request that waits for its server is a stream
    (SPEC.md 9.16). The last one must be answered.

    Raises:
        HttpFault: the last one was not.
    """
    began = time.monotonic()
    for last in polls(seconds):
        asked = min(time.monotonic() - began, seconds)
        try:
            seen = ask()
        except HttpFault:
            if last:
                raise
        else:
            yield seen, asked


class ProxyPlayer:
    """A client of HAProxy, which also sees the backends and the log."""

    def __init__(self, world: World, scale: float) -> None:
        self._world = world
        self._scale = scale
        self._patience = min(PROCESSING * scale, world.haproxy.processing)
        self._address = (world.proxy.host, world.proxy.port)
        self._connections: dict[str, HttpConnection] = {}
        self._asked: dict[int, int] = {}
        self._marks: dict[int, tuple[int, ...]] = {}
        """By a connection's port: lines of HAProxy's log when it was opened, because ports come again."""

    def ask(self, request: RequestSpec, token: str, *, with_reason: bool) -> Observation:
        recording.timed(self._patience)  # then HAProxy answers in the agent's place
        raw = raw_request(request, token, keep=bool(request.connection))
        answer = self._exchange(request, raw)
        line = self._log_line(answer.port) if with_reason else None
        return observed(answer, raw, [token, *request.authorization], line)

    def _exchange(self, request: RequestSpec, raw: bytes) -> Answer:
        name = request.connection
        connection = self._connections.pop(name, None) if name else None
        fresh = connection is None
        if connection is None:
            mark = self._world.haproxy.log_mark
            connection = HttpConnection(self._address, _ANSWER_WITHIN * self._scale)
            self._marks[connection.port], self._asked[connection.port] = mark, 0
        try:
            answer = connection.exchange(request.method, raw)
        except HttpFault:
            connection.close()
            if fresh:
                raise
            return self._exchange(request, raw)  # HAProxy may close an idle connection at any time
        self._asked[connection.port] = self._asked.get(connection.port, 0) + 1
        if name and "close" not in answer.all("connection"):
            self._connections[name] = connection
        else:
            connection.close()
        return answer

    def _log_line(self, port: int) -> dict[str, Any] | None:
        """Return HAProxy's line for the last request on a connection: the n-th of its client port."""
        for _last in polls(_LOG_WITHIN * self._scale):
            since = self._world.haproxy.log_lines(self._marks[port])
            lines = [line for line in since if line.get("client_port") == port]
            if len(lines) >= self._asked[port]:
                return dict(lines[-1])
        self._dropped()
        return None

    def _dropped(self) -> None:
        """Raise if HAProxy dropped lines of its log, as it does if they are read too slowly."""
        said = re.search(r"^DroppedLogs: ([1-9]\d*)$", self._world.haproxy.runtime("show info"), re.MULTILINE)
        if said:
            raise HarnessFault(
                f"HAProxy dropped {said[1]} lines of its log, and so what it says of a request"
            )

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()


def _logged(line: Mapping[str, Any] | None) -> str:
    return "" if line is None else f"\nHAProxy's log: {json.dumps(line)}"


def _echo(answer: Answer) -> dict[str, Any]:
    """Return the request as the backend says it got it; empty if no backend was reached."""
    if answer.status != 200:
        return {}
    try:
        echo = json.loads(answer.body)
    except ValueError:
        return {}
    return echo if isinstance(echo, dict) and "backend" in echo else {}


_NAME = r"([\w!#$%&'*+.^`|~-]++)"
_CHALLENGE = re.compile(
    rf'(?:^|,)[ \t,]*(?:{_NAME}(?![ \t]*=))?[ \t]*(?:{_NAME}[ \t]*=[ \t]*(?:"((?:\\.|[^"\\])*)"|{_NAME}))?',
    re.ASCII,
)
"""A scheme, a parameter or both: an element of a field's list (RFC 9110 sections 5.6.1 and 11.6.1)."""


def challenges(answer: Answer) -> dict[str, dict[str, str]]:
    """Return the parameters of each challenge by its scheme, spelled `Bearer`, `DPoP`, `Basic`."""
    found: dict[str, dict[str, str]] = {}
    for value in answer.all("www-authenticate"):
        parameters: dict[str, str] = {}
        for scheme, name, quoted, text in _CHALLENGE.findall(value):
            if scheme:
                parameters = found.setdefault({"dpop": "DPoP"}.get(scheme.lower(), scheme.capitalize()), {})
            if name:
                parameters[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) or text
    return found


class SpopPlayer:
    """A client in HAProxy's place, which keeps a connection for each name and sees the variables."""

    def __init__(self, world: World, scale: float, workers: int = 1) -> None:
        self._agent = world.agent
        self._timeout, self._workers = _ANSWER_WITHIN * scale, workers
        self._spreads: dict[str, Spread] = {}
        self._count = 0

    def ask(self, request: RequestSpec, token: str, *, with_reason: bool) -> Observation:  # noqa: ARG002
        recording.timed(self._timeout)
        check = check_of(request, token)
        self._count += 1
        context = {"request-id": f"{id(self):x}-{self._count}", "src-port": 40000 + self._count % 20000}
        if request.connection not in self._spreads:
            self._spreads[request.connection] = Spread(self._agent, self._workers, self._timeout)
        found = []
        for asker in self._spreads[request.connection].askers():
            variables = asker.decide(check, context)
            secrets = [token, *request.authorization]
            found.append(_observed(variables, redacted(_shown(check), secrets), asker.transcript.copy()))
            recording.note(_shown(check), found[-1].received)
        received = "\nof another worker:\n".join(dict.fromkeys(each.received for each in found))
        return replace(found[0], received=received, others=tuple(found[1:]))

    def close(self) -> None:
        for spread in self._spreads.values():
            spread.close()


def _observed(variables: Mapping[str, Any], sent: str, trace: object) -> Observation:
    def text(name: str) -> str:
        value = variables.get(name)
        return "" if value is None else str(value)

    allow = variables.get("allow") is True
    status = variables.get("status")
    return Observation(
        status=status if isinstance(status, int) else None,
        allow=allow,
        error=text("error"),
        backend=text("backend"),
        reason=text("reason"),
        tags={name: text(name) for name in TAGS},
        sent=sent,
        received="\n".join(f"{name} = {value!r}" for name, value in sorted(variables.items())),
        trace=trace,
        at=time.time(),
    )


def _shown(arguments: Mapping[str, Any]) -> str:
    return "iam-check " + " ".join(f"{name}={value!r}" for name, value in arguments.items())
