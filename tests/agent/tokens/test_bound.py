"""A bound token passes with its proof alone: each row of RFC 9449 section 4.3 is broken beside a control.

Every question is asked of a whole gate, after and before the good one, so that nothing that is remembered of
the good one helps the bad one.
"""

import asyncio
import dataclasses
import hmac
import json
from hashlib import sha256
from itertools import count
from pathlib import Path

import jwt
import pytest
import spop_transcript
import tokens_support
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import document, grant
from tokens_support import EC_KEY, ED_KEY, NOW, OTHER_EC_KEY, claims, encode_base64url, mint, public_jwk

from iamroles_agent.base.config import Config, Dpop
from iamroles_agent.base.errors import ConfigError
from iamroles_agent.base.identity import Request
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.control import policy_part
from iamroles_agent.policy import Policy, load_text
from iamroles_agent.policy.load import nonce_key
from iamroles_agent.spop import actions
from iamroles_agent.spop.messages import Context, parse
from iamroles_agent.spop.values import DataType
from iamroles_agent.tokens.proof import ProofRules

VECTORS = json.loads((Path(__file__).parent / "vectors" / "proofs.json").read_text())
FIGURES, JKT = VECTORS["RFC 9449"], VECTORS["jkt"]
KZ = VECTORS["token"].encode()
ORIGIN = "https://api.example.com"
HTU = f"{ORIGIN}/orders/1"
ALL = ["ES256", "ES384", "ES512", "PS256", "RS256", "EdDSA", "Ed25519"]
RSA_KEY = rsa.generate_private_key(65537, 2048)
P384, P521 = (ec.generate_private_key(curve) for curve in (ec.SECP384R1(), ec.SECP521R1()))
CERTIFICATE, OTHER_CERTIFICATE = (encode_base64url(sha256(name).digest()) for name in (b"one", b"two"))


def corp(**changes):
    return {
        "name": "corp",
        "issuer": tokens_support.ISSUER,
        "audiences": ["orders"],
        "algorithms": ["ES256"],
    } | changes


def policy(bound="accepted", dpop=(), **tables):
    proofs = {"origins": [ORIGIN], "algorithms": ALL} | dict(dpop)
    return document(
        grant("R1", "reader", "GET PROPFIND", "/orders", "orders-ro"),
        issuers=[corp(bound=bound)],
        keys={"refresh": "10d", "max_stale": "10d"},
        roles=[tokens_support.READER],
        dpop=proofs,
        **tables,
    )


def members(key):
    """The public members of a key, as a client writes them."""
    jwk = public_jwk(key, None)
    return {name: jwk[name] for name in ("kty", "crv", "x", "y", "n", "e") if name in jwk}


def thumbprint(jwk):
    needed = {"EC": ["crv", "kty", "x", "y"], "OKP": ["crv", "kty", "x"], "RSA": ["e", "kty", "n"]}[
        jwk["kty"]
    ]
    text = json.dumps({name: jwk[name] for name in needed}, separators=(",", ":"), sort_keys=True)
    return encode_base64url(sha256(text.encode()).digest())


def token_for(key=OTHER_EC_KEY, jwk=None, **changes):
    return mint(claims(**{"cnf": {"jkt": thumbprint(jwk or members(key))}} | changes))


def prove(token, key=OTHER_EC_KEY, alg="ES256", header=(), **changes):
    """Make a proof; a member of `...` is left out."""
    ath = encode_base64url(sha256(token.encode()).digest())
    says = {"jti": "p-1", "htm": "GET", "htu": HTU, "iat": NOW, "ath": ath} | changes
    head = {"typ": "dpop+jwt", "alg": alg, "jwk": members(key)} | dict(header)
    head, says = ({name: value for name, value in one.items() if value is not ...} for one in (head, says))
    signed = ".".join(encode_base64url(json.dumps(one).encode()) for one in (head, says))
    algorithm = jwt.algorithms.get_default_algorithms()["EdDSA" if alg == "Ed25519" else alg]
    return f"{signed}.{encode_base64url(algorithm.sign(signed.encode(), key))}"


class Bench(tokens_support.Bench):
    """A gate of a policy with bound issuers."""

    def __init__(self, written=None, audit="none"):
        super().__init__(written or policy(), audit)

    def ask(self, token, proof=None, scheme="DPoP", **changes):
        """The variables of the answer."""
        asked = {"authorization": f"{scheme} {token}", "path": "/orders/1", "host": "api.example.com"}
        return self.answer(**asked | {"proof": proof, "proof_count": int(proof is not None)} | changes)


