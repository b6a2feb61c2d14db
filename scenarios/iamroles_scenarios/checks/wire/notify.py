"""Wire checks: NOTIFY and ACK (SPOE.txt 3.2.6, 3.2.7), messages, actions (3.4), pipelining (3.2.1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from iamroles_scenarios.base.errors import CheckFailed, SilenceError, Untestable, WireError
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.answers import ALWAYS, VARIABLES
from iamroles_scenarios.wire import judge as judging
from iamroles_scenarios.wire.client import OMIT, Ended, check_arguments, context_arguments, question
from iamroles_scenarios.wire.codec import DataType, Typed, Value, address, string
from iamroles_scenarios.wire.frames import HELLO, Frame, FrameType, encode_message, notify, read_actions
from iamroles_scenarios.wire.judge import JudgedConnection, must_live, probe, refused, session, tokenless
from iamroles_scenarios.wire.target import WireTarget

_PREFIX = "txn.iam."
_SLOW = 0.5
"""Seconds, times the scale, from which on an answer counts as slow."""
_FRAMES, _QUICK = 20, 3
"""Questions that HAProxy lets wait on a connection (`max-waiting-frames`), and those that need not wait."""
_SLOWEST, _TRIES = 12.0, 3
"""Seconds, times the scale, that a slow answer may take; and such questions that are tried."""


# --- ids --------------------------------------------------------------------------------------------------


@check("wire.ack.exactly-one", "SPOP-ACK-001")
async def exactly_one(target: WireTarget) -> None:
    """Exactly one ACK for each NOTIFY, with its ids and FIN set."""
    async with session(target) as connection:
        for number in (1, 3, 5):
            await connection.ask(question(probe(target), stream_id=number))
        asked = [
            question((probe, refused)[number % 2](target), stream_id=number, frame_id=number % 3 + 1)
            for number in range(10, 30)
        ]
        await connection.send(*asked)
        connection.must_answer_each(asked, await connection.collect(len(asked)))
        await connection.must_be_quiet("each NOTIFY had its ACK")


@check("wire.ack.stream-zero", "SPOP-ACK-002")
async def stream_zero(target: WireTarget) -> None:
    """stream-id 0 is valid in NOTIFY.

    The first stream of HAProxy up to 3.0 has it.
    """
    async with session(target) as connection:
        await connection.must_answer(question(probe(target), stream_id=0))


@check("wire.ack.large-ids", "SPOP-ACK-003")
async def large_ids(target: WireTarget) -> None:
    """Ids up to 2**32 - 1, even or odd, may be reused on other connections.

    Ids that an agent truncates to 8, 16, 24 or 31 bits come back wrong. SPOE.txt gives an id no width: a
    larger one comes back as it was, or ends the connection.
    """
    async with session(target) as one, session(target) as other:
        for number in (2, 255, 256, 65535, 65536, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1):
            for connection in (one, other):
                await connection.must_answer(question(probe(target), stream_id=number, frame_id=number))
    for number in (2**32, 2**53 + 1, 2**63, 2**64 - 1):
        async with session(target) as connection:
            asked = question(probe(target), stream_id=number, frame_id=1)
            await connection.send(asked)
            answer = await connection.receive(target.seconds(judging.DEADLINE))
            if not isinstance(answer, Ended) and answer.type != FrameType.AGENT_DISCONNECT:
                connection.must_answer_each([asked], [answer])
    await must_live(target, "wide ids")


@check("wire.ack.frame-id", "SPOP-ACK-004")
async def frame_id(target: WireTarget) -> None:
    """A frame-id above 1 on the same stream comes back.

    A second event or group on the stream has frame-id 2.
    """
    async with session(target) as connection:
        for number in (1, 2, 3, 7):
            await connection.must_answer(question(probe(target), stream_id=11, frame_id=number))


@check("wire.ack.same-ids-twice", "SPOP-ACK-005")
async def same_ids_twice(target: WireTarget) -> None:
    """The same ids twice on one connection: two ACKs, each with its own verdict.

    After one another, and pipelined with different questions: an agent keeps no state by id.
    """
    async with session(target) as connection:
        await connection.must_answer(question(probe(target), stream_id=4))
        connection.must_deny(await connection.ask(question(refused(target), stream_id=4)))
        asked = [question(probe(target), stream_id=4), question(refused(target), stream_id=4)]
        await connection.send(*asked)
        acks = await connection.collect(2)
        connection.must_answer_each(asked, acks)
        await connection.must_be_quiet("both NOTIFYs had their ACK")
        if target.allowed is not None:
            allows = [_explicit(connection, ack) for ack in acks]
            if sorted(allows) != [False, True]:
                raise connection.fail("one allow and one deny expected", received=str(allows))


def _explicit(connection: JudgedConnection, ack: Frame) -> bool:
    found = {action.name: action.value for action in read_actions(ack)}.get("allow")
    if found is None or not isinstance(found.value, bool):
        raise connection.fail("no explicit verdict in the ACK")
    return found.value


# --- messages ---------------------------------------------------------------------------------------------


@check("wire.message.unknown", "SPOP-MSG-001")
async def message_unknown(target: WireTarget) -> None:
    """An unknown message name: an ACK that allows nothing, within the deadline.

    HAProxy would otherwise wait out `timeout processing`.
    """
    arguments = check_arguments(probe(target))
    async with session(target) as connection:
        for name in ("no-such-message", "", "IAM-CHECK", "iam-check2", "n" * 300):
            ack = await connection.ask(notify(1, 1, encode_message(name, arguments)))
            connection.must_not_allow(ack)


@check("wire.message.mixed", "SPOP-MSG-002")
async def message_mixed(target: WireTarget) -> None:
    """Known and unknown messages mixed, in any order: one ACK with the right verdict.

    Messages are found by name; each NOTIFY has one ACK, also with two messages of the same name.
    """
    known = encode_message("iam-check", check_arguments(probe(target)))
    context = encode_message("iam-context", context_arguments())
    unknown = encode_message("no-such-message", {"x": -1, "y": "text", "z": None})
    async with session(target) as connection:
        for messages in (
            (unknown, known),
            (known, unknown),
            (unknown, context, unknown, known),
            (known, context),
            (context, unknown, known, unknown),
        ):
            await connection.must_answer(notify(1, 1, *messages))
        await connection.ask(notify(1, 1, known, known))
        await connection.must_be_quiet("each NOTIFY had its ACK")


@check("wire.message.contradiction", "SPOP-MSG-008")
async def message_contradiction(target: WireTarget) -> None:
    """Two iam-check messages that disagree do not allow.

    HAProxy never sends two; somebody who does wants the agent to overlook one.
    """
    known = encode_message("iam-check", check_arguments(judging.allowed(target)))
    other = encode_message("iam-check", check_arguments(refused(target)))
    context = encode_message("iam-context", context_arguments())
    async with session(target) as connection:
        for pair in ((known, other), (other, known), (other, context, known)):
            connection.must_not_allow(await connection.ask(notify(1, 1, *pair)))


@check("wire.message.none", "SPOP-MSG-003")
async def message_none(target: WireTarget) -> None:
    """A NOTIFY without messages, or with iam-context alone: an ACK that allows nothing."""
    async with session(target) as connection:
        connection.must_not_allow(await connection.ask(notify(1, 1)))
        only_context = encode_message("iam-context", context_arguments())
        connection.must_not_allow(await connection.ask(notify(3, 1, only_context)))


@check("wire.message.odd-arguments", "SPOP-MSG-004")
async def odd_arguments(target: WireTarget) -> None:
    """No arguments, unnamed arguments, or a name twice with different values: never an allow.

    Neither of two values decides, because nobody knows which of them HAProxy meant.
    """
    pairs = list(check_arguments(probe(target)).items())
    differing = {
        "authorization": "Bearer x",
        "authorization-count": 2,
        "method": "X",
        "path": "/other",
        "src": "192.0.2.99",
        "role": "x",
        "host": "other.test",
    }
    other = check_arguments({**probe(target), **differing})
    odd = {
        "no arguments": [],
        "unnamed arguments": [("", value) for _, value in pairs],
        **{f"{name} twice": [*pairs, (name, other[name])] for name in differing},
        "authorization twice, the good one last": [("authorization", "Bearer x"), *pairs],
    }
    for what, arguments in odd.items():
        async with session(target) as connection:
            try:
                ack = await connection.ask(notify(1, 1, encode_message("iam-check", arguments)))
            except SilenceError:
                raise
            except WireError:
                # SPOE.txt does not know repeated names: an agent may call the frame broken.
                if "twice" not in what:
                    raise
            else:
                connection.must_not_allow(ack)
    await must_live(target, "odd arguments")


@check("wire.message.extra-and-missing", "SPOP-MSG-005")
async def extra_and_missing(target: WireTarget) -> None:
    """Extra arguments are ignored, also unnamed ones; a missing required one is an explicit deny.

    There are as many as a message can have, some by a known name in other letters. The known ones also come
    backwards. SPEC.md section 2 requires `authorization`, `method`, `path` and `src`; the reason is
    `internal_error`.
    """
    async with session(target) as connection:
        known = check_arguments(probe(target)).items()
        unknown: list[tuple[str, Value | Typed]] = [("x-before", -1), ("", "x"), ("", None), ("", "x")]
        near = [(other, "x") for name, _ in known for other in (name.title(), f"{name} ", f"{name}s")]
        extra = [*unknown, *near, *known, *unknown[1:], ("x-after", None)]
        extra += [("", None)] * (255 - len(extra))  # as many as the one byte of their number says
        for arguments in (extra, [*known][::-1]):
            await connection.must_answer(notify(1, 1, encode_message("iam-check", arguments)))
        for name in ("method", "path", "src"):
            ack = await connection.ask(question({**probe(target), name: OMIT}))
            connection.must_deny(ack, "internal_error")
        for name in ("method", "path"):
            ack = await connection.ask(question({**probe(target), name: None}))
            connection.must_deny(ack, "internal_error")
        ack = await connection.ask(question({**probe(target), "authorization": OMIT}))
        connection.must_deny(ack, "internal_error", "no_credentials")
        for kind in (DataType.INT32, DataType.INT64):
            negative = question({**probe(target), "authorization-count": Typed(kind, -1)})
            connection.must_deny(await connection.ask(negative), "internal_error")


@check("wire.message.null-token", "SPOP-MSG-006")
async def null_token(target: WireTarget) -> None:
    """A NULL token is a deny, and not the same as an empty one.

    NULL: the header was absent. Empty: the client sent one.
    """
    async with session(target) as connection:
        absent = tokenless(probe(target))
        await connection.must_answer(question(probe(target)))
        found = connection.must_deny(await connection.ask(question(absent)), "no_credentials")
        if found.get("status") != 401:
            raise connection.fail("no credential", expected="status 401", received=str(found.get("status")))
        for text in ("", " ", "Bearer", "Bearer "):
            empty = {**absent, "authorization": text, "authorization-count": 1}
            ack = await connection.ask(question(empty))
            connection.must_deny(ack, "no_credentials", "token_malformed")


@check("wire.message.lies", "SPOP-MSG-007")
async def message_lies(target: WireTarget) -> None:
    """A count that does not match, or a length past the end: AGENT-DISCONNECT 4, never silence.

    These are the truncated messages that make agents panic.
    """
    pairs = check_arguments(probe(target))
    whole = encode_message("iam-check", pairs)
    lies = {
        "one argument more than there are": encode_message("iam-check", pairs, count=len(pairs) + 1),
        "255 arguments": encode_message("iam-check", pairs, count=255),
        "one argument less than there are": encode_message("iam-check", pairs, count=len(pairs) - 1),
        "a name past the end": string("iam-check") + b"\x01\xef" + b"src",
        "a string past the end": string("iam-check") + b"\x01" + string("host") + b"\x08\xef" + b"x",
        "a message name past the end": b"\xefiam-check",
        "an address cut short": string("iam-check") + b"\x01" + string("src") + b"\x06\x7f\x00",
        "an IPv6 address cut short": string("iam-check") + b"\x01" + string("src") + b"\x07" + bytes(15),
        "a name without a value": string("iam-check") + b"\x01" + string("src"),
        "a message without a count": string("iam-check"),
        "the last byte missing": whole[:-1],
    }
    frames = {what: Frame(FrameType.NOTIFY, 1, 1, payload) for what, payload in lies.items()}
    await judging.must_refuse(target, frames, 4)
    await must_live(target, "messages that lie")


# --- the answer -------------------------------------------------------------------------------------------


@check("wire.ack.fits", "SPOP-ACK-006")
async def ack_fits(target: WireTarget) -> str:
    """An ACK fits the negotiated size, and holds the verdict.

    The size is the least that the question itself fits, so the answer's tags may not fit; or a byte less
    than the whole answer.
    """

    async def fits(frame: Frame, judge: Callable[[JudgedConnection, Frame], object], least: int = 256) -> str:
        size = max(least, len(frame.body()))
        async with session(target, {**HELLO, "max-frame-size": size}) as connection:
            ack = await connection.ask(frame)
            if len(ack.body()) > size:
                raise connection.fail(f"an ACK of {len(ack.body())} bytes, negotiated {size}")
            judge(connection, ack)
        return f"tags too long for {size} bytes did not go: the ACK has {len(ack.body())}"

    def explicit(connection: JudgedConnection, ack: Frame) -> None:
        if connection.verdict(ack).get("allow") is not True:
            connection.must_deny(ack)

    least = {"request-id": "x", "src-port": OMIT, "stream": OMIT}
    await fits(question(probe(target), least), explicit)
    await fits(question(refused(target), least), JudgedConnection.must_deny)
    if target.crowded is not None:
        wide = question(target.crowded, stream_id=2**31)
        async with session(target) as connection:
            whole = await connection.ask(wide)
        await fits(wide, explicit, max(256, len(whole.body()) - 1))
        return await fits(question(target.crowded), explicit)
    if target.allowed is None:
        return "a refusal alone was judged: no allowed credential"
    return "no request is known whose tags exceed its own size"


@check("wire.action.well-formed", "SPOP-ACTION-001")
async def action_well_formed(target: WireTarget) -> None:
    """Actions are well formed: SET-VAR 3 arguments, UNSET-VAR 2, a known scope.

    HAProxy stops at the first bad action without an error and keeps those before it.
    """
    async with session(target) as connection:
        for asked in (probe(target), refused(target), tokenless(probe(target))):
            connection.must_be_well_formed(await connection.ask(question(asked)))
        broken = {**probe(target), "method": OMIT}
        connection.must_be_well_formed(await connection.ask(question(broken)))


@check("wire.action.verdict-last", "SPOP-ACTION-002")
async def verdict_last(target: WireTarget) -> None:
    """The verdict is the last action, and every other variable is set or unset before it.

    If HAProxy cuts actions off, it then cannot keep an allow with the tags of another request.
    """
    async with session(target) as connection:
        for asked in (probe(target), refused(target)):
            actions = read_actions(await connection.ask(question(asked)))
            names = [action.name for action in actions]
            if not names or names[-1] != "allow" or names.count("allow") != 1:
                raise connection.fail("the verdict is not the last action", received=" ".join(names))
            if missing := ALWAYS - set(names):
                raise connection.fail(f"neither set nor unset: {' '.join(sorted(missing))}")


@check("wire.action.name-length", "SPOP-ACTION-003")
async def name_length(target: WireTarget) -> None:
    """scope.prefix.name has at most 63 characters.

    HAProxy drops longer ones.
    """
    for name in await _names(target):
        if len(_PREFIX + name) > 63:
            raise CheckFailed(f"{_PREFIX}{name} has over 63 characters")


@check("wire.action.name-characters", "SPOP-ACTION-004")
async def name_characters(target: WireTarget) -> None:
    """Variable names use only A-Z a-z 0-9 . _."""
    for name in await _names(target):
        bare = name.replace(".", "").replace("_", "")
        if not (bare.isascii() and bare.isalnum()):
            raise CheckFailed(f"variable name {name!r}")


async def _names(target: WireTarget) -> list[str]:
    """Return the names of the variables that an allow and a refusal set."""
    async with session(target) as connection:
        acks = [await connection.ask(question(asked)) for asked in (probe(target), refused(target))]
        return [action.name for ack in acks for action in read_actions(ack)]


@check("wire.action.null-is-unset", "SPOP-ACTION-005")
async def null_is_unset(target: WireTarget) -> None:
    """A variable without a value is unset (or SET to NULL), never left from the request before.

    An allow, then a refusal on the same stream: backend, rule and role must be gone.
    """
    must_be_gone = {"backend"} if target.refused is not None else {"backend", "rule", "role", "principal"}
    async with session(target) as connection:
        state: dict[str, Any] = {}
        for asked in (probe(target), refused(target)):
            for action in read_actions(await connection.ask(question(asked))):
                if action.scope.name != "txn" or action.name not in VARIABLES:
                    continue  # of the agent's own (SPEC.md section 3)
                value = None if action.value is None else action.value.value
                if action.value is not None and action.value.type is DataType.STRING and value == "":
                    raise connection.fail(f"{action.name} is set to an empty string", expected="unset")
                state[action.name] = value
        if left := {name for name in must_be_gone if state.get(name) is not None}:
            raise connection.fail(f"left from the allowed request before: {' '.join(sorted(left))}")
        ack = await connection.ask(question(probe(target)))
        found = connection.must_judge(ack)
        if target.allowed is not None and (found.get("reason") or found.get("error")):
            raise connection.fail("an allow with the reason of a refusal", received=str(found))


# --- pipelining -------------------------------------------------------------------------------------------


@check("wire.pipeline.out-of-order", "SPOP-PIPE-001")
async def pipeline(target: WireTarget) -> str:
    """Pipelined: slow tokens never block the others.

    The slow ones are asked first: one of STS, or tokens that wait for one key, as many as HAProxy lets wait
    less three. The agent must answer one more while they are still waiting, and then two more. If they are
    answered at once, as while keys are being fetched, they are asked again. If an agent announces no
    pipelining, HAProxy asks one question of a connection at a time: a slow one then has its own connection.
    """
    if target.slow is None:
        async with session(target) as connection:
            quick = [question(probe(target), stream_id=number) for number in range(1, 21)]
            await connection.send(*quick)
            connection.must_answer_each(quick, await connection.collect(20))
        raise Untestable("no slow credential is known: `WireTarget.slow`")
    for _ in range(_TRIES):
        asked = target.slow(target.time_scale)
        async with judging.connected(target) as connection:
            said = str((await connection.hello()).get("capabilities", ""))
            ask = _side_by_side if "pipelining" in said else _one_by_one
            if seen := await ask(target, connection, asked):
                return seen
        if not {"oidc", "sts"} & target.features:
            return "all were answered at once; the agent declares neither oidc nor sts: it waits for nobody"
        # A fetch was under way, perhaps. None is after its end, and a moment longer than `keys.cooldown`.
        await judging.eventually(target, partial(_allowed, target, asked), seconds=_SLOWEST)
        await asyncio.sleep(target.seconds(_SLOW))
    raise Untestable("the slow questions were answered at once: whether one would block others is not seen")


async def _allowed(target: WireTarget, asked: Mapping[str, Any]) -> bool:
    async with session(target) as connection:
        ack = await connection.ask(question(asked), target.seconds(_SLOWEST))
        return connection.verdict(ack).get("allow") is True


async def _side_by_side(target: WireTarget, connection: JudgedConnection, asked: Mapping[str, Any]) -> str:
    """Ask quick questions behind slow ones; return what was seen, "" if a slow one was answered at once."""
    first = _FRAMES - _QUICK if "oidc" in target.features else 1
    slow = [question(asked, stream_id=number + 1) for number in range(first)]
    quick = [question(probe(target), stream_id=_FRAMES + number) for number in range(_QUICK)]
    started = time.monotonic()
    await connection.send(*slow, quick[0])
    acks: list[Frame] = []
    waited, early = 0.0, 0
    for _ in (*slow, *quick):
        acks.append(await connection.expect(FrameType.ACK, target.seconds(_SLOWEST)))
        if acks[-1].stream_id < _FRAMES:
            waited = waited or time.monotonic() - started
        else:
            early += not waited
            if acks[-1].stream_id == _FRAMES:
                await connection.send(*quick[1:])  # the agent may have read what came before at once
    connection.must_answer_each([*slow, *quick], acks)
    if waited < target.seconds(_SLOW):
        return ""
    if late := _QUICK - early:
        raise connection.fail(f"{late} quick requests had to wait {waited:.1f} s for slow ones")
    return f"{_QUICK} were answered while {len(slow)} slow ones waited {waited:.1f} s"


async def _one_by_one(target: WireTarget, waiting: JudgedConnection, asked: Mapping[str, Any]) -> str:
    """Ask the slow question on one connection, and a quick one on another; return as `_side_by_side`."""
    async with session(target) as other:
        started = time.monotonic()
        answer = asyncio.create_task(waiting.ask(question(asked), target.seconds(_SLOWEST)))
        try:
            await other.must_serve()
            blocked = answer.done()
            await answer
        finally:
            answer.cancel()
        waited = time.monotonic() - started
    if waited < target.seconds(_SLOW):
        return ""
    if blocked:
        raise other.fail(f"a quick request of another connection had to wait {waited:.1f} s for a slow one")
    return (
        f"no pipelining is announced; one on another connection was answered while it waited {waited:.1f} s"
    )


@check("wire.pipeline.off", "SPOP-PIPE-002")
async def pipeline_off(target: WireTarget) -> None:
    """Without pipelining: still right, one by one.

    With `no option pipelining` HAProxy announces no capability.
    """
    async with session(target, {**HELLO, "capabilities": ""}) as connection:
        for number in range(1, 9):
            asked = (probe, refused)[number % 2](target)
            ack = await connection.ask(question(asked, stream_id=number))
            if number % 2:
                connection.must_deny(ack)
            else:
                connection.must_judge(ack)


@check("wire.pipeline.own-connection", "SPOP-PIPE-003")
async def own_connection(target: WireTarget) -> None:
    """An ACK goes back on the connection of its NOTIFY.

    Also for two connections of the same engine, which `async` would permit to swap.
    """
    items = {**HELLO, "capabilities": "pipelining,async", "engine-id": "one-engine"}
    async with session(target, items) as one, session(target, items) as other:
        asked = [question(probe(target), stream_id=number) for number in range(1, 17)]
        await one.send(*asked)
        one.must_answer_each(asked, await one.collect(len(asked)))
        await other.must_be_quiet("nothing was asked here")
        both = [question(refused(target), stream_id=number) for number in range(1, 9)]
        await asyncio.gather(one.send(*both), other.send(*both))
        for connection in (one, other):
            connection.must_answer_each(both, await connection.collect(len(both)))


@check("wire.failure.denies", "SPOP-FAIL-001")
async def failure_denies(target: WireTarget) -> None:
    """A handler failure gives an immediate ACK with a deny, not silence.

    The arguments have types that no handler expects.
    """
    wrong: list[tuple[str, Value | Typed]] = [
        *(("authorization", value) for value in (7, True, address("127.0.0.1"))),
        *(("method", value) for value in (7, False)),
        *(("path", value) for value in (-1, True, address("::1"))),
        *(("src", value) for value in ("not an address", 1, None)),
    ]
    odd: list[tuple[str, Value | Typed]] = [
        *(("authorization-count", value) for value in ("one", None, -1, 0, True)),
        *((name, b"\xff") for name in ("authorization", "method", "path", "src")),
        *(("role", value) for value in (7, b"\xff")),
        *(("host", value) for value in (7, b"\xff")),
    ]
    async with session(target) as connection:
        for name, value in (*wrong, *odd):
            arguments = {**check_arguments(probe(target)), name: value}
            ack = await connection.ask(notify(1, 1, encode_message("iam-check", arguments)))
            if (name, value) in wrong:
                connection.must_deny(ack)
            else:
                connection.verdict(ack)
        await connection.must_serve()
