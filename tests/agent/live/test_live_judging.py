"""A stream is judged by all that a new request with its credential would be judged by (SPEC.md 9.13)."""

from base64 import urlsafe_b64encode
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import document, grant

from iamroles_agent.base.config import Config, Deny, Issuer, Limits, Resource, Sts
from iamroles_agent.base.identity import Request
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.live.judge import EXPIRED, POLICY_CHANGED, UNKNOWN, judge
from iamroles_agent.live.revocations import NONE
from iamroles_agent.live.ticket import Ticket
from iamroles_agent.policy.compiled import Policy
from iamroles_agent.spop.messages import Check
from iamroles_agent.tokens.authenticator import check_header
from iamroles_agent.tokens.claims import AWS_CLAIMS, ClaimRules
from iamroles_agent.tokens.grounds import AGAIN, APART, FIELDS, HASHED
from iamroles_agent.tokens.jws import Header, Jws
from iamroles_agent.tokens.proof import Bindings
from iamroles_agent.tokens.sts import StsVerifier, read_credential
from iamroles_agent.tokens.sts_answer import Caller
from iamroles_agent.tokens.transport import Transport

THEN, NOW = 10_000.0, 10_010.0
ARN, OTHER = "arn:aws:iam::111111111111:role/reader", "arn:aws:iam::222222222222:role/writer"
REQUEST = Request("GET", "shop.example", "/a", ip_address("192.0.2.1"))
CLAIMS = {
    "iss": "https://idp", "aud": ["edge", "spare"], "client_id": "app", "sub": "alice", "jti": "s-1",
    "exp": 10_600, "iat": 9_990, "roles": [ARN], "groups": [ARN], "more": [OTHER], "scope": "read", "scp": "",
    "name": "al", "odd": 7, "token_use": "access", "cognito:roles": [ARN],
}  # fmt: skip
AWS = {
    **CLAIMS, "sub": ARN, AWS_CLAIMS: {"aws_account": "111111111111", "principal_id": ARN},
}  # fmt: skip
TOKENS = {
    "plain": CLAIMS,
    "without iat": {name: value for name, value in CLAIMS.items() if name != "iat"},
    "within leeway": {**CLAIMS, "iat": 10_005, "nbf": 10_030},
    "without scope": {name: value for name, value in CLAIMS.items() if name != "scope"},
    "of a client": {name: value for name, value in CLAIMS.items() if name != "aud"},
    "several roles": {**CLAIMS, "roles": [ARN, OTHER], "active": ARN},
    "AWS": {**AWS, "exp": 10_400},
    "bound": {**CLAIMS, "cnf": {"x5t#S256": "A" * 43}},
}
ISSUER = {
    "name": "corp", "issuer": "https://idp", "audiences": ["edge"], "client_ids": ["app"],
    "algorithms": ["RS256"], "leeway": "30s",
}  # fmt: skip
STS = {"name": "aws", "endpoint": "https://sts/", "hosts": ["sts"], "binding_value": "edge"}
CHOICES = {
    "issuer": ["https://idp", "https://idp/"],
    "audiences": [["edge"], ["spare"], ["edge", "x"], ["x"], []],
    "client_ids": [["app"], ["x"], []],
    "algorithms": [["RS256"], ["ES256", "RS256"], ["ES256"]],
    "types": [["JWT"], ["at+jwt"], ["JWT", "at+jwt"]],
    "profile": ["generic", "rfc9068", "cognito", "aws"],
    "roles_claim": ["roles", ["roles"], "groups", "more"],
    "preferred_role_claim": [None, "active", "odd"],
    "scope_claim": [None, "scope", "scp"],
    "scope_required": [True, False],
    "session_claim": [None, "jti", "name", "odd"],
    "principal_claim": ["sub", "name", "odd"],
    "accounts": [[], ["111111111111"], ["222222222222"], ["111111111111", "222222222222"]],
    "max_lifetime": ["3600s", "610s", "595s", "585s", "300s"],
    "leeway": ["30s", "0s", "500ms"],
    "jwks_uri": [None, "https://keys"],
    "insecure_http": [False, True],
    "bound": ["refused", "accepted", "required"],
    "endpoint": ["https://sts/", "https://other/"],
    "hosts": [["sts"], ["x"], ["x", "sts"]],
    "binding_header": ["x-iam-edge", "x-other"],
    "binding_value": ["edge", "other"],
    "timeout": ["10s", "1s"],
    "recheck": ["60s", "1s"],
    "replay_cache": [False, True],
}
"""Values of each setting; the first is that of the policy which let the streams in, if that has one."""
LIMITS = {"max_lifetime": [None, "3600s", "300s"], "max_token_bytes": [8192, 700, 600]}


