"""Mutants of signature, header and encoding: JWT-ALG, JWT-SIG, JWT-FETCH to JWT-SIZE, BEARER."""

from __future__ import annotations

import base64
import hmac
import json
import re
import threading
import urllib.request
import zlib
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from iamroles_agent.base.reasons import Refusal
from iamroles_agent.tokens import authenticator, jws
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.jws import parse
from iamroles_agent.tokens.keyring import Keyring
from iamroles_agent.tokens.keys import Key, parse_key
from iamroles_conformance.selftest.mutants.edits import replaced
from iamroles_conformance.selftest.mutants.override import around, before, fail, rescue, setting
from iamroles_conformance.selftest.registry import Override, mutant


def _verify(accept: Callable[[Any, bytes], Any]) -> Override:
    """If a token is refused, let `accept(authenticator, token)` give an identity after all."""

    @rescue(Authenticator, "_verify", Refusal)
    def verify(_refusal: Any, self: Any, token: bytes, *_rest: Any) -> Any:
        identity = None if token.startswith(b"iam-sts") else accept(self, token)
        return None if identity is None else (identity, None, True)

    return verify


def _loosely(segment: bytes) -> dict[str, Any]:
    """Read a segment as a lenient library does."""
    text = segment.decode("latin-1").rstrip("=")
    members: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return members


def _plain(segment: bytes) -> bytes:
    return base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))


def _believed(self: Any, token: bytes) -> Any:
    """Return the identity that the claims give, unverified."""
    jws = parse(token, self._max_bytes)
    return self._issuer_of(jws).rules.identity(jws.payload, jws.header, self._clock(), "")


def _header(edit: Callable[[dict[str, Any]], Any]) -> Override:
    """Change the header before it is judged; the signature is still that of the true one."""

    @around(jws, "read_header")
    def read_header(sound: Any, protected: bytes) -> Any:
        try:
            members = _loosely(protected)
        except (ValueError, RecursionError):
            return sound(protected)
        if not isinstance(members, dict):
            return sound(protected)
        before = dict(members)
        edit(members)
        changed = base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=")
        return sound(protected if members == before else changed)

    return read_header


def _signature(accept: Callable[[str, bytes, bytes, Any], bool]) -> Override:
    """Accept more signatures: `accept(alg, signature, data, verify)`."""

    @around(Key, "verifier")
    def verifier(sound: Any, self: Any, alg: str) -> Any:
        verify = sound(self, alg)
        return lambda signature, data: verify(signature, data) or accept(alg, signature, data, verify)

    return verifier


def _allows(name: str, values: Callable[[Any, Any], Any]) -> Override:
    """Change what an issuer's rules allow in a header: `values(former, header)`."""
    return before(authenticator, "check_header")(
        lambda jws, rules: setattr(rules, name, values(getattr(rules, name), jws.header))
    )


def _parse(change: Callable[[bytes], bytes], size: int | None = None) -> Override:
    """Change a token before it is parsed, or how long it may be."""
    return around(authenticator, "parse")(
        lambda sound, token, max_bytes=8192: sound(change(token), size or max_bytes)
    )


# --- algorithms and signatures


@mutant("identity.alg-none", "JWT-ALG-001", "accepts alg none in any spelling but `none`")
@_verify
def alg_none(self: Any, token: bytes) -> Any:
    alg = _loosely(token.split(b".")[0]).get("alg", "")
    return _believed(self, token) if str(alg).lower() == "none" and alg != "none" else None


@mutant("identity.hs-confusion", "JWT-ALG-002", "takes the public key for an HMAC secret")
@_verify
def hs_confusion(self: Any, token: bytes) -> Any:
    jws = parse(token, self._max_bytes)
    key = self._issuer_of(jws).keys.lookup(jws.header.kid, "RS256")
    if jws.header.alg != "HS256" or key is None:
        return None
    pem = key.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    good = hmac.compare_digest(hmac.digest(pem, jws.signing_input, "sha256"), jws.signature)
    return _believed(self, token) if good else None


_keyrings: list[Any] = []


@mutant("identity.der-signature", "JWT-ECDSA-001", "accepts ECDSA signatures in DER")
@_signature
def der_signature(alg: str, signature: bytes, data: bytes, verify: Any) -> bool:
    if alg != "ES256" or signature[:1] != b"\x30":
        return False
    r, s = decode_dss_signature(signature)
    return bool(verify(r.to_bytes(32, "big") + s.to_bytes(32, "big"), data))


