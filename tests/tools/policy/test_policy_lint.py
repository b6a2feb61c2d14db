"""Findings are exact: judged by brute force over every request that rules can tell apart."""

from itertools import combinations
from operator import ne

import policy_worlds as worlds
import pytest
from counting import steps
from hypothesis import given, settings
from policies import ISSUER, arn, deny, grant, role, text

from iamroles_agent.base.config import Config, Deny
from iamroles_agent.base.identity import Identity, RoleArn
from iamroles_agent.policy import Policy, load_text
from iamroles_agent.policy.load import parse_text
from iamroles_agent.policy.regions import Region
from iamroles_tools.policy.findings import Kind
from iamroles_tools.policy.lint import Linter, lint
from iamroles_tools.policy.zones import NONE, has_host

ARNS = [RoleArn.parse(text) for text in worlds.ARNS.values()]
SETS = [roles for size in (1, 2, 3) for roles in combinations(ARNS, size)]
USELESS = {Kind.UNREACHABLE, Kind.SHADOWED, Kind.REDUNDANT}


def outcomes(config):
    """Yield the backend or "" for each set of roles, each active role under `deny`, each request."""
    policy = Policy(config)
    for roles in SETS:
        for preferred in [None] if config.multi_role == "union" else roles:
            who = Identity("idp", "me", "s", roles, 2000, 1000, preferred)
            for request in worlds.NARROW_REQUESTS:
                yield policy.decide(who, request).backend


def useless(config):
    return {item.key for item in lint(config) if item.kind in USELESS}


def without(config, keys):
    kept = {
        table: [rule for index, rule in enumerate(getattr(config, table)) if f"{table}[{index}]" not in keys]
        for table in ("grants", "denies")
    }
    return config.model_copy(update=kept)


@settings(max_examples=15, deadline=None)
@given(worlds.worlds(grants=4, denies=2, narrow=True))
def test_what_is_called_useless_can_go_and_what_is_not_matters(data):
    config = Config.model_validate(data)
    before = list(outcomes(config))
    lean = without(config, useless(config))

    def differs(changed):
        return any(map(ne, outcomes(changed), before))

    assert not differs(lean)
    for index, rule in enumerate(lean.grants):
        assert differs(without(lean, {f"grants[{index}]"})), rule
    for index, rule in enumerate(lean.denies):
        assert differs(without(lean, {f"denies[{index}]"})) or not _opened(lean, rule)


def _opened(config, deny):
    """Return whether a kept deny stands alone against some grant: others may overlap it in part."""
    others = [other for other in config.denies if other is not deny]
    return any(
        worlds.matches(deny, request, deny=True)
        and any(worlds.matches(grant, request, deny=False) for grant in config.grants)
        and not any(worlds.matches(other, request, deny=True) for other in others)
        for request in worlds.NARROW_REQUESTS
    )


@settings(max_examples=30, deadline=None)
@given(worlds.worlds(grants=5, denies=2, narrow=True))
def test_every_witness_shows_what_its_finding_says(data):
    config = Config.model_validate(data)
    policy = Policy(config)

    for item in lint(config):
        if item.witness is None or item.key[:6] != "grants" or item.role == "*":
            continue
        assert worlds.matches(config.grants[int(item.key[7:-1])], item.witness, deny=False), item
        who = Identity("idp", "me", "s", (RoleArn.parse(worlds.ARNS[item.role]),), 2000, 1000)
        decision = policy.decide(who, item.witness)
        if item.kind is Kind.UNREACHABLE:
            assert decision.reason == "denied_by_rule", item
        elif item.kind is Kind.SHADOWED:
            assert decision.allow, item
            assert decision.rule in item.others, item
        elif item.kind is Kind.REDUNDANT:
            assert decision.rule == item.subject, item
        elif item.kind is Kind.ESCALATION:
            assert decision.allow, item


