"""`iamroles token inspect|mint`: what people see, and what they never see."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwt.algorithms import ECAlgorithm
from sts_support import GOOD, HOST, TOKEN
from tokens_support import encode_base64url, serving

from iamroles_tools.commands.token import token

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


def invoke(*arguments, stdin=""):
    return CliRunner().invoke(token, arguments, input=stdin, catch_exceptions=False)


@pytest.fixture
def folder(tmp_path):
    for alg, key in KEYS.items():
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{alg}.pem").write_bytes(pem)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    write_policy(tmp_path)
    return tmp_path


def write_policy(folder, extra=""):
    (folder / "policy.toml").write_text(
        f"""
version = 1
[[issuers]]
name = "corp"
issuer = "https://idp.example.com"
audiences = ["orders"]
algorithms = {json.dumps(list(KEYS))}
{extra}
"""
    )


def minted(folder, alg, *more):
    """A token and the path of its key set."""
    arguments = ("mint", "--key", str(folder / f"{alg}.pem"), "--recipe", str(folder / "recipe.toml"), *more)
    jwks = folder / "jwks.json"
    jwks.write_text(invoke(*arguments, "--jwks").output)
    return invoke(*arguments).output.strip(), str(jwks)


@pytest.mark.parametrize("alg", sorted(KEYS))
def test_what_mint_makes_inspect_accepts(folder, alg):
    made, jwks = minted(folder, alg)
    result = invoke(
        "inspect", "--config", str(folder / "policy.toml"), "--jwks", jwks, stdin=f"Bearer {made}\n"
    )

    assert result.exit_code == 0
    assert f"accepted: {ROLE}" in result.output
    assert "signature: verified" in result.output
    assert made.rpartition(".")[2] not in result.output


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
    arguments = ("inspect", made, "--config", str(folder / "policy.toml"), "--jwks", jwks)
    result = invoke(*arguments)
    document = json.loads(invoke(*arguments, "--format", "json").output)

    assert result.exit_code == 1
    assert f"refused: {expected}" in result.output
    assert document["reason"] == expected
    assert document["roles"] == []


def test_inspect_hints_at_a_near_issuer(folder):
    made, _ = minted(folder, "ES256", "--claim", "iss=https://idp.example.com/")
    result = invoke("inspect", made, "--config", str(folder / "policy.toml"), "--offline")

    assert "trailing slash" in result.output


def test_inspect_shows_later_faults_too(folder):
    made, _ = minted(folder, "ES256", "--claim", "aud=x")
    _, other = minted(folder, "ES384", "--kid", "k2")
    result = invoke("inspect", made, "--config", str(folder / "policy.toml"), "--jwks", other)

    assert "refused: key_unknown" in result.output
    assert "audience_mismatch" in result.output


def test_inspect_without_policy_and_offline(folder):
    made, _ = minted(folder, "ES256")

    for arguments in ((), ("--config", str(folder / "policy.toml"), "--offline")):
        result = invoke("inspect", made, *arguments)
        assert result.exit_code == 0
        assert "nothing wrong found" in result.output
        assert "signature: unchecked, 64 bytes" in result.output


def test_inspect_fetches_keys_as_the_agent_would(folder):
    with serving() as server:
        made, jwks = minted(folder, "ES256")
        server.raw("/jwks", Path(jwks).read_bytes())
        write_policy(folder, f'jwks_uri = "{server.url}/jwks"\ninsecure_http = true')
        result = invoke("inspect", made, "--config", str(folder / "policy.toml"))

        assert "accepted" in result.output
        assert server.counts["/jwks"] == 1


def test_inspect_at_a_given_time(folder):
    made, jwks = minted(folder, "ES256")
    arguments = ("inspect", made, "--config", str(folder / "policy.toml"), "--jwks", jwks)

    assert "token_expired" in invoke(*arguments, "--at", str(time.time() + 700)).output
    assert "token_not_yet_valid" in invoke(*arguments, "--at", str(time.time() - 700)).output


def test_inspect_sts_hides_signature_and_token(folder):
    write_policy(
        folder,
        f'[[sts]]\nname = "aws"\nendpoint = "https://{HOST}"\nhosts = ["{HOST}"]\nbinding_value = "edge"',
    )
    made = "iam-sts-v1." + encode_base64url(GOOD.encode())
    result = invoke("inspect", made, "--config", str(folder / "policy.toml"), "--at", "1800000001")

    assert result.exit_code == 0
    assert "ASIAIOSFODNN7EXAMPLE" in result.output
    assert TOKEN not in result.output
    assert GOOD.partition("Signature=")[2] not in result.output
    assert "only STS knows" in result.output


def test_inspect_does_not_let_a_token_drive_the_terminal(folder):
    made, _ = minted(folder, "ES256", "--claim", "sub=\u001b[2J\u202e")

    assert "\u001b" not in invoke("inspect", made).output
    assert "\u202e" not in invoke("inspect", made).output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect"], "no credential"), (["inspect", "--config", "absent.toml", "x"], "absent.toml"),
        (["inspect", "--jwks", "absent.json", "x"], "absent.json"),
        (["mint", "--key", "absent.pem"], "absent.pem"),
        (["mint", "--key", "{}/recipe.toml"], "not an unencrypted"),
        (["mint", "--key", "{}/ES256.pem", "--claim", "x"], "NAME=VALUE"),
        (["mint", "--key", "{}/ES256.pem", "--alg", "HS256"], "HS256"),
        (["mint", "--key", "{}/ES256.pem", "--alg", "RS256"], "does not fit"),
        (["mint", "--key", "{}/ES256.pem", "--recipe", "{}/ES256.pem"], "ES256.pem"),
        (["mint", "--key", "{}/ES256.pem", "--recipe", "{}/policy.toml"], "unknown recipe keys"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_sentence_and_exit_2(folder, arguments, said):
    result = invoke(*(argument.replace("{}", str(folder)) for argument in arguments))

    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output
    assert "PRIVATE" not in result.output


def test_mint_with_a_jwk(folder):
    members = ECAlgorithm.to_jwk(KEYS["ES256"], as_dict=True)
    (folder / "key.json").write_text(json.dumps({**members, "kid": "from-the-key"}))
    made = invoke("mint", "--key", str(folder / "key.json")).output.strip()

    assert '"from-the-key"' in invoke("inspect", made).output
    assert members["d"] not in invoke("mint", "--key", str(folder / "key.json"), "--jwks").output


def test_a_token_by_the_name_of_rfc_9864(folder):
    recipe = folder / "recipe.toml"
    recipe.write_text('alg = "Ed25519"\n' + RECIPE)
    policy = folder / "policy.toml"
    policy.write_text(policy.read_text().replace('"EdDSA"', '"Ed25519"'))
    minted_token, jwks = minted(folder, "EdDSA")

    result = invoke("inspect", minted_token, "--config", str(policy), "--jwks", jwks)

    assert result.exit_code == 0
    assert "signature: verified" in result.output
    assert 'alg: "Ed25519"' in result.output
