"""The decision: worked examples, agreement with a slow reading of the specification, laws of order."""

import json
from dataclasses import replace
from ipaddress import ip_address

import policy_worlds as worlds
import pytest
from counting import steps
from hypothesis import given, settings
from hypothesis import strategies as st

from iamroles_agent.base.config import Config
from iamroles_agent.base.errors import ConfigError
from iamroles_agent.base.identity import Identity, Request, RoleArn
from iamroles_agent.base.reasons import Reason
from iamroles_agent.policy import Policy, load_policy, load_text
from iamroles_agent.policy.compiled import Query

ACCOUNT = "arn:aws:iam::111111111111:role"
SRC = ip_address("192.0.2.1")

EXAMPLES = """
version = 1
MULTI
[[issuers]]
name = "idp"
issuer = "https://idp.test"
audiences = ["api"]
algorithms = ["RS256"]
[[roles]]
name = "reader"
arn = "arn:aws:iam::111111111111:role/reader"
[[roles]]
name = "writer"
arn = "arn:aws:iam::111111111111:role/writer"
max_lifetime = "5m"
[[roles]]
name = "contractor"
arn = "arn:aws:iam::111111111111:role/contractor"
[[backends]]
name = "orders-ro"
[[backends]]
name = "orders-rw"
[[backends]]
name = "export"
[[grants]]
id = "R1"
roles = ["reader"]
methods = ["GET"]
path = "/orders"
backend = "orders-ro"
[[grants]]
id = "R2"
roles = ["writer"]
methods = ["POST"]
path = "/orders"
backend = "orders-rw"
[[denies]]
id = "R3"
roles = ["contractor"]
path = "/orders/export"
[[grants]]
id = "R4"
roles = ["reader"]
methods = ["GET"]
path = "/orders/export"
backend = "export"
[[scopes]]
name = "read"
methods = ["GET"]
path = "/orders"
"""
R5 = """
[[grants]]
id = "R5"
roles = ["writer"]
methods = ["GET"]
path = "/orders"
backend = "orders-rw"
"""

R6 = """
[[grants]]
id = "R6"
roles = ["reader"]
methods = ["GET"]
path = "/hosts"
hosts = ["*.d.example.com"]
backend = "orders-rw"
"""


def examples(multi_role="deny", more=""):
    return Policy(load_text(EXAMPLES.replace("MULTI", f'multi_role = "{multi_role}"') + more))


def identity(*roles, **changes):
    arns = tuple(RoleArn.parse(role if role.startswith("arn:") else f"{ACCOUNT}/{role}") for role in roles)
    return Identity("idp", "ann", "s1", arns, 10_000, issued_at=1_000)._replace(**changes)


def ask(policy, who, line, requested=None, host=""):
    method, path = line.split(" ", 1)
    return policy.decide(who, Request(method, host, path, SRC, requested))


@pytest.mark.parametrize(
    ("roles", "requested", "line", "expected"),
    [
        (["reader"], None, "GET /orders/1", ("R1", "reader", "orders-ro")),
        (["reader"], None, "GET /orders/", ("R1", "reader", "orders-ro")),
        (["reader", "writer"], None, "POST /orders", Reason.AMBIGUOUS_ROLE),
        (["reader", "writer"], "writer", "POST /orders", ("R2", "writer", "orders-rw")),
        (["reader", "writer"], f"{ACCOUNT}/writer", "POST /orders", ("R2", "writer", "orders-rw")),
        (["reader", "writer"], "writer", "GET /orders", Reason.NO_GRANT),
        (["reader", "writer"], "admin", "GET /orders", Reason.ROLE_NOT_IN_TOKEN),
        (["reader", "writer"], f"{ACCOUNT}/admin", "GET /orders", Reason.ROLE_NOT_IN_TOKEN),
        (["reader", "writer"], "", "GET /orders", Reason.ROLE_NOT_IN_TOKEN),
        (["reader"], "arn:aws:iam::1:role/x", "GET /orders", Reason.ROLE_NOT_IN_TOKEN),
        (["reader", "contractor"], "reader", "GET /orders/export", Reason.DENIED_BY_RULE),
        (["reader"], None, "GET /orders/export", ("R4", "reader", "export")),
        (["reader"], None, "GET /ordersx", Reason.NO_GRANT),
        (["reader"], None, "GET /orders/%2e%2e/export", Reason.PATH_AMBIGUOUS),
        (["arn:aws:iam::222222222222:role/reader"], None, "GET /orders", Reason.NO_GRANT),
        (["arn:aws-cn:iam::111111111111:role/reader"], None, "GET /orders", Reason.NO_GRANT),
        ([], None, "GET /orders", Reason.ROLE_MISSING),
    ],
)
def test_worked_examples(roles, requested, line, expected):
    decision = ask(examples(), identity(*roles), line, requested)

    if isinstance(expected, Reason):
        assert (decision.allow, decision.reason) == (False, expected)
        assert decision.backend == ""
    else:
        rule, role, backend = expected
        assert decision.allow
        assert (decision.rule, decision.role, decision.backend) == (rule, f"{ACCOUNT}/{role}", backend)