@pytest.fixture
def bench():
    return Bench()


# --- each row of RFC 9449 section 4.3 ----

TOKEN = token_for()
GOOD = prove(TOKEN)
INVALID = "proof_invalid"
JWK = members(OTHER_EC_KEY)
D = encode_base64url(OTHER_EC_KEY.private_numbers().private_value.to_bytes(32))


def signed_with_hmac():
    head = {"typ": "dpop+jwt", "alg": "HS256", "jwk": JWK}
    signed = ".".join([encode_base64url(json.dumps(head).encode()), GOOD.split(".")[1]])
    secret = json.dumps(JWK).encode()
    return f"{signed}.{encode_base64url(hmac.digest(secret, signed.encode(), 'sha256'))}"


def padded(part):
    parts = GOOD.split(".")
    parts[part] += "="
    return ".".join(parts)


BROKEN = {
    "empty": "",
    "two": f"{GOOD}, {GOOD}",
    "two parts": GOOD.rpartition(".")[0],
    "four parts": f"{GOOD}.x",
    "header padded": padded(0),
    "signature padded": padded(2),
    "beyond ASCII": GOOD + "é",
    "a member twice": prove(TOKEN).replace(GOOD.split(".")[1], encode_base64url(b'{"jti":"a","jti":"b"}')),
    "typ absent": prove(TOKEN, header={"typ": ...}),
    "typ JWT": prove(TOKEN, header={"typ": "JWT"}),
    "alg unlisted": prove(TOKEN, P384, "ES384", header={"alg": "ES256K"}),
    "alg none": prove(TOKEN, header={"alg": "none"}),
    "HMAC by the public key": signed_with_hmac(),
    "alg of another curve": prove(TOKEN, header={"alg": "ES384"}),
    "crit": prove(TOKEN, header={"crit": ["exp"], "exp": 1}),
    "jwk absent": prove(TOKEN, header={"jwk": ...}),
    "jwk a text": prove(TOKEN, header={"jwk": json.dumps(JWK)}),
    "jwk a list": prove(TOKEN, header={"jwk": [JWK]}),
    "jwk private": prove(TOKEN, header={"jwk": JWK | {"d": D}}),
    "jwk symmetric": prove(TOKEN, header={"jwk": {"kty": "oct", "k": D}}),
    "jwk to encrypt": prove(TOKEN, header={"jwk": JWK | {"use": "enc"}}),
    "jti absent": prove(TOKEN, jti=...),
    "jti empty": prove(TOKEN, jti=""),
    "jti of 513 bytes": prove(TOKEN, jti="é" * 256 + "x"),
    "jti a number": prove(TOKEN, jti=7),
    "htm absent": prove(TOKEN, htm=...),
    "htm lower-case": prove(TOKEN, htm="get"),
    "htm another": prove(TOKEN, htm="POST"),
    "htu absent": prove(TOKEN, htu=...),
    "htu a list": prove(TOKEN, htu=[HTU]),
    "htu of another path": prove(TOKEN, htu=f"{ORIGIN}/orders/2"),
    "htu with a slash": prove(TOKEN, htu=f"{HTU}/"),
    "htu of http": prove(TOKEN, htu="http://api.example.com/orders/1"),
    "htu of another port": prove(TOKEN, htu="https://api.example.com:8443/orders/1"),
    "htu of another host": prove(TOKEN, htu="https://evil.example/orders/1"),
    "htu with a user": prove(TOKEN, htu="https://me@api.example.com/orders/1"),
    "htu with dots": prove(TOKEN, htu=f"{ORIGIN}/x/../orders/1"),
    "htu a path": prove(TOKEN, htu="/orders/1"),
    "htu with a folding letter": prove(TOKEN, htu="https://api.example.com/orders/1#\u212a"),
    "iat absent": prove(TOKEN, iat=...),
    "iat a text": prove(TOKEN, iat=str(NOW)),
    "iat true": prove(TOKEN, iat=True),
    "iat old": prove(TOKEN, iat=NOW - 61),
    "iat ahead": prove(TOKEN, iat=NOW + 6),
    "iat 2^53": prove(TOKEN, iat=1 << 53),
    "iat of 300 digits": prove(TOKEN, iat=10**300),
    "iat infinite": prove(TOKEN, iat=float("1e999")),
    "exp passed": prove(TOKEN, exp=NOW - 1),
    "nbf ahead": prove(TOKEN, nbf=NOW + 60),
    "ath absent": prove(TOKEN, ath=...),
    "ath of another token": prove(token_for(jti="id-2")),
    "ath padded": prove(TOKEN, ath=encode_base64url(sha256(TOKEN.encode()).digest()) + "="),
    "signed by another key": prove(TOKEN, EC_KEY, header={"jwk": JWK}),
    "signature of another proof": f"{GOOD.rpartition('.')[0]}.{prove(TOKEN, jti='p-2').rpartition('.')[2]}",
    "signature zero": f"{GOOD.rpartition('.')[0]}.{encode_base64url(bytes(64))}",
    "an access token": TOKEN,
}


