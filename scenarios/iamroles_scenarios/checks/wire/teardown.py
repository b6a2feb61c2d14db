"""Wire checks: teardown (SPOE.txt 3.2.8, 3.2.9) and a life among many connections."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from functools import partial
from typing import Any

from iamroles_scenarios.base import errors
from iamroles_scenarios.base.errors import CheckFailed, Evidence, SilenceError, Untestable, WireError
from iamroles_scenarios.base.family import descriptors, holders
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.wire import judge
from iamroles_scenarios.wire.client import Connection, question
from iamroles_scenarios.wire.frames import Frame, FrameType, disconnect, encode_kv, hello, prefixed
from iamroles_scenarios.wire.judge import DEADLINE, JudgedConnection, connected, must_live, probe, session
from iamroles_scenarios.wire.target import Process, WireTarget

_ERROR_LINE = re.compile(
    r"Traceback|panic(ked|:)|\b(ERR|ERROR|CRIT|CRITICAL|FATAL)\b|^<[0-3]>|^[EF]\d{4} "
    r"""|(?i:\b(level|lvl|severity)["']?\s*[=:]\s*["']?|[\t\[])(?i:err|error|crit|critical|fatal|panic)\b"""
    r"""|"level": ?[56]0\b""",
)

_AGE, _SPREAD, _LATE = 2.0, 0.1, 1.0625
"""Seconds: `max_connection_age` here, times the scale; and by how much ages must differ, not scaled. An end
after `_LATE` times that age is late: an agent may end a connection in its last moment."""
_IDLE = 12
"""Connections that are idle until they are old."""
_HALF = 30
"""Octets of a question that has not arrived yet."""
_OLD = "a connection older than `max_connection_age`"
_LIMITS: Mapping[str, Any] = {"max_connections": 4, "handshake_timeout": "1h"}
"""The limit that is judged, and another so long that it ends no connection."""
_WAITS, _PATIENCE, _EACH = 4, 30.0, 0.5
"""How many times as long as usual a slow question takes beside a limit; seconds for its answer, times the
scale; and seconds, not scaled, between two connections that come meanwhile."""
_DRIP = 0.3
"""Seconds, not scaled, between two bytes of a HELLO: less than `handshake_timeout` here."""
_PORTS = 20_000, 32_000
"""Below those that a kernel gives by itself."""
_QUEUED = 1.5
"""Seconds, times the scale, without an answer on a connection that was made; a slow question takes longer."""
_MOMENT = 0.1
"""Seconds, times the scale, in which a connection is served after others got their goodbye."""
_CROSSINGS = 3
"""Connections on which a goodbye may cross the first question."""


@check("wire.bye.answered", "SPOP-BYE-001")
async def bye_answered(target: WireTarget) -> None:
    """HAPROXY-DISCONNECT: AGENT-DISCONNECT 0, then close.

    HAProxy waits for it. No other status follows, also if a frame does.
    """
    async with session(target) as connection:
        await connection.send(disconnect())
        await connection.must_end("HAPROXY-DISCONNECT", 0, disconnect=True)
    async with session(target) as connection:
        await connection.must_serve()
        await connection.send(disconnect())
        await connection.must_end("HAPROXY-DISCONNECT after a NOTIFY", 0, disconnect=True)
    async with session(target) as connection:
        await connection.send(disconnect(), question(probe(target)))
        await connection.must_end("HAPROXY-DISCONNECT before a NOTIFY", 0)


@check("wire.bye.normal", "SPOP-BYE-002")
async def bye_normal(target: WireTarget) -> str:
    """Status 0, 1 and 2 are normal: answered, and nothing at error level in the log.

    HAProxy ends every idle connection with status 2; that must not page anyone.
    """

    async def say(address: str) -> None:
        for status, message in ((0, "normal"), (1, "I/O error"), (2, "a timeout occurred")):
            async with session(target, address=address) as connection:
                await connection.send(disconnect(status, message))
                await connection.must_end(f"DISCONNECT {status}", 0, disconnect=True)
        await must_live(target, "normal disconnects", address=address)

    if target.launch is None:
        await say(target.address)
        return "the log was not judged: it takes an agent that the suite starts"
    async with launched(target, {}) as process, session(target, address=process.spop_address):
        start = process.logs().splitlines()  # it may name a level, or what happens at an error
        await say(process.spop_address)
        for line in process.logs().splitlines():
            if _ERROR_LINE.search(line) and line not in start:
                raise CheckFailed(
                    "a normal disconnect is logged as an error",
                    Evidence(received=line, expected="no error line"),
                )
    return "the log has no error line"


@check("wire.bye.odd-payload", "SPOP-BYE-003")
async def bye_odd(target: WireTarget) -> None:
    """DISCONNECT with an empty payload or unknown keys: the connection ends, the agent lives."""
    payloads: tuple[bytes, ...] = (
        b"",
        encode_kv([("x", -1), ("status-code", 2), ("message", "bye"), ("y", None)]),
        encode_kv([("status-code", "two"), ("message", 7)]),
        encode_kv({"message": "é" * 400}),
        b"\xff\xff\xff",
    )
    for payload in payloads:
        async with session(target) as connection:
            await connection.send(Frame(FrameType.HAPROXY_DISCONNECT, payload=payload))
            await connection.must_end("an odd DISCONNECT", *range(14))
    await must_live(target, "odd disconnects")


@check("wire.bye.abrupt", "SPOP-BYE-004")
async def bye_abrupt(target: WireTarget) -> None:
    """EOF, RST and a peer that does not read are normal.

    Before HELLO, after it, in the middle of a frame, before the ACK.
    """
    asked = question(probe(target))
    for reset in (False, True):
        for stage in ("connected", "greeted", "half a frame", "asked"):
            async with connected(target) as connection:
                if stage != "connected":
                    await connection.hello()
                if stage == "half a frame":
                    await connection.send(asked.encode()[:30])
                elif stage == "asked":
                    await connection.send(*[asked] * 20)
                if reset:
                    connection.reset()
    await must_live(target, "EOF and RST at every stage")


@check("wire.bye.half-close", "SPOP-BYE-005")
async def half_close(target: WireTarget) -> None:
    """A half-close after NOTIFY: the ACK is flushed, then the connection closed.

    Several NOTIFYs are in flight, a slow one among them if one is known.
    """
    async with session(target) as connection:
        asked = _in_flight(target, 5)
        await connection.send(*asked)
        connection.half_close()
        await connection.must_answer_all(asked, seconds=8.0)
        await connection.must_end("a half-close", *range(14))


@check("wire.bye.form", "SPOP-BYE-006")
async def bye_form(target: WireTarget) -> str:
    """AGENT-DISCONNECT: ids 0, FIN, status-code and a message of at most 255 bytes.

    In reply to HAProxy's, and after errors of several kinds, one with a long name in it.
    """
    long_name = prefixed(bytes([FrameType.NOTIFY, 0, 0, 0, 1, 1, 1, 0xFF, 0x10]) + b"n" * 400)
    provoked: tuple[Frame | bytes, ...] = (
        disconnect(),
        bytes(4),
        long_name,
        Frame(FrameType.NOTIFY, 1, 1, b"\xef", 1),
    )
    seen = 0
    for number, cause in enumerate(provoked):
        async with session(target) as connection:
            await connection.send(cause)
            try:
                frames = await connection.ended(target.seconds(DEADLINE))
            except SilenceError:
                continue  # other checks judge whether it ends
            for frame in frames:
                if frame.type != FrameType.AGENT_DISCONNECT:
                    raise connection.fail(f"{frame.name} where only AGENT-DISCONNECT may come")
                connection.check_disconnect(frame)
                seen += 1
            if number == 0 and not seen:
                raise connection.fail("closed without AGENT-DISCONNECT", expected="AGENT-DISCONNECT 0")
    return f"{seen} of {len(provoked)} ends had an AGENT-DISCONNECT"


def _in_flight(target: WireTarget, count: int, times: int = 1) -> list[Frame]:
    """Make questions of which the first keeps the agent waiting, if such a question is known."""
    first = probe(target) if target.slow is None else target.slow(times * target.time_scale)
    return [
        question(first if number == 1 else probe(target), stream_id=number) for number in range(1, count + 1)
    ]


# --- life -------------------------------------------------------------------------------------------------


@check("wire.life.no-leak", "SPOP-LIFE-001")
async def no_leak(target: WireTarget) -> str:
    """Peers that vanish in the middle of a question leak no descriptor."""
    count = 150
    asked = question(probe(target) if target.slow is None else target.slow(target.time_scale))
    if target.launch is None:
        # Other checks hold connections meanwhile, so the bound is wide.
        return await _descriptors_back(target, target.address, target.pid, asked, count, slack=count // 2)
    async with launched(target, {}) as process:
        return await _descriptors_back(target, process.spop_address, process.host_pid, asked, count, slack=10)


async def _descriptors_back(
    target: WireTarget, address: str, pid: int | None, asked: Frame, count: int, *, slack: int
) -> str:
    await must_live(target, "its start", address=address)
    before = 0 if pid is None else descriptors(pid)  # of another user's process none is seen
    for _ in range(0, count, 30):
        await asyncio.gather(*(_vanish(target, address, asked) for _ in range(30)))
    await must_live(target, f"{count} vanished peers", address=address)
    if pid is None or not before:
        raise Untestable("descriptors not watched: run on the agent's host, as its user or root")

    async def given_back() -> bool:
        return descriptors(pid) <= before + slack

    if not await judge.eventually(target, given_back, seconds=8.0):
        raise CheckFailed(
            f"{descriptors(pid) - before} more descriptors after {count} vanished peers",
            Evidence(expected=f"at most {before + slack}", received=str(descriptors(pid))),
        )
    return f"{before} descriptors before, {descriptors(pid)} after"


async def _vanish(target: WireTarget, address: str, asked: Frame) -> None:
    async with session(target, address=address) as connection:
        await connection.send(asked)
        connection.reset()


@check("wire.life.isolation", "SPOP-LIFE-002")
async def isolation(target: WireTarget) -> None:
    """A crash on one connection never touches another.

    The check uses a good connection between bad ones of every kind.
    """
    bad: tuple[bytes, ...] = (
        bytes(4),
        b"\xff" * 16,
        prefixed(b"\x03\x00\x00\x00\x01\x01\x01\xef"),
        prefixed(b"\x03\x00\x00\x00\x01\x01\x01\x09iam-check\x01\x03src\x0f"),
        prefixed(b"\x03\x00\x00\x00\x00\x01\x01"),
        Frame(FrameType.HAPROXY_HELLO, payload=b"\x01").encode(),
    )
    async with session(target) as good:
        for number, raw in enumerate(bad):
            async with session(target) as broken:
                await broken.send(raw)
                # Other checks judge whether this connection ends; here it has time to do harm.
                with suppress(WireError):
                    await broken.ended(target.seconds(judge.QUIET))
            await good.must_serve(stream_id=number + 1)


@check("wire.life.burst", "SPOP-LIFE-004")
async def burst(target: WireTarget) -> None:
    """A burst of reconnects, as after a HAProxy reload, is served."""

    async def one() -> None:
        async with session(target) as connection:
            await connection.must_serve()

    async with asyncio.timeout(target.seconds(10.0)):
        await asyncio.gather(*(one() for _ in range(120)))


@check("wire.life.sigterm", "SPOP-LIFE-003")
async def sigterm(target: WireTarget) -> None:
    """SIGTERM: stop accepting, finish the ACKs in flight, exit 0."""
    how = {"drain_timeout": f"{target.seconds(10.0):g}s"}
    async with launched(target, how) as process, session(target, address=process.spop_address) as connection:
        await connection.must_serve()
        asked = _in_flight(target, 20)
        await connection.send(*asked)
        first = await connection.expect(FrameType.ACK)
        process.terminate()
        acks = [first, *await connection.collect(len(asked) - 1, seconds=8.0)]
        connection.must_answer_each(asked, acks)
        for ack in acks:
            connection.must_judge(ack)
        if not await judge.eventually(target, lambda: _refuses(target, process.spop_address)):
            raise connection.fail("still accepts connections after SIGTERM")
        connection.close()
        status = await asyncio.to_thread(process.wait, target.seconds(12.0))
        if status != 0:
            what = "still runs" if status is None else f"exited with {status}"
            raise connection.fail(f"after SIGTERM the agent {what}", expected="exit 0")


@check("wire.life.stopped", "SPOP-LIFE-009", features={"pair"})
async def stopped(target: WireTarget) -> None:
    """SIGTERM turns no question in flight into a refusal: its verdict comes, or the connection ends.

    After that the proxy asks another agent. So no new connection may wait meanwhile for an answer either.
    """
    how = {"drain_timeout": f"{target.seconds(10.0):g}s"}
    async with launched(target, how) as process, session(target, address=process.spop_address) as connection:

        async def takes_none() -> bool:
            try:
                late = await Connection.open(process.spop_address, within=target.seconds(_QUEUED))
                with closing(late):
                    await late.hello()
            except SilenceError as error:
                raise connection.fail("while the agent drains, a new connection gets no answer") from error
            except WireError:
                return True
            return False

        await connection.send(*_in_flight(target, 5, 2))
        acks = [await connection.expect(FrameType.ACK)]
        process.terminate()
        await judge.eventually(target, takes_none)
        while len(acks) < 5:
            answer = await connection.receive(target.seconds(12.0))
            if not isinstance(answer, Frame) or answer.type != FrameType.ACK:
                break
            acks.append(answer)
        for ack in acks:
            connection.must_judge(ack)
        if len({ack.stream_id for ack in acks} & set(range(1, 6))) < len(acks):
            raise connection.fail("an ACK answers no question, or one for the second time")


async def _accepts(target: WireTarget, address: str, seen: list[str]) -> bool:
    """Tell whether a new connection is served, and not only accepted by a socket without an agent behind it.

    Args:
        target: whose times are stretched.
        address: of the agent.
        seen: gets the error if it is not.
    """
    try:
        with closing(await Connection.open(address, within=target.seconds(1.0))) as connection:
            await connection.hello()
    except WireError as error:
        seen.append(str(error))
        return False
    return True


async def _refuses(target: WireTarget, address: str) -> bool:
    return not await _accepts(target, address, [])


@check("wire.life.connection-limit", "SPOP-LIFE-005", features={"limits"})
async def connection_limit(target: WireTarget) -> str:
    """Connections above the limit are refused at once, or an idle one ends for them; the rest is served.

    The agent listens at two addresses. Half of the connections come to each. A connection that waits for an
    answer is not idle. Each worker has the limit for itself. A connection that was cut counts no longer, nor
    does a connection that got its goodbye and is held open.
    """
    port = _free_port()
    if "workers" in target.features:
        await _each_worker(target)
    async with (
        launched(target, {**_LIMITS, "listen": [f"{{host}}:{port}"]}) as process,
        AsyncExitStack() as stack,
    ):
        address = process.spop_address
        second = f"{address.rpartition(':')[0]}:{port}"
        addresses = (address, second) * 2
        held = [await stack.enter_async_context(session(target, address=each)) for each in addresses]
        await _must_keep_waiting(target, held, address)
        async with connected(target, address) as extra:
            over = None
            try:
                await extra.must_end("a connection above the limit", *range(1, 14))
            except CheckFailed as failure:
                over = failure
        gone = [connection for connection in held if not await _serves(connection)]
        if len(gone) != (over is not None):
            raise over or gone[0].fail(f"{len(gone)} connections below the limit ended")
        for cut in (*reversed(held), held[0]):  # `_accepts` cuts its own too
            cut.close()
            seen: list[str] = []
            if not await judge.eventually(target, partial(_accepts, target, address, seen)):
                tried = f"{len(seen)} were tried; the last: {seen[-1] if seen else 'no answer'}"
                raise held[0].fail(f"a connection was freed, but no new one is served ({tried})")
        for _ in range(len(held) + 1):
            if not await judge.eventually(target, partial(_leaves, target, address, stack), seconds=_MOMENT):
                raise held[0].fail("a connection counts after its goodbye, while its peer holds it open")
    return "an idle connection ended in favour of the one above the limit" if gone else ""


async def _leaves(target: WireTarget, address: str, stack: AsyncExitStack) -> bool:
    """Tell whether a new connection is served; it says goodbye, and stays open at this end."""
    with suppress(WireError):
        connection = await stack.enter_async_context(connected(target, address))
        await connection.hello()
        await connection.send(disconnect())
        await connection.must_end("HAPROXY-DISCONNECT", 0)
        return True
    return False


async def _must_keep_waiting(target: WireTarget, held: list[JudgedConnection], address: str) -> None:
    """Open others while a question waits on each connection up to the limit: each must be answered there.

    An agent may answer at once, and then nothing is seen.
    """
    if target.slow is None:
        return
    asked = question(target.slow(_WAITS * target.time_scale))
    waiting = [asyncio.ensure_future(one.ask(asked, target.seconds(_PATIENCE))) for one in held]
    while not (await asyncio.wait(waiting, timeout=_EACH, return_when=asyncio.FIRST_COMPLETED))[0]:
        async with connected(target, address) as extra:
            with suppress(WireError):
                await extra.hello()
    for connection, answer in zip(held, await asyncio.gather(*waiting, return_exceptions=True), strict=True):
        if isinstance(answer, WireError):
            raise connection.fail(f"a question waited for its answer while others came: {answer.message}")
        if isinstance(answer, BaseException):
            raise answer


async def _each_worker(target: WireTarget) -> None:
    """Open connections until there are more than the limit, or a worker has as many as the limit says."""
    most, held = _LIMITS["max_connections"], list[JudgedConnection]()
    async with launched(target, {**_LIMITS, "workers": 2}) as process, AsyncExitStack() as stack:
        while len(held) <= most:
            with suppress(WireError):
                one = session(target, address=process.spop_address)
                held.append(await stack.enter_async_context(one))
                if all([await _serves(each) for each in held]):
                    continue
            found = holders(process.host_pid or 0, ports := [each.port for each in held])
            of_each = Counter(found[port] for port in ports if port in found)
            if of_each and max(of_each.values()) < most:
                raise held[0].fail(
                    f"a connection was refused or ended, but workers had {[*of_each.values()]}"
                )
            return


def _free_port() -> int:
    """Return a port at which nobody listens here, and which no connection of this host gets by itself."""
    while True:
        port = random.randrange(*_PORTS)  # noqa: S311 - no secret
        with socket.socket() as probe_socket, suppress(OSError):
            probe_socket.bind(("127.0.0.1", port))
            return port


async def _serves(connection: JudgedConnection) -> bool:
    """Tell whether a question is answered; the agent may have said goodbye with any status (8.3)."""
    await connection.send(question(probe(connection.target)))
    answer = await connection.receive()
    return isinstance(answer, Frame) and answer.type == FrameType.ACK and bool(connection.must_judge(answer))


@check("wire.life.handshake-limit", "SPOP-LIFE-008", features={"limits"})
async def handshake_limit(target: WireTarget) -> str:
    """A connection that says no HELLO is closed once `handshake_timeout` has passed.

    A fresh agent with `handshake_timeout = "1s"`; one connection says nothing, another half a length, and on
    a third a HELLO comes byte by byte.
    """
    async with launched(target, {"handshake_timeout": "1s"}) as process:
        async with connected(target, process.spop_address) as silent:
            await silent.must_end("no HELLO for over a second", *range(14), seconds=4.0)
        async with connected(target, process.spop_address) as trickle:
            await trickle.send(b"\x00\x00")
            await trickle.must_end("half a length prefix", *range(14), seconds=4.0)
        async with connected(target, process.spop_address) as drip:
            sending = asyncio.ensure_future(drip.send(hello(), piece=1, gap=_DRIP))
            try:
                await drip.must_end("a HELLO that took over a second", *range(14), seconds=4.0)
            finally:
                sending.cancel()
    return "closed by a timeout of 1 s"


@check("wire.life.handshake-timeout", "SPOP-LIFE-006")
async def handshake_timeout(target: WireTarget) -> str:
    """A connection that never says HELLO is closed.

    A fresh agent with `handshake_timeout = "1s"`; if the suite cannot start one, the check waits 12 s.
    """
    if target.launch is not None and "limits" in target.features:
        return await handshake_limit(target)
    async with connected(target) as silent:
        try:
            await silent.ended(target.seconds(12.0))
        except SilenceError as error:
            raise Untestable(
                "the agent kept a silent connection for 12 s; whether it has a longer handshake timeout "
                "takes an agent whose timeout the suite can set"
            ) from error
    return "closed within 12 s"


@check("wire.life.connection-age", "SPOP-AGE-001", features={"age"})
async def connection_age(target: WireTarget) -> str:
    """Each connection ends by AGENT-DISCONNECT 0 before it is older than `max_connection_age`, all answered.

    A fresh agent with 2 s. On some connections the check asks all the time, on one never. On another an
    answer is still under way when the connection is old, on two half a question is there. A goodbye may come
    at any age below. Four are idle, of which the host does not make several late.
    """
    async with launched(target, _ageing(target)) as process:

        async def on_one(use: Callable[[JudgedConnection], Awaitable[object]]) -> object:
            async with session(target, address=process.spop_address) as connection:
                return await use(connection)

        async def wait() -> None:
            for _ in range(_CROSSINGS):
                if await on_one(_waits_until_old):
                    return
            raise CheckFailed(f"{_CROSSINGS} connections ended before the agent answered a question there")

        slow = [] if target.slow is None else [wait()]
        half = on_one(_must_not_wait), on_one(partial(_ask_until_old, ahead=_HALF))
        busy = [on_one(_ask_until_old) for _ in range(6)]
        quiet = asyncio.gather(*(_age_of(target, process) for _ in range(4)))
        await asyncio.gather(*slow, *half, *busy, quiet)
    if sorted(ages := quiet.result())[-2] > target.seconds(_AGE) * _LATE:
        raise CheckFailed(
            f"{len(ages)} idle connections ended at ages of {min(ages):.2f} to {max(ages):.2f} s",
            Evidence(expected=f"an end within `max_connection_age`, {target.seconds(_AGE):g} s"),
        )
    return "" if slow else "no slow question is known: none was under way when its connection was old"


async def _waits_until_old(connection: JudgedConnection) -> bool:
    """Ask a slow question, and return False if a goodbye crossed it.

    A quick question follows it at once. From its answer on, the agent has read the slow one too, and answers.
    """
    target = connection.target
    assert target.slow is not None  # noqa: S101 - the check looked
    slow, quick = question(target.slow(2 * target.time_scale)), question(probe(target), stream_id=2)
    await connection.send(slow, quick)
    answered: list[int] = []
    while slow.stream_id not in answered:
        try:
            ack = await connection.expect(FrameType.ACK, target.seconds(8.0))
        except SilenceError:
            raise
        except WireError as error:
            if answered:
                raise connection.fail(f"a question under way when its connection was old: {error}") from error
            return False
        connection.must_judge(ack)
        answered.append(ack.stream_id)
    await connection.must_end(_OLD, 0, disconnect=True, seconds=_AGE + DEADLINE)
    return True


@check("wire.life.connection-age-spread", "SPOP-AGE-002", features={"age"})
async def connection_age_spread(target: WireTarget) -> str:
    """Connections do not end at one age: HAProxy would make all again at once that began together."""
    async with launched(target, _ageing(target)) as process:
        ages = await asyncio.gather(*(_age_of(target, process) for _ in range(_IDLE)))
    said = f"{len(ages)} connections ended at ages of {min(ages):.2f} to {max(ages):.2f} s"
    if max(ages) - min(ages) < _SPREAD:
        raise CheckFailed(said, Evidence(expected=f"a spread of {_SPREAD:g} s"))
    return said


def _ageing(target: WireTarget) -> dict[str, Any]:
    return {"max_connection_age": f"{target.seconds(_AGE):g}s"}


async def _age_of(target: WireTarget, process: Process) -> float:
    """Wait for the end of an idle connection, and return its age, which begins before it."""
    begun = time.monotonic()
    async with session(target, address=process.spop_address) as connection:
        if await connection.must_end(_OLD, 0, disconnect=True, seconds=_AGE + DEADLINE):
            raise connection.fail(f"{_OLD}: got another frame than AGENT-DISCONNECT")
        return time.monotonic() - begun


async def _must_not_wait(connection: JudgedConnection) -> None:
    """Send a question, and half of another that never comes whole; an agent may end that by any status."""
    asked = question(probe(connection.target))
    await connection.send(asked, asked.encode()[:_HALF])
    await connection.must_end(f"half a frame, {_OLD}", *range(14), seconds=_AGE + DEADLINE)


async def _ask_until_old(connection: JudgedConnection, ahead: int = 0) -> None:
    """Ask one question after another until the agent ends the connection; the last may cross its goodbye.

    The first octets of the next question, as many as `ahead`, come with each.
    """
    target, loop = connection.target, asyncio.get_running_loop()
    end, sent = loop.time() + target.seconds(_AGE + DEADLINE), 0
    for number in itertools.count(1):
        if loop.time() > end:
            raise connection.fail(f"{_OLD}: it was busy, and did not end")
        now, following = (question(probe(target), stream_id=number + more).encode() for more in (0, 1))
        await connection.send(now[sent:] + following[:ahead])
        sent = ahead
        said = await connection.receive(target.seconds(DEADLINE))
        if not isinstance(said, Frame):
            raise connection.fail(f"{_OLD}: closed without AGENT-DISCONNECT")
        if said.type == FrameType.AGENT_DISCONNECT:
            if status := connection.check_disconnect(said):
                raise connection.fail(f"{_OLD}: AGENT-DISCONNECT {status}")
            return
        connection.must_judge(said)
        await asyncio.sleep(0.01)


@check("wire.life.loopback", "SPOP-LIFE-007")
async def loopback(target: WireTarget) -> str:
    """The agent listens on loopback or a Unix socket by default.

    SPOP has no authentication: any peer that connects may ask. Tried from this host's outer address.
    """
    address = target.address
    if address.startswith("unix:"):
        return "a Unix socket"
    host, _, port = address.rpartition(":")
    if not host.strip("[]").startswith(("127.", "0.0.0.0", "::", "localhost")):
        return f"listens on {host} as it must; the stage of processes judges its default"
    await must_live(target, "its start")
    outer = await asyncio.to_thread(_outer_address)
    if outer is None:
        raise Untestable("this host has no address but loopback")
    try:
        connection = await Connection.open(f"{outer}:{port}", within=target.seconds(DEADLINE))
    except errors.UnreachableError:
        return f"not reachable through {outer}"
    connection.close()
    raise CheckFailed(
        f"the agent is reachable at {outer}:{port}, and not on loopback alone",
        Evidence(expected="127.0.0.1, ::1 or a Unix socket", received=f"{outer}:{port} accepts"),
    )


def _outer_address() -> str | None:
    """Return this host's address towards others, without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe_socket:
        try:
            probe_socket.connect(("192.0.2.1", 9))
        except OSError:
            return None
        found = str(probe_socket.getsockname()[0])
    return None if found.startswith("127.") else found


@asynccontextmanager
async def launched(target: WireTarget, settings: Mapping[str, Any]) -> AsyncIterator[Process]:
    """Start a fresh agent for a check that ends or limits it."""
    if target.launch is None:
        raise Untestable("takes an agent that the suite starts itself: give its agent.toml with a `command`")
    manager = target.launch(settings, target.seconds(target.ready_within))
    process = await asyncio.to_thread(manager.__enter__)
    try:
        yield process
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)
