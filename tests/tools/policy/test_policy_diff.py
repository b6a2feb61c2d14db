"""A change of policy does exactly what brute force says it does, and reports all of it."""

from itertools import combinations

import policy_worlds as worlds
import pytest
from hypothesis import given, settings

from iamroles_agent.base.config import ClientCertificate, Config, Dpop, IdentityHeader
from iamroles_agent.base.identity import Identity, RoleArn
from iamroles_agent.policy import Policy
from iamroles_tools.policy import weakening
from iamroles_tools.policy.diff import diff

ARNS = [RoleArn.parse(text) for text in worlds.ARNS.values()]


def backend(config, change, *, chosen=True):
    """Return where the witness leads: by the change's own role, or (not chosen) by all roles of the token."""
    held = [RoleArn.parse(arns[0]) for arns in (change.roles, change.companions) if arns]
    who = Identity("idp", "me", "s", tuple(held), 2000, 1000, held[0] if chosen else None)
    return Policy(config).decide(who, change.witness).backend


def lies_in(region, request):
    """Read the words back: a second, slow reader of what `policy.describe` writes."""
    return any(
        _listed(line.methods, "any method", lambda one: one == request.method)
        and _in_hosts(line.hosts, request.host)
        and _in_paths(line.paths, request.path)
        and _listed(line.sources, "anywhere", lambda one: request.src in worlds.ip_network(one))
        for line in region
    )


def _listed(words, everything, holds):
    if not words:
        return True
    if words.startswith(f"{everything} but "):
        return not any(holds(one) for one in words.removeprefix(f"{everything} but ").split(", "))
    return any(holds(one) for one in words.split(", "))


def _in_hosts(words, host):
    if not words:
        return True
    none = not host or " " in host
    best, inside = -1, False
    for item in words.split(", "):
        said = item.removeprefix("but not ").removeprefix("also ")
        within = not item.startswith("but not ")
        if said == "no host":
            holds, weight = none, 1000
        elif said == "any host":
            holds, weight = True, 0
        elif said.startswith("*."):
            holds, weight = not none and host.endswith(said[1:]) and host != said[2:], len(said)
        else:
            holds, weight = host == said, 500
        if holds and weight > best:
            best, inside = weight, within
    return inside


def _in_paths(words, path):
    best, inside = -1, False
    for item in words.split(", "):
        said = item.removeprefix("but not ")
        name = said.removesuffix(" and below").removeprefix("below ")
        exact = path == name and not said.startswith("below ")
        below = (said.endswith(" and below") or said.startswith("below ")) and path != name
        below = below and (name == "/" or path.startswith(name + "/"))
        if (exact or below) and 2 * len(name) + exact > best:
            best, inside = 2 * len(name) + exact, not item.startswith("but not ")
    return inside


def tokens(multi_role):
    for size in (1, 2, 3):
        for held in combinations(ARNS, size):
            if multi_role == "union" or size == 1:
                yield held, None
            if size > 1:
                yield from ((held, active) for active in held)


def told(found, held, active, request):
    """Return what the difference says of a token and a request."""
    actives = {str(arn) for arn in ([active] if active else held)}
    carried = {str(arn) for arn in held}
    kinds = set()
    for kind in ("opened", "closed", "moved", "regranted"):
        for change in getattr(found, kind):
            hit = actives & set(change.roles)
            with_ = not change.companions or carried & set(change.companions)
            if not hit:
                hit = actives & set(change.companions) if carried & set(change.roles) else set()
            if hit and with_ and lies_in(change.region, request):
                kinds.add(kind)
    return kinds


@settings(max_examples=12, deadline=None)
@given(worlds.worlds(grants=3, denies=2, narrow=True), worlds.worlds(grants=3, denies=2, narrow=True))
def test_every_change_of_every_token_is_told_with_its_whole_region(one, two):
    """Tokens with one, two and three roles, every choice among them, every request that rules tell apart."""
    two = {**two, "multi_role": one["multi_role"]}
    lived = [{**role, "max_lifetime": f"{index + 1}00s"} for index, role in enumerate(one["roles"])]
    old, new = (Config.model_validate({**data, "roles": lived}) for data in (one, two))
    found = diff(old, new)
    before, after = Policy(old), Policy(new)

    for held, active in tokens(one["multi_role"]):
        who = Identity("idp", "me", "s", held, 2000, 1000, active)
        for request in worlds.NARROW_REQUESTS:
            was, now = before.decide(who, request), after.decide(who, request)
            if was.allow != now.allow:
                assert ("opened" if now.allow else "closed") in told(found, held, active, request)
            elif was.backend != now.backend:
                assert "moved" in told(found, held, active, request)
            elif (was.role, was.expires) != (now.role, now.expires) and was.allow:
                assert "regranted" in told(found, held, active, request)


