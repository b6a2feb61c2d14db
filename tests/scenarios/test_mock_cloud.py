"""The mock cloud as a process: boto3 unchanged against it, and moto's open doors closed."""

import base64
import time
from dataclasses import replace

import jwt
import pytest
import urllib3
from botocore.exceptions import ClientError
from mock_process import HTTP, running, verify
from moto.server import ThreadedMotoServer

from iamroles_scenarios.base.errors import ControlError
from iamroles_scenarios.jose.shapes import AWS_NAMESPACE
from iamroles_scenarios.mock import presign
from iamroles_scenarios.mock.clients import CloudClient, IdpClient, SessionKeys, trusting

ONE, TWO = "111111111111", "222222222222"
EDGE = "edge-a.example"
NOBODY = SessionKeys("AKIAIOSFODNN7EXAMPLE", "wrong")
UNKNOWN, DENIED, MISMATCH = (
    (403, code) for code in ("InvalidClientTokenId", "AccessDenied", "SignatureDoesNotMatch")
)


@pytest.fixture(scope="module")
def process():
    with running("mock.cloud") as mock:
        yield mock


@pytest.fixture(scope="module")
def cloud(process):
    return CloudClient(process.ready["url"])


@pytest.fixture(scope="module")
def account(cloud):
    return cloud.account(ONE)


@pytest.fixture(scope="module")
def reader(cloud, account):
    return cloud.assume(account.role("reader", tags={"team": "orders"}), "alice")


@pytest.fixture(scope="module")
def idp():
    with running("mock.idp") as mock:
        yield IdpClient(mock.ready["url"])


def refused(call):
    with pytest.raises(ClientError) as caught:
        call()
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def ask(cloud, credential, *, edge=EDGE, accept="application/json"):
    """Send what an agent rebuilds from a credential: its query, its Host, the edge's own binding header."""
    url = base64.urlsafe_b64decode(credential.removeprefix(presign.PREFIX) + "==").decode()
    query = url.partition("?")[2]
    headers = {"Host": presign.HOST, presign.BINDING_HEADER: edge, "Accept": accept}
    answer = HTTP.request("GET", f"{cloud.url}/?{query}", headers=headers)
    return answer.status, answer.json() if "json" in answer.headers["Content-Type"] else answer.data.decode()


def code(answer):
    return answer[0], answer[1]["Error"]["Code"]


def keys_of(given):
    """Keys in an answer of boto3."""
    return SessionKeys(given["AccessKeyId"], given["SecretAccessKey"], given.get("SessionToken"))


def test_an_assumed_role_knows_itself(cloud, reader):
    identity = cloud.sts(reader).get_caller_identity()

    assert identity["Arn"] == f"arn:aws:sts::{ONE}:assumed-role/reader/alice" == reader.arn
    assert identity["Account"] == ONE
    assert identity["UserId"].startswith("AROA")
    assert identity["UserId"].endswith(":alice")


def test_role_paths_are_lost_in_sessions(cloud, account):
    arn = account.role("deployer", path="/ci/prod/")

    assert arn == f"arn:aws:iam::{ONE}:role/ci/prod/deployer"
    assert cloud.assume(arn).arn == f"arn:aws:sts::{ONE}:assumed-role/deployer/alice"


def test_iam_calls_work_unchanged(account):
    account.role("listed")

    assert "listed" in [role["RoleName"] for role in account.iam.list_roles()["Roles"]]
    account.iam.delete_role(RoleName="listed")
    with pytest.raises(account.iam.exceptions.NoSuchEntityException):
        account.iam.get_role(RoleName="listed")


def test_wrong_secret(cloud, reader):
    wrong = replace(reader, secret_access_key=reader.secret_access_key[::-1])

    assert refused(cloud.sts(wrong).get_caller_identity) == MISMATCH


def test_unknown_key(cloud):
    assert refused(cloud.sts(NOBODY).get_caller_identity) == UNKNOWN


