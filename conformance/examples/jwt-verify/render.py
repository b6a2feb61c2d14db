"""Write HAProxy's configuration: the shipped one, with rules of HAProxy's own in the place of an agent.

`jwt_verify` checks a signature and nothing else; all that a token means is written out here as rules, in the order of
SPEC.md 4.2. Issuers with a profile, a nested roles claim or scopes are not trusted, and roles with a lifetime of their
own open nothing. README.md tells what this cannot do.

With `certificates` behind the two paths each key is wrapped in a certificate, and `jwt_verify_cert` verifies (HAProxy 3.3).
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shipped import render

Policy = dict[str, Any]
_STATUS = {
    400: ("invalid_request", "multiple_credentials"),
    403: (
        "insufficient_scope",
        "role_missing role_not_in_token ambiguous_role no_grant denied_by_rule",
    ),
    503: ("", "keys_unavailable"),
}
_NEEDS = """
.if !version_atleast(3.0)
.alert "HAProxy 3.0 is needed: before it json_query reads no list, and roles are one"
.endif
"""
_KINDS = {"RSA": "RS256 RS384 RS512 PS256 PS384 PS512", "P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_NAME = "[A-Za-z0-9_+=,.@-]"
_ROLE = (
    r"arn:aws[a-z-]*:iam::[0-9]{12}:role/([!#-9;-[^-~]+/)?" + _NAME + "{1,64}"
    r"|arn:aws[a-z-]*:sts::[0-9]{12}:assumed-role/" + _NAME + "{1,64}/" + _NAME + "{2,64}"
)


def rules(policy: Policy, keys: dict[str, list[tuple[str, str, str]]]) -> Iterator[str]:
    """The rules of the frontend, one a line; `keys` are (kid, algorithms, converter) by the issuer's name."""
    yield "acl jwt_refused var(txn.iam.reason) -m found"
    yield from _form(policy)
    for issuer in policy.get("issuers", []):
        yield from _issuer(issuer, policy, keys.get(issuer["name"], []))
    yield _refuse("issuer_untrusted", "!{ var(txn.iam.issuer) -m found }")
    yield _refuse("claim_invalid", "!{ var(txn.iam.principal) -m found }")
    yield _refuse("claim_invalid", "{ var(txn.iam.principal) -m reg '[[:cntrl:]]|^ | $' }")
    yield from _roles(policy)
    yield from _decision(policy)
    yield from _verdict()


def _refuse(reason: str, condition: str) -> str:
    return f"http-request set-var(txn.iam.reason) str({reason}) if !jwt_refused {condition}"


def _form(policy: Policy) -> Iterator[str]:
    most = policy.get("limits", {}).get("max_token_bytes", 8192)
    yield _refuse("multiple_credentials", "{ req.fhdr_cnt(authorization) gt 1 }")
    yield "http-request set-var(txn.jwt) http_auth_bearer"
    yield _refuse("no_credentials", "!{ var(txn.jwt) -m found }")
    yield _refuse("token_too_large", f"{{ var(txn.jwt) -m len gt {most} }}")
    part = "[A-Za-z0-9_-]"
    yield _refuse("token_malformed", f"!{{ var(txn.jwt) -m reg '^{part}+[.]{part}+[.]{part}*$' }}")
    for name in ("alg", "kid", "typ"):
        yield f"http-request set-var(txn.jwt_{name}) var(txn.jwt),jwt_header_query('$.{name}')"
    yield "http-request set-var(txn.jwt_head) var(txn.jwt),field(1,.),ub64dec"
    yield "http-request set-var(txn.jwt_body) var(txn.jwt),field(2,.),ub64dec"
    for name in ("head", "body"):
        yield _refuse("token_malformed", f"!{{ var(txn.jwt_{name}) -m reg '^[{{].*[}}]$' }}")
    yield _refuse("token_malformed", "!{ var(txn.jwt_alg) -m found }")
    # An escape could spell the name of a member in a way that the next rule does not see.
    yield _refuse(
        "token_malformed",
        r"{ var(txn.jwt_head) -m sub '\\' '\"crit\"' '\"cty\"' '\"b64\"' '\"zip\"' }".replace(r"\"", '"'),
    )
    yield "http-request set-var(txn.jwt_iss) var(txn.jwt),jwt_payload_query('$.iss')"


