"""Signing keys: RSA, elliptic curves, Edwards curves; their public JWK (RFC 7517, 7518, 8037)."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import itertools
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from iamroles_scenarios.jose.encoding import b64url, b64url_decode, b64url_uint, json_text

PrivateKey = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
)

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
CURVES: dict[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
    "secp256k1": ec.SECP256K1(),
}
_EC_CURVE = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "ES256K": "secp256k1"}
_ORDERS = {
    "P-256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "P-384": (1 << 384) - 0x389CB27E0BC8D220A7E5F24DB74F58851313E695333AD68D,
    "P-521": (1 << 521) - 0x5AE79787C40D069948033FEB708F65A2FC44A36477663B851449048E16EC79BF7,
    "secp256k1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
}
ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "ES256K", "EdDSA", "Ed25519"),
)


_EXPONENT = 65537
_BITS = 2048


def _rsa_key(e: int, d: int, p: int, q: int) -> rsa.RSAPrivateKey:
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q),
        rsa.RSAPublicNumbers(e, p * q),
    )  # fmt: skip
    # A key of the mock's own: to prove its primes takes longer than to make it.
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


class _RsaKeys:
    """RSA keys for tests, each with a modulus of its own.

    To find two primes takes 30 ms, and a run wants some hundred keys. So each pair of the primes found so far
    makes a key; two keys may have one in common. An attacker who computes that gets into nothing but a mock.
    """

    def __init__(self) -> None:
        self._primes: list[int] = []
        self._pairs: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def take(self) -> rsa.RSAPrivateKey:
        """A key that nobody else gets."""
        with self._lock:
            if not self._pairs:
                found = rsa.generate_private_key(_EXPONENT, _BITS)
                numbers = found.private_numbers()
                new = numbers.p, numbers.q
                self._pairs = list(itertools.product(self._primes, new))
                self._primes += new
                return found
            p, q = self._pairs.pop()
        return _rsa_key(_EXPONENT, pow(_EXPONENT, -1, math.lcm(p - 1, q - 1)), p, q)


_rsa_keys = _RsaKeys()


@dataclass(frozen=True, eq=False)
class SigningKey:
    """A private key with the kid and the algorithm it is published under."""

    kid: str
    algorithm: str
    """Its own JWS algorithm; `sign` may use another of the same family."""
    private: PrivateKey
    steady: bool = False
    """True if its ECDSA signatures of the same data are the same each time (RFC 6979)."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SigningKey) and self.public_jwk() == other.public_jwk()

    def __hash__(self) -> int:
        return hash((self.kid, self.algorithm))

    @classmethod
    def generate(
        cls, algorithm: str = "RS256", *, kid: str | None = None, bits: int = 2048, curve: str | None = None
    ) -> SigningKey:
        """Make a new key; without a kid it gets its RFC 7638 thumbprint.

        Args:
            algorithm: one of `ALGORITHMS`.
            kid: key id.
            bits: RSA modulus length; less than 2048 is a deliberate weakness (JWT-RSA-001).
            curve: another curve than the algorithm's own (a deliberate mismatch), or `Ed448`.
        """
        private: PrivateKey
        if algorithm[:2] in ("RS", "PS"):
            private = _rsa_keys.take() if bits == _BITS else rsa.generate_private_key(_EXPONENT, bits)
        elif algorithm in _EC_CURVE:
            private = ec.generate_private_key(CURVES[curve or _EC_CURVE[algorithm]])
        elif algorithm in ("EdDSA", "Ed25519"):
            private = (
                ed448.Ed448PrivateKey.generate() if curve == "Ed448" else ed25519.Ed25519PrivateKey.generate()
            )
        else:
            raise ValueError(f"unknown algorithm {algorithm!r}; known are {', '.join(ALGORITHMS)}")
        key = cls(kid or "", algorithm, private)
        return key if kid is not None else cls(key.thumbprint(), algorithm, private)

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> SigningKey:
        kid, algorithm, kty = str(jwk["kid"]), str(jwk["alg"]), jwk["kty"]
        if kty == "RSA":
            return cls(kid, algorithm, _rsa_key(*(_uint(jwk[name]) for name in "edpq")))
        if kty == "EC":
            return cls(kid, algorithm, ec.derive_private_key(_uint(jwk["d"]), CURVES[jwk["crv"]]))
        kind = ed448.Ed448PrivateKey if jwk["crv"] == "Ed448" else ed25519.Ed25519PrivateKey
        return cls(kid, algorithm, kind.from_private_bytes(b64url_decode(jwk["d"])))

    @property
    def curve(self) -> str:
        """JWK curve name; "" for RSA."""
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            return next(name for name, curve in CURVES.items() if curve.name == self.private.curve.name)
        if isinstance(self.private, rsa.RSAPrivateKey):
            return ""
        return "Ed448" if isinstance(self.private, ed448.Ed448PrivateKey) else "Ed25519"

    @property
    def order(self) -> int:
        """Order of the curve's base point (ECDSA only)."""
        return _ORDERS[self.curve]

    def can(self, algorithm: str) -> bool:
        """Return whether the key is able to make a signature of this algorithm."""
        if isinstance(self.private, rsa.RSAPrivateKey):
            return algorithm[:2] in ("RS", "PS") and algorithm[2:] in _HASHES
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            return _EC_CURVE.get(algorithm) == self.curve
        return algorithm in ("EdDSA", self.curve)  # RFC 9864: the curve in the algorithm's name

    def sign(self, data: bytes, algorithm: str | None = None) -> bytes:
        """JWS signature octets; ECDSA as raw R||S of exact length (RFC 7518 section 3.4).

        An EC key signs by the hash of each algorithm of ECDSA, also if that names another curve.
        """
        if not algorithm or not (self.can(algorithm) or {algorithm, self.algorithm} <= _EC_CURVE.keys()):
            algorithm = self.algorithm
        if isinstance(self.private, rsa.RSAPrivateKey):
            digest = _HASHES[algorithm[2:]]
            if algorithm.startswith("PS"):
                pss = padding.PSS(mgf=padding.MGF1(digest), salt_length=padding.PSS.DIGEST_LENGTH)
                return self.private.sign(data, pss, digest)
            return self.private.sign(data, padding.PKCS1v15(), digest)
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            scheme = ec.ECDSA(_HASHES[algorithm[2:5]], deterministic_signing=self.steady)
            r, s = decode_dss_signature(self.private.sign(data, scheme))
            size = (self.private.key_size + 7) // 8
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")
        return self.private.sign(data)

    def public_jwk(self, **members: object) -> dict[str, Any]:
        """The JWK as an issuer publishes it: kid, alg, use and the public members, then `members`."""
        return {"kid": self.kid, "alg": self.algorithm, "use": "sig", **self._public_members(), **members}

    def private_jwk(self) -> dict[str, Any]:
        """The JWK with its private members: how keys travel to the suite, and a poison in a JWKS."""
        private = self.private
        if isinstance(private, rsa.RSAPrivateKey):
            numbers = private.private_numbers()
            secret = {name: b64url_uint(getattr(numbers, name)) for name in "dpq"}
            return self.public_jwk(**secret)
        if isinstance(private, ec.EllipticCurvePrivateKey):
            size = (private.key_size + 7) // 8
            return self.public_jwk(d=b64url_uint(private.private_numbers().private_value, size))
        return self.public_jwk(d=b64url(private.private_bytes_raw()))

    def thumbprint(self) -> str:
        """RFC 7638 thumbprint, SHA-256."""
        text = json_text(dict(sorted(self._public_members().items())))
        return b64url(hashlib.sha256(text.encode()).digest())

    def public_pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM: the "secret" of an RS/HS confusion."""
        return self._public_bytes(serialization.Encoding.PEM)

    def public_der(self) -> bytes:
        return self._public_bytes(serialization.Encoding.DER)

    def certificate(self) -> bytes:
        """A self-signed certificate in DER, for `x5c`."""
        return _certificate(self)

    def _public_bytes(self, encoding: serialization.Encoding) -> bytes:
        return self.private.public_key().public_bytes(
            encoding, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def _public_members(self) -> dict[str, Any]:
        private = self.private
        if isinstance(private, rsa.RSAPrivateKey):
            public = private.public_key().public_numbers()
            return {"kty": "RSA", "n": b64url_uint(public.n), "e": b64url_uint(public.e)}
        if isinstance(private, ec.EllipticCurvePrivateKey):
            size, point = (private.key_size + 7) // 8, private.public_key().public_numbers()
            x, y = b64url_uint(point.x, size), b64url_uint(point.y, size)
            return {"kty": "EC", "crv": self.curve, "x": x, "y": y}
        return {"kty": "OKP", "crv": self.curve, "x": b64url(private.public_key().public_bytes_raw())}


def _uint(text: str) -> int:
    return int.from_bytes(b64url_decode(text), "big")


@functools.lru_cache(maxsize=64)
def _certificate(key: SigningKey) -> bytes:
    builder = certificate_of(key.private.public_key(), "iamroles suite", "iamroles suite")
    edwards = isinstance(key.private, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    certificate = builder.sign(key.private, None if edwards else hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.DER)


def certificate_of(
    public: CertificatePublicKeyTypes, subject: str, issuer: str, days: tuple[int, int] = (-1, 30)
) -> x509.CertificateBuilder:
    """Begin a certificate by its subject, its issuer, and the days from now in which it is good."""
    subject_name, issuer_name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer)
    )
    first, last = (dt.datetime.now(dt.UTC) + dt.timedelta(days=day) for day in days)
    builder = x509.CertificateBuilder(issuer_name, subject_name, public, x509.random_serial_number())
    return builder.not_valid_before(first).not_valid_after(last)