@pytest.mark.parametrize("broken", BROKEN)
def test_each_broken_proof_is_refused_beside_a_good_one(bench, broken):
    first, bad, last = (bench.reason(TOKEN, one) for one in (GOOD, BROKEN[broken], GOOD))

    assert (first, bad, last) == ("allowed", INVALID, "allowed")


@pytest.mark.parametrize(
    ("says", "asked", "reason"),
    [
        ({"htu": "HTTPS://API.Example.COM:443/orders/1"}, {}, "allowed"),
        ({"htu": "https://api.example.com:/orders/1"}, {}, "allowed"),
        ({"htu": f"{HTU}?a=1&b=//../"}, {}, "allowed"),
        ({"htu": f"{HTU}#part"}, {}, "allowed"),
        ({"htu": f"{ORIGIN}/%6frders/1"}, {}, "allowed"),
        ({"iat": NOW - 60}, {}, "allowed"),
        ({"iat": NOW + 5}, {}, "allowed"),
        ({"iat": NOW + 0.5}, {}, "allowed"),
        ({"jti": "é" * 256}, {}, "allowed"),
        ({"nonce": "of the token endpoint"}, {}, "allowed"),
        ({"exp": NOW + 60, "nbf": NOW, "more": {"a": [1]}}, {}, "allowed"),
        ({"header": {"typ": "Application/DPOP+jwt"}}, {}, "allowed"),
        ({"header": {"kid": "x", "x5c": ["a"], "jku": "https://evil.example", "x5u": 7}}, {}, "allowed"),
        (
            {"header": {"jwk": JWK | {"kid": "é", "use": "sig", "key_ops": ["verify"], "ext": True}}},
            {},
            "allowed",
        ),
        # paths are compared as the gate forwards them
        ({"htu": f"{ORIGIN}/orders/%C3%a9%7E"}, {"path": "/orders/%c3%A9~"}, "allowed"),
        ({"htu": f"{ORIGIN}/orders/%C3%a9%7E"}, {"path": "/orders/%c3%A9"}, INVALID),
        # the host of the request is that of the origin
        ({}, {"host": "api.example.com:443"}, "allowed"),
        ({}, {"host": "API.example.com"}, "allowed"),
        ({}, {"host": "evil.example"}, INVALID),
        ({}, {"host": "api.example.com:8443"}, INVALID),
        ({}, {"host": None}, INVALID),
        # a method is compared to the letter
        ({"htm": "PROPFIND"}, {"method": "PROPFIND"}, "allowed"),
        ({"htm": "PROPFIND"}, {"method": "propfind"}, INVALID),
    ],
)
def test_other_lawful_spellings_pass_and_a_proof_is_of_its_request(bench, says, asked, reason):
    assert bench.reason(TOKEN, prove(TOKEN, **says), **asked) == reason


# --- keys ----


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (OTHER_EC_KEY, "ES256"), (P384, "ES384"), (P521, "ES512"), (ED_KEY, "EdDSA"), (ED_KEY, "Ed25519"),
        (RSA_KEY, "RS256"), (RSA_KEY, "PS256"),
    ],
)  # fmt: skip
def test_keys_of_each_kind_prove(bench, key, alg):
    token = token_for(key)

    assert bench.reason(token, prove(token, key, alg)) == "allowed"
    assert bench.reason(token, prove(token, key, alg, iat=NOW + 1)[:-8] + "AAAAAAAA") == INVALID