def _issuer(issuer: Policy, policy: Policy, keys: list[tuple[str, str, str]]) -> Iterator[str]:
    known = issuer.get("profile", "generic") == "generic" and isinstance(
        issuer.get("roles_claim", "roles"), str
    )
    if not known or issuer.get("scope_claim"):
        return
    name = issuer["name"]
    here = f"{{ var(txn.iam.issuer) -m str '{name}' }}"
    yield f"http-request set-var(txn.iam.issuer) str('{name}') if !jwt_refused {{ var(txn.jwt_iss) -m str '{issuer['issuer']}' }}"
    yield _refuse(
        "algorithm_not_allowed", f"{here} !{{ var(txn.jwt_alg) -m str {' '.join(issuer['algorithms'])} }}"
    )
    types = [
        kind for name in issuer.get("types", ["JWT", "at+jwt"]) for kind in (name, f"application/{name}")
    ]
    yield _refuse(
        "type_not_allowed",
        f"{here} {{ var(txn.jwt_typ) -m found }} !{{ var(txn.jwt_typ) -m str -i {' '.join(types)} }}",
    )
    yield _refuse("type_not_allowed", f"{here} {{ var(txn.jwt_body) -m reg '\"events\"[ ]*:' }}")
    if not keys:
        yield _refuse("keys_unavailable", here)
    for kid, algorithms, verify in keys:
        fits = f"{here} {{ var(txn.jwt_kid) -m str '{kid}' }} {{ var(txn.jwt_alg) -m str {algorithms} }}"
        yield f"http-request set-var(txn.jwt_key) bool(true) if !jwt_refused {fits}"
        yield f"http-request set-var(txn.jwt_good) var(txn.jwt),{verify} if !jwt_refused {fits}"
    yield _refuse("key_unknown", f"{here} !{{ var(txn.jwt_key) -m bool }}")
    yield _refuse("signature_invalid", f"{here} !{{ var(txn.jwt_good) -m int 1 }}")
    yield from _times(issuer, policy, here)
    yield "http-request set-var(txn.jwt_aud) var(txn.jwt),jwt_payload_query('$.aud')"
    for audience in issuer.get("audiences", []):
        yield f"http-request set-var(txn.jwt_for) bool(true) if {here} {{ var(txn.jwt_aud) -m str '{audience}' }}"
        listed = f"{{ var(txn.jwt_aud) -m beg '[' }} {{ var(txn.jwt_aud) -m sub '\"{audience}\"' }}"
        yield f"http-request set-var(txn.jwt_for) bool(true) if {here} {listed}"
    yield _refuse("audience_mismatch", f"{here} !{{ var(txn.jwt_for) -m bool }}")
    yield _refuse("token_bound", f"{here} {{ var(txn.jwt_body) -m reg '\"cnf\"[ ]*:' }}")
    claims = (
        ("iam.principal", issuer.get("principal_claim", "sub")),
        ("iam.session", issuer.get("session_claim", "jti")),
        ("jwt_roles", issuer.get("roles_claim", "roles")),
    )
    for variable, claim in claims:
        if isinstance(claim, str):
            yield f"http-request set-var(txn.{variable}) var(txn.jwt),jwt_payload_query('$.{claim}') if !jwt_refused {here}"


def _times(issuer: Policy, policy: Policy, here: str) -> Iterator[str]:
    leeway = _seconds(issuer.get("leeway", "0s"))
    longest = _seconds(issuer.get("max_lifetime", "3600s"))
    if bound := policy.get("limits", {}).get("max_lifetime"):
        longest = min(longest, _seconds(bound))
    for name in ("exp", "nbf", "iat"):
        yield f"http-request set-var(txn.jwt_{name}) var(txn.jwt),jwt_payload_query('$.{name}','int')"
        yield f"http-request set-var(txn.jwt_{name}_in) date,sub(txn.jwt_{name}),neg if {{ var(txn.jwt_{name}) -m found }}"
        number = f"{{ var(txn.jwt_body) -m reg '\"{name}\"[ ]*:[ ]*[0-9]{{1,15}}[ ]*[,}}]' }}"
        there = "" if name == "exp" else f"{{ var(txn.jwt_body) -m sub '\"{name}\"' }} "
        yield _refuse("claim_invalid", f"{here} {there}!{number}")
    yield f"http-request set-var(txn.jwt_left) var(txn.jwt_exp_in),add({leeway})"
    yield _refuse("token_expired", f"{here} {{ var(txn.jwt_left) -m int le 0 }}")
    for name in ("nbf", "iat"):
        yield _refuse("token_not_yet_valid", f"{here} {{ var(txn.jwt_{name}_in) -m int gt {leeway} }}")
    yield "http-request set-var(txn.jwt_life) var(txn.jwt_exp_in)"
    yield "http-request set-var(txn.jwt_life) var(txn.jwt_exp),sub(txn.jwt_iat) if { var(txn.jwt_iat) -m found }"
    yield _refuse("token_lifetime", f"{here} {{ var(txn.jwt_life) -m int gt {longest} }}")
    yield f"http-request set-var(txn.iam.expires) var(txn.jwt_exp),add({leeway}) if !jwt_refused {here}"


