"""MCP servers behind each HAProxy, before a puppet agent: answers, challenges, queries, headers."""

import base64
import json

import pytest
from puppet_gate import POLICY, YES, ask, asked, nobody_asked, places, puppet_spec, record

from iamroles_scenarios.stage import open_stage

METADATA = "https://mcp.example/.well-known/oauth-protected-resource/mcp"
ORIGIN = "https://app.example"
AT = {"resource": METADATA}
BEARER = 'Bearer realm="iam"'
HINT = f', resource_metadata="{METADATA}"'
DPOP = {"IAM_BOUND": "yes", "IAM_DPOP": "ES256"}
PREFLIGHT = {"status": 204, "allow": False}
PAGE = json.dumps({"resource": "https://mcp.example/mcp", "scopes_supported": ["%[x]", "y" * 7000]})


@pytest.fixture(scope="module", params=places())
def stage(request):
    kind, haproxy = request.param
    if kind == "containers":
        request.getfixturevalue("engine")
    with open_stage(kind, haproxy=haproxy) as stage:
        yield stage


@pytest.fixture(scope="module", params=[{}, DPOP], ids=["bearer", "dpop"])
def world(request, stage):
    with stage.world(puppet_spec(), POLICY, settings={"IAM_MCP": "yes", **request.param}) as world:
        world.dpop = bool(request.param)
        yield world


def no(status, error="", **more):
    return {"status": status, "allow": False, **({"error": error} if error else {}), **AT, **more}


def all_of(answer, name):
    return [value for key, value in answer.headers if key.lower() == name.lower()]


def bearer(world, answer):
    """The challenge for Bearer, which stands alone unless DPoP is on."""
    found = all_of(answer, "www-authenticate")
    assert len(found) == 1 + world.dpop, found
    return next(one for one in found if one.startswith("Bearer"))


def served(text):
    return "/mcp?raw=" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def test_metadata_is_for_everybody_and_whole(world):
    answers = [
        ask(world, "/x", {"status": 200, "allow": False, "document": PAGE}, method=m) for m in ("GET", "HEAD")
    ]

    for answer, body in zip(answers, (PAGE, ""), strict=True):
        assert (answer.status, answer.body.decode()) == (200, body)
        assert all_of(answer, "content-type") == ["application/json"]
        assert all_of(answer, "access-control-allow-origin") == ["*"]
        assert all_of(answer, "cache-control") == ["public, max-age=300"]
        assert not all_of(answer, "www-authenticate")


@pytest.mark.parametrize(
    ("said", "allowed"), [({"origin": ORIGIN, **AT}, ORIGIN), ({}, "*"), ({"origin": "a b"}, "*")]
)
def test_a_preflight_says_what_browsers_may_send(world, said, allowed):
    answer = ask(world, "/mcp", {**PREFLIGHT, **said}, method="OPTIONS")

    assert (answer.status, answer.body) == (204, b"")
    assert all_of(answer, "access-control-allow-origin") == [allowed]
    assert all_of(answer, "vary") == ["Origin"]
    assert "Mcp-Name" in all_of(answer, "access-control-allow-headers")[0]


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 200, "allow": False},
        {"status": 200, "document": PAGE},
        {"status": 204},
        {"status": 205, "allow": False},
        {"status": 200, "allow": False, "document": PAGE, "fault": 1},
        {"status": 204, "allow": True, "document": PAGE},
    ],
    ids=repr,
)
def test_what_is_no_whole_answer_opens_nothing(world, answer):
    assert ask(world, "/mcp", answer).status == 503


@pytest.mark.parametrize(
    ("answer", "challenge"),
    [
        (no(401, scope="mcp:read"), f'{BEARER}, scope="mcp:read"{HINT}'),
        (no(401, "invalid_token"), f'{BEARER}, error="invalid_token"{HINT}'),
        (no(403, "insufficient_scope", scope="a"), f'{BEARER}, error="insufficient_scope", scope="a"{HINT}'),
        (no(403), BEARER + HINT),
        (no(400, "invalid_request"), f'{BEARER}, error="invalid_request"{HINT}'),
        *((no(401, scope=text), BEARER + HINT) for text in ('a"b', "a\\b", "a b", "a\n", "", "\\1")),
        *(
            (no(401, scope="a", resource=url), f'{BEARER}, scope="a"')
            for url in ('https://a"', "a b", "a\r\nX: y", "")
        ),
        ({"status": 401, "allow": False, "scope": "a"}, BEARER),
    ],
    ids=repr,
)
def test_a_challenge_names_the_metadata_and_one_scope(world, answer, challenge):
    assert bearer(world, ask(world, "/mcp", answer)) == challenge


