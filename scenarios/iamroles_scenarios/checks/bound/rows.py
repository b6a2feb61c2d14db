"""The questions of data/derived/proofs.toml: each row changes one thing in a question that is allowed.

The sound question is asked before and after each row, with the token that the agent remembers by then: an
agent that leaves the proof out of its memory answers the row with the answer to the question before it.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import secrets
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from iamroles_scenarios.checks.derived.world import HOST, PATH, SOURCE
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import filled, table
from iamroles_scenarios.engine.answers import ALLOW, Expected, expected
from iamroles_scenarios.engine.bench import EDGE, Bench, SpopQuestion, bench
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose import SigningKey
from iamroles_scenarios.jose.encoding import b64url, b64url_uint, json_text, stray_bits
from iamroles_scenarios.jose.keys import certificate_of
from iamroles_scenarios.jose.proof import combined, hashed, jwk_of, proof, thumbprint
from iamroles_scenarios.wire.client import OMIT

POLICY, URL = "bound", f"https://{HOST}{PATH}"
_TABLE = table("proofs")
GROUPS: Mapping[str, Mapping[str, Any]] = _TABLE["groups"]
BASES: Mapping[str, Mapping[str, Any]] = _TABLE["bases"]
DPOP: dict[str, Any] = _TABLE["dpop"]
_BINDING = {"token_bound", "token_unbound", "binding_mismatch", "proof_invalid", "nonce_required"}
_ABSENT = object()
"""A member that is left out."""
_keys: dict[str, SigningKey] = {}
_making = threading.Lock()


def key(name: str) -> SigningKey:
    """Return a key of this process by its name, the same for all threads."""
    with _making:
        while name not in _keys:
            made = _made(name)
            # Standard base64 and base64url must differ in the thumbprint of the client's certificate.
            if name != "client" or {"-", "_"} & set(hashed(made.certificate())):
                _keys[name] = made
        return _keys[name]


def _made(name: str) -> SigningKey:
    """Make a key: of an algorithm, of somebody (ES256), or of RSA with an odd length or exponent."""
    match name.split():
        case ["RSA", "3"]:
            return SigningKey("", "RS256", rsa.generate_private_key(3, 2048))
        case ["RSA", "long"]:  # both exponents in each other's place, so the public one has 2047 bits
            found = rsa.generate_private_key(65537, 2048).private_numbers()
            numbers = {"e": found.d, "d": 65537, "p": found.p, "q": found.q}
            return SigningKey.from_jwk(
                {name: b64url_uint(number) for name, number in numbers.items()}
                | {"kty": "RSA", "kid": "", "alg": "RS256"}
            )
        case ["RSA", bits]:
            return SigningKey.generate("RS256", kid="", bits=int(bits))
    return SigningKey.generate(name if name[:2] in ("RS", "PS", "ES", "Ed") else "ES256", kid="")


def certificate(name: str = "client") -> bytes:
    """Return a self-signed certificate in DER; `same key` is another one of the client's key."""
    if name != "same key":
        return key(name).certificate()
    own = key("client").private
    assert isinstance(own, ec.EllipticCurvePrivateKey)  # noqa: S101 - `_made` says so
    built = certificate_of(own.public_key(), "iamroles suite", "iamroles suite")
    return built.sign(own, hashes.SHA256()).public_bytes(Encoding.DER)


def _spelt(name: str, source: bytes) -> dict[str, Any]:
    """Spell the SHA-256 of octets in ways that a reader might take for it."""
    digest, text = hashlib.sha256(source).digest(), hashed(source)
    at = next(at for at, letter in enumerate(text) if letter.isalpha())
    return {
        name: text,
        f"{name} cut": text[:-1],
        f"{name} hex": digest.hex(),
        f"{name} hex64": b64url(digest.hex().encode()),
        f"{name} stray": stray_bits(text),
        f"{name} other case": text[:at] + text[at].swapcase() + text[at + 1 :],
        f"{name} standard": base64.b64encode(digest).decode().rstrip("="),
        f"{name} sha1": b64url(hashlib.sha1(source, usedforsecurity=False).digest()),
    }


def thumbprints() -> dict[str, Any]:
    """Return the markers of the certificates' thumbprints."""
    der = certificate()
    return _spelt("x5t", der) | {
        "x5t of other": hashed(certificate("stranger")),
        "x5t of same key": hashed(certificate("same key")),
        "x5t of key": hashed(key("client").public_der()),
        "x5t of pem": hashed(ssl.DER_cert_to_PEM_cert(der)),
    }


