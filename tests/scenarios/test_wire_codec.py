"""The suite's own SPOP codec: round trips, strictness, the vectors of SPOE.txt and of a running HAProxy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iamroles_scenarios.base.errors import WireFormatError
from iamroles_scenarios.wire import frames as wire
from iamroles_scenarios.wire.codec import DataType, PayloadReader, Typed, address, string, varint
from iamroles_scenarios.wire.frames import Action, Frame, FrameType, Scope

BOUNDARIES = [
    *((0, "00"), (239, "ef"), (240, "f000"), (2287, "ff7f"), (2288, "f08000"), (264431, "ffff7f")),
    *((264432, "f0808000"), (33818863, "ffffff7f"), (33818864, "f080808000")),
    (2**64 - 1, "fff0fefefefefefefe0e"),
]
ID, ips = st.integers(0, 2**64 - 1), st.ip_addresses()
values = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(), st.binary(), ips)


@pytest.mark.parametrize(("value", "encoded"), BOUNDARIES)
def test_varint_vectors(value, encoded):
    assert varint(value).hex() == encoded
    assert PayloadReader(bytes.fromhex(encoded)).varint("it") == value


@given(ID)
def test_varint_round_trip(value):
    assert PayloadReader(varint(value)).varint("it") == value


@pytest.mark.parametrize("raw", [b"", b"\xff", b"\xff\xff", b"\xff" * 11 + b"\x00", b"\xff" * 9 + b"\x7f"])
def test_varint_refuses(raw):
    with pytest.raises(WireFormatError):
        PayloadReader(raw).varint("it")


def test_minus_one_as_haproxy_sends_it():
    assert Typed.of(-1).encode() == bytes.fromhex("04fff0fefefefefefefe0e")


def test_booleans_have_their_flag_in_the_high_nibble():
    assert Typed.of(True).encode() == b"\x11"
    assert Typed.of(False).encode() == b"\x01"
    assert PayloadReader(b"\x11").typed("it").value is True
    assert PayloadReader(b"\x01").typed("it").value is False


@given(values)
def test_typed_round_trip(value):
    typed = Typed.of(value)

    assert PayloadReader(typed.encode()).typed("it") == typed


BEYOND = [(DataType.INT32, 2**31), (DataType.UINT32, 2**32), (DataType.UINT32, 2**64 - 1)]
RESERVED = [(kind, 0) for kind in range(10, 16)]


@pytest.mark.parametrize(("kind", "number"), RESERVED + BEYOND)
def test_reserved_types_and_integers_beyond_their_type_are_refused(kind, number):
    with pytest.raises(WireFormatError, match="outside" if number else "reserved type"):
        PayloadReader(bytes([kind]) + varint(number)).typed("it")


@given(st.binary(max_size=300))
def test_reading_never_does_anything_but_refuse(raw):
    for read in (wire.read_kv, wire.read_messages, wire.read_actions):
        offset = 0
        try:
            read(Frame.decode(raw))
        except WireFormatError as error:
            offset = error.offset
        assert 0 <= offset <= len(raw)


frames = st.builds(Frame, st.integers(0, 255), ID, ID, st.binary(max_size=64), st.integers(0, 2**32 - 1))


@given(frames)
def test_frame_round_trip(frame):
    raw = frame.encode()

    assert int.from_bytes(raw[:4], "big") == len(raw) - 4
    assert Frame.decode(raw[4:]) == frame


@given(st.lists(st.tuples(st.text(max_size=20), values), max_size=6))
def test_messages_round_trip(pairs):
    frame = wire.notify(1, 2, wire.encode_message("m", pairs), wire.encode_message("n", {}))
    first, second = wire.read_messages(frame)

    assert first.name == "m"
    assert [(name, value.value) for name, value in first.arguments] == pairs
    assert second.arguments == ()


def test_offsets_count_from_the_start_of_the_frame():
    frame = Frame(FrameType.ACK, 1, 1, b"\x09\x01")

    with pytest.raises(WireFormatError) as caught:
        wire.read_actions(frame)
    assert caught.value.offset == 7


def _ack(*actions):
    return Frame(FrameType.ACK, 1, 1, b"".join(actions))


SET = b"\x01\x03\x02" + string("a") + b"\x11"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\x03\x02\x02" + string("a"), "unknown action type"),
        (b"\x01\x02\x02" + string("a"), "takes 3 arguments"),
        (b"\x02\x03\x02" + string("a"), "takes 2 arguments"),
        (b"\x02\x02\x05" + string("a"), "unknown scope"),
        (b"\x02\x02\x02\x08" + string("a"), "the frame has 2 left"),
        (SET[:-1], "runs 1 past the end"),
    ],
)
def test_actions_are_read_strictly(raw, why):
    with pytest.raises(WireFormatError, match=why):
        wire.read_actions(_ack(SET, raw))


def test_actions_in_order_and_what_they_leave_set():
    null = b"\x01\x03\x02" + string("a") + b"\x00"
    other = b"\x01\x03\x01" + string("b") + b"\x11"

    assert wire.read_actions(_ack(SET)) == [Action(Scope.txn, "a", Typed.of(True))]
    assert wire.variables(_ack(SET, other)) == {"a": True}
    assert wire.variables(_ack(SET, null)) == {}
    assert wire.variables(_ack(SET, b"\x02\x02\x02" + string("a"))) == {}


def test_kv_with_addresses():
    items = {"four": address("192.0.2.1"), "six": address("2001:db8::1")}
    frame = Frame(FrameType.HAPROXY_HELLO, payload=wire.encode_kv(items))

    assert {name: value.value for name, value in wire.read_kv(frame)} == items
