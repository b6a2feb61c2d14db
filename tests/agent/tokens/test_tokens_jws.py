"""Form and signature (JWT-ALG to JWT-SIZE); published vectors of RFC 7515, 7520 and 8037."""

import asyncio
import json
from hashlib import sha256
from pathlib import Path

import pytest
import tokens_support
from counting import steps
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens_support import EC_KEY, authenticator_with, claims, encode_base64url, mint, public_jwk

from iamroles_agent.base.encoding import MAX_DEPTH, decode_base64url, decode_object
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens.jws import parse
from iamroles_agent.tokens.keys import ALGORITHMS, KeySet, KeySetError, parse_key

VECTORS = json.loads((Path(__file__).parent / "vectors" / "jose.json").read_text())
RSA_KEY = rsa.generate_private_key(65537, 2048)
AUTHENTICATOR = authenticator_with([public_jwk(EC_KEY, "k1", "ES256")])


def judge(token, authenticator=AUTHENTICATOR):
    """The reason, or "" for an identity."""
    return asyncio.run(tokens_support.reason(authenticator, f"Bearer {token}"))


def raw(header, payload, signature=None):
    """A token out of these very bytes, signed with the good key unless a signature is given."""
    parts = [
        encode_base64url(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, payload)
    ]
    if signature is None:
        r, s = decode_dss_signature(EC_KEY.sign(".".join(parts).encode(), ec.ECDSA(SHA256())))
        signature = r.to_bytes(32) + s.to_bytes(32)
    return ".".join((*parts, encode_base64url(signature)))


HEADER = {"alg": "ES256", "kid": "k1", "typ": "JWT"}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_published_vector(vector):
    key = parse_key(vector["jwk"])
    signing_input, _, seal = vector["jws"].encode().rpartition(b".")
    verify = key.verifier(vector["alg"])

    assert key.fits(vector["alg"])
    assert verify(decode_base64url(seal), signing_input)
    assert not verify(decode_base64url(seal), signing_input + b"x")
    assert not verify(decode_base64url(seal)[:-1], signing_input)


def test_good_token_in_any_spelling_of_the_scheme():
    token = mint(claims())

    for scheme in ("Bearer", "bearer", "BEARER"):
        assert asyncio.run(AUTHENTICATOR.authenticate(f"{scheme} {token}")).principal == "alice"
    assert AUTHENTICATOR.recall(f"bearer  {token}") is not None


@pytest.mark.parametrize("header", ["", "Basic YTpi", "Bearerx", "Negotiate abc", "   "])
def test_other_schemes_are_no_credentials(header):
    with pytest.raises(Refusal) as refused:
        asyncio.run(AUTHENTICATOR.authenticate(header))

    assert refused.value.reason is Reason.NO_CREDENTIALS


@pytest.mark.parametrize(
    "alg", ["none", "None", "nOnE", "HS256", "HS512", "RS256", "ES256K", "es256", "ES384", "EdDSA", "dir"]
)
def test_algorithm_is_pinned(alg):
    assert judge(raw(HEADER | {"alg": alg}, claims())) == "algorithm_not_allowed"


@pytest.mark.parametrize(
    "change",
    [
        {"crit": []}, {"crit": ["b64"], "b64": True}, {"crit": ["x"]}, {"b64": False}, {"b64": True},
        {"zip": "DEF"}, {"cty": "JWT"}, {"cty": "application/jwt"}, {"cty": 1}, {"alg": 1}, {"alg": None},
        {"kid": 7}, {"kid": ""}, {"kid": None}, {"kid": "k" * 257}, {"kid": ["k1"]},
        {"typ": 1}, {"typ": None},
    ],
    ids=str,
)  # fmt: skip
def test_header_rules(change):
    assert judge(raw(HEADER | change, claims())) == "token_malformed"


@pytest.mark.parametrize(
    "kid", ["../../dev/null", "' OR 1=1", "k1%00", "k\n1", "kéy", "http://evil.example/k"]
)
def test_kid_is_a_dictionary_key_only(kid):
    assert judge(raw(HEADER | {"kid": kid}, claims())) == "key_unknown"


