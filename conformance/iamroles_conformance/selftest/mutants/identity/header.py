"""Mutants of signature, header and encoding: JWT-ALG, JWT-SIG, JWT-FETCH to JWT-SIZE, BEARER."""

from __future__ import annotations

import base64
import hmac
import json
import re
import threading
import urllib.request
from collections.abc import Callable
from importlib import import_module
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from iamroles_agent.reasons import Refusal
from iamroles_agent.tokens.jws import parse
from iamroles_agent.tokens.keys import parse_key
from iamroles_conformance.selftest.mutants.gate.proxy import _text
from iamroles_conformance.selftest.mutants.override import override
from iamroles_conformance.selftest.registry import mutant


def _override(path: str, name: str, make: Callable[[Any], Any]) -> None:
    """Replace a name of a module of `iamroles_agent.tokens`, or of a class in it (`keys.Key`)."""
    module, _, inner = path.partition(".")
    owner: Any = import_module(f"iamroles_agent.tokens.{module}")
    override(getattr(owner, inner) if inner else owner, name, make)


def _verify(rescue: Callable[[Any, Any, bytes], Any]) -> None:
    """Where a token is refused, let `rescue(authenticator, refusal, token)` give an identity after all."""

    def make(sound: Any) -> Any:
        async def verify(self: Any, token: bytes, digest: bytes) -> Any:
            try:
                return await sound(self, token, digest)
            except Refusal as refusal:
                identity = None if token.startswith(b"iam-sts") else rescue(self, refusal, token)
                if identity is None:
                    raise
                return identity, None, True

        return verify

    _override("authenticator.Authenticator", "_verify", make)


def _loosely(segment: bytes) -> dict[str, Any]:
    """A segment as a lenient library reads it."""
    text = segment.decode("latin-1").rstrip("=")
    members: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return members


def _believed(self: Any, token: bytes) -> Any:
    """The identity that the claims give, unverified."""
    jws = parse(token, self._max_bytes)
    return self._issuer_of(jws).rules.identity(jws.payload, jws.header, self._clock(), "")