def policy_of(entry, limits=None, kind="issuers"):
    tables = {
        kind: [entry],
        "limits": limits or {},
        "roles": [{"name": "reader", "arn": ARN}, {"name": "writer", "arn": OTHER}],
        "scopes": [{"name": "read", "path": "/"}],
    }
    rules = grant("R1", "reader", "*", "/", "a"), grant("R2", "writer", "*", "/", "b")
    return Policy(Config.model_validate(document(*rules, **tables)))


def identity_of(token, policy, now, size=650):
    """Return what a new request's token proves; raises a `Refusal`."""
    [issuer] = policy.config.issuers
    if size > policy.config.limits.max_token_bytes:
        raise Refusal("token_too_large")
    if issuer.issuer != token["iss"]:
        raise Refusal("issuer_untrusted")
    rules, header = ClaimRules(issuer, policy.config.limits), Header("RS256", "k1", "jwt")
    check_header(Jws(header, token, b"", b""), rules)
    identity = rules.identity(token, header, now, "sha256:x", (f"size:{size}",))
    asked = Check("Bearer x", 1, None, "GET", REQUEST.host, "/a", REQUEST.src, certificate="A" * 43)
    Bindings(policy.config).judge(identity, asked, REQUEST, now)
    return identity


def credential(scheme="https"):
    words = (
        "Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=900"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE/19700101/eu-west-1/sts/aws4_request"
        f"&X-Amz-Date=19700101T024600Z&X-Amz-SignedHeaders=host;x-iam-edge&X-Amz-Signature={'0' * 64}"
    )
    return b"iam-sts-v1." + urlsafe_b64encode(f"{scheme}://sts/?{words}".encode()).rstrip(b"=")


def caller_of(token, policy, now):
    """Prove at STS what a new request's credential says. Another endpoint or edge may say anything."""
    [endpoint] = policy.config.sts
    there = endpoint.endpoint, endpoint.binding_header, endpoint.binding_value
    if there != ("https://sts/", "x-iam-edge", "edge"):
        raise Refusal("sts_rejected")
    question = read_credential(token, dict.fromkeys(endpoint.hosts, endpoint), now)
    caller = Caller("arn:aws:sts::111111111111:assumed-role/reader/s-1", "111111111111", "AROA:s-1")
    return StsVerifier([endpoint], Transport())._identity(question, caller)


def allowed(prove, token, policy, now):
    try:
        decision = policy.decide(prove(token, policy, now), REQUEST, now=now)
    except Refusal:
        return None
    return (decision.role, decision.backend, decision.expires) if decision.allow else None


def must_agree(prove, token, before, after, changed):
    """Hold a stream of a token to what a new request would get, from one policy to another."""
    if (first := allowed(prove, token, before, THEN)) is None:
        return
    identity = prove(token, before, THEN)
    decision = before.decide(identity, REQUEST, now=THEN)
    ticket = Ticket("iam/aa", identity, REQUEST, decision.role, decision.backend, decision.rule)
    ends = judge(ticket.encode(), first[2], NOW, policy=after, sources={}, revocations=NONE)
    lives = ends.cause == EXPIRED and ends.at > NOW
    fresh = allowed(prove, token, after, NOW)
    if lives:
        assert fresh is not None, (ends, changed)
        assert fresh[:2] == first[:2]
        assert ends.at <= fresh[2]
    if HASHED not in changed and fresh is not None and fresh[:2] == first[:2]:
        assert lives, (ends, changed)
    if changed <= {APART}:
        assert lives


def edits(model, most):
    names = [name for name in FIELDS[model] if name in CHOICES]
    return st.dictionaries(st.sampled_from(names), st.integers(0, 4), max_size=most)


def edited(entry, model, chosen):
    """The entry with what was chosen; None stands for a setting that is left out."""
    made = dict(entry)
    for name, number in chosen.items():
        made[name] = CHOICES[name][number % len(CHOICES[name])]
    return {name: value for name, value in made.items() if value is not None}


def kinds(model, one, other):
    """How the settings that differ are judged; with Cognito it counts whether `roles_claim` is set."""

    def value(entry, name):
        return getattr(entry, name), name == "roles_claim" and name in entry.model_fields_set

    first, second = model.model_validate(one), model.model_validate(other)
    return {how for name, how in FIELDS[model].items() if value(first, name) != value(second, name)}


BASES = {
    "plain": {},
    "types": {"types": ["JWT"]},
    "scopes": {"scope_claim": "scope", "scope_required": False},
    "AWS": {"profile": "aws", "accounts": ["111111111111"]},
    "Cognito": {"profile": "cognito"},
    "bound": {"bound": "accepted"},
    "preferred": {"preferred_role_claim": "active", "accounts": ["111111111111", "222222222222"]},
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("token", TOKENS)
def test_a_stream_is_judged_by_each_setting_as_a_new_request_is(token, base):
    old = policy_of(before := ISSUER | BASES[base])
    for name in FIELDS[Issuer].keys() & CHOICES.keys():
        for number in range(len(CHOICES[name])):
            after = edited(before, Issuer, {name: number})
            must_agree(identity_of, TOKENS[token], old, policy_of(after), kinds(Issuer, before, after))
    for name, choices in LIMITS.items():
        for value in choices:
            limits = {} if value is None else {name: value}
            new = policy_of(before, limits)
            must_agree(identity_of, TOKENS[token], old, new, kinds(Limits, {}, limits))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(TOKENS)), edits(Issuer, 3), edits(Issuer, 2))
