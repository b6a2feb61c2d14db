"""Claims (JWT-EXP to JWT-AT, OUTBOUND), with exact boundaries on an injected clock."""

import asyncio

import pytest
import tokens_support
from hypothesis import given
from hypothesis import strategies as st
from tokens_support import ACCOUNT, AUDIENCE, NOW, ROLE, authenticator_with, claims, issuer, mint, public_jwk
from tokens_support import reason as reason_of

from iamroles_agent.base.config import Config, Limits
from iamroles_agent.base.identity import Identity, RoleArn
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.tokens import Authenticator
from iamroles_agent.tokens.claims import AWS_CLAIMS, ClaimRules
from iamroles_agent.tokens.grounds import ground
from iamroles_agent.tokens.jws import Header

HEADER = Header("ES256", "k1", "jwt")


def judge(payload, now=NOW, limits=None, **changes):
    return ClaimRules(issuer(**changes), limits or Limits()).identity(payload, HEADER, now, "sha256:x")


def reason(payload, now=NOW, limits=None, **changes):
    try:
        judge(payload, now, limits, **changes)
    except Refusal as refusal:
        return str(refusal.reason)
    return ""


def test_identity():
    identity = judge(claims(scope="a b a", pref=ROLE), scope_claim="scope", preferred_role_claim="pref")

    assert identity == Identity(
        issuer="corp",
        principal="alice",
        session="id-1",
        roles=(RoleArn("aws", ACCOUNT, "Reader"),),
        not_after=NOW + 300,
        issued_at=NOW - 10,
        preferred=RoleArn("aws", ACCOUNT, "Reader"),
        scopes=frozenset({"a", "b"}),
        credential="sha256:x",
        key_id="k1",
        grounds=(
            *(ground("iss", issuer().issuer), ground("alg", "ES256"), ground("aud", claims()["aud"])),
            *(ground("typ", "jwt"), identity.grounds[4], "life:310"),
        ),
    )


@pytest.mark.parametrize(("configured", "leeway"), [("0s", 0), ("500ms", 0), ("5500ms", 5), ("60s", 60)])
def test_exact_end(configured, leeway):
    payload = claims(exp=NOW, iat=NOW - 100)

    assert judge(payload, NOW + leeway - 0.001, leeway=configured).not_after == NOW + leeway
    assert reason(payload, NOW + leeway, leeway=configured) == "token_expired"


@pytest.mark.parametrize("name", ["iat", "nbf"])
def test_exact_beginning(name):
    assert reason(claims(**{name: NOW}), NOW) == ""
    assert reason(claims(**{name: NOW}), NOW - 0.001) == "token_not_yet_valid"
    assert reason(claims(**{name: NOW + 5}), NOW, leeway="5s") == ""
    assert reason(claims(**{name: NOW + 6}), NOW, leeway="5s") == "token_not_yet_valid"


def test_exact_lifetime():
    assert reason(claims(iat=NOW, exp=NOW + 3600)) == ""
    assert reason(claims(iat=NOW, exp=NOW + 3601)) == "token_lifetime"
    assert reason(claims(iat=..., exp=NOW + 3600)) == ""
    assert reason(claims(iat=..., exp=NOW + 3601)) == "token_lifetime"
    assert reason(claims(iat=NOW - 3000, exp=NOW + 601)) == "token_lifetime"
    limits = Limits.model_validate({"max_lifetime": "60s"})
    assert reason(claims(iat=NOW, exp=NOW + 61), limits=limits) == "token_lifetime"
    assert reason(claims(iat=NOW, exp=NOW + 315_360_000)) == "token_lifetime"


