"""From a recipe to a compact token. The table of keys is in the package's docstring.

The order of work is the order of the table: claims, header, key, bytes. Broken things are made by changing
the finished sound thing as late as possible, so that a token has one flaw, not several.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from iamroles_scenarios.base.durations import seconds
from iamroles_scenarios.base.errors import RecipeError
from iamroles_scenarios.base.sent import note_token
from iamroles_scenarios.jose import broken, shapes
from iamroles_scenarios.jose import encoding as encodings
from iamroles_scenarios.jose.encoding import Json, b64url, json_text, members_of, nested_list, object_text
from iamroles_scenarios.jose.keys import ALGORITHMS, SigningKey
from iamroles_scenarios.jose.shapes import DEFAULT_AUDIENCE, SHAPES, Shape, Subject, iso, role_arn

Recipe = Mapping[str, Any]

_TIMES = ("exp", "nbf", "iat", "auth_time")
_WORDS = frozenset(
    {
        *("issuer", "signer", "shape", "base", "roles", "preferred_role"),
        *("account", "sub", "aud", "iss", "scope"),
        *("claims", "merge", "drop", "raw", "duplicate", "depth", "size", *_TIMES),
        *("key", "alg", "kid", "typ", "header", "drop_header", "raw_header_member", "duplicate_header"),
        *("header_depth", "embed", "confusion", "unencoded", "deflate", "nested"),
        *("raw_payload", "raw_header", "signature", "encoding"),
        *("segments", "jwe", "prefix", "suffix", "text"),
    }
)


class Signer(Protocol):
    """An issuer as minting needs it; `mock.clients.IssuerHandle` is one."""

    @property
    def url(self) -> str:
        """The `iss` of its tokens."""

    @property
    def keys(self) -> Sequence[SigningKey]:
        """Its signing keys, the current one first."""

    @property
    def shape(self) -> str:
        """The shape of its tokens."""


def mint(
    recipe: Recipe,
    keys: Sequence[SigningKey],
    now: float,
    issuer_url: str,
    *,
    urls: Mapping[str, str] | None = None,
) -> str:
    """Make a token.

    Args:
        recipe: see the package's docstring.
        keys: the issuer's keys; the first that fits signs.
        now: epoch seconds, the zero of all durations.
        issuer_url: `iss`, and `{issuer}` in header strings.
        urls: URLs of other issuers, for `{url:name}` in header strings.

    Returns:
        The compact serialisation, or what the recipe makes of it.

    Raises:
        RecipeError: an unknown key or word.
    """
    if unknown := sorted(set(recipe) - _WORDS):
        raise RecipeError(f"unknown recipe keys {', '.join(unknown)}; known are {', '.join(sorted(_WORDS))}")
    try:
        return note_token(_Minting(recipe, keys, now, issuer_url, urls or {}).token())
    except RecipeError:
        raise
    except (ValueError, KeyError) as fault:
        raise RecipeError(f"recipe {dict(recipe)!r}: {fault}. Verbatim text belongs under `raw`.") from fault


def mint_for(recipe: Recipe, issuers: Mapping[str, Signer], now: float, *, default: str | None = None) -> str:
    """Make a token of the issuer that the recipe names (`issuer`, `signer`), by name in `issuers`.

    Raises:
        RecipeError: as `mint`; or no such issuer.
    """
    name = recipe.get("issuer", default or next(iter(issuers), ""))
    signer = recipe.get("signer", name)
    for wanted in (name, signer):
        if wanted not in issuers:
            raise RecipeError(f"no issuer named {wanted!r}; there are {', '.join(issuers) or 'none'}")
    full = {"shape": issuers[name].shape, **recipe}
    urls = {known: issuer.url for known, issuer in issuers.items()}
    return mint(full, issuers[signer].keys, now, issuers[name].url, urls=urls)


@functools.lru_cache(maxsize=32)
def _stranger(algorithm: str, curve: str) -> SigningKey:
    """A key nobody publishes; one per algorithm and process, because RSA keys are slow to make."""
    return SigningKey.generate(algorithm, kid="stranger", curve="Ed448" if curve == "Ed448" else None)


@dataclass
class _Minting:
    """One token in the making."""

    recipe: Recipe
    keys: Sequence[SigningKey]
    now: float
    issuer_url: str
    urls: Mapping[str, str]

    def token(self) -> str:
        recipe = self.recipe
        if "text" in recipe:
            return str(recipe["text"])
        key, kid = self._key()
        if recipe.get("jwe"):
            token = broken.jwe(self._payload_text(0).encode(), key)
        elif recipe.get("nested"):
            inner = self._compact(key, kid, 0)
            token = self._assemble(self._header(key, kid) | {"cty": "JWT"}, inner.encode(), key)
        else:
            token = self._padded(key, kid)
        return f"{recipe.get('prefix', '')}{token}{recipe.get('suffix', '')}"

    # claims

    def _time(self, value: Json) -> Json:
        return int(self.now + seconds(value)) if isinstance(value, str) else value

    def _shape(self) -> Shape:
        name = self.recipe.get("shape", "generic")
        if name not in SHAPES:
            raise RecipeError(f"unknown shape {name!r}; known are {', '.join(SHAPES)}")
        return SHAPES[name]

    def _subject(self) -> Subject:
        recipe = self.recipe
        account = recipe.get("account", shapes.DEFAULT_ACCOUNT)
        preferred = recipe.get("preferred_role")
        return Subject(
            sub=recipe.get("sub", "alice"),
            audience=recipe.get("aud", DEFAULT_AUDIENCE),
            account=account,
            roles=[role_arn(role, account) for role in recipe.get("roles", [])],
            preferred_role=None if preferred is None else role_arn(preferred, account),
            scope=recipe.get("scope"),
            now=int(self.now),
        )

    def _base(self) -> dict[str, Any]:
        base, now = self.recipe.get("base", "valid"), int(self.now)
        if base == "empty":
            return {}
        if base != "valid":
            raise RecipeError(f"unknown base {base!r}; known are valid, empty")
        claims = {"iss": self.issuer_url, **self._shape().claims(self._subject())}
        return claims | {"iat": now, "nbf": now, "exp": now + 300, "jti": str(uuid.uuid4())}

    def _claims(self) -> dict[str, Any]:
        recipe, claims = self.recipe, self._base()
        if "iss" in recipe:
            claims["iss"] = self._located(recipe["iss"])
        claims.update({name: self._time(recipe[name]) for name in _TIMES if name in recipe})
        claims.update({name: self._timed(value) for name, value in recipe.get("claims", {}).items()})
        _merge(claims, self._timed(recipe.get("merge", {})))
        for path in recipe.get("drop", []):
            _drop(claims, [path] if isinstance(path, str) else list(path))
        return claims

    def _members(self, table: dict[str, Any], raw: str, duplicate: str, depth: str) -> encodings.Members:
        recipe, members = self.recipe, members_of(table)
        for name, text in recipe.get(raw, {}).items():
            members = [member for member in members if member[0] != name] + [(name, self._at(text))]
        for name, values in recipe.get(duplicate, {}).items():
            timed = [self._time(value) if name in _TIMES else value for value in values]
            members = [member for member in members if member[0] != name]
            members += [(name, json_text(value)) for value in timed]
        if depth in recipe:
            members.append(("deep", nested_list(recipe[depth])))
        return members

    def _timed(self, value: Json) -> Json:
        """`{now+60}` becomes a number, `{iso+60}` an instant, wherever they are a whole string."""
        if isinstance(value, Mapping):
            return {name: self._timed(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self._timed(each) for each in value]
        match = re.fullmatch(r"\{(now|iso)([+-]\d+)?\}", value) if isinstance(value, str) else None
        if match is None:
            return value
        epoch = int(self.now) + int(match[2] or 0)
        return epoch if match[1] == "now" else iso(epoch)

    def _at(self, text: str) -> str:
        many = {"lists": "[]", "objects": "{}"}
        text = re.sub(r"\{(\d+) (lists|objects)\}", lambda n: ",".join([many[n[2]]] * int(n[1])), text)
        return re.sub(r"\{now([+-]\d+)?\}", lambda found: str(int(self.now) + int(found[1] or 0)), text)

    def _payload_text(self, padding: int) -> str:
        if "raw_payload" in self.recipe:
            return self._at(self.recipe["raw_payload"])
        members = self._members(self._claims(), "raw", "duplicate", "depth")
        if padding:
            members.append(("pad", json_text("x" * padding)))
        return object_text(members)

    # header and key

    def _key(self) -> tuple[SigningKey, str]:
        """The key that signs, and the kid it is announced under."""
        word, published = self.recipe.get("key"), self._published()
        if word == "other":
            return _stranger(published.algorithm, published.curve), published.kid
        if word == "unknown-kid":
            return _stranger(published.algorithm, published.curve), f"unknown-{secrets.token_hex(8)}"
        if word == "wrong-kid":
            other = next((key for key in self.keys if key.kid != published.kid), None)
            if other is None:
                raise RecipeError("wrong-kid needs an issuer with two keys")
            return published, other.kid
        return published, published.kid

    def _published(self) -> SigningKey:
        word, algorithm = self.recipe.get("key"), self.recipe.get("alg")
        if not self.keys:
            raise RecipeError("the issuer has no key to sign with; give it one, or a `signer`")
        if word not in (None, "other", "unknown-kid", "wrong-kid"):
            fitting = [key for key in self.keys if key.kid == word] or [
                key for key in self.keys if key.algorithm == word
            ]
            if not fitting:
                known = ", ".join(f"{key.kid} ({key.algorithm})" for key in self.keys)
                raise RecipeError(f"no key {word!r}; the issuer has {known}")
            return fitting[0]
        able = [key for key in self.keys if key.algorithm == algorithm] or [
            key for key in self.keys if algorithm in ALGORITHMS and key.can(str(algorithm))
        ]
        return (able or list(self.keys))[0]

    def _header(self, key: SigningKey, kid: str) -> dict[str, Any]:
        recipe = self.recipe
        header: dict[str, Any] = {"alg": recipe.get("alg", key.algorithm), "kid": recipe.get("kid", kid)}
        typ = recipe.get("typ", self._shape().typ)
        if typ is not None:
            header["typ"] = typ
        if "confusion" in recipe:
            header["alg"] = broken.confusion(recipe["confusion"], key)[0]
        if recipe.get("unencoded"):
            header |= {"b64": False, "crit": ["b64"]}
        if recipe.get("deflate"):
            header["zip"] = "DEF"
        embed = recipe.get("embed", [])
        for name in [embed] if isinstance(embed, str) else embed:
            header[name] = _embedded(name, key)
        header.update({name: self._located(value) for name, value in recipe.get("header", {}).items()})
        for name in recipe.get("drop_header", []):
            header.pop(name, None)
        return header

    def _located(self, value: Json) -> Json:
        if not isinstance(value, str):
            return value
        value = value.replace("{issuer}", self.issuer_url)
        return re.sub(r"\{url:([^}]+)\}", lambda found: self.urls[found[1]], value)

    # bytes

    def _padded(self, key: SigningKey, kid: str) -> str:
        token, size = self._compact(key, kid), self.recipe.get("size", 0)
        # Unpadded base64url never has 4n + 1 characters: then the header is longer too.
        for longer in range(3) if len(token) < size else ():
            least = (size - len(self._compact(key, kid, 1, longer))) * 3 // 4 + 1
            for padding in (max(1, least), max(1, least) + 1):
                token = self._compact(key, kid, padding, longer)
                if len(token) == size:
                    return token
        return token

    def _compact(self, key: SigningKey, kid: str, padding: int = 0, longer: int = 0) -> str:
        payload = self._octets("payload", self._payload_text(padding))
        if self.recipe.get("deflate"):
            payload = broken.deflate(payload)
        beside = {"pad": "x" * longer} if longer else {}
        return self._assemble(self._header(key, kid) | beside, payload, key)

    def _encoding(self, segment: str) -> str:
        encoding = self.recipe.get("encoding", {})
        table = {"payload": encoding} if isinstance(encoding, str) else encoding
        if unknown := set(table) - {"header", "payload", "signature"}:
            raise RecipeError(
                f"encoding of {', '.join(sorted(unknown))}; segments are header, payload, signature"
            )
        word = str(table.get(segment, ""))
        if word and word not in broken.SEGMENTS and (word not in broken.TEXTS or segment == "signature"):
            known = ", ".join([*broken.SEGMENTS, *broken.TEXTS])
            raise RecipeError(f"unknown encoding {word!r} of the {segment}; known are {known}")
        return word

    def _octets(self, segment: str, text: str) -> bytes:
        word = self._encoding(segment)
        if word == "standard" and text.endswith("}"):  # so that there is a + and a / to be seen
            text = text[:-1] + ',"note":"' + "\\u003f" + "???>>>~~~" * 3 + '"}'
        if word == "noncanonical" and text.endswith("}"):  # white space is free: leave unused bits
            text = text[:-1] + " " * (len(text.encode()) % 3 == 0) + "}"
        return broken.TEXTS[word](text) if word in broken.TEXTS else text.encode()

    def _segment(self, segment: str, octets: bytes) -> str:
        text, word = b64url(octets), self._encoding(segment)
        return broken.SEGMENTS[word](text) if word in broken.SEGMENTS else text

    def _assemble(self, header: dict[str, Any], payload: bytes, key: SigningKey) -> str:
        members = self._members(header, "raw_header_member", "duplicate_header", "header_depth")
        text = self.recipe.get("raw_header", object_text(members))
        head = self._segment("header", self._octets("header", text))
        body = payload.decode() if self.recipe.get("unencoded") else self._segment("payload", payload)
        tail = self._signature(f"{head}.{body}".encode(), key)
        segments = self.recipe.get("segments", 3)
        parts = [head, body, tail, *["AAAA"] * 8]
        return ".".join(parts[:segments])

    def _signature(self, data: bytes, key: SigningKey) -> str:
        recipe, word = self.recipe, str(self.recipe.get("signature", ""))
        if word.startswith("text:"):
            return word.removeprefix("text:")
        if str(recipe.get("alg", "")).lower() == "none" and not word:
            return ""
        if "confusion" in recipe:
            octets = broken.confusion(recipe["confusion"], key)[1](data)
        else:
            octets = key.sign(data + b"." * (word == "foreign"), recipe.get("alg"))
        if word and word != "foreign":
            if word not in broken.BREAKS:
                raise RecipeError(
                    f"unknown signature {word!r}; known are {', '.join([*broken.BREAKS, 'foreign'])}"
                )
            if word in broken.CURVE_BREAKS and not broken.is_elliptic(key):
                raise RecipeError(f'signature = "{word}" needs an ECDSA key; say key = "ES256"')
            octets = broken.BREAKS[word](octets, key)
        return self._segment("signature", octets)


def _merge(into: dict[str, Any], table: Mapping[str, Any]) -> None:
    for name, value in table.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _drop(claims: dict[str, Any], path: list[str]) -> None:
    for name in path[:-1]:
        claims = claims.get(name, {})
    claims.pop(path[-1], None)


def _embedded(name: str, key: SigningKey) -> Json:
    if name == "jwk":
        return key.public_jwk()
    if name == "x5c":
        return [base64.b64encode(key.certificate()).decode()]
    if name == "x5t":
        return b64url(hashlib.sha1(key.certificate(), usedforsecurity=False).digest())
    raise RecipeError(f"unknown embed {name!r}; known are jwk, x5c, x5t")
