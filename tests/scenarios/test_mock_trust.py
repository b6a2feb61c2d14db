"""Trust policies: explicit deny over allow over nothing, and doubt never opens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iamroles_scenarios.mock import trust

ROOT = "arn:aws:iam::111111111111:root"
CALLER = ["arn:aws:iam::111111111111:user/bob", ROOT]


def statement(effect="Allow", **more):
    return {"Effect": effect, "Principal": {"AWS": ROOT}, "Action": "sts:AssumeRole", **more}


def allowed(*statements, **context):
    full = {"sts:ExternalId": ["p-7"], **context}
    return trust.allows({"Statement": list(statements)}, "sts:AssumeRole", CALLER, full)


@pytest.mark.parametrize(
    "more",
    [
        *({}, {"Principal": "*"}, {"Principal": {"AWS": "*"}}, {"Principal": {"AWS": "111111111111"}}),
        *({"Principal": {"AWS": ["arn:aws:iam::999999999999:root", CALLER[0]]}}, {"Action": "sts:*"}),
        {"Action": ["sts:TagSession", "STS:assumerole"]},
        {"Condition": {"StringEquals": {"sts:externalid": ["other", "p-7"]}}},
        {"Condition": {"StringLike": {"sts:ExternalId": "p-*"}}},
        *({"Condition": {"StringNotEquals": {"sts:ExternalId": "x"}}}, {"Sid": "Named"}),
    ],
    ids=str,
)
def test_allowed(more):
    assert allowed(statement(**more))
    assert not allowed(statement(**more), statement("Deny", **more))


@pytest.mark.parametrize(
    "more",
    [
        {"Principal": {"AWS": "arn:aws:iam::222222222222:root"}},
        {"Principal": {"Service": "ec2.amazonaws.com"}},
        {"Principal": {"Federated": "arn:aws:iam::111111111111:oidc-provider/idp.test"}},
        *({"Principal": None}, {"Action": "sts:AssumeRoleWithWebIdentity"}),
        {"Condition": {"StringEquals": {"sts:ExternalId": "p-8"}}},
        {"Condition": {"StringEquals": {"sts:ExternalId": "p-7", "sts:RoleSessionName": "x"}}},
        {"Condition": {"StringNotLike": {"sts:ExternalId": "p-*"}}},
        *({"Condition": {"NumericEquals": {"sts:ExternalId": "7"}}}, {"NotAction": "sts:TagSession"}),
        *({"NotPrincipal": {"AWS": "arn:aws:iam::999999999999:root"}}, {"Effect": "allow"}),
    ],
    ids=str,
)
def test_not_allowed(more):
    assert not allowed(statement() | more)


@pytest.mark.parametrize(
    "doubtful",
    [{"Condition": {"NumericEquals": {"sts:ExternalId": "7"}}}, {"NotPrincipal": {"AWS": "x"}}],
    ids=str,
)
def test_a_deny_in_doubt_denies(doubtful):
    assert not allowed(statement(), statement("Deny", **doubtful))


_STATEMENTS = st.lists(
    st.builds(
        statement,
        st.sampled_from(["Allow", "Deny"]),
        Principal=st.sampled_from(["*", {"AWS": ROOT}, {"AWS": "222222222222"}]),
        Condition=st.sampled_from([{}, {"StringEquals": {"sts:ExternalId": "p-7"}}, {"Null": {"a": "b"}}]),
    ),
    max_size=5,
)


@given(_STATEMENTS, st.randoms())
def test_order_never_matters(statements, random):
    shuffled = list(statements)
    random.shuffle(shuffled)

    assert allowed(*statements) == allowed(*shuffled)


@given(_STATEMENTS)
def test_a_deny_never_opens(statements):
    assert not allowed(*statements, statement("Deny", Principal="*"))
    assert not allowed(*[each for each in statements if each["Effect"] == "Deny"])
