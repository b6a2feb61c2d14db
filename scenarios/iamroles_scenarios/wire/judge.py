"""Tools of the checks of the wire lane: sessions that are closed again, and verdicts on answers.

A check opens connections through `session` or `connected`; whatever it opened is closed, and its transcript
kept for the evidence, when the check ends. A failed expectation raises `CheckFailed`; a `WireError` that a
check does not catch is a verdict on the agent too, for only the agent can cause one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

from iamroles_scenarios.base.errors import CheckFailed, Evidence, Untestable, WireError, WireFormatError
from iamroles_scenarios.wire.client import Connection, open_connection, question
from iamroles_scenarios.wire.codec import Typed, Value
from iamroles_scenarios.wire.frames import Frame, FrameType, read_actions, read_kv, variables
from iamroles_scenarios.wire.target import WireTarget

DEADLINE = 3.0
"""Seconds, before scaling, for any single answer; HAProxy's own processing timeouts are shorter."""
QUIET = 0.3
"""Seconds, before scaling, to see that nothing more comes."""
PIECE_GAP = 0.0003
"""Seconds between bytes sent one at a time: enough for the agent to wake and read each."""
NO_CREDENTIAL: Mapping[str, Any] = {"authorization": None, "method": "GET", "host": "wire.test", "path": "/"}

opened: ContextVar[list[Connection]] = ContextVar("opened")
"""Connections of the running check, in the order they were opened."""


@asynccontextmanager
async def connected(target: WireTarget, address: str | None = None) -> AsyncIterator[Connection]:
    """A connection before its handshake."""
    connection = await open_connection(address or target.address, within=target.seconds(DEADLINE))
    opened.get([]).append(connection)
    try:
        yield connection
    finally:
        connection.close()


@asynccontextmanager
async def session(
    target: WireTarget, items: Mapping[str, Value | Typed] | None = None, *, address: str | None = None
) -> AsyncIterator[Connection]:
    """A connection after its handshake.

    Args:
        target: whom to judge.
        items: the HELLO's items; by default those of HAProxy 3.
        address: another process of the same agent.
    """
    async with connected(target, address) as connection:
        await connection.hello(items)
        yield connection


# --- questions with a known answer -------------------------------------------------------------------------


def probe(target: WireTarget) -> Mapping[str, Any]:
    """Return the question with the most telling right answer: an allowed question, else a question without
    credential.
    """
    return NO_CREDENTIAL if target.allowed is None else target.allowed


def allowed(target: WireTarget) -> Mapping[str, Any]:
    """A question that must be allowed.

    Raises:
        Untestable: no credential is known.
    """
    if target.allowed is None:
        raise Untestable(
            "needs a credential that the agent allows: run it with its agent.toml, "
            "or pass --allowed CHECK.json beside --agent-address"
        )
    return target.allowed


def refused(target: WireTarget) -> Mapping[str, Any]:
    """A question that must be refused."""
    return NO_CREDENTIAL if target.refused is None else target.refused


