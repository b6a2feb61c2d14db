"""The decision: worked examples, agreement with a slow reading of the specification, laws of order."""

import json
from dataclasses import replace
from ipaddress import ip_address

import policy_worlds as worlds
import pytest
from counting import steps
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import arn, deny, grant, role, text

from iamroles_agent.base.config import Config
from iamroles_agent.base.errors import ConfigError
from iamroles_agent.base.identity import Actor, Identity, Request, RoleArn
from iamroles_agent.base.reasons import Reason
from iamroles_agent.policy import Policy, load_policy, load_text
from iamroles_agent.policy.compiled import Query

SRC = ip_address("192.0.2.1")
RULES = (
    grant("R1", "reader", "GET", "/orders", "orders-ro"),
    grant("R2", "writer", "POST", "/orders", "orders-rw"),
    deny("R3", "contractor", "/orders/export"),
    grant("R4", "reader", "GET", "/orders/export", "export"),
)
TABLES = {
    "roles": [role("reader"), role("writer", max_lifetime="5m"), role("contractor")],
    "scopes": [{"name": "read", "methods": ["GET"], "path": "/orders"}],
}
R5 = grant("R5", "writer", "GET", "/orders", "orders-rw")
R6 = grant("R6", "reader", "GET", "/hosts", "orders-rw", hosts=["*.d.example.com"])


def written(*more, **tables):
    return text(*RULES, *more, **TABLES | tables)


def examples(*more, **tables):
    return Policy(load_text(written(*more, **tables), "json"))


def identity(*roles, **changes):
    arns = tuple(RoleArn.parse(role if role.startswith("arn:") else arn(role)) for role in roles)
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
        (["reader", "writer"], arn("writer"), "POST /orders", ("R2", "writer", "orders-rw")),
        (["reader", "writer"], "writer", "GET /orders", Reason.NO_GRANT),
        (["reader", "writer"], "admin", "GET /orders", Reason.ROLE_NOT_IN_TOKEN),
        (["reader", "writer"], arn("admin"), "GET /orders", Reason.ROLE_NOT_IN_TOKEN),
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
        assert (decision.rule, decision.role, decision.backend) == (rule, arn(role), backend)


def test_conflict_of_equal_specificity_is_a_load_error_under_union():
    examples(R5)
    with pytest.raises(ConfigError) as caught:
        examples(R5, multi_role="union")

    [problem] = caught.value.problems
    assert "'R1' and 'R5'" in problem.message
    assert "GET /orders" in problem.message
    with pytest.raises(
        ConfigError
    ) as beside:  # a grant whose region cannot be read hides no other's conflict
        examples(R5, {**R5, "id": "R6", "methods": ["get"]}, multi_role="union")
    assert [problem.key.partition("[")[0] for problem in beside.value.problems] == ["grants", "grants"]
    before, _, after = written(R5, multi_role="union").partition('"R5"')
    assert problem.line == (before + after.partition('"backend"')[0]).count("\n") + 1


def test_union_activates_all_roles():
    union, who = examples(multi_role="union"), identity("reader", "writer")

    assert ask(union, who, "POST /orders").rule == "R2"
    assert ask(union, who, "GET /orders").rule == "R1"
    assert ask(union, identity("reader", "contractor"), "GET /orders/export").rule == "R3"
    china = [arn("reader").replace("aws:", "aws-cn:"), arn("reader")]
    union = examples(multi_role="union", roles=[{"name": "reader", "arns": china}, *TABLES["roles"][1:]])
    assert ask(union, identity(*reversed(china)), "GET /orders").role == china[0]  # the smaller text


def test_preferred_role_is_used_if_held_and_else_ignored():
    writer, contractor = RoleArn.parse(arn("writer")), RoleArn.parse(arn("contractor"))

    held = identity("reader", "writer", preferred=writer)
    assert ask(examples(), held, "POST /orders").rule == "R2"
    assert ask(examples(), held, "GET /orders", "reader").rule == "R1"
    stranger = identity("reader", "writer", preferred=contractor)
    assert ask(examples(), stranger, "POST /orders").reason is Reason.AMBIGUOUS_ROLE


def test_unmapped_roles_are_recorded_and_count_as_roles():
    decision = ask(examples(), identity("reader", "unheard-of"), "GET /orders")

    assert decision.reason is Reason.AMBIGUOUS_ROLE
    assert decision.unmapped == (arn("unheard-of"),)
    assert decision.roles == (arn("reader"), arn("unheard-of"))


