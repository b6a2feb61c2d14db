"""The path corpus: its classes against the oracle, and HAProxy's own rules without an agent's help."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from puppet_gate import POLICY, ask, puppet_spec

from iamroles_scenarios.checks.oracle.corpus import careless, tricks
from iamroles_scenarios.checks.oracle.judge import segments


def test_the_corpus_is_large_and_says_nothing_twice():
    counts = Counter(trick.kind for trick in tricks())

    assert counts["refused"] >= 150
    assert counts["served"] >= 40
    assert counts["closed"] >= 15
    assert [path for path, count in Counter(trick.path for trick in tricks()).items() if count > 1] == []


@pytest.mark.parametrize("trick", tricks(), ids=lambda trick: ascii(trick.path))
def test_a_class_is_what_the_oracle_says(trick):
    parts = segments(trick.path.partition("?")[0])

    if trick.kind == "refused":
        assert trick.proxy or parts is None
        return
    assert parts is not None
    assert (parts[:1] == ["orders"]) == (trick.kind == "served")
    if trick.kind == "served":
        assert parts == segments(trick.forwarded)


def test_a_careless_server_falls_for_the_tricks():
    """The reading by which `policy.traversal.backend` judges is careless enough to be worth something."""
    for path in (
        *("/orders/../private", "/orders/%2e%2e/private", "/orders/%252e%252e/private", "//private"),
        *("/orders/..;x=1/private", "/orders\\..\\private", "/orders/..%2fprivate", "/private%00.png"),
        "/private;.css",
    ):
        assert careless(path) == "/private"


@given(st.lists(st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1), max_size=6))
def test_a_careless_server_reads_plain_paths_as_they_are(parts):
    assert careless("/" + "/".join(parts)) == "/" + "/".join(parts)


def test_haproxy_alone_lets_no_trick_pass(stage):
    """The agent here allows everything: what gets through, HAProxy's rules have let through."""
    passed = []
    with stage.world(puppet_spec(), POLICY) as world:
        for trick in tricks():
            status = ask(world, trick.path, host="api.example.com").status
            if (status == 200) == (trick.kind == "refused"):
                passed.append((trick.kind, trick.path, status))

    assert passed == []