def _roles(policy: Policy) -> Iterator[str]:
    """Set which roles the token has (jwt_has_N), and which are active (jwt_is_N); N counts ARNs of the policy in order."""
    yield _refuse("role_missing", "!{ var(txn.jwt_roles) -m found }")
    yield _refuse("role_missing", "{ var(txn.jwt_roles) -m str '[]' }")
    one = f"({_ROLE})"
    yield _refuse(
        "role_malformed", f'!{{ var(txn.jwt_roles) -m reg \'^({one}|[[]"{one}"(, ?"{one}")*[]])$\' }}'
    )
    arns = _arns(policy)
    for number, (arn, _) in enumerate(arns):
        head, _, name = arn.rpartition("/")
        _, partition, _, _, account, _ = head.split(":")
        name = re.sub(r"([.+])", r"[\1]", name)
        spelled = (
            f"arn:{partition}:iam::{account}:role/([!#-9;-~]+/)?{name}"
            f"|arn:{partition}:sts::{account}:assumed-role/{name}/{_NAME}+"
        )
        yield f"http-request set-var(txn.jwt_has_{number}) bool(true) if !jwt_refused {{ var(txn.jwt_roles) -m reg '(^|\")({spelled})(\"|$)' }}"
    asked = "{ var(txn.iam_requested_role) -m found }"
    for number, (arn, name) in enumerate(arns):
        has = f"{{ var(txn.jwt_has_{number}) -m bool }}"
        yield f"http-request set-var(txn.jwt_is_{number}) bool(true) if {has} !{asked}"
        wanted = f"{{ var(txn.iam_requested_role) -m str '{name}' '{arn}' }}"
        yield f"http-request set-var(txn.jwt_is_{number}) bool(true) if {has} {wanted}"
        yield f"http-request set-var(txn.jwt_found) bool(true) if {has} {wanted}"
    yield _refuse("role_not_in_token", f"{asked} !{{ var(txn.jwt_found) -m bool }}")
    if policy.get("multi_role", "deny") == "deny":
        yield _refuse("ambiguous_role", f"!{asked} {{ var(txn.jwt_roles) -m sub '\",' }}")


def _arns(policy: Policy) -> list[tuple[str, str]]:
    """ARN and name of every role without a lifetime of its own, the smaller ARN first."""
    roles = [role for role in policy.get("roles", []) if "max_lifetime" not in role]
    return sorted((arn, role["name"]) for role in roles for arn in role.get("arns", [role.get("arn")]))


def _decision(policy: Policy) -> Iterator[str]:
    groups = {group["name"]: group["roles"] for group in policy.get("groups", [])}
    arns = _arns(policy)

    def of(rule: Policy) -> list[tuple[int, str]]:
        names = {name for given in rule["roles"] for name in groups.get(given, [given])}
        return [(number, arn) for number, (arn, name) in enumerate(arns) if name in names]

    for deny in sorted(policy.get("denies", []), key=lambda rule: rule["id"]):
        if deny.get("shadow"):
            continue
        holders = [f"{{ var(txn.jwt_has_{number}) -m bool }}" for number, _ in of(deny)]
        for holder in [""] if "*" in deny["roles"] else holders:
            for condition in _conditions(deny, unknown="!"):
                yield f"http-request set-var(txn.iam.rule) str('{deny['id']}') if !jwt_refused {holder} {condition}"
                yield _refuse("denied_by_rule", f"{holder} {condition}")
    grants = [grant for grant in policy.get("grants", []) if not grant.get("shadow")]
    for grant in sorted(grants, key=_specific):
        for number, arn in of(grant):
            for condition in _conditions(grant):
                fits = f"!jwt_refused !{{ var(txn.iam.backend) -m found }} {{ var(txn.jwt_is_{number}) -m bool }} {condition}"
                for variable, text in (("rule", grant["id"]), ("role", arn), ("backend", grant["backend"])):
                    yield f"http-request set-var(txn.iam.{variable}) str('{text}') if {fits}"
    yield _refuse("no_grant", "!{ var(txn.iam.backend) -m found }")


def _specific(grant: Policy) -> tuple[bool, int, str]:
    return grant.get("match") != "exact", -grant["path"].rstrip("/").count("/"), grant["id"]


