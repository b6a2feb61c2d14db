"""The pages of `docs/providers`: each block loads, and tokens of that shape are judged as the page says."""

import re
import tomllib
from pathlib import Path

import pytest
from tokens_support import EC_KEY, NOW, public_jwk

from iamroles_agent.base.config import Config, Issuer, Limits
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.policy import load_text
from iamroles_agent.tokens.claims import AWS_CLAIMS, ClaimRules
from iamroles_agent.tokens.jws import Header
from iamroles_agent.tokens.keys import KeySet

PAGES = sorted((Path(__file__).parents[2] / "docs" / "providers").glob("*.md"))
ACCOUNT = "111122223333"
READER = f"arn:aws:iam::{ACCOUNT}:role/reader"
POLICY = f"""
version = 1
roles = [{{ name = "reader", arn = "{READER}" }}]
backends = [{{ name = "orders" }}]
grants = [{{ id = "R1", roles = ["reader"], methods = ["GET"], path = "/orders", backend = "orders" }}]
"""


def blocks(page):
    return re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


BLOCKS = [pytest.param(text, id=f"{page.stem}-{n}") for page in PAGES for n, text in enumerate(blocks(page))]


def judged(name, claims, *, number=0, drop=""):
    """The identity that a page's issuer makes of claims, or the reason; `drop`: a setting left out."""
    (page,) = (page for page in PAGES if page.stem == name)
    issuer = load_text(POLICY + blocks(page)[number]).issuers[0]
    if drop:
        issuer = Issuer.model_validate(
            {key: getattr(issuer, key) for key in issuer.model_fields_set - {drop, "max_lifetime"}}
        )
    try:
        return ClaimRules(issuer, Limits()).identity(claims, Header("RS256", "k", "jwt"), NOW, "")
    except Refusal as refusal:
        return str(refusal.reason)


def test_every_provider_has_a_page_with_a_block():
    names = "auth0 aws-outbound cognito entra github-actions google index irsa keycloak spiffe"

    assert [page.stem for page in PAGES] == names.split()
    assert all(blocks(page) for page in PAGES)


