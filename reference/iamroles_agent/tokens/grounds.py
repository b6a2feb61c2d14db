"""The grounds of a verified credential besides its claims: what else a policy judged it by.

An open stream is judged again without its credential, which the agent does not keep. So an identity names
its grounds, each a kind and a value: a hash, or for the kinds of `_NUMBERS` a number. As long as policy and
key set have a ground of each kind, the credential would be accepted again. The tokens of a client share a
tuple.

`FIELDS` has a row for each setting of an issuer and of an STS endpoint. Some are judged again by a ground of
their own, or by the identity. Others cannot be judged without the credential (which claim holds the roles):
all of these together are a single ground, `rules:…`, and a stream ends when any of them changes. A ticket
from before a kind was introduced has no ground of it, and is judged by the others: an upgrade ends no stream.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache

from iamroles_agent.base.config import Issuer, Limits, Model, Sts
from iamroles_agent.base.identity import Identity
from iamroles_agent.tokens.jws import media
from iamroles_agent.tokens.keys import Key

MOST_AUDIENCES = 8
"""Most audiences of a token that are kept though no policy names them: a reload may."""
AGAIN, HASHED, APART = "judged again", "hashed", "judges no credential"
FIELDS: dict[type[Model], dict[str, str]] = {
    Issuer: {
        **dict.fromkeys(("name", "issuer", "audiences", "client_ids", "algorithms", "types"), AGAIN),
        **dict.fromkeys(("scope_required", "accounts", "max_lifetime", "leeway", "bound"), AGAIN),
        **dict.fromkeys(("profile", "roles_claim", "preferred_role_claim", "scope_claim"), HASHED),
        **dict.fromkeys(("session_claim", "principal_claim"), HASHED),
        **dict.fromkeys(("jwks_uri", "insecure_http"), APART),  # the keys are judged, wherever they come from
    },
    Sts: {
        **dict.fromkeys(("name", "hosts", "accounts", "insecure_http"), AGAIN),
        **dict.fromkeys(("endpoint", "binding_header", "binding_value"), HASHED),
        **dict.fromkeys(("timeout", "recheck", "replay_cache"), APART),
    },
    Limits: dict.fromkeys(("max_lifetime", "max_token_bytes"), AGAIN),
}
"""How each setting is judged by which a credential was accepted."""
_NUMBERS = ("life", "exp", "nbf", "size")
"""Seconds from `iat` to `exp`; `exp` of a token without `iat`; `nbf` if it was ahead; bytes of the token."""

_MOST_RULES = 256
_known_rules: dict[int, tuple[Model, str]] = {}
"""Ten thousand streams are judged by the same few entries."""


@lru_cache(1024)
def ground(kind: str, value: str) -> str:
    """Make one ground."""
    return f"{kind}:{hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


@lru_cache(1024)
def key_ground(key: Key, alg: str = "") -> str:
    """Make a key's ground of its public members, so that another key with its `kid` is another ground.

    Its issuer may add or drop `alg`, with which older tickets have the ground.
    """
    return ground("key", "\n".join((key.kty, key.crv, *key.material, alg)))


@lru_cache(1024)
def token_grounds(url: str, alg: str, more: tuple[str, ...]) -> tuple[str, ...]:
    """Return all grounds of a token, of which `more` is already made."""
    return ground("iss", url), ground("alg", alg), *more


def claim_paths(issuer: Issuer) -> dict[str, tuple[str, ...]]:
    """Return where the claims of an issuer are, by the setting's name; () for a claim that is not read."""
    found = {}
    for name in (name for name in FIELDS[Issuer] if name.endswith("_claim")):
        claim = getattr(issuer, name)
        found[name] = () if claim is None else (claim,) if isinstance(claim, str) else tuple(claim)
    if issuer.profile == "cognito" and "roles_claim" not in issuer.model_fields_set:
        found["roles_claim"] = ("cognito:roles",)
        found["preferred_role_claim"] = found["preferred_role_claim"] or ("cognito:preferred_role",)
    found["session_claim"] = found["session_claim"] or ("jti",)
    return found


def types_of(issuer: Issuer) -> frozenset[str]:
    """Return the accepted `typ`, as `Header.typ` is written."""
    types = set(map(media, issuer.types))
    return frozenset(types & {"at+jwt"} if issuer.profile == "rfc9068" else types)