def test_keys_in_the_header_are_ignored():
    header = HEADER | {
        "jwk": public_jwk(tokens_support.OTHER_EC_KEY, "k1"), "jku": "http://127.0.0.1:1/",
        "x5u": "http://127.0.0.1:1/", "x5c": ["AA=="],
    }  # fmt: skip

    assert judge(raw(header, claims())) == ""
    other = raw(header, claims())[:-86] + mint(claims(), tokens_support.OTHER_EC_KEY)[-86:]
    assert judge(other) == "signature_invalid"


def test_form_of_base64url():
    good = mint(claims(jti="form"))
    head, body, seal = good.split(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    stray = seal[:-1] + last[last.index(seal[-1]) | 1]

    assert judge(good) == ""
    for bad in (
        f"{head}.{body}", f"{head}.{body}.{seal}.", f"{head}.{body}.{seal}.x.y", f"{head}.{body}.{seal}==",
        f"{head}.{body}.{stray}", f"{head}.{body}.{seal}AAA", f"{head}. {body}.{seal}",
        f"{head}.{body}\n.{seal}",
        f"{head}.{body}.+{seal[1:]}", f"{head}.{body}.{seal[:-1]}é", "", ".", "..", f".{body}.{seal}",
        f"{head}..{seal}",
    ):  # fmt: skip
        assert judge(bad) == "token_malformed", bad


GOOD = json.dumps(claims()).encode()


@pytest.mark.parametrize(
    "payload",
    [
        b"\xef\xbb\xbf" + GOOD, GOOD.decode().encode("utf-16"), GOOD[:-1] + b',"sub":"mallory"}',
        GOOD[:-1] + b',"s\\u0075b":"mallory"}', GOOD[:-1] + b',"a":{"b":1,"b":2}}', GOOD[:-1] + b',"a":NaN}',
        GOOD[:-1] + b',"a":-Infinity}', GOOD + b"x", GOOD + GOOD, b"[]", b'"x"', b"null", b"",
        GOOD[:-1] + b',"sub" :"mallory"}', GOOD[:-1] + b',"a":"\\ud800"}', GOOD[:-1] + b',"a":"\xff"}',
        GOOD[:-1] + b',"a":' + b"[" * 50 + b"]" * 50 + b"}", GOOD[:-1] + b',"a":' + b"9" * 5000 + b"}",
        GOOD[:-1] + b',"a":' + b"[" * 3000, GOOD[:-1] + b",}", GOOD[:-1] + b',"a":01}',
    ],
    ids=range(21),
)  # fmt: skip
def test_strict_payload(payload):
    assert judge(raw(HEADER, payload)) == "token_malformed"


def test_escapes_and_blanks_that_are_good():
    payload = GOOD[:-1] + b' , "sub2" : "a\\u00e9\\"\\ud83d\\ude00", "colons":"a\\":b::"}\n'

    assert judge(raw(HEADER, payload)) == ""


def test_size_is_judged_before_form():
    assert judge("x" * 8193) == "token_too_large"
    assert judge("x" * 8192) == "token_malformed"
    assert judge(mint(claims(pad="x" * 8000))) == "token_too_large"


def test_ecdsa_signatures_of_other_shapes():
    token = mint(claims())
    head, body, seal = token.split(".")
    signature = decode_base64url(seal.encode())
    der = EC_KEY.sign(f"{head}.{body}".encode(), ec.ECDSA(SHA256()))
    n = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    shapes = [
        b"", bytes(64), signature[:32] + bytes(32), bytes(32) + signature[32:], der, signature[:-1],
        signature + b"\0", b"\0" + signature, n.to_bytes(32) * 2, b"\xff" * 64,
    ]  # fmt: skip

    assert judge(token) == ""
    for shape in shapes:
        assert judge(f"{head}.{body}.{encode_base64url(shape)}") == "signature_invalid"


def test_order_of_judgement():
    """Each token has every later fault too; the earliest is the reason (SPEC.md section 4)."""
    faults = claims(exp=1, aud="other", roles=["x"], sub=3)
    unsigned = HEADER | {"alg": "none", "typ": "x"}

    assert judge(raw(unsigned, faults | {"iss": "https://evil/"})) == "issuer_untrusted"
    assert judge(raw(unsigned, faults)) == "algorithm_not_allowed"
    assert judge(raw(HEADER | {"typ": "x", "kid": "no"}, faults)) == "type_not_allowed"
    assert judge(raw(HEADER | {"kid": "no"}, faults, bytes(64))) == "key_unknown"
    assert judge(raw(HEADER, faults, bytes(64))) == "signature_invalid"
    assert judge(raw(HEADER, faults)) == "token_expired"
    assert judge(raw(HEADER, claims(aud="other", roles=["x"], sub=3))) == "audience_mismatch"
    assert judge(raw(HEADER, claims(roles=["x"], sub=3))) == "claim_invalid"
    assert judge(raw(HEADER, claims(roles=["x"]))) == "role_malformed"


@pytest.mark.parametrize("alg", sorted(ALGORITHMS.keys() - {"Ed25519"}))  # PyJWT does not sign with that name
def test_every_algorithm_end_to_end(alg):
    key = {
        "E": {"ES256": EC_KEY, "ES384": ec.generate_private_key(ec.SECP384R1()),
              "ES512": ec.generate_private_key(ec.SECP521R1()), "EdDSA": tokens_support.ED_KEY}.get(alg)
    }.get(alg[0], RSA_KEY)  # fmt: skip
    authenticator = authenticator_with([public_jwk(key, "k1")], algorithms=[alg])
    token = mint(claims(), key, alg)
    head, body, seal = token.split(".")
    flipped = bytearray(decode_base64url(seal.encode()))
    flipped[len(flipped) // 2] ^= 1

    assert judge(token, authenticator) == ""
    assert judge(f"{head}.{body}.{encode_base64url(bytes(flipped))}", authenticator) == "signature_invalid"


DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
NO_NULL = bytes.fromhex("302f300b0609608648016503040201" + "0420")
HASH = sha256(b"header.payload").digest()


def block(content, *, lead=b"\x00\x01", fill=b"\xff", length=256):
    """An encoded message (RFC 8017 section 9.2), right or wrong, as long as the modulus."""
    return lead + fill * (length - len(lead) - 1 - len(content)) + b"\x00" + content


@pytest.mark.parametrize(
    "encoded",
    [
        block(DIGEST_INFO + HASH)[:-1] + bytes([HASH[-1] ^ 1]),  # another hash
        (b"\x00\x01" + b"\xff" * 8 + b"\x00" + DIGEST_INFO + HASH).ljust(256, b"\x00"),  # Bleichenbacher 2006
        block(NO_NULL + HASH),  # BER variants of a DigestInfo
        block(DIGEST_INFO.replace(b"\x30\x31", b"\x30\x81\x31") + HASH),
        block(HASH),  # no DigestInfo
        block(DIGEST_INFO + HASH + b"\x00"),
        block(DIGEST_INFO + HASH, lead=b"\x00\x02"),
        block(DIGEST_INFO + HASH, lead=b"\x00\x00"),
        block(DIGEST_INFO + HASH, fill=b"\xfe"),
        block(DIGEST_INFO.replace(b"\x02\x01\x05", b"\x02\x02\x05") + HASH),  # says SHA-384
        block(b""),
    ],
    ids=range(11),
)
def test_only_one_encoding_of_an_rsa_signature_is_good(encoded):
    numbers = RSA_KEY.private_numbers()
    verify = parse_key(public_jwk(RSA_KEY, "k1")).verifier("RS256")

    def sign(message):
        return pow(int.from_bytes(message), numbers.d, numbers.public_numbers.n).to_bytes(256)

    good = sign(block(DIGEST_INFO + HASH))
    assert verify(good, b"header.payload")
    assert not verify(good, b"header.payloae")
    assert not verify(b"\x00" + good, b"header.payload")
    assert not verify(
        (int.from_bytes(good) + numbers.public_numbers.n).to_bytes(257)[-256:], b"header.payload"
    )
    assert not verify(sign(encoded), b"header.payload")


def test_a_key_is_for_its_own_algorithm():
    authenticator = authenticator_with([public_jwk(RSA_KEY, "k1", "RS256")], algorithms=["RS256", "PS256"])

    assert judge(mint(claims(), RSA_KEY, "RS256"), authenticator) == ""
    assert judge(mint(claims(), RSA_KEY, "PS256"), authenticator) == "key_unknown"


def test_without_kid_only_an_unambiguous_key_serves():
    one = authenticator_with([public_jwk(EC_KEY, "k1"), public_jwk(RSA_KEY, "r")])
    two = authenticator_with([public_jwk(EC_KEY, "k1"), public_jwk(tokens_support.OTHER_EC_KEY, "k2")])
    token = mint(claims(), kid=...)

    assert judge(token, one) == ""
    assert judge(token, two) == "key_unknown"


WEAK = public_jwk(rsa.generate_private_key(65537, 1024), "weak")
GOOD_JWK = public_jwk(EC_KEY, "k1")


@pytest.mark.parametrize(
    "jwk",
    [
        WEAK, GOOD_JWK | {"use": "enc"}, GOOD_JWK | {"key_ops": ["sign"]}, GOOD_JWK | {"d": "AA"},
        GOOD_JWK | {"kty": "XYZ"}, GOOD_JWK | {"alg": "HS256"}, GOOD_JWK | {"x": "AA"}, GOOD_JWK | {"kid": 1},
        GOOD_JWK | {"crv": "secp256k1"}, GOOD_JWK | {"alg": "ES384"}, GOOD_JWK | {"x": GOOD_JWK["x"] + "="},
        {"kty": "OKP", "crv": "X25519", "x": "A" * 43},
        public_jwk(tokens_support.OTHER_EC_KEY, "k2") | {"alg": ["ES256"]},
    ],
    ids=range(13),
)  # fmt: skip
def test_unusable_keys_are_dropped_and_said(jwk):
    keys = KeySet.parse({"keys": [jwk, public_jwk(tokens_support.ED_KEY, "good")]})

    assert [key.kid for key in keys] == ["good"]
    assert len(keys.dropped) == 1


@pytest.mark.parametrize(
    "document",
    [
        {}, {"keys": {}}, {"keys": [1]}, {"keys": [GOOD_JWK, GOOD_JWK | {"use": "enc"}]},
        {"keys": [GOOD_JWK, {"kty": "oct", "k": "AA"}]},
        {"keys": [GOOD_JWK | {"kid": str(n)} for n in range(101)]},
    ],
    ids=range(6),
)  # fmt: skip
def test_contradictory_sets_are_refused(document):
    with pytest.raises(KeySetError):
        KeySet.parse(document)


@given(st.binary(max_size=80))
def test_base64url_round_trip_and_uniqueness(data):
    assert decode_base64url(encode_base64url(data).encode()) == data


@given(st.text(alphabet="ABCQgwAZaz09-_+/= ", max_size=12))
def test_base64url_accepts_only_what_it_would_write(text):
    try:
        data = decode_base64url(text.encode())
    except ValueError:
        return
    assert encode_base64url(data) == text


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), _json, max_size=5), st.booleans())
def test_strict_json_agrees_with_json(document, compact):
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":") if compact else None)
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        assert decode_object(text.encode()) == json.loads(text)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_mangled_token_is_refused_and_nothing_else(data):
    """Only `Refusal` ever comes out, and no changed byte is accepted.

    Blanks around the token belong to the header, not to it (RFC 9110 section 11.4: `1*SP`; section 5.5).
    """
    token = mint(claims(jti="mangled"))
    position = data.draw(st.integers(0, len(token) - 1))
    insert = data.draw(st.text(max_size=4))
    cut = data.draw(st.integers(0, 5))
    mangled = token[:position] + insert + token[position + cut :]

    assert (judge(mangled) == "") == (mangled.rstrip(" \t").lstrip(" ") == token)


