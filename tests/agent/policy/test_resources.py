"""MCP servers behind the gate: what no row of the judge can see."""

import json
from ipaddress import ip_address

import pytest
import spop_transcript
from policies import ISSUER, document, grant

from iamroles_agent.base.errors import ConfigError
from iamroles_agent.base.identity import Decision, Request
from iamroles_agent.policy import Policy, load_text
from iamroles_agent.spop import actions

URLS = ["https://mcp.example.com/mcp", "https://mcp.example.com:8443/mcp"]
OPEN = grant("open", "reader", "POST", "/mcp", hosts=["mcp.example.com"], mcp=[{"method": "tools/call"}])


def policy(*rules, scopes=(), issuer=ISSUER):
    resources = [{"name": f"n{len(url)}", "resource": url, "validates_headers": True} for url in URLS]
    tables = {"issuers": [issuer | {"audiences": URLS}], "resources": resources, "scopes": list(scopes)}
    return Policy(load_text(json.dumps(document(*rules, **tables)), "json"))


def test_a_small_frame_never_allows_without_the_resource():
    """The proxy keeps a server's own challenge back only where the resource is named."""
    texts = dict.fromkeys(("role", "principal", "issuer", "rule", "backend", "ticket"), "x" * 40)
    whole = actions.encode_verdict(Decision(allow=True, expires=1, resource=URLS[0], origin=URLS[0], **texts))
    for limit in range(231, len(whole)):
        said = spop_transcript.variables(actions.shorten(whole, limit))
        assert "resource" in said or "backend" not in said


def test_of_resources_that_differ_by_port_the_port_chooses():
    found = policy(OPEN).resources

    for port, index in (("", 0), (":443", 0), (":8443", 1), (":1", 0)):
        asked = Request("GET", f"mcp.example.com{port}", "/mcp", ip_address("::1"))
        assert found.find(asked).target == found.targets[index]


@pytest.mark.parametrize("url", ["https://idp/x", "urn:idp", "idp", "https://idp?x", "http://idp"])
def test_metadata_names_an_issuer_only_if_clients_can_ask_it(url):
    found = policy(OPEN, issuer=ISSUER | {"issuer": url, "jwks_uri": "https://idp/jwks"}).resources

    servers = json.loads(found.targets[0].document).get("authorization_servers", [])
    assert servers == [url] * url.endswith("/x")


def test_grants_for_different_calls_do_not_conflict():
    two = OPEN | {"id": "two", "backend": "c", "mcp": [{"method": "tools/list"}, {"method": "prompts/get"}]}
    policy(OPEN, two)
    policy(OPEN | {"methods": ["POST", "GET"]}, OPEN | {"id": "two", "backend": "c", "methods": ["GET"]})
    with pytest.raises(ConfigError, match="with POST mcp"):
        policy(OPEN | {"methods": ["*"], "mcp": [{"name": "x"}]}, two)


def test_metadata_that_fits_no_frame_is_refused_when_it_loads():
    with pytest.raises(ConfigError, match="its metadata would have"):
        policy(OPEN, scopes=[{"name": "s" * 100 + str(number), "path": "/mcp"} for number in range(80)])
