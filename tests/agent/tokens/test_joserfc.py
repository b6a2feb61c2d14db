"""joserfc, which no agent uses, reads what the suite mints, and the agent takes what joserfc makes."""

import asyncio
import json
import re

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey
from joserfc.jws import JWSRegistry
from spop_transcript import USUAL
from tokens_support import AUDIENCE, ISSUER, NOW, ROLE, Clock, authenticator_with

from iamroles_agent.base.config import Dpop
from iamroles_agent.base.identity import Request
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.tokens.proof import ProofRules
from iamroles_scenarios.jose import RecipeError, SigningKey, mint
from iamroles_scenarios.jose.proof import hashed

pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
ALGORITHMS = ["ES256", "ES384", "RS256", "PS256", "EdDSA"]
REGISTRY = JWSRegistry(algorithms=ALGORITHMS)
REGISTRY.max_header_length = 8192
WANTED = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice"}
NEEDED = {name: {"essential": True, "value": value} for name, value in WANTED.items()}
CLAIMS = jwt.JWTClaimsRegistry(now=NOW, leeway=0, exp={"essential": True}, **NEEDED)
STRICTER = "`crit`|`cty`|duplicate JSON|typ is not one of|not UTF-8 JSON|not JSON$|not a JSON integer"
"""Details of the agent's refusals that SPEC.md wants, of tokens that joserfc takes."""
# fmt: off
TIMES = ['"x"', "null", "1e400", "1e3", "true", f"{NOW - 1}", f"{NOW}", f"{NOW + 9}", f"{NOW + 9}.5"]
ODD = ["padded", "whitespace", "standard", "noncanonical", "utf16", "bom", "invalid-utf8", "array", "nul"]
WORDS = {
    "alg": [*ALGORITHMS, "PS512", "none", "HS256"],
    "key": ["other", "unknown-kid", "wrong-kid", *ALGORITHMS],
    "signature": ["short", "long", "empty", "zero", "order", "der", "flipped", "foreign", "negated"],
    "encoding": [{part: how} for part in ("header", "payload", "signature") for how in ODD],
    "confusion": [f"hs256-with-{what}" for what in ("public-key", "public-jwk", "kid", "empty-key")],
    "raw": [{"aud": f'["x", "{AUDIENCE}"]'}, {"aud": "[]"}, {"iss": f'["{ISSUER}"]'}, {"sub": "7"},
            *({name: raw} for name in ("exp", "nbf", "iat") for raw in TIMES)],
    "drop": [[name] for name in ("exp", "nbf", "iat", "sub", "aud", "iss", "jti")],
    "embed": ["jwk", "x5c", "x5t"], "typ": ["JWT", "at+jwt", "dpop+jwt"], "drop_header": [["alg"], ["typ"]],
    "header": [{"crit": ["x"], "x": 1}, {"crit": []}, {"b64": False}, {"cty": "JWT"}, {"kid": 7}],
    "segments": [1, 2, 4, 5], "suffix": [".", "=", "A"], "duplicate": [{"exp": ["-60s", "+5m"]}],
    "unencoded": [True], "nested": [True], "deflate": [True],
}
# fmt: on
CHANGE = st.sampled_from([(name, value) for name, values in WORDS.items() for value in values])
KEYS = [SigningKey.generate(name, kid=name) for name in ALGORITHMS]
EC, EC_384 = (ECKey.generate_key(curve, {"kid": curve}) for curve in ("P-256", "P-384"))
RSA, ED = RSAKey.generate_key(2048, {"kid": "rsa"}), OKPKey.generate_key("Ed25519", {"kid": "ed"})
SIGNER = st.sampled_from(list(zip(ALGORITHMS, (EC, EC_384, RSA, RSA, ED), strict=True)))
NAMES = st.text(min_size=1).map("x{}".format)
MORE = st.dictionaries(NAMES, st.recursive(st.text() | st.integers(), st.lists), max_size=3)


@pytest.fixture(scope="module")
def reader():
    """Return a function that judges a token as the agent does: its identity, or the refusal."""

    def read(jwks, token):
        agent = known[jwks]
        try:
            return runner.run(agent.authenticate(f"Bearer {token}"))
        except Refusal as refusal:
            return refusal

    sets = {"ours": [key.public_jwk() for key in KEYS]}
    sets["theirs"] = KeySet([EC, EC_384, RSA, ED]).as_dict(private=False)["keys"]
    known = {name: authenticator_with(keys, Clock(), algorithms=ALGORITHMS) for name, keys in sets.items()}
    with asyncio.Runner() as runner:
        yield read


@settings(max_examples=300)
@given(st.lists(CHANGE, max_size=2).map(dict))
def test_the_agent_takes_no_token_that_joserfc_refuses(reader, recipe):
    try:
        token = mint({"aud": AUDIENCE, "roles": [ROLE], **recipe}, KEYS, NOW, ISSUER)
    except (RecipeError, OverflowError):  # of words that do not go together
        reject()
    try:
        keys = KeySet.import_key_set({"keys": [key.public_jwk() for key in KEYS]})
        claims = jwt.decode(token, keys, registry=REGISTRY).claims
        CLAIMS.validate(claims)
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):  # of odd octets, too
        claims = None
    found = reader("ours", token)

    if isinstance(found, Refusal):
        assert claims is None or re.search(STRICTER, found.detail), (found.detail, token)
    else:
        assert claims is not None, token
        assert (found.principal, found.not_after) == (claims["sub"], claims["exp"])


@settings(max_examples=60)
@given(SIGNER, SIGNER, MORE, st.sampled_from([AUDIENCE, ["other", AUDIENCE]]))
def test_the_agent_takes_tokens_and_proofs_that_joserfc_makes(reader, signer, prover, more, aud):
    (alg, key), (proves, holder) = signer, prover
    claims = more | WANTED | {"aud": aud, "iat": NOW, "exp": NOW + 60, "roles": [ROLE]}
    token = jwt.encode({"alg": alg, "kid": key.kid}, claims, key, registry=REGISTRY)
    said = {"jti": "p", "htm": "GET", "htu": "https://api.example.com/", "iat": NOW, "ath": hashed(token)}
    header = {"typ": "dpop+jwt", "alg": proves, "jwk": holder.as_dict(private=False)}
    proof = jws.serialize_compact(header, json.dumps(more | said), holder, registry=REGISTRY)
    rules = ProofRules(Dpop(origins=["https://api.example.com"], algorithms=ALGORITHMS), b"k")
    asked = Request("GET", "api.example.com", "/", USUAL.src)

    assert reader("theirs", token).principal == "alice"
    assert rules.judge(proof, holder.thumbprint(), token.encode(), asked, NOW).use
    with pytest.raises(Refusal, match="binding_mismatch"):
        rules.judge(proof, holder.thumbprint()[::-1], token.encode(), asked, NOW)