@given(st.binary(max_size=200), st.binary(max_size=300), st.binary(max_size=80))
def test_random_bytes_never_crash(header, payload, seal):
    token = b".".join(encode_base64url(part).encode() for part in (header, payload, seal))
    for candidate in (token, header, payload):
        try:
            parse(candidate)
        except Refusal as refusal:
            assert refusal.reason in (Reason.TOKEN_MALFORMED, Reason.TOKEN_TOO_LARGE)  # noqa: PT017


def test_an_rsa_and_an_ec_key_may_share_a_kid():
    """RFC 7517 section 4.5: `alg` then says which one is meant."""
    pair = [public_jwk(RSA_KEY, "k1"), public_jwk(EC_KEY, "k1")]
    authenticator = authenticator_with(pair, algorithms=["RS256", "ES256"])

    assert judge(mint(claims()), authenticator) == ""
    assert judge(mint(claims(), RSA_KEY, alg="RS256"), authenticator) == ""
    with pytest.raises(KeySetError):
        KeySet.parse({"keys": [*pair, public_jwk(tokens_support.OTHER_EC_KEY, "k1")]})


@pytest.mark.parametrize(
    ("pinned", "published", "signed", "expected"),
    [
        *(("Ed25519", None, "Ed25519", ""), ("Ed25519", "Ed25519", "Ed25519", "")),
        *(("Ed25519", "EdDSA", "Ed25519", ""), ("EdDSA", None, "EdDSA", "")),
        ("EdDSA", None, "Ed25519", "algorithm_not_allowed"),
        *(("Ed25519", None, "EdDSA", "algorithm_not_allowed"), ("EdDSA", "Ed25519", "EdDSA", "key_unknown")),
    ],
)
def test_ed25519_has_a_name_of_its_own(pinned, published, signed, expected):
    """RFC 9864. A pin is a pin: a policy with either of the two names does not accept the other."""
    authenticator = authenticator_with(
        [public_jwk(tokens_support.ED_KEY, "k1", published)], algorithms=[pinned]
    )
    header = encode_base64url(json.dumps({"alg": signed, "kid": "k1"}).encode())
    body = encode_base64url(json.dumps(claims()).encode())
    seal = encode_base64url(tokens_support.ED_KEY.sign(f"{header}.{body}".encode()))

    assert judge(f"{header}.{body}.{seal}", authenticator) == expected


