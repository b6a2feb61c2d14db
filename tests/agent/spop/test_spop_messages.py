"""Questions: by name, in any order; and the shortcut by bytes, which must mean what parsing would read."""

import contextlib
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spop_transcript import CHECK_ARGUMENTS, USUAL, argument, check_message, context_message, message

from iamroles_agent.spop.errors import RemoteProtocolError, Status
from iamroles_agent.spop.messages import Context, Inquiry, glance, parse
from iamroles_agent.spop.values import DataType

LACKING = ("authorization",)
NO_TOKEN = {"authorization": None, "missing": ("authorization",)}
NO_COUNT = {"missing": ("authorization-count",)}
PATHS = argument("path", DataType.STRING, b"/a"), argument("path", DataType.STRING, b"/b")


def read(payload):
    """Parse amid other bytes, as in a buffer of several frames."""
    return parse(b"\xff\xff" + payload + b"\xff\xff", 2, 2 + len(payload))


def seen(payload):
    return glance(b"\xff\xff" + payload + b"\xff\xff", 2, 2 + len(payload))


def agreed(look, at, payload):
    """Return what a look finds; None if it can read nothing, and then the parser cannot either."""
    try:
        return look(at)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            read(payload)
        return None


CAPTURED = {
    "HAProxy 3.0.11": (
        (
            "0b69616d2d636f6e74657874030a726571756573742d6964082e37463030303030313a433337325f37463030303030313a"
            "383237395f36423035413439345f303030303a31464434087372632d706f727404f2a8170673747265616d040009"
            "69616d2d636865636b070d617574686f72697a6174696f6e080a4265617265722061626313617574686f72697a6174696f"
            "6e2d636f756e74040104726f6c6500066d6574686f64080347455404686f7374080f3132372e302e302e313a3333343031"
            "047061746808092f6f72646572732f3103737263067f000001"
        ),
        Context("7F000001:C372_7F000001:8279_6B05A494_0000:1FD4", 50034, 0),
        "127.0.0.1:33401",
    ),
    "HAProxy 2.8": (
        (
            "0b69616d2d636f6e74657874020a726571756573742d6964082e37463030303030313a413744435f37463030303030313a"
            "434331425f36423035413439355f303030303a31464635087372632d706f727404fcee1309"
            "69616d2d636865636b070d617574686f72697a6174696f6e080a4265617265722061626313617574686f72697a6174696f"
            "6e2d636f756e74040104726f6c6500066d6574686f64080347455404686f7374080f3132372e302e302e313a3532323531"
            "047061746808092f6f72646572732f3103737263067f000001"
        ),
        Context("7F000001:A7DC_7F000001:CC1B_6B05A495_0000:1FF5", 42972, None),
        "127.0.0.1:52251",
    ),
}
"""Payloads as HAProxy sent them for `iam.spoe.cfg`."""


@pytest.mark.parametrize("version", CAPTURED)
def test_as_haproxy_writes_it(version):
    """The shortcut is worth its trouble only if it fits what really comes."""
    encoded, context, host = CAPTURED[version]
    payload = bytes.fromhex(encoded)
    key = payload[payload.index(b"\x09iam-check") :]
    check = replace(
        USUAL, authorization="Bearer abc", host=host, path="/orders/1", src=IPv4Address("127.0.0.1")
    )

    assert seen(payload) == (context, key)
    assert read(payload) == Inquiry(context, check, key)