mutant("identity.any-algorithm", "JWT-ALG-003", "accepts algorithms of other issuers")(
    _allows("algorithms", lambda _former, _header: frozenset(("RS256", "ES256")))
)
mutant("identity.key-decides", "JWT-ALG-004", "verifies with the key's algorithm, not alg")(
    setting(Key, "fits", lambda _self, _alg: True),
    around(Key, "verifier")(lambda sound, self, alg: sound(self, self.alg or alg)),
)
mutant("identity.empty-signature", "JWT-SIG-001", "accepts an empty signature")(
    _signature(lambda alg, signature, data, verify: not signature)
)
mutant("identity.unknown-kid-any-key", "JWT-KID-002", "takes any key where the kid is unknown")(
    around(Keyring, "lookup")(
        lambda sound, self, kid, alg: sound(self, kid, alg) or (self._keys and self._keys.find(None, alg))
    )
)
mutant("identity.keys-of-all", "JWT-SIG-002", "verifies with the keys of any issuer")(
    before(Keyring, "__init__")(lambda self, *_args, **_how: _keyrings.append(self)),
    around(Keyring, "lookup")(
        lambda sound, self, kid, alg: next(
            filter(None, (sound(each, kid, alg) for each in (self, *_keyrings))), None
        )
    ),
)
mutant("identity.psychic", "JWT-ECDSA-002", "accepts the psychic signature: r and s zero")(
    _signature(lambda alg, signature, data, verify: len(signature) == 64 and not any(signature))
)

# --- what a header makes the agent do


def _fetch(url: object) -> None:
    """Open a connection, as a fetch would, and let it go."""

    def call() -> None:
        try:
            urllib.request.urlopen(str(url), timeout=2).close()  # noqa: S310 - a mutant's purpose
        except (OSError, ValueError):
            return

    if isinstance(url, str):
        threading.Thread(target=call, daemon=True).start()


@mutant("identity.fetches-iss", "JWT-FETCH-003", "looks for the keys of an unknown iss")
@before(Authenticator, "_issuer_of")
def fetches_iss(self: Any, jws: Any) -> None:
    iss = jws.payload.get("iss")
    if iss not in self._issuers and isinstance(iss, str):
        _fetch(f"{iss}/.well-known/openid-configuration")


@mutant("identity.trusts-jwk", "JWT-FETCH-002", "verifies with the key in the header")
@_verify
def trusts_jwk(self: Any, token: bytes) -> Any:
    members = _loosely(token.split(b".")[0])
    if not isinstance(members.get("jwk"), dict):
        return None
    jws = parse(token, self._max_bytes)
    good = parse_key(members["jwk"]).verifier(members["alg"])(jws.signature, jws.signing_input)
    return _believed(self, token) if good else None


mutant("identity.fetches-jku", "JWT-FETCH-001", "fetches what jku names, and then ignores it")(
    _header(lambda members: _fetch(members.get("jku")))
)

# --- the header's members


@mutant("identity.kid-any-type", "JWT-KID-001", "ignores a kid that is not a string")
@_header
def kid_any_type(members: dict[str, Any]) -> None:
    if not isinstance(members.get("kid"), str) or not members["kid"]:
        members.pop("kid", None)


def _ignores(name: str) -> Override:
    return _header(lambda members: members.pop(name, None))


@mutant("identity.b64-true", "JWT-CRIT-003", "accepts b64 where it is true")
@_header
def b64_true(members: dict[str, Any]) -> None:
    if members.get("b64") is True and members.pop("b64") and members.get("crit") == ["b64"]:
        del members["crit"]


@mutant("identity.unencoded", "JWT-CRIT-002", "takes an unencoded payload")
@around(authenticator, "parse")
def unencoded(sound: Any, token: bytes, max_bytes: int = 8192) -> Any:
    head, _, rest = token.partition(b".")
    body, _, seal = rest.rpartition(b".")
    if not body.startswith(b"{"):
        return sound(token, max_bytes)
    members = json.loads(_plain(head))
    header = jws.Header(members["alg"], members.get("kid"), "jwt")
    return jws.Jws(header, json.loads(body), token[: -len(seal) - 1], _plain(seal))


mutant("identity.unknown-members", "JWT-HEADER-001", "refuses header members it does not know")(
    _header(lambda members: members.keys() - {"alg", "kid", "typ"} and fail(ValueError("unknown members")))
)
mutant("identity.ignores-crit", "JWT-CRIT-001", "ignores crit")(_ignores("crit"))
mutant("identity.ignores-b64", "JWT-CRIT-003", "ignores b64")(_ignores("b64"))
mutant("identity.ignores-zip", "JWT-ZIP-002", "ignores zip")(_ignores("zip"))
mutant("identity.cty-case", "JWT-NEST-001", "refuses cty JWT in this spelling only")(
    _header(lambda members: members.get("cty") == "JWT" or members.pop("cty", None))
)
mutant("identity.jwe-crash", "JWT-JWE-001", "breaks at a token of five parts")(
    _parse(lambda token: fail(LookupError("five parts")) if token.count(b".") == 4 else token)
)
mutant("identity.any-typ", "JWT-TYP-001", "ignores typ")(
    _allows("types", lambda former, header: former | {header.typ})
)
mutant("identity.at-jwt-optional", "JWT-TYP-002", "accepts JWT where at+jwt is required")(
    _allows("types", lambda former, _header: former | {"jwt"})
)