def test_refusals_carry_who_it_was():
    decision = ask(examples(), identity("reader"), "POST /orders")

    assert (decision.principal, decision.session, decision.issuer) == ("ann", "s1", "idp")
    assert (decision.role, decision.expires, decision.status) == (arn("reader"), 10_000, 403)


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
    ("whom", "scopes", "line", "reason"),
    [
        ("reader", None, "GET /orders", None),
        ("reader", {"read"}, "GET /orders", None),
        ("reader", {"other", "read"}, "GET /orders", None),
        ("reader", {"other"}, "GET /orders", Reason.SCOPE_INSUFFICIENT),
        ("reader", set(), "GET /orders", Reason.SCOPE_INSUFFICIENT),
        ("reader", {"read"}, "POST /orders", Reason.NO_GRANT),
        ("writer", {"read"}, "POST /orders", Reason.SCOPE_INSUFFICIENT),
    ],
)
def test_scopes_intersect_with_the_roles_grants_and_open_nothing_more(whom, scopes, line, reason):
    who = identity(whom, scopes=None if scopes is None else frozenset(scopes))

    assert ask(examples(), who, line).reason is reason


def test_shadow_rules_are_recorded_and_not_enforced():
    policy = examples(
        deny("S1", "*", "/orders/1", shadow=True),
        grant("S2", "reader", "PUT", "/orders", "orders-rw", shadow=True),
    )

    denied = ask(policy, identity("reader"), "GET /orders/1")
    assert (denied.allow, denied.shadow) == (True, ("S1",))
    granted = ask(policy, identity("reader"), "PUT /orders")
    assert (granted.reason, granted.shadow) == (Reason.NO_GRANT, ("S2",))
    assert ask(policy, identity("reader"), "GET /orders/2").shadow == ()
    assert ask(policy, identity("writer"), "PUT /orders").shadow == ()


def test_a_shadow_rule_with_actors_is_recorded_for_them_alone():
    policy = examples(
        deny("S1", "*", "/orders/1", actors=[{"sub": "bot"}], shadow=True),
        grant("S2", "reader", "PUT", "/orders", "orders-rw", actors=[{"sub": "bot"}], shadow=True),
    )

    def asked(actor, line):
        found = ask(policy, identity("reader")._replace(actor=actor), line)
        return found.allow, found.shadow

    bot, other = Actor("bot", "https://idp.test"), Actor("svc", "https://idp.test")
    for line, allow, rule in (("GET /orders/1", True, "S1"), ("PUT /orders", False, "S2")):
        assert asked(bot, line) == (allow, (rule,))
        assert asked(other, line) == asked(None, line) == (allow, ())


def test_a_whole_policy_can_be_tried_without_being_enforced(tmp_path):
    path, following = tmp_path / "policy.json", tmp_path / "next.json"
    path.write_text(written(agent={"shadow_policy": "next.json"}))
    wider = [rule | {"methods": ["GET", "PUT"]} if rule.get("methods") == ["GET"] else rule for rule in RULES]
    following.write_text(text(*wider, deny("D", "*", "/orders/1"), **TABLES))
    policy = load_policy(path)

    denied = ask(policy, identity("reader"), "GET /orders/1")
    assert (denied.allow, denied.rule, denied.shadow) == (True, "R1", ("policy:denied_by_rule",))
    opened = ask(policy, identity("reader"), "PUT /orders")
    assert (opened.reason, opened.shadow) == (Reason.NO_GRANT, ("policy:allow:R1",))
    assert ask(policy, identity("reader"), "GET /orders").shadow == ()
    following.write_text('{"version": 3}')
    with pytest.raises(ConfigError, match=r"next\.json"):
        load_policy(path)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        *(("api.example.com", True), ("API.Example.COM:8443", True), ("api.example.com.", True)),
        *(("a.b.example.com", True), ("example.com", False), ("xexample.com", False)),
        *(("api.example.com.evil.test", False), ("api.example.com,evil.test", False)),
        *(("evil.test/api.example.com", False), ("", False)),
    ],
)
def test_hosts(host, allowed):
    policy = examples(grant("H1", "reader", "GET", "/host", "orders-ro", hosts=["*.example.com"]))

    assert ask(policy, identity("reader"), "GET /host", host=host).allow is allowed


@pytest.mark.parametrize(
    ("host", "rule"),
    [("shop.example.com", "R1"), ("ADMIN.example.com.:80", "D1"), ("x, admin.example.com", "D1"), ("", "D1")],
)
def test_a_deny_by_host_also_denies_a_host_that_cannot_be_read(host, rule):
    """And no host: the backend of an HTTP/1.0 request without Host takes it from the request line."""
    policy = examples(deny("D1", "*", "/orders", hosts=["admin.example.com"]))

    assert ask(policy, identity("reader"), "GET /orders", host=host).rule == rule


