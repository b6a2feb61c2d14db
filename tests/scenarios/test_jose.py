"""The suite's minting: sound tokens verify with PyJWT, broken ones are broken in the one way they say."""

import base64
import json
import time
import zlib
from types import SimpleNamespace

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from iamroles_scenarios.base.errors import RecipeError
from iamroles_scenarios.jose import ALGORITHMS, SHAPES, SigningKey, mint, mint_for, role_arn
from iamroles_scenarios.jose.encoding import b64url, b64url_decode, stray_bits
from iamroles_scenarios.jose.keys import CURVES

NOW = 1_800_000_000.0
ISSUER = "https://idp.test/corp"
KEYS = [SigningKey.generate(algorithm, kid=algorithm.lower()) for algorithm in ("RS256", "ES256", "EdDSA")]
RSA, EC, OKP = KEYS


def made(now=NOW, **recipe):
    return mint(recipe, KEYS, now, ISSUER)


def text_of(token, segment):
    return b64url_decode(token.split(".")[segment]).decode()


def header(token):
    return json.loads(text_of(token, 0))


def payload(token):
    return json.loads(text_of(token, 1))


def signature(token):
    return b64url_decode(token.split(".")[2])


def signed(token, key, algorithm=None):
    """Return whether the last segment is a signature over the first two, whatever they hold."""
    data, _, tail = token.rpartition(".")
    checker = jwt.get_algorithm_by_name(algorithm or key.algorithm)
    return bool(
        checker.verify(data.encode(), key.private.public_key(), base64.urlsafe_b64decode(tail + "=="))
    )


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "ES256K"])
def test_sound_tokens_of_every_algorithm_verify(algorithm):
    key = SigningKey.generate(algorithm)
    token = mint({"roles": ["reader"]}, [key], time.time(), ISSUER)

    checker = jwt.PyJWT()
    if algorithm == "Ed25519":  # RFC 9864: EdDSA under the curve's own name, which PyJWT does not have yet
        checker._jws.register_algorithm("Ed25519", jwt.algorithms.OKPAlgorithm())
    verifier = key.private.public_key()
    claims = checker.decode(token, verifier, algorithms=[algorithm], audience="edge", issuer=ISSUER)

    assert claims["roles"] == ["arn:aws:iam::111111111111:role/reader"]
    assert header(token) == {"alg": algorithm, "kid": key.kid, "typ": "JWT"}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_keys_survive_their_private_jwk(algorithm):
    key = SigningKey.generate(algorithm)

    assert SigningKey.from_jwk(json.loads(json.dumps(key.private_jwk()))) == key
    assert key.kid == key.thumbprint()
    assert not {"d", "p", "q"} & set(key.public_jwk())


@pytest.mark.parametrize("curve", CURVES)
def test_orders_are_the_curves_own(curve):
    """The order minus one is the negated base point: same x."""
    from cryptography.hazmat.primitives.asymmetric import ec

    order = SigningKey("", "", ec.derive_private_key(1, CURVES[curve])).order
    pair = (ec.derive_private_key(d, CURVES[curve]).public_key() for d in (order - 1, 1))
    last, first = (key.public_numbers() for key in pair)

    assert last.x == first.x
    assert last.y != first.y


def test_the_algorithm_picks_a_key_that_can():
    assert signed(made(alg="PS512"), RSA, "PS512")
    assert signed(made(alg="ES256"), EC)
    assert signed(made(alg="EdDSA"), OKP)
    assert signed(made(key="EdDSA"), OKP)
    assert signed(made(key="es256"), EC)


def test_times_are_relative_to_now():
    claims = payload(made(exp="-120s", nbf="+5m", iat="1.5h", auth_time="-1d"))

    assert [claims[name] - NOW for name in ("exp", "nbf", "iat", "auth_time")] == [-120, 300, 5400, -86400]
    assert payload(made(exp=-1))["exp"] == -1
    assert payload(made(exp=1.5))["exp"] == 1.5
    with pytest.raises(RecipeError, match="raw"):
        made(exp="1700000000")