def test_a_stream_of_a_token_lives_on_if_a_new_request_would_be_allowed(token, base, change):
    before = edited(ISSUER, Issuer, base)
    after = edited(before, Issuer, change)
    must_agree(identity_of, TOKENS[token], policy_of(before), policy_of(after), kinds(Issuer, before, after))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["http", "https"]), edits(Sts, 2), edits(Sts, 2))
def test_a_stream_of_a_pre_signed_request_lives_on_if_a_new_request_would_be_allowed(scheme, base, change):
    before = edited(STS, Sts, base)
    after = edited(before, Sts, change)
    policies = (policy_of(entry, kind="sts") for entry in (before, after))
    must_agree(caller_of, credential(scheme), *policies, kinds(Sts, before, after))


@pytest.mark.parametrize("model", FIELDS, ids=lambda model: model.__name__)
def test_every_setting_has_a_row_and_every_row_is_tried(model):
    assert FIELDS[model].keys() == model.model_fields.keys()
    tried = LIMITS if model is Limits else CHOICES
    assert FIELDS[model].keys() - tried.keys() <= {"name"}
    assert set(FIELDS[model].values()) <= {AGAIN, HASHED, APART}


def judged(identity, policy, expires=10_600, request=REQUEST):
    ticket = Ticket("iam/aa", identity, request, ARN, "a", "R1").encode()
    return judge(ticket, expires, NOW, policy=policy, sources={}, revocations=NONE)


def test_a_stream_from_before_an_upgrade_lives_on_and_is_judged_by_what_is_known():
    old = identity_of(CLAIMS, policy_of(ISSUER), THEN)._replace(grounds=())

    assert judged(old, policy_of(ISSUER | {"profile": "rfc9068", "max_lifetime": "300s"})).cause == EXPIRED
    assert judged(old, policy_of(ISSUER | {"accounts": ["222222222222"]})).cause == POLICY_CHANGED


def test_a_token_whose_end_lies_before_its_issue_is_judged_by_the_new_leeway():
    odd = identity_of(CLAIMS | {"iat": 10_000, "exp": 9_995}, policy_of(ISSUER), THEN)

    assert judged(odd, policy_of(ISSUER | {"leeway": "0s"})).at == 9_995


def test_a_role_s_lifetime_that_has_passed_ends_its_streams_at_once():
    policy = policy_of(ISSUER)
    identity = identity_of(CLAIMS, policy, THEN)
    short = policy.config.roles[0].model_copy(update={"max_lifetime": 15.0})
    roles = [short, *policy.config.roles[1:]]

    assert judged(identity, Policy(policy.config.model_copy(update={"roles": roles}))).at == 10_005


@pytest.mark.parametrize(("deny", "cause"), [("/b", EXPIRED), ("/a", POLICY_CHANGED), ("/a" * 999, UNKNOWN)])
def test_a_stream_with_the_longest_path_is_judged_by_its_beginning(deny, cause):
    config = policy_of(ISSUER).config
    identity = identity_of(CLAIMS, Policy(config), THEN)
    closed = Policy(config.model_copy(update={"denies": [Deny(id="D1", roles=["*"], path=deny)]}))

    assert judged(identity, closed, request=replace(REQUEST, path="/a/b" * 1024)).cause == cause


@pytest.mark.parametrize(("aud", "cause"), [("https://shop.example", EXPIRED), ("spare", POLICY_CHANGED)])
def test_a_resource_that_a_reload_adds_ends_no_stream_whose_token_names_it(aud, cause):
    resource = Resource(name="shop", resource="https://shop.example", versions=["2025-11-25"])
    later = policy_of(ISSUER | {"audiences": ["edge", resource.resource]}).config
    added = Policy(later.model_copy(update={"resources": [resource]}))

    assert judged(identity_of(CLAIMS | {"aud": ["edge", aud]}, policy_of(ISSUER), THEN), added).cause == cause


def test_an_issuer_that_becomes_an_sts_endpoint_of_its_name_ends_its_streams():
    identity = identity_of(CLAIMS, policy_of(ISSUER), THEN)

    assert judged(identity, policy_of(STS | {"name": "corp"}, kind="sts")).cause == POLICY_CHANGED


def test_the_caller_chose_the_date_of_a_pre_signed_request_and_of_no_token():
    caller = caller_of(credential(), policy_of(STS, kind="sts"), THEN)

    assert caller.dated_by_caller
    assert not identity_of(CLAIMS, policy_of(ISSUER), THEN).dated_by_caller
