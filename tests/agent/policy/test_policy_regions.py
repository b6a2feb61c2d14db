"""Regions meet exactly where brute force finds a request in both."""

import policy_worlds as worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from iamroles_agent.base.config import Deny
from iamroles_agent.policy.regions import Region
from iamroles_agent.policy.witness import witness_in_both

RULES = st.fixed_dictionaries({"id": st.just("d"), "roles": st.just(["*"]), **worlds.regions(narrow=False)})


@settings(max_examples=150, deadline=None)
@given(RULES.map(Deny.model_validate), RULES.map(Deny.model_validate))
def test_meets_agrees_with_brute_force_and_has_a_witness(one, two):
    expected = any(
        worlds.matches(one, request, deny=False) and worlds.matches(two, request, deny=False)
        for request in worlds.REQUESTS
    )

    a, b = Region.from_rule(one), Region.from_rule(two)
    assert a.meets(b) is b.meets(a) is expected
    if expected:
        witness = witness_in_both(a, b)
        assert worlds.matches(one, witness, deny=False)
        assert worlds.matches(two, witness, deny=False)


def test_prefixes_are_whole_segments():
    region = Region.from_rule(Deny(id="d", roles=["*"], path="/orders"))

    found = [region.has_path(path) for path in ("/orders", "/orders/1", "/ordersx", "/")]
    assert found == [True, True, False, False]


def test_hosts_meet_from_either_side():
    name, wide, other = (
        Region.from_rule(Deny(id="d", roles=["*"], path="/", hosts=[host]))
        for host in ("a.x.test", "*.x.test", "x.test")
    )

    assert name.meets(wide)
    assert wide.meets(name)
    assert not other.meets(wide)
    assert not wide.meets(other)
