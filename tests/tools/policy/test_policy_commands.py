"""`iamroles policy` as people and CI gates use it: output and exit codes."""

import json
import time
from pathlib import Path

import pytest
from invoking import ran, said
from policies import arn

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "reference" / "examples" / "policy.toml"
AGENT = {"iss": "https://agents.example.com/", "roles": [arn("ai-agent")]}
"""Claims of the example's agents."""


def as_json(words, *more, code=0):
    return json.loads(said(f"{words} --format json", *more, code=code))


def explained(request, *more, code=0):
    return said("policy explain", EXAMPLE, *request.split(), *more, code=code)


def test_the_page_shows_what_explain_prints(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = Path("docs/policy.md").read_text()
    line = page.partition("$ iamroles policy explain ")[2].partition("\n")[0]

    assert said("policy explain", *line.split(), code=1) in page


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('version = 1\n[[roles]]\nname = "r"\narn = "x"\n')
    return path


@pytest.fixture
def opened(tmp_path):
    """The example with one more method, and without the deny for contractors."""
    text = EXAMPLE.read_text().replace('id = "read-orders"\nroles', 'id = "read-orders"\n#\nroles')
    head, _, rest = text.partition('[[denies]]\nid = "no-export-for-contractors"')
    rest = rest[rest.index("# A guard rail") :]
    first, _, second = head.partition('methods = ["GET", "HEAD"]')
    path = tmp_path / "new.toml"
    path.write_text(f'{first}methods = ["GET", "HEAD", "PUT"]{second}{rest}')
    return path


def test_check(tmp_path):
    assert "good, policy sha256:" in said("policy check", EXAMPLE)
    assert as_json("policy check", EXAMPLE)["grants"] == 3
    path = tmp_path / "policy.toml"
    path.write_text(EXAMPLE.read_text().replace("\n[agent]\n", '\n[agent]\nshadow_policy = "next.toml"\n'))
    assert "agent.shadow_policy: next.toml cannot be enforced" in said("policy check", path, code=2)


@pytest.mark.parametrize("command", ["policy check", "policy lint", "policy matrix"])
def test_bad_input_is_exit_2_with_every_problem(command, bad):
    shown = said(command, bad, code=2)

    assert f"{bad}:4: roles[0].arn: 'x' is not an IAM role ARN" in shown
    assert "2 problems" in shown
    machine = as_json(command, bad, code=2)
    assert {problem["key"] for problem in machine["problems"]} == {"", "roles[0].arn"}


def test_a_missing_file_is_exit_2(tmp_path):
    assert "cannot be read" in said("policy check", tmp_path / "none.toml", code=2)


def test_lint_exits_1_on_findings_and_on_notes_when_strict(tmp_path):
    ran("policy lint", EXAMPLE)
    ran("policy lint --strict", EXAMPLE, code=1)
    worse = tmp_path / "worse.toml"
    worse.write_text(
        EXAMPLE.read_text()
        + '\n[[grants]]\nid = "again"\nroles = ["reader"]\nmethods = ["GET"]\npath = "/orders/7"\n'
        + 'hosts = ["shop.example.com"]\nbackend = "orders-ro"\n'
    )
    line = worse.read_text().splitlines().index('id = "again"')

    shown = said("policy lint", worse, code=1)
    assert f"{worse}:{line}: warning: redundant: again" in shown
    assert "witness: reader: GET shop.example.com/orders/7" in shown
    assert "see: read-orders at" in shown
    [finding] = [item for item in as_json("policy lint", worse, code=1) if item["level"] == "warning"]
    assert (finding["subject"], finding["line"], finding["witness"]["method"]) == ("again", line, "GET")


@pytest.mark.parametrize(
    ("request_", "code", "expected"),
    [
        ("GET /orders/7", 0, ["ALLOW by read-orders, to orders-ro, as " + arn("orders-reader")]),
        (
            "POST /orders/7",
            1,
            ["DENY 403 no_grant", "is for the role clerk", "the method is POST, not GET or HEAD"],
        ),
        ("GET /ordersx", 1, ["the path /ordersx is not below /orders"]),
        ("GET /orders/%2e%2e/x", 1, ["DENY 400 path_ambiguous: the path holds a dot segment"]),
    ],
)
def test_explain(request_, code, expected):
    shown = explained(request_.replace("/", "shop.example.com/", 1) + " --role reader", code=code)

    assert [words for words in expected if words not in shown] == []


def test_explain_as_json():
    about = "--role clerk --role contractor --request-role clerk --src 10.1.1.1 --format json"
    machine = json.loads(explained(f"GET shop.example.com/orders/export {about}", code=1))

    assert machine["verdict"]["reason"] == "denied_by_rule"
    found = [item["id"] for item in machine["matching"]]
    assert found == ["no-export-for-contractors", "export-orders", "keep-orders"]


def written(tmp_path, **claims):
    path = tmp_path / "claims.json"
    path.write_text(json.dumps(AGENT | claims))
    return path


def test_explain_claims(tmp_path):
    claims = written(tmp_path, scope="orders:read-one", iat=int(time.time()))

    explained("GET shop.example.com/orders/today --claims", claims)
    refused = explained("GET shop.example.com/orders/7 --claims", claims, code=1)
    assert "DENY 403 scope_insufficient" in refused
    assert "assumed to fit: exp, aud, sub, client_id, jti" in refused
    assert "no issuer" in explained("GET /x --issuer nobody --claims", claims, code=2)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"exp": 5}, "DENY 401 token_expired"),
        ({"aud": "another"}, "DENY 401 audience_mismatch"),
        ({"roles": ["arn:aws:iam::999999999999:role/ai-agent"]}, "claim_invalid: a role of an account"),
        ({"iat": None}, "DENY 401 claim_invalid: iat"),
        ({"cnf": {"jkt": "J" * 43}}, "DENY 401 token_bound"),
    ],
)
def test_explain_claims_are_judged_as_the_agent_judges_them(tmp_path, changed, expected):
    claims = written(tmp_path, **{"iat": 1000, "scope": "orders:read-one"} | changed)

    assert expected in explained("GET shop.example.com/orders/today --at 1000 --claims", claims, code=1)


