"""MCP servers behind the gate: load, metadata, origin, audience, headers, rules, scopes, streams."""

import json
import re
from base64 import b64encode

import pytest
import tokens_support
from policies import deny, document, grant
from tokens_support import ISSUER, NOW, READER, claims, mint

from iamroles_agent.base.config import Config
from iamroles_agent.base.errors import ConfigError
from iamroles_agent.base.identity import McpHeaders
from iamroles_agent.live.judge import EXPIRED, POLICY_CHANGED, judge
from iamroles_agent.live.revocations import NONE
from iamroles_agent.policy import Policy, load_text

URL = "https://mcp.example.com/mcp"
DOCUMENT = "/.well-known/oauth-protected-resource"
NEW, OLD = "2026-07-28", "2025-11-25"
CORP = {
    "name": "corp",
    "issuer": ISSUER,
    "audiences": ["orders", URL],
    "algorithms": ["ES256"],
    "scope_claim": "scope",
}
OTHER = CORP | {
    "name": "other",
    "issuer": "https://other.example",
    "jwks_uri": "https://127.0.0.1:1/",
    "audiences": ["x"],
}
TOOLS = {"name": "tools", "resource": URL, "validates_headers": True}
READ = {"method": "tools/call", "name": "read"}
HERE = {"hosts": ["mcp.example.com"]}
OPEN = grant("open", "reader", "POST", "/mcp", **HERE, mcp=[READ, {"method": "tools/list"}])
ALL = {"name": "mcp", "path": "/mcp"}
WHOLE = grant("whole", "reader", "GET POST OPTIONS", "/", **HERE)
EVIL = "https://evil.example"


class Bench(tokens_support.Bench):
    """A gate with the resource `tools`; its rules are the policy's."""

    def __init__(self, *rules, scopes=(ALL,), resources=(TOOLS,), other="x", **issuer):
        issuers = [CORP | {"scope_required": False} | issuer, OTHER | {"audiences": [other]}]
        self.written = document(
            *rules, issuers=issuers, roles=[READER], scopes=list(scopes), resources=list(resources)
        )
        Policy(load_text(json.dumps(self.written), "json"))
        super().__init__(self.written | {"keys": {"refresh": "10d", "max_stale": "10d"}})

    def ask(self, headers=(), token=(), **changes):
        bearer = f"Bearer {mint(claims(**{'aud': URL} | dict(token)))}"
        usual = {"authorization": bearer, "method": "POST", "host": "mcp.example.com", "path": "/mcp"}
        return self.answer(**(usual | {"mcp": McpHeaders(**dict(headers))} | changes))


def tool(name, method="tools/call", version=NEW, **more):
    return {"version": version, "method": method, "name": name, **more}


def coded(name):
    return f"=?base64?{b64encode(name.encode()).decode()}?="


@pytest.fixture(scope="module")
def bench():
    return Bench(OPEN, deny("drop", "*", "/mcp", mcp=[{"name": "drop"}]))


@pytest.fixture(scope="module")
def older():
    resource = TOOLS | {"versions": [OLD, NEW], "origins": ["https://app.example.com"]}
    return Bench(OPEN, WHOLE, resources=[resource])


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (tool("read"), "allowed"),
        (tool(coded("read")), "allowed"),
        (tool(None, "tools/list"), "allowed"),
        (tool("drop", "tools/list"), "allowed"),
        (tool("Read"), "no_grant"),
        (tool("read", "resources/read"), "no_grant"),
        *((tool(name), "denied_by_rule") for name in ("drop", coded("drop"))),
        *(
            (tool(name), "mcp_invalid")
            for name in (None, "", " read", "read ", "r\xe9ad", "re\tad", "=?base64??=")
        ),
        *(
            (tool(f"=?base64?{text}?="), "mcp_invalid")
            for text in ("ZHJvcA", "ZHJvcB==", "ZHJv cA==", "/w==", "AA==")
        ),
        (tool("=?BASE64?ZHJvcA==?="), "no_grant"),
        *((tool("read", method), "mcp_invalid") for method in (None, "", "tools call", "tools/call\n")),
        *((tool("read", version=version), "mcp_invalid") for version in (None, "", OLD, "2027-01-01")),
        *(
            (tool("read", origin=origin), "origin_refused")
            for origin in ("null", "", EVIL, "HTTPS://mcp.example.com")
        ),
        (tool("read", origin="https://mcp.example.com"), "allowed"),
        (tool("x" * 1025), "text_too_long"),
    ],
    ids=lambda value: repr(value)[:80],
)
def test_a_call_is_judged_by_sound_headers_alone(bench, headers, reason):
    said = bench.ask(headers)

    assert said.get("reason", "allowed") == reason
    assert said["resource"] == f"https://mcp.example.com{DOCUMENT}/mcp"
    assert said.get("origin") == (headers.get("origin") if reason == "allowed" else None)


