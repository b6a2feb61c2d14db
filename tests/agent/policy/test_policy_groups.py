"""Groups are shorthand: the same verdicts and the same version as the policy written out."""

import json

import pytest

from iamroles_agent.base.errors import ConfigError
from iamroles_agent.policy import Policy, load_text

BASE = {
    "version": 1,
    "issuers": [
        {"name": "corp", "issuer": "https://idp.example.com", "audiences": ["a"], "algorithms": ["ES256"]}
    ],
    "roles": [
        {"name": name, "arn": f"arn:aws:iam::111111111111:role/{name}"}
        for name in ("reader", "writer", "guest")
    ],
    "backends": [{"name": "one"}, {"name": "two"}],
}
GRANT = {"id": "R1", "methods": ["GET"], "path": "/orders", "backend": "one"}


def load(**changes):
    return load_text(json.dumps(BASE | changes), "json")


def problems(**changes):
    with pytest.raises(ConfigError) as caught:
        load(**changes)
    return [(problem.key, problem.message, problem.remedy) for problem in caught.value.problems]


def test_a_group_is_the_same_policy_written_out():
    short = load(
        groups=[{"name": "staff", "roles": ["reader", "writer"]}],
        grants=[GRANT | {"roles": ["staff", "guest", "reader"]}],
        denies=[{"id": "D1", "roles": ["staff"], "path": "/orders/secret"}],
    )
    long = load(
        grants=[GRANT | {"roles": ["reader", "writer", "guest"]}],
        denies=[{"id": "D1", "roles": ["reader", "writer"], "path": "/orders/secret"}],
    )

    assert short == long
    assert Policy(short).version == Policy(long).version


def test_a_conflict_is_found_through_a_group():
    found = problems(
        groups=[{"name": "staff", "roles": ["reader", "writer"]}],
        grants=[GRANT | {"roles": ["staff"]}, GRANT | {"id": "R2", "roles": ["writer"], "backend": "two"}],
    )

    assert [key for key, _, _ in found] == ["grants[1].backend"]
    assert "the role 'writer'" in found[0][1]


def test_every_fault_of_a_group_is_said():
    found = problems(
        groups=[
            {"name": "staff", "roles": ["raeder"]},
            {"name": "reader", "roles": ["guest"]},
            {"name": "nobody", "roles": []},
            {"name": "nested", "roles": ["staff"]},
        ],
        grants=[GRANT | {"roles": ["stuff"]}],
    )

    assert {key: remedy for key, _, remedy in found} == {
        "groups[0].roles[0]": "Did you mean 'reader'?",
        "groups[1].name": "Rename one",
        "groups[2].roles": "Name its roles",
        "groups[3].roles[0]": "Name the roles themselves",
        "grants[0].roles[0]": "Did you mean 'staff'?",
    }