def rsa_members(n, e):
    octets = ((number.bit_length() + 7) // 8 for number in (n, e))
    return {"kty": "RSA"} | {
        name: encode_base64url(number.to_bytes(size))
        for name, number, size in zip("ne", (n, e), octets, strict=True)
    }


_N = RSA_KEY.public_key().public_numbers().n
EVIL = {
    "an exponent as long as the modulus": (rsa_members(_N, _N - 2), "RS256"),
    "the exponent 3": (rsa_members(_N, 3), "RS256"),
    "the exponent with a leading zero": (rsa_members(_N, 65537) | {"e": "AAEAAQ"}, "RS256"),
    "RSA of 1024 bits": (rsa_members((1 << 1023) | 1, 65537), "RS256"),
    "RSA of 2047 bits": (rsa_members(_N >> 1 | 1, 65537), "RS256"),
    "RSA of 16384 bits": (rsa_members((1 << 16383) | 1, 65537), "RS256"),
    "a point off its curve": (JWK | {"y": JWK["x"]}, "ES256"),
    "the point at infinity": (JWK | {"x": "A" * 43, "y": "A" * 43}, "ES256"),
    "a coordinate without its zero": (JWK | {"x": JWK["x"][:-1]}, "ES256"),
    "a coordinate in another alphabet": (JWK | {"x": "+" * 43}, "ES256"),
    "secp256k1": (JWK | {"crv": "secp256k1"}, "ES256"),
    "Ed448": (members(ed448.Ed448PrivateKey.generate()), "EdDSA"),
    "another kty": (JWK | {"kty": "OKP"}, "ES256"),
    "a key for another algorithm": (JWK | {"alg": "ES384"}, "ES256"),
}


@pytest.mark.parametrize("evil", EVIL)
def test_an_evil_key_is_refused_even_if_a_token_is_bound_to_it(evil):
    jwk, alg = EVIL[evil]
    head = encode_base64url(json.dumps({"typ": "dpop+jwt", "alg": alg, "jwk": jwk}).encode())
    asked = request("GET", "api.example.com", "/orders/1")

    with pytest.raises(Refusal, match=r"jwk|base64url"):
        rules(origins=[ORIGIN]).judge(
            f"{head}.{GOOD.partition('.')[2]}", thumbprint(jwk), TOKEN.encode(), asked, NOW
        )


def test_a_stranger_s_key_is_not_used(bench, monkeypatch):
    """The order of cost: no key is built for a proof whose thumbprint or claims do not hold."""
    monkeypatch.setattr("iamroles_agent.tokens.proof._verifier", None)

    assert bench.reason(TOKEN, prove(TOKEN, RSA_KEY, "RS256")) == "binding_mismatch"
    assert bench.reason(TOKEN, prove(TOKEN, htm="PUT")) == INVALID
    assert bench.reason(mint(claims()), GOOD) == "token_unbound"
    assert bench.reason(mint(claims(), OTHER_EC_KEY), GOOD) == "signature_invalid"


ED_JWK = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}


