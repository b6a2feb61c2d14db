"""Signature algorithms, public keys, and the reading of a JWK set.

The table of algorithms is closed and has asymmetric algorithms only. `none` and HMAC are absent rather than
forbidden, so that no configuration can switch them on (JWT-ALG-002): an HMAC keyed with a public key would
let anyone sign. A key set is read with suspicion: unusable keys are dropped, a contradictory set is refused,
and the last good set stays in force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from iamroles_agent.base.encoding import decode_base64url

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192
MAX_KEYS = 100
"""Most keys of a set; a larger set is refused."""

Verify = Callable[[bytes, bytes], bool]
"""`(signature, signing input) -> good`."""
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey

_LONGEST_KID = 256


def kid_allowed(kid: object) -> bool:
    """Return whether a `kid` is a string (RFC 7515 section 4.1.4) of 1 to 256 characters (JWT-KID-001)."""
    return isinstance(kid, str) and 1 <= len(kid) <= _LONGEST_KID


def _holds(check: Callable[..., None], *arguments: Any) -> bool:  # noqa: ANN401 - bytes, padding, hash
    try:
        check(*arguments)
    except InvalidSignature:
        return False
    return True


def _pss(digest: HashAlgorithm) -> padding.AsymmetricPadding:
    # RFC 7518 section 3.5: the salt is as long as the hash, MGF1 over the same hash.
    return padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)


def _rsa(chosen: padding.AsymmetricPadding, digest: HashAlgorithm) -> Any:  # noqa: ANN401
    def bind(key: rsa.RSAPublicKey) -> Verify:
        check, length = key.verify, (key.key_size + 7) // 8

        def verify(signature: bytes, data: bytes) -> bool:
            return len(signature) == length and _holds(check, signature, data, chosen, digest)

        return verify

    return bind


def _ecdsa(digest: HashAlgorithm) -> Any:  # noqa: ANN401
    scheme = ec.ECDSA(digest)

    def bind(key: ec.EllipticCurvePublicKey) -> Verify:
        check, half = key.verify, (key.key_size + 7) // 8

        def verify(signature: bytes, data: bytes) -> bool:
            # RFC 7518 section 3.4: R || S, each of the curve's exact length; so DER never fits, and zero (the
            # "psychic signature", CVE-2022-21449) is refused before any arithmetic.
            if len(signature) != 2 * half:
                return False
            r, s = int.from_bytes(signature[:half]), int.from_bytes(signature[half:])
            return r != 0 and s != 0 and _holds(check, encode_dss_signature(r, s), data, scheme)

        return verify

    return bind


def _eddsa(key: ed25519.Ed25519PublicKey | ed448.Ed448PublicKey) -> Verify:
    return partial(_holds, key.verify)


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One row of the closed table: its keys, and its verification."""

    kty: str
    curves: tuple[str, ...]
    bind: Callable[[Any], Verify]


ALGORITHMS: dict[str, Algorithm] = {
    "RS256": Algorithm("RSA", (), _rsa(padding.PKCS1v15(), SHA256())),
    "RS384": Algorithm("RSA", (), _rsa(padding.PKCS1v15(), SHA384())),
    "RS512": Algorithm("RSA", (), _rsa(padding.PKCS1v15(), SHA512())),
    "PS256": Algorithm("RSA", (), _rsa(_pss(SHA256()), SHA256())),
    "PS384": Algorithm("RSA", (), _rsa(_pss(SHA384()), SHA384())),
    "PS512": Algorithm("RSA", (), _rsa(_pss(SHA512()), SHA512())),
    "ES256": Algorithm("EC", ("P-256",), _ecdsa(SHA256())),
    "ES384": Algorithm("EC", ("P-384",), _ecdsa(SHA384())),
    "ES512": Algorithm("EC", ("P-521",), _ecdsa(SHA512())),
    "EdDSA": Algorithm("OKP", ("Ed25519", "Ed448"), _eddsa),
    "Ed25519": Algorithm("OKP", ("Ed25519",), _eddsa),  # RFC 9864: the same signature, named by its curve
}
"""Every `alg` that an issuer may be configured with."""

_SHAPES = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_PRIVATE = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth", "k"))


class KeySetError(ValueError):
    """A JWK set that must not be used; the last good set stays in force."""


@dataclass(slots=True, eq=False)
class Key:
    """A public key of an issuer.

    `live` becomes false, for good, when the issuer's set loses or changes the key, or grows too stale. Caches
    of anything that the key proved check this flag, so a removal needs no search through them.
    """

    kid: str | None
    kty: str
    crv: str
    alg: str | None
    public: PublicKey
    material: tuple[str, ...]
    """The public members: keys with the same members and the same `alg` are the same key."""
    live: bool = True
    number: int = field(init=False, default_factory=count(1).__next__, repr=False)
    """Unique among all keys of this process."""
    _verifiers: dict[str, Verify] = field(default_factory=dict, repr=False)

    def fits(self, alg: str) -> bool:
        """Return whether the key may verify `alg`, by its type, its curve, and its own `alg` if any."""
        row = ALGORITHMS[alg]
        return (
            self.kty == row.kty
            and (not row.curves or self.crv in row.curves)
            and (self.alg is None or self.alg == alg or (self.alg == "EdDSA" and alg == "Ed25519"))
        )

    def verifier(self, alg: str) -> Verify:
        """Return the verification for an `alg` that fits; it is built once."""
        verify = self._verifiers.get(alg)
        if verify is None:
            verify = self._verifiers[alg] = ALGORITHMS[alg].bind(self.public)
        return verify


