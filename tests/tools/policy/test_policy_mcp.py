"""The tools tell which calls of MCP are open as exactly as the gate judges them."""

import json
from ipaddress import ip_address
from itertools import product

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import ISSUER, arn, deny, document, grant
from test_policy_lint import useless, without

from iamroles_agent.base.identity import Identity, McpHeaders, Request, RoleArn
from iamroles_agent.policy import Policy, load_text
from iamroles_tools.commands.policy import policy as policy_command
from iamroles_tools.policy.diff import diff
from iamroles_tools.policy.lint_wide import too_wide
from iamroles_tools.policy.matrix import matrix

NEW, OLD = "2026-07-28", "2025-11-25"
URL, LATER = "https://x.test/m", "https://later.test"
CALLS = [("tools/call", "a"), ("tools/call", "b"), ("resources/read", "a"), ("tools/list", None), ("z", None)]
SAID = [(), (OLD,), *((NEW, *call) for call in CALLS)]
REQUESTS = [
    Request(method, host, path, ip_address("192.0.2.1"), mcp=McpHeaders(*said))
    for method, host, path, said in product(
        ("POST", "GET"), ("x.test", "y.test", ""), ("/", "/m", "/m/a"), SAID
    )
]
READER = (RoleArn.parse(arn("reader")),)
WHO = Identity("idp", "me", "s", READER, 2000, 1000, READER[0])
CALL, NAMED = {"method": "tools/call"}, {"name": "a"}
MCP = [{}, CALL, NAMED, CALL | NAMED, {"method": "tools/list"}]

entries = st.lists(st.sampled_from(MCP), max_size=2, unique_by=str)
paths, hosts = st.sampled_from(["/m", "/m/a"]), st.sampled_from([["x.test"], ["y.test", "*.test"]])
rows = st.tuples(paths, entries, st.one_of(hosts, st.just([])))
grants = st.lists(
    st.tuples(st.tuples(paths, entries, hosts), st.sampled_from([["POST"], ["*"]])), min_size=1, max_size=3
)
versions = st.sampled_from([[NEW], [NEW, OLD], [OLD]])


def policy(granted, denied, spoken, *others):
    rules = [
        grant(f"g{number}", "reader", " ".join(methods), path, mcp=mcp, hosts=hosts)
        for number, ((path, mcp, hosts), methods) in enumerate(granted)
    ]
    rules += [deny(f"d{n}", "*", path, mcp=mcp, hosts=hosts) for n, (path, mcp, hosts) in enumerate(denied)]
    urls = {"m": (URL, spoken), "port": ("https://x.test:8443/m", [OLD])}
    issuers = [ISSUER | {"audiences": ["api", LATER, *(url for url, _ in urls.values())]}]
    resources = [
        {"name": name, "resource": url, "validates_headers": True, "versions": versions}
        for name, (url, versions) in urls.items()
    ]
    resources += others
    roles = [{"name": "reader", "arns": [arn("reader"), arn("reader", "2" * 12)]}]
    return load_text(json.dumps(document(*rules, issuers=issuers, resources=resources, roles=roles)), "json")


def outcomes(config):
    judge = Policy(config)
    return [judge.decide(WHO, request).backend for request in REQUESTS]


@settings(max_examples=60, deadline=None)
@given(grants, st.lists(rows, max_size=2), st.lists(rows, max_size=2), versions)
def test_a_difference_is_there_exactly_if_a_call_shows_it(granted, before, after, spoken):
    old, new = policy(granted, before, spoken), policy(granted, after, spoken)
    found = diff(old, new)

    assert bool(found.opened or found.closed) is (outcomes(old) != outcomes(new))
    for changes, shut, wide in ((found.opened, old, new), (found.closed, new, old)):
        for change in changes:
            assert not Policy(shut).decide(WHO, change.witness).allow
            assert Policy(wide).decide(WHO, change.witness).allow


@settings(max_examples=60, deadline=None)
@given(grants, st.lists(rows, max_size=2), versions)
def test_what_is_called_useless_can_go(granted, denied, spoken):
    config = policy(granted, denied, spoken)

    assert outcomes(without(config, useless(config))) == outcomes(config)


ONE = (("/m", [CALL | NAMED], ["x.test"]), ["POST"])


def test_words_name_the_calls():
    config = policy([ONE], [], [NEW, OLD])
    [change] = diff(config, policy([(("/m", [CALL], ["x.test"]), ["POST"])], [], [NEW, OLD])).opened

    assert matrix(config).routes[0].where == "POST x.test/m and below calling tools/call a"
    unfit = policy([(("/m", [CALL], ["x.test"]), ["GET"])], [], [NEW])
    assert matrix(unfit).routes[0].cells["reader"].reach == "none"
    assert str(change.region[0]) == "POST x.test /m and below calling tools/call of another name"
    assert change.witness.mcp == McpHeaders(NEW, "tools/call", "other")
    odd = policy([(("/m", [CALL | {"name": "x; tools/call \u202ey"}], ["x.test"]), ["POST"])], [], [NEW])
    assert str(diff(policy([], [], [NEW]), odd).opened[0].region[0]).endswith(
        r' tools/call "x; tools/call \u202ey"'
    )


def test_a_wildcard_that_opens_a_servers_path_elsewhere_is_too_wide():
    wild = ["*.test"]
    rows = [("/m", [], wild), ("/", [], ["x.test", *wild]), ("/m", [{}], wild), ("/n", [], wild)]
    config = policy([(row, ["POST"]) for row in rows], [], [NEW])

    found = [item for item in too_wide(config) if "neither audience nor Origin" in item.message]
    assert [item.subject for item in found] == ["g0", "g1"]
    assert all(Policy(config).decide(WHO, item.witness).allow for item in found)


@pytest.mark.parametrize(
    ("mcp", "says"),
    [
        ("tools/call,a", "ALLOW by g0"),
        ("tools/call,b", "is for requests calling tools/call a"),
        ("tools/call", "Mcp-Name is missing"),
    ],
)
def test_explain_takes_a_call(tmp_path, mcp, says):
    later = {"name": "later", "resource": LATER, "versions": ["2027-01-01"]}
    (tmp_path / "p.json").write_text(policy([ONE], [], [NEW], later).model_dump_json(exclude_unset=True))
    words = ["explain", str(tmp_path / "p.json"), "POST", "x.test/m", "--role", "reader", "--mcp", mcp]
    assert says in CliRunner().invoke(policy_command, words).output
