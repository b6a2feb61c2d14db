"""`iamroles token inspect|mint`: what people see, and what they never see."""

import json
import time
from hashlib import sha256
from ipaddress import ip_address

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from invoking import said
from jwt.algorithms import ECAlgorithm
from sts_support import GOOD, HOST, TOKEN
from tokens_support import encode_base64url, serving

from iamroles_agent.base.config import Dpop
from iamroles_agent.base.identity import Request
from iamroles_agent.tokens.proof import ProofRules
from iamroles_scenarios.engine.certificates import Certificate

ROLE = "arn:aws:iam::123456789012:role/Reader"
KEYS = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
RECIPE = f"""
kid = "k1"
[claims]
iss = "https://idp.example.com"
aud = "orders"
sub = "alice"
exp = "+10m"
iat = "-5s"
roles = ["{ROLE}"]
"""


@pytest.fixture
def folder(tmp_path):
    for alg, key in KEYS.items():
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{alg}.pem").write_bytes(pem)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    write_policy(tmp_path)
    return tmp_path


def write_policy(folder, algorithms=tuple(KEYS), sts=(), **about):
    issuer = {"name": "corp", "issuer": "https://idp.example.com", "audiences": ["orders"]}
    policy = {"version": 1, "issuers": [issuer | {"algorithms": algorithms} | about], "sts": sts}
    (folder / "policy.json").write_text(json.dumps(policy))


def minted(folder, alg, *more):
    """A token and the path of its key set."""
    arguments = "--key", folder / f"{alg}.pem", "--recipe", folder / "recipe.toml", *more
    jwks = folder / "jwks.json"
    jwks.write_text(said("token mint --jwks", *arguments))
    return said("token mint", *arguments).strip(), jwks


def inspected(folder, made, *more, code=0):
    return said("token inspect", made, "--config", folder / "policy.json", *more, code=code)


@pytest.mark.parametrize("alg", sorted(KEYS))
def test_what_mint_makes_inspect_accepts(folder, alg):
    made, jwks = minted(folder, alg)
    asked = "--config", folder / "policy.json", "--jwks", jwks
    shown = said("token inspect", *asked, input=f"Bearer {made}\n")

    assert f"accepted: {ROLE}" in shown
    assert "signature: verified" in shown
    assert made.rpartition(".")[2] not in shown


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["--claim", "exp=-1m", "--claim", "iat=-2m"], "token_expired"),
        (["--claim", "nbf=+1m"], "token_not_yet_valid"), (["--claim", "exp=+9d"], "token_lifetime"),
        (["--claim", "aud=x"], "audience_mismatch"), (["--claim", "roles=[]"], "role_missing"),
        (["--claim", 'roles=["admin"]'], "role_malformed"), (["--claim", 'exp="soon"'], "claim_invalid"),
        (["--claim", "iss=https://idp.example.com/"], "issuer_untrusted"),
    ],
)  # fmt: skip
def test_inspect_names_the_reason_that_the_agent_gives(folder, changes, expected):
    made, jwks = minted(folder, "ES256", *changes)
    document = json.loads(inspected(folder, made, "--jwks", jwks, "--format", "json", code=1))

    assert f"refused: {expected}" in inspected(folder, made, "--jwks", jwks, code=1)
    assert (document["reason"], document["roles"]) == (expected, [])


def test_inspect_hints_at_a_near_issuer(folder):
    made, _ = minted(folder, "ES256", "--claim", "iss=https://idp.example.com/")

    assert "trailing slash" in inspected(folder, made, "--offline", code=1)


def test_inspect_shows_later_faults_too(folder):
    made, _ = minted(folder, "ES256", "--claim", "aud=x")
    _, other = minted(folder, "ES384", "--kid", "k2")
    shown = inspected(folder, made, "--jwks", other, code=1)

    assert "refused: key_unknown" in shown
    assert "audience_mismatch" in shown


def test_inspect_without_policy_and_offline(folder):
    made, _ = minted(folder, "ES256")

    for shown in (said("token inspect", made), inspected(folder, made, "--offline")):
        assert "nothing wrong found" in shown
        assert "signature: unchecked, 64 bytes" in shown


def test_inspect_fetches_keys_as_the_agent_would(folder):
    with serving() as server:
        made, jwks = minted(folder, "ES256")
        server.raw("/jwks", jwks.read_bytes())
        write_policy(folder, jwks_uri=f"{server.url}/jwks", insecure_http=True)

        assert "accepted" in inspected(folder, made)
        assert server.counts["/jwks"] == 1


@pytest.mark.parametrize(("later", "reason"), [(700, "token_expired"), (-700, "token_not_yet_valid")])
def test_inspect_at_a_given_time(folder, later, reason):
    made, jwks = minted(folder, "ES256")

    assert reason in inspected(folder, made, "--jwks", jwks, "--at", time.time() + later, code=1)