# --- encoding


@mutant("identity.stray-bits", "JWT-B64-002", "ignores stray bits at a segment's end")
@rescue(jws, "decode_base64url", ValueError)
def stray_bits(_error: Any, text: bytes) -> Any:
    return _plain(text) if re.fullmatch(rb"[\w-]+", text) else None


def _json(read: Callable[[bytes], Any]) -> Override:
    """If strict JSON refuses, use `read`."""

    @rescue(jws, "decode_object", ValueError)
    def decode(_error: Any, data: bytes) -> Any:
        try:
            found = read(data)
        except RecursionError as error:
            raise ValueError("nested too deep") from error
        # Python's json takes what is no JSON.
        odd = b"NaN" in data or b"Infinity" in data
        return found if isinstance(found, dict) and not odd else None

    return decode


@mutant("identity.trailing", "JWT-JSON-004", "ignores what follows the JSON object")
@_json
def trailing(data: bytes) -> Any:
    try:
        return json.JSONDecoder().raw_decode(data.decode())[0]
    except UnicodeDecodeError:
        return None


mutant("identity.four-parts", "JWT-FORM-001", "takes the first three of four parts")(
    _parse(lambda token: b".".join(token.split(b".")[:3]))
)
mutant("identity.padding", "JWT-B64-001", "accepts padding, white space and + /")(
    around(jws, "decode_base64url")(
        lambda sound, text: sound(re.sub(rb"[=\s]", b"", text).translate(bytes.maketrans(b"+/", b"-_")))
    )
)
mutant("identity.inflates", "JWT-ZIP-001", "decompresses a payload")(
    _ignores("zip"), _json(lambda data: json.loads(zlib.decompress(data, -15)))
)
mutant("identity.first-of-twice", "JWT-JSON-006", "takes the first of two claims")(
    _json(lambda data: json.loads(data, object_pairs_hook=lambda pairs: dict(reversed(pairs))))
)
mutant("identity.byte-order-mark", "JWT-JSON-007", "skips a BOM")(
    _json(lambda data: json.loads(data.removeprefix(b"\xef\xbb\xbf")) if data[:1] == b"\xef" else None)
)
mutant("identity.lone-surrogate", "JWT-JSON-007", "takes an escape of half a character")(
    _json(lambda data: json.loads(data.decode()) if rb"\ud800" in data else None)
)
mutant("identity.header-twice", "JWT-JSON-001", "takes the last of two header members")(
    _json(lambda data: json.loads(data.decode()) if b'"alg"' in data else None)
)
mutant("identity.payload-twice", "JWT-JSON-002", "takes the last of two claims")(
    _json(lambda data: json.loads(data.decode()) if b'"alg"' not in data else None)
)
mutant("identity.utf16", "JWT-JSON-003", "guesses the encoding of JSON")(
    _json(lambda data: json.loads(data) if data[:2] == b"\xff\xfe" else None)
)
mutant("identity.depth", "JWT-JSON-008", "skips what is nested deep")(
    _json(lambda data: json.loads(re.sub(rb',"deep":\[+\]+', b"", data).decode()))
)
mutant("identity.depth-crash", "JWT-JSON-005", "breaks at deep nesting")(
    before(jws, "decode_object")(
        lambda data: fail(LookupError("too deep for this stack")) if b"[" * 18 in data else None
    )
)
mutant("identity.any-size", "JWT-SIZE-001", "judges tokens of any size")(_parse(bytes, size=1 << 24))
mutant("identity.small-size", "JWT-SIZE-001", "refuses a token of just 8192 bytes")(_parse(bytes, size=8191))

# --- the Authorization header

mutant("identity.first-of-two", "BEARER-FORM-001", "takes the first of two tokens in a header")(
    around(authenticator, "bearer")(
        lambda sound, text: sound("Bearer " + re.split(r"[ ,]+", text.strip())[1]) if " " in text else None
    )
)
mutant("identity.query-token", "BEARER-QUERY-001", "takes a token out of the query")(
    replaced(
        "authorization=req.fhdr(authorization) ",
        "authorization=url_param(access_token),regsub(^,Bearer\\ ) ",
        name="iam.spoe.cfg",
    )
)