@pytest.mark.parametrize(
    ("alg", "jwk", "found"),
    [
        ("RS256", VECTORS["RFC 7638"], "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"),
        ("EdDSA", ED_JWK, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"),  # RFC 8037 A.3
    ],
)
def test_the_thumbprint_is_that_of_the_standards(alg, jwk, found):
    head = {"typ": "dpop+jwt", "alg": alg, "jwk": jwk}
    proof = ".".join([*(encode_base64url(json.dumps(one).encode()) for one in (head, {"jti": "x"})), ""])

    with pytest.raises(Refusal, match="htm"):  # the next check
        rules().judge(proof, found, b"", request(), NOW)
    with pytest.raises(Refusal, match="binding_mismatch"):
        rules().judge(proof, found[:-1] + "A", b"", request(), NOW)


KEYS = st.sampled_from([*JWK, "k", "d", "n", "e", "use", "alg"])
PLAIN_JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ODD = st.recursive(
    PLAIN_JSON | st.sampled_from([*JWK.values(), "RSA", "oct"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner),
    max_leaves=4,
)
HEAD = st.sampled_from(["typ", "alg", "jwk", "kid", "crit"])
SAYS = st.sampled_from(["jti", "htm", "htu", "iat", "ath", "exp", "nbf", "nonce"])


@settings(max_examples=300, deadline=None)
@given(*(st.dictionaries(names, ODD, max_size=2) for names in (HEAD, SAYS, KEYS)))
def test_whatever_a_proof_says_is_a_refusal_and_no_failure(header, says, key):
    """Also of the token's own key: only the signature is missing then."""
    head = {"typ": "dpop+jwt", "alg": "ES256", "jwk": JWK | key} | header
    body = {"jti": "p", "htm": "GET", "htu": HTU, "iat": NOW} | says
    signed = ".".join(encode_base64url(json.dumps(one).encode()) for one in (head, body))
    asked = request("GET", "api.example.com", "/orders/1")

    with pytest.raises(Refusal):
        rules(origins=[ORIGIN]).judge(f"{signed}.{'A' * 86}", thumbprint(JWK), b"", asked, NOW)
    with pytest.raises(Refusal):
        rules(nonce=True)._judge_nonce(says.get("nonce"), NOW)


# --- RFC 9449's own figures ----


def request(method="GET", host="resource.example.org", path="/protectedresource"):
    return Request(method, host, path, spop_transcript.USUAL.src)


def rules(key=b"k" * 32, **changes):
    origins = ["https://resource.example.org", "https://server.example.com"]
    return ProofRules(Dpop.model_validate({"origins": origins, "algorithms": ALL} | changes), key)


def test_the_resource_request_of_rfc_9449():
    """Figure 13; nothing that another clock, token, key or request would let pass."""
    proof = FIGURES["13"]

    assert rules().judge(proof, JKT, KZ, request(), 1562262618 + 60).use
    for jkt, token, asked, now in (
        (JKT[:-1] + "J", KZ, request(), 1562262618),
        (JKT, KZ + b"x", request(), 1562262618),
        (JKT, KZ, request("POST"), 1562262618),
        (JKT, KZ, request(), 1562262618 + 61),
        (JKT, KZ, request(), 1562262618 - 6),
    ):
        with pytest.raises(Refusal):
            rules().judge(proof, jkt, token, asked, now)


@pytest.mark.parametrize(("figure", "now"), [("5", 1562262616), ("7", 1562265296)])
def test_a_proof_for_the_token_endpoint_is_not_for_a_resource(figure, now):
    asked = request("POST", "server.example.com", "/token")

    with pytest.raises(Refusal, match="ath is not of this token"):  # all before it holds
        rules().judge(FIGURES[figure], JKT, KZ, asked, now)


# --- schemes, certificates, and what the policy wants ----

PLAIN = mint(claims())
BY_CERTIFICATE = mint(claims(cnf={"x5t#S256": CERTIFICATE}))
BOTH = token_for(cnf={"jkt": thumbprint(JWK), "x5t#S256": CERTIFICATE})
BOTH_PROOF = prove(BOTH)
BOUND, UNBOUND, OTHER = "token_bound", "token_unbound", "binding_mismatch"


@pytest.mark.parametrize(
    ("token", "proof", "scheme", "certificate", "accepted", "required"),
    [
        (PLAIN, None, "Bearer", None, "allowed", UNBOUND),
        (PLAIN, None, "Bearer", CERTIFICATE, "allowed", UNBOUND),
        (PLAIN, GOOD, "Bearer", None, "allowed", UNBOUND),
        (PLAIN, prove(PLAIN), "DPoP", None, UNBOUND, UNBOUND),
        (TOKEN, GOOD, "DPoP", None, "allowed", "allowed"),
        (TOKEN, GOOD, "dPoP ", None, "allowed", "allowed"),
        (TOKEN, GOOD, "Bearer", None, BOUND, BOUND),
        (TOKEN, None, "Bearer", None, BOUND, BOUND),
        (TOKEN, None, "DPoP", None, BOUND, BOUND),
        (TOKEN, GOOD, "Basic", None, "no_credentials", "no_credentials"),
        (BY_CERTIFICATE, None, "Bearer", CERTIFICATE, "allowed", "allowed"),
        (BY_CERTIFICATE, None, "Bearer", OTHER_CERTIFICATE, OTHER, OTHER),
        (BY_CERTIFICATE, None, "Bearer", None, BOUND, BOUND),
        (BY_CERTIFICATE, None, "Bearer", "", BOUND, BOUND),
        (BY_CERTIFICATE, GOOD, "DPoP", CERTIFICATE, UNBOUND, UNBOUND),
        (BOTH, BOTH_PROOF, "DPoP", CERTIFICATE, "allowed", "allowed"),
        (BOTH, BOTH_PROOF, "DPoP", OTHER_CERTIFICATE, OTHER, OTHER),
        (BOTH, BOTH_PROOF, "DPoP", None, BOUND, BOUND),
        (BOTH, None, "Bearer", CERTIFICATE, BOUND, BOUND),
    ],
    ids=map(str, count()),  # each process signs by itself
)
def test_schemes_and_certificates(token, proof, scheme, certificate, accepted, required):  # noqa: PLR0917
    found = [Bench(policy(bound)).reason(token, proof, scheme, certificate=certificate) for bound in
             ("accepted", "required", "refused")]  # fmt: skip

    assert found[:2] == [accepted, required]
    plain = token is PLAIN and scheme == "Bearer"
    unknown = scheme != "Bearer"
    assert found[2] == ("allowed" if plain else "no_credentials" if unknown else BOUND)


def test_without_its_table_no_dpop_token_passes():
    bench = Bench(policy() | {"dpop": None})

    assert bench.reason(TOKEN, GOOD) == "no_credentials"
    assert bench.reason(TOKEN, GOOD, "Bearer") == BOUND
    assert bench.reason(BY_CERTIFICATE, None, "Bearer", certificate=CERTIFICATE) == "allowed"


@pytest.mark.parametrize(
    "cnf",
    [
        None, {}, [], "x", {"jkt": None}, {"jkt": ""}, {"jkt": thumbprint(JWK) + "="}, {"jkt": "a" * 64},
        {"jkt": thumbprint(JWK)[:-1] + "B"}, {"jkt": [thumbprint(JWK)]}, {"x5t#S256": "é" * 43},
        {"jkt": thumbprint(JWK), "kid": "x"}, {"jwk": JWK}, {"x5t": CERTIFICATE},
        {"x5t#S256": CERTIFICATE, "jku": "https://a.example"},
    ],
)  # fmt: skip
def test_a_confirmation_in_another_form_opens_nothing(bench, cnf):
    token = mint(claims(cnf=cnf))

    assert bench.reason(token, prove(token), certificate=CERTIFICATE) == "claim_invalid"


def test_the_count_and_the_length_of_proofs(bench):
    assert bench.reason(TOKEN, GOOD, proof_count=2) == INVALID
    assert bench.reason(TOKEN, GOOD, authorization_count=2) == "multiple_credentials"
    assert bench.reason(TOKEN, "a" * 4096) == INVALID
    assert bench.reason(TOKEN, "a" * 4097) == "text_too_long"


def test_the_binding_is_judged_between_roles_and_the_choice_of_a_role(bench):
    nobody = token_for(roles=[])

    assert bench.reason(nobody, GOOD) == "role_missing"
    assert bench.reason(TOKEN, None, role="writer") == BOUND
    assert bench.reason(TOKEN, GOOD, role="writer") == "role_not_in_token"


def test_a_refusal_of_the_binding_names_no_caller(bench):
    answer = bench.ask(TOKEN)

    assert answer == {"status": 401, "reason": BOUND, "error": "invalid_token", "allow": False}
    assert bench.ask(TOKEN, prove(TOKEN, htm="PUT"))["error"] == "invalid_dpop_proof"


# --- what the proxy counts, and what is remembered ----


def test_the_name_of_a_use(bench):
    def name(bench=bench, token=TOKEN, key=OTHER_EC_KEY, **changes):
        return bench.ask(token, prove(token, key, **changes))["proof"]

    other = token_for(EC_KEY)
    same = {name(), name(htu=f"{HTU}?x"), name(htu=f"{ORIGIN}:443/%6frders/1"), name(iat=NOW - 3), name()}
    others = [name(jti="p-2"), name(token=other, key=EC_KEY)]
    path = bench.ask(TOKEN, prove(TOKEN, htu=f"{ORIGIN}/orders/2"), path="/orders/2")["proof"]
    method = bench.ask(TOKEN, prove(TOKEN, htm="PROPFIND"), method="PROPFIND")["proof"]

    assert len(same) == 1
    assert len({*same, *others, path, method}) == 5
    assert {len(one) for one in (*same, *others)} == {43}
    assert name(Bench()) in same
    assert "proof" not in Bench(policy(dpop={"replay": "none"})).ask(TOKEN, GOOD)
    assert "proof" not in bench.ask(TOKEN, prove(TOKEN, htu=f"{ORIGIN}/x"), path="/x")
    assert "proof" not in bench.ask(PLAIN, GOOD, "Bearer")


def test_an_answer_with_a_proof_is_not_remembered(bench):
    bench.ask(TOKEN, GOOD)

    assert bench.gate.remembered == 0
    bench.clock.now += 61
    assert bench.reason(TOKEN, GOOD) == INVALID


def test_a_remembered_certificate_is_no_other(bench):
    assert bench.reason(BY_CERTIFICATE, None, "Bearer", certificate=CERTIFICATE) == "allowed"
    assert bench.gate.remembered == 1
    assert bench.reason(BY_CERTIFICATE, None, "Bearer", certificate=OTHER_CERTIFICATE) == OTHER
    assert bench.reason(BY_CERTIFICATE, None, "Bearer") == BOUND
    assert bench.reason(BY_CERTIFICATE, None, "Bearer", certificate=CERTIFICATE) == "allowed"
    assert bench.gate.remembered == 1


async def reload(bench, written):
    tokens_support.adopt(bench.authenticator, written)
    bench.gate.replace(Policy(written))


def test_a_reload_that_changes_what_is_bound(bench):
    asked = ((PLAIN, None, "Bearer"), (TOKEN, GOOD, "DPoP"))
    found = []
    for bound in ("accepted", "required", "refused", "accepted"):
        written = Config.model_validate(policy(bound))
        asyncio.run(reload(bench, written))
        found.append([bench.reason(*one) for one in asked])

    assert found == [["allowed"] * 2, [UNBOUND, "allowed"], ["allowed", "no_credentials"], ["allowed"] * 2]


def test_too_small_a_frame_drops_the_proof_with_the_backend_only(bench):
    check = dataclasses.replace(
        spop_transcript.USUAL, authorization=f"DPoP {TOKEN}", path="/orders/1", host="api.example.com",
        proof=GOOD, proof_count=1,
    )  # fmt: skip
    whole = asyncio.run(bench.gate.judge(check, Context(), None))
    for limit in range(231, len(whole) + 1):
        kept = spop_transcript.variables(actions.shorten(whole, limit))
        assert "proof" in kept or "backend" not in kept, limit


# --- nonces ----


def test_the_windows_of_a_nonce():
    bench = Bench(policy(dpop={"nonce": True, "nonce_lifetime": "100s", "nonce_key": "k"}))

    def ask(later, **more):
        bench.clock.now = NOW + later
        return bench.ask(TOKEN, prove(TOKEN, iat=NOW + later, **more))

    asked = ask(0)
    assert (asked["reason"], asked["status"], asked["error"]) == ("nonce_required", 401, "use_dpop_nonce")
    assert "principal" not in asked
    nonce = asked["nonce"]
    now, late, later = ask(99, nonce=nonce), ask(199, nonce=nonce), ask(200, nonce=nonce)
    assert "nonce" not in now
    assert late["allow"]
    assert ask(200, nonce=late["nonce"])["allow"]
    assert later["reason"] == "nonce_required"
    assert len({nonce, late["nonce"], later["nonce"]}) == 3
    for wrong in (7, "", nonce[:-1], nonce[:-1] + "é", nonce + "A", None, late["nonce"].swapcase()):
        assert ask(0, nonce=wrong)["reason"] == "nonce_required", wrong


def test_only_a_proof_in_which_all_else_holds_learns_a_nonce():
    bench = Bench(policy(dpop={"nonce": True}))

    for bad in ("signed by another key", "htm lower-case", "iat old", "ath of another token"):
        assert bench.ask(TOKEN, BROKEN[bad]) == {
            "status": 401, "reason": INVALID, "error": "invalid_dpop_proof", "allow": False
        }  # fmt: skip
    assert "nonce" not in bench.ask(TOKEN, None)


def test_the_key_of_nonces_goes_to_every_worker_with_the_policy(tmp_path):
    written, key = tmp_path / "policy.json", tmp_path / "nonce.key"
    config = Config.model_validate(policy(dpop={"nonce": True, "nonce_key": "nonce.key"}))
    key.write_bytes(b"x" * 32)
    key.chmod(0o600)
    workers = [policy_part.decode(policy_part.encode(config, None, nonce_key(written, config))) for _ in "ab"]
    benches = [Bench(policy(dpop={"nonce": True})) for _ in workers]
    for one, decoded in zip(benches, workers, strict=True):
        one.gate.replace(decoded)
    nonce = benches[0].ask(TOKEN, GOOD)["nonce"]

    assert workers[0].nonce_key == workers[1].nonce_key != b"x" * 32
    assert benches[1].ask(TOKEN, prove(TOKEN, nonce=nonce))["allow"]
    assert Bench(policy(dpop={"nonce": True})).reason(TOKEN, prove(TOKEN, nonce=nonce)) == "nonce_required"


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        *((b"x" * 31, 0o600, "31 octets"), (b"x" * 4097, 0o600, "larger than 4096 octets")),
        *((b"x" * 32, 0o640, "others may read"), (None, 0, "No such file")),
    ],
)
def test_a_key_of_nonces_that_is_not_secret_or_of_another_size(tmp_path, content, mode, says):
    key = tmp_path / "nonce.key"
    if content is not None:
        key.write_bytes(content)
        key.chmod(mode)
    config = Config.model_validate(policy(dpop={"nonce": True, "nonce_key": "nonce.key"}))

    with pytest.raises(ConfigError, match=says) as caught:
        nonce_key(tmp_path / "policy.json", config)
    assert caught.value.problems[0].key == "dpop.nonce_key"


