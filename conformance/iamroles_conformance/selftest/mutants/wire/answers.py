"""Mutants of questions and answers: SPOP-ACK, SPOP-MSG, SPOP-ACTION, SPOP-PIPE, SPOP-FAIL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from iamroles_agent.serving.server import _Peer
from iamroles_agent.spop import actions, frames, messages, varint
from iamroles_agent.spop import actions as codec
from iamroles_agent.spop.connection import Connection, HelloReceived
from iamroles_agent.spop.errors import RemoteProtocolError
from iamroles_agent.spop.frames import FrameType
from iamroles_conformance.selftest.mutants.edits import (
    acks_out,
    actions_out,
    frames_in,
    frames_out,
    hello_text,
)
from iamroles_conformance.selftest.mutants.override import around, setting, without_memory
from iamroles_conformance.selftest.registry import Override, mutant

_ALLOW_LENGTH = len(b"\x01\x03\x02\x05allow\x11")
mutant("wire.ack-twice", "SPOP-ACK-001", "sends each ACK twice")(
    acks_out(lambda _self, ids, actions: 2 * frames.encode(FrameType.ACK, ids, actions))
)
mutant("wire.ack-no-fin", "SPOP-ACK-001", "sends ACKs without FIN")(
    acks_out(lambda _self, ids, actions: frames.encode(FrameType.ACK, ids, actions, flags=0))
)


@mutant("wire.ack-one-of-two", "SPOP-ACK-001", "answers one of two pipelined frames")
@acks_out
def ack_one_of_two(self: Any, ids: bytes, actions: bytes) -> bytes:
    self.turn = not getattr(self, "turn", False)
    return frames.encode(FrameType.ACK, ids, actions) if self.turn else b""


mutant("wire.stream-zero", "SPOP-ACK-002", "does not answer stream-id 0")(
    frames_in(lambda frame: None if frame.type == 3 and frame.ids[0] == 0 else frame)
)


def _ids(edit: Any) -> Override:
    def each(_self: Any, ids: bytes, actions: bytes) -> bytes:
        stream_id, pos = varint.read(ids, 0, len(ids))
        frame_id = varint.read(ids, pos, len(ids))[0]
        return frames.encode(FrameType.ACK, frames.encode_ids(*edit(stream_id, frame_id)), actions)

    return acks_out(each)


mutant("wire.ids-16-bits", "SPOP-ACK-003", "keeps 16 bits of a stream-id")(
    _ids(lambda stream_id, frame_id: (stream_id & 0xFFFF, frame_id))
)
mutant("wire.frame-id-one", "SPOP-ACK-004", "answers every frame as frame 1")(
    _ids(lambda stream_id, _frame_id: (stream_id, 1))
)


@mutant("wire.answers-by-id", "SPOP-ACK-005", "gives the first answer again for the same ids")
@acks_out
def answers_by_id(self: Any, ids: bytes, actions: bytes) -> bytes:
    kept = self.__dict__.setdefault("kept", {}).setdefault(ids, actions)
    return frames.encode(FrameType.ACK, ids, kept)


mutant("wire.tags-not-dropped", "SPOP-ACK-006", "sends ACKs larger than negotiated")(
    setting(actions, "fit", lambda encoded, _limit: encoded)
)


@mutant("wire.unknown-silent", "SPOP-MSG-001", "does not answer unknown messages")
@around(Connection, "_inquire")
def unknown_silent(sound: Any, self: Any, frame: Any, missed: Any) -> None:
    empty = frame.start == frame.end
    if empty or messages.parse(frame.data, frame.start, frame.end).check or b"iam-c" in frame.data:
        sound(self, frame, missed)


mutant("wire.empty-silent", "SPOP-MSG-003", "does not answer an empty NOTIFY")(
    around(Connection, "_inquire")(
        lambda sound, self, frame, missed: None if frame.start == frame.end else sound(self, frame, missed)
    )
)


def _parse_again(keep: Any) -> Override:
    """Where the parser found the question ambiguous, take one of the readings after all."""

    @around(messages, "parse")
    def parse(sound: Any, data: bytes, start: int, end: int) -> Any:
        found = sound(data, start, end)
        return keep(messages, found, data, start, end) if found.problem else found

    return parse


@mutant("wire.last-message-wins", "SPOP-MSG-008", "judges the last of two iam-check messages")
@_parse_again
def last_message_wins(messages: Any, found: Any, data: bytes, start: int, end: int) -> Any:
    if "messages" not in found.problem:
        return found
    pos, check, key = start, None, b""
    while pos < end:
        first = pos
        name, arguments, _, pos = messages._read_message(data, pos, end)
        if name == messages.CHECK:
            check, key = messages._check(arguments), data[first:pos]
    return messages.Inquiry(found.context, check, key)


@mutant("wire.last-argument-wins", "SPOP-MSG-004", "takes the last of two arguments of one name")
@around(messages, "_read_message")
def last_argument_wins(sound: Any, data: bytes, pos: int, end: int) -> Any:
    name, arguments, _doubled, after = sound(data, pos, end)
    return name, arguments, False, after


@mutant("wire.stops-at-unknown", "SPOP-MSG-002", "stops reading at an unknown message")
@around(messages, "parse")
def stops_at_unknown(sound: Any, data: bytes, start: int, end: int) -> Any:
    pos = start
    while pos < end:
        name, _, _, after = messages._read_message(data, pos, end)
        if name not in (messages.CONTEXT, messages.CHECK):
            break
        pos = after
    return sound(data, start, pos)


def _check(edit: Any) -> Override:
    """Change what `iam-check` is read as (`messages._check`)."""
    return around(messages, "_check")(edit)


mutant("wire.missing-argument", "SPOP-MSG-005", "judges on with an empty path or method")(
    _check(lambda sound, arguments: replace(sound(arguments), missing=()))
)


@mutant("wire.extra-argument", "SPOP-MSG-005", "refuses an iam-check with an unknown argument")
@_check
def extra_argument(sound: Any, arguments: Any) -> Any:
    extra = any(name.startswith(b"x-") for name in arguments)
    return replace(sound(arguments), missing=("nothing",)) if extra else sound(arguments)


_last_token = [""]


@mutant("wire.null-is-last-token", "SPOP-MSG-006", "leaves the last token in place of a NULL")
@_check
def null_is_last_token(sound: Any, arguments: Any) -> Any:
    check = sound(arguments)
    if check.authorization:
        _last_token[0] = check.authorization
    elif check.authorization is None and not check.missing:
        return replace(check, authorization=_last_token[0])
    return check


@mutant("wire.lies-believed", "SPOP-MSG-007", "answers a message that it could not read")
@around(messages, "parse")
def lies_believed(sound: Any, data: bytes, start: int, end: int) -> Any:
    try:
        return sound(data, start, end)
    except RemoteProtocolError:
        return messages.Inquiry(messages.Context())


# --- actions
mutant("wire.unset-three-arguments", "SPOP-ACTION-001", "says UNSET-VAR has three arguments")(
    around(actions, "unset_var")(lambda sound, *args: b"\x02\x03" + sound(*args)[2:])
)
mutant("wire.verdict-first", "SPOP-ACTION-002", "puts the verdict before the tags")(
    actions_out(lambda actions: actions[-_ALLOW_LENGTH:] + actions[:-_ALLOW_LENGTH])
)
mutant("wire.long-name", "SPOP-ACTION-003", "sets a variable with a name of 70 characters")(
    actions_out(lambda actions: b"\x01\x03\x02\x3e" + b"n" * 62 + b"\x11" + actions)
)
mutant("wire.name-with-dash", "SPOP-ACTION-004", "sets a variable with a dash in its name")(
    actions_out(lambda actions: b"\x01\x03\x02\x07my-role\x11" + actions)
)


@mutant("wire.never-unsets", "SPOP-ACTION-005", "leaves variables of the request before")
@actions_out
def never_unsets(actions: bytes) -> bytes:
    kept = [action for action in codec.decode(actions) if action.kind is not None]
    return b"".join(map(codec._encode, kept))


# --- order
@mutant("wire.in-order", "SPOP-PIPE-001", "answers in order: a slow token blocks the others", without_memory)
@around(_Peer, "_judge")
async def _one_by_one(sound: Any, self: Any, event: Any) -> None:
    async with self.__dict__.setdefault("turn", asyncio.Lock()):
        await sound(self, event)


_pipelining = [True]


@hello_text
def _noting_pipelining(key: bytes, said: str) -> str:
    if key == b"capabilities":
        _pipelining[0] = bool(said)
    return said


@mutant(
    "wire.waits-for-second",
    "SPOP-PIPE-002",
    "without pipelining, waits for a second frame",
    _noting_pipelining,
)
@frames_out
def _two_by_two(self: Connection, kind: int, ids: bytes, payload: bytes, flags: int) -> bytes:
    whole = frames.encode(FrameType(kind), ids, payload, flags)
    if kind == FrameType.AGENT_HELLO:
        self.__dict__["alone"] = not _pipelining[0]
    if kind != FrameType.ACK or not self.__dict__.get("alone"):
        return whole
    held: list[bytes] = self.__dict__.setdefault("held", [])
    held.append(whole)
    return b"".join((held.pop(0), held.pop(0))) if len(held) > 1 else b""


@around(_Peer, "_handle")
def _noting_engine(sound: Any, self: Any, event: Any) -> None:
    if isinstance(event, HelloReceived):
        self.engine = event.engine_id
    sound(self, event)


@mutant(
    "wire.other-connection", "SPOP-PIPE-003", "sends ACKs on any connection of the engine", _noting_engine
)
@around(_Peer, "_flush")
def _through_another(sound: Any, self: Any) -> None:
    engine = getattr(self, "engine", None)
    others = [
        peer
        for peer in self._server.peers
        if peer is not self and engine == "one-engine" and getattr(peer, "engine", None) == engine
    ]
    if others and not self._ending and self._connection.notifies:
        others[0]._transport.write(self._connection.data_to_send())
    else:
        sound(self)


@mutant("wire.failure-silent", "SPOP-FAIL-001", "does not answer where the handler fails")
@around(_Peer, "_judge")
async def failure_silent(sound: Any, self: Any, event: Any) -> None:
    if event.check.missing:
        self._pending.pop(asyncio.current_task(), None)
        return
    await sound(self, event)


mutant("wire.allow-on-failure", "SPOP-FAIL-001", "allows on an internal error")(
    actions_out(lambda actions: actions[:-1] + b"\x11" if b"internal_error" in actions else actions)
)