@settings(max_examples=15, deadline=None)
@given(worlds.worlds(grants=3, denies=2, narrow=True), worlds.worlds(grants=3, denies=2, narrow=True))
def test_witnesses_hold_and_no_change_is_missed(one, two):
    old, new = Config.model_validate(one), Config.model_validate({**two, "multi_role": one["multi_role"]})
    found = diff(old, new)

    for change in found.opened:
        assert (backend(old, change), backend(new, change)) == ("", change.backend), change
    for change in found.closed:
        assert (backend(old, change), backend(new, change)) == (change.backend, ""), change
    for change in found.moved:
        whole = not change.companions
        led = backend(old, change, chosen=whole), backend(new, change, chosen=whole)
        assert led == (change.was, change.backend), change
        assert change.was != change.backend
    for kind in ("opened", "closed", "moved", "regranted"):
        for change in getattr(found, kind):
            assert lies_in(change.region, change.witness), change

    before, after = Policy(old), Policy(new)
    expected, shown = ({kind: set() for kind in ("opened", "closed", "moved")} for _ in range(2))
    for role in ARNS:
        who = Identity("idp", "me", "s", (role,), 2000, 1000)
        for request in worlds.NARROW_REQUESTS:
            was, now = before.decide(who, request), after.decide(who, request)
            if was.allow != now.allow:
                expected["opened" if now.allow else "closed"].add((str(role), request))
            elif was.backend != now.backend:
                expected["moved"].add((str(role), request))
            for kind, pairs in shown.items():
                for change in getattr(found, kind):
                    alone = str(role) in change.roles and not change.companions
                    if alone and lies_in(change.region, request):
                        pairs.add((str(role), request))
    assert shown == expected


@settings(max_examples=30, deadline=None)
@given(worlds.worlds(grants=2, denies=3, narrow=True), worlds.worlds(grants=1, denies=1, narrow=True))
def test_companions_are_exactly_those_by_brute_force(one, two):
    """The new policy has a deny less, and perhaps another in its place."""
    fewer = {**one, "denies": one["denies"][1:] + [{**deny, "id": "n"} for deny in two["denies"]]}
    old, new = (Config.model_validate({**data, "multi_role": "deny"}) for data in (one, fewer))
    before, after = Policy(old), Policy(new)

    expected = set()
    for pair in combinations(ARNS, 2):
        for active, companion in (pair, pair[::-1]):
            together = Identity("idp", "me", "s", pair, 2000, 1000, active)
            alone = Identity("idp", "me", "s", (active,), 2000, 1000)
            for request in worlds.NARROW_REQUESTS:
                opens = not before.decide(together, request).allow and after.decide(together, request).allow
                if opens and before.decide(alone, request).allow:
                    expected.add((str(active), str(companion)))

    found = {(role, other) for c in diff(old, new).opened for role in c.roles for other in c.companions}
    assert {pair for pair in found if pair[0] != pair[1]} == expected


@settings(max_examples=25, deadline=None)
@given(worlds.worlds())
def test_a_policy_does_not_differ_from_itself_reordered(data):
    turned = {name: value[::-1] if isinstance(value, list) else value for name, value in data.items()}

    assert not diff(Config.model_validate(data), Config.model_validate(turned))


@settings(max_examples=25, deadline=None)
@given(worlds.worlds(grants=3, denies=2, narrow=True), worlds.worlds(grants=3, denies=2, narrow=True))
def test_rules_that_change_nothing_do_not_change_the_digest(one, two):
    """The words are a normal form: rules of both policies about another role leave them as they are."""
    role = {"name": "r3", "arn": worlds.STRANGER}
    aside = {"id": "aside", "roles": ["r3"], "methods": ["PATCH"], "path": "/q/q", "backend": "b0"}
    shut = {"id": "shut", "roles": ["r3"], "path": "/q", "hosts": ["*.a.x.test"]}

    def found(*, more):
        sides = (
            {
                **data,
                "roles": [*data["roles"], role],
                "grants": [*data["grants"], *([aside] if more else [])],
                "denies": [*data["denies"], {**shut, "hosts": []}, *([shut | {"id": "s2"}] if more else [])],
            }
            for data in (one, two)
        )
        return diff(*map(Config.model_validate, sides))

    plain, more = found(more=False), found(more=True)
    assert plain.digest == more.digest


