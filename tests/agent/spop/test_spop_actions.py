"""Answers: every variable each time, the verdict last, never too long."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spop_transcript import YES, variables

from iamroles_agent.base.identity import Decision
from iamroles_agent.base.reasons import Reason
from iamroles_agent.spop import actions
from iamroles_agent.spop.actions import Action, VariableScope
from iamroles_agent.spop.errors import LocalProtocolError, RemoteProtocolError
from iamroles_agent.spop.values import DataType

NAMES = [
    *("status", "reason", "error", "role", "principal", "session", "issuer", "rule", "backend", "expires"),
    "allow",
]
LEAST_ROOM = 256 - 5 - 20
"""Bytes for actions in the smallest frame, beside the longest ids."""


def allowed(**changed):
    return actions.encode_verdict(replace(YES, **changed))


def test_bytes():
    encoded = actions.encode_verdict(Decision(allow=False, reason=Reason.NO_CREDENTIALS))

    assert encoded == (
        b"\x01\x03\x02\x06status\x02\xf1\x0a"
        b"\x01\x03\x02\x06reason\x08\x0eno_credentials"
        b"\x02\x02\x02\x05error"
        b"\x02\x02\x02\x04role"
        b"\x02\x02\x02\x09principal"
        b"\x02\x02\x02\x07session"
        b"\x02\x02\x02\x06issuer"
        b"\x02\x02\x02\x04rule"
        b"\x02\x02\x02\x07backend"
        b"\x02\x02\x02\x07expires"
        b"\x01\x03\x02\x05allow\x01"
    )


def test_allow():
    assert variables(allowed()) == {
        "status": 200,
        "role": b"arn:aws:iam::111111111111:role/reader",
        "principal": b"alice",
        "session": b"s-1",
        "issuer": b"corp",
        "rule": b"R1",
        "backend": b"orders",
        "expires": 1800003600,
        "allow": True,
    }


@pytest.mark.parametrize("reason", Reason)
def test_each_refusal_names_every_variable_and_ends_with_the_verdict(reason):
    listed = list(actions.decode(actions.encode_verdict(Decision(allow=False, reason=reason, principal="p"))))

    assert [action.name for action in listed] == NAMES
    assert {action.scope for action in listed} == {VariableScope.TRANSACTION}
    assert listed[-1] == Action(VariableScope.TRANSACTION, "allow", DataType.BOOL, False)
    assert listed[0].value == reason.status


@pytest.mark.parametrize("decision", [Decision(allow=True, reason=Reason.NO_GRANT), Decision(allow=False)])
def test_a_decision_that_contradicts_itself_is_not_sent(decision):
    with pytest.raises(LocalProtocolError):
        actions.encode_verdict(decision)


def test_line_breaks_never_reach_a_header():
    encoded = allowed(principal="a\r\nX-Admin: 1\x00\x7f", session="é\ud800")

    assert variables(encoded)["principal"] == b"a%0D%0AX-Admin: 1%00%7F"
    assert variables(encoded)["session"] == b"\xc3\xa9\\ud800"


class TestFit:
    def test_what_fits_is_left_alone(self):
        encoded = allowed()

        assert actions.shorten(encoded, len(encoded)) is encoded

    def test_tags_go_in_order(self):
        encoded = allowed(session="s" * 5000, principal="p" * 5000)
        once = actions.shorten(encoded, 6000)
        twice = actions.shorten(encoded, 4000)

        assert set(variables(encoded)) - set(variables(once)) == {"session"}
        assert set(variables(once)) - set(variables(twice)) == {"principal"}
        assert [action.name for action in actions.decode(twice)] == NAMES

    @given(
        st.booleans(),
        st.sampled_from(Reason),
        st.integers(LEAST_ROOM, 2000),
        st.none() | st.integers(0, 1 << 62),
        st.lists(st.text(max_size=300), min_size=6, max_size=6),
    )
    def test_law_the_verdict_survives_any_frame_size(self, allow, reason, limit, expires, tags):
        decision = Decision(allow, None if allow else reason, "", *tags, expires)
        encoded = actions.encode_verdict(decision)

        fitting = actions.shorten(encoded, limit)

        assert len(fitting) <= limit
        assert [action.name for action in actions.decode(fitting)] == NAMES
        before, after = variables(encoded), variables(fitting)
        assert after.items() <= before.items()
        assert set(before) - set(after) <= set(actions.TAGS)

    @pytest.mark.parametrize(
        "sent", [actions.LAST_RESORT, b"\x01\x03\x02" + b"x" * 50], ids=["long", "no actions"]
    )
    def test_nothing_is_cut_off_silently_and_what_is_no_action_list_is_this_side_s_fault(self, sent):
        with pytest.raises(LocalProtocolError):
            actions.shorten(sent, 20)


@pytest.mark.parametrize("name", ["", "a b", "ä", "a-b", "a" * 56, "a\n"])
def test_names_that_haproxy_refuses(name):
    with pytest.raises(LocalProtocolError):
        actions.set_var(VariableScope.TRANSACTION, name, DataType.BOOL, True)
    with pytest.raises(LocalProtocolError):
        actions.unset_var(VariableScope.TRANSACTION, name)


def test_longest_name():
    assert len(actions.unset_var(VariableScope.TRANSACTION, "a" * 55)) == 59


@given(st.binary(max_size=60))
def test_decoding_never_crashes(data):
    with contextlib.suppress(RemoteProtocolError):
        list(actions.decode(data))