def _header(edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header before it is judged; the signature is still that of the true one."""

    def make(sound: Any) -> Any:
        def read_header(protected: bytes) -> Any:
            members = _loosely(protected)
            edit(members)
            return sound(base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"="))

        return read_header

    _override("jws", "read_header", make)


def _signature(accept: Callable[[str, bytes, bytes, Any], bool]) -> None:
    """Accept more signatures: `accept(alg, signature, data, verify)`."""

    def make(sound: Any) -> Any:
        def verifier(self: Any, alg: str) -> Any:
            verify = sound(self, alg)
            return lambda signature, data: verify(signature, data) or accept(alg, signature, data, verify)

        return verifier

    _override("keys.Key", "verifier", make)


# --- algorithms and signatures ----------------------------------------------------------------------------


@mutant("identity.alg-none", kills=["JWT-ALG-001"], title="accepts alg none in any spelling but `none`")
def alg_none() -> None:
    def rescue(self: Any, _refusal: Any, token: bytes) -> Any:
        alg = _loosely(token.split(b".")[0]).get("alg", "")
        return _believed(self, token) if str(alg).lower() == "none" and alg != "none" else None

    _verify(rescue)


@mutant("identity.hs-confusion", kills=["JWT-ALG-002"], title="takes the public key for an HMAC secret")
def hs_confusion() -> None:
    def rescue(self: Any, _refusal: Any, token: bytes) -> Any:
        jws = parse(token, self._max_bytes)
        key = self._issuer_of(jws).keys.lookup(jws.header.kid, "RS256")
        if jws.header.alg != "HS256" or key is None:
            return None
        pem = key.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        good = hmac.compare_digest(hmac.digest(pem, jws.signing_input, "sha256"), jws.signature)
        return _believed(self, token) if good else None

    _verify(rescue)


@mutant("identity.any-algorithm", kills=["JWT-ALG-003"], title="accepts algorithms of other issuers")
def any_algorithm() -> None:
    def make(sound: Any) -> Any:
        def check_header(jws: Any, rules: Any) -> Any:
            rules.algorithms = frozenset(("RS256", "ES256"))
            return sound(jws, rules)

        return check_header

    _override("authenticator", "check_header", make)


@mutant("identity.key-decides", kills=["JWT-ALG-004"], title="verifies with the key's algorithm, not alg")
def key_decides() -> None:
    _override("keys.Key", "fits", lambda sound: lambda self, alg: True)
    _override("keys.Key", "verifier", lambda sound: lambda self, alg: sound(self, self.alg or alg))


@mutant("identity.empty-signature", kills=["JWT-SIG-001"], title="accepts an empty signature")
def empty_signature() -> None:
    _signature(lambda alg, signature, data, verify: not signature)


@mutant("identity.unknown-kid-any-key", kills=["JWT-KID-002"], title="takes any key where the kid is unknown")
def unknown_kid_any_key() -> None:
    def make(sound: Any) -> Any:
        def lookup(self: Any, kid: Any, alg: str) -> Any:
            return sound(self, kid, alg) or (self._keys and self._keys.only(alg))

        return lookup

    _override("jwks.KeySource", "lookup", make)


@mutant("identity.keys-of-all", kills=["JWT-SIG-002"], title="verifies with the keys of any issuer")
def keys_of_all() -> None:
    sources: list[Any] = []

    def begin(sound: Any) -> Any:
        def start(self: Any) -> None:
            sources.append(self)
            sound(self)

        return start

    def make(sound: Any) -> Any:
        def lookup(self: Any, kid: Any, alg: str) -> Any:
            return next(filter(None, (sound(each, kid, alg) for each in (self, *sources))), None)

        return lookup

    _override("jwks.KeySource", "start", begin)
    _override("jwks.KeySource", "lookup", make)


@mutant("identity.der-signature", kills=["JWT-ECDSA-001"], title="accepts ECDSA signatures in DER")
def der_signature() -> None:
    def accept(alg: str, signature: bytes, data: bytes, verify: Any) -> bool:
        if alg != "ES256" or signature[:1] != b"\x30":
            return False
        r, s = decode_dss_signature(signature)
        return bool(verify(r.to_bytes(32, "big") + s.to_bytes(32, "big"), data))

    _signature(accept)


@mutant("identity.psychic", kills=["JWT-ECDSA-002"], title="accepts the psychic signature: r and s zero")
def psychic() -> None:
    _signature(lambda alg, signature, data, verify: len(signature) == 64 and not any(signature))


# --- what a header makes the agent do ---------------------------------------------------------------------


def _calls(url: str) -> None:
    """Open a connection, as a fetch would, and let it go."""

    def call() -> None:
        try:
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - a mutant's purpose
        except (OSError, ValueError):
            return

    threading.Thread(target=call, daemon=True).start()


@mutant("identity.fetches-jku", kills=["JWT-FETCH-001"], title="fetches what jku names, and then ignores it")
def fetches_jku() -> None:
    def edit(members: dict[str, Any]) -> None:
        if isinstance(members.get("jku"), str):
            _calls(members["jku"])

    _header(edit)


@mutant("identity.fetches-iss", kills=["JWT-FETCH-003"], title="looks for the keys of an unknown iss")
def fetches_iss() -> None:
    def make(sound: Any) -> Any:
        def issuer_of(self: Any, jws: Any) -> Any:
            iss = jws.payload.get("iss")
            if iss not in self._issuers and isinstance(iss, str):
                _calls(f"{iss}/.well-known/openid-configuration")
            return sound(self, jws)

        return issuer_of

    _override("authenticator.Authenticator", "_issuer_of", make)


@mutant("identity.trusts-jwk", kills=["JWT-FETCH-002"], title="verifies with the key in the header")
def trusts_jwk() -> None:
    def rescue(self: Any, _refusal: Any, token: bytes) -> Any:
        members = _loosely(token.split(b".")[0])
        if not isinstance(members.get("jwk"), dict):
            return None
        jws = parse(token, self._max_bytes)
        good = parse_key(members["jwk"]).verifier(members["alg"])(jws.signature, jws.signing_input)
        return _believed(self, token) if good else None

    _verify(rescue)


# --- the header's members ---------------------------------------------------------------------------------


@mutant("identity.unknown-members", kills=["JWT-HEADER-001"], title="refuses header members it does not know")
def unknown_members() -> None:
    def edit(members: dict[str, Any]) -> None:
        if members.keys() - {"alg", "kid", "typ"}:
            raise ValueError("unknown members")

    _header(edit)


@mutant("identity.kid-any-type", kills=["JWT-KID-001"], title="ignores a kid that is not a string")
def kid_any_type() -> None:
    def edit(members: dict[str, Any]) -> None:
        if not isinstance(members.get("kid"), str) or not members["kid"]:
            members.pop("kid", None)

    _header(edit)


def _ignores(*names: str) -> None:
    def edit(members: dict[str, Any]) -> None:
        for name in names:
            members.pop(name, None)

    _header(edit)


@mutant("identity.ignores-crit", kills=["JWT-CRIT-001"], title="ignores crit")
def ignores_crit() -> None:
    _ignores("crit")


@mutant("identity.b64-true", kills=["JWT-CRIT-002"], title="accepts b64 where it is true")
def b64_true() -> None:
    def edit(members: dict[str, Any]) -> None:
        if members.get("b64") is True and members.pop("b64") and members.get("crit") == ["b64"]:
            del members["crit"]

    _header(edit)


@mutant("identity.ignores-zip", kills=["JWT-ZIP-001"], title="ignores zip")
def ignores_zip() -> None:
    _ignores("zip")


@mutant("identity.cty-case", kills=["JWT-NEST-001"], title="refuses cty JWT in this spelling only")
def cty_case() -> None:
    def edit(members: dict[str, Any]) -> None:
        if members.get("cty") != "JWT":
            members.pop("cty", None)

    _header(edit)


@mutant("identity.jwe-crash", kills=["JWT-JWE-001"], title="breaks at a token of five parts")
def jwe_crash() -> None:
    def make(sound: Any) -> Any:
        def parse(token: bytes, max_bytes: int = 8192) -> Any:
            if token.count(b".") == 4:
                raise LookupError("five parts")
            return sound(token, max_bytes)

        return parse

    _override("authenticator", "parse", make)


@mutant("identity.any-typ", kills=["JWT-TYP-001"], title="ignores typ")
def any_typ() -> None:
    def make(sound: Any) -> Any:
        def check_header(jws: Any, rules: Any) -> Any:
            rules.types = rules.types | {jws.header.typ}
            return sound(jws, rules)

        return check_header

    _override("authenticator", "check_header", make)


@mutant("identity.at-jwt-optional", kills=["JWT-TYP-002"], title="accepts JWT where at+jwt is required")
def at_jwt_optional() -> None:
    def make(sound: Any) -> Any:
        def check_header(jws: Any, rules: Any) -> Any:
            rules.types = rules.types | {"jwt"}
            return sound(jws, rules)

        return check_header

    _override("authenticator", "check_header", make)


# --- encoding ---------------------------------------------------------------------------------------------


@mutant("identity.four-parts", kills=["JWT-FORM-001"], title="takes the first three of four parts")
def four_parts() -> None:
    def make(sound: Any) -> Any:
        return lambda token, size=8192: sound(b".".join(token.split(b".")[:3]), size)

    _override("authenticator", "parse", make)


@mutant("identity.padding", kills=["JWT-B64-001"], title="accepts padding, white space and + /")
def padding() -> None:
    def make(sound: Any) -> Any:
        kept = bytes.maketrans(b"+/", b"-_")
        return lambda text: sound(re.sub(rb"[=\s]", b"", text).translate(kept))

    _override("jws", "decode_base64url", make)


@mutant("identity.stray-bits", kills=["JWT-B64-002"], title="ignores stray bits at a segment's end")
def stray_bits() -> None:
    def make(sound: Any) -> Any:
        def decode(text: bytes) -> Any:
            try:
                return sound(text)
            except ValueError:
                if re.fullmatch(rb"[\w-]+", text) is None:
                    raise
                return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))

        return decode

    _override("jws", "decode_base64url", make)


def _json(read: Callable[[bytes], Any]) -> None:
    """Where strict JSON refuses, read once more as `read` does."""

    def make(sound: Any) -> Any:
        def decode(data: bytes) -> Any:
            try:
                return sound(data)
            except ValueError:
                found = read(data)
                if not isinstance(found, dict):
                    raise
                return found

        return decode

    _override("jws", "decode_object", make)


@mutant("identity.header-twice", kills=["JWT-JSON-001"], title="takes the last of two header members")
def header_twice() -> None:
    _json(lambda data: json.loads(data) if b'"alg"' in data else None)


@mutant("identity.payload-twice", kills=["JWT-JSON-002"], title="takes the last of two claims")
def payload_twice() -> None:
    _json(lambda data: json.loads(data) if b'"alg"' not in data else None)


@mutant("identity.utf16", kills=["JWT-JSON-003"], title="guesses the encoding of JSON")
def utf16() -> None:
    def read(data: bytes) -> Any:
        return json.loads(data) if data[:2] in (b"\xff\xfe", b"\xef\xbb") else None

    _json(read)


@mutant("identity.trailing", kills=["JWT-JSON-004"], title="ignores what follows the JSON object")
def trailing() -> None:
    def read(data: bytes) -> Any:
        try:
            return json.JSONDecoder().raw_decode(data.decode())[0]
        except UnicodeDecodeError:
            return None

    _json(read)


@mutant("identity.depth", kills=["JWT-JSON-005"], title="skips what is nested deep")
def depth() -> None:
    _json(lambda data: json.loads(re.sub(rb',"deep":\[+\]+', b"", data)))


@mutant("identity.any-size", kills=["JWT-SIZE-001"], title="judges tokens of any size")
def any_size() -> None:
    _override("authenticator", "parse", lambda sound: lambda token, size=8192: sound(token, 1 << 24))


@mutant("identity.small-size", kills=["JWT-SIZE-001"], title="refuses tokens above 4096 bytes")
def small_size() -> None:
    _override("authenticator", "parse", lambda sound: lambda token, size=8192: sound(token, 4096))


# --- the Authorization header -----------------------------------------------------------------------------


@mutant("identity.first-of-two", kills=["BEARER-FORM-001"], title="takes the first of two tokens in a header")
def first_of_two() -> None:
    def make(sound: Any) -> Any:
        return lambda text: sound("Bearer " + re.split(r"[ ,]+", text.strip())[1]) if " " in text else None

    _override("authenticator", "bearer", make)


@mutant(
    "identity.query-token", kills=["BEARER-QUERY-001"], title="takes a token out of the query", proxy=True
)
def query_token() -> None:
    _text(
        lambda text: text.replace(
            "authorization=req.fhdr(authorization) ",
            "authorization=url_param(access_token),regsub(^,Bearer\\ ) ",
        ),
        name="iam.spoe.cfg",
    )
