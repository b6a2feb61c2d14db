"""The example of docs/backends.md, run as it stands against keys that a signer published."""

import re
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tokens_support import serving

from iamroles_agent.base.identity import Decision
from iamroles_agent.identity_header import KeyRing, Signer

ROOT = Path(__file__).parents[2]
GATE = "https://gate.example.com"
ROLE = "arn:aws:iam::111111111111:role/reader"


@pytest.fixture
def ring():
    return KeyRing.first(time.time(), 86400.0)


@pytest.fixture
def caller(ring):
    """The documented function, its address put in place of the documented one."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "backends.md").read_text(), re.DOTALL)
    assert "http://127.0.0.1:9102" in code
    names = {}
    with serving() as server:
        server.json("/identity/jwks", ring.jwks())
        exec(code.replace("http://127.0.0.1:9102", server.url), names)
        yield names["caller"]


def signed(ring, issuer=GATE, now=None, **changes):
    said = {"allow": True, "role": ROLE, "principal": "alice", "session": "s", "issuer": "corp"}
    said |= {"backend": "orders", "expires": int(time.time()) + 900} | changes
    return Signer(ring, issuer).sign(Decision(**said), time.time() if now is None else now).token


def test_the_example_takes_what_the_gate_signed(ring, caller):
    claims = caller({"X-IAM-Identity": signed(ring)})

    assert (claims["sub"], claims["role"], claims["idp"]) == ("alice", ROLE, "corp")


def test_the_example_takes_the_next_key_which_is_published_before_it_signs(ring, caller):
    after = KeyRing((ring.keys[1],), ring.rotate)

    assert caller({"X-IAM-Identity": signed(after)})["sub"] == "alice"


def forged(ring):
    """A token of somebody else's key under the gate's `kid`."""
    claims = {"iss": GATE, "aud": "orders", "sub": "mallory", "iat": int(time.time())}
    claims["exp"] = claims["iat"] + 60
    head = {"kid": ring.keys[0].kid, "typ": "iam-identity+jwt"}
    return jwt.encode(claims, ec.generate_private_key(ec.SECP256R1()), "ES256", headers=head)


def again(ring, *how, typ="iam-identity+jwt"):
    """The claims of a good token, written by the gate's key or as it is said."""
    claims = jwt.decode(signed(ring), options={"verify_signature": False})
    how = how or (ring.keys[0].private, "ES256")
    return jwt.encode(claims, *how, headers={"kid": ring.keys[0].kid, "typ": typ})


OTHERS = {
    "none": lambda ring: "",
    "no-token": lambda ring: "alice",
    "changed": lambda ring: signed(ring)[:-4] + "AAAA",
    "other-backend": lambda ring: signed(ring, backend="export"),
    "other-gate": lambda ring: signed(ring, "https://other.example.com"),
    "old": lambda ring: signed(ring, now=time.time() - 120),
    "unknown-key": lambda ring: signed(KeyRing.first(time.time(), 86400.0)),
    "forged": forged,
    "typ": lambda ring: again(ring, typ="JWT"),
    "alg-none": lambda ring: again(ring, None, "none"),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_the_example_refuses_all_others(ring, caller, make):
    with pytest.raises(jwt.PyJWTError):
        caller({"X-IAM-Identity": make(ring)})