BAD_TIMES = ["1800000300", True, False, None, 1.8e9, float(NOW + 60), -1, 2**53 + 1, 10**30, [NOW], {}]
BLANKS = [" alice", "alice ", " ", "alice\u00a0"]
"""P7: ` alice` reaches backends that trim their headers as `alice`."""
INVALID = [
    *((name, value) for name in ("exp", "iat", "nbf") for value in BAD_TIMES),
    ("exp", ...),
    # A principal and a session must be fit for a header.
    *(("sub", value) for value in (..., None, 7, "", "a\r\nX-Role: admin", "a\0b", "x" * 513, ["a"], "\x7f")),
    *(("jti", value) for value in (7, "", "a\nb", {})),
    *((name, value) for name in ("sub", "jti") for value in BLANKS),
    *(("scope", value) for value in (1, {"a": 1}, ["a", 1], True)),
]


@pytest.mark.parametrize(("name", "value"), INVALID, ids=str)
def test_a_claim_that_cannot_be_used_is_invalid(name, value):
    assert reason(claims(**{name: value}), scope_claim="scope") == "claim_invalid"


@pytest.mark.parametrize("name", ["sub", "jti"])
def test_a_tag_may_hold_an_inner_blank(name):
    assert reason(claims(**{name: "alice smith"})) == ""


@pytest.mark.parametrize(
    ("aud", "expected"),
    [
        (AUDIENCE, ""), (["x", AUDIENCE], ""), ("Orders", "audience_mismatch"),
        (AUDIENCE + "/", "audience_mismatch"),
        ([], "audience_mismatch"), ([AUDIENCE, 1], "audience_mismatch"), (None, "audience_mismatch"),
        (..., "audience_mismatch"), ({AUDIENCE: 1}, "audience_mismatch"), ([[AUDIENCE]], "audience_mismatch"),
    ],
    ids=str,
)  # fmt: skip
def test_audience(aud, expected):
    assert reason(claims(aud=aud)) == expected


def test_client_id_stands_for_a_missing_audience_only():
    both = {"client_ids": ["app"]}

    assert reason(claims(aud=..., client_id="app"), **both) == ""
    assert reason(claims(aud=..., client_id="other"), **both) == "audience_mismatch"
    assert reason(claims(aud=..., client_id=["app"]), **both) == "audience_mismatch"
    assert reason(claims(aud="other", client_id="app"), **both) == "audience_mismatch"
    assert reason(claims(aud=None, client_id="app"), **both) == "audience_mismatch"
    assert reason(claims(aud=..., client_id="app")) == "audience_mismatch"
    assert reason(claims(aud=..., client_id="app"), profile="rfc9068", **both) == "audience_mismatch"


def test_each_audience_of_ours_is_kept_for_open_streams():
    names = [f"edge-{number}" for number in range(12)]
    found = judge(claims(aud=["other", *names]), audiences=names).grounds

    assert {ground("aud", name) for name in ("other", *names)} <= set(found)


def test_an_issuer_without_audiences_accepts_nothing():
    assert reason(claims(), audiences=[]) == "audience_mismatch"
    assert reason(claims(aud=...), audiences=[]) == "audience_mismatch"


def test_cognito_tells_access_from_id_tokens():
    access = claims(aud=..., token_use="access", client_id="app", roles=..., **{"cognito:roles": [ROLE]})
    id_token = claims(token_use="id", roles=..., **{"cognito:roles": [ROLE], "cognito:preferred_role": ROLE})
    accepts_access = {"profile": "cognito", "client_ids": ["app"], "audiences": []}
    accepts_id = {"profile": "cognito"}

    assert reason(access, **accepts_access) == ""
    assert reason(id_token, **accepts_access) == "type_not_allowed"
    assert judge(id_token, **accepts_id).preferred == RoleArn("aws", ACCOUNT, "Reader")
    assert reason(access, **accepts_id) == "type_not_allowed"
    assert reason(claims(), **accepts_id) == "type_not_allowed"
    assert reason(id_token | {"aud": "x"}, **accepts_id) == "audience_mismatch"
    assert reason(access | {"client_id": "x"}, **accepts_access) == "audience_mismatch"