def test_of_an_older_revision_the_call_is_unknown(older):
    closed = Bench(
        grant("whole", "reader", "POST", "/mcp", **HERE),
        deny("d", "*", "/mcp", mcp=[READ]),
        resources=[TOOLS | {"versions": [OLD]}],
    )

    assert [older.reason(tool("x", version=version)) for version in (OLD, None, NEW)] == ["allowed"] * 3
    assert older.ask(tool("read"))["rule"] == "open"
    assert older.ask(tool("read", version=OLD))["rule"] == "whole"
    assert older.reason({"version": NEW}, method="GET") == "mcp_invalid"
    assert older.reason({"version": OLD}, method="GET") == "allowed"
    assert closed.reason(tool("read", version=OLD)) == closed.reason() == "denied_by_rule"


def test_a_resource_opens_to_tokens_for_it_alone(bench):
    part = "https://mcp.example.com/a"
    outside = Bench(WHOLE, resources=[TOOLS | {"resource": part}], scopes=(), audiences=["orders", part])
    foreign = Bench(WHOLE, resources=[TOOLS | {"issuers": ["other"]}], other=URL)

    assert bench.reason(tool("read"), {"aud": "orders"}) == "audience_mismatch"
    assert bench.reason(tool("read"), {"aud": ["orders", URL]}) == "allowed"
    assert bench.reason(tool("read"), {"aud": "orders"}, host="MCP.example.com.:9999") == "audience_mismatch"
    assert outside.reason(tool("x"), {"aud": "orders"}, path="/a/b/") == "audience_mismatch"
    assert outside.reason({}, {"aud": "orders"}, path="/ab") == "allowed"
    assert foreign.reason(tool("x")) == "issuer_untrusted"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *((DOCUMENT + end, 200) for end in ("/mcp", "/mcp/", "/m%63p")),
        *((DOCUMENT + end, 401) for end in ("", "/", "/mcp-evil", "/mcp/x", "/MCP")),
        *((DOCUMENT + end, 400) for end in ("/mcp/../x", "/mcp;x")),
    ],
)
def test_metadata_has_an_exact_path_and_no_lock(bench, path, status):
    said = bench.ask(method="GET", path=path, authorization=None, authorization_count=0)
    found = json.loads(said["document"]) if "document" in said else {}

    assert (said["status"], said["allow"]) == (status, False)
    assert found.get("resource", URL) == URL
    assert (status == 200) is ("reason" not in said) is bool(found)


def test_metadata_says_what_the_policy_says():
    bound = {"bound": "required", "scope_claim": None}
    bench = Bench(WHOLE, scopes=[ALL, {"name": "elsewhere", "path": "/x"}], **bound)
    with_dpop = Policy(
        Config.model_validate(bench.written | {"dpop": {"origins": ["https://mcp.example.com"]}})
    )

    assert json.loads(with_dpop.resources.targets[0].document) == {
        "resource": URL, "authorization_servers": [ISSUER], "scopes_supported": ["mcp"],
        "bearer_methods_supported": ["header"], "dpop_signing_alg_values_supported": ["ES256"],
        "dpop_bound_access_tokens_required": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "origin", "status"),
    [
        ("/mcp", "https://app.example.com", 204),
        ("/mcp", EVIL, 403),
        ("/mcp", None, 401),
        (DOCUMENT + "/mcp", EVIL, 204),
        (DOCUMENT, EVIL, 401),
    ],
)
def test_a_preflight_has_no_credential(older, path, origin, status):
    headers = {"preflight": "POST", "origin": origin}
    said = older.ask(headers, method="OPTIONS", path=path, authorization=None, authorization_count=0)

    assert (said["status"], said["allow"], said.get("origin")) == (
        status, False, origin if (status, path) == (204, "/mcp") else None
    )  # fmt: skip