@pytest.mark.parametrize(
    ("path", "src", "rule"),
    [
        *(("/net", ip_address("10.1.2.3"), "N1"), ("/net", ip_address("::ffff:10.1.2.3"), "N1")),
        *(("/net", ip_address("2001:db8::7"), "N1"), ("/net", ip_address("11.0.0.1"), "")),
        *(("/net/deny", ip_address("10.8.0.1"), "N3"), ("/net/deny", ip_address("::ffff:10.9.0.1"), "N2")),
        *(("/net", "no address", ""), ("/net/deny", "no address", "N2")),
    ],
)
def test_sources_see_through_mapped_addresses_and_faults_fall_to_the_safe_side(path, src, rule):
    policy = examples(
        grant("N1", "reader", "GET", "/net", "orders-ro", sources=["10.0.0.0/8", "2001:db8::/32"]),
        deny("N2", "*", "/net/deny", sources=["10.9.0.0/16"]),
        grant("N3", "reader", "GET", "/net/deny", "orders-ro"),
    )

    assert policy.decide(identity("reader"), Request("GET", "", path, src)).rule == rule


@settings(max_examples=60, deadline=None)
@given(
    worlds.worlds(shadow=True),
    worlds.identities(),
    st.sampled_from([None, None, "r0", "r1", worlds.STRANGER]),
)
def test_agrees_with_a_slow_reading(data, who, requested):
    policy = Policy(Config.model_validate(data))

    for request in worlds.REQUESTS[::3]:
        asked = replace(request, requested_role=requested)
        decision = policy.decide(who, asked)
        got = ("allow" if decision.allow else str(decision.reason), decision.rule, decision.backend)
        assert got == worlds.verdict(data, who, asked), asked


@settings(max_examples=60, deadline=None)
@given(worlds.worlds(shadow=True), worlds.identities(), st.randoms(use_true_random=False))
def test_order_never_matters(data, who, rng):
    def shuffled(value):
        if isinstance(value, dict):
            return {key: shuffled(value[key]) for key in rng.sample(list(value), len(value))}
        is_list = isinstance(value, list)
        return rng.sample([shuffled(item) for item in value], len(value)) if is_list else value

    one, two = Policy(Config.model_validate(data)), Policy(Config.model_validate(shuffled(data)))
    other = who._replace(roles=tuple(rng.sample(who.roles, len(who.roles))))

    assert one.version == two.version
    for request in rng.sample(worlds.REQUESTS, 150):
        decision = one.decide(who, request)
        again = two.decide(other, request)
        assert replace(again, roles=(), unmapped=()) == replace(decision, roles=(), unmapped=())


@settings(max_examples=60, deadline=None)
@given(worlds.worlds(grants=3, denies=0, consistent=False))
def test_load_refuses_exactly_the_policies_whose_grants_can_conflict(data):
    config = Config.model_validate(data)
    grants = [grant for grant in config.grants if not grant.shadow]
    conflict = any(
        one.backend != two.backend
        and (one.path, one.match) == (two.path, two.match)
        and (config.multi_role == "union" or set(one.roles) & set(two.roles))
        and any(all(worlds.matches(each, r, deny=False) for each in (one, two)) for r in worlds.REQUESTS)
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


@pytest.mark.parametrize(
    "request_",
    [
        *(Request("GET", "", "/orders" + "/a" * 2000, SRC), Request("GET", "", "/" + "a" * 4000, SRC)),
        *(Request("GET", "a." * 129 + "a", "/orders", SRC), Request("GET", "", "/" + "%41%3a" * 680, SRC)),
    ],
    ids=["deep", "long", "labels", "triplets"],
)
def test_the_work_grows_with_the_length_and_not_with_its_square(request_):
    """All prefixes of a deep path, and all suffixes of a host of many labels, are its square."""
    policy = examples(R6)
    long = steps(lambda: policy.decide(identity("reader"), request_))
    usual = steps(lambda: policy.decide(identity("reader"), Request("GET", "", "/orders/1", SRC)))

    assert long < usual + 20 * len(request_.host) + 3 * request_.path.count("%")
    assert sum(map(len, Query.from_request(request_, policy._reach).paths)) < 6 * len(request_.path)


def test_rules_deeper_than_most_requests_still_match():
    deep = "/a" * 40
    policy = examples(R5 | {"path": deep, "roles": ["reader"]}, R6)

    assert ask(policy, identity("reader"), f"GET {deep}/b/c").rule == "R5"
    assert ask(policy, identity("reader"), f"GET {deep}").rule == "R5"
    assert ask(policy, identity("reader"), f"GET {deep[:-2]}").reason is Reason.NO_GRANT
    assert ask(policy, identity("reader"), "GET /hosts", host="a.b.c.d.example.com").rule == "R6"