def test_rfc9068_required_claims():
    good = claims(client_id="app")

    assert reason(good, profile="rfc9068") == ""
    for name in ("iat", "client_id", "jti", "exp"):
        assert reason({k: v for k, v in good.items() if k != name}, profile="rfc9068") == "claim_invalid"
    assert reason({k: v for k, v in good.items() if k != "sub"}, profile="rfc9068") == "claim_invalid"


@pytest.mark.parametrize(
    ("typ", "changes", "expected"),
    [
        ("at+jwt", {"profile": "rfc9068"}, ""), ("application/AT+JWT", {"profile": "rfc9068"}, ""),
        ("JWT", {"profile": "rfc9068"}, "type_not_allowed"),
        (..., {"profile": "rfc9068"}, "type_not_allowed"),
        ("jwt", {}, ""), ("logout+jwt", {}, "type_not_allowed"), ("secevent+jwt", {}, "type_not_allowed"),
        ("JWT", {"types": ["at+jwt"]}, "type_not_allowed"), ("at+jwt", {"types": ["application/at+jwt"]}, ""),
        ("KIOSK", {"types": ["kiosk"]}, ""), ("kiosk", {"types": ["\u212aiosk"]}, "type_not_allowed"),
    ],
)  # fmt: skip
def test_typ(typ, changes, expected):
    authenticator = authenticator_with([public_jwk(tokens_support.EC_KEY, "k1")], **changes)
    header = {"typ": typ} if typ is not ... else {"typ": None}
    token = mint(claims(client_id="app"), **header)

    assert asyncio.run(reason_of(authenticator, f"Bearer {token}")) == expected


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (..., "role_missing"), ([], "role_missing"), (ROLE, ""), ([ROLE, ROLE], ""), ("", "role_malformed"),
        ([ROLE, "admin"], "role_malformed"), ([ROLE, 1], "role_malformed"), ([[ROLE]], "role_malformed"),
        ([ROLE, {}], "role_malformed"), ({"a": ROLE}, "role_malformed"), (7, "role_malformed"),
        (ROLE.upper(), "role_malformed"), (ROLE + "\n", "role_malformed"), (ROLE + ",x", ""),
        (ROLE.replace(ACCOUNT, "12345678901"), "role_malformed"),
        (f"arn:aws:iam::{ACCOUNT}:user/Reader", "role_malformed"),
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/Reader/me", ""),
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/path/Reader/me", "role_malformed"),
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/Reader", "role_malformed"),
        (f"arn:aws:iam::{ACCOUNT}:role/team/x/Reader", ""),
        (f"arn:evil:iam::{ACCOUNT}:role/Reader", "role_malformed"),
    ],
    ids=str,
)  # fmt: skip
def test_roles(roles, expected):
    assert reason(claims(roles=roles)) == expected


def test_roles_are_canonical_each_once_in_order():
    writer, session = ROLE.replace("Reader", "Writer"), f"arn:aws:sts::{ACCOUNT}:assumed-role/Reader/me"
    roles = [writer, session, ROLE, writer.replace("/", "/x/")]

    assert [str(role) for role in judge(claims(roles=roles)).roles] == [writer, ROLE]


def test_a_role_of_another_account_refuses_the_token():
    foreign = ROLE.replace(ACCOUNT, "999999999999")

    assert reason(claims(roles=[ROLE, foreign]), accounts=[ACCOUNT]) == "claim_invalid"
    assert reason(claims(roles=[ROLE]), accounts=[ACCOUNT]) == ""
    assert reason(claims(roles=[ROLE, foreign])) == ""


def test_claims_at_nested_paths():
    payload = claims(roles=..., realm={"access": {"roles": [ROLE]}}, ctx={"sid": "s-9"}, who={"name": "bob"})
    nested = {"roles_claim": ["realm", "access", "roles"], "session_claim": ["ctx", "sid"]}
    identity = judge(payload, principal_claim=["who", "name"], **nested)

    assert (identity.principal, identity.session, len(identity.roles)) == ("bob", "s-9", 1)
    assert reason(claims(roles=..., realm="x"), **nested) == "role_missing"


