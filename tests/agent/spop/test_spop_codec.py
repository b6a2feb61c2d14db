"""The codec: published and captured bytes, round trips, and every way to be broken."""

import contextlib
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spop_transcript import cut, frame

from iamroles_agent.spop import frames, values, varint
from iamroles_agent.spop.errors import LocalProtocolError, RemoteProtocolError, Status
from iamroles_agent.spop.frames import FrameBuffer, FrameType
from iamroles_agent.spop.values import DataType

UINT64 = st.integers(0, varint.MAX)


class TestVarint:
    @pytest.mark.parametrize(
        ("value", "encoded"),
        [
            *((0, "00"), (239, "ef"), (240, "f000"), (2287, "ff7f"), (2288, "f08000"), (264431, "ffff7f")),
            *((264432, "f0808000"), (33818863, "ffffff7f"), (33818864, "f080808000")),
            ((1 << 64) - 1, "fff0fefefefefefefe0e"),
        ],
    )
    def test_boundaries_of_length(self, value, encoded):
        assert varint.encode(value).hex() == encoded
        assert varint.read(bytes.fromhex(encoded), 0, len(encoded) // 2) == (value, len(encoded) // 2)

    @given(UINT64, st.binary(max_size=3), st.binary(max_size=3))
    def test_round_trip_anywhere(self, value, before, after):
        encoded = varint.encode(value)
        data = before + encoded + after
        end = len(before) + len(encoded)

        assert varint.read(data, len(before), end) == (value, end)

    @given(st.binary(min_size=1, max_size=12))
    def test_each_value_has_one_encoding(self, data):
        """So ids may be sent back as they came."""
        try:
            value, end = varint.read(data, 0, len(data))
        except RemoteProtocolError:
            return

        assert varint.encode(value) == data[:end]

    @pytest.mark.parametrize(
        "encoded", ["", "f0", "ff80", "ff" * 10 + "00", "ff" * 64, "fff0fefefefefefefe0f"]
    )
    def test_broken(self, encoded):
        data = bytes.fromhex(encoded)
        with pytest.raises(RemoteProtocolError) as caught:
            varint.read(data, 0, len(data))

        assert caught.value.status is Status.INVALID

    @pytest.mark.parametrize("value", [-1, 1 << 64])
    def test_refuses_to_write(self, value):
        with pytest.raises(LocalProtocolError):
            varint.encode(value)


TYPED = st.one_of(
    st.just((DataType.NULL, None)),
    st.tuples(st.just(DataType.BOOL), st.booleans()),
    st.tuples(st.just(DataType.INT32), st.integers(-(1 << 31), (1 << 31) - 1)),
    st.tuples(st.just(DataType.UINT32), st.integers(0, (1 << 32) - 1)),
    st.tuples(st.just(DataType.INT64), st.integers(-(1 << 63), (1 << 63) - 1)),
    st.tuples(st.just(DataType.UINT64), UINT64),
    st.tuples(st.just(DataType.IPV4), st.ip_addresses(v=4)),
    st.tuples(st.just(DataType.IPV6), st.ip_addresses(v=6)),
    st.tuples(st.sampled_from([DataType.STRING, DataType.BINARY]), st.binary(max_size=300)),
)


class TestValues:
    @pytest.mark.parametrize(
        ("kind", "value", "encoded"),
        [
            *((DataType.NULL, None, "00"), (DataType.BOOL, True, "11"), (DataType.BOOL, False, "01")),
            *((DataType.INT32, -1, "02fff0fefefefefefefe0e"), (DataType.UINT32, 16380, "03fcf006")),
            *((DataType.INT64, -1, "04fff0fefefefefefefe0e"), (DataType.UINT64, 5, "0505")),
            (DataType.IPV4, IPv4Address("127.0.0.1"), "067f000001"),
            (DataType.IPV6, IPv6Address("::1"), "07" + "00" * 15 + "01"),
            *((DataType.STRING, b"2.0", "0803322e30"), (DataType.BINARY, b"\x00\xff", "090200ff")),
        ],
    )
    def test_bytes_of_each_type(self, kind, value, encoded):
        data = bytes.fromhex(encoded)

        assert values.encode(kind, value) == data
        assert values.read(data, 0, len(data)) == (kind, value, len(data))

    @given(TYPED, st.binary(max_size=5))
    def test_round_trip(self, typed, after):
        encoded = values.encode(*typed)

        kind, value, pos = values.read(encoded + after, 0, len(encoded))

        assert (kind, value, pos) == (*typed, len(encoded))
        assert type(value) is type(typed[1])

    @given(TYPED)
    def test_cut_short(self, typed):
        encoded = values.encode(*typed)
        for end in range(len(encoded)):
            with pytest.raises(RemoteProtocolError):
                values.read(encoded, 0, end)

    @pytest.mark.parametrize("flags", range(16))
    def test_flags_matter_to_booleans_alone(self, flags):
        assert values.read(bytes((flags << 4 | 1,)), 0, 1)[1] is bool(flags & 1)
        assert values.read(bytes((flags << 4 | 4, 9)), 0, 2)[1] == 9

    @pytest.mark.parametrize("kind", range(10, 16))
    def test_reserved_types(self, kind):
        with pytest.raises(RemoteProtocolError, match="reserved") as caught:
            values.read(bytes((kind, 0, 0, 0)), 0, 4)

        assert caught.value.status is Status.INVALID

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            *((DataType.BOOL, 1), (DataType.INT64, True), (DataType.INT32, 1 << 31), (DataType.UINT32, -1)),
            *((DataType.IPV4, ip_address("::1")), (DataType.STRING, "text"), (DataType.NULL, b"")),
        ],
    )
    def test_refuses_to_write(self, kind, value):
        with pytest.raises(LocalProtocolError):
            values.encode(kind, value)


