"""Bound tokens through HAProxy and the reference agent, of two workers: the two halves of each decision."""

import secrets
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from programs import world
from test_stage_bound import ASKS, FILES, MINE, SHOWN, line_to, raw, record
from tokens_support import publishing, token_of

from iamroles_scenarios.jose.keys import SigningKey
from iamroles_scenarios.jose.proof import jwk_of, proof, thumbprint
from iamroles_scenarios.stage import open_stage
from iamroles_scenarios.stage.reference import reference_agent
from iamroles_scenarios.traffic.tls import ClientTls

KEY = SigningKey("proof", "ES256", ec.generate_private_key(ec.SECP256R1()))
JKT = thumbprint(jwk_of(KEY))
BOTH = {"jkt": JKT, "x5t#S256": SHOWN}


def proof_of(token, **changes):
    return proof(KEY, token, time.time(), {"claims": changes}, url="https://api.example/orders/1")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "nonce"])
def gate(request):
    with publishing() as idp, open_stage("processes") as stage:
        policy = world(idp.url, agent={"workers": 2}, backends=[{"name": "orders"}])
        policy["issuers"][0]["bound"] = "accepted"
        policy["dpop"] = {"origins": ["https://api.example"], "nonce": request.param}
        settings = {"IAM_BIND_TLS": f"ssl crt site.pem {ASKS}"}
        with stage.world(reference_agent(), policy, settings=settings, files=FILES) as made:
            made.idp, made.nonce = idp.url, request.param
            yield made


def ask(gate, token, proof=None, tls=None, scheme="DPoP"):
    headers = [f"Authorization: {scheme} {token}", *([f"DPoP: {proof}"] if proof else [])]
    with line_to(gate, tls) as line:
        return line.exchange("GET", raw("/orders/1", None, headers=headers))


def nonce_of(gate, token, tls=None):
    """Return the claims that the gate asks for by a refusal."""
    if not gate.nonce:
        return {}
    refused = ask(gate, token, proof_of(token), tls)
    assert (refused.status, 'error="use_dpop_nonce"' in str(refused)) == (401, True)
    return {"nonce": refused.all("dpop-nonce")[0]}


def test_a_proof_passes_once_and_a_wrong_one_burns_nothing(gate):
    token = token_of(gate.idp, cnf={"jkt": JKT})
    more = nonce_of(gate, token) | {"jti": secrets.token_hex(8)}
    old = int(time.time()) - 90
    wrong = {"htm": "POST"}, {"ath": "A" * 43}, {"iat": old}, {"htu": "https://a.test/orders/1"}

    refused = [ask(gate, token, proof_of(token, **more, **change)) for change in wrong]
    assert {(one.status, 'error="invalid_dpop_proof"' in str(one)) for one in refused} == {(401, True)}
    good = proof_of(token, **more)
    assert ask(gate, token, good).status == 200
    same = proof_of(token, **more, htu="HTTPS://API.example:443/orders/%31?q")
    assert {ask(gate, token, again).status for again in (good, proof_of(token, **more), same)} == {401}
    assert record(gate, reason="proof_replayed")["status"] == 401


def test_a_token_of_a_certificate_and_a_key_needs_both(gate):
    mine, token = ClientTls(MINE.pem, resumes=True), token_of(gate.idp, cnf=BOTH)
    more = nonce_of(gate, token, mine)

    assert ask(gate, token, proof_of(token, **more), mine).status == 200
    assert ask(gate, token, proof_of(token, **more), mine).status == 200
    assert ask(gate, token, proof_of(token, **more)).status == 401
    assert record(gate, reason="token_bound")
    alone = token_of(gate.idp, cnf={"x5t#S256": SHOWN})
    assert [ask(gate, alone, None, tls, "Bearer").status for tls in (mine, None)] == [200, 401]
