"""Wire checks: reassembly and bad frames (SPOE.txt 3.2), varints and data types (3.1)."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from iamroles_scenarios.base.errors import CheckFailed, Evidence, SilenceError, Untestable, WireError
from iamroles_scenarios.base.family import resident
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.wire import frames as wire_frames
from iamroles_scenarios.wire.client import check_arguments, question
from iamroles_scenarios.wire.codec import DataType, Typed, Value, address, string, varint
from iamroles_scenarios.wire.frames import Flags, Frame, FrameType, encode_message, hello, notify, prefixed
from iamroles_scenarios.wire.judge import (
    DEADLINE,
    NO_CREDENTIAL,
    QUIET,
    JudgedConnection,
    allowed,
    connected,
    must_live,
    must_refuse,
    probe,
    session,
)
from iamroles_scenarios.wire.target import WireTarget

_BOUNDARIES = (239, 240, 2287, 2288, 264431, 264432, 33818863, 33818864)


@check("wire.frame.byte-by-byte", "SPOP-FRAME-001")
async def byte_by_byte(target: WireTarget) -> None:
    """HELLO and NOTIFY arrive byte by byte, the length prefix included.

    TCP keeps no boundaries. Sizes and ids have varints of 1 to 5 bytes, each cut at every byte.
    """
    for number in (256, 2287, 2288, 264431, 264432, 33818863, 33818864, 2**32 - 1):
        said = {**wire_frames.HELLO, "engine-id": "short", "max-frame-size": number}
        async with connected(target) as connection:
            await connection.send(hello(wire_frames.as_hello(said)), piece=1)
            await connection.expect(FrameType.AGENT_HELLO)
            if number == 2**32 - 1:
                await connection.send(question(NO_CREDENTIAL, stream_id=number), piece=1)
                connection.must_deny(await connection.expect(FrameType.ACK))


@check("wire.frame.split-anywhere", "SPOP-FRAME-001", "SPOP-FRAME-002")
async def split_anywhere(target: WireTarget) -> None:
    """A stream of frames may be cut anywhere: in pieces of a size, or once in each of two frames.

    Each frame is shorter than the one before it, whose length must not be taken for its own.
    """
    texts = [{**probe(target), "x-text": "x" * 9 * left} for left in (2, 1, 0)]
    asked = [question(text, stream_id=number) for number, text in enumerate(texts, 1)]
    for piece, count in ((3, 1), (64, 3)):
        async with session(target) as connection:
            await connection.send(*asked[-count:], piece=piece)
            await connection.must_answer_all(asked[-count:])
    longer, shorter = (frame.encode() for frame in asked[1:])
    for cut in range(1, 6):
        async with session(target) as connection:
            for part in (longer[:20], longer[20:] + shorter[:cut], shorter[cut:]):
                await connection.send(part, piece=len(part), gap=0.003)
            await connection.must_answer_all(asked[1:])


@check("wire.frame.many-in-one-segment", "SPOP-FRAME-002")
async def many_in_one_segment(target: WireTarget) -> None:
    """Several frames in one segment are each answered. (HAProxy sends none before the AGENT-HELLO.)"""
    asked = [question(probe(target), stream_id=number) for number in range(1, 13)]
    async with session(target) as connection:
        await connection.send(*asked)
        connection.must_answer_each(asked, await connection.collect(len(asked)))


@check("wire.frame.one-write", "SPOP-FRAME-003")
async def one_write(target: WireTarget) -> None:
    """Each frame is written with one write.

    HAProxy 3.2 until mid-2026 resets a connection whose AGENT-HELLO comes in two reads. On one machine a
    single write of a small frame is never split, so a partial read is proof.
    """
    for _ in range(12):
        async with connected(target) as connection:
            await connection.send(hello())
            frame = await connection.expect(FrameType.AGENT_HELLO)
            _one_piece(connection, frame)
            await connection.send(question(probe(target)))
            _one_piece(connection, await connection.expect(FrameType.ACK))


def _one_piece(connection: JudgedConnection, frame: Frame) -> None:
    length = len(frame.encode())
    if connection.pieces != [length]:
        raise connection.fail(
            f"{frame.name} of {length} bytes came in reads of {connection.pieces}",
            expected="one read: one write",
        )
    connection.pieces.clear()


@check("wire.frame.no-interleaving", "SPOP-FRAME-004", "SPOP-ACK-001")
async def no_interleaving(target: WireTarget) -> None:
    """Concurrent ACKs never interleave their bytes."""

    async def one(connection: JudgedConnection) -> None:
        asked = [question(probe(target), stream_id=number) for number in range(1, 65)]
        for start in range(0, 64, 16):
            await connection.send(*asked[start : start + 16])
        await connection.must_answer_all(asked, seconds=6.0)

    async with session(target) as a, session(target) as b, session(target) as c, session(target) as d:
        await asyncio.gather(*map(one, (a, b, c, d)))


@check("wire.frame.above-negotiated", "SPOP-FRAME-005")
async def above_negotiated(target: WireTarget) -> None:
    """A length above the negotiated one: AGENT-DISCONNECT 3, without waiting for the body.

    The check sends only the prefix, so it catches an agent that waits for the body or makes room for it.
    """
    async with connected(target) as connection:
        limit = await connection.agree()
        await connection.send((limit + 1).to_bytes(4, "big"))
        await connection.must_end(f"length {limit + 1}, negotiated {limit}", 3)
    await must_live(target, "a length above the negotiated one")


@check("wire.frame.too-short", "SPOP-FRAME-006")
async def too_short(target: WireTarget) -> None:
    """A length of 0 to 6: AGENT-DISCONNECT 4 promptly.

    A frame has at least seven bytes; agents hang or spin on zero.
    """
    whole = bytes([FrameType.NOTIFY, 0, 0, 0, 1, 1])
    short: dict[str, Frame | bytes] = {f"length {length}": prefixed(whole[:length]) for length in range(7)}
    await must_refuse(target, short, 4, seconds=2.0)
    async with connected(target) as connection:
        await connection.send(bytes(4))
        await connection.must_end("length 0 before HELLO", 4, seconds=2.0)


@check("wire.frame.garbage", "SPOP-FRAME-007")
async def garbage(target: WireTarget) -> str:
    """Length 0xFFFFFFFF or another protocol: no crash, bounded memory."""
    before = None if target.pid is None else resident(target.pid)
    texts = (
        b"\xff" * 64,
        b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n",
        bytes.fromhex("16030100c8010000c40303") + bytes(64),
        bytes(64),
    )
    for text in texts:
        async with connected(target) as connection:
            await connection.send(text)
            await connection.must_end("garbage before HELLO")
        async with session(target) as connection:
            await connection.send(text)
            await connection.must_end("garbage after HELLO")
    await must_live(target, "garbage")
    if target.pid is None or before is None:
        raise Untestable("memory not watched: the agent's process is not on this host")
    grown = (resident(target.pid) or before) - before
    if grown > 64 << 20:
        why = f"garbage made the agent grow by {grown >> 20} MiB"
        raise CheckFailed(why, Evidence(expected="under 64 MiB"))
    return f"grew by {grown >> 10} KiB"


@check("wire.frame.unknown-type", "SPOP-FRAME-008")
async def unknown_type(target: WireTarget) -> None:
    """An unknown frame type is skipped, or ends the connection; it never wedges.

    SPOE.txt 3.2.2 permits both; silence to the next good frame is wrong.
    """
    for kind in (4, 42, 100, 104, 255):
        async with session(target) as connection:
            await connection.send(Frame(kind, 5, 1, b"\x00"), question(probe(target), stream_id=7))
            frames = await _until_ack_or_end(target, connection)
            if frames and frames[-1].type == FrameType.ACK:
                if frames[-1].stream_id != 7:
                    raise connection.fail(f"an unknown frame of type {kind} got an ACK")
                connection.must_judge(frames[-1])
    await must_live(target, "unknown frame types")


async def _until_ack_or_end(target: WireTarget, connection: JudgedConnection) -> list[Frame]:
    frames: list[Frame] = []
    deadline = target.seconds(DEADLINE)
    try:
        while isinstance(answer := await connection.receive(deadline), Frame):
            frames.append(answer)
            if answer.type == FrameType.ACK:
                break
    except WireError as error:
        raise connection.fail(error.message, expected="an ACK to the good NOTIFY, or an end") from error
    return frames


@check("wire.frame.reserved-flags", "SPOP-FRAME-009")
async def reserved_flags(target: WireTarget) -> None:
    """Reserved flag bits are ignored."""
    asked = question(probe(target))
    for flags in (0x8000_0001, 0xFFFF_FFFD, 0x0000_0005):
        async with session(target) as connection:
            frame = Frame(asked.type, asked.stream_id, asked.frame_id, asked.payload, flags)
            await connection.must_answer(frame)


@check("wire.varint.broken", "SPOP-VARINT-001")
async def varint_broken(target: WireTarget) -> None:
    """An overlong or unterminated varint: AGENT-DISCONNECT 4.

    In lengths and values. SPOE.txt gives ids no width, so an agent may answer an id of more than 64 bits
    as a number; it must serve afterwards.
    """
    head = bytes([FrameType.NOTIFY, 0, 0, 0, 1])
    overlong, overflow, cut = b"\xff" * 11 + b"\x00", b"\xff" * 9 + b"\x7f", b"\xff\xff"
    check_ = string("iam-check") + b"\x01" + string("src")
    broken = {
        "stream-id that does not end": head + cut,
        "frame-id that does not end": head + b"\x01" + b"\xf0\x80",
        "a value of eleven bytes": head + b"\x01\x01" + check_ + b"\x05" + overlong,
        "a value above 2**64": head + b"\x01\x01" + check_ + b"\x05" + overflow,
        "a length of eleven bytes": head + b"\x01\x01" + overlong,
        "a length that does not end": head + b"\x01\x01" + string("iam-check") + b"\x01\xf5",
    }
    await must_refuse(target, {what: prefixed(body) for what, body in broken.items()}, 4)
    for body in (head + overlong + b"\x01", head + overflow + b"\x01"):
        async with session(target) as connection:
            await connection.send(prefixed(body))
            with suppress(WireError):
                await connection.receive(target.seconds(QUIET))
    await must_live(target, "broken varints")


@check("wire.varint.boundaries", "SPOP-VARINT-002")
async def varint_boundaries(target: WireTarget) -> None:
    """Varints are right at every boundary, up to 2**64 - 1.

    As ids, which come back; as lengths and values, which the agent must skip by their exact size.
    """
    async with session(target) as connection:
        for number in _BOUNDARIES:
            await connection.must_answer(question(probe(target), stream_id=number))
            await connection.must_answer(question(probe(target), stream_id=77, frame_id=number))
        for number in (0, *_BOUNDARIES, 2**32 - 1, 2**63 - 1, 2**64 - 1):
            extra = {**probe(target), "x-number": Typed(DataType.UINT64, number)}
            await connection.must_answer(question(extra))
        for length in (0, 239, 240, 2287, 2288):
            extra = {**probe(target), "x-text": "x" * length}
            await connection.must_answer(question(extra))


@check("wire.fragment.refused", "SPOP-FRAG-001")
async def fragment_refused(target: WireTarget) -> None:
    """A NOTIFY without FIN where fragmentation was not announced: AGENT-DISCONNECT 10.

    An agent that did announce it must put the fragments together.
    """
    asked = question(probe(target))
    first = Frame(FrameType.NOTIFY, 1, 1, asked.payload[:20], 0)
    async with connected(target) as connection:
        said = str((await connection.hello()).get("capabilities", ""))
        await connection.send(first)
        if "fragmentation" in said:
            await connection.send(Frame(FrameType.UNSET, 1, 1, asked.payload[20:]))
            connection.must_judge(await connection.expect(FrameType.ACK))
        elif await connection.must_end("a NOTIFY without FIN", 10):
            raise connection.fail("half a NOTIFY was answered")
    async with session(target) as connection:
        whole = Frame(FrameType.NOTIFY, 1, 1, asked.payload, 0)
        await connection.send(whole)
        if "fragmentation" not in said and await connection.must_end("no FIN", 10):
            raise connection.fail("a NOTIFY without FIN was answered")


@check("wire.fragment.unset", "SPOP-FRAG-002")
async def fragment_unset(target: WireTarget) -> None:
    """A frame of type 0 with nothing to continue ends the connection.

    With status 10 or 4, or with 11 or 12: interlaced, unknown id.
    """
    frame = Frame(FrameType.UNSET, 1, 1, question(probe(target)).payload)
    await must_refuse(target, {"an UNSET frame": frame}, 10, 4, 11, 12)


@check("wire.fragment.abort", "SPOP-FRAG-003")
async def fragment_abort(target: WireTarget) -> None:
    """A NOTIFY with ABORT and FIN neither wedges nor applies an allow.

    The agent may stay silent, answer without an allow, or end the connection. On a connection that stays
    it serves the next frame, whose answer may come first.
    """
    asked = question(allowed(target), stream_id=5)
    aborted = Frame(asked.type, 5, 1, asked.payload, Flags.FIN | Flags.ABORT)
    async with session(target) as connection:
        await connection.send(aborted, question(allowed(target), stream_id=7))
        while frames := await _until_ack_or_end(target, connection):
            if (ack := frames[-1]).type != FrameType.ACK:
                break
            if ack.stream_id == 7:
                connection.must_allow(ack)
                with suppress(SilenceError):
                    late = await connection.receive(target.seconds(QUIET))
                    if isinstance(late, Frame) and late.type == FrameType.ACK:
                        connection.must_not_allow(late)
                break
            connection.must_not_allow(ack)
    await must_live(target, "an aborted NOTIFY")


# --- typed data -------------------------------------------------------------------------------------------

_VALUES: dict[str, Value | Typed] = {
    "null": None,
    "true": True,
    "false": False,
    "int32": Typed(DataType.INT32, 7),
    "int32-negative": Typed(DataType.INT32, -1),
    "int32-least": Typed(DataType.INT32, -(2**31)),
    "uint32": Typed(DataType.UINT32, 2**32 - 1),
    "int64-negative": Typed(DataType.INT64, -1),
    "int64-least": Typed(DataType.INT64, -(2**63)),
    "int64-greatest": Typed(DataType.INT64, 2**63 - 1),
    "uint64": Typed(DataType.UINT64, 2**64 - 1),
    "ipv4": address("192.0.2.1"),
    "ipv6": address("2001:db8::1"),
    "binary": b"\x00\xff",
    "string": "text",
    "empty": "",
}


@check("wire.type.all", "SPOP-TYPE-001")
async def type_all(target: WireTarget) -> None:
    """Every data type is read: integers of both widths and signs, both booleans, addresses, bytes.

    Each stands alone in front of the arguments that decide: if it is misread by one byte, the rest is
    lost.
    """
    async with session(target) as connection:
        for name, value in _VALUES.items():
            arguments = [(f"x-{name}", value), *check_arguments(probe(target)).items()]
            await connection.must_answer(notify(1, 1, encode_message("iam-check", arguments)))
        everything = [*_VALUES.items(), *check_arguments(probe(target)).items()]
        await connection.must_answer(notify(3, 1, encode_message("iam-check", everything)))
        reasons = ("multiple_credentials", *(["no_credentials"] if target.allowed is None else []))
        for kind in (DataType.INT32, DataType.UINT32, DataType.INT64, DataType.UINT64):
            count = {**probe(target), "authorization-count": Typed(kind, 2)}
            connection.must_deny(await connection.ask(question(count)), *reasons)
        for src in ("192.0.2.77", "2001:db8::77"):
            ack = await connection.ask(question({**probe(target), "authorization": None, "src": src}))
            connection.must_deny(ack)


@check("wire.type.reserved", "SPOP-TYPE-002")
async def type_reserved(target: WireTarget) -> None:
    """Reserved types 10 to 15: AGENT-DISCONNECT 4.

    Their length is unknown, so nothing after them can be read.
    """
    head = string("iam-check") + b"\x01" + string("x")
    broken: dict[str, Frame | bytes] = {
        f"a NOTIFY with the reserved type {kind}": Frame(
            FrameType.NOTIFY, 1, 1, head + bytes([kind]) + varint(1) + b"x"
        )
        for kind in range(10, 16)
    }
    await must_refuse(target, broken, 4)


@check("wire.type.strings", "SPOP-TYPE-003")
async def type_strings(target: WireTarget) -> None:
    """UTF-8, invalid UTF-8, NUL bytes and the empty string are read, and open nothing.

    As an extra argument each changes nothing; in an argument that decides it never leads to an allow.
    """
    texts = ("é€𝄞", b"\xff\xfe", b"\xc3", "a\x00b", "", b"\xed\xa0\x80")
    async with session(target) as connection:
        for text in texts:
            raw = text.encode() if isinstance(text, str) else text
            foreign = Typed(DataType.STRING, raw)
            extra = {**probe(target), "x-text": foreign}
            await connection.must_answer(question(extra))
            for name in ("authorization", "path"):
                ack = await connection.ask(question({**probe(target), name: foreign}))
                connection.must_deny(ack)
            for name in ("method", "host", "role"):
                await connection.ask(question({**probe(target), name: foreign}))
            connection.must_not_allow(
                await connection.ask(notify(1, 1, encode_message(raw, {"x-text": foreign})))
            )
        context = {"request-id": Typed(DataType.STRING, b"\xff\x00\xfe")}
        await connection.must_answer(question(probe(target), context))
    async with session(target, {**wire_frames.HELLO, "engine-id": "é\x00"}) as connection:
        await connection.must_serve()


@check("wire.type.near-maximum", "SPOP-TYPE-004")
async def near_maximum(target: WireTarget) -> None:
    """A NOTIFY that fills the negotiated size to the byte is answered.

    HAProxy sends up to the limit. `wire.frame.above-negotiated` sends one byte more.
    """
    async with connected(target) as connection:
        limit = await connection.agree()
        for size in (limit, limit - 1, limit - 2):
            bare = len(question({**probe(target), "x-fill": ""}).body())
            fill = size - bare
            while len(question({**probe(target), "x-fill": "x" * fill}).body()) > size:
                fill -= 1
            frame = question({**probe(target), "x-fill": "x" * fill})
            await connection.must_answer(frame)
