"""Strangers against the agent as it is run: workers, fetcher, sockets, an STS that strangers keep busy."""

import json
import re
import secrets
import signal
import threading
import time
from ipaddress import ip_address

import pytest
from policies import grant
from programs import running, world
from spop_client import Client, until
from spop_transcript import check_message, context_message, notify
from sts_support import EDGE, HOST, KEY_ID, as_json, credential, error_xml, presign
from tokens_support import EC_KEY, encode_base64url, public_jwk, serving, token_of

from iamroles_agent.spop.values import DataType

FORGED = 300


def question(header, src, number):
    asked = check_message(
        authorization=(DataType.STRING, header.encode()), src=(DataType.IPV4, ip_address(src))
    )
    return notify(context_message() + asked, ids=(number, 1))


def signed_by(key_id, ago=0):
    return credential(presign(now=time.time() - ago).replace(KEY_ID, key_id))


def policy(directory, endpoint, workers=1, **more):
    sts = {"name": "sts", "endpoint": endpoint, "hosts": [HOST], "binding_value": EDGE}
    return world(
        agent={"listen": "127.0.0.1:0", "workers": workers},
        audit={"path": str(directory / "audit.log")},
        issuers=[],
        sts=[sts | more],
        grants=[grant("R1", "reader", "*", "/", "orders")],
    )


class BusySts:
    """Answers a good key at once, and a forged one when the test lets it."""

    def __init__(self):
        self.release = threading.Event()
        self.forged = 0

    def answer(self, handler):
        found = re.search(r"X-Amz-Credential=([A-Z0-9]+)", handler.path)
        if found is not None and found[1] == KEY_ID:
            return 200, {"Content-Type": "application/json"}, as_json()
        self.forged += 1
        self.release.wait(30)
        return 403, {"Content-Type": "text/xml"}, error_xml("InvalidClientTokenId")


@pytest.mark.parametrize("workers", [1, 3])
async def test_forged_credentials_leave_a_good_caller_its_turn(tmp_path, workers):
    """400 forged credentials once made a good caller wait until its time was over (503)."""
    busy = BusySts()
    with serving() as server:
        server.replies["/"] = busy.answer
        config = policy(tmp_path, server.url, workers, insecure_http=True, timeout="20s")
        try:
            with running(tmp_path, config) as agent:
                good = await Client.connect(agent.ready["address"])
                good.send(question(signed_by(KEY_ID), "198.51.100.7", 1))
                assert "allow=True" in await good.receive()

                bad = [await Client.connect(agent.ready["address"]) for _ in range(6)]
                for n in range(FORGED):
                    forged = question(signed_by(f"AKIA{n:016d}"), f"192.0.2.{n % 5}", n + 1)
                    bad[n % len(bad)].send(forged)
                await until(lambda: busy.forged >= 12)  # all the room that strangers have is taken

                good.send(question(signed_by(KEY_ID, ago=7), "198.51.100.7", 2))
                assert "allow=True" in await good.receive()
                new = await Client.connect(agent.ready["address"])
                new.send(question("Bearer a.b.c", "198.51.100.9", 1))
                assert "token_malformed" in await new.receive()
                assert busy.forged == 12

                busy.release.set()
                answers = [await client.receive() for client in bad for _ in range(FORGED // len(bad))]
                reasons = {re.search(r"reason=b'(\w+)'", answer)[1] for answer in answers}
                assert reasons <= {"sts_rejected", "sts_unavailable"}
                assert len(answers) == FORGED
        finally:
            busy.release.set()


async def test_an_issuer_that_hangs_keeps_no_other_issuer_waiting(tmp_path):
    """Its forged kids once took all room that a worker has for questions to the fetcher."""
    release = threading.Event()
    with serving() as server:
        a, b = f"{server.url}/a", f"{server.url}/b"
        server.json("/a/jwks", {"keys": [public_jwk(EC_KEY, "k1")]})
        server.json("/b/jwks", {"keys": [public_jwk(EC_KEY, "k1")]})
        issuers = [
            world(url)["issuers"][0] | {"name": name, "issuer": url} for name, url in (("a", a), ("b", b))
        ]
        agent = {"listen": "127.0.0.1:0", "decision_timeout": "30s"}
        config = world(issuers=issuers, keys={"timeout": "30s"}, agent=agent)
        try:
            with running(tmp_path, config) as agent:
                good, *bad = [await Client.connect(agent.ready["address"]) for _ in range(6)]
                for number, url in enumerate((a, b), 1):
                    good.send(question(f"Bearer {token_of(url)}", "198.51.100.7", number))
                    assert "allow=True" in await good.receive()
                server.replies["/a/jwks"] = lambda _: release.wait(30) and None
                server.json("/b/jwks", {"keys": [public_jwk(EC_KEY, kid) for kid in ("k1", "k2")]})

                _, payload, signature = token_of(a).split(".")
                for client in bad:
                    heads = [{"alg": "ES256", "typ": "JWT", "kid": secrets.token_hex(8)} for _ in range(900)]
                    forged = [f"{encode_base64url(json.dumps(head).encode())}.{payload}" for head in heads]
                    headers = [f"Bearer {each}.{signature}" for each in forged] + ["Bearer a.b.c"]
                    client.send(*(question(each, "192.0.2.1", n) for n, each in enumerate(headers, 1)))
                for client in bad:  # so all before it were taken
                    assert "token_malformed" in await client.receive()

                good.send(question(f"Bearer {token_of(b, kid='k2')}", "198.51.100.7", 3))
                assert "allow=True" in await good.receive()
        finally:
            release.set()


async def test_a_good_client_is_answered_between_hostile_requests(tmp_path):
    """One path of 14 kB once kept everyone waiting for more than a second."""
    paths = {
        b"/" + b"eyJ" * 4700: "text_too_long",
        b"/a" * 7000: "text_too_long",
        b"/" + b"eyJ" * 1300: "no_credentials",
        b"/" + b"%C3%A9" * 680: "no_credentials",
        b"/%zz" * 1000: "path_ambiguous",
    }
    with running(tmp_path, policy(tmp_path, "https://sts.test/")) as agent:
        client = await Client.connect(agent.ready["address"])
        for number, (path, reason) in enumerate(paths.items(), 1):
            asked = check_message(
                authorization=(DataType.NULL, None),
                authorization_count=(DataType.INT64, 0),
                path=(DataType.STRING, path),
            )
            client.send(notify(context_message() + asked, ids=(number, 1)))
            assert reason in await client.receive()
        await client.close()
        assert agent.ended(signal.SIGTERM) == 0
    log = (tmp_path / "audit.log").read_bytes().splitlines()
    assert max(map(len, log)) < 4096
    assert sum(b"text_too_long" in line for line in log) == 2
