"""The decision of SPEC.md section 6, rule by rule, over plain dictionaries."""

from __future__ import annotations

import ipaddress
import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

Policy = Mapping[str, Any]
Rule = Mapping[str, Any]

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_REFUSED_ENCODED = frozenset({*range(0x20), 0x7F, ord("/"), ord("\\"), ord(";")})
_BLANKS = " \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))
_DELIMITERS = frozenset("/\\;%")
_HEX = frozenset("0123456789abcdefABCDEF")
_DIGITS = frozenset("0123456789")
_HOST_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The right answer: reason ("" for an allow), grant or deny of the smallest id, the role that granted (of
    several that the rule names, the smaller ARN), and the end in epoch seconds."""

    reason: str
    rules: frozenset[str] = frozenset()
    backend: str = ""
    roles: frozenset[str] = frozenset()
    expires: int = 0

    @property
    def allow(self) -> bool:
        return not self.reason


def judge(policy: Policy, claims: Mapping[str, Any], request: Mapping[str, Any], now: int) -> Outcome:
    """Judge a request (`method`, `host`, `path`, `src`, `role`) whose token was verified; times are in epoch
    seconds. The one issuer of the policy names the claims."""
    issuer = policy["issuers"][0]
    path = segments(request["path"])
    if path is None:
        return Outcome("path_ambiguous")
    spelled = claims.get(issuer.get("roles_claim", "roles"), [])
    entries = [spelled] if isinstance(spelled, str) else spelled
    arns = [arn(entry) for entry in entries]
    if None in arns:
        return Outcome("role_malformed")
    held = list(dict.fromkeys(entry for entry in arns if entry is not None))
    if not held:
        return Outcome("role_missing")
    active = _active(policy, held, claims, request)
    if isinstance(active, str):
        return Outcome(active)
    names = {name for name, arns_of in _arns_by_name(policy).items() if arns_of & set(held)}
    denies = [
        rule
        for rule in policy.get("denies", ())
        if not rule.get("shadow")
        and ("*" in rule["roles"] or names & roles_of(policy, rule))
        and matches(rule, request, deny=True)
    ]
    if denies:
        return Outcome("denied_by_rule", frozenset({min(str(rule["id"]) for rule in denies)}))
    return _allowed(policy, claims, request, active, now)


def _allowed(
    policy: Policy, claims: Mapping[str, Any], request: Mapping[str, Any], active: list[str], now: int
) -> Outcome:
    if "iat" not in claims:  # 6.23
        policy = {**policy, "roles": [role for role in policy["roles"] if "max_lifetime" not in role]}
    by_name = _arns_by_name(policy)
    granted: list[tuple[tuple[int, int], Rule, list[str]]] = []
    for rule in policy.get("grants", ()):
        named = {one for name in roles_of(policy, rule) for one in by_name.get(name, ())}
        roles = [held for held in active if held in named]
        if roles and not rule.get("shadow") and matches(rule, request):
            granted.append((_specificity(rule), rule, roles))
    if not granted:
        return Outcome("no_grant")
    if not _in_scope(policy, claims, request):
        return Outcome("scope_insufficient")
    best = max(specificity for specificity, _, _ in granted)
    rule, roles = min(
        ((rule, roles) for specificity, rule, roles in granted if specificity == best),
        key=lambda found: str(found[0]["id"]),
    )
    expires = _expires(policy, claims, roles)
    if expires <= now:
        return Outcome("token_expired", expires=expires)
    return Outcome("", frozenset({rule["id"]}), rule["backend"], frozenset({min(roles)}), expires)


def _active(
    policy: Policy, held: list[str], claims: Mapping[str, Any], request: Mapping[str, Any]
) -> list[str] | str:
    """Return the active set of roles, or the reason for a refusal."""
    wanted = request.get("role")
    if wanted is not None:
        asked = {arn(wanted)} if wanted.startswith("arn:") else _arns_by_name(policy).get(wanted, set())
        return [role for role in held if role in asked] or "role_not_in_token"
    preferred_claim = policy["issuers"][0].get("preferred_role_claim")
    preferred = arn(claims[preferred_claim]) if preferred_claim in claims else None
    if preferred in held:
        return [str(preferred)]
    if len(held) == 1 or policy.get("multi_role", "deny") == "union":
        return held
    return "ambiguous_role"


def _in_scope(policy: Policy, claims: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    issuer = policy["issuers"][0]
    claim = issuer.get("scope_claim")
    if claim is None:
        return True
    if claim not in claims:
        return not issuer.get("scope_required", True)
    value = claims[claim]
    scopes = value.split(" ") if isinstance(value, str) else value
    return any(scope["name"] in scopes and matches(scope, request) for scope in policy.get("scopes", ()))


def _expires(policy: Policy, claims: Mapping[str, Any], roles: list[str]) -> int:
    limits = [
        claims["iat"] + seconds(entry["max_lifetime"])
        for entry in policy["roles"]
        if "max_lifetime" in entry and _arns_of(entry) & set(roles)
    ]
    return int(min([claims["exp"], *limits]))


def roles_of(policy: Policy, rule: Rule) -> set[str]:
    """Return the names of roles in a rule, groups written out."""
    groups = {group["name"]: group["roles"] for group in policy.get("groups", ())}
    return {role for name in rule["roles"] for role in groups.get(name, [name])}


def matches(rule: Rule, request: Mapping[str, Any], *, deny: bool = False) -> bool:
    """Tell whether a request lies in a rule's region: methods, path, hosts, sources.

    A deny with hosts also holds for a request without one, because that may be for any host.
    """
    methods = rule.get("methods", ["*"])
    hosts, sources = rule.get("hosts", ()), rule.get("sources", ())
    host = host_name(request.get("host") or "")
    address = _plain(ipaddress.ip_address(request["src"]))
    return (
        ("*" in methods or request["method"] in methods)
        and _path_matches(rule, segments(request["path"]) or [])
        and (
            not hosts
            or (deny and host is None)
            or (host is not None and any(_host_matches(pattern, host) for pattern in hosts))
        )
        and (not sources or any(address in _network(network) for network in sources))
    )


def _path_matches(rule: Rule, path: list[str]) -> bool:
    pattern = segments(rule["path"]) or []
    if rule.get("match", "prefix") == "exact":
        return path == pattern
    return path[: len(pattern)] == pattern


def host_name(text: str) -> str | None:
    """Return a Host header without case, port and trailing dot; None if it is not one host."""
    if text.startswith("["):
        name, closed, rest = text.partition("]")
        name, labels = f"{name}]", [name[1:]]
        letters = _HEX | {":", "."}
        if not closed or (rest and not rest.startswith(":")):
            return None
        port = rest[1:]
    else:
        name, _, port = text.partition(":")
        name = name.removesuffix(".")
        labels, letters = name.split("."), _HOST_LETTERS
    if not set(port) <= _DIGITS or not all(label and set(label) <= letters for label in labels):
        return None
    return name.lower()


def _host_matches(pattern: str, name: str) -> bool:
    pattern = pattern.lower().removesuffix(".")
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return name == pattern


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Any:  # noqa: ANN401 - of either family
    """Turn an IPv4-mapped address into the IPv4 address in it (RFC 4291 section 2.5.5.2)."""
    return getattr(address, "ipv4_mapped", None) or address


def _network(text: str) -> Any:  # noqa: ANN401 - of either family
    network = ipaddress.ip_network(text)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= 96:
        return ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}")
    return network


def _specificity(rule: Rule) -> tuple[int, int]:
    return rule.get("match", "prefix") == "exact", len(segments(rule["path"]) or [])


def segments(path: str) -> list[str] | None:
    """Split a path, one trailing `/` dropped, unreserved characters decoded; None: it is ambiguous."""
    if not path.startswith("/") or any(not 0x21 <= ord(char) <= 0x7E or char in ";\\" for char in path):
        return None
    parts = path[1:].split("/")
    if parts[-1] == "":
        parts.pop()
    decoded = [_decode(part) for part in parts]
    if any(part in (None, "", ".", "..") for part in decoded):
        return None
    return [part for part in decoded if part is not None]


def _decode(part: str) -> str | None:
    out, at = "", 0
    while at < len(part):
        if part[at] != "%":
            out, at = out + part[at], at + 1
            continue
        digits = part[at + 1 : at + 3]
        if len(digits) < 2 or not set(digits) <= _HEX:
            return None
        byte = int(digits, 16)
        if byte in _REFUSED_ENCODED:
            return None
        out, at = out + (chr(byte) if byte in _UNRESERVED else f"%{byte:02X}"), at + 3
    if not _is_plain_text(out):
        return None
    # A `%25` that two hex digits follow would decode twice; `%25%32%65` is one too, its digits decoded.
    after = [text[:2] for text in out.split("%25")[1:]]
    return None if any(len(two) == 2 and set(two) <= _HEX for two in after) else out


def _is_plain_text(part: str) -> bool:
    """Tell whether a segment spells UTF-8, without outer blanks and without a delimiter in disguise."""
    try:
        text = unquote(part, errors="strict")
    except UnicodeDecodeError:
        return False
    if text.strip(_BLANKS) != text:
        return False
    for letter in text:
        folded = unicodedata.normalize("NFKC", letter)
        if folded != letter and (folded in (".", "..") or set(folded) & _DELIMITERS):
            return False
    return True


def arn(text: str) -> str | None:
    """Return the canonical role ARN; None if the text is neither a role nor an assumed role."""
    parts = text.split(":")
    if (
        len(parts) != 6
        or parts[0] != "arn"
        or parts[3] != ""
        or len(parts[4]) != 12
        or not parts[4].isdigit()
    ):
        return None
    resource = parts[5].split("/")
    if parts[2] == "iam" and resource[0] == "role" and len(resource) >= 2:
        name = resource[-1]
    elif parts[2] == "sts" and resource[0] == "assumed-role" and len(resource) == 3:
        name = resource[1]
    else:
        return None
    return f"arn:{parts[1]}:iam::{parts[4]}:role/{name}" if name else None


def seconds(duration: str) -> float:
    """Read a duration of the policy."""
    unit = duration.lstrip("0123456789.")
    return float(duration[: -len(unit)]) * _UNITS[unit]


def load_error(policy: Policy) -> tuple[str, str] | None:
    """Find two grants that conflict, so that a loader must refuse them (equal specificity, another backend).

    A grant in shadow leads nowhere, so it conflicts with nothing.
    """
    union = policy.get("multi_role", "deny") == "union"
    enforced = [grant for grant in policy.get("grants", ()) if not grant.get("shadow")]
    for one, two in itertools.combinations(enforced, 2):
        if (
            one["backend"] != two["backend"]
            and _specificity(one) == _specificity(two)
            and segments(one["path"]) == segments(two["path"])
            and (union or roles_of(policy, one) & roles_of(policy, two))
            and _meet(one.get("methods", ["*"]), two.get("methods", ["*"]))
            and _hosts_meet(one.get("hosts", ()), two.get("hosts", ()))
            and _sources_meet(one.get("sources", ()), two.get("sources", ()))
        ):
            return one["id"], two["id"]
    return None


def _meet(one: Sequence[str], two: Sequence[str]) -> bool:
    return "*" in one or "*" in two or bool(set(one) & set(two))


def _hosts_meet(one: Sequence[str], two: Sequence[str]) -> bool:
    if not one or not two:
        return True
    # A witness: each pattern itself, or a name below it, is matched by both.
    witnesses = [pattern.replace("*", "witness") for pattern in (*one, *two)]
    return any(
        any(_host_matches(pattern, name) for pattern in one)
        and any(_host_matches(pattern, name) for pattern in two)
        for name in witnesses
    )


def _sources_meet(one: Iterable[str], two: Iterable[str]) -> bool:
    first, second = ([_network(text) for text in texts] for texts in (one, two))
    if not first or not second:
        return True
    return any(a.version == b.version and a.overlaps(b) for a in first for b in second)


def _arns_of(role: Mapping[str, Any]) -> set[str]:
    return {found for text in (role.get("arn"), *role.get("arns", ())) if text and (found := arn(text))}


def _arns_by_name(policy: Policy) -> dict[str, set[str]]:
    return {role["name"]: _arns_of(role) for role in policy["roles"]}
