"""The tools tell who may act for whom as exactly as the gate judges it."""

import json

import policy_worlds as worlds
import pytest
import test_policy_diff as of_regions
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import ISSUER, deny, document, grant
from test_policy_lint import USELESS, useless, without

from iamroles_agent.base.config import Config
from iamroles_agent.base.identity import Actor, Identity, RoleArn
from iamroles_agent.policy import Policy
from iamroles_tools.commands.policy import policy as policy_command
from iamroles_tools.policy.diff import diff
from iamroles_tools.policy.findings import Kind
from iamroles_tools.policy.lint import lint
from iamroles_tools.policy.matrix import matrix

ARNS = [RoleArn.parse(text) for text in worlds.ARNS.values()]
OWN, FOREIGN = "https://idp.test", "https://agents.test"
ACTORS = {
    "nobody": None,
    "a": Actor("a", OWN),
    "b": Actor("b", OWN),
    "a of foreign": Actor("a", FOREIGN, True),
    "b of foreign": Actor("b", FOREIGN, True),
    "a of others": Actor("a", "https://other.test", True),
    "other": Actor("z", OWN),
}
"""One of each kind that these entries tell apart, and more."""
A, OF_FOREIGN = {"sub": "a"}, {"issuer": FOREIGN}
ENTRIES = [{}, A, A | OF_FOREIGN, OF_FOREIGN, A | {"issuer": OWN}]
REQUESTS = [one for one in worlds.NARROW_REQUESTS if one.method == "GET" and one.host in ("x.test", "")]
asked = st.lists(st.sampled_from(ENTRIES), max_size=2, unique_by=str)


@st.composite
def acted(draw, **bounds):
    """A world whose rules speak of actors."""
    world = draw(worlds.worlds(narrow=True, **bounds))
    for rule in (*world["grants"], *world["denies"]):
        rule["actors"] = draw(asked)
    return world


def outcomes(config):
    policy = Policy(config)
    return {
        (held, name, request): policy.decide(
            Identity("idp", "me", "s", held, 2000, 1000, held[0], actor=actor), request
        ).backend
        for held in ((one,) for one in ARNS)
        for name, actor in ACTORS.items()
        for request in REQUESTS
    }


@settings(max_examples=25, deadline=None)
@given(acted(grants=4, denies=2))
def test_what_is_called_useless_can_go(data):
    config = Config.model_validate(data)

    assert outcomes(without(config, useless(config))) == outcomes(config)


@settings(max_examples=25, deadline=None)
@given(acted(grants=4, denies=2))
def test_witnesses_are_sent_by_their_actor(data):
    config = Config.model_validate(data)
    policy = Policy(config)

    for item in lint(config):
        if item.kind in USELESS and item.key.startswith("grants"):
            arns = (RoleArn.parse(worlds.ARNS[item.role]),)
            decision = policy.decide(
                Identity("idp", "me", "s", arns, 2000, 1000, actor=item.actor), item.witness
            )
            denied = item.kind is Kind.UNREACHABLE
            assert decision.reason == "denied_by_rule" if denied else decision.allow, item


@settings(max_examples=25, deadline=None)
@given(acted(grants=2, denies=2), st.data())
def test_a_change_of_actors_opens_and_closes_what_the_difference_says(data, more):
    old = Config.model_validate(data)
    changed = {
        table: [rule | {"actors": more.draw(asked)} for rule in data[table]] for table in ("grants", "denies")
    }
    new = Config.model_validate(data | changed)
    found, before, after = diff(old, new), outcomes(old), outcomes(new)

    for kind, one, two in (("opened", before, after), ("closed", after, before)):
        alone = [change for change in getattr(found, kind) if not change.companions]
        said = {
            key
            for key in one
            for change in alone
            if str(key[0][0]) in change.roles and lies_in(change.region, key[2], ACTORS[key[1]])
        }
        assert said == {key for key in one if not one[key] and two[key]}
        for change in alone:
            shut, wide = (old, new) if kind == "opened" else (new, old)
            arns = (RoleArn.parse(change.roles[0]),)
            who = Identity("idp", "me", "s", arns, 2000, 1000, actor=change.actor)
            assert not Policy(shut).decide(who, change.witness).allow
            assert Policy(wide).decide(who, change.witness).backend == change.backend


def lies_in(region, request, actor):
    return any(of_regions.lies_in([line], request) and _listed(line.actors, actor) for line in region)