def test_conflict_of_equal_specificity_is_a_load_error_under_union():
    examples("deny", R5)
    with pytest.raises(ConfigError) as caught:
        examples("union", R5)

    [problem] = caught.value.problems
    assert "'R1' and 'R5'" in problem.message
    assert "GET /orders" in problem.message
    assert problem.line == EXAMPLES.count("\n") + 7


def test_union_activates_all_roles():
    who = identity("reader", "writer")

    assert ask(examples("union"), who, "POST /orders").rule == "R2"
    assert ask(examples("union"), who, "GET /orders").rule == "R1"
    assert ask(examples("union"), identity("reader", "contractor"), "GET /orders/export").rule == "R3"


def test_preferred_role_is_used_if_held_and_else_ignored():
    writer, contractor = RoleArn.parse(f"{ACCOUNT}/writer"), RoleArn.parse(f"{ACCOUNT}/contractor")

    held = identity("reader", "writer", preferred=writer)
    assert ask(examples(), held, "POST /orders").rule == "R2"
    assert ask(examples(), held, "GET /orders", "reader").rule == "R1"
    stranger = identity("reader", "writer", preferred=contractor)
    assert ask(examples(), stranger, "POST /orders").reason is Reason.AMBIGUOUS_ROLE


def test_unmapped_roles_are_recorded_and_count_as_roles():
    decision = ask(examples(), identity("reader", "unheard-of"), "GET /orders")

    assert decision.reason is Reason.AMBIGUOUS_ROLE
    assert decision.unmapped == (f"{ACCOUNT}/unheard-of",)
    assert decision.roles == (f"{ACCOUNT}/reader", f"{ACCOUNT}/unheard-of")


def test_refusals_carry_who_it_was():
    decision = ask(examples(), identity("reader"), "POST /orders")

    assert (decision.principal, decision.session, decision.issuer) == ("ann", "s1", "idp")
    assert (decision.role, decision.expires, decision.status) == (f"{ACCOUNT}/reader", 10_000, 403)


def test_expires_is_the_earlier_of_the_token_and_the_roles_lifetime():
    policy = examples()

    assert ask(policy, identity("writer"), "POST /orders").expires == 1_300
    assert ask(policy, identity("writer", not_after=1_200), "POST /orders").expires == 1_200
    assert ask(policy, identity("reader"), "GET /orders").expires == 10_000


def test_a_role_whose_lifetime_has_passed_is_refused():
    policy = examples()
    request = Request("POST", "", "/orders", SRC)

    assert policy.decide(identity("writer"), request, now=1_299.9).allow
    dead = policy.decide(identity("writer"), request, now=1_300)
    assert (dead.allow, dead.reason, dead.backend, dead.rule) == (False, Reason.TOKEN_EXPIRED, "", "")


def test_a_lifetime_that_cannot_be_applied_grants_nothing():
    decision = ask(examples(), identity("writer", issued_at=None), "POST /orders")

    assert decision.reason is Reason.NO_GRANT
    assert "time of issue" in decision.detail


@pytest.mark.parametrize(
    ("scopes", "line", "reason"),
    [
        (None, "GET /orders", None),
        ({"read"}, "GET /orders", None),
        ({"other", "read"}, "GET /orders", None),
        ({"other"}, "GET /orders", Reason.SCOPE_INSUFFICIENT),
        (set(), "GET /orders", Reason.SCOPE_INSUFFICIENT),
        ({"read"}, "POST /orders", Reason.NO_GRANT),
    ],
)
def test_scopes_intersect_with_the_roles_grants(scopes, line, reason):
    who = identity("reader", scopes=None if scopes is None else frozenset(scopes))

    assert ask(examples(), who, line).reason is reason


def test_a_scope_never_opens_what_the_role_does_not():
    decision = ask(examples(), identity("writer", scopes=frozenset({"read"})), "POST /orders")

    assert decision.reason is Reason.SCOPE_INSUFFICIENT


