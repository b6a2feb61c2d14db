"""The example of docs/backends.md, run as it stands against keys that a signer published."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from iamroles_agent.base.identity import Decision
from iamroles_agent.identity_header import KeyRing, Signer

ROOT = Path(__file__).parents[2]
GATE = "https://gate.example.com"
ROLE = "arn:aws:iam::111111111111:role/reader"


def decision(**changes):
    fields = {"allow": True, "role": ROLE, "principal": "alice", "session": "s", "issuer": "corp"}
    return Decision(**{**fields, "backend": "orders", "expires": int(time.time()) + 900, **changes})


@pytest.fixture
def ring():
    return KeyRing.first(time.time(), 86400.0)


@pytest.fixture
def caller(ring):
    """The documented function, its address put in place of the documented one."""

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(ring.jwks()).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "backends.md").read_text(), re.DOTALL)
    assert "127.0.0.1:9102" in code
    names = {}
    exec(code.replace("127.0.0.1:9102", f"127.0.0.1:{server.server_port}"), names)
    yield names["caller"]
    server.shutdown()
    server.server_close()


def signed(ring, issuer=GATE, now=None, **changes):
    return Signer(ring, issuer).sign(decision(**changes), time.time() if now is None else now).token


def test_the_example_takes_what_the_gate_signed(ring, caller):
    claims = caller({"X-IAM-Identity": signed(ring)})

    assert (claims["sub"], claims["role"], claims["idp"]) == ("alice", ROLE, "corp")


def test_the_example_takes_the_next_key_which_is_published_before_it_signs(ring, caller):
    after = KeyRing((ring.keys[1],), ring.rotate)

    assert caller({"X-IAM-Identity": signed(after)})["sub"] == "alice"


def forged(ring, **header):
    """A token of somebody else's key under the gate's `kid`."""
    claims = {"iss": GATE, "aud": "orders", "sub": "mallory", "iat": int(time.time())}
    claims["exp"] = claims["iat"] + 60
    head = {"kid": ring.keys[0].kid, "typ": "iam-identity+jwt", **header}
    key = ec.generate_private_key(ec.SECP256R1())
    return jwt.encode(claims, key, "ES256", headers=head)


def mistyped(ring):
    claims = jwt.decode(signed(ring), options={"verify_signature": False})
    return jwt.encode(claims, ring.keys[0].private, "ES256", headers={"kid": ring.keys[0].kid, "typ": "JWT"})


@pytest.mark.parametrize(
    "make",
    [
        lambda ring: "",
        lambda ring: "alice",
        lambda ring: signed(ring)[:-4] + "AAAA",
        lambda ring: signed(ring, backend="export"),
        lambda ring: signed(ring, "https://other.example.com"),
        lambda ring: signed(ring, now=time.time() - 120),
        lambda ring: signed(KeyRing.first(time.time(), 86400.0)),
        forged,
        mistyped,
        lambda ring: jwt.encode(
            jwt.decode(signed(ring), options={"verify_signature": False}),
            None,
            "none",
            headers={"kid": ring.keys[0].kid, "typ": "iam-identity+jwt"},
        ),
    ],
    ids=[
        "none",
        "no-token",
        "changed",
        "other-backend",
        "other-gate",
        "old",
        "unknown-key",
        "forged",
        "typ",
        "alg-none",
    ],
)
def test_the_example_refuses_all_others(ring, caller, make):
    with pytest.raises(jwt.PyJWTError):
        caller({"X-IAM-Identity": make(ring)})