def policy(*grants, **tables):
    rules = [{"id": "g", "roles": ["r0"], "path": "/a", "backend": "b0", **grant} for grant in grants]
    return Config.model_validate({**worlds.BASE, "grants": rules, **tables})


GET = {"methods": ["GET"]}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"methods": ["GET", "POST"]}, {"methods": ["GET", "POST", "PUT", "PATCH", "ADMIN"]}),
        ({**GET, "path": "/a", "match": "exact"}, {**GET, "path": "/a"}),
        ({**GET, "hosts": ["x.test"]}, {**GET, "hosts": ["x.test", "y.test"]}),
        ({**GET, "sources": ["10.0.0.0/9"]}, {**GET, "sources": ["10.0.0.0/8"]}),
        ({**GET, "roles": ["r0"]}, {**GET, "roles": ["r0", "r1"]}),
        ({**GET, "actors": [{"sub": "a; b"}]}, {**GET, "actors": [{"sub": "a"}, {"sub": "b"}]}),
        ({**GET, "actors": [{"sub": "any", "issuer": "i"}]}, {**GET, "actors": [{"issuer": "i"}]}),
    ],
)
def test_an_acknowledged_change_lets_no_wider_one_pass(one, two):
    old = policy()

    assert diff(old, policy(one)).digest != diff(old, policy(two)).digest


def test_every_method_and_source_of_a_change_is_printed():
    """A change of `/` shows the writes beside the reads."""
    found = diff(policy({"methods": ["GET"], "path": "/"}), policy({"methods": ["*"], "path": "/"}))

    [change] = found.opened
    assert [str(line) for line in change.region] == ["any method but GET / and below"]


def test_a_witness_is_at_no_host_and_path_of_another_rule():
    places = {"path": "/", "hosts": ["*.example"]}, {"path": "/a", "match": "exact"}, {"path": "/a/x"}
    denies = [{"id": f"d{number}", "roles": ["*"], **place} for number, place in enumerate(places)]
    new = policy(GET, denies=denies)

    [change] = diff(policy(denies=denies), new).opened
    assert backend(new, change) == "b0"


def test_a_session_that_another_grant_lengthens_is_told():
    roles = [{"name": n, "arn": worlds.ARNS[n], **extra} for n, extra in
             (("r0", {"max_lifetime": "2592005s"}), ("r1", {}))]  # fmt: skip
    first = {**GET, "id": "g1"}
    second = {**GET, "id": "g0", "roles": ["r1"]}
    old = policy(first, roles=roles, multi_role="union")
    new = policy(first, second, roles=roles, multi_role="union")

    [change] = diff(old, new).regranted
    assert {*change.roles, *change.companions} == {worlds.ARNS["r0"], worlds.ARNS["r1"]}
    assert {change.was, change.now} & {"the role (at most 2592005s)", "the companion (at most 2592005s)"}


def test_names_are_told_by_arn():
    def named(*names):
        arns = [worlds.ARNS["r0"], worlds.ARNS["r1"]]
        return policy(roles=[{"name": n, "arn": arn} for n, arn in zip(names, arns, strict=True)])

    swap = diff(named("a", "b"), named("b", "a"))
    rename = diff(named("a", "b"), named("a", "c"))

    assert {item.key for item in swap.settings} == {f"roles[{worlds.ARNS[r]}].name" for r in ("r0", "r1")}
    assert [(item.old, item.new) for item in rename.settings] == [('"b"', '"c"')]


def test_servers_are_told():
    old, new = (policy(backends=[{"name": "b0", "servers": [f"10.0.0.{n}:80"]}]) for n in (1, 2))

    assert [item.key for item in diff(old, new).settings] == ["backends[b0].servers"]


def test_a_renamed_grant_is_no_difference_in_access_but_is_told():
    found = diff(policy({**GET, "id": "one"}), policy({**GET, "id": "two"}))

    assert not found
    assert [(change.was, change.rules) for change in found.renamed] == [("one", ("two",))]


def test_one_dropped_deny_is_one_cause():
    grants = [{**GET, "id": f"g{n}", "path": f"/a{n}", "roles": ["r0", "r1"]} for n in range(50)]
    deny = {"id": "no", "roles": ["*"], "path": "/"}

    found = diff(policy(*grants, denies=[deny]), policy(*grants))

    [change] = found.opened
    assert change.cause == "deny no"
    assert change.roles == (worlds.ARNS["r0"], worlds.ARNS["r1"])
    assert len(change.rules) == 50
    assert [str(line) for line in change.region] == [
        "GET " + ", ".join(sorted((f"/a{n} and below" for n in range(50)), key=str.split))
    ]


