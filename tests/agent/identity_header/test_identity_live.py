"""The signed identity of the running agent: all workers, their published keys, a change of key, a crash."""

import json
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from contextlib import closing

import jwt
import pytest
from programs import PATIENCE, ROOT, Program, iamroles, running, world
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


LATE = """
import sys, time
now = time.time
time.time = lambda: now() + 20
from iamroles_agent.main import main
main(sys.argv[1:])
"""


def kids(agent):
    return {key["kid"] for jwks in published(agent) for key in jwks["keys"]}


def keep(place, *secrets):
    (place / "gate.key").write_text("".join(f"{one}\n" for one in secrets))
    (place / "gate.key").chmod(0o600)


def test_two_agents_sign_as_one_also_20_s_apart_and_while_their_secret_is_replaced(
    policy, tmp_path, credential
):
    policy["identity_header"]["secrets"] = "gate.key"
    old, new = "a" * 43, "b" * 43
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        place.mkdir()
        keep(place, old)
    (places[1] / "world.json").write_text(json.dumps(policy))
    two = Program(places[1], sys.executable, "-c", LATE, "agent", "run", "--config", places[1] / "world.json")
    with running(places[0], policy) as one, closing(two):
        two.start(popen=subprocess.Popen, cwd=ROOT)
        two.ready = two.line()
        signing = []
        for step in ((old,), (old, new), (new, old), (new,)):
            for place, agent in zip(places, (one, two), strict=True):
                keep(place, *step)
                assert agent.reload()["reloaded"], agent.log()
                tokens = [token for each in (one, two) for token in signed(each, credential, 2)]
                signing.append({kid(token) for token in tokens})
                assert signing[-1] <= kids(one) & kids(two), step
        assert not signing[0] & signing[-1]
        keep(places[0])
        refused = one.reload()
        assert not refused["reloaded"]
        assert "has 0 secrets, and must have 1 to 4" in str(refused)
        assert {kid(token) for token in signed(one, credential, 2)} <= kids(two)
        one.ended(signal.SIGKILL)
    del policy["identity_header"]["secrets"]
    with running(places[0], policy) as alone:  # with keys of its own again
        assert {kid(token) for token in signed(alone, credential)} <= kids(alone)
        assert not kids(alone) & signing[-1]


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        (None, 0, "No such file"),
        ("a" * 43, 0o644, "mode"),
        ("a" * 42, 0o600, "line 1 of"),
        (f"\n{'a' * 43}\n{'b' * 20} {'c' * 22}", 0o600, "line 3 of"),
        (f"{'a' * 43}\n{'a' * 43}", 0o600, "all different"),
    ],
)
def test_a_file_of_secrets_that_is_none_stops_the_start_and_is_not_quoted(policy, tmp_path, text, mode, why):
    policy["identity_header"]["secrets"] = "gate.key"
    if text is not None:
        (tmp_path / "gate.key").write_text(text)
        (tmp_path / "gate.key").chmod(mode)
    (tmp_path / "world.json").write_text(json.dumps(policy))

    done = iamroles("agent", "run", "--config", tmp_path / "world.json")

    assert done.returncode
    assert "identity_header.secrets" in done.stderr
    assert why in done.stderr
    assert "openssl rand -base64 32" in done.stderr
    assert not re.search("a{20}", done.stderr)