@pytest.mark.parametrize("token", [None, "forged"])
def test_wrong_or_missing_session_token(cloud, reader, token):
    assert refused(cloud.sts(replace(reader, session_token=token)).get_caller_identity) == UNKNOWN


def test_expired_credential(cloud, account):
    keys = cloud.assume(account.role("brief"))
    cloud.sts(keys).get_caller_identity()

    cloud.expire(keys)

    assert refused(cloud.sts(keys).get_caller_identity) == (403, "ExpiredToken")
    assert code(ask(cloud, cloud.presign_caller_identity(keys, EDGE))) == (403, "ExpiredToken")


def test_lifetimes_are_as_commanded_or_within_the_roles_limits(cloud, account):
    cloud.lifetime(3)
    try:
        keys = cloud.assume(account.role("short"))
    finally:
        cloud.lifetime(None)

    assert keys.expiration.timestamp() - time.time() <= 3
    longer = refused(lambda: cloud.assume(f"arn:aws:iam::{ONE}:role/short", duration=7200))
    assert longer == (400, "ValidationError")


@pytest.mark.parametrize("shift", [-3 * 86400, -16 * 60, 16 * 60])
def test_old_and_future_dates_in_the_header(cloud, reader, monkeypatch, shift):
    import datetime as dt

    import botocore.auth

    moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=shift)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: moment)

    assert refused(cloud.sts(reader).get_caller_identity) == MISMATCH


def test_deactivated_and_deleted_keys_and_roles(cloud, account):
    account.iam.create_user(UserName="bob")
    bob = keys_of(account.iam.create_access_key(UserName="bob")["AccessKey"])
    assert cloud.sts(bob).get_caller_identity()["Arn"] == f"arn:aws:iam::{ONE}:user/bob"

    account.iam.update_access_key(UserName="bob", AccessKeyId=bob.access_key_id, Status="Inactive")
    assert refused(cloud.sts(bob).get_caller_identity) == UNKNOWN
    account.iam.update_access_key(UserName="bob", AccessKeyId=bob.access_key_id, Status="Active")
    cloud.sts(bob).get_caller_identity()
    account.iam.delete_access_key(UserName="bob", AccessKeyId=bob.access_key_id)
    assert refused(cloud.sts(bob).get_caller_identity) == UNKNOWN

    bob = keys_of(account.iam.create_access_key(UserName="bob")["AccessKey"])
    account.iam.delete_access_key(UserName="bob", AccessKeyId=bob.access_key_id)
    account.iam.delete_user(UserName="bob")
    assert refused(cloud.sts(bob).get_caller_identity) == UNKNOWN

    session = cloud.assume(account.role("doomed"))
    account.iam.delete_role(RoleName="doomed")
    assert refused(cloud.sts(session).get_caller_identity) == UNKNOWN


def test_session_tokens_are_the_users_and_reach_little(cloud, account):
    keys = keys_of(cloud.sts(account.administrator).get_session_token()["Credentials"])

    assert cloud.sts(keys).get_caller_identity()["Arn"] == account.administrator.arn
    assert refused(cloud.iam(keys).list_roles) == DENIED
    assert refused(cloud.sts(keys).get_session_token) == DENIED


def test_federated_users_are_not_roles(cloud, account):
    keys = keys_of(cloud.sts(account.administrator).get_federation_token(Name="carol")["Credentials"])

    assert cloud.sts(keys).get_caller_identity()["Arn"] == f"arn:aws:sts::{ONE}:federated-user/carol"


