"""The proxy before an agent that answers whatever it likes (SPEC.md 1.19).

All other checks judge the proxy behind a sound agent, which hides what the configuration leaves to the agent.
Here a scripted agent takes the agent's place. The rows of data/derived/misbehaving.toml change its sound
verdict, or the frame around it, one thing at a time. The sound verdict passes between the rows, so that each
refusal is the row's own.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from iamroles_scenarios.checks.oracle.corpus import tricks
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec
from iamroles_scenarios.declarations.tables import filled, table
from iamroles_scenarios.engine.bench import Bench, own_bench
from iamroles_scenarios.engine.observation import Observation, mismatches
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.stage.impostor import Impostor
from iamroles_scenarios.wire.codec import DataType, Typed, Value, string
from iamroles_scenarios.wire.frames import Flags, Frame, FrameType, Scope, as_hello, encode_kv, read_messages

Row = Mapping[str, Any]
ROWS: Mapping[str, Mapping[str, tuple[Row, str]]] = table("misbehaving")
_ALL = [*ROWS["verdicts"].items(), *ROWS["frames"].items()]
_CHANGES: list[tuple[Row, Row]] = [
    *((row, {}) for row, _ in ROWS["verdicts"].values()),
    *(({}, row) for row, _ in ROWS["frames"].values()),
]
"""Changes of the verdict, and of the frame, by a row's place in `_ALL`."""
_PATH = "/orders/"
_SETTINGS = {"IAM_TIMEOUT_PROCESSING": "500ms"}
_BACK = 15.0
"""Seconds, times the scale, within which HAProxy asks on a new connection."""
_SHOWN = 8
_BACKEND = "orders-ro"
_TAGS = {
    "role": f"arn:aws:iam::111111111111:role/{'r' * 64}",
    "principal": "p" * 512,
    "session": "s" * 512,
    "issuer": "corp",
    "rule": "R1",
    "actor": "a" * 512,
    "actor_issuer": f"https://issuer.example/{'i' * 200}",
}
"""Of the sound verdict: each arrives whole (1.10)."""
_HEADERS = {f"x-iam-{name.replace('_', '-')}": [text] for name, text in _TAGS.items()}
_OPEN, _SHUT = Expectation(status=200, backend=_BACKEND), (400, 401, 403, 503)
_REACHED = re.compile(r'"reached": (\d+)')
_LONG = {
    "a long path": RequestSpec(path=f"/{'p' * 4096}"),
    "a long method": RequestSpec(path="/sound", method="M" * 33),
    "a long host": RequestSpec(path="/sound", host="h" * 261),
    "a long role": RequestSpec(path="/sound", role="r" * 641),
}
"""Each a byte longer than 2.6 permits."""
_FORGED = re.compile(r"^x-forged\s*:", re.MULTILINE | re.IGNORECASE)


def _verdict() -> dict[str, Any]:
    """Return a sound verdict for now."""
    more = {"backend": _BACKEND, "expires": int(time.time()) + 600}
    return {"status": 200, **_TAGS, **more, "allow": True}


def _set(name: str, value: Any) -> bytes:  # noqa: ANN401 - any value of a row
    scope, _, bare = name.rpartition(".")
    if isinstance(value, Mapping):
        kind, said = DataType[value["type"]], value["value"]
        value = Typed(kind, ip_address(said) if kind is DataType.IPV4 else said)
    return bytes((1, 3, Scope[scope or "txn"])) + string(bare) + Typed.of(value).encode()


def actions(row: Row) -> bytes:
    """Return the actions of a verdict that a row changed."""
    how = {"only", "again", "unset", "begin", "end"}
    changes = {name: value for name, value in row.items() if name not in how}
    now = int(time.time())
    verdict = {**_verdict(), **filled(changes, {"now": now, "past": now - 60})}
    verdict = {name: value for name, value in verdict.items() if value != "{gone}"}
    if "only" in row:
        verdict = {name: verdict[name] for name in row["only"]}
    found = b"".join(_set(name, value) for name, value in (*verdict.items(), *row.get("again", {}).items()))
    found += b"".join(bytes((2, 2, Scope.txn)) + string(name) for name in row.get("unset", ()))
    return bytes.fromhex(row.get("begin", "")) + found + bytes.fromhex(row.get("end", ""))


class Script:
    """Answers as the row that a question's path numbers, and with a sound verdict to any other path."""

    def __init__(self) -> None:
        self._late = b""
        self.port: object = None
        """The client's port, as the last question says it."""

    def __call__(self, asked: Frame) -> tuple[bytes, bool]:
        """Return the bytes of the answer to a question, and whether the connection ends behind it."""
        said_of = {name: value.value for each in read_messages(asked) for name, value in each.arguments}
        path, self.port = str(said_of["path"]), said_of.get("src-port")
        number = path.removeprefix(_PATH)
        verdict, row = _CHANGES[int(number)] if number.isdecimal() else ({}, {})
        late, self._late = self._late, b""
        ids = asked.stream_id + row.get("stream", 0), asked.frame_id + row.get("frame", 0)
        ack = Frame(row.get("type", FrameType.ACK), *ids, actions(verdict), row.get("flags", Flags.FIN))
        said = late + bytes.fromhex(row.get("before", "")) + ack.encode()[: row.get("keep")]
        if row.get("late"):
            self._late, said = ack.encode(), late
        if "twice" in row:
            pair = [ack, replace(ack, payload=actions({"allow": False, "status": 403}))]
            said = b"".join(each.encode() for each in (pair[::-1] if row["twice"] else pair))
        if "farewell" in row:
            items: dict[str, Value | Typed] = as_hello({"status-code": row["farewell"], "message": "bye"})
            said += Frame(FrameType.AGENT_DISCONNECT, payload=encode_kv(items)).encode()
        return said, row.get("ends", False)


