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

from iamroles_scenarios.base import errors
from iamroles_scenarios.base.errors import CheckFailed, Evidence, Untestable, WireError, WireFormatError
from iamroles_scenarios.wire.client import Connection, question
from iamroles_scenarios.wire.codec import DataType, Typed, Value
from iamroles_scenarios.wire.frames import Frame, FrameType, read_actions, read_kv, variables
from iamroles_scenarios.wire.target import WireTarget

DEADLINE = 3.0
"""Seconds, before scaling, for any single answer; HAProxy's own processing timeouts are shorter."""
QUIET = 0.3
"""Seconds, before scaling, to see that nothing more comes."""
NO_CREDENTIAL: Mapping[str, Any] = {"authorization": None, "method": "GET", "host": "wire.test", "path": "/"}

opened: ContextVar[list[Connection]] = ContextVar("opened")
"""Connections of the running check, in the order they were opened."""


# --- questions with a known answer -------------------------------------------------------------------------


def probe(target: WireTarget) -> Mapping[str, Any]:
    """Return an allowed question, whose answer tells most; else one without credential."""
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


class JudgedConnection(Connection):
    """A connection of a check, which holds the agent to what must come on it."""

    target: WireTarget
    """The agent that is judged."""

    async def agree(self, items: Mapping[str, Value | Typed] | None = None) -> int:
        """Shake hands, and return the max-frame-size that the agent said."""
        said = (await self.hello(items)).get("max-frame-size")
        if not isinstance(said, int):
            raise self.fail(f"AGENT-HELLO has max-frame-size {said!r}")
        return said

    def fail(
        self, message: str, *, expected: str = "", received: str = "", false_allow: bool = False
    ) -> CheckFailed:
        """A verdict against the agent; the lane adds the transcripts."""
        evidence = Evidence("", expected, received, str(self.transcript), false_allow=false_allow)
        return CheckFailed(message, evidence)

    def verdict(self, ack: Frame) -> dict[str, Value]:
        """The `txn` variables of an ACK; a malformed one, or one whose `allow` is no BOOL, is a failure."""
        try:
            found = variables(ack)
        except WireFormatError as error:
            raise self.fail(f"the ACK's actions are malformed: {error}") from error
        if "allow" in found and not isinstance(found["allow"], bool):
            raise self.fail("`allow` is not a BOOL", received=repr(found["allow"]))
        return found

    def must_allow(self, ack: Frame) -> dict[str, Value]:
        """The ACK of an allowed question."""
        found = self.verdict(ack)
        if found.get("allow") is not True:
            hint = "" if self.target.refused else "; is the token of --allowed still good?"
            raise self.fail(
                f"an allowed request was refused ({found.get('reason')!r}){hint}",
                expected="txn.allow=true",
                received=shown(found),
            )
        return found

    def must_not_allow(self, ack: Frame) -> dict[str, Value]:
        """An ACK that allows nothing: a deny, or no verdict at all (HAProxy's configuration then refuses)."""
        found = self.verdict(ack)
        if found.get("allow") is True:
            raise self.fail(
                "a request that must not be allowed was allowed",
                expected="txn.allow unset or false",
                received=shown(found),
                false_allow=True,
            )
        return found

    def must_deny(self, ack: Frame, *reasons: str) -> dict[str, Value]:
        """An explicit deny, with one of the reasons if any are given (SPEC.md section 4)."""
        found = self.verdict(ack)
        if found.get("allow") is not False or (reasons and found.get("reason") not in reasons):
            expected = "txn.allow=false" + (f" txn.reason={'|'.join(reasons)}" if reasons else "")
            raise self.fail(
                "not the explicit deny it must be",
                expected=expected,
                received=shown(found),
                false_allow=found.get("allow") is True,
            )
        return found

    def must_judge(self, ack: Frame) -> dict[str, Value]:
        """The right ACK to `probe`."""
        return self.must_deny(ack) if self.target.allowed is None else self.must_allow(ack)

    async def must_answer(self, frame: Frame) -> dict[str, Value]:
        """Ask a question that `probe` made, and require the right ACK."""
        return self.must_judge(await self.ask(frame))

    async def must_serve(self, stream_id: int = 9001) -> None:
        """The connection still gives the right answer to a good request."""
        await self.must_answer(question(probe(self.target), stream_id=stream_id))

    async def must_be_quiet(self, what: str) -> None:
        """Nothing more comes for a moment."""
        try:
            answer = await self.receive(self.target.seconds(QUIET))
        except errors.SilenceError:
            return
        raise self.fail(f"{what}: got another {getattr(answer, 'name', answer)}")

    async def collect(self, count: int, *, seconds: float = DEADLINE) -> list[Frame]:
        """Return this many ACKs, in any order, all by one deadline."""
        acks: list[Frame] = []
        try:
            async with asyncio.timeout(self.target.seconds(seconds)):
                while len(acks) < count:
                    acks.append(await self.expect(FrameType.ACK, self.target.seconds(seconds) * 2))
        except TimeoutError:
            raise self.fail(
                f"{count} NOTIFY, but {len(acks)} ACKs within {self.target.seconds(seconds):g} s"
            ) from None
        return acks

    def must_answer_each(self, asked: list[Frame], acks: list[Frame]) -> None:
        """Each NOTIFY has exactly one ACK, with its ids and FIN."""
        wanted = sorted((frame.stream_id, frame.frame_id) for frame in asked)
        got = sorted((frame.stream_id, frame.frame_id) for frame in acks)
        if wanted != got:
            raise self.fail(
                "the ACKs' stream and frame ids are not those of the NOTIFYs",
                expected=str(wanted),
                received=str(got),
            )
        if not all(ack.fin for ack in acks):
            raise self.fail("an ACK has no FIN")

    async def must_answer_all(self, asked: list[Frame], *, seconds: float = DEADLINE) -> None:
        """Each of the questions, which `probe` made, gets exactly one ACK, and the right one."""
        acks = await self.collect(len(asked), seconds=seconds)
        self.must_answer_each(asked, acks)
        for ack in acks:
            self.must_judge(ack)

    def must_be_well_formed(self, ack: Frame) -> None:
        """Each action as SPOE.txt 3.4 says; variables of the agent's own may have any scope."""
        try:
            read_actions(ack)
        except WireFormatError as error:
            raise self.fail(
                f"the ACK's actions are malformed: {error}",
                expected="SET-VAR with 3 arguments, UNSET-VAR with 2, scope 0 to 4",
            ) from error

    def check_disconnect(self, frame: Frame) -> int:
        """The status of an AGENT-DISCONNECT, which must be well formed (SPOE.txt 3.2.9)."""
        try:
            items = dict(read_kv(frame))
        except WireFormatError as error:
            raise self.fail(f"the AGENT-DISCONNECT is malformed: {error}") from error
        status, message = items.get("status-code"), items.get("message")
        if status is None or not isinstance(status.value, int) or isinstance(status.value, bool):
            raise self.fail("the AGENT-DISCONNECT has no integer `status-code`", received=str(items))
        text = message.value if message and message.type is DataType.STRING else None
        raw = text.encode() if isinstance(text, str) else text
        if not isinstance(raw, bytes):
            raise self.fail("the AGENT-DISCONNECT has no `message` of type STRING", received=str(items))
        if len(raw) > 255:
            raise self.fail(f"the message has {len(raw)} bytes, HAProxy takes 255")
        if (frame.stream_id, frame.frame_id) != (0, 0) or not frame.fin:
            raise self.fail("an AGENT-DISCONNECT has stream-id 0, frame-id 0 and FIN")
        return status.value

    async def must_end(
        self, why: str, *codes: int, disconnect: bool = False, seconds: float = DEADLINE
    ) -> list[Frame]:
        """The agent ends the connection: FIN, RST or AGENT-DISCONNECT before either.

        Args:
            why: what the agent was sent, for the message.
            codes: assigned status codes that fit; 99 and codes SPOE.txt does not assign always do. Without
                codes, any but 0.
            disconnect: an AGENT-DISCONNECT is required (SPOE.txt says "must be returned").
            seconds: deadline before scaling.

        Returns:
            Frames before the AGENT-DISCONNECT.
        """
        try:
            frames = await self.ended(self.target.seconds(seconds))
        except WireError as error:
            raise self.fail(f"{why}: {error.message}", expected=_expected(codes)) from error
        said = [frame for frame in frames if frame.type == FrameType.AGENT_DISCONNECT]
        if not said and disconnect:
            raise self.fail(f"{why}: closed without AGENT-DISCONNECT", expected=_expected(codes))
        for frame in said:
            status = self.check_disconnect(frame)
            assigned = status in range(14)
            if (assigned and codes and status not in codes) or (status == 0 and not codes):
                raise self.fail(f"{why}: AGENT-DISCONNECT {status}", expected=_expected(codes))
        return [frame for frame in frames if frame.type != FrameType.AGENT_DISCONNECT]