def test_a_session_may_be_absent():
    assert judge(claims(jti=...)).session == ""


@pytest.mark.parametrize(
    ("value", "required", "expected"),
    [
        ("a  b", True, {"a", "b"}), (["a", "b c"], True, {"a", "b c"}), ("", True, set()), (..., True, set()),
        (..., False, None), ([], False, set()),
    ],
)  # fmt: skip
def test_scopes(value, required, expected):
    assert judge(claims(scope=value), scope_claim="scope", scope_required=required).scopes == expected


def test_a_malformed_preferred_role():
    assert reason(claims(pref="admin"), preferred_role_claim="pref") == "role_malformed"
    assert judge(claims(), preferred_role_claim="pref").preferred is None


def aws(said=None, **changes):
    inner = {"aws_account": ACCOUNT, "source_region": "eu-west-1", "principal_tags": {"team": "x"}} | (
        said or {}
    )
    return claims(**({"roles": ..., "sub": ROLE, AWS_CLAIMS: inner} | changes))


AWS = {"profile": "aws", "accounts": [ACCOUNT]}
MALFORMED_MODES = [["OriginIdentity"], {"a": 1}, True, 0]
MALFORMED_ENDS = ["soon", 1.5, True, [], "2027-13-15T08:01:40Z", -1]


def test_aws_role_comes_from_the_arn_never_from_a_claim():
    identity = judge(aws(roles=[ROLE.replace("Reader", "Admin")]), **AWS)

    assert ([str(role) for role in identity.roles], identity.principal) == ([ROLE], ROLE)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (aws(sub=f"arn:aws:sts::{ACCOUNT}:assumed-role/Reader/me"), ""),
        (aws(sub=ROLE.replace(ACCOUNT, "999999999999")), "claim_invalid"),
        (aws({"aws_account": "999999999999"}), "claim_invalid"),
        (aws({"aws_account": int(ACCOUNT)}), "claim_invalid"),
        (aws({"aws_account": "999999999999"}, sub=ROLE.replace(ACCOUNT, "999999999999")), "claim_invalid"),
        (aws(sub=f"arn:aws:iam::{ACCOUNT}:user/alice"), "role_missing"),
        (aws(sub=f"arn:aws:iam::{ACCOUNT}:root"), "role_missing"),
        (aws(sub="arn:aws:iam::999999999999:user/alice"), "claim_invalid"),
        (aws(sub="system:serviceaccount:ns:sa"), "role_malformed"),
        (aws({"subject_mode": "OriginIdentity", "principal_id": ROLE}, sub="bob@corp"), ""),
        (aws({"subject_mode": "OriginIdentity"}, sub=ROLE), "claim_invalid"),
        (aws({"principal_id": ROLE}, sub="bob@corp", subject_mode="OriginIdentity"), ""),
        (aws(sub=ROLE, subject_mode="OriginIdentity"), "claim_invalid"),
        (aws({"subject_mode": "OriginIdentity", "principal_id": "bob"}, sub=ROLE), "role_malformed"),
        *((aws({"subject_mode": mode}, sub=ROLE), "claim_invalid") for mode in MALFORMED_MODES),
        *((aws(sub=ROLE, subject_mode=mode), "claim_invalid") for mode in MALFORMED_MODES),
        (aws({"subject_mode": None}, sub=ROLE, subject_mode="AWSIdentity"), ""),
        (claims(sub=ROLE), "claim_invalid"),
        (claims(sub="system:serviceaccount:ns:sa", **{"kubernetes.io": {}}), "claim_invalid"),
        *((aws({"original_session_exp": end}), "claim_invalid") for end in MALFORMED_ENDS),
    ],
    ids=range(31),
)  # fmt: skip
def test_aws_accounts_and_subjects(payload, expected):
    assert reason(payload, **AWS) == expected
    assert reason(payload, profile="aws") == "claim_invalid", "no account is configured"