# --- the question, the policy, the record ----


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({}, (None, None, 0, ())),
        ({"proof": b"p", "proof_count": 1, "certificate": b"c"}, ("c", "p", 1, ())),
        ({"proof": b"p"}, (None, "p", 1, ())),
        ({"proof": None, "proof_count": 0, "certificate": None}, (None, None, 0, ())),
        ({"proof": b"p", "proof_count": 0}, (None, "p", 0, ("proof-count",))),
        ({"proof": b"p", "proof_count": -1}, (None, "p", -1, ("proof-count",))),
        ({"proof": b"p", "proof_count": None}, (None, "p", 0, ("proof-count",))),
        ({"certificate": 7}, (None, None, 0, ("certificate",))),
    ],
)
def test_arguments_that_may_be_absent(arguments, found):
    kinds = {bytes: DataType.STRING, int: DataType.INT32, type(None): DataType.NULL}
    pairs = {name: (kinds[type(value)], value) for name, value in arguments.items()}
    message = spop_transcript.check_message(**pairs)
    check = parse(message, 0, len(message)).check

    assert (check.certificate, check.proof, check.proof_count, check.missing) == found


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"dpop": {}}, "dpop.origins"),
        ({"dpop": {"origins": []}}, "dpop.origins"),
        ({"dpop": {"origins": [ORIGIN], "algorithms": ["HS256"]}}, "dpop.algorithms[0]"),
        ({"dpop": {"origins": [ORIGIN], "max_age": "6m"}}, "dpop.max_age"),
        ({"dpop": {"origins": [ORIGIN], "leeway": "61s"}}, "dpop.leeway"),
        ({"dpop": {"origins": [ORIGIN], "nonce_lifetime": "500ms"}}, "dpop.nonce_lifetime"),
        ({"client_certificate": {"from": []}}, "client_certificate.from"),
        ({"client_certificate": {"from": ["10.0.0.1/8"]}}, "client_certificate.from[0]"),
        ({"client_certificate": {"from": ["10.0.0.0/8"], "form": "nginx"}}, "client_certificate.form"),
        ({"client_certificate": {"from_": ["10.0.0.0/8"]}}, "client_certificate.from"),
        *(
            ({"dpop": {"origins": [wrong]}}, "dpop.origins[0]")
            for wrong in ("http://a.example", f"{ORIGIN}/", "https://A.example", "https://u@a.example",
                          "https://a.example:99999", "https://a.example:0", "a.example", "")
        ),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_be_meant(changes, key):
    with pytest.raises(ConfigError) as caught:
        load_text(json.dumps(policy() | changes), "json")

    assert key in {problem.key for problem in caught.value.problems}


def test_every_worker_reads_the_same_tables():
    written = policy(client_certificate={"from": ["10.0.0.0/8"]}, dpop={"replay": "none", "nonce": True})
    config = load_text(json.dumps(written), "json")
    decoded = policy_part.decode(policy_part.encode(config)).config

    assert (decoded.dpop, decoded.client_certificate) == (config.dpop, config.client_certificate)


def test_the_record_names_the_keys_that_were_held(tmp_path):
    bench = Bench(audit=tmp_path / "audit.jsonl")
    bench.ask(BOTH, BOTH_PROOF, certificate=CERTIFICATE)
    bench.ask(PLAIN, None, "Bearer")
    bench.ask(BOTH, BOTH_PROOF)
    bench.audit.close()
    raw = (tmp_path / "audit.jsonl").read_text()
    records = [one for one in map(json.loads, raw.splitlines()) if one["kind"] == "decision"]

    assert [one.get("keys_held") for one in records] == [
        [f"jkt:{thumbprint(JWK)}", f"x5t#S256:{CERTIFICATE}"], None, None
    ]  # fmt: skip
    for secret in (BOTH_PROOF, *BOTH_PROOF.split("."), BOTH.rpartition(".")[2]):
        assert secret not in raw