def test_trust_policies_decide_who_assumes(cloud, account, reader):
    stranger = cloud.account(TWO).administrator
    own = account.role("own-only")
    chained = account.role("chained", trust=trusting(f"arn:aws:iam::{ONE}:role/reader"))
    condition = {"sts:ExternalId": "partner-7"}
    partner = account.role("partner", trust=trusting(f"arn:aws:iam::{TWO}:root", StringEquals=condition))
    unclear = {"aws:MultiFactorAuthAge": "1"}
    odd = account.role("odd", trust=trusting(f"arn:aws:iam::{ONE}:root", NumericEquals=unclear))

    assert refused(lambda: cloud.assume(own, by=stranger)) == DENIED
    assert refused(lambda: cloud.assume(f"arn:aws:iam::{ONE}:role/absent")) == DENIED
    assert refused(lambda: cloud.assume(partner, by=stranger)) == DENIED
    assert refused(lambda: cloud.assume(odd)) == DENIED
    assert cloud.assume(chained, by=reader).arn.endswith("assumed-role/chained/alice")
    assert cloud.assume(partner, by=stranger, ExternalId="partner-7").arn.startswith(f"arn:aws:sts::{ONE}:")


def test_the_same_role_name_in_two_accounts_is_two_principals(cloud):
    keys = cloud.assume(cloud.account(TWO).role("reader"))

    assert cloud.sts(keys).get_caller_identity()["Account"] == TWO


def test_web_identities_are_checked(cloud, account, idp):
    issuer = idp.issuer("corp")
    provider = account.provider(issuer.url, ["sts.amazonaws.com"])
    name = issuer.url.partition("://")[2]
    trust = trusting(provider, StringEquals={f"{name}:sub": "alice", f"{name}:aud": "sts.amazonaws.com"})
    role = account.role("web", trust=trust)

    def assume(**recipe):
        about = {"RoleArn": role, "RoleSessionName": "alice"}
        token = issuer.mint({"aud": "sts.amazonaws.com", **recipe})
        answer = cloud.sts(None).assume_role_with_web_identity(**about, WebIdentityToken=token)
        return keys_of(answer["Credentials"])

    assert cloud.sts(assume()).get_caller_identity()["Arn"] == f"arn:aws:sts::{ONE}:assumed-role/web/alice"
    assert cloud.sts(assume(key="ES256")).get_caller_identity()
    assert refused(lambda: assume(exp="-1s")) == (400, "ExpiredTokenException")
    assert refused(lambda: assume(key="other")) == (400, "InvalidIdentityToken")
    assert refused(lambda: assume(alg="none")) == (400, "InvalidIdentityToken")
    assert refused(lambda: assume(confusion="hs256-with-public-key")) == (400, "InvalidIdentityToken")
    assert refused(lambda: assume(aud="someone-else")) == (400, "InvalidIdentityToken")
    assert refused(lambda: assume(iss="http://elsewhere.test")) == (400, "InvalidIdentityToken")
    assert refused(lambda: assume(sub="mallory")) == DENIED
    issuer.fault("jwks", "status")
    assert refused(assume) == (400, "IDPCommunicationError")


@pytest.mark.parametrize("algorithm", ["RS256", "ES384"])
def test_outbound_tokens_have_awss_layout(cloud, account, reader, algorithm):
    tags = [{"Key": "team", "Value": "whatever-i-say"}]
    token = cloud.web_identity_token(reader, "edge", algorithm=algorithm, Tags=tags)

    claims = verify(token, account.issuer.url)
    facts = claims[AWS_NAMESPACE]
    assert (claims["sub"], claims["aud"]) == (f"arn:aws:iam::{ONE}:role/reader", "edge")
    assert (claims["exp"] - claims["iat"], facts["aws_account"]) == (300, ONE)
    assert facts["principal_tags"] == {"team": "orders"}
    assert facts["request_tags"] == {"team": "whatever-i-say"}
    assert "original_session_exp" in facts


def test_outbound_jwks_rsa_entries_have_no_alg(account):
    entries = {entry["kty"]: entry for entry in account.issuer.jwks()}

    assert "alg" not in entries["RSA"]
    assert entries["EC"]["alg"] == "ES384"


def test_outbound_keys_rotate(cloud, reader, account):
    before = cloud.web_identity_token(reader, "edge", algorithm="ES384")
    old = jwt.get_unverified_header(before)["kid"]

    new = account.issuer.rotate("ES384")

    after = cloud.web_identity_token(reader, "edge", algorithm="ES384")
    assert jwt.get_unverified_header(after)["kid"] == new.kid
    verify(before, account.issuer.url)
    account.issuer.remove(old)
    with pytest.raises(KeyError):
        verify(before, account.issuer.url)