def test_inspect_sts_hides_signature_and_token(folder):
    endpoint = {"name": "aws", "endpoint": f"https://{HOST}", "hosts": [HOST], "binding_value": "edge"}
    write_policy(folder, sts=[endpoint])
    shown = inspected(folder, "iam-sts-v1." + encode_base64url(GOOD.encode()), "--at", "1800000001")

    assert "ASIAIOSFODNN7EXAMPLE" in shown
    assert TOKEN not in shown
    assert GOOD.partition("Signature=")[2] not in shown
    assert "only STS knows" in shown


def test_inspect_does_not_let_a_token_drive_the_terminal(folder):
    made, _ = minted(folder, "ES256", "--claim", "sub=\u001b[2J\u202e")

    assert not {"\u001b", "\u202e"} & set(said("token inspect", made, code=(0, 1)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        *(("inspect", "no credential"), ("inspect --config absent.toml x", "absent.toml")),
        *(("inspect --jwks absent.json x", "absent.json"), ("mint --key absent.pem", "absent.pem")),
        ("mint --key recipe.toml", "not an unencrypted"),
        *(("mint --key ES256.pem --claim x", "NAME=VALUE"), ("mint --key ES256.pem --alg HS256", "HS256")),
        ("mint --key ES256.pem --alg RS256", "does not fit"),
        ("mint --key ES256.pem --recipe ES256.pem", "ES256.pem"),
        ("mint --key ES256.pem --recipe policy.toml", "unknown recipe keys"),
        *((f"mint --key ES256.pem --recipe claims-{n}.json --claim a=b", "are tables") for n in range(4)),
        ("mint --key ES256.pem --recipe alg.json", "alg ['x'] is not one of"),
        ("mint --key ES256.pem --recipe date.toml", "what JSON cannot"),
    ],
)
def test_bad_input_is_one_clear_sentence_and_exit_2(folder, arguments, expected, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "policy.toml").write_text("version = 1\n")
    for number, claims in enumerate((5, "abc", [1], None)):
        (folder / f"claims-{number}.json").write_text(json.dumps({"claims": claims}))
    (folder / "alg.json").write_text('{"alg": ["x"]}')
    (folder / "date.toml").write_text("[claims]\nexp = 2026-01-01")
    shown = said(f"token {arguments}", code=2)

    assert expected in shown
    assert "Traceback" not in shown
    assert "PRIVATE" not in shown


def test_mint_with_a_jwk(folder):
    members = ECAlgorithm.to_jwk(KEYS["ES256"], as_dict=True)
    (folder / "key.json").write_text(json.dumps({**members, "kid": "from-the-key"}))
    made = said("token mint --key", folder / "key.json").strip()

    assert '"from-the-key"' in said("token inspect", made, code=(0, 1))
    assert members["d"] not in said("token mint --jwks --key", folder / "key.json")


def test_a_token_by_the_name_of_rfc_9864(folder):
    (folder / "recipe.toml").write_text('alg = "Ed25519"\n' + RECIPE)
    write_policy(folder, ["Ed25519"])
    made, jwks = minted(folder, "EdDSA")

    shown = inspected(folder, made, "--jwks", jwks)

    assert "signature: verified" in shown
    assert 'alg: "Ed25519"' in shown


@pytest.mark.parametrize("alg", KEYS)
def test_a_proof_that_the_gate_accepts(folder, alg):
    """`mint --bind` and `proof` together are what the rules of `[dpop]` want."""
    certificate = Certificate()
    (folder / "client.pem").write_text(certificate.public)
    bound = "--bind", folder / f"{alg}.pem", "--certificate", folder / "client.pem"
    made, jwks = minted(folder, "ES256", *bound)
    write_policy(folder, bound="required")
    refused = inspected(folder, made, "--jwks", jwks, code=1)
    dpop = {"origins": ["https://api.test"], "algorithms": [*KEYS]}
    written = json.loads((folder / "policy.json").read_text()) | {"dpop": dpop}
    (folder / "policy.json").write_text(json.dumps(written))
    shown = inspected(folder, f"DPoP {made}", "--jwks", jwks)
    words = "token proof POST https://api.test/a?b --nonce n --key"
    proof = said(words, folder / f"{alg}.pem", input=made).strip()
    cnf = jwt.decode(made, options={"verify_signature": False})["cnf"]
    asked = Request("POST", "api.test", "/a", ip_address("192.0.2.1"))

    assert "token_bound" in refused
    assert "needs the DPoP proof of jkt, needs the client certificate of x5t#S256" in shown
    rules = ProofRules(Dpop.model_validate(dpop), b"")
    assert rules.judge(proof, cnf["jkt"], made.encode(), asked, time.time()).use
    assert jwt.decode(proof, options={"verify_signature": False})["nonce"] == "n"
    assert cnf["x5t#S256"] == encode_base64url(sha256(certificate.der).digest())
