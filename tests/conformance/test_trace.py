"""`iamroles trace`: transcripts of captured streams, whole and broken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoking import said

from iamroles_conformance.commands.trace import from_hex, trace_stream
from iamroles_scenarios.wire.blunt import ack
from iamroles_scenarios.wire.client import question
from iamroles_scenarios.wire.codec import string
from iamroles_scenarios.wire.frames import Frame, FrameType, disconnect, hello

ASKED = question({"authorization": "Bearer very-secret"}, stream_id=7)
ALLOW = b"\x01\x03\x02" + string("allow") + b"\x11"
STREAM = hello().encode() + ASKED.encode() + ack(ASKED, ALLOW) + disconnect(2, "timeout").encode()


def shown(data, *options, code=0):
    return said("trace", *options, input=data, code=code)


def test_both_directions_in_one_stream():
    lines = shown(STREAM).splitlines()

    names = [" ".join(line.split()[1:3]) for line in lines]
    assert names == [">> HAPROXY-HELLO", ">> NOTIFY", "<< ACK", ">> HAPROXY-DISCONNECT"]
    assert "txn.allow=true:BOOL" in lines[2]
    assert "status-code=2 (timeout)" in lines[3]
    assert int(lines[1].split()[0]) == len(hello().encode())


def test_credentials_are_hidden_unless_asked_for():
    assert "very-secret" not in shown(STREAM)
    assert "very-secret" in shown(STREAM, "--reveal")


def test_hexadecimal_input():
    assert shown(STREAM.hex(" ").encode(), "--hex") == shown(STREAM)
    assert shown(b"zz", "--hex", code=2)
    assert from_hex(b"0x01 02:03") == b"\x01\x02\x03"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (STREAM[:-3], "are there"),
        (STREAM + b"\x00\x00", "ends inside a length prefix"),
        (b"GET / HTTP/1.1\r\n\r\n", "not SPOP, or out of step"),
        (Frame(FrameType.ACK, 1, 1, b"\x09").encode(), "at byte 11 (payload): unknown action type 9"),
        (Frame(FrameType.NOTIFY, 1, 1, string("iam-check")).encode(), "runs 1 past the end"),
        (b"\x00\x00\x00\x10\x03\x00\x00\x00\x01" + b"\xff" * 11, "more than ten bytes"),
        (Frame(42, 1, 1).encode(), "unknown frame type 42"),
    ],
)
def test_broken_streams_say_where_and_why(data, why):
    assert why in shown(data, code=1)


def test_the_direction_is_checked_where_it_is_known():
    assert "does not come from an agent" in shown(ASKED.encode(), "--from", "agent", code=1)
    assert shown(ASKED.encode(), "--from", "haproxy")


def test_nothing_to_read():
    assert shown(b"", code=2)


@given(st.binary(max_size=400))
def test_any_bytes_give_a_trace(data):
    assert all(0 <= line.offset < len(data) for line in trace_stream(data))