def test_outbound_origin_identity_keeps_the_role_out_of_sub(cloud, account):
    keys = cloud.assume(account.role("app"), SourceIdentity="dana")

    token = cloud.web_identity_token(keys, "edge", SubjectMode="OriginIdentity", Scope="orders:read")

    claims = verify(token, account.issuer.url)
    assert (claims["sub"], claims["scope"]) == ("dana", "orders:read")
    assert claims[AWS_NAMESPACE]["principal_id"] == f"arn:aws:iam::{ONE}:role/app"


def test_outbound_limits(cloud, account, reader):
    cloud.lifetime(120)
    try:
        brief = cloud.assume(account.role("nearly-over"))
    finally:
        cloud.lifetime(None)

    escalation = refused(lambda: cloud.web_identity_token(brief, "edge", duration=600))
    assert escalation == (403, "SessionDurationEscalationException")
    longer = refused(lambda: cloud.web_identity_token(reader, "edge", duration=3601))
    assert longer == (400, "ValidationError")
    other = cloud.account(TWO)
    other.iam.disable_outbound_web_identity_federation()
    disabled = refused(lambda: cloud.web_identity_token(other.administrator, "edge"))
    assert disabled == (403, "OutboundWebIdentityFederationDisabledException")
    other.iam.enable_outbound_web_identity_federation()
    info = other.iam.get_outbound_web_identity_federation_info()
    assert (info["IssuerIdentifier"], info["JwtVendingEnabled"]) == (other.issuer.url, True)
    assert other.issuer.url != account.issuer.url


def test_presigned_caller_identity(cloud, reader):
    credential = cloud.presign_caller_identity(reader, EDGE)

    status, answer = ask(cloud, credential)
    _, xml = ask(cloud, credential, accept="*/*")

    assert status == 200
    result = answer["GetCallerIdentityResponse"]["GetCallerIdentityResult"]
    assert (result["Arn"], result["Account"]) == (reader.arn, ONE)
    assert f"<Arn>{reader.arn}</Arn>" in xml
    assert 'xmlns="https://sts.amazonaws.com/doc/2011-06-15/"' in xml


def test_no_two_credentials_are_the_same(cloud, reader):
    now = time.time()

    assert len({cloud.presign_caller_identity(reader, EDGE, now=now) for _ in range(100)}) == 100


def test_presigned_by_boto3_itself(cloud, reader):
    url = cloud.sts(reader).generate_presigned_url("get_caller_identity", HttpMethod="GET")

    answer = HTTP.request("GET", url)

    assert answer.status == 200
    assert reader.arn.encode() in answer.data


def test_a_credential_bound_to_one_edge_fails_at_another(cloud, reader):
    credential = cloud.presign_caller_identity(reader, EDGE)

    assert code(ask(cloud, credential, edge="edge-b.example")) == MISMATCH


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        *(({"date": "-16m"}, MISMATCH), ({"date": "-3d", "expires": 604800}, MISMATCH)),
        *(({"date": "+16m"}, MISMATCH), ({"secret": "wrong"}, MISMATCH)),
        *(({"signature": "flipped"}, MISMATCH), ({"signature": "empty"}, MISMATCH)),
        *(({"token": "drop"}, UNKNOWN), ({"token": "wrong"}, UNKNOWN)),
        *(({"key_id": "AKIAIOSFODNN7EXAMPLE"}, UNKNOWN), ({"service": "iam"}, MISMATCH)),
        ({"binding_header": ""}, None),
        ({"extra": [["Action", "GetCallerIdentity"]]}, (400, "IncompleteSignature")),
        ({"unsigned": [["Foo", "1"]]}, MISMATCH),
        ({"drop": ["X-Amz-Expires"]}, (400, "IncompleteSignature")),
        ({"drop": ["X-Amz-Signature", "X-Amz-Algorithm"]}, (403, "MissingAuthenticationToken")),
        *(({"signed_headers": "x-iam-edge"}, MISMATCH), ({"action": "GetUser"}, (400, "InvalidAction"))),
    ],
    ids=str,
)
def test_presigned_recipes(cloud, reader, recipe, wanted):
    answer = ask(cloud, cloud.presign_caller_identity(reader, EDGE, recipe))

    assert answer[0] == 200 if wanted is None else code(answer) == wanted