def test_shadow_rules_are_recorded_and_not_enforced():
    more = """
[[denies]]
id = "S1"
roles = ["*"]
path = "/orders/1"
shadow = true
[[grants]]
id = "S2"
roles = ["reader"]
methods = ["PUT"]
path = "/orders"
backend = "orders-rw"
shadow = true
"""
    policy = examples(more=more)

    denied = ask(policy, identity("reader"), "GET /orders/1")
    assert (denied.allow, denied.shadow) == (True, ("S1",))
    granted = ask(policy, identity("reader"), "PUT /orders")
    assert (granted.reason, granted.shadow) == (Reason.NO_GRANT, ("S2",))
    assert ask(policy, identity("reader"), "GET /orders/2").shadow == ()
    assert ask(policy, identity("writer"), "PUT /orders").shadow == ()


def test_a_whole_policy_can_be_tried_without_being_enforced(tmp_path):
    text = EXAMPLES.replace("MULTI", '[agent]\nshadow_policy = "next.toml"')
    (tmp_path / "policy.toml").write_text(text)
    closed = '[[denies]]\nid = "D"\nroles = ["*"]\npath = "/orders/1"\n'
    wider = text.replace('methods = ["GET"]', 'methods = ["GET", "PUT"]').replace(
        'shadow_policy = "next.toml"', ""
    )
    (tmp_path / "next.toml").write_text(wider + closed)
    policy = load_policy(tmp_path / "policy.toml")

    denied = ask(policy, identity("reader"), "GET /orders/1")
    assert (denied.allow, denied.rule, denied.shadow) == (True, "R1", ("policy:denied_by_rule",))
    opened = ask(policy, identity("reader"), "PUT /orders")
    assert (opened.reason, opened.shadow) == (Reason.NO_GRANT, ("policy:allow:R1",))
    assert ask(policy, identity("reader"), "GET /orders").shadow == ()
    (tmp_path / "next.toml").write_text("version = 3\n")
    with pytest.raises(ConfigError, match=r"next\.toml"):
        load_policy(tmp_path / "policy.toml")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("api.example.com", True),
        ("API.Example.COM:8443", True),
        ("api.example.com.", True),
        ("a.b.example.com", True),
        ("example.com", False),
        ("xexample.com", False),
        ("api.example.com.evil.test", False),
        ("api.example.com,evil.test", False),
        ("evil.test/api.example.com", False),
        ("", False),
    ],
)
def test_hosts(host, allowed):
    more = """
[[grants]]
id = "H1"
roles = ["reader"]
methods = ["GET"]
path = "/host"
hosts = ["*.example.com"]
backend = "orders-ro"
"""
    assert ask(examples(more=more), identity("reader"), "GET /host", host=host).allow is allowed


def test_a_deny_by_host_also_denies_a_host_that_cannot_be_read():
    more = '[[denies]]\nid = "D1"\nroles = ["*"]\npath = "/orders"\nhosts = ["admin.example.com"]\n'
    policy = examples(more=more)

    assert ask(policy, identity("reader"), "GET /orders", host="shop.example.com").allow
    assert ask(policy, identity("reader"), "GET /orders", host="ADMIN.example.com.:80").rule == "D1"
    assert ask(policy, identity("reader"), "GET /orders", host="x, admin.example.com").rule == "D1"


def test_sources_see_through_mapped_addresses_and_faults_fall_to_the_safe_side():
    more = """
[[grants]]
id = "N1"
roles = ["reader"]
methods = ["GET"]
path = "/net"
sources = ["10.0.0.0/8", "2001:db8::/32"]
backend = "orders-ro"
[[denies]]
id = "N2"
roles = ["*"]
path = "/net/deny"
sources = ["10.9.0.0/16"]
[[grants]]
id = "N3"
roles = ["reader"]
methods = ["GET"]
path = "/net/deny"
backend = "orders-ro"
"""
    policy = examples(more=more)

    def rule(path, src):
        return policy.decide(identity("reader"), Request("GET", "", path, src)).rule

    assert rule("/net", ip_address("10.1.2.3")) == "N1"
    assert rule("/net", ip_address("::ffff:10.1.2.3")) == "N1"
    assert rule("/net", ip_address("2001:db8::7")) == "N1"
    assert rule("/net", ip_address("11.0.0.1")) == ""
    assert rule("/net/deny", ip_address("10.8.0.1")) == "N3"
    assert rule("/net/deny", ip_address("::ffff:10.9.0.1")) == "N2"
    assert rule("/net", "no address") == ""
    assert rule("/net/deny", "no address") == "N2"


def _config(data):
    return Config.model_validate(data)


