"""`iamroles policy` as people and CI gates use it: output and exit codes."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from iamroles_tools.commands.policy import policy

EXAMPLE = Path(__file__).parents[3] / "reference" / "examples" / "policy.toml"


def run(*arguments):
    return CliRunner().invoke(policy, [str(argument) for argument in arguments], catch_exceptions=False)


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


def test_check():
    result = run("check", EXAMPLE)

    assert result.exit_code == 0
    assert "good, policy sha256:" in result.output
    assert json.loads(run("check", EXAMPLE, "--format", "json").output)["grants"] == 3


@pytest.mark.parametrize("command", ["check", "lint", "matrix"])
def test_bad_input_is_exit_2_with_every_problem(command, bad):
    result = run(command, bad)

    assert result.exit_code == 2
    assert f"{bad}:4: roles[0].arn: 'x' is not an IAM role ARN" in result.output
    assert "2 problems" in result.output
    machine = json.loads(run(command, bad, "--format", "json").output)
    assert {problem["key"] for problem in machine["problems"]} == {"", "roles[0].arn"}


def test_a_missing_file_is_exit_2(tmp_path):
    result = run("check", tmp_path / "none.toml")

    assert result.exit_code == 2
    assert "cannot be read" in result.output


def test_lint_exits_1_on_findings_and_on_notes_when_strict(tmp_path):
    assert run("lint", EXAMPLE).exit_code == 0
    assert run("lint", EXAMPLE, "--strict").exit_code == 1
    worse = tmp_path / "worse.toml"
    worse.write_text(
        EXAMPLE.read_text()
        + '\n[[grants]]\nid = "again"\nroles = ["reader"]\nmethods = ["GET"]\npath = "/orders/7"\n'
        + 'hosts = ["shop.example.com"]\nbackend = "orders-ro"\n'
    )
    line = worse.read_text().splitlines().index('id = "again"')

    result = run("lint", worse)
    assert result.exit_code == 1
    assert f"{worse}:{line}: warning: redundant: again" in result.output
    assert "witness: reader: GET shop.example.com/orders/7" in result.output
    assert "see: read-orders at" in result.output
    found = json.loads(run("lint", worse, "--format", "json").output)
    [finding] = [item for item in found if item["level"] == "warning"]
    assert (finding["subject"], finding["line"], finding["witness"]["method"]) == ("again", line, "GET")


def test_explain():
    allowed = run("explain", EXAMPLE, "GET", "shop.example.com/orders/7", "--role", "reader")
    assert allowed.exit_code == 0
    assert (
        "ALLOW by read-orders, to orders-ro, as arn:aws:iam::111111111111:role/orders-reader"
        in allowed.output
    )

    refused = run("explain", EXAMPLE, "POST", "shop.example.com/orders/7", "--role", "reader")
    assert refused.exit_code == 1
    assert "DENY 403 no_grant" in refused.output
    assert "is for the role clerk" in refused.output
    assert "the method is POST, not GET or HEAD" in refused.output

    beside = run("explain", EXAMPLE, "GET", "shop.example.com/ordersx", "--role", "reader")
    assert "the path /ordersx is not below /orders" in beside.output

    ambiguous = run("explain", EXAMPLE, "GET", "shop.example.com/orders/%2e%2e/x", "--role", "reader")
    assert "DENY 400 path_ambiguous: the path holds a dot segment" in ambiguous.output

    denied = run(
        "explain", EXAMPLE, "GET", "shop.example.com/orders/export",
        "--role", "clerk", "--role", "contractor", "--request-role", "clerk",
        "--src", "10.1.1.1", "--format", "json",
    )  # fmt: skip
    machine = json.loads(denied.output)
    assert machine["verdict"]["reason"] == "denied_by_rule"
    assert [item["id"] for item in machine["matching"]] == [
        "no-export-for-contractors",
        "export-orders",
        "keep-orders",
    ]


def test_explain_claims(tmp_path):
    claims = tmp_path / "claims.json"
    claims.write_text(
        json.dumps(
            {
                "iss": "https://agents.example.com/",
                "roles": ["arn:aws:iam::111111111111:role/ai-agent"],
                "scope": "orders:read-one",
                "iat": int(time.time()),
            }
        )
    )

    assert run("explain", EXAMPLE, "GET", "shop.example.com/orders/today", "--claims", claims).exit_code == 0
    refused = run("explain", EXAMPLE, "GET", "shop.example.com/orders/7", "--claims", claims)
    assert "DENY 403 scope_insufficient" in refused.output
    assert "assumed to fit: exp, aud, sub, client_id, jti" in refused.output
    stranger = run("explain", EXAMPLE, "GET", "/x", "--claims", claims, "--issuer", "nobody")
    assert (stranger.exit_code, "no issuer" in stranger.output) == (2, True)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"iss": "https://agents.example.com/", "exp": 5}, "DENY 401 token_expired"),
        ({"aud": "another"}, "DENY 401 audience_mismatch"),
        ({"roles": ["arn:aws:iam::999999999999:role/ai-agent"]}, "claim_invalid: a role of an account"),
        ({"iat": None}, "DENY 401 claim_invalid: iat"),
    ],
)
def test_explain_claims_are_judged_as_the_agent_judges_them(tmp_path, changed, said):
    role = "arn:aws:iam::111111111111:role/ai-agent"
    claims = tmp_path / "claims.json"
    whole = {"iss": "https://agents.example.com/", "roles": [role], "iat": 1000, "scope": "orders:read-one"}
    claims.write_text(json.dumps(whole | changed))

    result = run(
        "explain", EXAMPLE, "GET", "shop.example.com/orders/today", "--claims", claims, "--at", "1000"
    )
    assert (result.exit_code, said in result.output) == (1, True), result.output


def test_explain_says_that_a_role_with_a_lifetime_grants_nothing_without_iat(tmp_path):
    claims = tmp_path / "claims.json"
    role = "arn:aws:iam::111111111111:role/ai-agent"
    told = {"iss": "https://agents.example.com/", "roles": [role], "scope": "orders:read"}
    claims.write_text(json.dumps(told))
    policy = tmp_path / "policy.toml"
    policy.write_text(EXAMPLE.read_text().replace('profile = "rfc9068"', ""))

    result = run("explain", policy, "GET", "shop.example.com/orders/7", "--claims", claims)
    assert (result.exit_code, "max_lifetime" in result.output) == (1, True), result.output


def test_explain_names_what_is_wrong():
    assert "'zzz' is neither" in run("explain", EXAMPLE, "GET", "/x", "--role", "zzz").output
    assert "leave https:// out" in run("explain", EXAMPLE, "GET", "https://host/a", "--role", "reader").output


@pytest.mark.parametrize("arguments", [["--role", "nobody"], ["--role", "reader", "--src", "ten"]])
def test_explain_bad_input(arguments):
    assert run("explain", EXAMPLE, "GET", "/x", *arguments).exit_code == 2


def test_diff_gates_until_exactly_these_differences_are_acknowledged(opened):
    assert run("diff", EXAMPLE, EXAMPLE).exit_code == 0

    result = run("diff", EXAMPLE, opened)
    assert result.exit_code == 1
    reader, agent, clerk, contractor = (
        f"arn:aws:iam::111111111111:role/{name}"
        for name in ("orders-reader", "ai-agent", "orders-clerk", "contractor")
    )
    nightly = "arn:aws:iam::222222222222:role/nightly-export"
    assert f"+ by grant read-orders: {agent}, {reader} -> orders-ro" in result.output
    assert (
        "PUT shop.example.com /orders and below\n      witness: PUT shop.example.com/orders" in result.output
    )
    assert f": {clerk}, {nightly} -> export\n      in a token that also carries {contractor}" in result.output
    assert "witness: GET shop.example.com/orders/export from 10.0.0.1" in result.output
    assert "No longer reachable" not in result.output
    digest = result.output.rsplit("--acknowledge ", 1)[1].strip()

    assert run("diff", EXAMPLE, opened, "--acknowledge", digest).exit_code == 0
    other = run("diff", opened, EXAMPLE, "--acknowledge", digest)
    assert other.exit_code == 1
    assert "No longer reachable" in other.output
    assert "names other differences" in other.output
    assert json.loads(run("diff", EXAMPLE, opened, "--format", "json").output)["digest"] == digest


def test_matrix_as_text_json_and_page(tmp_path):
    text = run("matrix", EXAMPLE)
    assert "part  GET,HEAD,PATCH,POST shop.example.com/orders and below  ->  orders-rw" in text.output
    assert "contractor  (arn:aws:iam::111111111111:role/contractor)\n  reaches nothing" in text.output

    page = tmp_path / "matrix.html"
    assert run("matrix", EXAMPLE, "--html", page).exit_code == 0
    html = page.read_text()
    assert html.startswith("<!doctype html>")
    assert '<th scope="col">clerk' in html
    assert "less export-orders" in html
    assert not [word for word in ("<script", "<link", "src=", "url(", "@import") if word in html]
    assert run("matrix", EXAMPLE, "--html", tmp_path / "no" / "where.html").exit_code == 2

    machine = json.loads(run("matrix", EXAMPLE, "--format", "json").output)
    [route] = [route for route in machine["routes"] if route["id"] == "keep-orders"]
    assert route["cells"]["clerk"] == {"reach": "part", "because": ["export-orders"]}


def test_schema_is_json_schema():
    schema = json.loads(run("schema").output)

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    assert "^x-" in schema["patternProperties"]
