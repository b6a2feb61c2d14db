"""Proofs of possession and the rows of bound.*, read by joserfc, a library that no agent of ours uses."""

import hashlib
import json
import re
import ssl
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, import_key
from joserfc.jws import JWSRegistry

from iamroles_scenarios.checks.bound import proxied, rows
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.tables import table
from iamroles_scenarios.engine.answers import ALLOW
from iamroles_scenarios.jose import SigningKey, mint
from iamroles_scenarios.jose.encoding import b64url_decode, part
from iamroles_scenarios.jose.proof import hashed, jwk_of, proof, thumbprint
from iamroles_scenarios.wire.client import OMIT

VECTORS = json.loads((Path(__file__).parents[1] / "agent/tokens/vectors/proofs.json").read_text())
ISSUER = SimpleNamespace(keys=[SigningKey.generate("ES256", kid="k")], url="https://corp.example")
ALGORITHMS = ["ES256", "ES384", "ES512", "RS256", "PS256", "EdDSA", "Ed25519"]
REGISTRY = JWSRegistry(algorithms=[*ALGORITHMS, "ES256K"])
REGISTRY.max_header_length = 8192
PLAIN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


class Here:
    """Stands for a bench: mints, and says the time."""

    now = staticmethod(lambda: int(time.time()))
    issuer = staticmethod(lambda: ISSUER)
    token = staticmethod(lambda _issuer, **recipe: mint(recipe, ISSUER.keys, time.time(), ISSUER.url))


def read(text):
    """Verify a proof with the key that it shows; return it."""
    shown = part(text, 0)["jwk"]
    return shown, jws.deserialize_compact(text, import_key(shown), registry=REGISTRY)


@pytest.mark.parametrize("figure", VECTORS["RFC 9449"])
def test_the_proofs_of_the_standard_are_read_alike(figure):
    text = VECTORS["RFC 9449"][figure]
    shown, found = read(text)

    assert thumbprint(shown) == import_key(shown).thumbprint() == VECTORS["jkt"]
    assert part(text, 1).get("ath") == (hashed(VECTORS["token"]) if figure == "13" else None)
    assert found.headers()["typ"] == "dpop+jwt"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_proof_of_each_algorithm_verifies_by_another_library(algorithm):
    key = SigningKey.generate(algorithm, kid="")

    shown, _ = read(proof(key, "token", time.time(), url=rows.URL))

    assert shown == jwk_of(key)
    assert import_key(shown).thumbprint() == thumbprint(shown) == key.thumbprint()


def test_a_thumbprint_is_of_the_members_as_they_are_spelt():
    shown = jwk_of(SigningKey.generate("RS256", kid=""))

    assert thumbprint({**shown, "kid": "k", "use": "sig"}) == thumbprint(shown)
    assert thumbprint({**shown, "e": "AAEAAQ"}) != thumbprint(shown)


def test_a_client_has_the_thumbprint_that_openssl_takes_of_its_certificate():
    spelt = rows.thumbprints()
    der = ssl.PEM_cert_to_DER_cert(ssl.DER_cert_to_PEM_cert(rows.certificate()))

    assert b64url_decode(spelt["x5t"]) == hashlib.sha256(der).digest()
    assert len(set(spelt.values())) == len(spelt)


# --- the rows ---------------------------------------------------------------------------------------------


def _origin(uri):
    found = urlsplit(uri)
    if found.scheme != "https" or "@" in found.netloc or re.search(r"[^!-~]|\\", uri):
        raise ValueError(uri)
    return found.hostname, found.port or 443


def _path(path):
    def unescaped(hit):
        letter = chr(int(hit[1], 16))
        return letter if re.match(r"[\w.~-]", letter, re.ASCII) else hit[0].upper()

    return re.sub("%([0-9A-Fa-f]{2})", unescaped, path) or "/"