@settings(max_examples=30, deadline=None)
@given(worlds.worlds(grants=4, denies=2, narrow=True))
def test_escalating_pairs_are_exactly_those_by_brute_force(data):
    config = Config.model_validate({**data, "multi_role": "deny"})
    policy = Policy(config)
    names = dict(zip(worlds.ARNS, ARNS, strict=True))

    def reach(active, pair):
        held = tuple(names[name] for name in sorted(pair))
        who = Identity("idp", "me", "s", held, 2000, 1000, names[active])
        found: dict[tuple[str, str, str], set[str]] = {}
        for request in worlds.NARROW_REQUESTS:
            if policy.decide(who, request).allow:
                where = request.host, request.path, str(request.src)
                found.setdefault(where, set()).add(request.method)
        return found

    expected = set()
    for one, two in combinations(sorted(names), 2):
        reaches = reach(one, {one, two}), reach(two, {one, two})
        for read, write in (reaches, reaches[::-1]):
            for where in read.keys() & write.keys():
                if "GET" in read[where] - write[where] and {"POST", "PUT"} & (write[where] - read[where]):
                    expected.add((one, two))

    found = set()
    for item in lint(config):
        if item.kind is Kind.ESCALATION:
            found |= {(min(pair), max(pair)) for pair in item.pairs}
    assert found == expected


TABLES = {
    "issuers": [ISSUER | {"accounts": ["111111111111"]}],
    "roles": [role("reader"), role("writer"), {"name": "idle", "arns": [arn("idle", "2" * 12), arn("idle")]}],
    "backends": [{"name": "b"}, {"name": "lonely"}],
}


def by_subject(*rules, **tables):
    document = parse_text(text(*rules, **TABLES | tables), "json", "<policy>")
    return {(item.subject, item.kind): item for item in lint(document.config, document.written)}


def test_planted_findings_are_named():
    found = by_subject(
        grant("all", "reader", "*", "/"),
        grant("world", "writer", "POST", "/w", sources=["0.0.0.0/0"]),
        grant("wide", "writer", "POST", "/v", sources=["10.0.0.0/7"]),
        grant("tld", "writer", "GET", "/t", hosts=["*.com"]),
        grant("inner", "reader", "GET", "/a"),
        grant("secret", "writer", "GET", "/secret"),
        deny("shut", "*", "/secret"),
        deny("shut-again", "writer", "/secret/deep"),
    )

    assert {key for key, item in found.items() if not item.note} == {
        *((name, "too-wide") for name in ("all", "world", "wide", "tld")),
        *((name, "redundant") for name in ("inner", "shut-again")),
        *((name, "unreachable") for name in ("secret", "idle")),
        *((name, "unused") for name in ("idle", "lonely")),
    }
    assert found["secret", "unreachable"].others == {"shut": "denies[0]"}
    assert found["inner", "redundant"].others == {"all": "grants[0]"}


READ = grant("r", "reader", "GET", "/a")


@pytest.mark.parametrize(("multi_role", "note"), [("deny", True), ("union", False)])
def test_union_escalation(multi_role, note):
    found = by_subject(READ, grant("w", "writer", "PUT", "/a/b"), multi_role=multi_role)

    item = found["w", "escalation"]
    assert item.note is note
    assert item.witness is not None
    assert (item.witness.method, item.witness.path, item.role) == ("PUT", "/a/b", "writer")
    assert item.others == {"r": "grants[0]"}


def test_of_two_equal_denies_one_may_go():
    denies = deny("d1", "reader", "/a"), deny("d2", "reader", "/a")
    found = by_subject(grant("g", "reader", "GET", "/"), *denies)

    assert [subject for subject, kind in found if kind == "redundant"] == ["d2"]


def test_roles_that_a_deny_keeps_apart_do_not_escalate():
    rules = READ, grant("w", "writer", "PUT", "/a")

    assert ("w", "escalation") in by_subject(*rules)
    assert ("w", "escalation") not in by_subject(*rules, deny("d", "reader", "/a", methods=["PUT"]))


def test_a_deny_holds_the_host_that_cannot_be_read():
    region = Region.from_rule(Deny(id="d", roles=["*"], path="/a", hosts=["x.test"]))

    assert has_host(region, NONE, deny=True)
    assert not has_host(region, NONE, deny=False)


@pytest.mark.parametrize(("multi_role", "redundant"), [("deny", True), ("union", False)])
def test_in_a_union_another_role_s_grant_may_make_one_matter(multi_role, redundant):
    """Without `g`, a token with both roles would be led by `other` to the other backend."""
    found = by_subject(
        grant("g", "reader", "GET", "/a/b"),
        grant("under", "reader", "GET", "/"),
        grant("other", "writer", "GET", "/a", "lonely"),
        multi_role=multi_role,
    )

    assert (("g", "redundant") in found) is redundant


