"""Every algorithm's signature in other octets: longer, shorter, out of range, made by a neighbouring scheme.

RFC 7518 section 3.4 and RFC 8017 sections 8.1.2 and 8.2.2 give a signature one length; libraries strip, pad
and take DER. A form that is lawful and rare (a leading zero octet, `n - s` in place of `s`) must pass: an
agent that reads numbers and not octets refuses one token in 256.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from iamroles_scenarios.checks.derived.issuers import NEEDED, OPTIONAL, entry, keys_of_all
from iamroles_scenarios.checks.derived.world import derived, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.answers import ALLOW, refusal
from iamroles_scenarios.engine.bench import SpopQuestion
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose import SigningKey, mint
from iamroles_scenarios.jose.encoding import b64url

_URL = "https://signatures.kiosk.example"
_INVALID = refusal("signature_invalid", "token_malformed")
_HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_EDWARDS = (1 << 252) + 27742317777372353535851937790883648493
"""The order of Ed25519's base point (RFC 8032 section 5.1)."""
_TRIES = 8000
"""Signatures until one begins with a zero octet; one in 256 does."""
Form = tuple[str, bytes, bool]
"""Its words for a failure, the octets, and whether it verifies."""


def forms(key: SigningKey, alg: str, data: bytes) -> Iterator[Form]:
    """Yield the sound signature of some data, and all others, sound or not."""
    sound = key.sign(data, alg)
    yield "sound", sound, True
    yield "with a zero octet before", b"\0" + sound, False
    yield "with a zero octet behind", sound + b"\0", False
    yield "without the first octet", sound[1:], False
    yield "without the last octet", sound[:-1], False
    yield "twice", sound * 2, False
    yield "of zero octets", bytes(len(sound)), False
    yield from {"R": _rsa, "P": _rsa, "E": _pair}[alg[0]](key, alg, data, sound)


def _pair(key: SigningKey, alg: str, _data: bytes, sound: bytes) -> Iterator[Form]:
    """Yield the forms of a pair: R and S of ECDSA, big-endian, or of Ed25519, little-endian."""
    half = len(sound) // 2
    first, second = sound[:half], sound[half:]
    yield "with a zero octet between the halves", first + b"\0" + second, False
    yield "with a zero octet before each half", b"\0" + first + b"\0" + second, False
    yield "with a zero octet behind each half", first + b"\0" + second + b"\0", False
    if alg.startswith("Ed"):
        above = (int.from_bytes(second, "little") + _EDWARDS).to_bytes(half, "little")
        yield "with S + L (RFC 8032 section 5.1.7)", first + above, False
        return
    r, s = int.from_bytes(first, "big"), int.from_bytes(second, "big")
    yield "with n - s in place of s", first + (key.order - s).to_bytes(half, "big"), True
    yield "as DER", encode_dss_signature(r, s), False
    yield "with s = n", first + key.order.to_bytes(half, "big"), False
    yield "with r = 0", bytes(half) + second, False
    yield "with s = 0", first + bytes(half), False
    for what, numbers in (("r + n", (r + key.order, s)), ("s + n", (r, s + key.order))):
        if max(numbers) < 1 << 8 * half:  # on P-521 always
            yield f"with {what}", b"".join(each.to_bytes(half, "big") for each in numbers), False


def _rsa(key: SigningKey, alg: str, data: bytes, sound: bytes) -> Iterator[Form]:
    assert isinstance(key.private, rsa.RSAPrivateKey)  # noqa: S101 - the algorithm says so
    digest, sign = _HASHES[alg[2:]], key.private.sign
    other = _HASHES["512" if alg[2:] == "256" else "256"]
    above = int.from_bytes(sound, "big") + key.private.public_key().public_numbers().n
    if above < 1 << 8 * len(sound):
        yield "plus n (RFC 8017 section 5.2.2)", above.to_bytes(len(sound), "big"), False
    if alg.startswith("RS"):
        pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
        yield "by PSS", sign(data, pss, digest), False
        yield f"over {other.name}", sign(data, padding.PKCS1v15(), other), False
        return
    yield "by PKCS #1 v1.5", sign(data, padding.PKCS1v15(), digest), False
    masked = sign(data, padding.PSS(padding.MGF1(other), digest.digest_size), digest)
    yield "with another hash for the mask", masked, False
    for salt in (0, 20, digest.digest_size - 1, digest.digest_size + 1, len(sound) - digest.digest_size - 2):
        pss = padding.PSS(padding.MGF1(digest), salt)
        yield f"with a salt of {salt} octets", sign(data, pss, digest), salt == digest.digest_size


def _rare(key: SigningKey, alg: str) -> Iterator[tuple[str, str, bool]]:
    """Yield tokens whose signature, or its second half, begins with a zero octet, and without that octet."""
    if alg.startswith("Ed") or (alg[:2] in ("RS", "PS") and alg[2:] != "256"):
        return  # EdDSA has no numbers in front; RSA is slow, and its hashes share what reads the octets
    starts = (0,) if alg[0] in "RP" else (0, len(key.sign(b"", alg)) // 2)
    for start in starts:
        for number in itertools.islice(itertools.count(), _TRIES):
            data = _data(key, alg, f"rare{number}")
            octets = key.sign(data.encode(), alg)
            if not octets[start]:
                where = "S" if start else "it"
                yield f"where {where} begins with a zero octet", f"{data}.{b64url(octets)}", True
                short = octets[:start] + octets[start + 1 :]
                yield f"where {where} lacks its zero octet", f"{data}.{b64url(short)}", False
                break


def _data(key: SigningKey, alg: str, sub: str) -> str:
    """Return header and payload of a token."""
    said = {"roles": ["kiosk"], "alg": alg, "sub": sub, "signature": "text:"}
    return mint(said, [key], time.time(), _URL).removesuffix(".")


@check("identity.derived.signatures", "DERIVED-SIGNATURE-001", features={"oidc", "reload"})
def signatures(target: Target) -> str:
    """A signature has one length and one form for each algorithm, and its rare sound forms pass.

    All algorithms that the agent has, in one policy.
    """
    with derived(target, "identity.derived.signatures") as here:
        issuer = here.issuer("signatures")
        keys = keys_of_all(issuer)
        base = here.loan.policy

        def policy(*names: str) -> dict[str, object]:
            own = entry(0, issuer=_URL, jwks_uri=f"{issuer.url}/jwks", algorithms=names)
            return {**base, "issuers": [*base["issuers"], own]}

        offered: tuple[str, ...] = (*NEEDED, *OPTIONAL)
        if not here.reload(policy(*offered)).get("reloaded"):
            offered = tuple(one for one in offered if here.reload(policy(one)).get("reloaded"))
            here.must_reload(policy(*offered), "algorithms that it took one by one")
        asked = []
        for name in offered:
            key = keys.get(name, keys["RSA"])
            data = _data(key, name, "alice")
            told = [
                (what, f"{data}.{b64url(each)}", good) for what, each, good in forms(key, name, data.encode())
            ]
            asked += [
                SpopQuestion(f"a signature by {name} {what}", iam_check(token), ALLOW if good else _INVALID)
                for what, token, good in (*told, *_rare(key, name))
            ]
        here.wait_for_keys(asked[:1])
        here.ask_all(asked)
    return f"{here.asked} questions about {len(offered)} algorithms"