def _proven(asked, token, dpop):
    """Judge a proof by RFC 9449 section 4.3, with joserfc."""
    text = asked["proof"]
    if not isinstance(text, str) or not PLAIN.fullmatch(text) or asked.get("proof-count", 1) not in (1, OMIT):
        return False
    try:
        b64url_decode(text.split(".")[1]).decode()
        header, said, now = part(text, 0), part(text, 1), time.time()
        shown, _ = read(text)
        host, found = _origin(f"https://{asked['host']}/"), urlsplit(said["htu"])
        right = {
            "key": import_key(shown).thumbprint() == part(token, 1)["cnf"]["jkt"],
            "type": header["typ"] == "dpop+jwt",
            "algorithm": header["alg"] in dpop["algorithms"] and "crit" not in header,
            "public": not set(shown) & {"d", "p", "q", "dp", "dq", "qi", "oth"},
            "long": shown["kty"] != "RSA" or len(b64url_decode(shown["n"])) >= 256,
            "htm": said["htm"] == asked["method"],
            "ath": said["ath"] == hashed(token),
            "jti": 0 < len(said["jti"].encode()) <= 512,  # SPEC.md 12.9; the standard bounds it by nothing
            "iat": type(said["iat"]) is int and now - 61 < said["iat"] < now + 6,
            "origin": _origin(said["htu"]) == host and host in map(_origin, dpop["origins"]),
            "path": _path(found.path) == asked["path"],
            "nonce": not dpop.get("nonce"),
        }
    except (JoseError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all(right.values())


def _allowed(asked, dpop):
    """Judge a question of the world `bound` by the standards alone."""
    scheme, _, token = asked["authorization"].partition(" ")
    token = token.lstrip(" ")  # RFC 9110 section 11.4
    given = asked["proof"]
    if asked["authorization-count"] != 1 or (isinstance(given, str) and len(given) > 4096):
        return False
    try:
        claims = jwt.decode(token, ECKey.import_key(jwk_of(ISSUER.keys[0])), registry=REGISTRY).claims
    except (JoseError, ValueError):
        return False
    kind = {"https://must.kiosk.example": "required", "https://never.kiosk.example": "refused"}
    kind, cnf = kind.get(claims["iss"], "accepted"), claims.get("cnf", {})
    if claims["exp"] < time.time() or claims["roles"] != ["arn:aws:iam::111111111111:role/kiosk"]:
        return False
    if "cnf" in claims and not (cnf and isinstance(cnf, dict)):
        return False
    if (cnf and kind == "refused") or (not cnf and kind == "required") or set(cnf) - {"jkt", "x5t#S256"}:
        return False
    if "x5t#S256" in cnf and not (cnf["x5t#S256"] == asked["certificate"] == rows.thumbprints()["x5t"]):
        return False
    if dpop is None or "jkt" not in cnf:
        return scheme.lower() == "bearer" and "jkt" not in cnf
    return scheme.lower() == "dpop" and _proven(asked, token, dpop)


CASES = [
    pytest.param(name, what, id=f"{name}: {what}")
    for name, group in rows.GROUPS.items()
    for what in group["rows"]
    if group["requirements"] != ["DPOP-KEY-002"]
]


@pytest.mark.parametrize(("name", "what"), CASES)
def test_a_row_is_answered_as_the_standards_say(name, what):
    group = rows.GROUPS[name]
    dpop = (
        None
        if name.startswith("certificate")
        else {"algorithms": ["ES256"], **rows.DPOP, **group.get("dpop", {})}
    )
    one = {**group, "rows": {what: group["rows"][what]}}
    before, row, after = rows.questions(rows.Asking(Here()), one)

    assert _allowed(before.check, dpop)
    assert _allowed(after.check, dpop)
    if "allow" in row.expected:
        assert _allowed(row.check, dpop) == (row.expected["allow"] is True)


def test_names_are_of_sound_proofs():
    asking, dpop = rows.Asking(Here()), {"algorithms": ["ES256"], **rows.DPOP}
    for kind, found in table("proofs")["names"].items():
        for row in found:
            changed = rows.combined(rows.BASES["dpop"], {"proof": {"claims": {"jti": "one"}}}, row)
            assert _allowed(asking.question(kind, changed, ALLOW).check, dpop), row


def test_every_clause_of_the_standard_is_played():
    """RFC 9449 section 4.3, by the requirements of the rows."""
    sources = {one for group in rows.GROUPS.values() for one in group["requirements"]}
    wanted = ["COUNT", "CLAIM", "TYPE", "ALG", "SIGN", "KEY", "METHOD", "URI", "ATH", "BIND", "TIME"]

    assert {f"DPOP-{name}-001" for name in wanted} <= sources
    assert {check.id for check in plan() if check.id.startswith("bound.")} >= {
        f"bound.proxy.{name}" for name in proxied.PROXIED
    }


def test_no_check_needs_more_than_the_feature_it_judges():
    for check in plan():
        if check.id.startswith("bound.certificate."):
            assert "dpop" not in check.features