def test_a_thousand_grants_are_linted_within_seven_times_the_steps_of_their_loading():
    rules = [
        grant(
            f"g{index}",
            "reader" if index % 2 else "writer",
            "GET" if index % 5 else "*",
            f"/s{index % 40}/t{index % 90}" + (f"/u{index}" if index % 3 else ""),
            hosts=[f"h{index % 7}.test"],
            sources=[f"10.{index % 200}.0.0/16"],
        )
        for index in range(1000)
    ]
    rules += [deny(f"d{index}", "reader", f"/s{index}", methods=["DELETE"]) for index in range(40)]
    written, loaded = text(*rules, **TABLES), []
    loading = steps(lambda: loaded.append(load_text(written, "json")))
    assert steps(lambda: lint(loaded[0])) < 7 * loading  # about 4


def test_a_deny_that_others_make_useless_only_where_something_is_open():
    """`wide` reaches beyond the other two denies, but nothing is granted there."""
    found = by_subject(
        grant("g", "reader", "GET PUT", "/a"),
        deny("gets", "*", "/a/b", methods=["GET"]),
        deny("puts", "*", "/a/b", methods=["PUT"]),
        deny("wide", "*", "/a/b"),
    )

    assert found["wide", "redundant"].others == {"gets": "denies[0]", "puts": "denies[1]"}
    assert ("gets", "redundant") not in found


def test_registries_unused_groups_keys_shadow_backends_and_issuers_without_roles_are_named():
    found = by_subject(
        grant("uk", "reader", "GET", "/t", hosts=["*.CO.UK."]),
        grant("own", "reader", "GET", "/t", hosts=["*.acme.co.uk"]),
        grant("s", "reader", "GET", "/s", "lonely", shadow=True, hosts=["y.test"]),
        grant("all", "reader", "GET", "/t", hosts=["y.test"], sources=["::ffff:0:0/96"]),
        grant("tool", "reader", "POST", "/", hosts=["x.test"], mcp=[{"name": "a"}]),
        scopes=[{"name": "a", "path": "/", "mcp": [{"name": "a"}]}],
        resources=[{"name": "m", "resource": "https://x.test", "validates_headers": True}],
        issuers=[
            ISSUER | {"accounts": ["999999999999"], "audiences": ["https://x.test"], "scope_claim": "scope"},
            ISSUER | {"name": "aws", "issuer": "https://aws.test", "profile": "aws"},
        ],
        groups=[{"name": "nobody", "roles": ["reader"]}],
        identity_header={"issuer": "gate"},
    )

    assert "no server can fetch" in found["gate", "unused"].message
    assert "keys of its own" in found["gate", "unshared"].message
    assert found["gate", "unshared"].note
    assert ("uk", "too-wide") in found
    assert found["all", "too-wide"].message == "source ::ffff:0:0/96 is every IPv4 client"
    assert {(name, "too-wide") for name in ("own", "tool", "a")}.isdisjoint(found)
    assert found["nobody", "unused"].key == "groups[0]"
    assert found["lonely", "unused"].message == "only shadow grants lead here"
    assert found["idp", "unreachable"].key == "issuers[0]"
    assert found["aws", "unreachable"].key == "issuers[1]"
    assert found["reader", "unreachable"].key == "roles[0]"


def test_scopes_that_open_nothing_granted_or_all_of_it_together():
    read, write, far = (
        {"name": name, "methods": [method], "path": path}
        for name, method, path in (("read", "GET", "/"), ("write", "PUT", "/a"), ("far", "*", "/z"))
    )

    def found(*scopes):
        issuer = TABLES["issuers"][0] | {"scope_claim": "scope"}
        return by_subject(grant("g", "reader", "GET PUT", "/a"), issuers=[issuer], scopes=scopes)

    assert ("read", "too-wide") in found(read, write)
    assert ("read", "too-wide") not in found(read)
    assert ("far", "unused") in found(read, far)


def test_two_hundred_roles_in_one_group_are_one_class():
    """Counted, not timed: the zones that are visited do not grow with the number of roles."""
    names = [f"r{index}" for index in range(200)]
    tables = {"roles": [*TABLES["roles"], *map(role, names)], "groups": [{"name": "all", "roles": names}]}
    grants = [grant(f"g{index}", "all", "GET", f"/s{index}") for index in range(100)]
    linter = Linter(load_text(text(*grants, **TABLES | tables), "json"))

    assert {len(zone.classes(linter.labels.everyone)) for zone in linter.zones} == {2}


def of_kind(kind, *rules, **tables):
    config = load_text(text(*rules, **{"roles": [role("reader")]} | tables), "json")
    return config, [item for item in lint(config) if item.kind is kind]


