"""The workers of a running agent agree on nonces, also after a death; a key of a file outlives the agent."""

import os
import signal
import time
from ipaddress import ip_address

import pytest
from programs import running, world
from running_agent import answered, connect
from spop_transcript import check_message, context_message
from test_bound import OTHER_EC_KEY, members, prove, thumbprint
from tokens_support import AUDIENCE, token_of
from waiting import until

from iamroles_agent.spop.values import DataType


def answers(agent, token, nonces, count=8):
    """Ask over as many connections, so that each worker is asked; return the variables of each answer."""
    found = []
    for number in range(count):
        more = {"nonce": nonces} if nonces else {}
        proof = prove(token, jti=f"p-{number}", iat=time.time(), **more)
        texts = {"authorization": f"DPoP {token}", "path": "/orders/1", "host": "api.example.com"}
        pairs = {name: (DataType.STRING, text.encode()) for name, text in (texts | {"proof": proof}).items()}
        asked = check_message(**pairs, src=(DataType.IPV4, ip_address("192.0.2.1")))
        with connect(agent.ready["address"]) as sock:
            found.append(answered(sock, context_message(b"r") + asked))
    return found


@pytest.fixture
def policy(idp):
    issuer = {"name": "corp", "issuer": idp.url, "jwks_uri": f"{idp.url}/jwks", "insecure_http": True}
    return world(
        idp.url,
        agent={"listen": "127.0.0.1:0", "workers": 2},
        issuers=[issuer | {"audiences": [AUDIENCE], "algorithms": ["ES256"], "bound": "required"}],
        dpop={"origins": ["https://api.example.com"], "nonce": True, "nonce_lifetime": "1h"},
    )


def nonce_of(found):
    assert {answer["reason"] for answer in found} == {b"nonce_required"}
    [nonce] = {answer["nonce"].decode() for answer in found}
    return nonce


def test_two_workers_and_the_heir_of_one_agree_on_nonces(policy, tmp_path, idp):
    token = token_of(idp.url, cnf={"jkt": thumbprint(members(OTHER_EC_KEY))})
    with running(tmp_path, policy) as agent:
        nonce = nonce_of(answers(agent, token, None))
        found = answers(agent, token, nonce)
        assert {answer["allow"] for answer in found} == {True}
        assert len({answer["proof"] for answer in found}) == len(found)
        assert agent.reload()["reloaded"]
        before = agent.children("iamroles-w")
        os.kill(min(before), signal.SIGKILL)
        until(lambda: len(agent.children("iamroles-w") - before) == 1, why=agent.log())
        assert {answer["allow"] for answer in answers(agent, token, nonce)} == {True}
    with running(tmp_path, policy) as agent:
        assert nonce_of(answers(agent, token, nonce, 1)) != nonce


def test_a_key_of_a_file_outlives_the_agent(policy, tmp_path, idp):
    token = token_of(idp.url, cnf={"jkt": thumbprint(members(OTHER_EC_KEY))})
    policy["dpop"]["nonce_key"] = "nonce.key"
    (tmp_path / "nonce.key").write_bytes(os.urandom(32))
    (tmp_path / "nonce.key").chmod(0o600)
    with running(tmp_path, policy) as agent:
        nonce = nonce_of(answers(agent, token, None, 2))
    with running(tmp_path, policy) as agent:
        assert {answer["allow"] for answer in answers(agent, token, nonce)} == {True}
        (tmp_path / "nonce.key").write_bytes(b"short")
        refused = agent.reload()
        assert (refused["reloaded"], "dpop.nonce_key" in refused["error"]) == (False, True)
        assert {answer["allow"] for answer in answers(agent, token, nonce, 2)} == {True}
