"""The rows of actor.*, read a second time by SPEC.md section 13 alone, and what they must hold."""

import time
import tomllib
from importlib.resources import files
from types import SimpleNamespace

import pytest

from iamroles_scenarios.checks.actor import rows
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.tables import ARN, AWS, table
from iamroles_scenarios.jose import SigningKey, mint
from iamroles_scenarios.jose.encoding import part

IDP = "https://idp.example"
WORLD = files("iamroles_scenarios") / "data" / "worlds" / f"{rows.POLICY}.toml"
POLICY = tomllib.loads(WORLD.read_text().replace("{idp}", IDP))
GRANTS, DENIES = ([one for one in POLICY[kind] if not one.get("shadow")] for kind in ("grants", "denies"))
ISSUERS = {one["issuer"]: one for one in POLICY["issuers"]}
KEYS = [SigningKey.generate("ES256", kid="k")]


class Here:
    """Stands for a bench: mints."""

    issuer = staticmethod(lambda name: SimpleNamespace(url=f"{IDP}/{name}"))
    token = staticmethod(lambda issuer, **recipe: mint(recipe, KEYS, time.time(), f"{IDP}/{issuer}"))


def _sound(text):
    return isinstance(text, str) and 0 < len(text) < 513 and text.isprintable() and text == text.strip()


def _actor(claims):
    """Return the actor's `sub` and issuer, or None; raise ValueError if the claim is in another form."""
    found, act = None, claims.get("act")
    if act is not None:
        if not isinstance(act, dict) or not _sound(act.get("sub")) or not _sound(act.get("iss", "x")):
            raise ValueError(act)
        found = act["sub"], act.get("iss", claims["iss"])
    facts = claims.get(AWS, {})
    origin = "OriginIdentity" in (claims.get("subject_mode"), facts.get("subject_mode"))
    aws = ISSUERS[claims["iss"]].get("profile") == "aws"
    return (facts["principal_id"], claims["iss"]) if aws and origin else found


def _fits(rule, actor, iss):
    """Tell if a rule's `actors` fit."""
    return not rule.get("actors") or any(
        actor and entry.get("sub", actor[0]) == actor[0] and entry.get("issuer", own) == actor[1]
        for entry in rule["actors"]
        for own in [iss if "sub" in entry else actor and actor[1]]
    )


def _under(rule, path):
    return path == rule["path"] or path.startswith(rule["path"] + "/")


def _decided(row):
    """Return the reason, "" for an allow, with the rule, the actor and the actor's issuer."""
    if row.said.get("bare"):
        return "no_credentials", "", "", ""
    if part(row.token, 0)["typ"] != "JWT":
        return "type_not_allowed", "", "", ""
    claims, path = part(row.token, 1), row.said["path"].partition("?")[0]
    try:
        actor, iss = _actor(claims), claims["iss"]
    except ValueError:
        return "claim_invalid", "", "", ""
    roles = [one.removeprefix(ARN) for one in claims.get("roles", [f"{ARN}kiosk"])]
    active = [row.said["role"]] if "role" in row.said else roles
    for deny in DENIES:
        if _under(deny, path) and {"*", *roles} & set(deny["roles"]) and _fits(deny, actor, iss):
            return "denied_by_rule", deny["id"], "", ""
    opening = [
        (-len(grant["path"]), grant["id"])
        for grant in GRANTS
        if _under(grant, path) and set(active) & set(grant["roles"]) and _fits(grant, actor, iss)
    ]
    if not opening:
        return "no_grant", "", "", ""
    scopes = [one for one in POLICY["scopes"] if one["name"] in claims.get("scope", "").split()]
    if "scope_claim" in ISSUERS[iss] and not any(_under(scope, path) for scope in scopes):
        return "scope_insufficient", "", "", ""
    sub, issuer = actor or ("", "")
    return "", min(opening)[1], sub, "" if issuer == iss else issuer


PLAYED = [
    pytest.param(row, id=f"{name}-{number}")
    for name, group in rows.GROUPS.items()
    for number, row in enumerate(rows.rows(Here, group))
]


@pytest.mark.parametrize("row", PLAYED)
def test_a_row_says_what_the_contract_says(row):
    reason, rule, actor, issuer = _decided(row)

    assert reason in row.reasons, row.what
    if not reason:
        assert (actor, issuer) == (row.said.get("actor", ""), row.said.get("iss", "")), row.what
        assert rule == row.said.get("rule", rule), row.what


@pytest.mark.parametrize("rule", [one["id"] for one in GRANTS + DENIES if one.get("actors")])
def test_each_rule_about_actors_is_met_by_those_it_fits_and_by_others(rule):
    [path] = [one["path"] for one in GRANTS + DENIES if one["id"] == rule]
    decided = [_decided(row)[1] for [row] in (one.values for one in PLAYED) if row.said["path"] == path]

    assert rule in decided
    assert set(decided) - {rule}


def test_a_chain_begins_with_its_actor():
    assert rows.chain(1) == {"sub": "bot"}
    assert rows.chain(3) == {"sub": "bot", "act": {"sub": "svc1", "act": {"sub": "svc0"}}}


def test_both_lanes_play_each_group_for_agents_that_declare_it():
    checks = {check.id: check for check in plan()}
    for name in table("actors")["groups"]:
        for one in (checks[f"actor.{name}"], checks[f"actor.proxy.{name}"]):
            assert "actor" in one.features