@settings(max_examples=60, deadline=None)
@given(
    worlds.worlds(shadow=True),
    worlds.identities(),
    st.sampled_from([None, None, "r0", "r1", worlds.STRANGER]),
)
def test_agrees_with_a_slow_reading(data, who, requested):
    config = _config(data)
    policy = Policy(config)

    for request in worlds.REQUESTS[::3]:
        asked = replace(request, requested_role=requested)
        decision = policy.decide(who, asked)
        got = ("allow" if decision.allow else str(decision.reason), decision.rule, decision.backend)
        assert got == worlds.verdict(config, who, asked), asked


@settings(max_examples=60, deadline=None)
@given(worlds.worlds(shadow=True), worlds.identities(), st.randoms(use_true_random=False))
def test_order_never_matters(data, who, rng):
    def shuffled(value):
        if isinstance(value, dict):
            return {key: shuffled(value[key]) for key in rng.sample(list(value), len(value))}
        return (
            rng.sample([shuffled(item) for item in value], len(value)) if isinstance(value, list) else value
        )

    one, two = Policy(_config(data)), Policy(_config(shuffled(data)))
    other = who._replace(roles=tuple(rng.sample(who.roles, len(who.roles))))

    assert one.version == two.version
    for request in rng.sample(worlds.REQUESTS, 150):
        decision = one.decide(who, request)
        again = two.decide(other, request)
        assert replace(again, roles=(), unmapped=()) == replace(decision, roles=(), unmapped=())


@settings(max_examples=60, deadline=None)
@given(worlds.worlds(grants=3, denies=0, consistent=False))
def test_load_refuses_exactly_the_policies_whose_grants_can_conflict(data):
    config = _config(data)
    grants = [grant for grant in config.grants if not grant.shadow]
    conflict = any(
        one.backend != two.backend
        and (one.path, one.match) == (two.path, two.match)
        and (config.multi_role == "union" or set(one.roles) & set(two.roles))
        and any(
            worlds.matches(one, r, deny=False) and worlds.matches(two, r, deny=False) for r in worlds.REQUESTS
        )
        for one in grants
        for two in grants
    )

    try:
        load_text(json.dumps(data), "json")
    except ConfigError as error:
        messages = [problem.message for problem in error.problems]
    else:
        messages = []

    assert bool(messages) is conflict
    assert all("equally specific" in message for message in messages)


def test_version_follows_what_bears_on_verdicts_only():
    base = examples()

    assert Policy(base.config.model_copy(update={"multi_role": "union"})).version != base.version
    agent = base.config.agent.model_copy(update={"workers": 7})
    assert Policy(base.config.model_copy(update={"agent": agent})).version == base.version


def test_a_deny_by_host_also_denies_a_request_without_host():
    """The backend of an HTTP/1.0 request without Host takes the host from the request line."""
    more = '[[denies]]\nid = "D1"\nroles = ["*"]\npath = "/orders"\nhosts = ["admin.example.com"]\n'

    assert ask(examples(more=more), identity("reader"), "GET /orders", host="").rule == "D1"


@pytest.mark.parametrize(
    "request_",
    [
        Request("GET", "", "/orders" + "/a" * 2000, SRC),
        Request("GET", "", "/" + "a" * 4000, SRC),
        Request("GET", "a." * 129 + "a", "/orders", SRC),
        Request("GET", "", "/" + "%41%3a" * 680, SRC),
    ],
    ids=["deep", "long", "labels", "triplets"],
)
def test_the_work_grows_with_the_length_and_not_with_its_square(request_):
    """All prefixes of a deep path, and all suffixes of a host of many labels, are its square."""
    policy = examples(more=R6)
    long = steps(lambda: policy.decide(identity("reader"), request_))
    usual = steps(lambda: policy.decide(identity("reader"), Request("GET", "", "/orders/1", SRC)))

    assert long < usual + 20 * len(request_.host) + 3 * request_.path.count("%")
    assert sum(map(len, Query.from_request(request_, policy._reach).paths)) < 6 * len(request_.path)


def test_rules_deeper_than_most_requests_still_match():
    deep = "/a" * 40
    policy = examples(more=R5.replace("/orders", deep).replace("writer", "reader") + R6)

    assert ask(policy, identity("reader"), f"GET {deep}/b/c").rule == "R5"
    assert ask(policy, identity("reader"), f"GET {deep}").rule == "R5"
    assert ask(policy, identity("reader"), f"GET {deep[:-2]}").reason is Reason.NO_GRANT
    assert ask(policy, identity("reader"), "GET /hosts", host="a.b.c.d.example.com").rule == "R6"