def test_explain_says_that_a_role_with_a_lifetime_grants_nothing_without_iat(tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text(EXAMPLE.read_text().replace('profile = "rfc9068"', ""))
    claims = written(tmp_path, scope="orders:read")

    shown = said("policy explain", policy, "GET", "shop.example.com/orders/7", "--claims", claims, code=1)
    assert "max_lifetime" in shown


def test_explain_names_what_is_wrong():
    assert "'zzz' is neither" in explained("GET /x --role zzz", code=2)
    assert "leave https:// out" in explained("GET https://host/a --role reader", code=2)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        *(("--role nobody", "nobody"), ("--role reader --src ten", "ten")),
        *(("--issuer a", "go with"), ("--role reader --at 0", "go with")),
        *((f"--claims c.json --{name} x", "go without") for name in ("role", "scope", "preferred")),
    ],
)
def test_explain_bad_input(about, words):
    assert words in explained(f"GET /x {about}", code=2)


def test_diff_gates_until_exactly_these_differences_are_acknowledged(opened):
    ran("policy diff", EXAMPLE, EXAMPLE)

    shown = said("policy diff", EXAMPLE, opened, code=1)
    reader, agent, clerk, contractor = map(arn, ("orders-reader", "ai-agent", "orders-clerk", "contractor"))
    nightly = arn("nightly-export", "222222222222")
    assert f"+ by grant read-orders: {agent}, {reader} -> orders-ro" in shown
    assert "PUT shop.example.com /orders and below\n      witness: PUT shop.example.com/orders" in shown
    assert f": {clerk}, {nightly} -> export\n      in a token that also carries {contractor}" in shown
    assert "witness: GET shop.example.com/orders/export from 10.0.0.1" in shown
    assert "No longer reachable" not in shown
    digest = shown.rsplit("--acknowledge ", 1)[1].strip()

    ran("policy diff", EXAMPLE, opened, "--acknowledge", digest)
    other = said("policy diff", opened, EXAMPLE, "--acknowledge", digest, code=1)
    assert "No longer reachable" in other
    assert "names other differences" in other
    assert as_json("policy diff", EXAMPLE, opened, code=1)["digest"] == digest


def test_diff_says_first_what_is_weaker(tmp_path):
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    text = EXAMPLE.read_text()
    one.write_text(text)
    two.write_text(text.replace('on_error = "deny"', 'on_error = "allow"'))

    shown = said("policy diff", one, two, code=1)
    assert 'Weaker than before:\n  ! audit.on_error: "deny" -> "allow"\n' in shown
    two.write_text(text.replace("[agent]\n", "[agent]\nworkers = 7\n", 1))
    assert "    agent.workers: 1 -> 7\n" in said("policy diff", one, two)


def test_matrix_as_text_json_and_page(tmp_path):
    text = said("policy matrix", EXAMPLE)
    assert "part  GET,HEAD,PATCH,POST shop.example.com/orders and below  ->  orders-rw" in text
    assert f"contractor  ({arn('contractor')})\n  reaches nothing" in text

    page = tmp_path / "matrix.html"
    ran("policy matrix", EXAMPLE, "--html", page)
    html = page.read_text()
    assert html.startswith("<!doctype html>")
    assert '<th scope="col">clerk' in html
    assert "less export-orders" in html
    assert not [word for word in ("<script", "<link", "src=", "url(", "@import") if word in html]
    ran("policy matrix", EXAMPLE, "--html", tmp_path / "no" / "where.html", code=2)

    machine = as_json("policy matrix", EXAMPLE)
    [route] = [route for route in machine["routes"] if route["id"] == "keep-orders"]
    assert route["cells"]["clerk"] == {"reach": "part", "because": ["export-orders"]}


def test_schema_is_json_schema():
    schema = json.loads(said("policy schema"))

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    assert "^x-" in schema["patternProperties"]