class TestLetterCase:
    def found(self, *denies, **more):
        return of_kind(
            Kind.LETTER_CASE, grant("g", "reader", "GET", "/orders", hosts=["y.test"]), *denies, **more
        )

    @pytest.mark.parametrize(
        ("path", "other"),
        [
            *(("/orders/secret", "/orders/SECRET"), ("/orders/a%20B", "/orders/A%20b")),
            *(("/orders/x/9", "/orders/X/9"), ("/%6frders/b", "/orders/B")),
        ],
    )
    def test_a_deny_under_a_wider_grant_is_noted_with_a_request_that_is_allowed(self, path, other):
        config, [note] = self.found(deny("d", "reader", path))

        assert (note.subject, note.note, note.witness.path) == ("d", True, other)
        assert "g opens" in note.message
        who = Identity("idp", "me", "s", (RoleArn.parse(arn("reader")),), 2000, 1000)
        assert Policy(config).decide(who, note.witness).allow

    @pytest.mark.parametrize("more", [{"multi_role": "union"}, {}])
    def test_a_deny_of_another_role_of_the_token_too(self, more):
        _, [note] = self.found(deny("d", "guest", "/orders/a"), roles=[role("reader"), role("guest")], **more)

        assert (note.role, note.witness.path) == ("reader", "/orders/A")

    @pytest.mark.parametrize(
        "denies",
        [
            *([deny("d", "reader", path)] for path in ("/orders/7", "/orders", "/other/secret")),
            [deny("d", "reader", "/orders/a", hosts=["x.test"])],
            [deny("d", "reader", "/orders/a"), deny("e", "reader", "/orders/A")],
        ],
    )
    def test_a_deny_that_holds_in_any_letter_case_is_not(self, denies):
        assert self.found(*denies)[1] == []


@pytest.mark.parametrize("audit", [{"path": "none"}, {"on_error": "allow"}])
def test_decisions_without_a_record_are_a_finding(audit):
    [name] = audit
    _, [finding] = of_kind(Kind.UNRECORDED, grant("g", "reader", "GET", "/a"), audit=audit)

    assert (finding.key, finding.note) == (f"audit.{name}", False)


DPOP = {"origins": ["https://api.test"]}
FRONT, WORLD = {"from": ["10.0.0.0/24"]}, {"from": ["0.0.0.0/0"]}


@pytest.mark.parametrize(
    ("bound", "audience", "tables", "keys"),
    [
        ("refused", "api", {}, []),
        ("refused", "api", {"dpop": DPOP, "client_certificate": FRONT}, ["client_certificate", "dpop"]),
        ("required", "api", {"dpop": DPOP, "client_certificate": FRONT}, []),
        ("accepted", "api", {}, ["issuers[0]"]),
        ("accepted", "api", {"dpop": DPOP, "client_certificate": WORLD}, ["client_certificate.from"]),
        ("accepted", "api", {"dpop": DPOP | {"nonce": True}}, ["dpop.nonce_key"]),
        ("accepted", "api", {"dpop": DPOP | {"nonce": True, "nonce_key": "k"}}, []),
        ("accepted", "api", {"dpop": DPOP | {"nonce_key": "k"}}, ["dpop.nonce_key"]),
        ("accepted", "api", {"dpop": DPOP | {"replay": "none"}}, ["dpop.replay"]),
        ("accepted", "https://api.test/mcp", {"dpop": DPOP}, []),
        ("accepted", "https://other.test/mcp", {"dpop": DPOP}, ["dpop.origins"]),
    ],
)
def test_settings_of_bound_tokens_that_do_little(bound, audience, tables, keys):
    issuer = ISSUER | {"bound": bound, "audiences": [audience]}
    config = Config.model_validate({"version": 1, "issuers": [issuer], **tables})

    assert [item.key for item in lint(config) if item.kind == "bound"] == keys


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({}, []),
        ({"agent": {"listen": "unix:/run/a.sock"}, "live": {"master_socket": "/run/m.sock"}}, []),
        ({"agent": {"listen": ["unix:/run/a.sock", "127.0.0.1:1"]}}, ["127.0.0.1:1"]),
        ({"agent": {"listen": "127.0.0.1:1", "tls": {"certificate": "a", "ca": "b"}}}, []),
        ({"live": {"master_socket": "127.0.0.1:2"}}, ["127.0.0.1:2"]),
    ],
)
def test_plain_tcp_between_haproxy_and_the_agent_is_named(tables, named):
    config = Config.model_validate({"version": 1, **tables})

    assert [item.subject for item in lint(config) if item.kind == "unproven"] == named