SHAPES = {
    "dots": b"." * 8000,
    "objects": b'{"a":[' + b"{}," * 2500 + b"{}]}",
    "arrays": b'{"a":[' + b"[]," * 2500 + b"[]]}",
    "deep": b"{" + b'"a":{' * 1500,
    "open": b"[" * 8000,
    "quotes": b'{"a":"' + b'\\"' * 3900 + b"[" * 20,
    "digits": b'{"a":' + b"9" * 6000 + b"}",
    "fraction": b'{"a":0.' + b"9" * 6000 + b"e-9}",
    "numbers": b'{"a":[' + b"1," * 3500 + b"1]}",
    "members": b"{" + b",".join(b'"%d":1' % n for n in range(900)) + b"}",
    "escapes": b'{"a":"' + b"\\ud83d\\ude00" * 600 + b'"}',
    "blanks": b" " * 7000 + b"{}",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_of_a_payload_takes_a_step_for_each_byte(shape):
    token = SHAPES[shape]
    if shape != "dots":
        token = b".".join(
            encode_base64url(part).encode() for part in (b'{"alg":"ES256"}', token[:6000], b"x" * 64)
        )

    assert steps(lambda: judge(token.decode())) < 4000


@pytest.mark.parametrize(
    ("document", "good"),
    [
        *((b'{"a":' * 15 + b"{}" + b"}" * 15, True), (b'{"a":' * 16 + b"{}" + b"}" * 16, False)),
        (b'{"a":"' + b"[" * 40 + b'","b":"\\"[[[[[[[[[[[[[[[[[["}', True),
        *((b'{"a":[' + b"{}," * 1020 + b"{}]}", True), (b'{"a":[' + b"{}," * 1030 + b"{}]}", False)),
        (b'{"a":[' + b"[]," * 20 + b"}]", False),
    ],
)
def test_depth_and_number_of_objects(document, good):
    if good:
        assert decode_object(document) == json.loads(document)
    else:
        with pytest.raises(ValueError, match="JSON"):
            decode_object(document)
