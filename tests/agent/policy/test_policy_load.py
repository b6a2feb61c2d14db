"""A bad file is refused with every problem at once: file, line, key, what is wrong, what to do."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iamroles_agent.base.errors import ConfigError
from iamroles_agent.policy import load, load_text
from iamroles_agent.policy.lines import json_lines, toml_lines
from iamroles_agent.policy.load import load_file
from iamroles_tools.policy.schema import schema_text

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "reference" / "examples" / "policy.toml"

GOOD: dict[str, Any] = {
    "version": 1,
    "issuers": [{"name": "idp", "issuer": "https://idp.test", "audiences": ["api"], "algorithms": ["RS256"]}],
    "sts": [{"name": "aws", "endpoint": "https://sts.test/", "hosts": ["sts.test"], "binding_value": "edge"}],
    "roles": [{"name": "reader", "arn": "arn:aws:iam::111111111111:role/reader"}],
    "backends": [{"name": "orders", "servers": ["10.0.0.1:80", "[::1]:8080", "orders:80"]}],
    "grants": [{"id": "g", "roles": ["reader"], "methods": ["GET"], "path": "/orders", "backend": "orders"}],
    "denies": [{"id": "d", "roles": ["*"], "path": "/admin"}],
    "scopes": [{"name": "orders:read", "path": "/orders"}, {"name": "orders:read", "path": "/items"}],
}
TAGS = ["https://sts.amazonaws.com/", "request_tags", "role"]
_CALLED = "issuers[0].issuer", "sts[0].endpoint"
OTHER = {"name": "other", "arns": [GOOD["roles"][0]["arn"]]}


def problems_of(data):
    try:
        load_text(json.dumps(data, indent=1), "json", "p.json")
    except ConfigError as error:
        return error.problems
    return []


def changed(path, value):
    """GOOD with one value set; `path` as in problems."""
    data = json.loads(json.dumps(GOOD))
    *way, last = [
        int(part) if part.isdigit() else part for part in path.replace("]", "").replace("[", ".").split(".")
    ]
    item = data
    for part in way:
        item = item[part]
    item[last] = value
    return data  # type: ignore[no-any-return]


def test_the_example_loads_and_lints_clean_of_warnings():
    from iamroles_tools.policy.lint import lint

    assert [item for item in lint(load(EXAMPLE)) if not item.note] == []


@pytest.mark.parametrize(
    ("key", "value", "says", "remedy"),
    [
        ("issuers[0].algorithms", ["none"], "unsigned", "RS256"),
        ("issuers[0].algorithms", ["NoNe"], "unsigned", "RS256"),
        ("issuers[0].algorithms", ["HS256"], "shared secret", "asymmetric"),
        ("issuers[0].algorithms", ["RS255"], "not a known algorithm", "RS256"),
        ("issuers[0].algorithms", [], "is empty", "Pin"),
        ("issuers[0].audiences", [], "tokens for others", "aud"),
        ("issuers[0].issuer", "http://idp.test", "not https", "insecure_http"),
        ("issuers[0].issuer", "idp.test", "not an http or https URL", "https://"),
        ("issuers[0].issuer", "https://[::1", "is not a URL", "https://"),
        ("issuers[0].issuer", "https://u:secret@idp.test:x/", "is not a URL", "https://"),
        ("issuers[0].issuer", "ftp://u:secret@idp.test", "not an http or https URL", "https://"),
        ("issuers[0].issuer", "https://u@idp.test", "holds a user", "Leave"),
        *((key, f"https://t/{end}", "holds a user", "Leave") for end in "?#" for key in _CALLED),
        ("issuers[0].jwks_uri", "http://idp.test/keys", "not https", "insecure_http"),
        ("agent", {"handshake_timeout": "0s"}, "greater than 0", "bounds"),
        ("agent", {"decision_timeout": "0ms"}, "greater than 0", "bounds"),
        ("sts[0].timeout", "0.0s", "greater than 0", "bounds"),
        ("metrics", {"listen": "unix:/run/m.sock"}, "served on TCP", "host:port"),
        ("issuers[0].accounts", ["123"], "not an AWS account", "12 digits"),
        ("issuers[0].leeway", "61s", "less than or equal to 60", "bounds"),
        ("issuers[0].leeway", 5, "duration is a string", "Write"),
        ("issuers[0].max_lifetime", "0s", "not above zero", "1h"),
        ("issuers[0].roles_claim", "", "names no claim", "claim"),
        ("issuers[0].roles_claim", ["a", ""], "names no claim", "claim"),
        ("issuers[0].roles_claim", 7, "is not a", "Write"),
        *((f"issuers[0].{key}_claim", TAGS, "prove nothing", "Use") for key in ("roles", "preferred_role")),
        ("issuers[0].scope_claim", "request_tags", "prove nothing", "Use principal_tags"),
        ("issuers[0].types", [], "every token would be refused", "at+jwt"),
        ("issuers[0].profile", "okta", "is not one of", "one of"),
        ("issuers[0].name", "a b", "is not a name", "letters"),
        ("sts[0].name", "idp", "a second issuer or STS endpoint", "Rename"),
        ("sts[0].endpoint", "http://sts.test/", "not https", "insecure_http"),
        ("sts[0].hosts", [], "no credential", "host"),
        ("sts[0].hosts", ["*.amazonaws.com"], "not a host name", "wildcard"),
        ("sts[0].hosts", ["https://sts.test"], "not a host name", "scheme"),
        ("sts[0].hosts", ["https://u:se/secret@sts.test"], "not a host name", "scheme"),
        ("dpop", {"origins": ["https://u:secret@gate.test"]}, "is not an https origin", "lower-case"),
        ("resources", [{"name": "m", "resource": "https://u:secret@m.test"}], "is not an https URL", "Write"),
        ("sts[0].hosts", ["sts.test:\u00b2"], "not a host name", "scheme"),
        *(("sts[0].binding_value", text, "is empty", "own name") for text in ("", " e", "e\n", "\u00e9")),
        *(("sts[0].binding_header", name, "call itself", "x-iam") for name in ("Host", "TE", "user-agent")),
        ("sts[0].binding_header", "x edge", "not a header name", "x-iam-edge"),
        ("roles[0].arn", "arn:aws:iam::1:role/reader", "not an IAM role ARN", "12-digit"),
        ("roles[0].arn", "arn:aws:iam::111111111111:role/team/reader", "not canonical", ":role/reader"),
        ("roles[0].arn", "arn:aws:sts::111111111111:assumed-role/r/bob", "not canonical", ":role/r"),
        ("roles[0].arn", "arn:aws:iam::111111111111:user/reader", "not an IAM role ARN", "role/<name>"),
        ("roles[0].max_lifetime", "0s", "below one second", "15m"),
        ("roles[0].max_lifetime", "9" * 400 + "s", "a duration is", "Write"),
        ("backends[0].servers", ["10.0.0.1"], "not host:port", "8080"),
        ("backends[0].servers", ["10.0.0.1:99999"], "not host:port", "8080"),
        ("grants[0].roles", ["raeder"], "no role or group is called 'raeder'", "'reader'"),
        ("grants[0].roles", ["*"], "may not be for every role", "Name each role"),
        ("grants[0].roles", [], "is empty", "Name the roles"),
        ("grants[0].backend", "order", "no backend is called 'order'", "'orders'"),
        ("grants[0].backend", "zzz", "no backend is called", "[[backends]]"),
        ("grants[0].methods", ["get"], "case-sensitive", '"GET"'),
        ("grants[0].methods", [], "never matches", '["*"]'),
        ("grants[0].methods", ["G T"], "not a method", "GET"),
        ("grants[0].methods", "GET", "is not a list", "list"),
        ("grants[0].path", "/a/../b", "dot segment", "forwarded"),
        ("grants[0].path", "/a%2fb", "encoded delimiter", "forwarded"),
        ("grants[0].path", "orders", "does not start with /", "forwarded"),
        ("grants[0].path", "/orders/*", "taken literally", "prefix"),
        ("grants[0].hosts", ["https://x.test"], "without scheme", "api.example.com"),
        ("grants[0].hosts", ["x.*.test"], "not a host name", "*.example.com"),
        ("grants[0].hosts", ["\u212aiosk.test"], "not a host name", "*.example.com"),
        ("grants[0].hosts", ["x.test:80"], "and port", "api.example.com"),
        ("grants[0].sources", ["10.0.0.1/8"], "bits set beyond", "10.0.0.0/8"),
        ("grants[0].sources", ["fe80::1%eth0"], "names a zone", "10.0.0.0/8"),
        ("grants[0].sources", ["ten"], "not a network", "10.0.0.0/8"),
        ("grants[0].sources", ["10.0.0.0/255.0.0.0"], "number of bits", "10.0.0.0/8"),
        ("grants[0].match", "regex", "is not one of", "one of"),
        ("denies[0].id", "g", "a second grant or deny", "Rename"),
        ("denies[0].path", "/%2e%2e", "dot segment", "forwarded"),
        ("denies[0].roles", ["*", "reader"], "already stands for", '["*"]'),
        ("denies[0].sources", ["10.0.0.0/33"], "not a network", "/8"),
        *(("scopes[0].name", "a b", "not a scope", "RFC 6749"), ("version", 2, "is not one of 1", "one of")),
        *(("version", True, "is not one of 1", "one of"), ("version", 1.0, "is not one of 1", "one of")),
        ("multi_role", "any", "is not one of", "one of"),
        ("limits", {"max_token_bytes": 1}, "greater than or equal to 256", "bounds"),
        ("keys", {"refresh": "2h"}, "shorter than keys.refresh", "longer"),
        *(("agent", {"listen": name}, "not an addr", "host") for name in ("9901", "a..b:1", 64 * "a" + ":1")),
        ("agent", {"listen": ["h:1", "h:0", "h:0", "h:1"]}, "'h:1' stands twice", "Remove one"),
        *(("agent", {"state_dir": name}, "has U+0000", "Leave it out") for name in ("a\0b", "\ud800")),
        ("client_certificate", {"from": [f"10.{n}.0.0/16" for n in range(61)]}, "has 61 networks", "larger"),
        *((key, 7, "is not a", "`[[grants]]`") for key in ("grants", "grants[0]")),
        *((k, v, "is not a table", "`tls = {") for k, v in (("agent", {"tls": 7}), ("backends[0].tls", 7))),
    ],
)  # fmt: skip
def test_each_fault_says_where_what_and_how(key, value, says, remedy):
    found = problems_of(changed(key, value))

    assert [problem for problem in found if problem.key.startswith(key.partition("[")[0])] == found
    right = [p for p in found if says in p.message and remedy in p.remedy and p.file == "p.json" and p.line]
    assert right, found
    assert "secret@" not in str(ConfigError(found))


@pytest.mark.parametrize(
    ("key", "near"),
    [("grant", "`grants`"), ("grants[0].role", "`roles`"), ("issuers[0].audience", "`audiences`"),
     ("limits", "`max_lifetime`"), ("keys", "`cooldown`")],
)  # fmt: skip
def test_unknown_keys_name_the_nearest(key, near):
    value: Any = {"max_lifetim": "1h"} if key == "limits" else {"cool_down": "1s"} if key == "keys" else ["x"]
    found = problems_of(changed(key, value))

    [problem] = [problem for problem in found if problem.message == "is not a known key"]
    assert near in problem.remedy


def test_missing_keys_say_what_to_add():
    data = json.loads(json.dumps(GOOD))
    del data["version"], data["grants"][0]["path"], data["roles"][0]["arn"]

    assert {(p.key, p.message) for p in problems_of(data)} == {
        ("version", "is missing"),
        ("grants[0].path", "is missing"),
        ("roles[0].arn", "is missing"),
    }


@pytest.mark.parametrize(
    ("tables", "key", "says"),
    [
        ({"issuers": [], "sts": []}, "", "trusts nobody"),
        ({"audit": {"path": "none", "required": True}}, "audit.path", 'Name a file, or "stderr"'),
        (
            {"sts": [*GOOD["sts"], GOOD["sts"][0] | {"name": "b"}]},
            "sts[1].hosts[0]",
            "already sts[0].hosts[0]",
        ),
        ({"roles": [*GOOD["roles"], OTHER]}, "roles[1].arns[0]", "already the role 'reader'"),
    ],
)
def test_a_table_that_cannot_stand_beside_the_others(tables, key, says):
    [problem] = problems_of({**GOOD, **tables})

    assert problem.key == key
    assert says in f"{problem.message} {problem.remedy}"


def test_every_problem_at_once_also_of_items_with_a_wrong_shape():
    text = """\
