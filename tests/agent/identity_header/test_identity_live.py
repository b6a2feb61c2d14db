"""The signed identity of the running agent: all workers, their published keys, a change of key, a crash."""

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager

import jwt
import pytest
import tokens_support as support
from spop_client import Client
from spop_transcript import check_message, context_message, notify

from iamroles_agent.control.document import Document, Part
from iamroles_agent.control.store import Store
from iamroles_agent.identity_header import KeyRing
from iamroles_agent.identity_header.keys import SigningKey
from iamroles_agent.processes.identity_keys import IDENTITY_KEYS
from iamroles_agent.spop.actions import decode
from iamroles_agent.spop.values import DataType

GATE = "https://gate.example.com"
READER = "arn:aws:iam::111122223333:role/reader"
PATIENCE = 20.0
ROTATE = 120.0


class Agent:
    """A running agent; `jwks` asks each worker."""

    def __init__(self, process, ready):
        self.process, self.address, self.errors, self.places = process, ready["address"], [], []
        self._heard = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stderr:
            with self._heard:
                self.errors.append(line)
                self.places += re.findall(r"http://(\S+)/metrics", line)
                self._heard.notify_all()

    def jwks(self, workers=2):
        with self._heard:
            assert self._heard.wait_for(lambda: len(self.places) >= workers, PATIENCE), self.errors
        found = []
        for place in self.places:
            with urllib.request.urlopen(f"http://{place}/identity/jwks", timeout=5) as answer:
                assert answer.headers["Content-Type"] == "application/json"
                found.append(json.load(answer))
        return found

    def tokens(self, credential, count=8):
        """Signed identities over as many connections, so that each worker is asked."""
        return asyncio.run(self._tokens(credential, count))

    async def _tokens(self, credential, count):
        found = []
        async with asyncio.timeout(PATIENCE):
            for number in range(count):
                client = await Client.connect(self.address)
                check = check_message(
                    authorization=(DataType.STRING, f"Bearer {credential}".encode()),
                    path=(DataType.STRING, f"/orders/{number}".encode()),
                )
                client.send(notify(context_message(b"r") + check, ids=(1, 1)))
                await client.receive()
                payload = client.raw.data[client.raw.start : client.raw.end]
                (value,) = [item.value for item in decode(payload) if item.name == "identity"]
                found.append(value.decode())
                await client.close()
        return found


@contextmanager
def running(path):
    process = subprocess.Popen(
        [sys.executable, "-m", "iamroles_agent", "agent", "run"],
        env=os.environ | {"IAMROLES_POLICY": str(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Agent(process, json.loads(line))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


@pytest.fixture(scope="module")
def idp():
    with support.serving() as server:
        server.json("/keys", {"keys": [support.public_jwk(support.EC_KEY, "k1", "ES256")]})
        yield server


def credential_of(idp, **claims):
    now = int(time.time())
    return support.mint(
        support.claims(iss=f"{idp.url}/corp", iat=now - 10, exp=now + 900, roles=[READER], **claims)
    )


@pytest.fixture
def credential(idp):
    return credential_of(idp, sub="alice")


@pytest.fixture
def world(idp, tmp_path):
    issuer = {"name": "corp", "issuer": f"{idp.url}/corp", "jwks_uri": f"{idp.url}/keys"}
    issuer |= {"insecure_http": True, "audiences": ["orders"], "algorithms": ["ES256"]}
    document = {
        "version": 1,
        "agent": {"listen": "127.0.0.1:0", "workers": 2, "state_dir": "state"},
        "audit": {"path": "none"},
        "metrics": {"listen": "127.0.0.1:0"},
        "identity_header": {"issuer": GATE, "lifetime": "30s", "rotate": "2m"},
        "issuers": [issuer],
        "roles": [{"name": "reader", "arn": READER}],
        "backends": [{"name": "orders", "servers": ["127.0.0.1:9"]}],
        "grants": [
            {"id": "R1", "roles": ["reader"], "methods": ["GET"], "path": "/orders", "backend": "orders"}
        ],
    }
    path = tmp_path / "world.json"
    path.write_text(json.dumps(document))
    return path


def kid(token):
    return jwt.get_unverified_header(token)["kid"]


def verified(token, jwks):
    key = jwt.PyJWKSet.from_dict(jwks)[kid(token)]
    return jwt.decode(token, key, algorithms=["ES256"], audience="orders", issuer=GATE)


def test_every_worker_signs_with_a_key_that_every_worker_publishes_and_a_crash_keeps_them(world, credential):
    with running(world) as agent:
        one, two = agent.jwks()
        assert one == two
        tokens = agent.tokens(credential)
        for token in tokens:
            claims = verified(token, one)
            assert (claims["sub"], claims["role"], claims["exp"] - claims["iat"]) == ("alice", READER, 30)
        agent.process.kill()
        agent.process.wait(PATIENCE)
    files = [path for path in (world.parent / "state").iterdir() if path.is_file()]
    private = [path for path in files if b"PRIVATE KEY" in path.read_bytes()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o600]

    with running(world) as agent:
        assert agent.jwks() == [one, two]
        for token in [*tokens, *agent.tokens(credential)]:
            verified(token, one)


def test_a_key_changes_by_itself_in_all_workers_and_none_of_their_tokens_is_lost(world, idp, credential):
    store, began = Store(world.parent / "state"), time.time()
    with running(world) as agent:
        agent.jwks()
    now = time.time()
    change = now + 2 * (now - began)  # twice as long as a start and an end of it take here
    former = KeyRing((SigningKey.generate(now - 100), SigningKey.generate(change)), ROTATE)
    store.write(Document(3, {IDENTITY_KEYS: Part.of((former.to_bytes(),))}), running=False)
    with running(world) as agent:
        assert agent.jwks() == [former.jwks()] * 2
        before = agent.tokens(credential, 2)
        deadline = change + PATIENCE
        while min(len(jwks["keys"]) for jwks in agent.jwks()) < 3:
            assert time.time() < deadline, agent.errors
        one, two = agent.jwks()
        assert one == two
        assert [key["kid"] for key in one["keys"][:2]] == [key.kid for key in former.keys]
        fresh = credential_of(idp, sub="bob")
        after = agent.tokens(fresh)
        assert {kid(token) for token in after} == {former.keys[1].kid}
        for token in [*before, *after]:
            verified(token, one)
    kept = store.read().document.parts[IDENTITY_KEYS]
    assert KeyRing.from_bytes(kept.pieces[0], ROTATE).jwks() == one


def test_keys_that_cannot_be_read_are_no_reason_to_make_new_ones(world):
    damaged = Part.of((b'{"version": 1, "keys": [{"private": "s3cret"}]}',))
    Store(world.parent / "state").write(Document(3, {IDENTITY_KEYS: damaged}), running=False)

    done = subprocess.run(
        [sys.executable, "-m", "iamroles_agent", "agent", "run", "--config", str(world)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 3
    assert "these are not the keys of the identity header" in done.stderr
    assert "move the directory away for new keys" in done.stderr
    assert "s3cret" not in done.stderr


def test_without_the_table_nothing_is_signed_or_published(world, credential):
    document = json.loads(world.read_text())
    del document["identity_header"]
    world.write_text(json.dumps(document))
    with running(world) as agent:
        with pytest.raises(ValueError, match="not enough values"):
            agent.tokens(credential, 1)
        with pytest.raises(AssertionError):
            agent.jwks()  # metrics answer that path, in their own format
