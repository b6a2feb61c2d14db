"""The rows of mcp.*, read a second time by SPEC.md section 14 alone, and what they must hold."""

import re
import time
import tomllib
from base64 import b64decode, b64encode
from importlib.resources import files
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

from iamroles_scenarios.checks.mcp import rows
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.tables import ARN
from iamroles_scenarios.jose import SigningKey, mint
from iamroles_scenarios.jose.encoding import part

WORLD = files("iamroles_scenarios") / "data" / "worlds" / f"{rows.POLICY}.toml"
POLICY = tomllib.loads(WORLD.read_text())
ISSUERS = {one["issuer"]: one for one in POLICY["issuers"]}
KEYS = [SigningKey.generate("ES256", kid="k")]
NAMED = ("tools/call", "resources/read", "prompts/get")
LONGEST = {"mcp-version": 32, "mcp-method": 128, "mcp-name": 1024, "origin": 512, "preflight": 32}


class Here:
    """Stands for a bench: mints."""

    loan = SimpleNamespace(policy=POLICY)
    token = staticmethod(lambda issuer, **recipe: mint(recipe, KEYS, time.time(), f"{{idp}}/{issuer}"))


def _under(path, above):
    return path == above or path.startswith(above.rstrip("/") + "/")


def _resource(asked, path):
    host = asked["host"].lower().partition(":")[0].rstrip(".")
    found = [one for one in POLICY["resources"] if urlsplit(one["resource"]).hostname == host]
    found = [one for one in found if _under(path, urlsplit(one["resource"]).path or "/")]
    return max(found, key=lambda one: len(one["resource"]), default=None)


def _call(asked, resource):
    """Return method and name, or None if they are not known; raise ValueError if they are unsound."""
    versions, version = resource.get("versions", ["2026-07-28"]), asked["mcp-version"]
    if version not in versions and (version is not None or min(versions) >= "2026-07-28"):
        raise ValueError(version)
    if (version or "") < "2026-07-28":
        return None
    method, name = asked["mcp-method"], asked["mcp-name"] or ""
    if asked["method"] != "POST" or not re.fullmatch(r"[A-Za-z0-9_$/.-]+", method or ""):
        raise ValueError(method)
    if method not in NAMED:
        return {"method": method}
    if name[:9] == "=?base64?" and name[-2:] == "?=":
        encoded, name = name[9:-2], b64decode(name[9:-2], validate=True).decode()
        if b64encode(name.encode()).decode() != encoded:
            raise ValueError(encoded)
    elif not re.fullmatch(r"[!-~]([ -~]*[!-~])?", name):
        raise ValueError(name)
    if not name or not name.isprintable():
        raise ValueError(name)
    return {"method": method, "name": name}


def _fits(rule, asked, path, call, *, unknown):
    methods = rule.get("methods", ["*"])
    below = path == rule["path"] if rule.get("match") == "exact" else _under(path, rule["path"])
    hosts = rule.get("hosts", ["*.example"])
    here = "*.example" in hosts or asked["host"].partition(":")[0] in hosts
    spoken = unknown if call is None else any(one.items() <= call.items() for one in rule.get("mcp", ()))
    return below and here and {"*", asked["method"]} & {*methods} and (not rule.get("mcp") or spoken)


def _before(asked, path, resource):
    """Return what is answered whatever the credential, or None."""
    if any(len(asked[name] or "") > most for name, most in LONGEST.items()):
        return "text_too_long"
    if ".." in path:
        return "path_ambiguous"
    for one in POLICY["resources"]:
        at, seen = urlsplit(one["resource"]), urlsplit(f"//{asked['host'].lower()}")
        if seen.hostname.rstrip(".") == at.hostname and path == rows._WELL_KNOWN + at.path:
            if asked["method"] in ("GET", "HEAD"):
                return "document"
            if asked["method"] == "OPTIONS" and asked["preflight"] and asked["origin"]:
                return "preflight"
    if resource and asked["origin"]:
        url = urlsplit(resource["resource"])
        if asked["origin"] not in (f"{url.scheme}://{url.netloc}", *resource.get("origins", ())):
            return "origin_refused"
        if asked["method"] == "OPTIONS" and asked["preflight"]:
            return "preflight"
    return None