def test_claims_replace_merge_and_drop():
    token = made(
        shape="keycloak",
        roles=["reader", "arn:aws:iam::222222222222:role/x/writer"],
        claims={"sub": 7, "jti": None},
        merge={"realm_access": {"verify_caller": True}},
        drop=["nbf", ["resource_access", "orders-client", "roles"]],
    )

    claims = payload(token)
    roles = [role_arn("reader"), "arn:aws:iam::222222222222:role/x/writer"]
    assert claims["realm_access"] == {"roles": roles, "verify_caller": True}
    assert (claims["sub"], claims["jti"], "nbf" in claims) == (7, None, False)
    assert claims["resource_access"] == {"orders-client": {}}


def test_times_and_urls_within_claims():
    facts = {"original_session_exp": "{iso+60}", "at": ["{now}", "{now-5}x"]}
    claims = payload(made(shape="aws", merge={"https://sts.amazonaws.com/": facts}, iss="{issuer}/"))

    said = claims["https://sts.amazonaws.com/"]
    assert said["original_session_exp"] == "2027-01-15T08:01:00Z"
    assert (said["at"], said["aws_account"]) == ([int(NOW), "{now-5}x"], "111111111111")
    assert claims["iss"] == f"{ISSUER}/"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_carries_subject_roles_and_times(shape):
    claims = payload(made(shape=shape, roles=["reader"], account="222222222222"))

    assert "arn:aws:iam::222222222222:role/reader" in json.dumps(claims)
    assert {"iss", "sub", "iat", "exp", "jti"} <= set(claims)


def test_cognito_has_roles_and_the_preferred_one_and_no_audience():
    claims = payload(made(shape="cognito", roles=["reader", "writer"], preferred_role="writer", aud="app-1"))

    assert claims["cognito:roles"] == [role_arn("reader"), role_arn("writer")]
    assert claims["cognito:groups"] == ["reader", "writer"]
    assert claims["cognito:preferred_role"] == role_arn("writer")
    assert (claims["client_id"], claims["token_use"], "aud" in claims) == ("app-1", "access", False)


def test_rfc9068_has_its_type_and_required_claims():
    token = made(shape="rfc9068")

    assert header(token)["typ"] == "at+jwt"
    assert {"iss", "exp", "aud", "sub", "client_id", "iat", "jti"} <= set(payload(token))


@pytest.mark.parametrize(
    ("segment", "recipe", "text"),
    [
        (1, {"raw": {"exp": "1e400"}}, '"exp":1e400'),
        (1, {"raw": {"exp": '"{now+300}"'}}, f'"exp":"{int(NOW) + 300}"'),
        (1, {"raw": {"exp": "{now}.0"}}, f'"exp":{int(NOW)}.0'),
        (1, {"raw": {"x": "[{2 lists},{1 objects}]"}}, '"x":[[],[],{}]'),
        (1, {"claims": {"exp": float("nan")}}, '"exp":NaN'),
        (1, {"claims": {"exp": float("inf")}}, '"exp":Infinity'),
        (1, {"duplicate": {"exp": ["-60s", "+5m"]}}, f'"exp":{int(NOW) - 60},"exp":{int(NOW) + 300}'),
        (1, {"duplicate": {"sub": ["alice", "admin"]}}, '"sub":"alice","sub":"admin"'),
        *((1, {"depth": 4}, '"deep":[[[[]]]]'), (1, {"raw_payload": "not json"}, "not json")),
        *((1, {"encoding": "trailing"}, '}{"admin":true}'), (1, {"encoding": "surrogate"}, "\\ud800")),
        *((1, {"encoding": "bom"}, "\ufeff{"), (1, {"encoding": "array"}, "[{")),
        (0, {"duplicate_header": {"alg": ["none", "RS256"]}}, '"alg":"none","alg":"RS256"'),
        *((0, {"raw_header_member": {"kid": "1e400"}}, '"kid":1e400'), (0, {"raw_header": "{}"}, "{}")),
        (0, {"header_depth": 3}, '"deep":[[[]]]'),
        (0, {"header": {"kid": "../../dev/null"}}, "../../dev/null"),
        (0, {"header": {"crit": ["exp"]}}, '"crit":["exp"]'),
        (0, {"header": {"jku": "{issuer}/jwks"}}, f'"jku":"{ISSUER}/jwks"'),
        (0, {"drop_header": ["kid"]}, '{"alg":"RS256","typ":"JWT"}'),
        *((0, {"typ": "at+jwt"}, '"typ":"at+jwt"'), (0, {"encoding": {"header": "bom"}}, "\ufeff{")),
    ],
    ids=str,
)
def test_what_no_library_would_write_is_signed(segment, recipe, text):
    token = made(**recipe)

    assert text in text_of(token, segment)
    assert signed(token, RSA)