@pytest.mark.parametrize("block", BLOCKS)
def test_each_block_loads(block):
    assert load_text(POLICY + block).roles


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_setting_that_a_page_names_is_set_somewhere_or_known(page):
    """Return what stands in bold code is a key of the policy; what stands as `key = …` in a sentence too."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"\*\*`([a-z_]+)`\*\*", text)) | set(re.findall(r"`([a-z_]+) = ", text))
    known = {key for table in ("issuers", "sts") for key in _keys(table)}

    assert named - {"roles"} <= known


def _keys(table):
    schema = Config.model_json_schema()
    item = schema["properties"][table]["items"]["$ref"].rpartition("/")[2]
    return set(schema["$defs"][item]["properties"])


def entra(minutes):
    issued = NOW - 300
    return {
        "iss": "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/v2.0",
        "aud": "66666666-7777-8888-9999-000000000000", "iat": issued, "nbf": issued,
        "exp": NOW + 60 * minutes, "oid": "00000000-0000-0000-1111-222222222222", "sub": "AAAA",
        "tid": "11111111-2222-3333-4444-555555555555", "uti": "x_Yz", "ver": "2.0", "roles": [READER],
    }  # fmt: skip


def test_entra_s_ninety_minutes_are_over_the_default():
    identity = judged("entra", entra(90))

    assert not isinstance(identity, str)
    assert (str(identity.roles[0]), identity.principal) == (READER, "00000000-0000-0000-1111-222222222222")
    assert judged("entra", entra(90), drop="max_lifetime") == "token_lifetime"
    assert judged("entra", entra(60) | {"roles": ["Orders.Read"]}) == "role_malformed"
    without = {key: value for key, value in entra(60).items() if key != "roles"}
    assert judged("entra", without) == "role_missing"


def test_auth0_s_day_is_over_the_default():
    claims = {
        "iss": "https://example.eu.auth0.com/", "sub": "auth0|5", "iat": NOW, "exp": NOW + 86400,
        "aud": ["https://orders.example.com", "https://example.eu.auth0.com/userinfo"],
        "permissions": ["read:orders"], "https://orders.example.com/roles": [READER],
    }  # fmt: skip

    assert not isinstance(judged("auth0", claims), str)
    assert judged("auth0", claims, drop="max_lifetime") == "token_lifetime"


def test_keycloak_s_client_roles_fit_and_its_realm_roles_never_do():
    claims = {
        "iss": "https://id.example.com/realms/shop", "sub": "u", "sid": "s", "iat": NOW, "exp": NOW + 300,
        "aud": ["iam-gate", "account"],
        "realm_access": {"roles": ["default-roles-shop", "offline_access", READER]},
        "resource_access": {"iam-gate": {"roles": [READER]}, "account": {"roles": ["view-profile"]}},
    }  # fmt: skip

    assert not isinstance(judged("keycloak", claims), str)
    realm = claims | {"resource_access": {"iam-gate": claims["realm_access"]}}
    assert judged("keycloak", realm) == "role_malformed"


def test_cognito_s_two_kinds_of_token():
    both = {
        "iss": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_EXAMPLE", "sub": "u", "jti": "j",
        "iat": NOW, "exp": NOW + 3600, "cognito:groups": ["readers"],
    }  # fmt: skip
    with_roles = both | {
        "token_use": "id", "aud": "1example23456789", "cognito:roles": [READER],
        "cognito:preferred_role": READER,
    }  # fmt: skip
    access = both | {"token_use": "access", "client_id": "1example23456789"}

    identity = judged("cognito", with_roles)
    assert not isinstance(identity, str)
    assert str(identity.preferred) == READER
    assert judged("cognito", access) == "type_not_allowed"
    assert judged("cognito", access, number=1) == "role_missing"
    assert not isinstance(judged("cognito", access | {"gate:roles": [READER]}, number=1), str)


def test_aws_names_the_role_in_sub():
    claims = {
        "iss": "https://11111111-2222-3333-4444-555555555555.tokens.sts.global.api.aws",
        "aud": "https://orders.example.com", "iat": NOW, "exp": NOW + 300,
        "sub": READER, "jti": "j", AWS_CLAIMS: {"aws_account": ACCOUNT},
    }  # fmt: skip

    assert not isinstance(judged("aws-outbound", claims), str)
    assert judged("aws-outbound", claims | {"sub": f"arn:aws:iam::{ACCOUNT}:user/ann"}) == "role_missing"
    assert judged("aws-outbound", claims, drop="accounts") == "claim_invalid"


@pytest.mark.parametrize(
    ("name", "number", "claims"),
    [
        ("google", 1, {"aud": "example-project", "sub": "110169484474386276334", "email": "a@example.com"}),
        ("spiffe", 1, {"aud": ["orders"], "sub": "spiffe://example.org/ns/shop/sa/orders"}),
    ],
)
def test_who_names_no_role_opens_nothing_until_a_claim_is_added(name, number, claims):
    claims = claims | {"iat": NOW, "exp": NOW + 3600}

    assert judged(name, claims, number=number) == "role_missing"
    assert not isinstance(judged(name, claims | {"roles": [READER]}, number=number), str)


def test_a_pod_s_token_opens_nothing():
    claims = {
        "iss": "https://oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLE", "aud": ["https://orders.example.com"],
        "sub": "system:serviceaccount:shop:orders", "iat": NOW, "exp": NOW + 3600,
        "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "orders"}},
    }  # fmt: skip

    assert judged("aws-outbound", claims) == "claim_invalid"
    assert judged("auth0", claims) == "role_missing"


@pytest.mark.parametrize(("use", "kept"), [("jwt-svid", 0), ("x509-svid", 0), ("sig", 1), (None, 1)])
def test_keys_of_a_spiffe_bundle_are_dropped(use, kept):
    jwk = public_jwk(EC_KEY, "k") | {"use": use}
    if use is None:
        del jwk["use"]

    assert len(KeySet.parse({"keys": [jwk]})) == kept


def test_every_block_names_only_keys_of_the_schema():
    for page in PAGES:
        for text in blocks(page):
            for table, items in tomllib.loads(text).items():
                assert all(set(item) <= _keys(table) for item in items)
