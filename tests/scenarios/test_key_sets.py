"""The published keys of the signed identity, as the judge fetches them."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from iamroles_scenarios.engine.key_sets import Answered, KeySets

KEY = ec.generate_private_key(ec.SECP256R1())
JWK = {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key())), "kid": "one"}


class Published(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"keys": [JWK]}).encode())

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("dead", [0, -1], ids=["first", "last"])
def test_the_address_of_a_dead_worker_hides_no_other(dead):
    servers = sorted(
        (ThreadingHTTPServer(("127.0.0.1", 0), Published) for _ in range(2)),
        key=lambda server: str(server.server_port),
    )
    ports = [server.server_port for server in servers]
    servers.pop(dead).server_close()
    threading.Thread(target=servers[0].serve_forever, daemon=True).start()
    agent = SimpleNamespace(
        spop_address="127.0.0.1:1",
        lines=lambda: [f"keys at http://127.0.0.1:{port}/identity/jwks" for port in ports],
    )
    sets = KeySets([agent], 10.0)
    at = time.time_ns()
    claims = {"iss": "https://gate.example.com", "aud": "orders", "sub": "ann", "role": "r", "session": ""}
    claims |= {"idp": "corp", "iat": at // 10**9, "exp": at // 10**9 + 5}
    token = jwt.encode(claims, KEY, "ES256", {"kid": "one", "typ": "iam-identity+jwt"})
    tags = {"principal": "ann", "role": "r", "issuer": "corp"}
    seen = SimpleNamespace(allow=True, headers=[("x-iam-identity", token)], backend="orders", tags=tags)

    with sets.fetched():
        answer = Answered(seen, at, time.time_ns())
    servers[0].shutdown()
    servers[0].server_close()

    assert sets.unverified(answer, every=True) == ""
    assert sets.signed == {"one"}
    assert "refused" in sets.fault