@check(
    "proxy.verdict.misbehaving",
    "PROXY-VERDICT-001",
    "TRAVERSAL-REFUSED-001",
    "PROXY-ASKED-001",
    features={"spop"},
    long=True,
)
def misbehaving(target: Target) -> str:
    """Whatever an agent answers, the proxy lets in with a sound verdict alone, and where that says.

    A scripted agent stands in the agent's place: verdicts with one thing changed, and broken frames. Then it
    allows all ambiguous paths and texts that are too long, which the proxy must refuse by itself.
    """
    impostors, script = list[Impostor](), Script()
    with ExitStack() as stack:

        def between(host: str, agent: str) -> str:
            impostors.append(stack.enter_context(Impostor(host, agent, backend=_BACKEND, answer=script)))
            return impostors[0].address

        here = stack.enter_context(own_bench(target, "orders", between=between, settings=_SETTINGS))
        impostors[0].takes_over(None)
        if faults := [found for found in (*_played(here), *_ambiguous(here)) if found[1]]:
            sentences = "; ".join(f"{what}: {wrong}" for what, wrong, *_ in faults[:_SHOWN])
            raise here.failed(f"{len(faults)} answers of the agent: {sentences}", faults[0][2], faults[0][3])
        client = here.world.haproxy.wait_log(
            lambda line: line.get("client_port") == script.port, here.seconds(_BACK)
        )
        if client is None:
            raise here.failed(f"the proxy asked about the port {script.port}, from which no client asks")
    return f"{len(_ALL)} answers of a scripted agent"


def _played(here: Bench) -> Iterator[tuple[str, str, Observation, str]]:
    first = _sound(here, "the first")
    yield "long tags", "; ".join(mismatches(Expectation(headers=_HEADERS), first, {})), first, "each whole"
    for number, (what, (row, said)) in enumerate(_ALL):
        mark = secrets.token_hex(8)
        seen = _ask(here, RequestSpec(path=f"{_PATH}{number}?{mark}"))
        wrong = _wrong(said, seen)
        if row.get("late"):  # the answer to this question comes just before the refusal of the next
            refused = [name for name, _ in _ALL].index("a refusal")
            wrong = wrong or _wrong("shut", _ask(here, RequestSpec(path=f"{_PATH}{refused}")))
        _sound(here, what)
        if not seen.allow and _reached(here, mark):
            wrong = wrong or f"status {seen.status}, but it reaches {_BACKEND}"
        yield what, wrong, seen, said


def _ambiguous(here: Bench) -> Iterator[tuple[str, str, Observation, str]]:
    """Ask what the proxy itself must refuse (1.4), which is allowed by this agent, whatever it is."""
    asked = [(trick.name, RequestSpec(path=trick.path)) for trick in tricks() if trick.kind == "refused"]
    for what, request in (*asked, *_LONG.items()):
        seen = _ask(here, request)
        right = seen.status in (400, 501) and not seen.allow  # 501: 1.20
        yield what, "" if right else f"{request}: {seen.status}", seen, "400"


def _ask(here: Bench, asked: RequestSpec) -> Observation:
    return here.client.ask(asked.model_copy(update={"connection": "one"}), "", with_reason=False)


def _sound(here: Bench, what: str, path: str = "/sound") -> Observation:
    asked: dict[str, Any] = {"connection": "one", "with_reason": False}
    return here.expect(f"a sound verdict beside {what}", "", _OPEN, within=_BACK, path=path, **asked)


def _reached(here: Bench, mark: str) -> bool:
    """Ask the backend whether a request with this mark reached it, until the proxy lets that through."""
    page = _sound(here, "the backend's count", f"/_control/counters?{mark}").received
    if (count := _REACHED.search(page)) is None:
        raise here.failed("the backend's count did not come through the proxy", received=page)
    return count[1] != "0"


def _wrong(said: str, seen: Observation) -> str:
    """Return what is wrong with a client's answer, or ""."""
    passed = seen.status == 200 and seen.backend == _BACKEND
    if _FORGED.search(seen.received) or any(name == "x-forged" for name, _ in seen.headers):
        return "it writes a header of its own"
    if seen.allow or seen.status == 200:
        return "" if passed and said == "open" else f"it reaches {seen.backend or 'the client'}"
    right = (int(said), 503) if said.isdecimal() else _SHUT  # 503 is what a busy host makes of any answer
    return "" if seen.status in right else f"status {seen.status}"