class TestParse:
    def test_the_usual(self):
        asked = check_message()

        assert read(context_message() + asked) == Inquiry(Context("r1", 40000, 7), USUAL, asked)

    def test_order_of_messages_and_arguments_is_free(self):
        arguments = [argument(name, *pair) for name, pair in CHECK_ARGUMENTS.items()]
        asked = message("iam-check", *reversed(arguments))

        assert read(asked + context_message()) == Inquiry(Context("r1", 40000, 7), USUAL, asked)

    def test_unknown_messages_and_arguments_are_ignored(self):
        asked = check_message(extra=(DataType.BOOL, True))
        paths = argument("path", DataType.STRING, b"/x"), argument("path", DataType.NULL, None)
        other = message("other", *paths)

        assert read(other + asked + other) == Inquiry(Context(), USUAL, asked)

    @pytest.mark.parametrize(
        ("change", "value", "expected"),
        [
            ("authorization", (DataType.NULL, None), {"authorization": None}),
            ("authorization", (DataType.STRING, b""), {"authorization": ""}),
            ("authorization", (DataType.STRING, b"\xc3\xa9\xff\x00"), {"authorization": "Ã©ÿ\x00"}),
            ("authorization_count", (DataType.UINT64, 2), {"authorization_count": 2}),
            ("role", (DataType.STRING, b"reader"), {"role": "reader"}),
            ("host", (DataType.NULL, None), {"host": None}),
            ("src", (DataType.IPV6, ip_address("::1")), {"src": ip_address("::1")}),
            ("authorization", (DataType.BINARY, b"x"), NO_TOKEN),
            ("authorization_count", (DataType.INT64, -1), {"authorization_count": -1} | NO_COUNT),
            ("authorization_count", (DataType.STRING, b"1"), NO_COUNT),
            ("authorization_count", (DataType.UINT32, 0), {"authorization_count": 0} | NO_COUNT),
            ("method", (DataType.NULL, None), {"method": "", "missing": ("method",)}),
            ("path", (DataType.NULL, None), {"path": "", "missing": ("path",)}),
            ("path", (DataType.BOOL, True), {"path": "", "missing": ("path",)}),
            ("role", (DataType.INT64, 1), {"missing": ("role",)}),
            ("host", (DataType.BOOL, False), {"host": None, "missing": ("host",)}),
            ("src", (DataType.STRING, b"192.0.2.1"), {"src": None, "missing": ("src",)}),
            ("without", "authorization", {"authorization": None, "missing": LACKING}),
            ("without", "authorization-count", {}),
            ("without", "role", {}),
            ("without", "host", {"host": None}),
            ("without", "method", {"method": "", "missing": ("method",)}),
            ("without", "path", {"path": "", "missing": ("path",)}),
            ("without", "src", {"src": None, "missing": ("src",)}),
        ],
    )  # fmt: skip
    def test_values(self, change, value, expected):
        assert read(check_message(**{change: value})).check == replace(USUAL, **expected)

    def test_no_arguments(self):
        inquiry = read(message("iam-check"))

        assert inquiry.check is not None
        assert inquiry.check.missing == ("authorization", "method", "path", "src")

    def test_arguments_without_a_name_are_ignored(self):
        unnamed = argument("", DataType.STRING, b"x"), argument("", DataType.NULL, None)
        assert read(message("iam-context", *unnamed) + check_message()).check == USUAL

    @pytest.mark.parametrize(
        ("payload", "problem"),
        [
            *((nothing, "") for nothing in (b"", message("other"), context_message(), message("IAM-CHECK"))),
            (check_message() + check_message(), "2 iam-check messages in one NOTIFY"),
            (message("iam-check", *PATHS), "iam-check has an argument twice"),
            (context_message() * 2 + check_message(), "2 iam-context messages in one NOTIFY"),
            (
                message("iam-context", *[argument("stream", DataType.INT64, 1)] * 2) + check_message(),
                "iam-context has an argument twice",
            ),
        ],
    )
    def test_nothing_asked_or_ambiguous(self, payload, problem):
        inquiry = read(payload)

        assert (inquiry.check, inquiry.key, inquiry.problem) == (None, b"", problem)

    @pytest.mark.parametrize(
        "payload",
        [
            *(b"\xff", b"\x20iam-check\x00", b"\x09iam-check", message("iam-check", count=1)),
            message("iam-check", argument("path", DataType.STRING, b"/"), count=2),
            *(message("other", b"\x01a\x0a"), message("other", b"\x01a\x08\x7fabc")),
            message("other", argument("a", DataType.STRING, b""), count=0),
        ],
    )
    def test_unreadable(self, payload):
        with pytest.raises(RemoteProtocolError) as caught:
            read(payload)

        assert caught.value.status is Status.INVALID

    @given(st.binary(max_size=200))
    def test_never_crashes(self, payload):
        with contextlib.suppress(RemoteProtocolError):
            read(payload)


REQUEST_ID, PORT = argument("request-id", DataType.STRING, b"r"), argument("src-port", DataType.INT64, 1)
PIECES = [check_message(), context_message(), message("x"), b"\xff", b"\x09iam-check"]


class TestGlance:
    @pytest.mark.parametrize("stream", [None, 0, 7, 0xFFFFFFFF])
    @pytest.mark.parametrize("port", [0, 239, 240, 65535])
    def test_agrees_with_parsing(self, stream, port):
        asked = check_message()
        payload = context_message(b"r" * 239, port, stream) + asked

        inquiry = read(payload)

        assert seen(payload) == (inquiry.context, inquiry.key)

    @pytest.mark.parametrize(
        "payload",
        [
            *(b"", check_message(), check_message() + context_message()),
            *(context_message(b"r" * 240) + check_message(), context_message(src_port=-1) + check_message()),
            context_message(src_port=65536) + check_message(),
            *(context_message(stream=1 << 32) + check_message(), message("iam-context") + check_message()),
            message("iam-context", REQUEST_ID) + check_message(),
            message("iam-context", REQUEST_ID, argument("stream", DataType.INT64, 1), PORT),
            message("iam-context", REQUEST_ID, argument("src-port", DataType.UINT32, 1)),
            context_message()[:-1],
        ],
    )
    def test_leaves_the_unusual_to_parsing(self, payload):
        assert agreed(seen, payload, payload) is None

    @given(
        st.builds(
            context_message,
            st.binary(max_size=12),
            st.integers(0, 65535),
            st.none() | st.integers(0, 1 << 32),
        ),
        st.lists(st.sampled_from(PIECES), max_size=3),
        st.integers(0, 80),
        st.binary(max_size=2),
    )
    def test_law_a_key_that_parsing_vouched_for_means_the_same(self, context_bytes, rest, at, noise):
        """If `glance` finds a key, and it is the bytes of exactly one `iam-check` message, then parsing the
        same payload gives that key and that context, whatever was done to the bytes.
        """
        payload = context_bytes + b"".join(rest)
        payload = payload[:at] + noise + payload[at + len(noise) :] if at < len(payload) else payload
        found = agreed(seen, payload, payload)
        if found is None:
            return
        context, key = found
        vouched = agreed(read, key, payload)
        if vouched is not None and vouched.key == key and vouched.check is not None:
            assert read(payload) == Inquiry(context, vouched.check, key)
