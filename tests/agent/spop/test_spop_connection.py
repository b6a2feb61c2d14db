"""Conversations, as transcripts: `>>` HAProxy (the calls), `<<` the agent, `--` an event."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spop_transcript import (
    ALLOW,
    ALLOWED,
    ASKED,
    DENIED,
    DENY,
    GREETED,
    KNOWN,
    Talk,
    argument,
    check_message,
    context_message,
    cut,
    disconnect,
    frame,
    greeted,
    hello,
    message,
    notify,
)

from iamroles_agent.spop.connection import Connection, State
from iamroles_agent.spop.errors import LocalProtocolError, Status
from iamroles_agent.spop.frames import ABORT, FIN, FrameType
from iamroles_agent.spop.messages import Context
from iamroles_agent.spop.values import DataType

FRAGMENTED = "fragmentation was not negotiated"


def ended(status, message, said=None):
    """The lines of a connection that the agent ends because of the peer."""
    return [
        f"-- closed {status} by fault: {message}",
        f"<< AGENT-DISCONNECT 0/0 FIN status-code={status} message={(said or message).encode()!r}",
    ]


class TestHandshake:
    def test_usual(self):
        assert Talk().send(hello(engine_id=(DataType.STRING, b"e1"))).lines == [
            "-- hello 16380 pipelining e1",
            GREETED[1],
        ]

    def test_bytes(self):
        connection = Connection(lambda key, context: None, max_frame_size=16380)
        connection.receive_data(hello())

        assert connection.data_to_send() == (
            b"\x00\x00\x00\x40\x65\x00\x00\x00\x01\x00\x00"
            b"\x07version\x08\x032.0"
            b"\x0emax-frame-size\x03\xfc\xf0\x06"
            b"\x0ccapabilities\x08\x0apipelining"
        )

    @pytest.mark.parametrize(
        "changed",
        [
            {"supported_versions": (DataType.STRING, b" 1.0 ,  2.0 ")},
            {"supported_versions": (DataType.STRING, b"2.7,3.1")},
            {"engine_id": (DataType.NULL, None)},
            {"healthcheck": (DataType.BOOL, False)},
            {"capabilities": (DataType.STRING, b"teleport , async, pipelining")},
            {"max_frame_size": (DataType.UINT64, (1 << 64) - 1)},
            {
                f"unknown{kind}": (DataType(kind), value)
                for kind, value in enumerate([None, True, -1, 1, -1, 1])
            }
            | {"unknown_s": (DataType.STRING, b"x"), "unknown_b": (DataType.BINARY, b"\x00")},
        ],
    )
    def test_variants_make_no_difference(self, changed):
        assert Talk().send(hello(**changed)).lines == GREETED

    def test_order_of_keys_makes_no_difference(self):
        pairs = [
            argument("capabilities", DataType.STRING, b"pipelining,async"),
            argument("max-frame-size", DataType.UINT32, 16380),
            argument("supported-versions", DataType.STRING, b"2.0"),
        ]

        assert Talk().send(frame(FrameType.HAPROXY_HELLO, b"".join(pairs))).lines == GREETED

    @pytest.mark.parametrize("offered", [b"", b"async", b"pipelining"])
    def test_without_both_of_them_nothing_is_announced(self, offered):
        assert Talk().send(hello(capabilities=(DataType.STRING, offered))).lines == [
            "-- hello 16380 one by one",
            "<< AGENT-HELLO 0/0 FIN version=b'2.0' max-frame-size=16380 capabilities=b''",
        ]

    @pytest.mark.parametrize(
        ("theirs", "ours", "agreed"), [(256, 16380, 256), (16380, 1000, 1000), (99999, 300, 300)]
    )
    def test_the_smaller_frame_size_holds(self, theirs, ours, agreed):
        talk = Talk(max_frame_size=ours).send(hello(max_frame_size=(DataType.UINT32, theirs)))

        assert f"max-frame-size={agreed} " in talk.lines[-1]
        assert talk.connection.max_frame_size == agreed

    def test_health_check(self):
        talk = Talk().send(hello(healthcheck=(DataType.BOOL, True)), notify())

        assert talk.lines == ["-- closed 0: health check", GREETED[1]]
        assert talk.connection.state is State.CLOSED

    @pytest.mark.parametrize(
        ("changed", "status", "why"),
        [
            ({"without": "supported-versions"}, 5, "HELLO has no supported-versions"),
            ({"supported_versions": (DataType.NULL, None)}, 5, "HELLO has no supported-versions"),
            ({"without": "max-frame-size"}, 6, "HELLO has no max-frame-size"),
            ({"without": "capabilities"}, 7, "HELLO has no capabilities"),
            ({"supported_versions": (DataType.STRING, b"1.0, 3.0,20.0")}, 8, "this agent speaks SPOP 2.0"),
            ({"supported_versions": (DataType.STRING, b"")}, 8, "this agent speaks SPOP 2.0"),
            ({"max_frame_size": (DataType.UINT32, 255)}, 9, "max-frame-size is 255, the least is 256"),
            ({"max_frame_size": (DataType.INT64, -1)}, 9, "max-frame-size is -1, the least is 256"),
            ({"max_frame_size": (DataType.STRING, b"16380")}, 4, "max-frame-size is not an integer"),
            ({"supported_versions": (DataType.INT32, 2)}, 4, "supported-versions is not a string"),
            ({"flags": 0}, 10, FRAGMENTED),
        ],
    )
    def test_refused(self, changed, status, why):
        assert Talk().send(hello(**changed)).lines == ended(status, why)


FIRST = [FrameType.NOTIFY, FrameType.AGENT_HELLO, FrameType.AGENT_DISCONNECT, FrameType.ACK]


@pytest.mark.parametrize(
    ("talk", "sent", "status", "why"),
    [
        *((Talk, frame(kind), 4, f"{kind.name} is not expected while OPEN") for kind in FIRST),
        (Talk, b"GET / HTTP/1.1\r\n\r\n", 3, "a frame of 1195725856 bytes exceeds the maximum of 16380"),
        (greeted, hello(), 4, "HAPROXY_HELLO is not expected while READY"),
        *((greeted, notify(flags=flags), 10, FRAGMENTED) for flags in (0, ABORT)),
        *(
            (greeted, frame(FrameType.UNSET, b"x", ids=(1, 1), flags=flags), 10, FRAGMENTED)
            for flags in (0, FIN, FIN | ABORT)
        ),
    ],
)
def test_what_may_not_come_ends_the_connection(talk, sent, status, why):
    assert talk().send(sent).lines == ended(status, why)


class TestNotify:
    def test_a_question_and_its_answer(self):
        talk = greeted().send(notify(ids=(0, 1))).answer(0, ALLOW)

        assert talk.lines == ["-- check r1 GET /orders", f"<< ACK 0/1 FIN {ALLOWED}"]
        assert len(talk.recalls) == 1

    def test_a_question_remembered_is_answered_at_once(self):
        talk = greeted(KNOWN).send(
            notify(ids=(1, 1)),
            notify(context_message(b"r2", 40001, None) + ASKED, ids=(70000, 2)),
        )

        assert talk.lines == [f"<< ACK 1/1 FIN {ALLOWED}", f"<< ACK 70000/2 FIN {ALLOWED}"]
        assert talk.recalls == [(ASKED, Context("r1", 40000, 7)), (ASKED, Context("r2", 40001, None))]
        assert (talk.connection.notifies, talk.connection.recalled) == (2, 2)

    @pytest.mark.parametrize(
        ("payload", "flags", "line"),
        [
            (ASKED + message("other") + context_message(), FIN, f"<< ACK 1/1 FIN {ALLOWED}"),
            (context_message() + ASKED * 2, FIN, "-- unusable r1: 2 iam-check messages in one NOTIFY"),
            (context_message() + ASKED * 3, FIN, "-- unusable r1: 3 iam-check messages in one NOTIFY"),
            (context_message() + ASKED, FIN | ABORT, "<< ACK 1/1 FIN (nothing)"),
            (context_message() + ASKED, FIN | 0xFFFFFFFC, f"<< ACK 1/1 FIN {ALLOWED}"),
        ],
        ids=["no shortcut", "ambiguous", "more ambiguous", "aborted", "reserved flags are ignored"],
    )
    def test_a_remembered_question_otherwise(self, payload, flags, line):
        assert greeted(KNOWN).send(notify(payload, flags=flags)).lines == [line]

    def test_pipelined_answers_may_overtake(self):
        talk = greeted(KNOWN).send(
            notify(context_message() + check_message(path=(DataType.STRING, b"/slow")), ids=(1, 1)),
            notify(ids=(3, 1)),
            notify(ids=(5, 1), payload=context_message() + check_message(path=(DataType.STRING, b"/new"))),
        )
        talk.answer(1, DENY).answer(0, ALLOW)

        assert talk.lines == [
            *("-- check r1 GET /slow", "-- check r1 GET /new", f"<< ACK 3/1 FIN {ALLOWED}"),
            *(f"<< ACK 5/1 FIN {DENIED}", f"<< ACK 1/1 FIN {ALLOWED}"),
        ]

    def test_the_same_ids_twice(self):
        talk = greeted().send(notify(ids=(4, 2)), notify(ids=(4, 2))).answer(0, ALLOW).answer(1, DENY)

        assert talk.lines[2:] == [f"<< ACK 4/2 FIN {ALLOWED}", f"<< ACK 4/2 FIN {DENIED}"]

    @pytest.mark.parametrize("ids", [(0, 0), (239, 240), (2**31 - 1, 2**31 - 1), (2**64 - 1, 2**64 - 1)])
    def test_ids_come_back_as_they_were(self, ids):
        assert greeted().send(notify(b"", ids=ids)).lines == [f"<< ACK {ids[0]}/{ids[1]} FIN (nothing)"]

    @pytest.mark.parametrize("payload", [b"", message("other"), context_message(), message("other") * 2])
    def test_nothing_asked_nothing_answered(self, payload):
        assert greeted().send(notify(payload)).lines == ["<< ACK 1/1 FIN (nothing)"]

    @pytest.mark.parametrize(
        "payload", [b"\xff", message("x", count=3), context_message() + b"\x09iam-check\x01"]
    )
    def test_unreadable(self, payload):
        talk = greeted().send(notify(ids=(1, 1)), notify(payload, ids=(3, 1)), notify(ids=(5, 1)))

        assert [line.split(":")[0] for line in talk.lines] == [
            "-- check r1 GET /orders",
            "-- closed 4 by fault",
            talk.lines[-1].split(":")[0],
        ]
        assert talk.lines[-1].startswith("<< AGENT-DISCONNECT 0/0 FIN status-code=4")

    def test_what_was_answered_before_a_broken_frame_is_sent(self):
        talk = greeted(KNOWN).send(notify(), b"\x00\x00\x00\x00")

        assert talk.lines[1:] == [
            f"<< ACK 1/1 FIN {ALLOWED}",
            "<< AGENT-DISCONNECT 0/0 FIN status-code=4 message=b'a frame of 0 bytes is too short'",
        ]


class TestFrameSize:
    def test_binds_haproxy(self):
        talk = Talk().send(hello(max_frame_size=(DataType.UINT32, 256)))
        talk.lines.clear()

        talk.send((257).to_bytes(4, "big"))

        assert talk.lines == ended(3, "a frame of 257 bytes exceeds the maximum of 256")

    @pytest.mark.parametrize("remembered", [True, False])
    def test_binds_the_agent_which_drops_tags(self, remembered):
        long = ALLOW.replace(b"\x07backend\x08\x01b", b"\x07backend\x08\xf0\x0e" + b"b" * 464)
        talk = Talk({ASKED: long} if remembered else {})
        talk.send(hello(max_frame_size=(DataType.UINT32, 256)))
        talk.send(notify())
        if not remembered:
            talk.answer(0, long)

        assert talk.lines[-1:] == ["<< ACK 1/1 FIN status=200 allow=True"]

    def test_a_remembered_answer_that_cannot_be_sent_is_not_swallowed(self):
        talk = greeted({ASKED: b"\x01\x03\x02" + b"x" * 20000}).send(notify())

        assert talk.lines == ["-- unusable r1: these actions cannot be read back: not an action"]


class TestEnd:
    @pytest.mark.parametrize("status", [0, 1, 2, 99])
    def test_haproxy_disconnects(self, status):
        talk = greeted().send(disconnect(status), notify())

        assert talk.lines == [
            f"-- closed {status}: bye",
            "<< AGENT-DISCONNECT 0/0 FIN status-code=0 message=b'goodbye'",
        ]

    @pytest.mark.parametrize("payload", [b"", argument("x", DataType.NULL, None), b"\xff", b"\x00\x0f"])
    def test_haproxy_disconnects_without_saying_why(self, payload):
        talk = greeted().send(frame(FrameType.HAPROXY_DISCONNECT, payload))

        assert talk.lines[0] == "-- closed 0: HAProxy disconnected"

    def test_before_hello(self):
        assert Talk().send(disconnect(2)).lines[0] == "-- closed 2: bye"

    def test_the_agent_disconnects(self):
        talk = greeted()
        talk.connection.disconnect(Status.NORMAL, "é" * 300)
        sent = talk.connection.data_to_send()
        talk.connection.disconnect(Status.NORMAL, "again")

        assert [raw.type for raw in cut(sent)] == [FrameType.AGENT_DISCONNECT]
        assert b"\xf0" not in sent[:20]
        assert sent.endswith(b"?" * 255)
        assert talk.connection.data_to_send() == b""
        with pytest.raises(LocalProtocolError):
            talk.connection.acknowledge(b"\x01\x01", ALLOW)

    def test_nothing_counts_after_the_end(self):
        talk = greeted().send(disconnect())
        talk.lines.clear()

        assert talk.send(hello(), notify(), b"\xff" * 50).lines == []

    @pytest.mark.parametrize("kind", [4, 50, 100, 104, 255])
    def test_unknown_types_are_skipped(self, kind):
        talk = greeted().send(frame(kind, b"\xff", flags=0), notify(b""))
        assert talk.lines == ["<< ACK 1/1 FIN (nothing)"]


STREAM = st.lists(
    st.sampled_from(
        [
            notify(ids=(0, 1)),
            notify(context_message(b"known") + check_message(host=(DataType.NULL, None)), ids=(900, 1)),
            *(notify(b"", ids=(3, 3)), notify(check_message() * 2), notify(flags=FIN | ABORT)),
            *(frame(77, b"skip"), disconnect(1), hello()),
            *(b"\x00\x00\x00\x08\x03\x00\x00\x00\x01\x00\x00\x40", b"\xff\xff\xff\xff"),
        ]
    ),
    max_size=8,
)


@given(STREAM, st.data())
def test_law_however_the_stream_is_cut(pieces, data):
    """Any split of the bytes gives the same conversation, but for when its lines come."""
    stream = hello() + b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    memory = {check_message(host=(DataType.NULL, None)): ALLOW}

    whole, split = Talk(memory).send(stream), Talk(memory)
    for first, last in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        split.send(stream[first:last])

    for mark in ("--", "<<"):
        assert [line for line in split.lines if line[:2] == mark] == [
            line for line in whole.lines if line[:2] == mark
        ]


@given(st.booleans(), st.lists(st.binary(max_size=60), max_size=5))
def test_law_nothing_crashes_it(ready, reads):
    talk = greeted() if ready else Talk()
    for read in reads:
        talk.send(read)


@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 255))
def test_law_no_changed_byte_crashes_it(at, value, other):
    sent = bytearray(hello() + notify() + notify(ids=(300, 2)))
    sent[at % len(sent)] = value
    sent[(at * 7) % len(sent)] = other
    Talk(KNOWN).send(bytes(sent))
