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
from iamroles_scenarios.declarations.tables import ARN
from iamroles_scenarios.jose import SigningKey, mint
from iamroles_scenarios.jose.encoding import part

POLICY = tomllib.loads((files("iamroles_scenarios") / "data" / "worlds" / f"{rows.POLICY}.toml").read_text())
ISSUERS = {one["issuer"]: one for one in POLICY["issuers"]}
KEYS = [SigningKey.generate("ES256", kid="k")]
NOW = time.time()  # of all tokens: other tests may take longer than a token lives
LONGEST = {"mcp-version": 32, "mcp-method": 128, "mcp-name": 1024, "origin": 512, "preflight": 32}


class Here:
    """Stands for a bench: mints."""

    loan = SimpleNamespace(policy=POLICY)
    token = staticmethod(lambda issuer, **recipe: mint(recipe, KEYS, NOW, f"{{idp}}/{issuer}"))


def _under(path, above):
    return path == above or path.startswith(above.rstrip("/") + "/")


def _call(asked, resource):
    """Return the members of a call, or None if they are not known; raise ValueError if they are unsound."""
    versions, version = resource.get("versions", ["2026-07-28"]), asked["mcp-version"]
    if version not in versions and (version is not None or min(versions) >= "2026-07-28"):
        raise ValueError(version)
    if (version or "") < "2026-07-28":
        return None
    method, name = asked["mcp-method"], asked["mcp-name"] or ""
    if asked["method"] != "POST" or not re.fullmatch(r"[A-Za-z0-9_$/.-]+", method or ""):
        raise ValueError(method)
    if method not in ("tools/call", "resources/read", "prompts/get"):
        return {"method": method}
    encoded, plain = re.fullmatch(r"=\?base64\?(.*)\?=", name), re.fullmatch(r"[!-~]([ -~]*[!-~])?", name)
    text = b64decode(encoded[1], validate=True).decode() if encoded else name
    sound = b64encode(text.encode()).decode() == encoded[1] if encoded else plain
    if not text or not text.isprintable() or not sound:
        raise ValueError(name)
    return {"method": method, "name": text}


def _before(asked, path, host, resource):
    """Return what is answered whatever the credential, or None."""
    preflight = asked["method"] == "OPTIONS" and asked["preflight"] and asked["origin"]
    long = any(len(asked[name] or "") > most for name, most in LONGEST.items())
    if long or ".." in path:
        return "text_too_long" if long else "path_ambiguous"
    for at in (urlsplit(one["resource"]) for one in POLICY["resources"]):
        if host == at.hostname and path == "/.well-known/oauth-protected-resource" + at.path:
            return "document" if asked["method"] in ("GET", "HEAD") else "preflight" if preflight else None
    if resource and asked["origin"] is not None:
        url = urlsplit(resource["resource"])
        mine = asked["origin"] in (f"{url.scheme}://{url.netloc}", *resource.get("origins", ()))
        return ("preflight" if preflight else None) if mine else "origin_refused"
    return None


def _decided(row):
    """Return the reason, "allow", or the answer that the agent gives itself; and the rule."""
    asked, path = row.asked, unquote(row.asked["path"]).rstrip("/") or "/"
    host, _, port = asked["host"].lower().partition(":")
    host = host.rstrip(".")
    at = [(urlsplit(one["resource"]), one) for one in POLICY["resources"]]
    holding = [(url, one) for url, one in at if url.hostname == host and _under(path, url.path or "/")]
    longest = sorted(holding, key=lambda pair: (len(pair[0].path), (pair[0].port or 443) == int(port or 443)))
    resource = longest[-1][1] if longest else None
    if (said := _before(asked, path, host, resource)) or row.token is None:
        return said or "no_credentials", ""
    claims, call = part(row.token, 1), None
    if claims["exp"] < NOW or not claims.get("roles"):
        return "role_missing" if claims["exp"] > NOW else "token_expired", ""
    if resource:
        url, issuer = resource["resource"], ISSUERS[claims["iss"]]
        if url not in issuer["audiences"] or issuer["name"] not in resource.get("issuers", [issuer["name"]]):
            return "issuer_untrusted", ""
        aud = claims.get("aud", [])
        if url not in ([aud] if isinstance(aud, str) else aud):
            return "audience_mismatch", ""
        try:
            call = _call(asked, resource)
        except ValueError:
            return "mcp_invalid", ""

    def fits(rule, roles, *, unknown):
        below = path == rule["path"] if rule.get("match") == "exact" else _under(path, rule["path"])
        here = rule.get("hosts", ["*.example"]) == ["*.example"] or host in rule["hosts"]
        spoken = unknown if call is None else any(one.items() <= call.items() for one in rule.get("mcp", ()))
        methods = {"*", asked["method"]} & {*rule.get("methods", ["*"])}
        return below and here and methods and roles & {*rule["roles"]} and (not rule.get("mcp") or spoken)

    roles = {one.removeprefix(ARN) for one in claims["roles"]}
    if denies := [one["id"] for one in POLICY["denies"] if fits(one, {"*", *roles}, unknown=True)]:
        return "denied_by_rule", min(denies)
    active, held = {row.said["role"]} if "role" in row.said else roles, claims.get("scope", "").split()
    grants = [one for one in POLICY["grants"] if fits(one, active, unknown=False)]
    rank = [(one.get("match") != "exact", -one["path"].count("/"), one["id"]) for one in grants]
    scopes = [one | {"roles": active} for one in POLICY["scopes"] if one["name"] in held or not held]
    open_ = not held or any(fits(one, active, unknown=False) for one in scopes)
    return ("allow" if open_ else "scope_insufficient", min(rank)[2]) if rank else ("no_grant", "")


PLAYED = [row for group in rows.GROUPS.values() for row in rows.rows(Here, group) if "lane" not in row.said]


@pytest.mark.parametrize("row", PLAYED, ids=range(len(PLAYED)))
def test_a_row_says_what_the_contract_says(row):
    answer, rule = _decided(row)

    assert answer in row.words, row.what
    assert (answer, rule) == (row.said.get("exact", answer), row.said.get("rule", rule)), row.what
    assert row.said.get("scope", "") in {*row.opens, ""}, row.what


def test_each_rule_about_calls_is_met_and_each_resource_has_its_document():
    decided = {_decided(row) for row in PLAYED}

    assert {one["id"] for one in POLICY["grants"] + POLICY["denies"]} <= {rule for _, rule in decided}
    assert {one["resource"] for one in POLICY["resources"]} == set(rows.TABLE["documents"])