def problem_of(jwk: dict[str, Any]) -> str:
    """Return why a JWK is dropped, or ""."""
    kty = jwk.get("kty")
    if not isinstance(kty, str) or kty not in _SHAPES:
        return "its kty is unknown"
    if jwk.get("use", "sig") != "sig":
        return "its use is not sig"
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return "its key_ops lack verify"
    if not _PRIVATE.isdisjoint(jwk):
        return "it publishes private members: every reader can sign"
    alg = jwk.get("alg")
    if alg is not None and (not isinstance(alg, str) or alg not in ALGORITHMS):
        return "its alg is not supported"
    if "kid" in jwk and not kid_allowed(jwk["kid"]):
        return "its kid is not a string of 1 to 256 characters"
    for name in _SHAPES[kty]:
        if not isinstance(jwk.get(name), str):
            return f"its {name!r} is missing or not a string"
    return ""


def parse_key(jwk: dict[str, Any]) -> Key:
    """Read one public JWK (RFC 7517, 7518 section 6, 8037 section 2).

    Raises:
        ValueError: it cannot verify signatures here.
    """
    if problem := problem_of(jwk):
        raise ValueError(problem)
    kty, names = jwk["kty"], _SHAPES[jwk["kty"]]
    public_members = {"kty": kty} | {name: jwk[name] for name in names}
    for name in names:
        if name != "crv":
            decode_base64url(jwk[name].encode("ascii", "replace"))
    try:
        public = _load(kty, public_members)
    except (jwt.InvalidKeyError, ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"not a good {kty} key ({type(error).__name__})") from None
    if isinstance(public, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= public.key_size <= MAX_RSA_BITS:
            raise ValueError(f"RSA of {public.key_size} bits: {MIN_RSA_BITS} to {MAX_RSA_BITS} are accepted")
        if public.public_numbers().e.bit_length() > 32:
            raise ValueError("an RSA exponent above 32 bits")
    material = tuple(public_members.values())
    key = Key(jwk.get("kid"), kty, jwk.get("crv", ""), jwk.get("alg"), public, material)
    if not any(key.fits(alg) for alg in ALGORITHMS):
        raise ValueError("no supported algorithm takes its type, curve and alg")
    return key


def _load(kty: str, members: dict[str, str]) -> PublicKey:
    loader = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}[kty]
    public = loader.from_jwk(members)  # type: ignore[attr-defined]
    if not isinstance(
        public, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey
    ):
        raise ValueError("not a public signature key")
    return public


class KeySet:
    """The usable keys of a JWK set; immutable except for `Key.live`."""

    def __init__(self, keys: list[Key], dropped: tuple[str, ...] = ()) -> None:
        self._keys = tuple(keys)
        self._by_kid: dict[str, list[Key]] = {}
        for key in keys:
            if key.kid is not None:
                self._by_kid.setdefault(key.kid, []).append(key)
        self._found: dict[tuple[str | None, str], Key] = {}
        self.dropped = dropped
        """Why keys of the document were dropped, one sentence each."""

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, kid: object) -> bool:
        return kid in self._by_kid

    def find(self, kid: str | None, alg: str) -> Key | None:
        """Return the only key that fits `alg` and has that `kid`, or fits `alg` if the token has no `kid`."""
        found = self._found.get((kid, alg))
        if found is None:
            named = self._keys if kid is None else self._by_kid.get(kid, ())
            fitting = [key for key in named if key.fits(alg)]
            if len(fitting) != 1:
                return None  # not cached: a stranger may use any kid
            found = self._found[kid, alg] = fitting[0]
        return found

    @classmethod
    def parse(cls, document: dict[str, Any], previous: KeySet | None = None) -> KeySet:
        """Read a JWK set (RFC 7517 section 5) by the rules above.

        Unchanged keys of `previous`, the set in force, keep their object, so that what they proved stays
        cached.

        Raises:
            KeySetError: not a set, too many keys, a `kid` twice for one `kty` (keys of different types may
                share one, RFC 7517 section 4.5), or a symmetric key among them.
        """
        entries = document.get("keys")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise KeySetError("`keys` is not an array of objects")
        if len(entries) > MAX_KEYS:
            raise KeySetError(f"{len(entries)} keys: at most {MAX_KEYS} are accepted")
        if any(entry.get("kty") == "oct" for entry in entries):
            raise KeySetError("a symmetric key is published: the set cannot be trusted")
        kids = [
            (entry["kid"], str(entry.get("kty"))) for entry in entries if isinstance(entry.get("kid"), str)
        ]
        if len(set(kids)) != len(kids):
            raise KeySetError("two keys of the same type have the same kid")
        keys, dropped = [], []
        for index, entry in enumerate(entries):
            try:
                key = parse_key(entry)
            except ValueError as error:
                dropped.append(f"keys[{index}] dropped: {error}")
                continue
            keys.append(previous._kept(key) if previous else key)  # noqa: SLF001 - its own class
        return cls(keys, tuple(dropped))

    def revived(self) -> KeySet:
        """Return copies of the keys: what a dead key proved stays unproved."""
        return KeySet([replace(key, live=True) for key in self._keys], self.dropped)

    def _kept(self, key: Key) -> Key:
        for old in self._keys:
            if old.live and (old.kid, old.alg, old.material) == (key.kid, key.alg, key.material):
                return old
        return key