def test_a_refusal_names_the_narrowest_scope():
    names = {"b": [READ], "a": [READ], "tool": [{"name": "read"}], "any": [{}], "path": []}
    scopes = [{"name": name, "path": "/mcp", "mcp": entries} for name, entries in names.items()]
    bench = Bench(
        WHOLE, scopes=[*scopes, {"name": "exact", "path": "/mcp", "match": "exact"}], scope_required=True
    )
    anonymous = {"authorization": None, "authorization_count": 0}

    assert bench.ask(tool("read"))["scope"] == bench.ask(tool("read"), **anonymous)["scope"] == "a"
    assert bench.ask(tool("read", "prompts/get"))["scope"] == "tool"
    assert bench.ask(tool("x"), **anonymous)["scope"] == "any"
    assert bench.ask(**anonymous)["scope"] == "exact"
    assert bench.ask(path="/mcp/below", **anonymous)["scope"] == "path"
    assert "scope" not in bench.ask(tool("x"), path="/elsewhere", **anonymous)
    assert "scope" not in Bench(WHOLE, scope_claim=None).ask(**anonymous)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"resource": url}, "resource") for url in (
            "https://MCP.example.com/mcp", URL + "/", URL + "?a", URL + "#a", "https://a@mcp.example.com/mcp",
            "https://mcp.example.com:443/mcp", "http://mcp.example.com/mcp", "mcp.example.com/mcp",
            URL + "/../x", URL + "/%6d", URL + '/"',
        )),
        ({"issuers": ["other"]}, "do not hold"),
        ({"issuers": ["nobody"]}, "nobody"),
        ({"versions": []}, "versions"),
        ({"versions": ["latest"]}, "versions[0]"),
        ({"origins": ["https://app.example.com/"]}, "origins[0]"),
        ({"validates_headers": False}, "could name another tool"),
        ({"resource": "https://mcp.example.com/mcp/below"}, "not at or below"),
    ],
    ids=lambda value: repr(value)[:80],
)  # fmt: skip
def test_what_cannot_hold_is_refused_when_it_loads(change, message):
    audiences = ["orders", URL, change.get("resource", "x")]
    with pytest.raises(ConfigError, match=re.escape(message)):
        Bench(OPEN, resources=[TOOLS | change], audiences=audiences)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"method": "tools list"}, "not a method"),
        ({"method": "tools/list", "name": "x"}, "have no name"),
        ({"name": ""}, "is empty"),
        ({"title": "x"}, "not a known key"),
    ],
    ids=lambda value: repr(value)[:80],
)
def test_an_entry_that_fits_nothing_is_refused_when_it_loads(entry, message):
    with pytest.raises(ConfigError, match=message):
        Bench(WHOLE, deny("d", "*", "/mcp", mcp=[entry]))


@pytest.mark.parametrize(("path", "match"), [("/mcp", "exact"), ("/", "prefix"), ("/mcp/x", "prefix")])
def test_a_grant_around_a_resource_is_refused_when_it_loads(path, match):
    with pytest.raises(ConfigError, match="with any `Host`"):
        Bench(grant("around", "reader", "GET", path, match=match, shadow=True))
    Bench(grant("beside", "reader", "GET", "/", match="exact"), grant("far", "reader", "GET", "/mcpx"))


def test_grants_for_different_calls_do_not_conflict():
    two = grant(
        "two",
        "reader",
        "POST",
        "/mcp",
        "c",
        **HERE,
        mcp=[{"method": "tools/list"}, {"method": "prompts/get"}],
    )
    Bench(grant("one", "reader", "POST", "/mcp", **HERE, mcp=[{"name": "x", "method": "tools/call"}]), two)
    with pytest.raises(ConfigError, match="equally specific"):
        Bench(grant("one", "reader", "POST", "/mcp", **HERE, mcp=[{"name": "x"}]), two)


def test_a_stream_ends_when_its_call_or_audience_no_longer_opens(bench):
    ticket = bench.ask(tool(coded("read"), origin="https://mcp.example.com"))["ticket"]
    end = NOW + 300

    def again(*rules, **more):
        policy = Policy(Config.model_validate(Bench(*rules, **more).written))
        return judge(ticket, end, NOW + 1, policy=policy, sources={}, revocations=NONE).cause

    moved = "https://mcp.example.com"
    assert again(OPEN) == EXPIRED
    assert again(OPEN | {"mcp": [{"name": "other"}]}) == POLICY_CHANGED
    assert again(OPEN, deny("d", "*", "/mcp", mcp=[READ])) == POLICY_CHANGED
    assert again(OPEN, resources=[TOOLS | {"versions": ["2027-01-01"]}]) == POLICY_CHANGED
    assert again(OPEN, resources=[TOOLS | {"resource": moved}], audiences=[URL, moved]) == POLICY_CHANGED


def test_a_policy_without_resources_is_as_before():
    plain = Bench(WHOLE, resources=(), scopes=())

    assert plain.reason({"origin": EVIL, "version": "x"}, {"aud": "orders"}) == "allowed"
    assert not {"resource", "origin", "scope"} & plain.ask().keys()