def _conditions(rule: Policy, unknown: str = "") -> Iterator[str]:
    """Conditions any of which will do; `unknown` "!" where an invalid host fits too."""
    path = rule["path"].rstrip("/")
    ways = [f"{{ path -m str '{path or '/'}' '{path}/' }}"]  # HAProxy takes '' for the end of the line
    if rule.get("match", "prefix") == "prefix":
        ways.append(f"{{ path -m beg '{path}/' }}")
    methods = rule.get("methods", ["*"])
    rest = "" if "*" in methods else f"{{ method -m str {' '.join(methods)} }}"
    if sources := rule.get("sources"):
        rest += f" {{ src {' '.join(sources)} }}"
    hosts = [_host(name) for name in rule.get("hosts", [])]
    given = [f"{{ req.fhdr(host),lower -m reg '{pattern}' }}" for pattern in hosts] or [""]
    if hosts and unknown:
        given.append("!{ req.fhdr(host) -m reg '^[A-Za-z0-9._-]+(:[0-9]*)?$' }")
    for way in ways:
        for host in given:
            yield " ".join(filter(None, (way, rest, host)))


def _host(name: str) -> str:
    text = name.lower().partition(":")[0].rstrip(".").replace(".", "[.]")
    start = "^[a-z0-9_-]+([.][a-z0-9_-]+)*" if text.startswith("*") else "^"
    return f"{start}{text.lstrip('*')}[.]?(:[0-9]*)?$"


def _verdict() -> Iterator[str]:
    yield "http-request set-var(txn.iam.status) int(401) if jwt_refused"
    yield "http-request set-var(txn.iam.error) str(invalid_token) if jwt_refused !{ var(txn.iam.reason) -m str no_credentials }"
    for status, (error, reasons) in _STATUS.items():
        among = f"{{ var(txn.iam.reason) -m str {reasons} }}"
        yield f"http-request set-var(txn.iam.status) int({status}) if {among}"
        yield f"http-request set-var(txn.iam.error) str('{error}') if {among}"
    yield "http-request unset-var(txn.iam.backend) if jwt_refused"
    yield "http-request unset-var(txn.iam.issuer) if jwt_refused !{ var(txn.jwt_good) -m int 1 }"
    yield "http-request set-var(txn.iam.status) int(200) if !jwt_refused"
    yield "http-request set-var(txn.iam.allow) bool(false) if jwt_refused"
    yield "http-request set-var(txn.iam.allow) bool(true) if !jwt_refused"


def _seconds(text: str) -> int:
    number, unit = re.fullmatch(r"([0-9.]+)(ms|s|m|h|d)", text).groups()  # type: ignore[union-attr]
    return int(float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit])


def certificate(key: Any) -> bytes:  # noqa: ANN401 - a public key of `cryptography`
    """A certificate of a public key, signed by nobody: of a certificate HAProxy reads the key and nothing else."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "jwt")])
    now = datetime.now(UTC)
    built = x509.CertificateBuilder(
        name, name, key, x509.random_serial_number(), now, now + timedelta(days=1)
    )
    return built.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.PEM)


def fetched(issuer: Policy, number: int, output: Path, *, certificates: bool) -> list[tuple[str, str, str]]:
    """The issuer's keys, each written into a PEM file; none where it does not answer."""

    def read(url: str) -> Any:  # noqa: ANN401 - JSON
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - the policy's own URL
            return json.load(answer)

    found = []
    try:
        url = issuer.get("jwks_uri")
        url = url or read(issuer["issuer"].rstrip("/") + "/.well-known/openid-configuration")["jwks_uri"]
        for index, key in enumerate(read(url)["keys"]):
            algorithms = key.get("alg") or _KINDS.get(key.get("crv", key["kty"]), "")
            if "kid" in key and algorithms and re.fullmatch(r"[!-&(-~]+", key["kid"]):
                file = f"key-{number}-{index}.pem"
                public = jwt.PyJWK(key, algorithms.split()[0]).key
                bare = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
                (output / file).write_bytes(certificate(public) if certificates else bare)
                verify = "jwt_verify_cert" if certificates else "jwt_verify"
                found.append((key["kid"], algorithms, f'{verify}(txn.jwt_alg,"{file}")'))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError) as error:
        sys.stderr.write(f"keys of {issuer['name']}: {error}\n")
    return found


def main() -> None:
    """Render a world."""
    world, output = map(Path, sys.argv[1:3])
    policy, certificates = json.loads(world.read_text()), sys.argv[3:] == ["certificates"]
    keys = {
        issuer["name"]: fetched(issuer, number, output, certificates=certificates)
        for number, issuer in enumerate(policy.get("issuers", []))
    }
    ask = "".join(f"    {rule}\n" for rule in rules(policy, keys))
    render(world, output, ask, top="" if certificates else _NEEDS)


main()
