"""Mutants of questions and answers: SPOP-ACK, SPOP-MSG, SPOP-ACTION, SPOP-PIPE, SPOP-FAIL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from iamroles_agent.server import _Peer
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
from iamroles_conformance.selftest.mutants.override import override
from iamroles_conformance.selftest.registry import mutant

_ALLOW_LENGTH = len(b"\x01\x03\x02\x05allow\x11")


@mutant("wire.ack-twice", kills=["SPOP-ACK-001"], title="sends each ACK twice")
def ack_twice() -> None:
    acks_out(lambda _self, ids, actions: 2 * frames.encode(FrameType.ACK, ids, actions))


@mutant("wire.ack-no-fin", kills=["SPOP-ACK-001"], title="sends ACKs without FIN")
def ack_no_fin() -> None:
    acks_out(lambda _self, ids, actions: frames.encode(FrameType.ACK, ids, actions, flags=0))


@mutant("wire.ack-one-of-two", kills=["SPOP-ACK-001"], title="answers one of two pipelined frames")
def ack_one_of_two() -> None:
    def edit(self: Any, ids: bytes, actions: bytes) -> bytes:
        self.turn = not getattr(self, "turn", False)
        return frames.encode(FrameType.ACK, ids, actions) if self.turn else b""

    acks_out(edit)


@mutant("wire.stream-zero", kills=["SPOP-ACK-002"], title="does not answer stream-id 0")
def stream_zero() -> None:
    frames_in(lambda frame: None if frame.type == 3 and frame.ids[0] == 0 else frame)


def _ids(edit: Any) -> None:
    def each(_self: Any, ids: bytes, actions: bytes) -> bytes:
        stream_id, pos = varint.read(ids, 0, len(ids))
        frame_id = varint.read(ids, pos, len(ids))[0]
        return frames.encode(FrameType.ACK, frames.encode_ids(*edit(stream_id, frame_id)), actions)

    acks_out(each)


@mutant("wire.ids-16-bits", kills=["SPOP-ACK-003"], title="keeps 16 bits of a stream-id")
def ids_16_bits() -> None:
    _ids(lambda stream_id, frame_id: (stream_id & 0xFFFF, frame_id))


@mutant("wire.frame-id-one", kills=["SPOP-ACK-004"], title="answers every frame as frame 1")
def frame_id_one() -> None:
    _ids(lambda stream_id, _frame_id: (stream_id, 1))


@mutant("wire.answers-by-id", kills=["SPOP-ACK-005"], title="gives the first answer again for the same ids")
def answers_by_id() -> None:
    def edit(self: Any, ids: bytes, actions: bytes) -> bytes:
        kept = self.__dict__.setdefault("kept", {}).setdefault(ids, actions)
        return frames.encode(FrameType.ACK, ids, kept)

    acks_out(edit)


@mutant("wire.tags-not-dropped", kills=["SPOP-ACK-006"], title="sends ACKs larger than negotiated")
def tags_not_dropped() -> None:
    actions.fit = lambda encoded, _limit: encoded


def _inquire(make: Any) -> None:
    override(Connection, "_inquire", make)


@mutant("wire.unknown-silent", kills=["SPOP-MSG-001"], title="does not answer unknown messages")
def unknown_silent() -> None:
    def make(sound: Any) -> Any:
        def inquire(self: Any, frame: Any, missed: Any) -> None:
            empty = frame.start == frame.end
            if empty or messages.parse(frame.data, frame.start, frame.end).check or b"iam-c" in frame.data:
                sound(self, frame, missed)

        return inquire

    _inquire(make)


@mutant("wire.empty-silent", kills=["SPOP-MSG-003"], title="does not answer an empty NOTIFY")
def empty_silent() -> None:
    def make(sound: Any) -> Any:
        return lambda self, frame, missed: None if frame.start == frame.end else sound(self, frame, missed)

    _inquire(make)


def _parse_again(keep: Any) -> None:
    """Where the parser found the question ambiguous, take one of the readings after all."""

    def make(sound: Any) -> Any:
        def parse(data: bytes, start: int, end: int) -> Any:
            found = sound(data, start, end)
            return keep(messages, found, data, start, end) if found.problem else found

        return parse

    override(messages, "parse", make)


@mutant("wire.last-message-wins", kills=["SPOP-MSG-008"], title="judges the last of two iam-check messages")
def last_message_wins() -> None:
    def keep(messages: Any, found: Any, data: bytes, start: int, end: int) -> Any:
        if "messages" not in found.problem:
            return found
        pos, check, key = start, None, b""
        while pos < end:
            first = pos
            name, arguments, _, pos = messages._read_message(data, pos, end)
            if name == messages.CHECK:
                check, key = messages._check(arguments), data[first:pos]
        return messages.Inquiry(found.context, check, key)

    _parse_again(keep)


@mutant(
    "wire.last-argument-wins", kills=["SPOP-MSG-004"], title="takes the last of two arguments of one name"
)
def last_argument_wins() -> None:
    def make(sound: Any) -> Any:
        def read_message(data: bytes, pos: int, end: int) -> Any:
            name, arguments, _doubled, after = sound(data, pos, end)
            return name, arguments, False, after

        return read_message

    override(messages, "_read_message", make)


@mutant("wire.stops-at-unknown", kills=["SPOP-MSG-002"], title="stops reading at an unknown message")
def stops_at_unknown() -> None:
    def make(sound: Any) -> Any:
        def parse(data: bytes, start: int, end: int) -> Any:
            pos = start
            while pos < end:
                name, _, _, after = messages._read_message(data, pos, end)
                if name not in (messages.CONTEXT, messages.CHECK):
                    break
                pos = after
            return sound(data, start, pos)

        return parse

    override(messages, "parse", make)


def _check(edit: Any) -> None:
    """Change what `iam-check` is read as (`messages._check`)."""
    override(messages, "_check", lambda sound: lambda arguments: edit(sound, arguments))


@mutant("wire.missing-argument", kills=["SPOP-MSG-005"], title="judges on with an empty path or method")
def missing_argument() -> None:
    _check(lambda sound, arguments: replace(sound(arguments), missing=()))


@mutant("wire.extra-argument", kills=["SPOP-MSG-005"], title="refuses an iam-check with an unknown argument")
def extra_argument() -> None:
    def edit(sound: Any, arguments: Any) -> Any:
        extra = any(name.startswith(b"x-") for name in arguments)
        return replace(sound(arguments), missing=("nothing",)) if extra else sound(arguments)

    _check(edit)


@mutant("wire.null-is-last-token", kills=["SPOP-MSG-006"], title="leaves the last token in place of a NULL")
def null_is_last_token() -> None:
    last = {"token": ""}

    def edit(sound: Any, arguments: Any) -> Any:
        check = sound(arguments)
        if check.authorization:
            last["token"] = check.authorization
        elif check.authorization is None and not check.missing:
            return replace(check, authorization=last["token"])
        return check

    _check(edit)


@mutant("wire.lies-believed", kills=["SPOP-MSG-007"], title="answers a message that it could not read")
def lies_believed() -> None:
    def make(sound: Any) -> Any:
        def parse(data: bytes, start: int, end: int) -> Any:
            try:
                return sound(data, start, end)
            except RemoteProtocolError:
                return messages.Inquiry(messages.Context())

        return parse

    override(messages, "parse", make)


# --- actions ----------------------------------------------------------------------------------------------


def _actions(edit: Any) -> None:
    actions_out(edit)


@mutant("wire.unset-three-arguments", kills=["SPOP-ACTION-001"], title="says UNSET-VAR has three arguments")
def unset_three_arguments() -> None:
    override(actions, "unset_var", lambda sound: lambda *args: b"\x02\x03" + sound(*args)[2:])


@mutant("wire.verdict-first", kills=["SPOP-ACTION-002"], title="puts the verdict before the tags")
def verdict_first() -> None:
    _actions(lambda actions: actions[-_ALLOW_LENGTH:] + actions[:-_ALLOW_LENGTH])


@mutant("wire.long-name", kills=["SPOP-ACTION-003"], title="sets a variable with a name of 70 characters")
def long_name() -> None:
    _actions(lambda actions: b"\x01\x03\x02\x3e" + b"n" * 62 + b"\x11" + actions)


@mutant("wire.name-with-dash", kills=["SPOP-ACTION-004"], title="sets a variable with a dash in its name")
def name_with_dash() -> None:
    _actions(lambda actions: b"\x01\x03\x02\x07my-role\x11" + actions)


@mutant("wire.never-unsets", kills=["SPOP-ACTION-005"], title="leaves variables of the request before")
def never_unsets() -> None:
    def edit(actions: bytes) -> bytes:
        kept = [action for action in codec.decode(actions) if action.kind is not None]
        return b"".join(map(codec._encode, kept))

    _actions(edit)


# --- order ------------------------------------------------------------------------------------------------


@mutant("wire.in-order", kills=["SPOP-PIPE-001"], title="answers in order: a slow token blocks the others")
def in_order() -> None:
    def make(sound: Any) -> Any:
        async def judge(self: Any, event: Any) -> None:
            async with self.__dict__.setdefault("turn", asyncio.Lock()):
                await sound(self, event)

        return judge

    override(_Peer, "_judge", make)
    _Peer._recall = lambda self, key, context: None


@mutant(
    "wire.waits-for-second", kills=["SPOP-PIPE-002"], title="without pipelining, waits for a second frame"
)
def waits_for_second() -> None:
    state = {"pipelining": True}

    def text(key: bytes, said: str) -> str:
        if key == b"capabilities":
            state["pipelining"] = bool(said)
        return said

    def edit(self: Connection, kind: int, ids: bytes, payload: bytes, flags: int) -> bytes:
        whole = frames.encode(FrameType(kind), ids, payload, flags)
        if kind == FrameType.AGENT_HELLO:
            self.__dict__["alone"] = not state["pipelining"]
        if kind != FrameType.ACK or not self.__dict__.get("alone"):
            return whole
        held: list[bytes] = self.__dict__.setdefault("held", [])
        held.append(whole)
        return b"".join((held.pop(0), held.pop(0))) if len(held) > 1 else b""

    hello_text(text)
    frames_out(edit)


@mutant("wire.other-connection", kills=["SPOP-PIPE-003"], title="sends ACKs on any connection of the engine")
def other_connection() -> None:
    def make_handle(sound: Any) -> Any:
        def handle(self: Any, event: Any) -> None:
            if isinstance(event, HelloReceived):
                self.engine = event.engine_id
            sound(self, event)

        return handle

    def make_flush(sound: Any) -> Any:
        def flush(self: Any) -> None:
            engine = getattr(self, "engine", None)
            others = [
                peer
                for peer in self._server.peers
                if peer is not self and engine == "one-engine" and getattr(peer, "engine", None) == engine
            ]
            if others and not self._ending and self._connection.notifies:
                data = self._connection.data_to_send()
                others[0]._transport.write(data)
            else:
                sound(self)

        return flush

    override(_Peer, "_handle", make_handle)
    override(_Peer, "_flush", make_flush)


@mutant("wire.failure-silent", kills=["SPOP-FAIL-001"], title="does not answer where the handler fails")
def failure_silent() -> None:
    def make(sound: Any) -> Any:
        async def judge(self: Any, event: Any) -> None:
            if event.check.missing:
                self._pending.pop(asyncio.current_task(), None)
                return
            await sound(self, event)

        return judge

    override(_Peer, "_judge", make)


@mutant("wire.allow-on-failure", kills=["SPOP-FAIL-001"], title="allows on an internal error")
def allow_on_failure() -> None:
    _actions(lambda actions: actions[:-1] + b"\x11" if b"internal_error" in actions else actions)