def tokenless(check: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same question without a credential."""
    return {**check, "authorization": None, "authorization-count": 0}


def fail(
    connection: Connection | None, message: str, *, expected: str = "", received: str = ""
) -> CheckFailed:
    """A verdict against the agent; the lane adds the transcripts."""
    trace = "" if connection is None else str(connection.transcript)
    return CheckFailed(message, Evidence(expected=expected, received=received, trace=trace))


def verdict(connection: Connection, ack: Frame) -> dict[str, Value]:
    """The `txn` variables of an ACK; an ACK that is malformed, or sets `allow` to no BOOL, is a failure."""
    try:
        found = variables(ack)
    except WireFormatError as error:
        raise fail(connection, f"the ACK's actions are malformed: {error}") from error
    if "allow" in found and not isinstance(found["allow"], bool):
        raise fail(connection, "`allow` is not a BOOL", received=repr(found["allow"]))
    return found


def must_allow(connection: Connection, ack: Frame) -> dict[str, Value]:
    """The ACK of an allowed question."""
    found = verdict(connection, ack)
    if found.get("allow") is not True:
        raise fail(
            connection,
            f"an allowed request was refused ({found.get('reason')!r})",
            expected="txn.allow=true",
            received=shown(found),
        )
    return found


def must_not_allow(connection: Connection, ack: Frame) -> dict[str, Value]:
    """An ACK that allows nothing: a deny, or no verdict at all (HAProxy's configuration then refuses)."""
    found = verdict(connection, ack)
    if found.get("allow") is True:
        raise fail(
            connection,
            "a request that must not be allowed was allowed",
            expected="txn.allow unset or false",
            received=shown(found),
        )
    return found


def must_deny(connection: Connection, ack: Frame, *reasons: str) -> dict[str, Value]:
    """An explicit deny, with one of the reasons if any are given (SPEC.md section 4)."""
    found = verdict(connection, ack)
    if found.get("allow") is not False or (reasons and found.get("reason") not in reasons):
        expected = "txn.allow=false" + (f" txn.reason={'|'.join(reasons)}" if reasons else "")
        raise fail(connection, "not the explicit deny it must be", expected=expected, received=shown(found))
    return found


def must_judge(target: WireTarget, connection: Connection, ack: Frame) -> dict[str, Value]:
    """The right ACK to `probe`."""
    return must_deny(connection, ack) if target.allowed is None else must_allow(connection, ack)


async def must_answer(target: WireTarget, connection: Connection, frame: Frame) -> dict[str, Value]:
    """Ask a question that `probe` made, and require the right ACK."""
    return must_judge(target, connection, await connection.ask(frame))


async def must_serve(target: WireTarget, connection: Connection, stream_id: int = 9001) -> None:
    """The connection still gives the right answer to a good request."""
    await must_answer(target, connection, question(probe(target), stream_id=stream_id))


async def must_live(target: WireTarget, after: str, *, address: str | None = None) -> None:
    """The agent accepts a new connection and gives the right answer to a good request."""
    try:
        async with session(target, address=address) as connection:
            await must_serve(target, connection)
    except WireError as error:
        raise CheckFailed(
            f"after {after} the agent no longer serves: {error.message}",
            Evidence(trace=str(error.trace)),
        ) from error


def shown(found: Mapping[str, Value]) -> str:
    """Variables on one line."""
    return " ".join(f"txn.{name}={value!r}" for name, value in found.items()) or "no variables"


# --- refusals on the wire ----------------------------------------------------------------------------------


def check_disconnect(connection: Connection, frame: Frame) -> int:
    """The status of an AGENT-DISCONNECT, which must be well formed (SPOE.txt 3.2.9)."""
    try:
        items = dict(read_kv(frame))
    except WireFormatError as error:
        raise fail(connection, f"the AGENT-DISCONNECT is malformed: {error}") from error
    status, message = items.get("status-code"), items.get("message")
    if status is None or not isinstance(status.value, int) or isinstance(status.value, bool):
        raise fail(connection, "the AGENT-DISCONNECT has no integer `status-code`", received=str(items))
    if message is None or not isinstance(message.value, str):
        raise fail(connection, "the AGENT-DISCONNECT has no `message` of type STRING", received=str(items))
    if len(message.value.encode()) > 255:
        raise fail(connection, f"the message has {len(message.value.encode())} bytes, HAProxy takes 255")
    if (frame.stream_id, frame.frame_id) != (0, 0) or not frame.fin:
        raise fail(connection, "an AGENT-DISCONNECT has stream-id 0, frame-id 0 and FIN")
    return status.value


async def must_end(
    target: WireTarget,
    connection: Connection,
    why: str,
    *codes: int,
    disconnect: bool = False,
    seconds: float = DEADLINE,
) -> list[Frame]:
    """The agent ends the connection: FIN, RST or AGENT-DISCONNECT before either.

    Args:
        target: whom to judge.
        connection: the connection that must end.
        why: what the agent was sent, for the message.
        codes: assigned status codes that fit; 99 and codes SPOE.txt does not assign always do. None given:
            any but 0.
        disconnect: an AGENT-DISCONNECT is required (SPOE.txt says "must be returned").
        seconds: deadline before scaling.

    Returns:
        Frames before the AGENT-DISCONNECT.
    """
    try:
        frames = await connection.ended(target.seconds(seconds))
    except WireError as error:
        raise fail(connection, f"{why}: {error.message}", expected=_expected(codes)) from error
    said = [frame for frame in frames if frame.type == FrameType.AGENT_DISCONNECT]
    if not said and disconnect:
        raise fail(connection, f"{why}: closed without AGENT-DISCONNECT", expected=_expected(codes))
    for frame in said:
        status = check_disconnect(connection, frame)
        assigned = status in range(14)
        if (assigned and codes and status not in codes) or (status == 0 and not codes):
            raise fail(connection, f"{why}: AGENT-DISCONNECT {status}", expected=_expected(codes))
    return [frame for frame in frames if frame.type != FrameType.AGENT_DISCONNECT]


async def must_refuse(
    target: WireTarget, broken: Mapping[str, Frame | bytes], *codes: int, seconds: float = DEADLINE
) -> None:
    """Send each broken frame on a session of its own, which must end as in `must_end`, without an answer."""
    for what, frame in broken.items():
        async with session(target) as connection:
            await connection.send(frame)
            if await must_end(target, connection, what, *codes, seconds=seconds):
                raise fail(connection, f"{what} was answered")


def _expected(codes: tuple[int, ...]) -> str:
    named = "|".join(map(str, codes)) or "any but 0"
    return f"AGENT-DISCONNECT with status {named}, or FIN or RST"


async def must_be_quiet(target: WireTarget, connection: Connection, what: str) -> None:
    """Nothing more comes for a moment."""
    try:
        answer = await connection.receive(target.seconds(QUIET))
    except WireError:
        return
    raise fail(connection, f"{what}: got another {getattr(answer, 'name', answer)}")


async def collect(
    target: WireTarget, connection: Connection, count: int, *, seconds: float = DEADLINE
) -> list[Frame]:
    """Return this many ACKs, in any order, all by one deadline."""
    acks: list[Frame] = []
    try:
        async with asyncio.timeout(target.seconds(seconds)):
            while len(acks) < count:
                acks.append(await connection.expect(FrameType.ACK, target.seconds(seconds) * 2))
    except TimeoutError:
        raise fail(
            connection, f"{count} NOTIFY, but {len(acks)} ACKs within {target.seconds(seconds):g} s"
        ) from None
    return acks


def must_answer_each(connection: Connection, asked: list[Frame], acks: list[Frame]) -> None:
    """Each NOTIFY has exactly one ACK, with its ids and FIN."""
    wanted = sorted((frame.stream_id, frame.frame_id) for frame in asked)
    got = sorted((frame.stream_id, frame.frame_id) for frame in acks)
    if wanted != got:
        raise fail(
            connection,
            "the ACKs' stream and frame ids are not those of the NOTIFYs",
            expected=str(wanted),
            received=str(got),
        )
    if not all(ack.fin for ack in acks):
        raise fail(connection, "an ACK has no FIN")


def must_be_well_formed(connection: Connection, ack: Frame) -> None:
    """Each action as SPOE.txt 3.4 says; variables of the agent's own may have any scope."""
    try:
        read_actions(ack)
    except WireFormatError as error:
        raise fail(
            connection,
            f"the ACK's actions are malformed: {error}",
            expected="SET-VAR with 3 arguments, UNSET-VAR with 2, scope 0 to 4",
        ) from error


async def eventually(
    target: WireTarget, condition: Callable[[], Awaitable[bool]], *, seconds: float = DEADLINE
) -> bool:
    """Return whether a state of the agent that nothing announces came about by a deadline."""
    try:
        async with asyncio.timeout(target.seconds(seconds)):
            while not await condition():  # noqa: ASYNC110 - another process's state sets no event here
                await asyncio.sleep(0.03)
    except TimeoutError:
        return False
    return True