@pytest.mark.parametrize("end", [NOW + 100, "2027-01-15T08:01:40Z"])
def test_aws_outer_session_ends_the_identity(end):
    assert judge(aws({"original_session_exp": end}), **AWS).not_after == NOW + 100
    assert reason(aws({"original_session_exp": end}), NOW + 99.9, **AWS) == ""
    assert reason(aws({"original_session_exp": end}), NOW + 100, **AWS) == "token_expired"


def test_a_cached_identity_dies_at_the_second():
    clock = tokens_support.Clock()
    authenticator = authenticator_with([public_jwk(tokens_support.EC_KEY, "k1")], clock)
    header = "Bearer " + mint(claims(exp=NOW + 5))

    assert authenticator.recall(header) is None
    asyncio.run(authenticator.authenticate(header))
    clock.now = NOW + 4.999
    assert authenticator.recall(header) is not None
    clock.now = NOW + 5
    assert authenticator.recall(header) is None
    assert authenticator.cached == (0, 0)
    with pytest.raises(Refusal, match="token_expired"):
        asyncio.run(authenticator.authenticate(header))


async def test_bad_tokens_do_not_evict_good_ones_and_the_cache_is_bounded():
    config = Config(version=1, issuers=[issuer()])
    authenticator = Authenticator(config, clock=tokens_support.Clock(), max_identities=3)
    authenticator._issuers = authenticator_with(
        [public_jwk(tokens_support.EC_KEY, "k1")], tokens_support.Clock()
    )._issuers
    good = ["Bearer " + mint(claims(jti=str(n))) for n in range(4)]

    for header in good[:3]:
        await authenticator.authenticate(header)
    for n in range(50):
        with pytest.raises(Refusal):
            await authenticator.authenticate("Bearer " + mint(claims(jti=str(n), exp=1)))
    assert [authenticator.recall(header) is not None for header in good] == [True, True, True, False]
    await authenticator.authenticate(good[3])
    assert [authenticator.recall(header) is not None for header in good] == [False, True, True, True]


@pytest.mark.parametrize(
    ("aud", "good"), [(["other", AUDIENCE], True), (["other"], False), ({}, False), ([[]], False)], ids=str
)
def test_an_array_of_audiences_in_a_cognito_id_token(aud, good):
    """A list cannot be a member of a set: this was a TypeError."""
    token = claims(token_use="id", aud=aud, roles=..., **{"cognito:roles": [ROLE]})

    assert reason(token, profile="cognito") == ("" if good else "audience_mismatch")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
CLAIMS = (
    *("exp", "iat", "nbf", "aud", "sub", "jti", "roles", "scope", "client_id", "token_use", "cognito:roles"),
    *("cognito:preferred_role", "subject_mode", AWS_CLAIMS),
)


@pytest.mark.parametrize("profile", ["generic", "rfc9068", "cognito", "aws"])
@given(
    changes=st.dictionaries(st.sampled_from(CLAIMS), ANY_JSON, max_size=4),
    use=st.sampled_from(["id", "access"]),
)
def test_whatever_a_claim_holds_only_refusals_come_out(profile, changes, use):
    changes = {"token_use": use, AWS_CLAIMS: {"aws_account": ACCOUNT}} | changes
    rules = {"profile": profile, "client_ids": ["app"], "scope_claim": "scope", "accounts": [ACCOUNT]}

    assert isinstance(reason(claims(**changes), **rules), str)


def test_a_token_of_very_many_roles_and_scopes_leaves_nothing_in_the_tables():
    rules = ClaimRules(issuer(scope_claim="scope"), Limits())
    for n in range(20):
        many = [ROLE + str(i + n) for i in range(200)]
        scopes = " ".join(map(str, range(1000 + n)))
        assert len(rules.identity(claims(roles=many, scope=scopes), HEADER, NOW, "").roles) == 200

    assert (len(rules._role_sets), len(rules._scope_sets)) == (0, 0)