@pytest.mark.parametrize(
    ("word", "mark"),
    [("utf16", b"\xff\xfe"), ("utf32", b"\xff\xfe\0\0"), ("invalid-utf8", b"\xff\xfe"), ("nul", b"}\0")],
)
def test_payloads_in_the_wrong_octets(word, mark):
    token = made(encoding=word)

    assert signed(token, RSA)
    assert mark in b64url_decode(token.split(".")[1])


@pytest.mark.parametrize(
    ("word", "sign"), [("padded", "="), ("whitespace", "\n"), ("standard", "+"), ("standard", "/")]
)
def test_base64_that_is_not_base64url(word, sign):
    assert sign in made(encoding=word).split(".")[1]
    assert signed(made(encoding=word), RSA)


def test_noncanonical_base64_has_the_same_octets():
    for names in range(4):  # payloads of every length modulo three
        token = made(encoding="noncanonical", claims={"n": "x" * names})
        text = token.split(".")[1]
        json.loads(base64.urlsafe_b64decode(text + "=="))

        with pytest.raises(ValueError, match="canonical"):
            b64url_decode(text)


@given(st.binary(max_size=64))
def test_base64url_round_trip(data):
    assert b64url_decode(b64url(data)) == data
    assert base64.urlsafe_b64decode(stray_bits(b64url(data)) + "==") == data


@pytest.mark.parametrize(
    ("word", "length"), [("truncated", 32), ("short", 63), ("long", 65), ("empty", 0), ("der", None)]
)
def test_ecdsa_signatures_of_wrong_length(word, length):
    octets = signature(made(key="ES256", signature=word))

    assert len(octets) == length if length is not None else octets[0] == 0x30


def test_psychic_and_foreign_signatures_do_not_verify_but_a_negated_one_does():
    """ECDSA is malleable: this one is a *valid* signature, for replay caches keyed by signature."""
    for word in ("zero", "order", "flipped", "foreign"):
        assert not signed(made(key="ES256", signature=word), EC)
    assert not any(signature(made(key="ES256", signature="zero")))
    assert signed(made(key="ES256", signature="negated"), EC)


def test_signature_words_for_curves_need_a_curve():
    with pytest.raises(RecipeError, match="ECDSA"):
        made(key="RS256", signature="der")


@pytest.mark.parametrize("alg", ["none", "None", "nOnE", "NONE"])
def test_alg_none_has_no_signature(alg):
    token = made(alg=alg)

    assert (header(token)["alg"], token[-1]) == (alg, ".")


@pytest.mark.parametrize(
    "secret", ["public-key", "public-der", "public-jwk", "certificate", "kid", "empty-key"]
)
def test_confusion_is_a_true_hmac_of_public_material(secret):
    token = made(confusion=f"hs256-with-{secret}")

    assert header(token)["alg"] == "HS256"
    assert len(signature(token)) == 32
    if secret == "public-key":
        checker = jwt.get_algorithm_by_name("HS256")
        data, _, tail = token.rpartition(".")
        assert checker.verify(data.encode(), RSA.public_pem(), b64url_decode(tail))


def test_keys_of_strangers():
    other, unknown, wrong = made(key="other"), made(key="unknown-kid"), made(key="wrong-kid")

    assert header(other)["kid"] == RSA.kid
    assert not signed(other, RSA)
    assert header(unknown)["kid"].startswith("unknown-")
    assert header(unknown)["kid"] != header(made(key="unknown-kid"))["kid"]
    assert header(wrong)["kid"] == EC.kid
    assert signed(wrong, RSA)