def test_trust_and_scopes_are_compared_too():
    scope = {"name": "read", "methods": ["GET"], "path": "/a"}
    issuer = {**worlds.BASE["issuers"][0], "audiences": ["api", "other"]}
    old = policy(scopes=[scope])
    new = policy(issuers=[issuer], scopes=[{**scope, "path": "/"}], multi_role="union")

    found = diff(old, new)

    assert {(item.key, item.old, item.new) for item in found.settings} == {
        ("issuers[idp].audiences", '["api"]', '["api", "other"]'),
        ("multi_role", '"deny"', '"union"'),
    }
    [change] = found.scopes_opened
    assert (change.roles, change.witness.path) == (("read",), "/")
    assert [str(line) for line in change.region] == ["GET / and below, but not /a and below"]
    assert not found.scopes_closed
    assert found.digest != diff(new, old).digest


def test_every_setting_has_a_row_that_says_what_weakens():
    types = {name: field.annotation for name, field in Config.model_fields.items()}
    models = {name: model for name, model in types.items() if "Settings" in str(model) or name == "limits"}
    models["identity_header"] = IdentityHeader

    models |= {"dpop": Dpop, "client_certificate": ClientCertificate}
    tables = {name: model.model_fields.items() for name, model in models.items()}

    keys = {f"{name}.{about.alias or key}" for name, fields in tables.items() for key, about in fields}
    assert {*models} >= {"agent", "audit", "metrics", "live", "keys", "identity_header", "limits"}
    assert keys | {"issuers[].bound"} == weakening.WEAKENS.keys()


PROOFS = {"max_age": ("1m", "5m"), "nonce": (True, False), "replay": ("proxy", "none")}
STRONG_AND_WEAK = [
    *(("audit.required", True, False), ("audit.path", "/var/log/audit.jsonl", "none")),
    *(("audit.on_error", "deny", "allow"), ("audit.sync", "1s", "60s"), ("audit.keep", None, "1MB")),
    *(("audit.keep", "20GB", "1MB"), ("agent.listen", "unix:/run/iamroles/agent.sock", "127.0.0.1:9901")),
    ("agent.listen", "unix:/run/iamroles/agent.sock", ["unix:/run/iamroles/agent.sock", "127.0.0.1:9901"]),
    *(("agent.listen", ["unix:/run/a.sock", "unix:/run/b.sock"], None), ("agent.state_dir", "state", None)),
    *(("live.master_socket", "/run/master.sock", None), ("limits.max_lifetime", "1h", None)),
    ("limits.max_lifetime", "30d", "2592005s"),
    *((f"dpop.{name}", *values) for name, values in PROOFS.items()),
]


@pytest.mark.parametrize(("key", "strong", "weak"), STRONG_AND_WEAK)
def test_a_weaker_setting_counts_and_is_named_weaker(key, strong, weak):
    """Nothing told when the audit went to `none`, or a decision without a record was let through."""
    table, name = key.split(".")
    base = {"dpop": {"origins": ["https://a.test"]}}.get(table, {})
    one, two = (
        policy(**{table: base | ({} if value is None else {name: value})}) for value in (strong, weak)
    )

    assert [(item.key, item.weaker) for item in diff(one, two).settings] == [(key, True)]
    assert [(item.key, item.weaker) for item in diff(two, one).settings] == [(key, False)]
    assert diff(one, two)


def weakened(old, new):
    return {item.key for item in diff(old, new).settings if item.weaker}


def test_to_drop_the_signed_identity_tls_or_the_names_that_it_asks_for_weakens():
    signed = policy(identity_header={"issuer": "https://gate.example"})
    listen, tls = {"listen": "10.0.0.1:9901"}, {"certificate": "agent.pem", "ca": "ca.pem"}
    plain, any_name, one_name = (
        policy(agent=listen | more) for more in ({}, {"tls": tls}, {"tls": {**tls, "names": ["proxy.test"]}})
    )

    assert weakened(signed, policy()) == {"identity_header.issuer"}
    for strong, weak in ((signed, policy()), (one_name, any_name), (any_name, plain)):
        assert weakened(strong, weak)
        assert not weakened(weak, strong)


def test_more_workers_are_no_difference_but_are_shown():
    found = diff(policy(), policy(agent={"workers": 4}))

    assert not found
    assert [(item.key, item.old, item.new) for item in found.running] == [("agent.workers", "1", "4")]
    assert found.digest == diff(policy(), policy()).digest
