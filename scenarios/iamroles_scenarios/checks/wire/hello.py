"""Wire checks: the handshake (SPOE.txt 3.2.4, 3.2.5), frame sizes, capabilities, health checks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from iamroles_scenarios.base.errors import CheckFailed, Evidence, SilenceError
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.wire.client import Ended, question
from iamroles_scenarios.wire.codec import DataType, Typed, Value, address
from iamroles_scenarios.wire.frames import HELLO, Frame, FrameType, as_hello, disconnect, hello, read_kv
from iamroles_scenarios.wire.judge import connected, must_live, probe, session
from iamroles_scenarios.wire.target import WireTarget

Items = Mapping[str, Value | Typed]
_EVERY_TYPE: dict[str, Value | Typed] = {
    "x-null": None,
    "x-true": True,
    "x-false": False,
    "x-int32": Typed(DataType.INT32, -1),
    "x-uint32": Typed(DataType.UINT32, 2**32 - 1),
    "x-int64": Typed(DataType.INT64, -(2**63)),
    "x-uint64": Typed(DataType.UINT64, 2**64 - 1),
    "x-ipv4": address("192.0.2.1"),
    "x-ipv6": address("2001:db8::1"),
    "x-string": "text",
    "x-binary": b"\xff\x00",
}


def _without(name: str) -> dict[str, Value | Typed]:
    return {key: value for key, value in HELLO.items() if key != name}


_REFUSED: dict[tuple[str, str, str], list[tuple[str, Items, int]]] = {
    ("wire.hello.no-common-version", "SPOP-HELLO-006", "No common version: AGENT-DISCONNECT 8"): [
        (f"supported-versions {text!r}", {**HELLO, "supported-versions": text}, 8)
        for text in ("1.0", "3.0", "12.0", "1.2.0", "3.0, 1.0", "20", "two")
    ],
    (
        "wire.hello.missing-items",
        "SPOP-HELLO-007",
        "A HELLO without a mandatory item: AGENT-DISCONNECT 5, 6 or 7, by the item",
    ): [
        (f"HELLO without {name}", _without(name), status)
        for name, status in (("supported-versions", 5), ("max-frame-size", 6), ("capabilities", 7))
    ],
    ("wire.size.too-small", "SPOP-SIZE-002", "A max-frame-size under 256: AGENT-DISCONNECT 9"): [
        (f"max-frame-size {size}", {**HELLO, "max-frame-size": size}, 9) for size in (255, 1, 0)
    ],
}
"""By id, requirement and title of a check: HELLOs, and the status with which the agent must refuse each."""
_SERVED: dict[tuple[str, str, str], list[Items]] = {
    ("wire.hello.unknown-keys", "SPOP-HELLO-008", "Unknown HELLO keys of every data type are ignored"): [
        {**_EVERY_TYPE, **HELLO},
        {**HELLO, **_EVERY_TYPE},
    ],
    ("wire.hello.key-order", "SPOP-HELLO-009", "The order of HELLO keys does not matter"): [
        {name: HELLO[name] for name in order}
        for order in (list(reversed(HELLO)), sorted(HELLO), sorted(HELLO, key=len))
    ],
    # TRUE is 0x11, FALSE is 0x01: an agent that reads the nibbles the other way closes here.
    ("wire.health.false", "SPOP-HEALTH-002", "healthcheck FALSE behaves as absent"): [
        {**HELLO, "healthcheck": False}
    ],
}
"""By id, requirement and title of a check: HELLOs after which the agent serves."""

for (_id, _requirement, _title), _refused in _REFUSED.items():

    @check(_id, _requirement, title=_title)
    async def refuses(target: WireTarget, hellos: Sequence[tuple[str, Items, int]] = _refused) -> None:
        """Send each HELLO on a connection of its own, and look at the status."""
        for what, items, status in hellos:
            async with connected(target) as connection:
                await connection.send(hello(as_hello(items)))
                await connection.must_end(what, status, disconnect=True)


for (_id, _requirement, _title), _served in _SERVED.items():

    @check(_id, _requirement, title=_title)
    async def serves(target: WireTarget, hellos: Sequence[Items] = _served) -> None:
        """Send each HELLO on a connection of its own, and a question after it."""
        for items in hellos:
            async with session(target, items) as connection:
                await connection.must_serve()


@check("wire.hello.first-frame", "SPOP-HELLO-001")
async def first_frame(target: WireTarget) -> None:
    """Anything before HAPROXY-HELLO is refused: no ACK, and the connection ends."""
    for first in (question(probe(target)), Frame(FrameType.AGENT_HELLO), Frame(FrameType.ACK, 1, 1)):
        async with connected(target) as connection:
            await connection.send(first)
            before = await connection.must_end(f"{first.name} before HELLO")
            if before:
                raise connection.fail(f"{first.name} before HELLO was answered with {before[0].name}")
    async with connected(target) as connection:
        await connection.send(disconnect())
        before = await connection.must_end("DISCONNECT before HELLO", *range(14))
        if before:
            raise connection.fail(f"DISCONNECT before HELLO was answered with {before[0].name}")


@check("wire.hello.ids-and-fin", "SPOP-HELLO-002")
async def ids_and_fin(target: WireTarget) -> None:
    """AGENT-HELLO has stream-id 0, frame-id 0 and FIN.

    HAProxy refuses a HELLO with other ids.
    """
    async with connected(target) as connection:
        await connection.send(hello())
        frame = await connection.expect(FrameType.AGENT_HELLO)
        if (frame.stream_id, frame.frame_id) != (0, 0) or frame.flags & 3 != 1:
            raise connection.fail(
                "AGENT-HELLO with wrong ids or flags",
                expected="stream=0 frame=0 FIN",
                received=f"stream={frame.stream_id} frame={frame.frame_id} flags={frame.flags:#x}",
            )


@check("wire.hello.items", "SPOP-HELLO-003")
async def items(target: WireTarget) -> None:
    """AGENT-HELLO carries version, max-frame-size and capabilities, each of its type.

    SPOE.txt 3.2.5 names STRING, UINT32 and STRING. Other integer types pass too, as HAProxy lets them.
    """
    async with connected(target) as connection:
        await connection.send(hello())
        said = dict(read_kv(await connection.expect(FrameType.AGENT_HELLO)))
        for name, kind in (("version", str), ("max-frame-size", int), ("capabilities", str)):
            item = said.get(name)
            if item is None or not isinstance(item.value, kind) or isinstance(item.value, bool):
                raise connection.fail(
                    f"AGENT-HELLO lacks `{name}` of its type",
                    expected=f"{name}: {'STRING' if kind is str else 'UINT32'}",
                    received="absent" if item is None else f"{item}:{item.type.name}",
                )


@check("wire.hello.version", "SPOP-HELLO-004")
async def version(target: WireTarget) -> None:
    """AGENT-HELLO says version 2.0."""
    async with connected(target) as connection:
        said = await connection.hello()
        if said.get("version") != "2.0":
            raise connection.fail("wrong version", expected="2.0", received=repr(said.get("version")))


@check("wire.hello.supported-versions", "SPOP-HELLO-005")
async def supported_versions(target: WireTarget) -> None:
    """supported-versions is a list: spaces and several entries parse."""
    for versions in ("2.0, 1.5", "1.5 ,2.0", "  2.0  ", "1.0,2.0,3.0", "3.0, 2.5"):
        async with connected(target) as connection:
            said = await connection.hello({**HELLO, "supported-versions": versions})
            if said.get("version") != "2.0":
                raise connection.fail(f"answered {said.get('version')!r} to versions {versions!r}")


@check("wire.hello.engine-id", "SPOP-HELLO-010")
async def engine_id(target: WireTarget) -> None:
    """engine-id may be absent, or the same on many connections.

    HAProxy 3.1 has one for all threads, older versions have one for each, a health check has none.
    """
    async with session(target, _without("engine-id")) as connection:
        await connection.must_serve()
    async with session(target) as one, session(target) as other, session(target) as third:
        await asyncio.gather(*(connection.must_serve() for connection in (one, other, third)))


@check("wire.hello.twice", "SPOP-HELLO-011")
async def twice(target: WireTarget) -> None:
    """A second HELLO on one connection ends it, with status 4 and without another AGENT-HELLO."""
    async with session(target) as connection:
        await connection.send(hello())
        if await connection.must_end("a second HELLO", 4):
            raise connection.fail("a second HELLO was answered")


@check("wire.hello.idle", "SPOP-HELLO-012")
async def idle(target: WireTarget) -> str:
    """A connection may idle after HELLO, longer than any handshake timeout.

    HAProxy opens connections ahead of need.
    """
    seconds = target.seconds(8.0)
    async with session(target) as connection:
        try:
            answer = await connection.receive(seconds)
        except SilenceError:
            await connection.must_serve()
            return f"idled {seconds:g} s"
        what = f"closed it ({answer.how})" if isinstance(answer, Ended) else f"sent {answer.name}"
        raise connection.fail(f"on an idle connection the agent {what}", expected="nothing")


# --- frame sizes ------------------------------------------------------------------------------------------


async def _negotiated(target: WireTarget, size: int) -> int:
    async with connected(target) as connection:
        said = await connection.agree({**HELLO, "max-frame-size": size})
        if not 256 <= said <= size:
            raise connection.fail(
                "max-frame-size out of bounds",
                expected=f"256 to {size}, what HAProxy offered",
                received=str(said),
            )
        return said


@check("wire.size.bounds", "SPOP-SIZE-001")
async def bounds(target: WireTarget) -> None:
    """The agent's max-frame-size is at least 256 and at most HAProxy's."""
    for size in (256, 257, 1024, 4095, 16380):
        said = await _negotiated(target, size)
    if said < size:
        why = f"frames of {size} bytes, HAProxy's default, are not accepted"
        raise CheckFailed(why, Evidence(received=str(said)))


@check("wire.size.smaller-of-two", "SPOP-SIZE-003")
async def smaller_of_two(target: WireTarget) -> str:
    """A max-frame-size above the agent's limit is answered with the smaller of the two.

    An agent that echoes it promises to take frames of 4 GiB.
    """
    limit = await _negotiated(target, 2**32 - 1)
    if limit > 1 << 26:
        why = f"to 4294967295 the agent said {limit}: it echoes"
        raise CheckFailed(why, Evidence(expected="its own limit"))
    for size in (limit, limit + 1, limit + 4, limit * 2, 1 << 31):
        said = await _negotiated(target, size)
        if said != limit:
            raise CheckFailed(f"offered {size}, its limit is {limit}", Evidence(received=str(said)))
    return f"its limit is {limit}"


# --- capabilities -----------------------------------------------------------------------------------------


@check("wire.capabilities.honest", "SPOP-CAPS-001")
async def capabilities_honest(target: WireTarget) -> None:
    """The agent announces only capabilities that it has, and never async or fragmentation.

    HAProxy 3.1 dropped both; an agent that echoes the list claims them.
    """
    offers = ("pipelining", "pipelining,async,fragmentation", "async, fragmentation", "")
    for offered in offers:
        async with connected(target) as connection:
            said = str((await connection.hello({**HELLO, "capabilities": offered})).get("capabilities", ""))
            claimed = {item.strip() for item in said.split(",") if item.strip()}
            if not claimed <= {"pipelining"}:
                raise connection.fail(
                    "claims capabilities that no HAProxy uses well",
                    expected="pipelining or nothing",
                    received=said,
                )


@check("wire.capabilities.unknown", "SPOP-CAPS-002")
async def capabilities_unknown(target: WireTarget) -> None:
    """Unknown capabilities are ignored, and never echoed."""
    for offered in ("pipelining, teleport", " teleport ,, pipelining ", "teleport"):
        async with connected(target) as connection:
            said = str((await connection.hello({**HELLO, "capabilities": offered})).get("capabilities", ""))
            if "teleport" in said:
                raise connection.fail("an unknown capability was claimed", received=said)
            await connection.must_serve()


# --- health checks ----------------------------------------------------------------------------------------


@check("wire.health.answered", "SPOP-HEALTH-001")
async def health_answered(target: WireTarget) -> None:
    """healthcheck TRUE: AGENT-HELLO.

    `option spop-check` waits for it. HAProxy closes afterwards, so the agent need not.
    """
    async with connected(target) as connection:
        await connection.hello({**HELLO, "healthcheck": True})
    await must_live(target, "a health check")


@check("wire.health.closes", "SPOP-HEALTH-003")
async def health_closes(target: WireTarget) -> None:
    """healthcheck TRUE: AGENT-HELLO, then close.

    An agent that keeps these connections leaks one for each `option spop-check`.
    """
    async with connected(target) as connection:
        await connection.hello({**HELLO, "healthcheck": True})
        if await connection.must_end("a health check", *range(14)):
            raise connection.fail("more than AGENT-HELLO answered a health check")
    await must_live(target, "a health check")