def _proven(claims, resource):
    """Return why a token is refused whatever is asked with it, or None."""
    if claims["exp"] < time.time():
        return "token_expired"
    if not claims.get("roles"):
        return "role_missing"
    if resource:
        url, issuer = resource["resource"], ISSUERS[claims["iss"]]
        if url not in issuer["audiences"] or issuer["name"] not in resource.get("issuers", [issuer["name"]]):
            return "issuer_untrusted"
        if url not in ([claims["aud"]] if isinstance(claims["aud"], str) else claims["aud"]):
            return "audience_mismatch"
    return None


def _decided(row):
    """Return the reason, "allow", or the answer that the agent gives itself; and the rule."""
    asked, path = row.asked, unquote(row.asked["path"]).rstrip("/") or "/"
    resource = _resource(asked, path)
    if said := _before(asked, path, resource):
        return said, ""
    if row.token is None:
        return "no_credentials", ""
    claims = part(row.token, 1)
    if said := _proven(claims, resource):
        return said, ""
    roles = [one.removeprefix(ARN) for one in claims["roles"]]
    try:
        call = _call(asked, resource) if resource else None
    except ValueError:
        return "mcp_invalid", ""
    for deny in POLICY["denies"]:
        if {"*", *roles} & {*deny["roles"]} and _fits(deny, asked, path, call, unknown=True):
            return "denied_by_rule", deny["id"]
    active = [row.said["role"]] if "role" in row.said else roles
    opening = [
        (one.get("match") != "exact", -one["path"].count("/"), one["id"])
        for one in POLICY["grants"]
        if {*active} & {*one["roles"]} and _fits(one, asked, path, call, unknown=False)
    ]
    if not opening:
        return "no_grant", ""
    held = [one for one in POLICY["scopes"] if one["name"] in claims.get("scope", "").split()]
    if "scope" in claims and not any(_fits(one, asked, path, call, unknown=False) for one in held):
        return "scope_insufficient", ""
    return "allow", min(opening)[2]


PLAYED = [
    pytest.param(row, id=f"{name}-{number}")
    for name, group in rows.GROUPS.items()
    for number, row in enumerate(rows.rows(Here, group))
    if row.said.get("lane") != "proxy"
]


@pytest.mark.parametrize("row", PLAYED)
def test_a_row_says_what_the_contract_says(row):
    answer, rule = _decided(row)

    assert answer in row.words, row.what
    assert row.said.get("exact", answer) == answer, row.what
    assert row.said.get("rule", rule) == rule, row.what
    assert not row.said.get("scope") or row.said["scope"] in row.opens, row.what


@pytest.mark.parametrize(
    "rule", [one["id"] for one in POLICY["grants"] + POLICY["denies"] if one.get("mcp", [{}]) != [{}]]
)
def test_each_rule_about_calls_is_met_by_those_it_fits_and_by_others(rule):
    [path] = [one["path"] for one in POLICY["grants"] + POLICY["denies"] if one["id"] == rule]
    decided = [_decided(row)[1] for [row] in (one.values for one in PLAYED) if row.asked["path"] == path]

    assert rule in decided
    assert set(decided) - {rule}


def test_each_resource_has_its_document_and_both_lanes_play_each_group():
    assert {one["resource"] for one in POLICY["resources"]} == set(rows.TABLE["documents"])
    checks = {check.id: check for check in plan()}
    for name in [*rows.GROUPS, *(f"strict.{kind}" for kind in rows._STRICT)]:
        assert all("mcp" in checks[f"mcp.{lane}{name}"].features for lane in ("", "proxy."))