def test_embedded_keys_are_those_that_signed():
    token = made(key="other", embed=["jwk", "x5c", "x5t"])

    stranger = jwt.PyJWK(header(token)["jwk"])
    data, _, tail = token.rpartition(".")
    assert stranger.Algorithm.verify(data.encode(), stranger.key, b64url_decode(tail))
    assert base64.b64decode(header(token)["x5c"][0])[0] == 0x30


def test_jwe_has_five_parts_and_nested_is_a_token_in_a_token():
    sealed, nested = made(jwe=True), made(nested=True)

    assert sealed.count(".") == 4
    assert header(sealed)["enc"] == "A256GCM"
    assert header(nested)["cty"] == "JWT"
    assert signed(text_of(nested, 1), RSA)


def test_deflated_and_unencoded_payloads():
    deflated, unencoded = made(deflate=True), made(unencoded=True, claims={"iss": "x"}, drop=["jti"])

    assert header(deflated)["zip"] == "DEF"
    assert json.loads(zlib.decompress(b64url_decode(deflated.split(".")[1]), -15))["iss"] == ISSUER
    assert header(unencoded) | {"b64": False, "crit": ["b64"]} == header(unencoded)
    assert '."x"' not in unencoded
    assert '.{"iss":"x"' in unencoded


@given(st.integers(0, 20_000))
@settings(max_examples=30, deadline=None)
def test_a_token_has_just_the_size_that_its_recipe_asks_for(size):
    token = made(key="ES256", size=size)

    assert len(token) == size or len(token) < 600
    assert signed(token, EC)


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 5])
def test_segments(segments):
    assert made(segments=segments).count(".") == segments - 1


def test_text_prefix_and_suffix_are_verbatim():
    assert made(text="") == ""
    assert made(text="a b") == "a b"
    token = made(prefix=" ", suffix=".x")
    assert (token[0], token[-2:]) == (" ", ".x")


@pytest.mark.parametrize(
    "recipe",
    [
        *({"expires": "-1s"}, {"key": "nobody"}, {"shape": "auth1"}, {"base": "good"}),
        *({"signature": "bent"}, {"encoding": "rot13"}, {"encoding": {"body": "bom"}}),
        *({"encoding": {"signature": "utf16"}}, {"confusion": "hs256-with-luck"}, {"embed": "x5u"}),
        *({"header": {"jku": "{url:evil}"}}, {"jwe": True, "key": "ES256"}, {"exp": "soon"}),
    ],
    ids=str,
)
def test_a_misspelt_recipe_is_an_error_and_never_a_valid_token(recipe):
    with pytest.raises(RecipeError):
        made(**recipe)


def test_tokens_for_one_issuer_signed_by_another():
    issuers = {
        "corp": SimpleNamespace(url=ISSUER, keys=[RSA], shape="okta"),
        "evil": SimpleNamespace(url="https://evil.test", keys=[EC], shape="generic"),
    }
    recipe = {"issuer": "corp", "signer": "evil", "header": {"jku": "{url:evil}/jwks"}, "roles": ["reader"]}

    token = mint_for(recipe, issuers, NOW)

    assert payload(token)["iss"] == ISSUER
    assert payload(token)["groups"] == [role_arn("reader")]
    assert header(token)["jku"] == "https://evil.test/jwks"
    assert signed(token, EC)
    with pytest.raises(RecipeError, match="no issuer"):
        mint_for({"issuer": "nobody"}, issuers, NOW)


def test_keys_that_share_a_prime_are_sound_and_of_their_own():
    keys = [SigningKey.generate("RS256").private for _ in range(30)]
    numbers = [key.private_numbers() for key in keys if isinstance(key, RSAPrivateKey)]

    assert len({number.public_numbers.n for number in numbers}) == 30
    assert len({prime for number in numbers for prime in (number.p, number.q)}) < 30
    assert all(number.private_key().key_size == 2048 for number in numbers)  # proves the primes


def test_weak_and_mismatched_keys_can_be_made():
    weak = SigningKey.generate("RS256", bits=1024)
    odd = SigningKey.generate("ES256", curve="P-384")

    assert weak.private.key_size == 1024
    assert isinstance(odd.private, EllipticCurvePrivateKey)
    assert (odd.curve, odd.algorithm, odd.can("ES256")) == ("P-384", "ES256", False)
    assert len(signature(mint({}, [odd], NOW, ISSUER))) == 96