version = 1
multi_rol = "deny"

[[issuers]]
name = "idp"
issuer = "http://idp.test"
audiences = ["api"]
algorithms = [
  "RS256",
  "HS256",
]

[[roles]]
name = "reader"
arn = "arn:aws:iam::1:role/reader"

[[grants]]
id = "g1"
role = ["reader"]     # unknown, so `roles` is missing
methods = ["get"]
path = "/a//b"
backend = "nowhere"

[dpop]
origins = ["http://x"]

[x-acme]
anything = true
[[rols]]
[[resources]]
issuers = ["idp"]
"""
    with pytest.raises(ConfigError) as caught:
        load_text(text, name="p.toml")

    assert [(p.line, p.key) for p in caught.value.problems] == [
        *((2, "multi_rol"), (6, "issuers[0].issuer"), (8, "issuers[0].algorithms[1]"), (15, "roles[0].arn")),
        *((17, "grants[0].roles"), (19, "grants[0].role"), (20, "grants[0].methods[0]")),
        *((21, "grants[0].path"), (22, "grants[0].backend"), (25, "dpop.origins[0]"), (29, "rols")),
        *((30, "resources[0].name"), (30, "resources[0].resource")),
    ]
    assert str(caught.value).startswith("p.toml:2: multi_rol: is not a known key. Did you mean `multi_role`?")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        *(("a.toml", b"version = 1\nversion = 2\n", 2), ("b.toml", b"version = \n", 1)),
        *(("c.json", b'{"version": 1,\n "roles": [}', 2), ("d.json", b"[1]", 1)),
        *(("i.toml", b'"\xe2\x80\xae" = 1', 1), ("j.json", b"\xef\xbb\xbf{}", 1)),
        ("e.toml", b"version = 1\n# \xff\n", 2),
        pytest.param("g.toml", b"version = 1\nx = " + 5000 * b"9", 2, id="g.toml-digits"),
        pytest.param("h.json", b'{"version":\n' + 5000 * b"9" + b"}", 2, id="h.json-digits"),
        ("f.json", b'{"version": 1,\n"multi_role": "deny",\n"multi\\u005frole": "union"}', 3),
    ],
)
def test_files_that_do_not_parse(tmp_path, name, content, line):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)

    assert line in [problem.line for problem in caught.value.problems]
    assert all(str(problem).isprintable() for problem in caught.value.problems)
    assert ("(BOM)" in str(caught.value)) is content.startswith(b"\xef")


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.toml")


def test_deep_json_is_refused_not_a_crash():
    with pytest.raises(ConfigError):
        load_text("[" * 100_000, "json")
    with pytest.raises(ConfigError, match="is not JSON"):
        load_text("9" * 5000, "json")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_text("a = " + "9" * 5000)


def test_toml_and_json_mean_the_same():
    config = load(EXAMPLE)

    assert load_text(json.dumps(tomllib.loads(EXAMPLE.read_text())), "json") == config


TRICKY_TOML = """\
a = '''
[not]
b = 1
'''
[t] # c
x = [ # [
  "]",
  2,
]
[[r]]
"n" = 1
[[r]]
n = {q = 1}
[r.s]
k.l = 2
[z] # ~~~ ''' \u2028 \x85
a = "it's ''' [ here" # '''
b = [[~~~
x\\~~~\u2028~~~~~, "#" ], ['''
]''',
  2, ~~~~~~, '''''',
]]
c = ~~~~~ [~~~
d = 2
[%s."\\""]
""" % ("x" * 99)


def test_lines_of_toml():
    text = TRICKY_TOML.replace("~", '"')
    lines = toml_lines(text)

    found = {"a": 1, "t": 5, "t.x": 6, "r[0]": 10, "r[0].n": 11, "r[1]": 12, "r[1].n": 13}
    found |= {"r[1].s": 14, "r[1].s.k.l": 15, "z": 16, "z.a": 17, "z.b": 18, "z.c": 23, "z.d": 24}
    assert lines == found
    assert tomllib.loads(text)


def test_the_example_s_lines_point_at_their_rules():
    document = load_file(EXAMPLE)
    text = EXAMPLE.read_text().splitlines()

    for index, grant in enumerate(document.config.grants):
        assert text[(document.line(f"grants[{index}]") or 0) - 1] == "[[grants]]"
        assert f'"{grant.id}"' in text[(document.line(f"grants[{index}].id") or 0) - 1]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(alphabet="abc", min_size=1), _JSON, max_size=4), st.sampled_from([None, 1]))
def test_lines_of_json_find_each_member(data, indent):
    text = json.dumps(data, indent=indent)
    lines, twice = json_lines(text)

    assert set(data) <= set(lines)
    if indent:
        for name in data:
            assert text.splitlines()[lines[name] - 1].startswith(f' "{name}"')
        assert twice == []


@given(
    _JSON,
    st.sampled_from(["issuers", "sts", "roles", "backends", "grants", "denies", "scopes", "keys", "agent"]),
)
def test_whatever_a_table_holds_only_config_errors_come_out(value, table):
    problems_of({**GOOD, table: value})
    if isinstance(GOOD.get(table), list):
        problems_of({**GOOD, table: [*GOOD[table], value]})


@given(st.sampled_from(["issuers", "sts", "roles", "backends", "grants", "denies", "scopes"]), st.data())
def test_whatever_a_field_holds_only_config_errors_come_out(table, data):
    field = data.draw(st.sampled_from(sorted(GOOD[table][0])))
    problems_of(changed(f"{table}[0].{field}", data.draw(_JSON | st.lists(st.text(), max_size=2))))


def test_the_published_schema_is_current():
    """Else: `iamroles policy schema > reference/policy.schema.json`."""
    assert (ROOT / "reference" / "policy.schema.json").read_text() == schema_text()


@pytest.mark.parametrize(
    ("data", "good"),
    [
        *((GOOD, True), ({**GOOD, "x-acme": {"a.b": 1, "a": {"b": 2}}, "$schema": "a.json"}, True)),
        *(({**GOOD, "keys": {"refresh": "5m"}}, True), ({**GOOD, "keys": {"refresh": 300}}, False)),
        *(({**GOOD, "grant": []}, False), (changed("grants[0].match", "regex"), False)),
        (changed("issuers[0].roles_claim", ["a", "b"]), True),
    ],
)
def test_the_schema_agrees_with_the_loader(data, good):
    import jsonschema  # of moto's extra `server`

    assert jsonschema.Draft202012Validator(json.loads(schema_text())).is_valid(data) is good
    assert (problems_of(data) == []) is good


def test_the_schema_tells_what_each_key_means():
    definitions = json.loads(schema_text())["$defs"]

    silent = [
        f"{name}.{key}"
        for name, model in definitions.items()
        for key, about in model["properties"].items()
        if "description" not in about
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("iss", "good"),
    [
        ("accounts.google.com", True), ("urn:example:idp", True), ("spiffe://example.org", True),
        ("https://idp.test", True), ("http://idp.test", True), ("", False), (" idp", False),
        ("a b: c", False), ("9:x", False), ("idp\n", False),
    ],
)  # fmt: skip
def test_an_issuer_with_a_jwks_uri_may_be_any_string_or_uri(iss, good):
    """RFC 7519 section 2; without `jwks_uri` the keys are found below it, so that it is a URL then."""
    data = changed("issuers[0].issuer", iss)
    data["issuers"][0]["jwks_uri"] = "https://idp.test/keys"

    assert [problem.key for problem in problems_of(data)] == ([] if good else ["issuers[0].issuer"])


def _tls(**members):
    return {"name": "orders", "servers": ["orders:80"], "tls": {"ca": "/etc/iam/ca.pem", **members}}


@pytest.mark.parametrize(
    ("key", "value", "says", "remedy"),
    [
        ("metrics.listen", {"listen": "unix:/run/m.sock"}, "served on TCP", "host:port"),
        ("metrics.listen", {"listen": "127.0.0.1:99999"}, "served on TCP", "host:port"),
        ("metrics.listen", {"listen": "127.0.0.1:65534"}, "last of 3 workers", "lower port"),
        ("agent.listen", {"listen": "127.0.0.1:99999"}, "not an address", "unix:/path"),
        ("backends[0].tls.ca", [_tls(ca="ca.pem")], "not a full path", "HAProxy sees"),
        ("backends[0].tls.certificate", [_tls(certificate='/x" y')], "not a full path", "letters"),
        ("backends[0].tls.name", [_tls(name="orders.internal/x")], "not a DNS name", "carries"),
        (
            "backends[0].tls.name",
            [_tls() | {"servers": ["o:80", "[::1]:8443"]}],
            "named by its address",
            "name =",
        ),
        ("identity_header.issuer", {"issuer": ""}, "is empty", "own name"),
        ("identity_header.lifetime", {"issuer": "g", "lifetime": "61s"}, "bounds", "60s"),
        ("identity_header.lifetime", {"issuer": "g", "lifetime": "500ms"}, "bounds", "2s"),
        ("identity_header.rotate", {"issuer": "g", "rotate": "1m"}, "twice the", "24h"),
    ],
)
def test_what_faces_the_back_ends_and_the_operator_is_checked(key, value, says, remedy):
    found = problems_of(GOOD | {"agent": {"workers": 3}} | {re.match(r"\w+", key)[0]: value})

    assert [problem.key for problem in found] == [key]
    assert says in found[0].message
    assert remedy in found[0].remedy


def test_tls_the_identity_header_and_the_last_free_port_load():
    metrics = {"agent": {"workers": 3}, "metrics": {"listen": "127.0.0.1:65533"}}
    tls = _tls(certificate="/etc/iam/gate.pem", name="orders.internal")

    assert (
        problems_of(GOOD | {"backends": [tls], "identity_header": {"issuer": "https://gate.test"}, **metrics})
        == []
    )