@asynccontextmanager
async def connected(target: WireTarget, address: str | None = None) -> AsyncIterator[JudgedConnection]:
    """A connection before its handshake."""
    connection = await JudgedConnection.open(address or target.address, within=target.seconds(DEADLINE))
    connection.target = target
    opened.get([]).append(connection)
    try:
        yield connection
    finally:
        connection.close()


@asynccontextmanager
async def session(
    target: WireTarget, items: Mapping[str, Value | Typed] | None = None, *, address: str | None = None
) -> AsyncIterator[JudgedConnection]:
    """A connection after its handshake.

    Args:
        target: whom to judge.
        items: the HELLO's items; by default those of HAProxy 3.
        address: another process of the same agent.
    """
    async with connected(target, address) as connection:
        await connection.hello(items)
        yield connection


async def must_live(target: WireTarget, after: str, *, address: str | None = None) -> None:
    """The agent accepts a new connection and gives the right answer to a good request."""
    try:
        async with session(target, address=address) as connection:
            await connection.must_serve()
    except WireError as error:
        raise CheckFailed(
            f"after {after} the agent no longer serves: {error.message}",
            Evidence(trace=str(error.trace)),
        ) from error


async def must_refuse(
    target: WireTarget, broken: Mapping[str, Frame | bytes], *codes: int, seconds: float = DEADLINE
) -> None:
    """Send each broken frame on a session of its own, which must end as in `must_end`, without an answer."""
    for what, frame in broken.items():
        async with session(target) as connection:
            await connection.send(frame)
            if await connection.must_end(what, *codes, seconds=seconds):
                raise connection.fail(f"{what} was answered")


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


def shown(found: Mapping[str, Value]) -> str:
    """Variables on one line."""
    return " ".join(f"txn.{name}={value!r}" for name, value in found.items()) or "no variables"


def _expected(codes: tuple[int, ...]) -> str:
    named = "|".join(map(str, codes)) or "any but 0"
    return f"AGENT-DISCONNECT with status {named}, or FIN or RST"
