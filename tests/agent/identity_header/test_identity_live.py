"""The signed identity of the running agent: all workers, their published keys, a change of key, a crash."""

import json
import re
import signal
import stat
import time
import urllib.request

import jwt
import pytest
from programs import PATIENCE, iamroles, running, world
from running_agent import answered, connect, question
from spop_transcript import context_message
from tokens_support import ROLE, token_of
from waiting import until

from iamroles_agent.control.document import Document, Part
from iamroles_agent.control.store import Store
from iamroles_agent.identity_header import KeyRing
from iamroles_agent.identity_header.keys import SigningKey
from iamroles_agent.processes.identity_keys import IDENTITY_KEYS

GATE = "https://gate.example.com"
ROTATE = 120.0


def published(agent):
    """The keys that each worker publishes."""

    def places():
        return re.findall(r"http://(\S+)/metrics", agent.log())

    until(lambda: len(places()) == 2, why=agent.log())
    found = []
    for place in places():
        with urllib.request.urlopen(f"http://{place}/identity/jwks", timeout=5) as answer:
            assert answer.headers["Content-Type"] == "application/json"
            found.append(json.load(answer))
    return found


def signed(agent, credential, count=8):
    """Signed identities over as many connections, so that each worker is asked."""
    found = []
    for number in range(count):
        with connect(agent.ready["address"]) as sock:
            answer = answered(sock, context_message(b"r") + question(credential, f"/orders/{number}"))
            found.append(answer["identity"].decode())
    return found


@pytest.fixture
def credential(idp):
    return token_of(idp.url)


@pytest.fixture
def policy(idp):
    return world(
        idp.url,
        agent={"listen": "127.0.0.1:0", "workers": 2, "state_dir": "state"},
        metrics={"listen": "127.0.0.1:0"},
        identity_header={"issuer": GATE, "lifetime": "30s", "rotate": "2m"},
    )


def kid(token):
    return jwt.get_unverified_header(token)["kid"]


def verified(token, jwks):
    key = jwt.PyJWKSet.from_dict(jwks)[kid(token)]
    return jwt.decode(token, key, algorithms=["ES256"], audience="orders", issuer=GATE)


def test_every_worker_signs_with_a_key_that_every_worker_publishes_and_a_crash_keeps_them(
    policy, tmp_path, credential
):
    with running(tmp_path, policy) as agent:
        one, two = published(agent)
        assert one == two
        tokens = signed(agent, credential)
        for token in tokens:
            claims = verified(token, one)
            assert (claims["sub"], claims["role"], claims["exp"] - claims["iat"]) == ("alice", ROLE, 30)
        agent.ended(signal.SIGKILL)
    files = [path for path in (tmp_path / "state").iterdir() if path.is_file()]
    private = [path for path in files if b"PRIVATE KEY" in path.read_bytes()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o600]

    with running(tmp_path, policy) as agent:
        assert published(agent) == [one, two]
        for token in [*tokens, *signed(agent, credential)]:
            verified(token, one)


def test_a_key_changes_by_itself_in_all_workers_and_none_of_their_tokens_is_lost(
    policy, tmp_path, idp, credential
):
    store, began = Store(tmp_path / "state"), time.time()
    with running(tmp_path, policy) as agent:
        published(agent)
        agent.ended(signal.SIGTERM)
    now = time.time()
    change = now + 2 * (now - began)  # twice as long as a start and an end of it take here
    former = KeyRing((SigningKey.generate(now - 100), SigningKey.generate(change)), ROTATE)
    store.write(Document(3, {IDENTITY_KEYS: Part.of((former.to_bytes(),))}), running=False)
    with running(tmp_path, policy) as agent:
        assert published(agent) == [former.jwks()] * 2
        before = signed(agent, credential, 2)
        until(
            lambda: min(len(jwks["keys"]) for jwks in published(agent)) == 3,
            change - time.time() + PATIENCE,
            agent.log(),
        )
        one, two = published(agent)
        assert one == two
        assert [key["kid"] for key in one["keys"][:2]] == [key.kid for key in former.keys]
        after = signed(agent, token_of(idp.url, sub="bob"))
        assert {kid(token) for token in after} == {former.keys[1].kid}
        for token in [*before, *after]:
            verified(token, one)
        agent.ended(signal.SIGTERM)
    kept = store.read().document.parts[IDENTITY_KEYS]
    assert KeyRing.from_bytes(kept.pieces[0], ROTATE).jwks() == one


def test_keys_that_cannot_be_read_are_no_reason_to_make_new_ones(policy, tmp_path):
    damaged = Part.of((b'{"version": 1, "keys": [{"private": "s3cret"}]}',))
    Store(tmp_path / "state").write(Document(3, {IDENTITY_KEYS: damaged}), running=False)
    (tmp_path / "world.json").write_text(json.dumps(policy))

    done = iamroles("agent", "run", "--config", tmp_path / "world.json")

    assert done.returncode == 3
    assert "these are not the keys of the identity header" in done.stderr
    assert "move the directory away for new keys" in done.stderr
    assert "s3cret" not in done.stderr


def test_without_the_table_nothing_is_signed_or_published(policy, tmp_path, credential):
    del policy["identity_header"]
    with running(tmp_path, policy) as agent:
        with pytest.raises(KeyError, match="identity"):
            signed(agent, credential, 1)
        with pytest.raises(AssertionError):
            published(agent)  # metrics answer that path, in their own format
