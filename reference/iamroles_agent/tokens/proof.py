"""Judge whether the sender of a bound token holds its key (RFC 8705, RFC 9449; SPEC.md section 12).

The order of cost
-----------------
Everywhere else the policy chooses the keys. In a DPoP proof the *sender* does, and a sender may be anybody.
An RSA key of 3072 bits with an exponent as long makes one check take 9 ms, sixty times as long as ES256.
Nothing of a proof can be remembered, because each is used once. So a proof is judged from the cheap to the
dear, and from what a stranger can fulfil to what only the holder can:

- *first the token*: it is verified, or known, before anybody looks at its proof. A stranger has none.
- *then form and key*: a few texts are compared and one hash is made. The proof's key is that of `cnf.jkt`, or
  nothing more is done with it. The length of its members shows its kind and size, and only a few are
  accepted: no arithmetic has begun.
- *then the claims*, which cost no more: method, URI, time, token.
- *then the signature*: only the holder of a bound token gets so far, by that token's own key. The issuer of
  the token has seen this key before.
- *the nonce last*: so only the holder learns one.

A thief of a bound token knows its public key, and can make the agent check signatures by that key. A key of
the kinds below makes this no dearer than a flood of new tokens.

A nonce is a window of time and a MAC over it, so that no process must remember which it gave. The key of the
MAC is that of the policy's file, for all agents, or a random key, for all processes of an agent.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from math import inf
from typing import Any, NamedTuple

from iamroles_agent.base.config import Config, Dpop
from iamroles_agent.base.encoding import decode_base64url, decode_object, encode_base64url, lower_ascii
from iamroles_agent.base.identity import Identity, Request
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.policy.paths import canonical
from iamroles_agent.spop.messages import Check
from iamroles_agent.tokens.jws import FORBIDDEN, media
from iamroles_agent.tokens.keys import ALGORITHMS, Verify, parse_key, problem_of

OWN_KEY = secrets.token_bytes(32)
"""The key of nonces without `nonce_key`. The parent makes it before it forks: all processes have it."""
_MAX_JTI = 512
_MEMBERS = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}
"""The members of a thumbprint, in its order (RFC 7638 section 3.2; RFC 8037 section 2)."""
_COORDINATE = {"P-256": 43, "P-384": 64, "P-521": 88, "Ed25519": 43}
"""Characters of a coordinate, by its curve."""
_MODULUS = range(342, 684)
"""Characters of an RSA modulus of 2048 to 4096 bits."""
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)", re.ASCII)
_DEFAULT_PORT = re.compile(r":(?:443)?\Z", re.ASCII)


class Proven(NamedTuple):
    """The outcome for a request whose binding holds."""

    keys: tuple[str, ...] = ()
    """The members of `cnf` that were proven, for the record: their names and thumbprints, with a colon."""
    use: str = ""
    """Names the use of the proof, which the proxy counts; "" if there is nothing to count."""
    nonce: str = ""
    """A fresh nonce that the client should use from now on; "": it has one."""


_UNBOUND = Proven()


class Bindings:
    """Judges bound tokens by the demands of a policy.

    Args:
        config: the policy.
        nonce_key: of its file; b"": none was named.
    """

    def __init__(self, config: Config, nonce_key: bytes = b"") -> None:
        self._required = frozenset(issuer.name for issuer in config.issuers if issuer.bound == "required")
        dpop = config.dpop if config.binds else None
        self.proofs = None if dpop is None else ProofRules(dpop, nonce_key or OWN_KEY)

    def judge(self, identity: Identity, check: Check, request: Request, now: float) -> Proven:
        """Judge whether the sender holds the keys of a verified token.

        Raises:
            Refusal: `token_bound`, `token_unbound`, `binding_mismatch`, `proof_invalid`, `nonce_required`.
        """
        token = None if self.proofs is None or check.authorization is None else by_dpop(check.authorization)
        if identity.binding is None:
            if token is not None:
                raise Refusal(Reason.TOKEN_UNBOUND, "the scheme is DPoP, and the token has no cnf")
            if identity.issuer in self._required:
                raise Refusal(Reason.TOKEN_UNBOUND, "this issuer's tokens must be bound")
            return _UNBOUND
        jkt, x5t = identity.binding
        if x5t and not check.certificate:
            raise Refusal(Reason.TOKEN_BOUND, "the client showed no certificate")
        if x5t and check.certificate != x5t:
            raise Refusal(Reason.BINDING_MISMATCH, "the client's certificate is another")
        keys = (f"x5t#S256:{x5t}",) if x5t else ()
        if not jkt:
            if token is not None:
                raise Refusal(Reason.TOKEN_UNBOUND, "the scheme is DPoP, and the token has no jkt")
            return Proven(keys)
        if self.proofs is None or token is None or check.proof is None:
            lacks = "the scheme DPoP" if token is None else "a proof"
            lacks = "[dpop] in the policy" if self.proofs is None else lacks
            raise Refusal(Reason.TOKEN_BOUND, f"a token with jkt, without {lacks}")
        if check.proof_count != 1:
            raise _invalid(f"{check.proof_count} proofs")
        proven = self.proofs.judge(check.proof, jkt, token, request, now)
        return proven._replace(keys=(f"jkt:{jkt}", *keys))


def by_dpop(authorization: str) -> bytes | None:
    """Return the credential of a DPoP header (RFC 9449 section 7.1); None for another scheme."""
    scheme, _, rest = authorization.strip(" \t").partition(" ")
    return rest.lstrip(" ").encode("utf-8", "replace") if scheme.lower() == "dpop" else None


class ProofRules:
    """The rules of `[dpop]`, compiled."""

    def __init__(self, dpop: Dpop, key: bytes) -> None:
        self._algorithms = frozenset(dpop.algorithms)
        self._origins = {_DEFAULT_PORT.sub("", origin): _host(origin[8:]) for origin in dpop.origins}
        self._max_age, self._leeway = dpop.max_age, dpop.leeway
        self._counted = dpop.replay == "proxy"
        self._window = dpop.nonce_lifetime if dpop.nonce else None
        self._key = hmac.digest(key, f"iamroles nonce {dpop.nonce_lifetime:g}".encode(), "sha256")

    def judge(self, proof: str, jkt: str, token: bytes, request: Request, now: float) -> Proven:
        """Judge the proof of a request with a verified token that is bound to `jkt`.

        Raises:
            Refusal: `proof_invalid`, `binding_mismatch`, `nonce_required`.
        """
        protected, body, seal = _parts(proof)
        header, claims, signature = _object(protected), _object(body), _octets(seal)
        alg, members = self._key_of(header)
        if thumbprint(dict(members)) != jkt:
            raise Refusal(Reason.BINDING_MISMATCH, "the proof's key is not that of the token's jkt")
        uri = self._check(claims, token, request, now)
        try:
            good = _verifier(alg, members)(signature, protected + b"." + body)
        except ValueError as error:
            raise _invalid(f"jwk: {error}") from None
        if not good:
            raise _invalid(f"the {alg} signature does not verify")
        nonce = "" if self._window is None else self._judge_nonce(claims.get("nonce"), now)
        use = _name(jkt, claims["jti"], request.method, uri) if self._counted else ""
        return Proven(use=use, nonce=nonce)

    def fresh(self, now: float) -> str:
        """Return a nonce of this window; "" if the policy wants none."""
        return "" if self._window is None else self._nonce(int(now // self._window))

    def _key_of(self, header: dict[str, Any]) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Return the algorithm, and the members of the key that make its thumbprint."""
        # A media type (RFC 7515 section 4.1.9): without case, and `application/` before it may be left out.
        if media(str(header.get("typ"))) != "dpop+jwt":
            raise _invalid("typ is not dpop+jwt")
        for name, why in FORBIDDEN:
            if name in header:
                raise _invalid(why)
        alg, jwk = header.get("alg"), header.get("jwk")
        if not isinstance(alg, str) or alg not in self._algorithms:
            raise _invalid("alg is not one of dpop.algorithms")
        if not isinstance(jwk, dict):
            raise _invalid("jwk is not an object")
        if problem := problem_of({name: value for name, value in jwk.items() if name != "kid"}):
            raise _invalid(f"jwk: {problem}")
        kty, row = jwk["kty"], ALGORITHMS[alg]
        if kty != row.kty or (row.curves and jwk["crv"] not in row.curves) or jwk.get("alg", alg) != alg:
            raise _invalid(f"jwk is not a key for {alg}")
        lengths = {name: len(_octets(jwk[name].encode("utf-8"))) and len(jwk[name]) for name in _numbers(kty)}
        if kty == "RSA":
            if jwk["e"] != "AQAB" or lengths["n"] not in _MODULUS:
                raise _invalid("jwk: RSA keys have 2048 to 4096 bits and the exponent 65537")
        elif set(lengths.values()) != {_COORDINATE.get(jwk["crv"])}:
            raise _invalid("jwk: another curve than P-256, P-384, P-521 and Ed25519, or not its coordinates")
        return alg, tuple((name, jwk[name]) for name in _MEMBERS[kty])

    def _check(self, claims: dict[str, Any], token: bytes, request: Request, now: float) -> str:
        """Judge the claims; return the normalised URI."""
        jti = claims.get("jti")
        if not isinstance(jti, str) or not 0 < len(jti.encode()) <= _MAX_JTI:
            raise _invalid(f"jti is not a text of 1 to {_MAX_JTI} bytes")
        if claims.get("htm") != request.method:
            raise _invalid("htm is not the method")
        uri = self._uri(claims.get("htu"), request)
        for name, past, ahead in (
            ("iat", self._max_age, self._leeway),
            ("exp", 0.0, inf),
            ("nbf", inf, self._leeway),
        ):
            found = claims.get(name, None if name == "iat" else now)
            if not isinstance(found, int | float) or isinstance(found, bool):
                raise _invalid(f"{name} is not a number")
            if not now - past <= found <= now + ahead:
                raise _invalid(f"{name} is too long ago or too far ahead")
        if claims.get("ath") != encode_base64url(sha256(token).digest()):
            raise _invalid("ath is not of this token")
        return uri

    def _uri(self, htu: object, request: Request) -> str:
        """Compare `htu` with the request, both normalised (RFC 3986 sections 6.2.2 and 6.2.3)."""
        found = _URI.match(htu) if isinstance(htu, str) and htu.isascii() else None
        if found is None:
            raise _invalid("htu is not a URI")
        origin = f"{found['scheme']}://{_host(found['authority'])}".lower()
        host = self._origins.get(origin)
        if host is None:
            raise _invalid("the origin of htu is not one of dpop.origins")
        if _host(lower_ascii(request.host)) != host:
            raise _invalid("the request's host is not that of htu")
        try:
            path = canonical(found["path"] or "/")
        except Refusal as refusal:
            raise _invalid(f"htu: {refusal.detail}") from None
        if path != request.path:
            raise _invalid("the path of htu is not the request's")
        return origin + path

    def _judge_nonce(self, nonce: object, now: float) -> str:
        """Return a fresh nonce if the client's is of the former window, else "".

        Raises:
            Refusal: `nonce_required`.
        """
        assert self._window is not None  # noqa: S101 - the caller looked
        window = int(now // self._window)
        given = nonce.encode("utf-8", "replace") if isinstance(nonce, str) else b""
        for age, later in ((0, ""), (1, self._nonce(window))):
            if hmac.compare_digest(given, self._nonce(window - age).encode()):
                return later
        raise Refusal(Reason.NONCE_REQUIRED, "an old nonce, or another gate's" if given else "no nonce")

    def _nonce(self, window: int) -> str:
        stamp = window.to_bytes(6, "big", signed=True)
        return encode_base64url(stamp + hmac.digest(self._key, stamp, "sha256")[:18])


def thumbprint(jwk: Mapping[str, str]) -> str:
    """Return the thumbprint of a public key (RFC 7638), as `jkt` has it; other members do not count."""
    text = json.dumps({name: jwk[name] for name in _MEMBERS[jwk["kty"]]}, separators=(",", ":"))
    return encode_base64url(sha256(text.encode()).digest())


@lru_cache(maxsize=1024)
def _verifier(alg: str, members: tuple[tuple[str, str], ...]) -> Verify:
    """Build the key of a proof; only a holder of a bound token gets here, with that token's key.

    Raises:
        ValueError: it is not a good key: a point that is not on its curve, too few bits.
    """
    return parse_key(dict(members)).verifier(alg)


def _numbers(kty: str) -> list[str]:
    return [name for name in _MEMBERS[kty] if name not in ("crv", "kty")]


def _host(authority: str) -> str:
    return _DEFAULT_PORT.sub("", authority)


def _parts(proof: str) -> list[bytes]:
    parts = proof.strip(" \t").encode("latin-1", "replace").split(b".", 3)
    if len(parts) != 3:
        raise _invalid("not a signed JWT: it has three parts")
    return parts


def _octets(text: bytes) -> bytes:
    try:
        return decode_base64url(text)
    except ValueError as error:
        raise _invalid(str(error)) from None


def _object(text: bytes) -> dict[str, Any]:
    try:
        return decode_object(_octets(text))
    except (ValueError, RecursionError) as error:
        raise _invalid(str(error) if type(error) is ValueError else "not UTF-8 JSON") from None


def _name(*texts: str) -> str:
    """Hash texts, each with its length before it."""
    digest = sha256()
    for text in texts:
        octets = text.encode()
        digest.update(len(octets).to_bytes(4, "big") + octets)
    return encode_base64url(digest.digest())


def _invalid(why: str) -> Refusal:
    return Refusal(Reason.PROOF_INVALID, why)
