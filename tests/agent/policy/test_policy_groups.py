"""Groups are shorthand: the same verdicts and the same version as the policy written out."""

import pytest
from policies import deny, grant, role, text

from iamroles_agent.base.errors import ConfigError
from iamroles_agent.policy import Policy, load_text

TABLES = {
    "roles": [role(name) for name in ("reader", "writer", "guest")],
    "backends": [{"name": "one"}, {"name": "two"}],
}
STAFF = [{"name": "staff", "roles": ["reader", "writer"]}]


def orders(whom, name="R1", backend="one"):
    return grant(name, whom, "GET", "/orders", backend)


def load(*rules, **tables):
    return load_text(text(*rules, **TABLES | tables), "json")


def problems(*rules, **tables):
    with pytest.raises(ConfigError) as caught:
        load(*rules, **tables)
    return [(problem.key, problem.message, problem.remedy) for problem in caught.value.problems]


def test_a_group_is_the_same_policy_written_out():
    short = load(orders("staff guest reader"), deny("D1", "staff", "/orders/secret"), groups=STAFF)
    long = load(orders("reader writer guest"), deny("D1", "reader writer", "/orders/secret"))

    assert short == long
    assert Policy(short).version == Policy(long).version


def test_a_conflict_is_found_through_a_group():
    found = problems(orders("staff"), orders("writer", "R2", "two"), groups=STAFF)

    assert [key for key, _, _ in found] == ["grants[1].backend"]
    assert "the role 'writer'" in found[0][1]


def test_every_fault_of_a_group_is_said():
    found = problems(
        orders("stuff"),
        groups=[
            *({"name": "staff", "roles": ["raeder"]}, {"name": "reader", "roles": ["guest"]}),
            *({"name": "nobody", "roles": []}, {"name": "nested", "roles": ["staff"]}),
        ],
    )

    assert {key: remedy for key, _, remedy in found} == {
        "groups[0].roles[0]": "Did you mean 'reader'?",
        "groups[1].name": "Rename one",
        "groups[2].roles": "Name its roles",
        "groups[3].roles[0]": "Name the roles themselves",
        "grants[0].roles[0]": "Did you mean 'staff'?",
    }