def test_the_last_request_can_be_looked_at_without_its_secrets(cloud, reader):
    ask(cloud, cloud.presign_caller_identity(reader, EDGE))

    last = cloud.last()

    assert [presign.BINDING_HEADER, EDGE] in [[name.lower(), value] for name, value in last["headers"]]
    assert reader.session_token[:20] not in str(last)
    assert "X-Amz-Signature=..." in last["query"]


def test_faults(cloud, reader):
    credential = cloud.presign_caller_identity(reader, EDGE)
    cloud.fault("GetCallerIdentity", "throttle", times=1)
    assert code(ask(cloud, credential)) == (400, "Throttling")
    cloud.fault("GetCallerIdentity", "status", status=500, times=1)
    assert ask(cloud, credential)[0] == 500
    cloud.fault("GetCallerIdentity", "cut", times=1)
    with pytest.raises(urllib3.exceptions.HTTPError):
        ask(cloud, credential)
    cloud.fault("GetCallerIdentity", "oversized", size=100_000, times=1)
    assert len(ask(cloud, credential, accept="*/*")[1]) == 100_000
    forged = {"Arn": f"arn:aws:sts::{ONE}:assumed-role/admin/x", "Account": ONE, "UserId": "AROAX:x"}
    cloud.fault("GetCallerIdentity", "forge", members=forged, times=1)
    answer = ask(cloud, cloud.presign_caller_identity(reader, EDGE, {"secret": "wrong"}))
    assert answer[1]["GetCallerIdentityResponse"]["GetCallerIdentityResult"] == forged
    assert ask(cloud, credential)[0] == 200


def test_calls_are_counted(cloud, reader):
    before = cloud.counters()

    ask(cloud, cloud.presign_caller_identity(reader, EDGE))
    ask(cloud, cloud.presign_caller_identity(reader, EDGE, {"secret": "wrong"}))

    after = cloud.wait_for("GetCallerIdentity", before["GetCallerIdentity"] + 2)
    assert after["GetCallerIdentity-refused"] == before.get("GetCallerIdentity-refused", 0) + 1
    assert after["GetCallerIdentity-done"] == before["GetCallerIdentity-done"] + 1


@pytest.mark.parametrize(
    "command",
    [
        lambda cloud: cloud.account("42"),
        lambda cloud: cloud.fault("*", "no-such-kind"),
        lambda cloud: cloud.expire(SessionKeys("AKIAIOSFODNN7EXAMPLE", "")),
        lambda cloud: cloud.last("NeverCalled"),
    ],
)
def test_mistaken_commands_are_refused(cloud, command):
    with pytest.raises(ControlError):
        command(cloud)


@pytest.fixture(scope="module")
def moto():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield CloudClient(f"http://{host}:{port}")
    server.stop()


class TestMotoAlone:
    """Faults of moto alone, the reason why the front exists. If moto mends one, we want to know."""

    def test_it_knows_everybody(self, moto):
        assert moto.sts(NOBODY).get_caller_identity()["Arn"].endswith(":user/moto")

    def test_it_lets_anybody_assume_what_does_not_exist(self, moto):
        session = moto.assume(f"arn:aws:iam::{ONE}:role/absent", by=NOBODY)

        assert session.arn.endswith("assumed-role/absent/alice")

    def test_it_answers_a_presigned_caller_identity_with_buckets(self, moto):
        url = moto.sts(NOBODY).generate_presigned_url("get_caller_identity", HttpMethod="GET")

        assert b"ListAllMyBucketsResult" in HTTP.request("GET", url).data