def _listed(words, actor):
    """Read the words back."""
    if words in ("", "anybody"):
        return words == "" or actor is not None
    if words.startswith("any but "):
        return not _listed(words.removeprefix("any but "), actor)
    return any(_is(item, actor) for item in words.split("; "))


def _is(item, actor):
    if actor is None or item == "nobody":
        return (actor is None) is (item == "nobody")
    sub, _, of = item.partition(" of ")
    but = sub.removeprefix("other than ")
    whom = sub == "any" or (actor.sub not in but.split(", ") if but != sub else actor.sub == sub)
    less = of.removeprefix("issuers other than ")
    if less != of:
        return whom and actor.foreign and actor.issuer not in less.split(", ")
    return whom and (actor.issuer == of if of else not actor.foreign)


def test_people_only_is_seen_by_every_tool():
    """A deny of all agents takes part of a grant, and without it the agents come back."""
    rules = grant("all", "reader", "GET", "/"), deny("people", "*", "/pay", actors=[{}])
    old, new = (Config.model_validate(document(*some, issuers=[ISSUER])) for some in (rules, rules[:1]))

    [route] = matrix(old).routes
    assert route.cells["reader"].reach == "part"
    [change] = diff(old, new).opened
    assert str(change.region[0]) == "GET /pay and below with actor anybody"


POLICY = document(
    grant("mail", "reader", "GET", "/mail", actors=[{"sub": "mailer"}, {"issuer": FOREIGN}]),
    issuers=[
        ISSUER | {"profile": "aws", "scope_claim": "scope", "scope_required": False, "accounts": ["1" * 12]}
    ],
    scopes=[{"name": "s", "path": "/mail"}],
)


@pytest.mark.parametrize(
    ("actor", "code", "says"),
    [
        (["--actor", "mailer"], 0, "ALLOW by mail"),
        (["--actor", f"x,{FOREIGN}"], 0, "ALLOW by mail"),
        (["--actor", '{"sub": "mailer", "act": {"sub": "x"}}'], 0, "ALLOW by mail"),
        (["--actor", f"mailer,{FOREIGN}/"], 1, "with actor any of https://agents.test or mailer"),
        ([], 1, "is for callers with actor any of https://agents.test or mailer"),
        (["--actor", "{"], 2, "is not JSON"),
        (["--actor", ""], 2, "act.sub is not"),
    ],
)  # fmt: skip
def test_explain_takes_an_actor(tmp_path, actor, code, says):
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(POLICY))
    done = CliRunner().invoke(
        policy_command, ["explain", str(file), "GET", "h/mail", "--role", "reader", *actor]
    )

    assert (done.exit_code, says in done.output) == (code, True), done.output


def test_a_shadow_rule_conflicts_only_with_rules_for_its_actor_and_opens_nothing():
    base = grant("bots", "reader", "GET", "/a", "orders", actors=[{"sub": "b"}])
    shared = {"roles": ["reader"], "methods": ["GET"], "path": "/a", "backend": "other", "shadow": True}
    tried = [{"id": f"tried-{sub}", "actors": [{"sub": sub}], **shared} for sub in "ab"]
    config = Config.model_validate(document(base, *tried, issuers=[ISSUER]))

    assert [item.subject for item in lint(config) if item.kind is Kind.CONFLICTING] == ["tried-b"]
    assert not diff(config, Config.model_validate(document(base, issuers=[ISSUER]))).opened


def test_a_scope_that_the_caller_may_leave_out_is_found():
    [finding] = [item for item in lint(Config.model_validate(POLICY)) if item.kind is Kind.TOO_WIDE]

    assert (finding.key, "leaves it out" in finding.message) == ("issuers[0]", True)


@pytest.mark.parametrize(
    ("entry", "says"), [({"sub": "*"}, "`{}`"), ({"issuer": "idp"}, OWN), ({"issuer": OWN}, "")]
)
def test_an_entry_that_is_hardly_meant_to_the_letter_is_found(entry, says):
    rules = grant("all", "reader", "GET", "/"), deny("agents", "*", "/pay", actors=[{}, entry])
    findings = lint(Config.model_validate(document(*rules, issuers=[ISSUER])))
    found = [item for item in findings if "actors" in item.key]

    assert [(item.key, says in item.remedy) for item in found] == [("denies[0].actors[1]", True)] * bool(says)
