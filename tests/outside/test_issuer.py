"""Bound tokens of a real issuer, which takes our proofs, at HAProxy with the reference agent."""

import base64
import json
import time
import urllib.request
from contextlib import closing
from urllib.parse import urlencode

import pytest
from programs import world

from iamroles_scenarios.engine.http import HttpConnection
from iamroles_scenarios.jose import SigningKey
from iamroles_scenarios.jose.encoding import part
from iamroles_scenarios.jose.proof import proof
from iamroles_scenarios.stage import open_stage
from iamroles_scenarios.stage.reference import reference_agent

HERE = "https://api.example.com"
KEY, OTHER = (SigningKey.generate("ES256", kid="") for _ in range(2))


@pytest.fixture(scope="module")
def gate(issuer):
    policy = world(backends=[{"name": "orders"}], dpop={"origins": [HERE]})
    corp = {"name": "corp", "issuer": issuer, "insecure_http": True, "algorithms": ["ES256"]}
    policy["issuers"] = [corp | {"audiences": [HERE], "bound": "accepted"}]
    with open_stage("processes") as stage, stage.world(reference_agent(), policy) as made:
        yield made


def token_of(issuer, key=None, resource=HERE, scope="read"):
    form = {"grant_type": "client_credentials", "scope": scope, "resource": resource}
    headers = {"Authorization": "Basic " + base64.b64encode(b"service:secret").decode()}
    if key is not None:
        sound = proof(key, "", time.time(), {"drop": ["ath"]}, method="POST", url=f"{issuer}/token")
        headers["DPoP"] = sound
    asked = urllib.request.Request(f"{issuer}/token", urlencode(form).encode(), headers)
    with urllib.request.urlopen(asked) as answer:
        found = json.load(answer)
    assert found["token_type"] == ("Bearer" if key is None else "DPoP")
    return found["access_token"]


def ask(gate, name, scheme, token, *proofs):
    """Return the status, and the reason that HAProxy's log has for it."""
    fields = [f"{scheme} {token}", *proofs]
    fields = [f"{field}: {value}" for field, value in zip(("Authorization", "DPoP"), fields, strict=False)]
    raw = "\r\n".join([f"GET /orders/{name} HTTP/1.1", "Host: api.example.com", *fields, "", ""])
    with closing(HttpConnection((gate.proxy.host, gate.proxy.port), 10)) as line:
        status = line.exchange("GET", raw.encode()).status
    wanted = {"path": f"/orders/{name}", "status": status}
    return status, gate.haproxy.wait_log(lambda found: wanted.items() <= found.items()).get("reason")


def test_a_token_of_the_issuer_opens_with_its_key_alone(gate, issuer):
    bound, plain, moved = (token_of(issuer, *one) for one in ((KEY,), (), (KEY, "https://a.example")))

    def show(name, token=bound, key=KEY):
        return proof(key, token, time.time(), url=f"{HERE}/orders/{name}")

    once = show("once")
    assert (part(bound, 0)["typ"], part(bound, 1)["cnf"]) == ("at+jwt", {"jkt": KEY.thumbprint()})
    for name, scheme, token, proofs, reason in (
        ("once", "DPoP", bound, [once], "-"),
        ("once", "DPoP", bound, [once], "proof_replayed"),
        ("bearer", "Bearer", bound, [], "token_bound"),
        ("beside", "Bearer", bound, [show("beside")], "token_bound"),
        ("alone", "DPoP", bound, [], "token_bound"),
        ("thief", "DPoP", bound, [show("thief", key=OTHER)], "binding_mismatch"),
        ("path", "DPoP", bound, [show("another")], "proof_invalid"),
        ("ath", "DPoP", bound, [show("ath", moved)], "proof_invalid"),
        ("moved", "DPoP", moved, [show("moved", moved)], "audience_mismatch"),
        ("plain", "DPoP", plain, [show("plain", plain)], "token_unbound"),
        ("plain", "Bearer", plain, [], "-"),
        ("again", "DPoP", bound, [show("again")], "-"),
    ):
        assert ask(gate, name, scheme, token, *proofs) == (200 if reason == "-" else 401, reason)