IDS = st.tuples(UINT64, UINT64)
FRAMES = st.tuples(st.integers(0, 255), IDS, st.binary(max_size=80), st.integers(0, (1 << 32) - 1))


class TestFrames:
    def test_bytes(self):
        encoded = frame(FrameType.ACK, b"\x01", ids=(0, 240))

        assert encoded.hex(" ") == "00 00 00 09 67 00 00 00 01 00 f0 00 01"

    @given(st.lists(FRAMES, max_size=5), st.data())
    def test_however_the_stream_is_cut(self, sent, data):
        """Any split of the bytes gives the same frames."""
        stream = b"".join(frame(kind, body, ids=ids, flags=flags) for kind, ids, body, flags in sent)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
        buffer = FrameBuffer(200)

        read = [
            (raw.type, raw.ids, raw.data[raw.start : raw.end], raw.flags)
            for first, last in zip([0, *cuts], [*cuts, len(stream)], strict=True)
            for raw in buffer.split(stream[first:last])
        ]

        assert read == [
            (kind, b"".join(map(varint.encode, ids)), body, flags) for kind, ids, body, flags in sent
        ]
        assert buffer.pending == 0

    def test_byte_by_byte(self):
        sent = frame(FrameType.NOTIFY, b"x" * 5000, ids=(300, 70000))
        buffer = FrameBuffer(16380)

        found = [len(list(buffer.split(sent[i : i + 1]))) for i in range(len(sent))]
        assert found == [0] * (len(sent) - 1) + [1]

    @pytest.mark.parametrize("length", range(7))
    def test_too_short(self, length):
        with pytest.raises(RemoteProtocolError) as caught:
            cut(length.to_bytes(4, "big"))

        assert caught.value.status is Status.INVALID

    @pytest.mark.parametrize("rest", [b"", b"\x03", b"\x03\x00\x00\x00\x01\x00\x00" + b"x" * 100])
    @pytest.mark.parametrize("length", [257, 0xFFFFFFFF])
    def test_too_long_is_refused_before_its_body(self, length, rest):
        buffer = FrameBuffer(256)
        with pytest.raises(RemoteProtocolError) as caught:
            list(buffer.split(length.to_bytes(4, "big") + rest))

        assert caught.value.status is Status.TOO_BIG
        assert buffer.pending == 0

    def test_greatest_length(self):
        assert len(cut(frame(FrameType.NOTIFY, b"x" * (256 - 7)), 256)) == 1

    @pytest.mark.parametrize("ids", ["f0", "00f0", "f080", "ff" * 20])
    def test_broken_ids(self, ids):
        body = bytes.fromhex("0300000001" + ids).ljust(7, b"\xff")
        with pytest.raises(RemoteProtocolError) as caught:
            cut(len(body).to_bytes(4, "big") + body)

        assert caught.value.status is Status.INVALID

    @given(st.binary(max_size=400))
    def test_never_crashes(self, data):
        with contextlib.suppress(RemoteProtocolError):
            for raw in cut(data, 300):
                frames.read_pairs(raw)