class Asking:
    """Makes the questions of a world: sound ones of a base, and those of rows."""

    def __init__(self, here: Bench) -> None:
        self.here = here
        self._tokens: dict[str, str] = {}
        self._issuer = next(one for one in here.issuer().keys if one.algorithm == "ES256")

    def _markers(self, signer: SigningKey, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the markers of keys; the proof shows the signer's, with changes."""
        own, found = jwk_of(signer), {"absent": _ABSENT, "omit": OMIT, "url": URL, **thumbprints()}
        shown = own | filled(changes, {"absent": _ABSENT, "x": own.get("x")})
        shown = {name: value for name, value in shown.items() if value is not _ABSENT}
        for name, one in (("client", key("client")), ("stranger", key("stranger")), ("issuer", self._issuer)):
            found |= {name: jwk_of(one), f"{name} jkt": thumbprint(jwk_of(one))}
        secret = {name: value for name, value in signer.private_jwk().items() if name in ("d", "p", "q")}
        found |= _spelt("jkt", json_text(dict(sorted(found["client"].items()))).encode())
        found |= {
            "jwk": shown,
            "private": own | secret,
            "oct": {"kty": "oct", "k": ""},
            "as text": json_text(own),
        }
        found["swapped"] = dict(sorted(own.items(), reverse=True))
        return found | {
            "jti": secrets.token_urlsafe(9),
            "shown": thumbprint({**own, **shown, "kty": own["kty"]}),
            "own": thumbprint(own),
        }

    def question(self, what: str, row: Mapping[str, Any], answer: Expected = ALLOW) -> SpopQuestion:
        """Make a question whose base, group and row are joined in `row`."""
        signer = key(row.get("signer", "client"))
        markers = self._markers(signer, row.get("jwk", {}))
        token = self._token(filled(row["token"], markers))
        markers |= {"token": token, "ath of field": hashed(f"DPoP {token}"), **_spelt("ath", token.encode())}
        markers["ath of other"] = hashed(self.here.token("corp", key="ES256"))
        recipe = combined({"header": {"jwk": markers["jwk"]}}, filled(row.get("proof", {}), markers), depth=2)
        markers["proof"] = proof(signer, token, self.here.now(), recipe, url=URL)
        good = {"authorization-count": 1, "role": None, "method": "GET", "host": HOST, "path": PATH}
        asked = good | {"src": SOURCE, "certificate": None} | filled(row["ask"], markers)
        return SpopQuestion(what, asked, answer)

    def _token(self, recipe: Mapping[str, Any]) -> str:
        """Mint a token of the kiosk's role, the same for the same recipe."""
        full = combined({"roles": ["kiosk"], "key": "ES256", "claims": {"sub": "ann", "sid": "s"}}, recipe)
        if isinstance(cnf := full["claims"].get("cnf"), dict):
            full["claims"]["cnf"] = {name: value for name, value in cnf.items() if value is not _ABSENT}
        if (name := repr(full)) not in self._tokens:
            self._tokens[name] = self.here.token("corp", **full)
        return self._tokens[name]


def answer_of(said: str) -> dict[str, Any]:
    """Read an answer of the table; a refusal of the binding names nobody (SPEC.md 12.4)."""
    found = expected(said)
    reasons = found.get("reason")
    nobody = isinstance(reasons, set) and reasons <= _BINDING
    return {**found, **(dict.fromkeys(("principal", "session", "issuer", "role"), "") if nobody else {})}


def questions(asking: Asking, group: Mapping[str, Any]) -> Iterator[SpopQuestion]:
    """Yield the questions of a group, the sound one of its base before and after each."""
    usual = group.get("base", "dpop")
    for what, row in group["rows"].items():
        yield (before := asking.question(f"before {what}", BASES[usual]))
        over = {name: value for name, value in group.items() if name == "token"}
        own = combined(BASES[row.get("base", usual)], over, row)
        found = asking.question(what, own, answer_of(row.get("answer", group["answer"])))
        yield replace(found, check={**before.check, **row["ask"]}) if row.get("same") else found
        yield asking.question(f"after {what}", BASES[usual])


@contextmanager
def bound(target: Target, owner: str = "", **tables: Any) -> Iterator[Bench]:  # noqa: ANN401 - a policy's
    """Yield a bench that asks lists of questions; with an owner, in a world of its own, which may change."""
    with bench(target, POLICY, owner, own=bool(owner), flow=POLICY, **tables) as here, here.asking():
        here.wait_for_keys([Asking(here).question("keys", BASES["plain"])])
        yield here


for _name, _group in GROUPS.items():
    _kind = _name.partition("-")[0]

    @check(
        f"bound.{_name.replace('-', '.')}",
        *_group["requirements"],
        features={"certificate": {"certificate"}, "both": {"certificate", "dpop"}}.get(_kind, {"dpop"}),
        title=_group["title"],
    )
    def _played(target: Target, kind: str = _kind, group: Mapping[str, Any] = _group) -> str:
        """Each row of data/derived/proofs.toml has one fault; the sound question stands before and after."""
        tables = {} if kind == "certificate" else {"dpop": {**DPOP, **group.get("dpop", {})}}
        with bound(target, "", **tables) as here:
            here.ask_all(list(questions(Asking(here), group)), window=1)
            return f"{here.asked} questions"


@check("bound.dpop.sts", "DPOP-SCHEME-001", features={"dpop", "sts"})
def sts(target: Target) -> str:
    """A pre-signed GetCallerIdentity passes as Bearer, beside a proof too, and never with the scheme DPoP."""
    about: dict[str, Any] = {"name": "sts", "endpoint": "{sts}", "hosts": [f"{POLICY}{{suffix}}.sts.example"]}
    about |= {"binding_value": EDGE, "accounts": ["111111111111"], "insecure_http": True}
    with bound(target, "bound.dpop.sts", dpop=DPOP, sts=[about]) as here:
        signer, credential = key("client"), here.credential(here.session("kiosk"))
        good = {"authorization-count": 1, "role": None, "method": "GET", "host": HOST, "path": PATH}
        asked, refused = [], answer_of("token_unbound or proof_invalid or no_credentials")
        for scheme, proven in itertools.product(("Bearer", "DPoP"), (False, True)):
            own = proof(signer, credential, here.now(), url=URL) if proven else None
            said = {"authorization": f"{scheme} {credential}", "proof": own, "proof-count": int(proven)}
            said |= {**good, "src": SOURCE, "certificate": None}
            answer = ALLOW if scheme == "Bearer" else refused
            asked.append(SpopQuestion(f"{scheme} {'with' if proven else 'without'} a proof", said, answer))
        here.ask_all(asked, window=1)
        return f"{here.asked} questions"
