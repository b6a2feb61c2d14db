"""What kind of token a claim makes of another: bound to a key, an event, or the same token as before."""

import asyncio
import json

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws
from sts_support import GOOD, as_xml, credential, playing
from tokens_support import EC_KEY, NOW, ROLE, Clock, authenticator_with, claims, mint, public_jwk
from tokens_support import reason as reason_of

PLAIN_JSON = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text("abc:/#", max_size=6)
JSON = st.recursive(
    PLAIN_JSON,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc#", max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
CONFIRMATIONS = ("jkt", "x5t#S256", "jwk", "jwe", "jku", "kid", "later")
"""Members of `cnf` (RFC 7800, 8705, 9449), and an unknown member."""
LOGOUT = {"http://schemas.openid.net/event/backchannel-logout": {}}
PLAIN = (
    *("may_act", "nonce", "sid", "azp", "auth_time", "acr", "amr", "at_hash", "c_hash", "token_use"),
    *("client_id", "groups", "entitlements", "authorization_details", "txn", "toe", "sub_id", "typ", "email"),
    *("exp_", "Cnf", "CNF", "cnf ", "Events", "confirmation", "event"),
)
"""Claims that change nothing: the token counts as without them."""
AGENT = authenticator_with([public_jwk(EC_KEY, "k1")], Clock())
COGNITO = {"profile": "cognito", "roles_claim": "roles", "client_ids": ["app"]}
ACCESS = {"client_id": "app", "token_use": "access"}


def verdict(payload, agent=AGENT, **header):
    return asyncio.run(reason_of(agent, f"Bearer {mint(payload, **header)}"))


def identity(payload):
    return asyncio.run(AGENT.authenticate(f"Bearer {mint(payload)}"))._replace(credential="", grounds=())


@pytest.mark.parametrize(
    ("cnf", "expected"),
    [
        *(({name: "x"}, "token_bound") for name in CONFIRMATIONS),
        ({"jwk": {"kty": "EC"}}, "token_bound"),
        *((odd, "claim_invalid") for odd in ({}, None, "jkt", ["jkt"], 1, False)),
    ],
)
def test_a_token_that_is_bound_to_a_key_is_no_bearer_token(cnf, expected):
    assert verdict(claims(cnf=cnf)) == expected


@pytest.mark.parametrize(
    ("issuer", "typ", "more"),
    [
        *(({}, ..., {}), ({"profile": "rfc9068"}, "at+jwt", ACCESS), (COGNITO, "at+jwt", ACCESS)),
        ({"types": ["JWT", "secevent+jwt", "logout+jwt"]}, "secevent+jwt", {}),
    ],
)
def test_it_is_refused_whatever_the_profile(issuer, typ, more):
    agent = authenticator_with([public_jwk(EC_KEY, "k1")], Clock(), **issuer)

    assert verdict(claims(**more), agent, typ=typ) == ""
    assert verdict(claims(**more, cnf={"jkt": "x"}), agent, typ=typ) == "token_bound"
    assert verdict(claims(**more, events=LOGOUT), agent, typ=typ) == "type_not_allowed"


@given(st.dictionaries(st.sampled_from(CONFIRMATIONS) | st.text(max_size=6), JSON, max_size=3) | JSON)
def test_no_cnf_is_accepted(cnf):
    assert verdict(claims(cnf=cnf)) in ("token_bound", "claim_invalid")


@given(JSON | st.just(LOGOUT), st.sampled_from([..., "JWT", "at+jwt", "application/AT+JWT"]))
def test_no_event_is_accepted(events, typ):
    assert verdict(claims(events=events), typ=typ) == "type_not_allowed"


def test_what_is_wrong_before_comes_first():
    """The order of SPEC.md 4.2: events with the type, cnf with the claims behind the audience."""
    assert verdict(claims(events=LOGOUT, exp=NOW - 1)) == "type_not_allowed"
    assert verdict(claims(cnf={"jkt": "x"}, exp=NOW - 1)) == "token_expired"
    assert verdict(claims(cnf={"jkt": "x"}, aud="other")) == "audience_mismatch"
    assert verdict(claims(cnf={"jkt": "x"}, roles=[])) == "token_bound"


@given(st.dictionaries(st.sampled_from(PLAIN), JSON, max_size=4))
def test_every_other_claim_changes_nothing(more):
    assert identity(claims(**more)) == identity(claims())


@given(st.permutations([*claims(), "cnf", "events", "nonce"]), st.sets(st.sampled_from(["cnf", "events"])))
def test_the_order_of_the_claims_changes_nothing(order, there):
    values = claims(cnf={"jkt": "x"}, events=LOGOUT, nonce="n")
    expected = "type_not_allowed" if "events" in there else "token_bound" if there else ""
    left_out = {"cnf", "events"} - there

    assert verdict({name: values[name] for name in order if name not in left_out}) == expected


@mock_aws
def arns():
    """Return what GetCallerIdentity names: a session, and one whose session policy permits nothing."""
    nothing = {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "*", "Resource": "*"}]}
    region, found = "eu-west-1", []
    for policy in ({}, {"Policy": json.dumps(nothing)}):
        sts = boto3.Session("x", "x", region_name=region).client("sts")
        keys = sts.assume_role(RoleArn=ROLE, RoleSessionName="me", **policy)["Credentials"]
        session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], region)
        found.append(session.client("sts").get_caller_identity()["Arn"])
    return found


async def test_a_session_policy_narrows_nothing_at_the_gate():
    """As docs/tokens.md says: STS names the role, and neither a session policy nor a scope-down policy."""
    found = []
    for arn in arns():
        with playing() as (server, agent):
            server.replies["/"] = lambda _, arn=arn: (200, {"Content-Type": "text/xml"}, as_xml(arn))
            found.append(await agent.authenticate(credential(GOOD)))

    assert found[0]._replace(grounds=()) == found[1]._replace(grounds=())  # they hold the URL of the mock
    assert str(found[0].roles[0]) == ROLE