def test_each_scheme_gets_the_hint(world):
    found = all_of(ask(world, "/mcp", no(401, scope="a")), "www-authenticate")

    assert all(one.endswith(f', scope="a"{HINT}') for one in found)
    assert not world.dpop or found[0].startswith("DPoP ") or found[1].startswith("DPoP ")


def test_the_gates_own_answers_are_for_the_origin(world):
    answer = ask(world, "/mcp", no(401, origin=ORIGIN))

    assert all_of(answer, "access-control-allow-origin") == [ORIGIN]
    assert all_of(answer, "vary") == ["Origin"]
    assert "WWW-Authenticate" in all_of(answer, "access-control-expose-headers")[0]
    assert not all_of(ask(world, "/mcp", no(401)), "access-control-allow-origin")
    assert not all_of(ask(world, "/mcp", {**YES, **AT, "origin": ORIGIN}), "access-control-allow-origin")


def test_a_servers_own_challenge_stays_behind_the_gate(world):
    theirs = 'WWW-Authenticate: Bearer resource_metadata="https://evil.example"\r\nContent-Length: 0\r\n\r\n'
    refused = ask(world, served(f"HTTP/1.1 401 X\r\n{theirs}"), {**YES, **AT})
    passed = ask(world, served(f"HTTP/1.1 200 X\r\n{theirs}"), {**YES, **AT})
    outside = ask(world, served(f"HTTP/1.1 401 X\r\n{theirs}"), YES)

    assert (refused.status, bearer(world, refused)) == (401, BEARER + HINT)
    assert (passed.status, all_of(passed, "www-authenticate")) == (200, [])
    assert "evil" in outside.challenge


@pytest.mark.parametrize(
    ("query", "status"),
    [
        *(
            ("access_token=x", 400),
            ("a=b&ACCESS_TOKEN=x", 400),
            ("a;access_token", 400),
            ("acces%73%5Ftoken=x", 400),
        ),
        *(("my_access_token=x", 200), ("access_tokens=x", 200), ("a=access_token%3Dx", 200), ("", 200)),
    ],
)
def test_a_token_in_the_query_goes_no_further(world, query, status):
    answer = ask(world, f"/mcp?{query}", {**YES, **AT})

    assert answer.status == status
    if status == 400:
        assert bearer(world, answer) == f'{BEARER}, error="invalid_request"{HINT}'
        assert record(world, reason="query_token")["verdict"] == "400"
        assert bearer(world, ask(world, f"/mcp?{query}", no(401, scope="a"))).count("scope") == 0
        assert ask(world, f"/mcp?{query}").status == 200


FIELDS = ("MCP-Protocol-Version", "Mcp-Method", "Mcp-Name", "Origin", "Access-Control-Request-Method")


def test_the_agent_is_asked_by_whole_fields_which_go_on(world):
    values = ("2026-07-28", "tools/call", "a, b", ORIGIN, "POST")
    headers = [f"{name}: {value}" for name, value in zip(FIELDS, values, strict=True)]
    answer = ask(
        world, "/mcp", headers=[*headers, "Mcp-Param-X: y", "Mcp_Name: c", "Mcp-Protocol_Version: d"]
    )
    names = ("mcp-version", "mcp-method", "mcp-name", "origin", "preflight")

    assert (
        asked(world, answer.header("x-iam-request-id")[0]).items()
        >= dict(zip(names, values, strict=True)).items()
    )
    assert (answer.header("mcp-name"), answer.header("mcp-param-x")) == (["a, b"], ["y"])
    assert not answer.header("mcp_name") + answer.header("mcp-protocol_version")
    plain = ask(world, "/mcp")
    assert [asked(world, plain.header("x-iam-request-id")[0])[name] for name in names] == [None] * 5


@pytest.mark.parametrize("name", FIELDS)
def test_a_repeated_or_long_field_is_refused_unasked(world, name):
    with nobody_asked(world):
        assert ask(world, "/mcp", headers=[f"{name}: a", f"{name}: a"]).status == 400
        assert ask(world, "/mcp", headers=[f"{name}: {'a' * 1025}"]).status == 400


def test_nothing_of_this_is_there_without_resources(stage):
    with stage.world(puppet_spec(), POLICY) as world:
        assert ask(world, "/mcp", {"status": 200, "allow": False, "document": PAGE}).status == 503
        assert ask(world, "/mcp?access_token=x", {**YES, **AT}).status == 200
        assert ask(world, "/mcp", no(401, scope="a")).challenge == BEARER
        answer = ask(world, "/mcp", headers=["Origin: a", "Origin: b"])
        assert "origin" not in asked(world, answer.header("x-iam-request-id")[0])
