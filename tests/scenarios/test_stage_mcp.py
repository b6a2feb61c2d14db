"""MCP servers behind each HAProxy, before a puppet agent, whose answers no sound agent gives."""

import base64
import json

import puppet_gate
import pytest
from puppet_gate import ISSUER, POLICY, YES, ask, asked, nobody_asked, puppet_spec, record

stage = puppet_gate.stage

METADATA = "https://mcp.example/.well-known/oauth-protected-resource/mcp"
ORIGIN = "https://app.example"
AT, HERE = {"resource": METADATA}, "https://mcp.example/mcp"
TABLES = {"resources": [{"name": "mcp", "resource": HERE}], "dpop": {"origins": [ORIGIN], "replay": "none"}}
BEARER, HINT = 'Bearer realm="iam"', f', resource_metadata="{METADATA}"'
PAGE = json.dumps({"resource": HERE, "scopes_supported": ["%[x]", "y" * 7000]})
FIELDS = ("MCP-Protocol-Version", "Mcp-Method", "Mcp-Name", "Origin", "Access-Control-Request-Method")


@pytest.fixture(scope="module", params=[{}, {"bound": "accepted"}], ids=["bearer", "dpop"])
def world(request, stage):
    issuer = ISSUER | {"audiences": [HERE]} | request.param
    with stage.world(puppet_spec(), POLICY | TABLES | {"issuers": [issuer]}) as world:
        world.schemes = 1 + bool(request.param)
        yield world


def no(status, error="", **more):
    return {"status": status, "allow": False, "error": error, **AT, **more}


def all_of(answer, name):
    return [value for key, value in answer.headers if key.lower() == name]


def bearer(world, answer):
    """The challenge for Bearer; each has the same hint."""
    found = all_of(answer, "www-authenticate")
    assert [HINT in one for one in found] == [HINT in found[0]] * world.schemes, found
    return next(one for one in found if one.startswith("Bearer"))


def test_metadata_is_whole_and_a_preflight_says_what_pages_may_send(world):
    page = {"status": 200, "allow": False, "document": PAGE}
    for method, body in (("GET", PAGE), ("HEAD", "")):
        answer = ask(world, "/x", page, method=method)
        assert (answer.status, answer.body.decode(), all_of(answer, "www-authenticate")) == (200, body, [])
        assert all_of(answer, "cache-control") == ["public, max-age=300"]
    for said, allowed in (({"origin": ORIGIN, **AT}, ORIGIN), ({}, "*"), ({"origin": "a b"}, "*")):
        answer = ask(world, "/mcp", {"status": 204, "allow": False, **said}, method="OPTIONS")
        assert all_of(answer, "access-control-allow-origin") == [allowed]
        assert all_of(answer, "access-control-allow-headers")[0].endswith(", *")  # Mcp-Param-*
        assert (answer.status, answer.body) == (204, b"")
    halves = {"document": ""}, {"allow": True}, {"status": 205}, {"fault": 1}, {"allow": True, "status": 204}
    for half in halves:
        answer = {name: value for name, value in (page | half).items() if value != ""}
        assert ask(world, "/x", answer).status == 503, half


@pytest.mark.parametrize(
    ("answer", "challenge"),
    [
        (no(401, scope="a:b"), f'{BEARER}, scope="a:b"{HINT}'),
        (no(403, "insufficient_scope", scope="a"), f'{BEARER}, error="insufficient_scope", scope="a"{HINT}'),
        (no(400, "invalid_request"), f'{BEARER}, error="invalid_request"{HINT}'),
        *((no(401, scope=text), BEARER + HINT) for text in ('a"b', "a\\b", "a b", "a\n", "", "\\1")),
        *((no(401, resource=url), BEARER) for url in ('https://a"', "a b", "a\r\nX: y", "")),
        ({"status": 401, "allow": False, "scope": "a"}, BEARER),
    ],
    ids=repr,
)
def test_a_challenge_has_only_texts_of_the_form_of_their_field(world, answer, challenge):
    assert bearer(world, ask(world, "/mcp", answer)) == challenge


def test_a_servers_own_challenge_stays_behind_and_pages_see_the_gates(world):
    theirs = 'WWW-Authenticate: Bearer resource_metadata="https://evil.example"\r\nContent-Length: 0\r\n\r\n'
    target, good = (
        "/mcp?raw="
        + base64.urlsafe_b64encode(f"HTTP/1.1 {status} X\r\n{theirs}".encode()).decode().rstrip("=")
        for status in (401, 200)
    )
    refused = ask(world, target, {**YES, **AT, "origin": ORIGIN})

    assert (refused.status, bearer(world, refused)) == (401, BEARER + HINT)
    assert all_of(refused, "access-control-allow-origin") == [ORIGIN]
    assert "WWW-Authenticate" in all_of(refused, "access-control-expose-headers")[0]
    assert all_of(ask(world, good, {**YES, **AT}), "www-authenticate") == []
    assert "evil" in ask(world, target).challenge


@pytest.mark.parametrize(
    "query", ["access_token=x", "a=b&ACCESS_TOKEN=x", "a;access_token", "acces%73%5Ftoken=x"]
)
def test_a_token_in_the_query_goes_no_further(world, query):
    answer = ask(world, f"/mcp?{query}", {**YES, **AT})

    assert (answer.status, bearer(world, answer)) == (400, f'{BEARER}, error="invalid_request"{HINT}')
    assert record(world, reason="query_token")["verdict"] == "400"
    assert "scope" not in bearer(world, ask(world, f"/mcp?{query}", no(401, scope="a")))
    assert ask(world, f"/mcp?my_{query.replace('&', '-').replace(';', '-')}", {**YES, **AT}).status == 200


def test_fields_are_asked_whole_and_go_on_without_look_alikes(world):
    sent = dict(zip(FIELDS, ("2026-07-28", "tools/call", "a, b", ORIGIN, "POST"), strict=True))
    headers = [f"{name}: {value}" for name, value in sent.items()]
    answer = ask(
        world, "/mcp", headers=[*headers, "Mcp-Param-X: y", "Mcp_Name: c", "Mcp-Protocol_Version: d"]
    )
    said = asked(world, answer.header("x-iam-request-id")[0])

    assert [said[name] for name in ("mcp-version", "mcp-method", "mcp-name", "origin", "preflight")] == [
        *sent.values()
    ]
    assert (answer.header("mcp-name"), answer.header("mcp-param-x")) == (["a, b"], ["y"])
    assert not answer.header("mcp_name") + answer.header("mcp-protocol_version")
    with nobody_asked(world):
        for name in FIELDS:
            assert ask(world, "/mcp", headers=[f"{name}: a", f"{name}: a"]).status == 400
            assert ask(world, "/mcp", headers=[f"{name}: {'a' * 1025}"]).status == 400


def test_nothing_of_this_is_there_without_resources(stage):
    with stage.world(puppet_spec(), POLICY) as world:
        assert ask(world, "/mcp", {"status": 200, "allow": False, "document": PAGE}).status == 503
        assert ask(world, "/mcp", no(401, scope="a")).challenge == BEARER
        twice = ["Origin: a", "Origin: b"]
        assert ask(world, "/mcp?access_token=x", {**YES, **AT}, headers=twice).status == 200
