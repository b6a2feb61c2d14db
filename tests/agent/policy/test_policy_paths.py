"""Paths have one reading or none (SPEC.md section 7)."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.policy.paths import canonical, segments


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *(("/", "/"), ("/orders", "/orders"), ("/orders/", "/orders/")),
        *(("/%6frders/%7Eann", "/orders/~ann"), ("/caf%c3%a9", "/caf%C3%A9")),
        *(("/a%20b/100%25", "/a%20b/100%25"), ("/100%25/x", "/100%25/x"), ("/%25zz", "/%25zz")),
        *(("/...", "/..."), ("/.well-known/x", "/.well-known/x"), ("/a..b/c.", "/a..b/c.")),
        ("/a:b@c!$&'()*+,=", "/a:b@c!$&'()*+,="),
    ],
)
def test_canonical(path, expected):
    assert canonical(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "", "orders", "*", "http://x/", "//", "//a", "/a//b", "/a//", "/.", "/..", "/a/./b",
        "/a/../b", "/a/..", "/a/.", "/%2e", "/%2E%2e/a", "/a/%2e%2E", "/.%2e/a", "/a%2fb", "/a%2F",
        "/a%5cb", "/a\\b", "/a;b", "/a%3bb", "/a%00", "/a%0d%0a", "/a%1F", "/a%7f", "/a\x00",
        "/a\x1f", "/a\x7f", "/a\n", "/caf\xe9", "/a%", "/a%2", "/a%zz", "/a%2%65", "/%252e%252e/a",
        "/a%252f", "/a%25%32%66", "/%2525", "/a b", "/a?b", "/a#b", "/a/%2e/", "/\u2024\u2024/a",
        "/a%u002f",
    ],
)  # fmt: skip
def test_ambiguous(path):
    with pytest.raises(Refusal) as caught:
        canonical(path)

    assert caught.value.reason is Reason.PATH_AMBIGUOUS
    assert caught.value.detail


def test_segments_ignore_one_trailing_slash():
    assert segments("/") == ()
    assert segments("/a/b") == segments("/a/b/") == ("a", "b")


_TRICKY = st.lists(
    st.sampled_from(
        ["/", "a", ".", "..", "%2e", "%2F", "%25", "%41", "%", ";", "\\", "\x00", "é", "2f", "~", "?"]
    )
).map("".join)


@given(st.one_of(st.text(), _TRICKY.map(lambda text: f"/{text}"), _TRICKY))
@example("/%25%34%31")
def test_canonical_is_a_fixed_point_and_never_fails_otherwise(path):
    reason = None
    try:
        once = canonical(path)
    except Refusal as refusal:
        reason = refusal.reason
    if reason is not None:
        assert reason is Reason.PATH_AMBIGUOUS
        return

    assert canonical(once) == once
    assert not {"", ".", ".."} & set(segments(once))
    assert not set(";\\?# ") & set(once)
    assert all("\x21" <= char <= "\x7e" for char in once)