def rules_ground(entry: Issuer | Sts) -> str:
    """Make the ground of the settings that cannot be judged again without the credential."""
    known = _known_rules.get(id(entry))
    if known is not None and known[0] is entry:
        return known[1]
    hashed = {name: getattr(entry, name) for name, how in FIELDS[type(entry)].items() if how == HASHED}
    if isinstance(entry, Issuer):
        hashed |= claim_paths(entry)
    if len(_known_rules) >= _MOST_RULES:
        _known_rules.clear()
    found = ground("rules", json.dumps(hashed, sort_keys=True))
    _known_rules[id(entry)] = entry, found
    return found


def sts_grounds(endpoint: Sts, url: str) -> tuple[str, ...]:
    """Return the grounds of a pre-signed request; `url` is its scheme and host."""
    return ground("host", url), rules_ground(endpoint)


def _accepted(
    entry: Issuer | Sts, keys: Iterable[Key] | None, identity: Identity
) -> Mapping[str, set[str] | None]:
    """Return the grounds that are accepted now of an identity's token, by kind; None: not known."""
    if isinstance(entry, Sts):
        schemes = ("https", "http") if entry.insecure_http else ("https",)
        hosts = {ground("host", f"{scheme}://{host}") for host in entry.hosts for scheme in schemes}
        return {"iss": set(), "host": hosts, "rules": {rules_ground(entry)}}
    kid = identity.key_id
    algs = [alg for alg in entry.algorithms if ground("alg", alg) in identity.grounds] or entry.algorithms
    keys = keys and [key for key in keys if kid in ("", key.kid) and any(map(key.fits, algs))]
    return {
        "iss": {ground("iss", entry.issuer)},
        "host": set(),
        "alg": {ground("alg", alg) for alg in entry.algorithms},
        "typ": {ground("typ", typ) for typ in types_of(entry)},
        "audience": {ground("aud", name) for name in entry.audiences}
        | {ground("client", name) for name in entry.client_ids},
        "rules": {rules_ground(entry)},
        "key": None
        if keys is None
        else {key_ground(key, alg) for key in keys for alg in ("", key.alg or "")},
    }


def lost(
    identity: Identity, entry: Issuer | Sts, limits: Limits, keys: Iterable[Key] | None, now: float
) -> str:
    """Return why a credential would not be accepted again, a word; "" if it would.

    Args:
        identity: what it proved.
        entry: its issuer or STS endpoint, as it is now.
        limits: as they are now.
        keys: of the issuer; None: not known yet, so that no key counts as lost.
        now: epoch seconds.
    """
    for kind, there in _accepted(entry, keys, identity).items():
        kinds = ("aud:", "client:") if kind == "audience" else (f"{kind}:",)
        mine = {found for found in identity.grounds if found.startswith(kinds)}
        if mine and there is not None and mine.isdisjoint(there):
            return kind
    bound = "refused" if isinstance(entry, Sts) else entry.bound
    if bound == ("required" if identity.binding is None else "refused"):
        return "binding"
    aws = isinstance(entry, Issuer) and entry.profile == "aws"
    if (entry.accounts or aws) and any(role.account not in entry.accounts for role in identity.roles):
        return "account"
    if isinstance(entry, Sts):
        return ""
    numbers = _numbers(identity)
    life = numbers.get("life", numbers["exp"] - now if "exp" in numbers else 0)
    if life > min(entry.max_lifetime, limits.max_lifetime or entry.max_lifetime):
        return "lifetime"
    if max(identity.issued_at or 0, numbers.get("nbf", 0)) > now + entry.leeway:
        return "begin"
    return "length" if numbers.get("size", 0) > limits.max_token_bytes else ""


def _numbers(identity: Identity) -> dict[str, int]:
    words = (found.partition(":") for found in identity.grounds)
    return {kind: int(text) for kind, _, text in words if kind in _NUMBERS and text.lstrip("-").isdecimal()}


def accepted_now(identity: Identity, issuer: Issuer) -> Identity:
    """Return the identity that a credential which is not lost would prove now: its end, and its scopes."""
    numbers = _numbers(identity)
    exp = numbers.get("exp", (identity.issued_at or 0) + numbers["life"] if "life" in numbers else None)
    if exp is not None:
        identity = identity._replace(not_after=min(identity.not_after, int(exp + issuer.leeway)))
    if issuer.scope_claim is not None and issuer.scope_required and identity.scopes is None:
        identity = identity._replace(scopes=frozenset())
    return identity
